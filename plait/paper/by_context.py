"""End-to-end latency and throughput of one request by context length (paper section 4; Figures 3 and 4).

Models have their own shapes and dummy weights, and run on our engine, rivals too: what is compared is architectures.
Rivals' rotary embedding is left out; it would add a few elementwise kernels a layer. Where not all layers fit (or
fewer were asked for), two depths are run, the rest is extrapolated from them layer by layer, and marked so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.config import ModelConfig

if TYPE_CHECKING:
    from rich.console import Console

    from plait.model.network import LanguageModel
    from plait.serve.build import Built

FULL = (1024, 8192, 32_768, 131_072), 512  # prompt tokens; new tokens, as in the paper
TINY = (64, 256, 1024), 16
METHODS = ("bf16", "experts_int8")


@dataclass(frozen=True)
class Options:
    """How much to run. scale `tiny`: models a laptop's CPU runs in seconds, with the same pattern of layers; `full`:
    the models' own sizes. layers: of each model at most; None: what fits in memory in bf16.
    """

    models: tuple[str, ...]
    scale: str = "tiny"
    device: str = "cpu"
    methods: tuple[str, ...] = ("bf16",)
    contexts: tuple[int, ...] | None = None
    layers: int | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.scale not in ("tiny", "full"):
            raise ValueError(f"scale={self.scale!r} must be 'tiny' or 'full'")
        if unknown := [method for method in self.methods if method not in METHODS]:
            raise ValueError(f"methods: {unknown[0]!r} must be among {', '.join(METHODS)}")
        if min(self.repeats, *(self.contexts or (1,))) < 1 or (self.layers is not None and self.layers < 1):
            raise ValueError("repeats, contexts and layers must be at least 1")

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        return self.contexts or (FULL if self.scale == "full" else TINY)[0]

    @property
    def new_tokens(self) -> int:
        return (FULL if self.scale == "full" else TINY)[1]


def shape_of(config: ModelConfig, options: Options) -> ModelConfig:
    """The model whole, at the scale."""
    config = replace(config, dtype="bfloat16")
    if options.scale == "full":
        return config
    return replace(
        config, n_layers=16, eos_ids=(2,), vocab_size=512, d_model=128, d_ff=256,
        n_heads=4, n_kv_heads=2, d_head=32, dt_rank=8,
    )  # fmt: skip


def depth(config: ModelConfig, options: Options) -> int:
    """Layers to run: all, or else an even number of periods of the pattern, so that half of them is such a model."""
    import torch

    from plait.accounting import weight_bytes

    most = config.n_layers if options.layers is None else min(options.layers, config.n_layers)
    if options.device.startswith("cuda"):
        room = 0.85 * torch.cuda.mem_get_info(torch.device(options.device))[0]
        while most > 2 * config.attn_period and weight_bytes(replace(config, n_layers=most), "bf16") > room:
            most -= 1
    if most == config.n_layers:
        return most
    step = 2 * config.attn_period
    return max(step, most // step * step)


def measure(models: Mapping[str, ModelConfig], options: Options, say: Callable[[str], object] | None) -> dict[str, Any]:
    """Run everything; `say(text)` is told of each result. What can't run is a row with the reason."""
    rows: list[dict[str, Any]] = []
    for name in options.models:
        config = shape_of(models[name], options)
        for method in options.methods:
            try:
                for row in _rows(name, config, method, options):
                    rows.append(row)
                    if say is not None:
                        say(_sentence(row))
            except (RuntimeError, ValueError) as error:  # no memory, mostly
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
                rows.append({"model": name, "method": method, "failed": reason})
            _release()
    return {"conditions": _conditions(options), "rows": rows}


