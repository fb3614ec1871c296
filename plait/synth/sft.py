"""Conversations to training tokens: skills, long contexts and chats in one mix, loss on the assistant's turns only.

The folder is that of `plait.data.write_shards`, one conversation a document, with a loss mask beside the tokens: the
loader packs conversations into rows and gives labels for the assistant's turns only.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

import numpy as np

from plait.data import Document, TokenShards, add_loss_mask, write_shards
from plait.synth.conversation import wrong_conversation
from plait.synth.decontaminate import Decontaminator
from plait.synth.record import Record, from_chat, random_for, read_jsonl, write_text
from plait.text import ChatTemplate, ChatTemplateError, Tokenizer, assistant_spans

REPORT_FILE = "mix.json"


@dataclass(frozen=True)
class MixPart:
    """A chat file and how often each of its conversations goes in: 0.5 is a random half, 2 all of them twice."""

    path: Path
    times: float = 1.0
    kind: str = "skill"  # skill, long_context or conversation: for the report

    def __post_init__(self) -> None:
        if self.times <= 0:
            raise ValueError(f"times={self.times} of {self.path} must be greater than 0")


@dataclass(frozen=True)
class Side:
    """Which conversations of a mix: those put aside to watch the loss on, a random `share` of all, or the others."""

    share: float
    held_out: bool

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"the held-out share {self.share} must be at least 0 and less than 1")

    def has(self, random: Random) -> bool:
        return (random.random() < self.share) == self.held_out


ALL = Side(0.0, held_out=False)


def mixed(parts: Iterable[MixPart], seed: int, side: Side = ALL) -> Iterator[tuple[MixPart, Record]]:
    """The mix's conversations, one in memory at a time. The loader shuffles; here they come part by part."""
    for part in parts:
        for index, line in enumerate(read_jsonl(part.path)):
            if not side.has(random_for("side", seed, part.path.name, index)):
                continue
            whole, share = divmod(part.times, 1)
            is_drawn = random_for("mix", seed, part.path.name, index).random() < share
            try:
                record = from_chat(line)
            except ValueError as error:
                raise ValueError(f"{part.path}, record {index + 1}: {error}") from None
            for _ in range(int(whole) + is_drawn):
                yield part, record


def encode_chat(record: Record, tokenizer: Tokenizer, template: ChatTemplate) -> tuple[list[int], np.ndarray]:
    """Token ids as the template writes them (bos first), and uint8 of the same length: 1 in assistant turns and their
    closing tokens."""
    messages = [_for_template(message) for message in record.messages]
    ids = template.encode(
        tokenizer,
        messages,
        tools=list(record.tools) or None,
        documents=list(record.documents) or None,
        knobs=record.knobs or None,
        add_generation_prompt=False,
    )
    mask = np.zeros(len(ids), dtype=np.uint8)
    for start, end in assistant_spans(tokenizer, ids):
        mask[start:end] = 1
    return ids, mask


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as objects, not text: templates write them out themselves."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = [
        {"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def write_sft(
    parts: Iterable[MixPart],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    out: Path,
    *,
    seed: int = 0,
    side: Side = ALL,
    max_tokens: int | None = None,
    decontaminator: Decontaminator | None = None,
) -> TokenShards:
    """Shards, loss mask and report in the new folder `out`, which appears whole or not at all; `side` leaves some
    conversations to the held-out folder, or takes only those.

    Conversations that are wrong, contaminated, longer than `max_tokens` or without an assistant turn are left out and
    counted in the report. Raises ValueError when none is left.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: remove it or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{secrets.token_hex(4)}.sft")
    mask_path = out.with_name(f".{out.name}.{secrets.token_hex(4)}.mask")
    try:
        with mask_path.open("wb") as mask_file:
            mix = _Mix(tokenizer, template, max_tokens, decontaminator, mask_file)
            shards = write_shards(mix.documents(mixed(parts, seed, side)), mix, unfinished)
            mask_file.flush()
            os.fsync(mask_file.fileno())
        shards = add_loss_mask(shards, mask_path)
        write_text(json.dumps(mix.report(seed), indent=2, ensure_ascii=False) + "\n", unfinished / REPORT_FILE)
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        mask_path.unlink(missing_ok=True)
    return TokenShards(out, shards.metadata)


class _Mix:
    """Stands in for the tokenizer while shards are written: the ids of a conversation are the template's."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        max_tokens: int | None,
        decontaminator: Decontaminator | None,
        mask_file: BinaryIO,
    ) -> None:
        self.vocab_size = tokenizer.vocab_size
        self.bos_id = tokenizer.bos_id
        self.eos_ids = tokenizer.eos_ids
        self._tokenizer = tokenizer
        self._template = template
        self._max_tokens = max_tokens
        self._decontaminator = decontaminator
        self._mask_file = mask_file
        self._next: tuple[str, list[int]] | None = None
        self._kept: dict[tuple[str, str, str], Counter[str]] = {}  # file, kind, skill
        self._left_out: Counter[str] = Counter()

    def encode(self, text: str) -> list[int]:
        if self._next is not None and self._next[0] == text:
            return self._next[1]
        return self._tokenizer.encode(text)

    def documents(self, records: Iterable[tuple[MixPart, Record]]) -> Iterator[Document]:
        for index, (part, record) in enumerate(records):
            encoded = self._encoded(record)
            if isinstance(encoded, str):
                self._left_out[encoded.partition(":")[0]] += 1
                continue
            ids, mask = encoded
            self._mask_file.write(bytes([0]) + mask[1:].tobytes() + bytes([0]))  # bos, conversation, eos
            counts = self._kept.setdefault((part.path.name, part.kind, record.skill), Counter())
            counts.update(conversations=1, tokens=len(ids) + 1, learned_tokens=int(mask.sum()))
            text = self._tokenizer.decode(ids[1:], control_tokens=True)
            self._next = text, ids[1:]
            yield Document(text, source=f"{part.path.name}: {record.skill}", index=index)
        if not self._kept:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in self._left_out.items())
            raise ValueError(f"no conversation is left{': ' if reasons else ''}{reasons}")

    def _encoded(self, record: Record) -> tuple[list[int], np.ndarray] | str:
        wrong = wrong_conversation(record)
        if wrong is None and self._decontaminator is not None:
            wrong = self._decontaminator.reject(record)
        if wrong is not None:
            return wrong
        try:
            ids, mask = encode_chat(record, self._tokenizer, self._template)
        except ChatTemplateError as error:
            return f"refused by the template: {error}"
        if self._max_tokens is not None and len(ids) + 1 > self._max_tokens:
            return f"longer than {self._max_tokens} tokens: {len(ids) + 1}"
        if ids[:1] != [self.bos_id]:
            raise ValueError("the chat template must begin with the beginning-of-text token")
        return (ids, mask) if mask.any() else "no assistant turn"

    def report(self, seed: int) -> dict[str, Any]:
        parts = [{"file": f, "kind": k, "skill": s, **counts} for (f, k, s), counts in self._kept.items()]
        contamination = None if self._decontaminator is None else self._decontaminator.report()
        return {"seed": seed, "parts": parts, "left_out": dict(self._left_out), "decontamination": contamination}
