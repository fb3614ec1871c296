"""`plait quantize`: a quantized checkpoint, written layer by layer, saved once and loaded without the original (paper
section 3.1).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.cli.screen import Commands, UsageError, console, print_json, table

if TYPE_CHECKING:
    from torch import Tensor

    from plait.quant.checkpoint import Report
    from plait.quant.quality import Fp16Report, Quality


def add(commands: Commands) -> None:
    parser = commands.add_parser("quantize", help="write a quantized checkpoint")
    parser.add_argument("source", metavar="SRC", help="a model's folder, or `demo`")
    parser.add_argument("target", type=Path, metavar="DST", help="the folder to write")
    methods = ("experts_int8", "fp8", "gptq", "bf16")
    parser.add_argument("--method", choices=methods, default="experts_int8", help="(%(default)s)")
    levels = ("experts", "experts+mlp", "experts+mlp+mixers")
    parser.add_argument("--level", choices=levels, default="experts+mlp", help="(%(default)s)")
    parser.add_argument("--head", action="store_true", help="the output head too")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=8, help="4 with gptq only (%(default)s)")
    parser.add_argument("--group", type=int, metavar="N", help="columns that share a scale (default: a row)")
    parser.add_argument("--clip", action="store_true", help="search the scales of least error")
    parser.add_argument("--act-order", action="store_true", help="gptq: columns of large inputs first")
    parser.add_argument("--bf16-scales", action="store_true", help="scales that bf16 has too, as vLLM keeps them")
    parser.add_argument("--packed", action="store_true", help="int8 in words, as vLLM and transformers load it")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="a text file, for gptq")
    parser.add_argument("--text", type=Path, metavar="FILE", help="report perplexity before and after on this text")
    parser.add_argument("--tokens", type=int, default=16_384, help="of each text, at most (%(default)s)")
    parser.add_argument("--seq", type=int, default=2048, help="tokens of one sequence of them (%(default)s)")
    parser.add_argument("--fp16", action="store_true", help="check fp16 activations on the text (section 3.2)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    from plait.quant import say_progress
    from plait.quant.checkpoint import REPORT, add_to_report, quantize_checkpoint
    from plait.quant.quality import check_fp16
    from plait.quant.scheme import Scheme
    from plait.serve import find_model

    if args.method == "gptq" and args.calibration is None:
        raise UsageError("--method gptq needs --calibration FILE, a text like the model's future input")
    if args.fp16 and args.text is None:
        raise UsageError("--fp16 needs --text FILE to run on")
    if args.tokens < 2 or args.seq < 2:
        raise UsageError(f"--tokens {args.tokens} and --seq {args.seq} must be at least 2")
    scheme = Scheme(
        args.method, args.level, args.head, args.bits, args.group, args.clip, args.act_order, args.bf16_scales
    )
    source = find_model(args.source)
    check_target(source, args.target)
    text, calibration = (
        None if path is None else read_tokens(source, path, args.tokens, args.seq)
        for path in (args.text, args.calibration)
    )
    report = quantize_checkpoint(
        source, args.target, scheme, packed=args.packed, calibration=calibration, text=text, device=args.device,
        progress=None if args.json else say_progress,
    )  # fmt: skip
    fp16 = check_fp16(args.target, text, device=args.device) if args.fp16 and text is not None else None
    if fp16 is not None:
        add_to_report(args.target, "fp16", fp16.as_json())
    if args.json:
        print_json(report.as_json() | ({} if fp16 is None else {"fp16": fp16.as_json()}))
        return 0
    show(report)
    if fp16 is not None:
        show_fp16(fp16)
    console().print(f"{report.rounding_seconds:.2f} s of rounding in {report.seconds:.2f} s; all of it in {REPORT}")
    console().print(f"written to {args.target}")
    return 0


def read_tokens(model: Path, path: Path, n_tokens: int, seq: int) -> Tensor:
    """The first tokens of a text, as sequences of equal length behind the beginning-of-text id: [n_sequences, seq]."""
    import torch

    from plait.model.checkpoint import read_config
    from plait.text.tokenizer import Tokenizer

    if not path.is_file():
        raise ValueError(f"{path} is no file; give a text file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    ids = Tokenizer.from_folder(model).encode(text)[:n_tokens]
    width = min(seq - 1, len(ids))
    if width < 1:
        raise ValueError(f"{path} holds no text")
    rows = torch.tensor(ids[: len(ids) // width * width]).view(-1, width)
    first = torch.full((len(rows), 1), read_config(model).bos_id)
    return torch.cat([first, rows], dim=1)


def show(report: Report) -> None:
    scheme = report.scheme
    rows = table(f"{scheme.method}, {scheme.level}", "before", "after", "share")
    for label, key in (("all weights, bytes", "bytes"), ("experts and MLPs, bytes", "feed_forward_bytes")):
        b, a = getattr(report, f"{key}_before"), getattr(report, f"{key}_after")
        rows.add_row(label, f"{b:,}", f"{a:,}", f"{a / b:.1%}")
    console().print(rows)
    if report.matrices:
        errors = table("weight", "error", "worst row", "its error")
        for m in sorted(report.matrices, key=lambda m: -m.relative_error)[:8]:
            row, worst = m.worst_rows[0]
            errors.add_row(m.name, f"{m.relative_error:.3%}", str(row), f"{worst:.2%}")
        console().print(errors)
    elif scheme.method != "bf16":
        why = "all weights of this level were quantized in the source, and are as there"
        why = why if report.was_quantized else f"the model has no weights of level {scheme.level}"
        console().print(f"nothing was rounded: {why}")
    if report.quality is not None:
        show_quality(report.quality)


def show_quality(q: Quality) -> None:
    rows = table(f"over {q.positions:,} positions", "")
    values: tuple[tuple[str, Any], ...] = (
        ("perplexity before", f"{q.perplexity_before:.4f}"),
        ("perplexity after", f"{q.perplexity_after:.4f}"),
        ("change", f"{q.perplexity_change:+.4%}"),
        ("greedy agreement", f"{q.greedy_agreement:.2%}"),
        ("KL a position, nats", f"{q.kl_mean:.2e} (99 %: {q.kl_p99:.2e}, most: {q.kl_max:.2e})"),
    )
    for label, value in values:
        rows.add_row(label, value)
    console().print(rows)


def show_fp16(report: Fp16Report) -> None:
    q = report.quality
    rows = table("fp16 activations: largest sites", "max |x|", "inf or nan")
    largest = sorted(report.sites, key=lambda site: -site.max_abs)[:5]
    for site in [*report.overflowing, *(s for s in largest if not s.overflows)]:
        rows.add_row(site.name, f"{site.max_abs:,.1f}", str(site.not_finite_in_fp16))
    console().print(rows)
    first = f" (first {report.overflowing[0].name})" if report.overflowing else ""
    for name in report.weights_not_finite:
        console().print(f"fp16 can't hold all of {name}")
    console().print(
        f"fp16: {len(report.overflowing)} sites overflow{first}; perplexity {q.perplexity_after:.4f} for "
        f"{q.perplexity_before:.4f}, the same next token in {q.greedy_agreement:.2%} of positions"
    )


def check_target(source: Path, target: Path) -> None:
    """Raises ValueError for a target that is, holds or lies in the source, or that holds anything but a model."""
    here, there = source.resolve(), target.resolve()
    if here == there:
        raise ValueError(f"{target} is the source itself; name another folder")
    if here in there.parents or there in here.parents:
        raise ValueError(f"{target} and {source} lie in one another; name a folder beside the source")
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").exists():
        raise ValueError(f"{target} is not empty and no model; name a new folder")
