"""Figure 2: end-to-end latency of quantization methods at 1024 + 128 tokens (paper section 3.1).

Models have the shapes of Jamba-1.5-Mini and of the Mixtrals, with dummy weights, and as many layers as were asked for
or fit. What the missing layers would take is extrapolated from runs at two depths and marked so. Mixtral's rotary
embedding is left out: it would add a few elementwise kernels a layer to every method alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.config import ModelConfig, presets
from plait.paper.quantized_dummies import CALIBRATION, build
from plait.paper.rivals import rivals

if TYPE_CHECKING:
    from rich.console import Console

    from plait.accounting import Level

PROMPT_TOKENS, ANSWER_TOKENS = 1024, 128
MODELS = {
    "Jamba-1.5-Mini": presets["jamba-1.5-mini"],
    "Mixtral 8x7B": rivals["Mixtral 8x7B"].config,
    "Mixtral 8x22B": rivals["Mixtral 8x22B"].config,
}
METHODS = {
    "bf16": "none",
    "experts_int8": "none",
    "fp8": "none",
    "fp8_w8a8": "none",
    "gptq_int8": "text, two passes per layer",
    "gptq_int4": "text, two passes per layer",
    "int8:experts": "none",
    "int8:+mixers": "none",
    "int8:+head": "none",
}
"""Methods, and what they need besides the weights."""
UNLESS_NAMED = tuple(name for name in METHODS if ":" not in name)
"""Those that are run when none is named: the figure's. The others are ExpertsInt8's other levels."""
LEVELS: dict[str, Level] = {
    "bf16": "bf16",
    "experts_int8": "int8_experts_mlp",
    "fp8": "int8_experts_mlp",
    "fp8_w8a8": "int8_experts_mlp",
    "gptq_int8": "int8_experts_mlp",
    "int8:experts": "int8_experts",
    "int8:+mixers": "int8_experts_mlp_mixers",
    "int8:+head": "int8_experts_mlp_mixers_head",
}
"""What a method's weights take, as accounting counts it. int4 is missing there."""
NOTES = {
    "experts_int8": "experts and MLPs; int8 kernels",
    "int8:experts": "experts_int8 of experts only",
    "int8:+mixers": "experts_int8, the large projections of mixers too",
    "int8:+head": "the same, and the output head",
    "fp8": "experts and MLPs; E4M3 rows, bf16 activations",
    "fp8_w8a8": "the same, and fp8 activations in prefill; needs compute capability 8.9",
    "gptq_int8": "experts and MLPs; the same form and kernels as experts_int8, other rounding",
    "gptq_int4": "experts and MLPs, groups of 128; few rows in plain Triton, more are widened before each product",
}
PUBLISHED = {  # seconds at batch 1, 4, 8, read from the text of the pull request that brought the method to vLLM
    "source": "vllm-project/vllm pull request 7415, August 2024",
    "Jamba, 2 x H100, fp8 experts": (1.3, 2.0, 3.2),
    "Jamba, 2 x H100, experts_int8": (1.16, 2.0, 3.14),
    "Mixtral 8x7B, 4 x H100, experts_int8": (0.83, 1.22, 1.42),
    "Mixtral 8x22B, 8 x H100, experts_int8": (1.3, 1.84, 2.2),
}


@dataclass(frozen=True)
class Options:
    """How much to run. scale `tiny`: models a laptop's CPU runs in seconds, with the same pattern of layers; `full`:
    the models' own sizes. layers: of each model at most; None: what fits in memory in bf16.
    """

    scale: str = "tiny"
    device: str = "cpu"
    models: tuple[str, ...] = tuple(MODELS)
    methods: tuple[str, ...] = UNLESS_NAMED
    batches: tuple[int, ...] = (1, 4, 8)
    layers: int | None = None
    repeats: int = 3

    def __post_init__(self) -> None:
        if self.scale not in ("tiny", "full"):
            raise ValueError(f"scale={self.scale!r} must be 'tiny' or 'full'")
        for name, given, allowed in (("models", self.models, MODELS), ("methods", self.methods, METHODS)):
            if unknown := [one for one in given if one not in allowed]:
                raise ValueError(f"{name}: {unknown[0]!r} must be among {', '.join(allowed)}")
        if self.repeats < 1 or min(self.batches) < 1 or (self.layers is not None and self.layers < 1):
            raise ValueError("repeats, batches and layers must be at least 1")

    @property
    def tokens(self) -> tuple[int, int]:
        return (PROMPT_TOKENS, ANSWER_TOKENS) if self.scale == "full" else (32, 8)


def shape_of(name: str, options: Options) -> ModelConfig:
    """The model whole, at the scale."""
    config = replace(MODELS[name], dtype="bfloat16")
    if options.scale == "full":
        return config
    return replace(
        config, n_layers=16 if config.attn_period > 1 else 4, eos_ids=(2,), vocab_size=512, d_model=128, d_ff=256,
        n_heads=4, n_kv_heads=2, d_head=32, dt_rank=8,
    )  # fmt: skip


