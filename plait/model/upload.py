"""Weights from the host to a GPU at the speed of the link: pinned buffers filled by the CPU while others are sent."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
BUFFERS = 4


class Uploader:
    """Copies host tensors into a device's memory. On the CPU, and between dtypes, a plain copy.

    A copy may still be under way when `copy` returns; what the current stream does next waits for it, so kernels see
    the numbers, and the host goes on to fill the next buffer while they run.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.buffers: list[Tensor] = []
        self.sent: list[torch.cuda.Event] = []
        self.next = 0

    def copy(self, target: Tensor, source: Tensor) -> None:
        """target.copy_(source). Mutates target."""
        plain = self.stream is None or source.dtype != target.dtype or not target.is_contiguous()
        if plain or source.device.type != "cpu":
            target.copy_(source)
            return
        assert self.stream is not None
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # the memory may have been another's until now
        there, here = target.view(-1).view(torch.uint8), source.contiguous().view(-1).view(torch.uint8)
        for first in range(0, here.numel(), CHUNK_BYTES):
            part = slice(first, min(first + CHUNK_BYTES, here.numel()))
            buffer, event = self._free_buffer()
            pinned = buffer[: part.stop - part.start]
            pinned.copy_(here[part])
            with torch.cuda.stream(self.stream):
                there[part].copy_(pinned, non_blocking=True)
                event.record(self.stream)
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def brought(self, source: Tensor, dtype: torch.dtype) -> Tensor:
        """A host tensor on the device, in `dtype`; on the CPU itself where it has that dtype."""
        if self.stream is None:
            return source.to(self.device, dtype)
        there = torch.empty(source.shape, dtype=source.dtype, device=self.device)
        self.copy(there, source)
        return there.to(dtype)

    def _free_buffer(self) -> tuple[Tensor, torch.cuda.Event]:
        """A buffer whose last contents have been sent, and the event to record when its next ones are."""
        if len(self.buffers) < BUFFERS:
            self.buffers.append(torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=True))
            self.sent.append(torch.cuda.Event())
            return self.buffers[-1], self.sent[-1]
        i, self.next = self.next, (self.next + 1) % BUFFERS
        self.sent[i].synchronize()
        return self.buffers[i], self.sent[i]
