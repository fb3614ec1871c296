"""Which replica has read the beginning of a prompt before: the part of prefix-aware routing that needs no Ray."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from plait.text import GenerationRequest

R = TypeVar("R", bound=Hashable)

PIECE = 512
"""Characters (or a quarter as many token ids) that one key stands for: about what two or three pages of tokens hold."""

MAX_KEYS = 2048
"""Of one prompt, a million characters; replicas don't differ behind that in any way worth knowing."""


def prefix_keys(request: GenerationRequest) -> tuple[int, ...]:
    """One key for each whole piece of a prompt, each made of all the text up to its end: two prompts share their first
    n keys exactly if they share their first n pieces.
    """
    pieces, seen, keys = _pieces(request), b"", []
    for _ in range(MAX_KEYS):
        piece = next(pieces, None)
        if piece is None:
            break
        seen = blake2b(seen + piece, digest_size=8).digest()
        keys.append(int.from_bytes(seen))
    return tuple(keys)


def _pieces(request: GenerationRequest) -> Iterator[bytes]:
    """What comes first in a rendered prompt comes first here: tools, documents, messages."""
    if request.token_ids is not None:
        size = PIECE // 4
        for at in range(0, len(request.token_ids) - size + 1, size):
            yield repr(list(request.token_ids[at : at + size])).encode()
        return
    if request.prompt is not None:
        text = request.prompt
    else:
        parts: list[Any] = [request.tools, request.knobs, *(request.documents or ()), *(request.messages or ())]
        text = "\n".join(json.dumps(part, sort_keys=True, default=str) for part in parts)
    for at in range(0, len(text) - PIECE + 1, PIECE):
        yield text[at : at + PIECE].encode()


class PrefixMemory(Generic[R]):
    """Remembers the last `size` keys and the replicas they went to."""

    def __init__(self, size: int = 200_000) -> None:
        self.size = size
        self._places: OrderedDict[int, dict[R, None]] = OrderedDict()

    def note(self, keys: Sequence[int], replica: R) -> None:
        """A prompt with these keys was sent to a replica."""
        for key in reversed(keys):  # so that a prompt's end is forgotten before its beginning
            self._places.setdefault(key, {})[replica] = None
            self._places.move_to_end(key)
        while len(self._places) > self.size:
            self._places.popitem(last=False)

    def best(self, keys: Sequence[int], among: Collection[R]) -> list[R]:
        """Those of `among` that know the most of a prompt; none if nobody knows its first piece."""
        for key in reversed(keys):
            found = [replica for replica in self._places.get(key, ()) if replica in among]
            if found:
                return found
        return []


_latest: dict[str, dict[str, Any]] = {}


def note_figures(figures: dict[str, dict[str, Any]]) -> None:
    """By replica: its engine's figures, as Ray brought them to the router of this process."""
    _latest.clear()
    _latest.update(figures)


def latest_figures() -> list[dict[str, Any]]:
    """Of each replica that has sent some. Kept for the process, because Ray makes the router, of a copy of its class:
    nothing else in the process can find it, while functions of this module are the same for both.
    """
    return [figures for figures in _latest.values() if figures]
