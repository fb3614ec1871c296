"""`plait account`: what a model weighs and needs, from its config alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.cli.screen import Commands, UsageError, console, print_json, suggest, table

if TYPE_CHECKING:
    from rich.table import Table

    from plait.accounting import Account, Fit, Gpus, Level
    from plait.config import ModelConfig


def add(commands: Commands) -> None:
    parser = commands.add_parser("account", help="parameters, memory, FLOPs and which GPUs a model fits on")
    parser.add_argument("model", metavar="PRESET|DIR", help="a preset, a folder with a config.json, or `demo`")
    parser.add_argument(
        "--context", type=int, default=262_144, metavar="N", help="tokens in the sequence (%(default)s)"
    )
    gpus_help = "GPUs to try, such as 8x80 for eight of 80 GB (default: 1, 2 and 8 of 80 and of 141 GB)"
    parser.add_argument("--gpus", type=_gpus, nargs="+", metavar="COUNTxGB", help=gpus_help)
    fit = parser.add_argument_group("--fit: what an engine of these sizes allocates on one device")
    fit.add_argument("--fit", action="store_true", help="print that, for one sequence of --context tokens")
    fit.add_argument("--max-running", type=int, metavar="N", help="answers at once (16)")
    fit.add_argument("--cached-states", type=int, metavar="N", help="kept for prefixes (0)")
    fit.add_argument("--cache-tokens", type=int, metavar="N", help="with keys and values (--context)")
    fit.add_argument("--max-batched-tokens", type=int, metavar="N", help="of a step (2048)")
    fit.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="(bfloat16)")
    fit.add_argument("--kv-dtype", choices=("bfloat16", "float16", "float32", "int8"), help="default: --dtype")
    fit.add_argument("--level", choices=("bf16", "int8_experts", "int8_experts_mlp"),
                     help="which weights are int8: none (bf16), the experts, the MLPs too (bf16)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print everything as JSON, in parameters and bytes")
    parser.set_defaults(handler=run)


_FIT: dict[str, Any] = {  # what --fit takes, and what it means to say nothing; None: see there
    "max_running": 16, "cached_states": 0, "cache_tokens": None, "max_batched_tokens": 2048, "dtype": "bfloat16",
    "kv_dtype": None, "level": None,
}  # fmt: skip


def _gpus(text: str) -> Gpus:
    from plait.accounting import Gpus

    try:
        return Gpus.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from plait.accounting import DEFAULT_GPUS, account

    if args.context < 1:
        raise UsageError(f"--context {args.context} must be at least 1 token")
    config = read_model_config(args.model)
    if args.fit:
        return _fit(args, config)
    for name in _FIT:
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is of --fit: add that")
    result = account(config, args.model, context=args.context, gpus=args.gpus or DEFAULT_GPUS)
    if args.json:
        print_json(asdict(result))
    else:
        _show_account(result, config)
    return 0


def _fit(args: argparse.Namespace, config: ModelConfig) -> int:
    from dataclasses import asdict

    from plait.accounting import footprint

    asked = {name: value if (value := getattr(args, name)) is not None else other for name, other in _FIT.items()}
    n_running = asked["max_running"]
    try:
        found = footprint(
            config,
            slots=n_running + asked["cached_states"],
            pages=-(-(asked["cache_tokens"] or args.context) // 16),
            max_context=args.context,
            max_batched_tokens=asked["max_batched_tokens"],
            dtype=asked["dtype"],
            kv_dtype=asked["kv_dtype"],
            level=asked["level"] or _level_of(args.model),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    parts = {**asdict(found), "total": found.total}
    if args.json:
        print_json(parts)
        return 0
    rows = table(f"{args.model}, {n_running} answers at once, {args.context:,} tokens", "bytes", "")
    for name, n_bytes in parts.items():
        rows.add_row(name, f"{n_bytes:,}", _binary(n_bytes), style="bold" if name == "total" else None)
    console().print(rows)
    console().print(
        "Left out: the driver's and libraries' own memory, allocator slack, CUDA graphs, host and disk tiers."
    )
    return 0


def _level_of(model: str) -> Level:
    """bf16, unless a folder's weights are quantized: then UsageError, for only the user knows which of them."""
    from plait.accounting import LEVELS
    from plait.config import presets

    if model in presets:
        return "bf16"
    from plait.model.checkpoint import read_quantization
    from plait.serve import find_model

    stored = read_quantization(find_model(model))
    if stored is not None:
        levels = " or ".join(level for level in LEVELS if level != "bf16")
        raise UsageError(f"weights of {model} are {stored[0].kind}: say which of them with --level {levels}")
    return "bf16"