def _rows(name: str, whole: ModelConfig, method: str, options: Options) -> Iterator[dict[str, Any]]:
    from plait.paper.latency import shallow

    contexts = [n for n in options.prompt_tokens if n <= whole.max_context]
    for beyond in sorted(set(options.prompt_tokens) - set(contexts)):
        reason = f"the model was made for {whole.max_context} tokens"
        yield {"model": name, "method": method, "context": beyond, "failed": reason}
    if not contexts:
        return
    room = max(contexts) + options.new_tokens  # the answer may go past what a model was made for
    shape = replace(whole, n_layers=depth(whole, options), max_context=max(whole.max_context, room))
    model = _model(shape, method, options.device)
    n_layers = model.config.n_layers
    missing = whole.n_layers - n_layers
    found = _timed(model, contexts, options)
    half = _timed(shallow(model, n_layers // 2), contexts, options) if missing else found
    for context in contexts:
        full, part = found[context], half[context]
        per_layer = [(a - b) / (n_layers - n_layers // 2) for a, b in zip(full, part, strict=True)]
        ttft, itl = (a + missing * b for a, b in zip(full, per_layer, strict=True))
        yield {
            "model": name, "method": method, "context": context, "new_tokens": options.new_tokens,
            "seconds": ttft + itl * (options.new_tokens - 1), "ttft_seconds": ttft, "tokens_per_s": 1 / itl,
            "layers": n_layers, "layers_of_the_model": whole.n_layers, "extrapolated": missing > 0,
            "as_run": {"ttft_seconds": full[0], "itl_seconds": full[1]},
        }  # fmt: skip


def _model(config: ModelConfig, method: str, device: str) -> LanguageModel:
    import torch

    from plait.bench.dummy import dummy_model

    return dummy_model(config, device, torch.bfloat16, quantize=None if method == "bf16" else method)


def _timed(model: LanguageModel, contexts: list[int], options: Options) -> dict[int, tuple[float, float]]:
    """By context: seconds to the first token, and median seconds between those after it, one request at a time."""
    from plait.bench.load import Load, figures
    from plait.bench.serve import bench_engine

    built, found = _engine(model, max(contexts) + options.new_tokens, options.device), {}
    for context in contexts:
        load = Load(context, options.new_tokens, options.repeats, concurrency=1)
        warm = replace(load, prompt_tokens=min(context, 8192), new_tokens=4, n_requests=1, seed=-1)
        for one in (warm, load):
            result = figures(one, bench_engine(built.engine, one, model.config.vocab_size))
        found[context] = result.ttft_ms["p50"] / 1e3, result.itl_ms["p50"] / 1e3
    return found


def _engine(model: LanguageModel, most: int, device: str) -> Built:
    from plait.serve.build import engine_of, with_pools
    from plait.serve.options import EngineOptions
    from plait.serve.prompts import Prompts

    options = EngineOptions(
        "dummy", device=device, max_context=most, max_running=1, prefix_cache=False, cache_tokens=most + 16,
        max_batched_tokens=8192 if device.startswith("cuda") else 2048,
    )  # fmt: skip
    loaded = with_pools(model, Prompts(model.config, None, None), options)
    return engine_of(loaded, loaded.runner, options)


def _release() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _conditions(options: Options) -> dict[str, Any]:
    import platform

    import torch

    cuda = options.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(options.device) if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "options": asdict(options),
        "new_tokens": options.new_tokens,
    }


def _sentence(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['model']}, {row['method']}, {row['context']:,} tokens: {row['failed']}"
    return (
        f"{row['model']}, {row['method']}, {row['context']:,} tokens: {row['seconds']:.2f} s, "
        f"{row['tokens_per_s']:.1f} tokens/s ({row['layers']} of {row['layers_of_the_model']} layers run)"
    )


def show(console: Console, title: str, data: dict[str, Any]) -> None:
    """Seconds end to end, and tokens a second behind them, by context."""
    from rich import box
    from rich.table import Table

    contexts = sorted({row["context"] for row in data["rows"] if "seconds" in row})
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(title, no_wrap=True)
    for heading in ("", *(f"{n:,}" for n in contexts), "layers"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (model, method), series in _series(data["rows"]):
        first = next(iter(series.values()))
        layers = f"{first['layers']}/{first['layers_of_the_model']}"
        for name, key, end in ((model, "seconds", "s"), (method, "tokens_per_s", "/s")):
            cells = [_number(row[key]) + "*" * row["extrapolated"] if (row := series.get(n)) else "-" for n in contexts]
            table.add_row(name, end, *cells, layers if key == "seconds" else "")
    console.print(table)
    conditions = data["conditions"]
    new, scale = conditions["new_tokens"], conditions["options"]["scale"]
    console.print(
        f"\nSeconds end to end, tokens a second, by prompt tokens; batch 1, {new} new; {conditions['device']}."
    )
    console.print("Dummy weights, one engine for all models. * extrapolated to all layers from two depths.")
    if scale == "tiny":
        console.print("Toys with the models' patterns of layers: they say nothing about the models themselves.")
    for row in data["rows"]:
        if "failed" in row:
            at = f", {row['context']:,} tokens" if "context" in row else ""
            console.print(f"{row['model']}, {row['method']}{at} did not run: {row['failed']}", soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def draw(title: str, data: dict[str, Any], path: Path) -> None:
    """Two panels over the context: seconds, and tokens a second; a dashed line is extrapolated. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, key, label in zip(panels, ("seconds", "tokens_per_s"), ("seconds, end to end", "new tokens a second"),
                                 strict=True):  # fmt: skip
        for (model, method), series in _series(data["rows"]):
            dash = "--" if any(row["extrapolated"] for row in series.values()) else "-"
            values = [row[key] for row in series.values()]
            panel.plot(list(series), values, dash, marker="o", label=f"{model} {method}")
        panel.set_xscale("log", base=2)
        panel.set_ylim(bottom=0)
        panel.set_xlabel("prompt tokens")
        panel.set_title(label, fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    scale = data["conditions"]["options"]["scale"]
    figure.suptitle(f"{title}, batch 1, dummy weights, scale {scale}, {data['conditions']['device']}", fontsize=10)
    figure.savefig(path, dpi=120)


def _series(rows: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], dict[int, dict[str, Any]]]]:
    """(model, method) and its rows by context, in the order measured."""
    seen: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        if "seconds" in row:
            seen.setdefault((row["model"], row["method"]), {})[row["context"]] = row
    return iter(seen.items())
