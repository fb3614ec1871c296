"""End-to-end latency of a model in memory: a prompt of some tokens, then an answer drawn greedily, token by token.

On CUDA the decode step is captured once in a graph and replayed. Weights may be dummies: no time here depends on them,
but for which experts a router picks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from plait.model.layout import Layout, Segment
from plait.model.network import LanguageModel
from plait.model.state import PAGE_SIZE, State


@dataclass(frozen=True)
class Latency:
    """Seconds of one batch from prompt to last token: median, least and greatest of the repeats, and their parts."""

    seconds: float
    least: float
    most: float
    prefill_seconds: float  # median
    graph: bool  # whether decode steps were replays of a CUDA graph

    @property
    def decode_seconds(self) -> float:
        return self.seconds - self.prefill_seconds


def shallow(model: LanguageModel, n_layers: int) -> LanguageModel:
    """The same model with its first layers only; it shares their weights."""
    with torch.device("meta"):
        fewer = LanguageModel(replace(model.config, n_layers=n_layers))
    fewer.embed, fewer.final_norm, fewer.head = model.embed, model.final_norm, model.head
    fewer.layers = nn.ModuleList(list(model.layers)[:n_layers])
    return fewer.eval()


@torch.inference_mode()
def measure(
    model: LanguageModel, *, batch: int, prompt_tokens: int, answer_tokens: int, repeats: int, warmups: int = 2
) -> Latency:
    """Prompts of random tokens, prefilled in one call, then answer_tokens - 1 decode steps (the prefill draws one)."""
    run = _Run(model, batch, prompt_tokens, answer_tokens)
    for _ in range(warmups):
        run(decode_steps=2)
    run.capture()
    timings = [run() for _ in range(repeats)]
    totals = [prefill + decode for prefill, decode in timings]
    prefill = statistics.median(prefill for prefill, _ in timings)
    return Latency(statistics.median(totals), min(totals), max(totals), prefill, run.graph is not None)


class _Run:
    """One batch with its state and the buffers that decode steps read and write in place."""

    def __init__(self, model: LanguageModel, batch: int, prompt_tokens: int, answer_tokens: int) -> None:
        self.model, self.batch, self.prompt_tokens, self.answer_tokens = model, batch, prompt_tokens, answer_tokens
        config, self.device = model.config, model.final_norm.weight.device
        pages = -(-(prompt_tokens + answer_tokens) // PAGE_SIZE)
        n_pages = batch * pages
        self.state = State.empty(config, n_slots=batch, n_pages=n_pages, dtype=model.dtype, device=self.device)
        owned = [tuple(range(row * pages, (row + 1) * pages)) for row in range(batch)]
        segments = [Segment(row * prompt_tokens, prompt_tokens, slot=row, pages=owned[row]) for row in range(batch)]
        self.prefill_layout = Layout.of(segments, batch, prompt_tokens, self.device)
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(1, config.vocab_size, (batch, prompt_tokens), generator=generator)
        self.prompts = prompts.to(self.device)
        decode = [
            Segment(row, 1, "decode", slot=row, context_len=prompt_tokens, pages=owned[row]) for row in range(batch)
        ]
        self.decode_layout = Layout.of(decode, 1, batch, self.device)
        self.token_ids = torch.zeros(1, batch, dtype=torch.int64, device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, decode_steps: int | None = None) -> tuple[float, float]:
        """Seconds of prefill and of decode; None: as many steps as the answer has after its first token."""
        self.decode_layout.context_lens.fill_(self.prompt_tokens)
        self._wait()
        started = time.perf_counter()
        logits = self.model(self.prompts, self.prefill_layout, self.state, keep="last").logits
        self._draw(logits)
        self._wait()
        middle = time.perf_counter()
        step: Callable[[], None] = self._step if self.graph is None else self.graph.replay
        for _ in range(self.answer_tokens - 1 if decode_steps is None else decode_steps):
            step()
        self._wait()
        return middle - started, time.perf_counter() - middle

    def _draw(self, logits: Tensor) -> None:
        self.token_ids.copy_(logits.view(self.batch, -1).argmax(-1)[None])

    def _step(self) -> None:
        """One token of every sequence: reads token_ids and context_lens, leaves them as the next step needs them."""
        self._draw(self.model(self.token_ids, self.decode_layout, self.state, keep="last").logits)
        self.decode_layout.context_lens.add_(1)

    def capture(self) -> None:
        """Record the decode step, on CUDA."""
        if self.device.type != "cuda":
            return
        self.decode_layout.context_lens.fill_(self.prompt_tokens)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.graph = graph

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
