"""Guessing the next tokens by looking them up: what followed the last few tokens where they stood before.

Costs no model and pays where answers copy (quotations, code edits, retrieval). The guesses are verified by the model,
so they change the speed only.
"""

from __future__ import annotations


class Drafter:
    """Guesses for one sequence. After a guess that didn't pay it pauses, four times as long each time and up to
    `max_pause` steps, so that text which never repeats costs little; after one that did it starts over. A guess pays if
    at least half of its tokens were right: verifying some costs two or three steps on a CPU.
    """

    def __init__(self, *, n_drafts: int, n_gram: int = 3, max_pause: int = 512) -> None:
        self._n_drafts, self._n_gram, self._max_pause = n_drafts, n_gram, max_pause
        self._n_guessed = 0  # in the last guess
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
        guess = tokens[at : at + min(n_most, self._n_drafts)] if at is not None else []
        self._n_guessed = len(guess)
        return guess

    def note(self, n_right: int) -> None:
        """How many of the last guess were right."""
        self._pause = 0 if 2 * n_right >= self._n_guessed else min(max(4 * self._pause, 2), self._max_pause)
        self._wait = self._pause