def depth(config: ModelConfig, options: Options) -> int:
    """Layers to run: whole periods of the pattern, at least two, so that half of them is a model of the same kind."""
    import torch

    from plait.accounting import weight_bytes

    period = 1 if config.attn_period == 1 else config.attn_period
    most = config.n_layers if options.layers is None else min(options.layers, config.n_layers)
    if options.device.startswith("cuda"):
        room = 0.8 * torch.cuda.mem_get_info(torch.device(options.device))[0]
        while most > 2 * period and weight_bytes(replace(config, n_layers=most), "bf16") > room:
            most -= period
    return max(2 * period, most // (2 * period) * 2 * period)


def measure(options: Options, say: Any = None) -> dict[str, Any]:
    """Run everything; `say(text)` is told of each result. A method that can't run is a row with the reason."""
    rows = []
    for name in options.models:
        config = shape_of(name, options)
        n_layers = depth(config, options)
        for method in options.methods:
            try:
                found = list(
                    _measure_method(name, replace(config, n_layers=n_layers), config.n_layers, method, options)
                )
            except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
                found = [{"model": name, "method": method, "failed": reason}]
            _release(options.device)
            rows += found
            for row in found:
                if say is not None:
                    say(_sentence(row))
    return {"conditions": _conditions(options), "rows": rows, "notes": NOTES, "published": PUBLISHED}


def _measure_method(
    name: str, config: ModelConfig, whole: int, method: str, options: Options
) -> Iterator[dict[str, Any]]:
    from plait.paper.latency import measure as time_model
    from plait.paper.latency import shallow

    model, seconds, prepared = build(config, method, options.device, calibration=CALIBRATION[options.scale])
    n_bytes = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    half = shallow(model, config.n_layers // 2)
    prompt, answer = options.tokens
    for batch in options.batches:
        sizes = {"batch": batch, "prompt_tokens": prompt, "answer_tokens": answer, "repeats": options.repeats}
        full, part = (time_model(m, **sizes) for m in (model, half))
        missing = (whole - config.n_layers) / (config.n_layers - config.n_layers // 2)  # halves
        step, half_step = (1e3 * run.decode_seconds / (answer - 1) for run in (full, part))
        yield {
            "model": name, "method": method, "batch": batch, "layers": config.n_layers, "layers_of_the_model": whole,
            **asdict(full), "decode_step_ms": step, "half_depth_seconds": part.seconds,
            "half_depth_decode_step_ms": half_step,
            "seconds_of_all_layers": full.seconds + (full.seconds - part.seconds) * missing,
            "decode_step_ms_of_all_layers": step + (step - half_step) * missing,
            "decode_step_bytes_of_all_layers": _step_bytes(replace(config, n_layers=whole), method, batch, options),
            "extrapolated": missing > 0, "weight_bytes": n_bytes,
            "quantize_seconds": seconds * whole / config.n_layers, "prepare_seconds": prepared,
            "quantize_seconds_extrapolated": missing > 0 or method.startswith("gptq"),
            "needs": METHODS[method],
        }  # fmt: skip


def _step_bytes(config: ModelConfig, method: str, batch: int, options: Options) -> float | None:
    """What a decode step reads, in the middle of the answer; None where accounting has no such weights."""
    from plait.accounting import decode_step_bytes

    prompt, answer = options.tokens
    return decode_step_bytes(config, prompt + answer // 2, LEVELS[method], batch) if method in LEVELS else None


def _release(device: str) -> None:
    import gc

    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _conditions(options: Options) -> dict[str, Any]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "absent"
    cuda = options.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(options.device) if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": triton,
        "date": time.strftime("%Y-%m-%d"),
        "options": asdict(options),
        "prompt_tokens": options.tokens[0],
        "answer_tokens": options.tokens[1],
        "calibration": CALIBRATION[options.scale],
    }


def _sentence(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['model']}, {row['method']}: {row['failed']}"
    return (
        f"{row['model']}, {row['method']}, batch {row['batch']}: {row['seconds']:.3f} s "
        f"({row['least']:.3f} to {row['most']:.3f}) at {row['layers']} of {row['layers_of_the_model']} layers, "
        f"prefill {row['prefill_seconds']:.3f}, {row['decode_step_ms']:.2f} ms a step"
    )


def show(console: Console, data: dict[str, Any]) -> None:
    """A table: seconds for the whole depth by batch, and what the method costs before it."""
    from rich import box
    from rich.table import Table

    batches = sorted({row["batch"] for row in data["rows"] if "batch" in row})
    conditions = data["conditions"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("Figure 2", no_wrap=True)
    for heading in ("method", *(f"batch {b}" for b in batches), "GB", "quant., s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, method, rows in grouped(data["rows"]):
        if "failed" in rows[0]:
            table.add_row(name, method, *["-"] * len(batches), "", "")
            continue
        by_batch = {row["batch"]: row for row in rows}
        cells = [_cell(by_batch.get(b)) for b in batches]
        first = rows[0]
        spent = f"{first['quantize_seconds']:.2f}" + "*" * first["quantize_seconds_extrapolated"]
        table.add_row(name, method, *cells, f"{first['weight_bytes'] / 1e9:.3g}", spent)
    console.print(table)
    console.print()
    show_decoding(console, data)
    p, a = conditions["prompt_tokens"], conditions["answer_tokens"]
    console.print(f"\nSeconds for {p} + {a} tokens, dummy weights, medians; {conditions['device']}.")
    console.print(
        "* extrapolated: to all layers from two depths, or (gptq's seconds) from an expert and layers. GB: as run."
    )
    run = {row["method"] for row in data["rows"]}
    for method, note in data["notes"].items():
        if method in run:
            console.print(f"{method}: {note}; calibration: {METHODS[method]}.")
    for row in data["rows"]:
        if "failed" in row:
            console.print(f"{row['model']}, {row['method']} did not run: {row['failed']}")


def show_decoding(console: Console, data: dict[str, Any]) -> None:
    """A table: a decode step of the whole depth beside bf16's, and what the bytes that both read would allow."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("a decode step", no_wrap=True)
    for heading in ("method", "batch", "ms", "GB read", "x bf16", "by bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [row for row in data["rows"] if "failed" not in row]
    bf16 = {(row["model"], row["batch"]): row for row in rows if row["method"] == "bf16"}
    for row in rows:
        ms, n_bytes = row["decode_step_ms_of_all_layers"], row["decode_step_bytes_of_all_layers"]
        base = bf16.get((row["model"], row["batch"]))
        times = "-" if base is None else f"{base['decode_step_ms_of_all_layers'] / ms:.2f}"
        known = base is not None and n_bytes is not None
        allowed = f"{base['decode_step_bytes_of_all_layers'] / n_bytes:.2f}" if known else "-"  # type: ignore[index]
        read = "-" if n_bytes is None else f"{n_bytes / 1e9:.3g}"
        shown = f"{ms:.3f}" + "*" * row["extrapolated"]
        table.add_row(row["model"], row["method"], str(row["batch"]), shown, read, times, allowed)
    console.print(table)


def _cell(row: dict[str, Any] | None) -> str:
    return "-" if row is None else f"{row['seconds_of_all_layers']:.3f}" + "*" * row["extrapolated"]


def grouped(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(model, method, its rows), in the order measured."""
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        seen.setdefault((row["model"], row["method"]), []).append(row)
    for (model, method), own in seen.items():
        yield model, method, own


def _costs(rows: list[dict[str, Any]]) -> str:
    """What each method takes before the first token, three to a line."""
    told = []
    for row in rows:
        if row["method"] != "bf16":
            text = "" if row["needs"] == "none" else " and a text"
            told.append(f"{row['method']} {row['quantize_seconds']:.3g} s{text}")
    lines = [", ".join(told[i : i + 3]) for i in range(0, len(told), 3)]
    return "to quantize all layers: " + ",\n".join(lines) if told else ""


def draw(data: dict[str, Any], path: Path) -> None:
    """Bars of the seconds for the whole depth: a panel per model, a group per batch size. Needs matplotlib."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in data["rows"]))
    methods = list(dict.fromkeys(row["method"] for row in data["rows"]))
    figure = Figure(figsize=(max(6.2, 4.2 * len(models)), 3.8), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for panel, name in zip(panels, models, strict=True):
        rows = {(r["method"], r["batch"]): r for r in data["rows"] if r["model"] == name and "batch" in r}
        batches = sorted({batch for _, batch in rows})
        for i, method in enumerate(methods):
            at = [b + (i - (len(methods) - 1) / 2) * 0.8 / len(methods) for b in range(len(batches))]
            there = [(x, rows[method, b]) for x, b in zip(at, batches, strict=True) if (method, b) in rows]
            heights = [row["seconds_of_all_layers"] for _, row in there]
            panel.bar([x for x, _ in there], heights, 0.8 / len(methods), label=method)
        panel.set_xticks(range(len(batches)), [f"batch {b}" for b in batches])
        panel.set_xlabel(_costs([rows[method, batches[0]] for method in methods if (method, batches[0]) in rows]))
        panel.xaxis.label.set_fontsize(8)
        run = next(iter(rows.values()), None)
        of = ""
        if run is not None and run["extrapolated"]:
            of = f"\n{run['layers']} of {run['layers_of_the_model']} layers run, the rest extrapolated"
        panel.set_title(f"{name}{of}", fontsize=10)
    panels[0].set_ylabel("seconds, end to end")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=4)
    c = data["conditions"]
    figure.suptitle(f"{c['prompt_tokens']} + {c['answer_tokens']} tokens, dummy weights, {c['device']}", fontsize=10)
    figure.savefig(path, dpi=120)
