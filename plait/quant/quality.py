"""What quantization costs in quality: perplexity, greedy agreement and divergence of the next-token distributions; and
whether a model runs in fp16 at all (paper section 3.2).
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait.model.checkpoint import load_model, read_config
from plait.model.feed_forward import MLP, MoE, SwiGLU
from plait.model.linear import scaled_linear
from plait.model.network import LanguageModel
from plait.ops.moe import route
from plait.quant.parts import cast_part, model_parts
from plait.quant.walk import Walk, gated

FP16_MAX = 65504.0
ROWS = 512  # positions whose logits exist at a time


@dataclass(frozen=True)
class Quality:
    """A model against another of the same tokens, over every position that has a next token."""

    positions: int
    loss_before: float  # nats per token
    loss_after: float
    greedy_agreement: float  # share of positions where both prefer the same next token
    kl_mean: float  # of before || after, nats per position
    kl_p99: float
    kl_max: float

    @property
    def perplexity_before(self) -> float:
        return _exp(self.loss_before)

    @property
    def perplexity_after(self) -> float:
        return _exp(self.loss_after)

    @property
    def perplexity_change(self) -> float:
        """0.001 is 0.1 % worse."""
        change = self.loss_after - self.loss_before
        return math.expm1(change) if abs(change) < 0.1 else _exp(change) - 1

    def as_json(self) -> dict[str, Any]:
        """What is inf or nan, as after an overflow, is null: JSON has no word for it."""
        derived = ("perplexity_before", "perplexity_after", "perplexity_change")
        values = asdict(self) | {name: getattr(self, name) for name in derived}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 or math.isnan(nats) else math.inf  # a broken model must not stop the report


class Head:
    """Final norm and output matrix of a model that comes in parts: what logits are made with."""

    def __init__(self) -> None:
        self.weight: Tensor | None = None
        self.scale: Tensor | None = None

    def see(self, name: str, part: nn.Module, *, tied: bool) -> None:
        """Keep the matrix when its part comes by, as it is now."""
        if name == ("embed" if tied else "head"):
            self.weight, self.scale = part.weight.data, part.weight_scale  # type: ignore[assignment]

    def logits(self, hidden: Tensor) -> Tensor:
        assert self.weight is not None
        return scaled_linear(hidden, self.weight, self.scale).float()


@torch.no_grad()
def compared(before: tuple[Walk, Head], after: tuple[Walk, Head]) -> Quality:
    """Two walks that have passed the final norm, with the heads they met."""
    losses, agreements, divergences = [[], []], [], []  # type: ignore[var-annotated]
    for ids, x, y in zip(before[0].token_ids, before[0].x, after[0].x, strict=True):
        labels = ids[1:]
        for rows in torch.arange(len(labels), device=ids.device).split(ROWS):
            p, q = (head.logits(h[rows]).log_softmax(-1) for (_, head), h in ((before, x), (after, y)))
            for total, logs in zip(losses, (p, q), strict=True):
                total.append(-logs.gather(-1, labels[rows, None]).double())
            agreements.append((p.argmax(-1) == q.argmax(-1)).double())
            divergences.append((p.exp() * (p - q)).sum(-1).double())
    kl = torch.cat(divergences)
    means = [torch.cat(total).mean().item() for total in losses]
    p99 = kl.sort().values[min(len(kl) - 1, int(0.99 * len(kl)))].item()
    agreement = torch.cat(agreements).mean().item()
    return Quality(len(kl), means[0], means[1], agreement, kl.mean().item(), p99, kl.max().item())


def compare(before: LanguageModel, after: LanguageModel, token_ids: Tensor) -> Quality:
    """Two models over token_ids [n_sequences, seq], each sequence from its own start."""
    ends = []
    for model in (before, after):
        walk, head = Walk(token_ids, model.dtype, model.embed.weight.device), Head()
        for name, part in model_parts(model):
            walk.step(name, part)
            head.see(name, part, tied=model.config.tie_embeddings)
        ends.append((walk, head))
    return compared(ends[0], ends[1])


@dataclass(frozen=True)
class Site:
    """An activation, over all tokens of a run: its greatest magnitude in the checkpoint's own precision and range, and
    how many of its numbers were inf or nan when the model ran in fp16.
    """

    name: str
    max_abs: float
    not_finite_in_fp16: int

    @property
    def overflows(self) -> bool:
        return self.not_finite_in_fp16 > 0 or not self.max_abs <= FP16_MAX


@dataclass(frozen=True)
class Fp16Report:
    """Section 3.2's check: the same model with fp16 activations."""

    sites: tuple[Site, ...]
    weights_not_finite: tuple[str, ...]  # weights that fp16 can't hold
    quality: Quality

    @property
    def overflowing(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.overflows)

    def as_json(self) -> dict[str, Any]:
        def told(site: Site) -> dict[str, Any]:
            return asdict(site) | {"max_abs": site.max_abs if math.isfinite(site.max_abs) else None}

        largest = sorted(self.sites, key=lambda site: -site.max_abs)[:10]
        return {
            "overflowing": [told(site) for site in self.overflowing],
            "largest": [told(site) for site in largest],
            "weights_not_finite": list(self.weights_not_finite),
            "quality": self.quality.as_json(),
        }


