"""Guessing the next tokens by looking them up: what followed the last few tokens where they stood before.

Costs no model and pays where answers copy (quotations, code edits, retrieval). The guesses are verified by the model,
so they change the speed only: tokens for bytes, since a step reads the weights once for all of them, and a wait for
each step for plans ahead of it. Which counts for more is measured (`Worth`).
"""

from __future__ import annotations

FIRST = 2  # tokens of a guess before any was right
ALIKE = 5  # tokens, as many as must stand there before, for a step to be waited for
LOOK = 4  # tokens, after as many of which it is looked whether to wait: text that never repeats costs less


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
        self._hoped = False

    def guess(self, tokens: list[int], n_most: int) -> list[int]:
        """At most n_most tokens that may follow."""
        hoped, self._hoped = self._hoped, False
        if self._wait:
            self._wait -= 1
            return []
        at = self._find(tokens)
        guess = tokens[at : at + min(n_most, self._n_next)] if at is not None else []
        self._n_guessed = len(guess)
        if hoped and not guess:
            self._did_not_pay()
        return guess

    def hopes(self, tokens: list[int]) -> bool:
        """Whether, while the token behind these is being drawn, there is a good guess for it and for the next: then
        knowing it is worth waiting. If `guess` finds nothing after that, the wait didn't pay.
        """
        if self._wait:
            self._wait -= 1
            return False
        if len(tokens) % LOOK or (at := self._find(tokens)) is None:
            return False
        self._hoped = at + 1 < len(tokens) and tokens[max(at - ALIKE, 0) : at] == tokens[-ALIKE:]
        return self._hoped

    def note(self, n_right: int) -> None:
        """How many of the last guess were right."""
        if n_right == self._n_guessed:
            self._n_next = min(2 * self._n_next, self._n_drafts)
        if 2 * n_right >= self._n_guessed:
            self._pause = self._wait = 0
        else:
            self._did_not_pay()

    def _find(self, tokens: list[int]) -> int | None:
        """Where the last n tokens stood before: the position behind them."""
        n = self._n_gram
        for end in range(max(self._n_seen, n), len(tokens)):  # what ends at the very last token is what we look for
            self._ends[tuple(tokens[end - n : end])] = end
        self._n_seen = max(len(tokens), self._n_seen)
        return self._ends.get(tuple(tokens[-n:]))

    def _did_not_pay(self) -> None:
        self._n_next = min(FIRST, self._n_drafts)
        self._pause = self._wait = min(max(4 * self._pause, 2), self._max_pause)


class Worth:
    """Whether guessing pays on this machine, by the clock: tokens a second of steps with guesses beside those of steps
    without, among steps of about as many rows. Where it doesn't, nobody guesses for a while, four times as long each
    time; nor for TRIAL steps where it isn't known how long steps without guesses take.
    """

    TRIAL, PAUSE, MOST = 8, 64, 4096  # steps

    def __init__(self) -> None:
        self._by_rows: dict[int, tuple[_Rate, _Rate]] = {}  # without and with guesses
        self._waits: dict[int, int] = {}
        self._pauses: dict[int, int] = {}

    def is_open(self, n_rows: int) -> bool:
        """Whether to guess in the next step; asked once for each."""
        key = n_rows.bit_length()
        if not self._waits.get(key):
            return True
        self._waits[key] -= 1
        return False

    def note(self, n_rows: int, n_tokens: int, seconds: float, *, guessing: bool) -> None:
        """A step of n_rows rows that brought n_tokens."""
        key = n_rows.bit_length()
        plain, guessed = self._by_rows.setdefault(key, (_Rate(), _Rate()))
        (guessed if guessing else plain).add(n_tokens, seconds)
        if not guessing or guessed.n < self.TRIAL:
            return
        if plain.n < self.TRIAL // 2:
            self._waits[key] = self.TRIAL
        elif guessed.value >= plain.value:
            self._pauses[key] = 0
        else:
            self._pauses[key] = self._waits[key] = min(4 * self._pauses.get(key, 0) or self.PAUSE, self.MOST)
            self._by_rows[key] = plain, _Rate()


class _Rate:
    """Tokens a second, mostly of the last ten steps."""

    def __init__(self) -> None:
        self.n = 0
        self._tokens = self._seconds = 0.0

    def add(self, n_tokens: int, seconds: float) -> None:
        self.n += 1
        self._tokens, self._seconds = 0.9 * self._tokens + n_tokens, 0.9 * self._seconds + seconds

    @property
    def value(self) -> float:
        return self._tokens / max(self._seconds, 1e-9)
