"""Guessing the next tokens by looking them up: what followed the last few tokens where they stood before.

Costs no model and pays where answers copy (quotations, code edits, retrieval). The guesses are verified by the model,
so they change the speed only.
"""

from __future__ import annotations


class Drafter:
    """Guesses for one sequence. After a guess that was wrong from its first token it pauses, twice as long each time,
    so that text which never repeats costs little.
    """

    def __init__(self, *, n_drafts: int, n_gram: int = 3, max_pause: int = 64) -> None:
        self._n_drafts, self._n_gram, self._max_pause = n_drafts, n_gram, max_pause
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> the position behind its latest occurrence
        self._n_seen = 0
        self._pause = self._wait = 0

    def guess(self, tokens: list[int], n_most: int) -> list[int]:
        """At most n_most tokens that may follow."""
        if self._wait:
            self._wait -= 1
            return []
        n = self._n_gram
        for end in range(max(self._n_seen, n), len(tokens)):  # what ends at the very last token is what we look for
            self._ends[tuple(tokens[end - n : end])] = end
        self._n_seen = max(len(tokens), self._n_seen)
        at = self._ends.get(tuple(tokens[-n:]))
        return tokens[at : at + min(n_most, self._n_drafts)] if at is not None else []

    def note(self, n_right: int) -> None:
        """How many of the last guess were right."""
        self._pause = 0 if n_right else min(2 * self._pause + 1, self._max_pause)
        self._wait = self._pause