def read_model_config(model: str) -> ModelConfig:
    """A preset by its name, or the config of a checkpoint folder or `demo`. A preset wins over a folder of its name."""
    from plait.config import presets

    if model in presets:
        return presets[model]
    if model == "demo" or Path(model).is_dir():
        from plait.model.checkpoint import read_config
        from plait.serve import find_model

        return read_config(Path(model) if Path(model).is_dir() else find_model(model))
    raise UsageError(f"{model!r} is neither a folder nor a preset; {suggest(model, presets)}")


def _show_account(result: Account, config: ModelConfig) -> None:
    mixers = f"{config.n_mamba_layers} {config.mamba_kind} + {config.n_attention_layers} attention"
    experts = f" ({config.n_experts} experts, top {config.top_k})" if config.n_moe_layers else ""
    ffns = f"{config.n_layers - config.n_moe_layers} MLP + {config.n_moe_layers} MoE{experts}"
    screen = console()
    screen.print(f"{result.name}: {config.n_layers} layers; {mixers}; {ffns}", soft_wrap=True)
    for part in (_parameters_table(result), _memory_table(result), _sequence_table(result)):
        screen.print()
        screen.print(part)
    screen.print(
        f"\nIn brackets: the longest sequence that fits beside the weights, {result.reserve_bytes / 1e9:.1f} GB kept "
        f"free on each GPU. The model was made for {config.max_context:,} tokens."
    )


def _parameters_table(result: Account) -> Table:
    from dataclasses import asdict

    labels = {"mamba": "Mamba mixers", "mlp": "dense MLP"}
    rows = table("parameters", "all", "active per token", "share of all")
    active = asdict(result.active)
    for kind, n in asdict(result.params).items():
        rows.add_row(labels.get(kind, kind), f"{n:,}", f"{active[kind]:,}", f"{n / result.total_params:.1%}")
    rows.add_row("total", f"{result.total_params:,}", f"{result.active_params:,}", "100.0%", style="bold")
    rows.add_row("experts + dense MLP", "", "", f"{result.expert_and_mlp_share:.1%}")
    return rows


def _memory_table(result: Account) -> Table:
    unit, size = ("GB (10^9 bytes)", 10**9) if result.weight_bytes["bf16"] >= 10**9 else ("MB (10^6 bytes)", 10**6)
    rows = table(f"memory in {unit}", "bf16", "int8 experts", "int8 experts, MLP")
    by_label = {
        "weights": result.weight_bytes,
        "scales of the int8 weights": result.scale_bytes,
        "read per decoded token": result.bytes_per_token,
    }
    for label, by_level in by_label.items():
        rows.add_row(label, *(f"{n / size:,.2f}" for n in by_level.values()))
    fits: dict[Gpus, list[str]] = {}
    for fit in result.fit:
        fits.setdefault(fit.gpus, []).append(_fit_cell(fit))
    for gpus, cells in fits.items():
        rows.add_row(f"fits on {gpus.count} x {gpus.gb} GB", *cells)
    return rows


def _fit_cell(fit: Fit) -> str:
    if fit.largest_context == 0:
        return "no"
    return f"{'yes' if fit.fits else 'no'} ({_short(fit.largest_context)})"


def _short(n_tokens: int | None) -> str:
    """At most seven characters, rounded down: 65,536, 999,999, 1.07M, 30.66M."""
    if n_tokens is None:
        return "any"
    return f"{n_tokens:,}" if n_tokens < 10**6 else f"{n_tokens // 10**4 / 100:.2f}M"


def _sequence_table(result: Account) -> Table:
    rows = table(f"one sequence of {result.context:,} tokens", "")
    rows.add_row("KV cache, 16 bit", _binary(result.kv_bytes))
    rows.add_row("KV cache of one token", f"{result.kv_bytes_per_token:,} bytes")
    rows.add_row("Mamba state (fp32; conv bf16), any length", _binary(result.recurrent_bytes))
    rows.add_row("the same in int8, on the host or disk", _binary(result.int8_recurrent_bytes))
    rows.add_row("to decode its last token", _gflop(result.flops.decode))
    rows.add_row("to prefill it, per token", _gflop(result.flops.prefill))
    rows.add_row("to train on it, per token", _gflop(result.flops.training))
    return rows


def _binary(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:,.2f} GiB" if n_bytes >= 2**27 else f"{n_bytes / 2**20:,.2f} MiB"


def _gflop(n: float) -> str:
    return f"{n / 1e9:,.3g} GFLOP" if n < 1e11 else f"{n / 1e9:,.0f} GFLOP"
