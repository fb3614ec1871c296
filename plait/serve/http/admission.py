"""How many requests are in the engine, how many wait for their turn, and what the rest are told."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from plait.serve.http.errors import ApiError


class Admission:
    """First come, first served. Use `async with admission:` around a request's work."""

    def __init__(self, *, max_concurrent: int, max_queued: int) -> None:
        self.max_concurrent, self.max_queued = max_concurrent, max_queued
        self.running = 0
        self.is_draining = False
        self._queue: deque[asyncio.Future[None]] = deque()
        self._mean_s = 1.0  # of recent requests, for Retry-After
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def retry_after_s(self) -> int:
        """About when a place in the queue will be free."""
        return max(1, min(60, round(self._mean_s * (1 + self.waiting) / self.max_concurrent)))

    def check(self) -> None:
        """Raises ApiError 503 while draining, 429 when the queue is full."""
        if self.is_draining:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=5)
        if self.running >= self.max_concurrent and self.waiting >= self.max_queued:
            raise ApiError(
                429,
                f"{self.running} requests are being answered and {self.waiting} wait: try again later",
                code="queue_full",
                retry_after_s=self.retry_after_s,
            )

    async def __aenter__(self) -> None:
        self.check()
        if self.running < self.max_concurrent:
            self.running += 1
        else:
            await self._wait()
        self._idle.clear()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hand_on()

    def note(self, seconds: float) -> None:
        """How long a request took, from its turn to its end."""
        self._mean_s += 0.05 * (seconds - self._mean_s)

    async def drained(self, timeout_s: float) -> bool:
        """Takes no more requests, and waits for those under way. False if some were left."""
        self.is_draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def _wait(self) -> None:
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        self._idle.clear()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._hand_on()  # the turn came as the request left
            else:
                self._queue.remove(place)
            raise

    def _hand_on(self) -> None:
        """The place goes to the next in line, or is given back."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1
        if self.running == 0:
            self._idle.set()
