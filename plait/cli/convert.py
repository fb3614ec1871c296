"""`plait convert`: a checkpoint in another spelling or precision."""

from __future__ import annotations

import argparse
from pathlib import Path

from plait.cli.quantize import check_target
from plait.cli.screen import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser("convert", help="rewrite a checkpoint in the public layout")
    parser.add_argument("source", metavar="SRC", help="a model's folder, or `demo`")
    parser.add_argument("target", type=Path, metavar="DST", help="the folder to write")
    parser.add_argument(
        "--to", choices=("hf", "hf-fused"), default="hf", help="one tensor per expert, or fused ones (%(default)s)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's own")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    import torch

    from plait.model.checkpoint import load_model, save_model
    from plait.model.quantization_config import model_format
    from plait.serve import find_model

    source = find_model(args.source)
    check_target(source, args.target)
    model = load_model(source, dtype=None if args.dtype is None else getattr(torch, args.dtype))
    if args.to == "hf-fused" and model_format(model) is not None:
        raise ValueError(f"{args.source} holds int8 experts, which have no fused spelling; use --to hf")
    save_model(model, args.target, fused_experts=args.to == "hf-fused", beside=source)
    print(f"written to {args.target}")
    return 0