class _Watch:
    """Greatest magnitudes and counts of inf and nan, by site, of whatever runs within `of`."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}
        self.not_finite: dict[str, int] = {}

    def note(self, site: str, x: Tensor) -> None:
        if x.numel():
            wide = x.detach().float()
            finite = torch.isfinite(wide)
            self.not_finite[site] = self.not_finite.get(site, 0) + int((~finite).sum())
            self.largest[site] = max(self.largest.get(site, 0.0), wide.abs().amax().item())

    def hooks(self, prefix: str, part: nn.Module) -> list[Any]:
        def after(name: str) -> Any:
            def see(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
                if isinstance(module, SwiGLU):
                    self._inside(name, module, given[0])
                self.note(name, out[0] if isinstance(out, tuple) else out)

            return see

        named = part.named_modules(prefix=prefix)
        return [module.register_forward_hook(after(name)) for name, module in named]

    def _inside(self, name: str, ffn: SwiGLU, x: Tensor) -> None:
        """What no module boundary shows: the product of gate and up, and each expert's output before its weight."""
        if isinstance(ffn, MoE):
            _, expert_ids = route(ffn.router(x), ffn.top_k)
            for expert in range(ffn.down.shape[0]):
                self.note(f"{name}.gated", gated(ffn, x[(expert_ids == expert).any(-1)], expert))
            self.note(f"{name}.experts", ffn.observed(x)[2].max_abs)
        elif isinstance(ffn, MLP):
            self.note(f"{name}.gated", gated(ffn, x, None))


@torch.no_grad()
def check_fp16(folder: str | Path, token_ids: Tensor, *, device: torch.device | str = "cpu") -> Fp16Report:
    """Run a checkpoint over token_ids [n_sequences, seq] as it is and in fp16, side by side, layer by layer while it is
    read. Quantized weights stay as they are; their scales are fp32 in both.
    """
    config = read_config(folder)
    watches = (_Watch(), _Watch())
    broken: list[str] = []
    dtypes = (getattr(torch, config.dtype), torch.float16)
    ends = [(Walk(token_ids, dtype, device), Head()) for dtype in dtypes]

    def on_part(name: str, part: nn.Module) -> None:
        half = copy.deepcopy(part)
        cast_part(half, torch.float16)
        floating = ((n, p) for n, p in half.named_parameters(prefix=name) if p.is_floating_point())
        broken.extend(n for n, p in floating if not bool(torch.isfinite(p.float()).all()))
        for one, watch, (walk, head) in zip((part, half), watches, ends, strict=True):
            hooks = watch.hooks(name, one)
            walk.step(name, one)
            for hook in hooks:
                hook.remove()
            head.see(name, one, tied=config.tie_embeddings)
        if name.startswith("layers."):
            part.to("meta")

    load_model(folder, device=device, dtype=dtypes[0], on_part=on_part)
    sites = [Site(name, size, watches[1].not_finite.get(name, 0)) for name, size in watches[0].largest.items()]
    return Fp16Report(tuple(sites), tuple(broken), compared(ends[0], ends[1]))
