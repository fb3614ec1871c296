"""How the causal convolution's kernels are best cut: tokens of a tile and in flight, channels and warps of a program.

    python benchmarks/kernels_conv.py [--tokens 2048,16384] [--direction forward]

8192 channels, bf16, one sequence with carried columns; medians of do_bench over CUDA-graph replays, a JSON line each.
"""

from __future__ import annotations

import argparse
import itertools
import json
from functools import partial

import torch
import triton

from plait.ops.causal_conv1d import triton as kernels

CHANNELS = 8192
CUTS = {  # tile, unroll, channels, warps, stages
    "forward": [
        (32, 16, 256, 2, 1), (64, 16, 256, 2, 1), (48, 16, 256, 2, 1), (32, 16, 512, 4, 1), (32, 16, 128, 1, 1),
        (64, 16, 512, 4, 1), (64, 8, 256, 2, 3),
    ],
    "backward": [
        (64, 4, 512, 2, 3), (256, 4, 512, 2, 3), (512, 4, 512, 2, 3), (256, 4, 512, 2, 4), (256, 4, 1024, 4, 3),
        (128, 4, 512, 2, 3), (32, 4, 512, 2, 3), (256, 4, 512, 4, 3), (256, 4, 256, 1, 4), (1024, 4, 512, 2, 3),
    ],
}  # fmt: skip


def run(direction: str, tokens: int, cut: tuple[int, ...]) -> None:
    kernels.FORWARD = kernels.Cut(*cut)
    kernels.backward_cut = lambda tokens: kernels.FORWARD
    inputs[direction, tokens]()


def made(direction: str, tokens: int) -> partial[object]:
    x, dout = (torch.randn(tokens, CHANNELS, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    weight, bias = torch.randn(CHANNELS, 4, device="cuda").bfloat16(), torch.randn(CHANNELS, device="cuda").bfloat16()
    bounds = torch.tensor([0, tokens], device="cuda", dtype=torch.int32)
    columns = torch.randn(1, 3, CHANNELS, device="cuda").bfloat16().transpose(1, 2)
    if direction == "forward":
        return partial(kernels._conv, x, weight, bias, bounds, columns)
    return partial(kernels._conv_backward, dout, torch.zeros_like(columns), x, weight, bias, bounds, columns)


def timed(direction: str, tokens: int, cut: tuple[int, ...]) -> float:
    for _ in range(2):
        run(direction, tokens, cut)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(direction, tokens, cut)
    return float(triton.testing.do_bench(graph.replay, warmup=5, rep=30, return_mode="median")) * 1e3


inputs: dict[tuple[str, int], partial[object]] = {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=lambda s: [int(n) for n in s.split(",")], default=[2048, 16384])
    parser.add_argument("--direction", choices=["forward", "backward"], action="append")
    parser.add_argument(
        "--compile", metavar="I/N", help="only compile every N-th cut from the I-th on; start N of them"
    )
    args = parser.parse_args()
    directions = args.direction or ["forward", "backward"]
    for direction, tokens in itertools.product(directions, args.tokens):
        inputs[direction, tokens] = made(direction, tokens)
    if args.compile:
        which, n = map(int, args.compile.split("/"))
        for direction, cut in [(d, cut) for d in directions for cut in CUTS[d]][which::n]:
            run(direction, args.tokens[0], cut)
        return
    with torch.inference_mode():
        for direction, tokens in inputs:
            moved = (2 if direction == "forward" else 3) * tokens * CHANNELS * 2
            for cut in CUTS[direction]:
                us = timed(direction, tokens, cut)
                row = {"direction": direction, "tokens": tokens, "cut": cut, "us": us, "GB/s": moved / us / 1e3}
                print(json.dumps({k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
