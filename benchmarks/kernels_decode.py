"""Time of a whole Mamba-1 mixer at decode on one GPU, from the normed input to out_proj, replayed as one CUDA graph.

    python benchmarks/kernels_decode.py [--tokens 1,2,4]

Jamba-1.5-Mini's shape (d_model 4096, d_inner 8192, d_state 16, dt_rank 256), bf16 or int8 projections (in and out).
LAYERS mixers with weights of their own in one graph, so that no weight stays in the L2; the time is of one of them.
Beside the sum: each part alone the same way, and the same mixer of separate kernels and the library's products.
"""

import argparse
import json
from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from plait.ops.causal_conv1d import causal_conv1d_update
from plait.ops.linear import linear
from plait.ops.linear.triton import _few_tokens
from plait.ops.rms_norm import rms_norm_sections
from plait.ops.selective_scan import selective_scan_step, selective_scan_update

D_MODEL, D_INNER, D_STATE, DT_RANK, D_CONV = 4096, 8192, 16, 256, 4
LAYERS, SLOTS = 8, 16


class Mixer:
    """Weights and state of one layer."""

    def __init__(self, int8: bool):
        def weight(rows: int, width: int) -> nn.Parameter:
            return nn.Parameter((torch.randn(rows, width, device="cuda") * width**-0.5).bfloat16(), requires_grad=False)

        self.in_proj, self.out_proj = weight(2 * D_INNER, D_MODEL), weight(D_MODEL, D_INNER)
        self.x_proj, self.dt_proj = weight(DT_RANK + 2 * D_STATE, D_INNER), weight(D_INNER, DT_RANK)
        self.scales: tuple[Tensor | None, Tensor | None] = (None, None)
        if int8:
            (self.in_proj, in_scale), (self.out_proj, out_scale) = map(quantized, (self.in_proj, self.out_proj))
            self.scales = in_scale, out_scale
        self.conv, self.bias = weight(D_INNER, D_CONV), weight(1, D_INNER)[0]
        self.norms = tuple(torch.ones(d, device="cuda").bfloat16() for d in (DT_RANK, D_STATE, D_STATE))
        self.A = -torch.rand(D_INNER, D_STATE, device="cuda") * 8
        self.D, self.dt_bias = torch.ones(D_INNER, device="cuda"), torch.randn(D_INNER, device="cuda") - 4
        self.columns = torch.randn(SLOTS, D_INNER, D_CONV - 1, device="cuda").bfloat16()
        self.states = torch.randn(SLOTS, D_INNER, D_STATE, device="cuda")

    def fused(self, x: Tensor, slots: Tensor) -> Tensor:
        u, z = linear(x, self.in_proj, scale=self.scales[0]).chunk(2, -1)
        u = causal_conv1d_update(u, self.conv, self.bias, columns=self.columns, slots=slots)
        y = selective_scan_step(
            u, linear(u, self.x_proj), self.norms, 1e-6, self.dt_proj, self.A, D=self.D, z=z, dt_bias=self.dt_bias,
            states=self.states, slots=slots,
        )  # fmt: skip
        return linear(y, self.out_proj, scale=self.scales[1])

    def separate(self, x: Tensor, slots: Tensor) -> Tensor:
        u, z = F.linear(x, self.in_proj).chunk(2, -1)
        u = causal_conv1d_update(u, self.conv, self.bias, columns=self.columns, slots=slots)
        low, B, C = rms_norm_sections(F.linear(u, self.x_proj), self.norms, 1e-6)
        y = selective_scan_update(
            u, F.linear(low, self.dt_proj), self.A, B, C, D=self.D, z=z, dt_bias=self.dt_bias, states=self.states,
            slots=slots,
        )  # fmt: skip
        return F.linear(y, self.out_proj)


def quantized(weight: Tensor) -> tuple[nn.Parameter, Tensor]:
    scale = weight.float().abs().amax(1) / 127
    return nn.Parameter((weight / scale[:, None]).round().to(torch.int8), requires_grad=False), scale


