"""Guessing the next tokens by looking them up: what followed the last few tokens where they stood before.

Costs no model and pays where answers copy (quotations, code edits, retrieval). The guesses are verified by the model,
so they change the speed only.
"""

from __future__ import annotations

FIRST = 2  # tokens of a guess before any was right


class Drafter:
    """Guesses for one sequence. A guess that was right is followed by one twice as long, up to `n_drafts`. After one
    that didn't pay the next is short again, and waits four times as long each time, up to `max_pause` steps: so text
    that never repeats costs little. A guess pays if at least half of its tokens were right.
    """

    def __init__(self, *, n_drafts: int, n_gram: int = 3, max_pause: int = 512) -> None:
        self._n_drafts, self._n_gram, self._max_pause = n_drafts, n_gram, max_pause
        self._n_next = min(FIRST, n_drafts)
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
        guess = tokens[at : at + min(n_most, self._n_next)] if at is not None else []
        self._n_guessed = len(guess)
        return guess

    def note(self, n_right: int) -> None:
        """How many of the last guess were right."""
        if n_right == self._n_guessed:
            self._n_next = min(2 * self._n_next, self._n_drafts)
        if 2 * n_right >= self._n_guessed:
            self._pause = 0
        else:
            self._n_next = min(FIRST, self._n_drafts)
            self._pause = min(max(4 * self._pause, 2), self._max_pause)
        self._wait = self._pause
