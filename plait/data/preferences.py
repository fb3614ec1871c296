"""Pairs of answers, one preferred, from a JSON-lines file: what DPO trains on (paper section 5.4)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.text.chat import ChatTemplate, assistant_spans
from plait.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pair:
    """One prompt and two answers to it, in tokens; an answer ends with its end token."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("prompt", "chosen", "rejected"):
            if not getattr(self, name):
                raise ValueError(f"{name} of a pair is empty; it must have at least one token")


def read_pairs(path: Path, tokenizer: Path, *, most_tokens: int) -> list[Pair]:
    """Each line of `path` is {"prompt": …, "chosen": text, "rejected": text}. A prompt that is a list of messages goes
    through the chat template of `tokenizer`, a folder; one that is text is continued as it stands.

    ValueError, with the line, for anything else, and for a pair of more than `most_tokens` tokens.
    """
    if not path.is_file():
        raise ValueError(f"{path} must be a file of pairs, one JSON object a line: prompt, chosen, rejected")
    words, template = Tokenizer.from_folder(tokenizer), ChatTemplate.from_folder(tokenizer)
    pairs = []
    for number, record in _records(path):
        try:
            pair = Pair(*_tokens(record, words, template))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        longest = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
        if longest > most_tokens:
            raise ValueError(f"{path}, line {number}: {longest} tokens; set seq to as many, or leave the pair out")
        pairs.append(pair)
    if not pairs:
        raise ValueError(f"{path} holds no pairs")
    return pairs


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            wanted = {"prompt", "chosen", "rejected"}
            if not isinstance(record, dict) or not wanted <= record.keys():
                raise ValueError(f"{path}, line {number}: a pair must have {', '.join(sorted(wanted))}")
            yield number, record


def _tokens(record: dict[str, Any], words: Tokenizer, template: ChatTemplate) -> list[tuple[int, ...]]:
    """Prompt, chosen, rejected."""
    prompt, answers = record["prompt"], [record["chosen"], record["rejected"]]
    if not all(isinstance(answer, str) for answer in answers):
        raise ValueError("chosen and rejected must be text")
    if isinstance(prompt, str):
        before = (words.bos_id, *words.encode(prompt))
        return [before, *((*words.encode(answer), words.eos_ids[0]) for answer in answers)]
    found: list[tuple[int, ...]] = []
    for answer in answers:
        turn = {"role": "assistant", "content": answer}
        ids = template.encode(words, [*prompt, turn], add_generation_prompt=False)
        start, end = assistant_spans(words, ids)[-1]
        found += [tuple(ids[:start]), tuple(ids[start:end])]
    return [found[0], found[1], found[3]]