def per_layer_us(run: Callable[[Mixer], object], mixers: list[Mixer]) -> tuple[float, float]:
    """Median and spread (10th to 90th percentile) of one layer's time."""

    def layers() -> None:
        for mixer in mixers:
            run(mixer)

    layers()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layers()
    low, median, high = triton.testing.do_bench(graph.replay, warmup=20, rep=120, quantiles=[0.1, 0.5, 0.9])
    return median * 1e3 / len(mixers), (high - low) * 1e3 / len(mixers)


def parts_of(tokens: int, int8: bool) -> dict[str, Callable[[Mixer], object]]:
    """What is timed of one layer."""
    x, u = (torch.randn(tokens, d, device="cuda").bfloat16() for d in (D_MODEL, D_INNER))
    low, projected = u[:, :DT_RANK].contiguous(), u[:, : DT_RANK + 2 * D_STATE].contiguous()
    slots = torch.randperm(SLOTS, device="cuda")[:tokens]
    parts: dict[str, Callable[[Mixer], object]] = {
        "mixer": lambda m: m.fused(x, slots),
        "in_proj": lambda m: linear(x, m.in_proj, scale=m.scales[0]),
        "out_proj": lambda m: linear(u, m.out_proj, scale=m.scales[1]),
    }
    if int8:
        return parts
    return parts | {
        "mixer, separate kernels": lambda m: m.separate(x, slots),
        "x_proj": lambda m: linear(u, m.x_proj),
        "dt_proj": lambda m: linear(low, m.dt_proj),
        "conv": lambda m: causal_conv1d_update(u, m.conv, m.bias, columns=m.columns, slots=slots),
        "norms, dt_proj, scan": lambda m: selective_scan_step(
            u, projected, m.norms, 1e-6, m.dt_proj, m.A, D=m.D, z=u, dt_bias=m.dt_bias, states=m.states, slots=slots
        ),
    }


def difference(mixer: Mixer) -> float:
    """Of the fused from the separate mixer, as a share of the norm, from one state."""
    x, slots = torch.randn(1, D_MODEL, device="cuda").bfloat16(), torch.tensor([3], device="cuda")
    states, columns = mixer.states.clone(), mixer.columns.clone()
    y = mixer.fused(x, slots)
    mixer.states.copy_(states)
    mixer.columns.copy_(columns)
    expected = mixer.separate(x, slots)
    return ((y - expected).norm() / expected.norm()).item()


def time_cuts() -> None:
    mixers = [Mixer(int8=True) for _ in range(LAYERS)]
    x, u = (torch.randn(1, d, device="cuda").bfloat16() for d in (D_MODEL, D_INNER))
    for name, given, which in (("in_proj", x, 0), ("out_proj", u, 1)):
        expected = given.float() @ (getattr(mixers[0], name).float() * mixers[0].scales[which][:, None]).T  # type: ignore[index]
        for cut in (None, (4, 8), (2, 4), (2, 8), (2, 2), (1, 4), (1, 2), (1, 1)):

            def run(mixer: Mixer) -> Tensor:
                return _few_tokens(given, getattr(mixer, name), mixer.scales[which], cut=cut)  # noqa: B023

            error = ((run(mixers[0]).float() - expected).norm() / expected.norm()).item()
            us, spread = per_layer_us(run, mixers)
            line = {
                "part": name,
                "cut": cut,
                "us": round(us, 2),
                "spread_us": round(spread, 2),
                "error": round(error, 5),
            }
            print(json.dumps(line), flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=lambda s: [int(n) for n in s.split(",")], default=[1, 2, 4])
    parser.add_argument("--cuts", action="store_true", help="only the int8 products, over rows and warps of a program")
    args = parser.parse_args()
    tokens_tried = args.tokens
    print(
        json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__})
    )
    if args.cuts:
        time_cuts()
        return
    for int8 in (False, True):
        mixers = [Mixer(int8) for _ in range(LAYERS)]
        if not int8:
            print(json.dumps({"fused differs from separate by": difference(mixers[0])}), flush=True)
        for tokens in tokens_tried:
            for name, run in parts_of(tokens, int8).items():
                us, spread = per_layer_us(run, mixers)
                line = {"part": name, "int8": int8, "tokens": tokens, "us": round(us, 2), "spread_us": round(spread, 2)}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
