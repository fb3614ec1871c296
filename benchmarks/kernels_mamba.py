"""Times of the Mamba mixer's kernels on one Hopper GPU beside their floors.

    python benchmarks/kernels_mamba.py [check] [scan] [update] [conv] [norm]

Each call is replayed as a CUDA graph: median of do_bench, which clears L2 between repeats; bf16, random data, an
initial state. Scan floors are exponentials at 4.19e12 a second, the others bytes at the copy rate measured first.
`check` runs every small case of these ops on the GPU against fp64 and is worth its half minute before any number is
believed.
"""

import argparse
import json
from collections.abc import Callable, Iterator

import torch
import triton
from torch import Tensor

from plait.ops.case import OpCases
from plait.ops.causal_conv1d import triton as conv
from plait.ops.causal_conv1d.cases import CAUSAL_CONV1D
from plait.ops.rms_norm import cases as norm_cases
from plait.ops.rms_norm import triton as norm
from plait.ops.selective_scan import gluon, triton_decode
from plait.ops.selective_scan import triton as portable
from plait.ops.selective_scan.cases import SELECTIVE_SCAN

EXPONENTIALS = 4.19e12  # a second, one H100
OPS = (SELECTIVE_SCAN, CAUSAL_CONV1D, norm_cases.RMS_NORM, norm_cases.ADD_RMS_NORM, norm_cases.RMS_NORM_SECTIONS)


def graph_us(call: Callable[..., object], *arguments: object) -> float:
    call(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(*arguments)
    return triton.testing.do_bench(graph.replay, warmup=10, rep=40, return_mode="median") * 1e3


def copy_rate() -> float:
    a = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    b = torch.empty_like(a)
    return 2 * a.numel() / (triton.testing.do_bench(lambda: b.copy_(a), return_mode="median") * 1e-3)


def check(_: float) -> Iterator[dict[str, object]]:
    torch.use_deterministic_algorithms(True, warn_only=True)  # unwritten memory is NaN
    for ops in OPS:
        for name in [name for name in ("triton", "gluon") if name in ops.implementations]:
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                for case in (case for case in ops.cases if not case.large):
                    yield {
                        "op": ops.op,
                        "by": name,
                        "case": case.name,
                        "dtype": str(dtype),
                        **worst(ops, name, case.name, dtype),
                    }
    torch.use_deterministic_algorithms(False)


def worst(ops: OpCases, name: str, case_name: str, dtype: torch.dtype) -> dict[str, object]:
    (case,) = (case for case in ops.cases if case.name == case_name)
    errors = ops.errors(name, case, "cuda", dtype)
    limits = {key: (ops.grad_tolerance if key.startswith("grad_") else ops.tolerance)[dtype] for key in errors}
    return {"error": max(errors.values()), "ok": all(errors[key] <= limits[key] for key in errors)}


def scan_inputs(length: int, d_inner: int, n_seqs: int) -> tuple[Tensor, ...]:
    """u, dt, A, B, C, D, z, dt_bias, cu_seqlens, initial_state: the launchers' order."""
    tokens = length * n_seqs

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda")

    A = -torch.arange(1, 17, device="cuda").float().repeat(d_inner, 1) * (1 + 0.1 * normal(d_inner, 16)).abs()
    u, dt, z = (
        normal(tokens, d_inner).bfloat16(),
        (0.5 * normal(tokens, d_inner)).bfloat16(),
        normal(tokens, d_inner).bfloat16(),
    )
    bounds = torch.arange(n_seqs + 1, device="cuda", dtype=torch.int32) * length
    B, C = normal(tokens, 16).bfloat16(), normal(tokens, 16).bfloat16()
    return u, dt, A, B, C, normal(d_inner), z, normal(d_inner) - 4, bounds, normal(n_seqs, d_inner, 16)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def scan(_: float) -> Iterator[dict[str, object]]:
    forward_only = [(1, 512), (1, 131072)]
    for d_inner, n_seqs, length in (
        (8192, 1, 512), (8192, 1, 2048), (8192, 1, 8192), (8192, 1, 16384), (8192, 1, 131072), (8192, 8, 2048), (16384,
        1, 2048),
        (16384, 1, 16384), (1024, 1, 16384), (2048, 1, 16384),
    ):  # fmt: skip
        floor = d_inner * n_seqs * length * 16 / EXPONENTIALS * 1e6
        shape = {"d_inner": d_inner, "sequences": n_seqs, "length": length, "floor_us": round(floor, 1)}
        inputs = scan_inputs(length, d_inner, n_seqs)
        expected = portable.forward(*inputs, False)
        for by, module in (("gluon", gluon), ("triton", portable)):
            y = module.forward(*inputs, False)[0]
            us = graph_us(module.forward, *inputs, False)
            yield {
                "pass": "forward",
                "by": by,
                **shape,
                "us": us,
                "x_floor": us / floor,
                "differs": relative(y, expected[0]),
            }
        if (n_seqs, length) in forward_only or length > 8192:
            continue
        y, final, tile_states, pre_gate = gluon.forward(*inputs, True)
        yield {"pass": "forward, saving", "by": "gluon", **shape, "us": graph_us(gluon.forward, *inputs, True)}
        given = (torch.randn_like(y), torch.randn_like(final), *inputs[:9], tile_states, pre_gate)
        slow = portable.backward(*given)
        for by, module in (("gluon", gluon), ("triton", portable)):
            once, again = module.backward(*given), module.backward(*given)
            same = all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
            differs = max(relative(a, b) for a, b in zip(once, slow, strict=True))
            us = graph_us(module.backward, *given)
            yield {
                "pass": "backward",
                "by": by,
                **shape,
                "us": us,
                "x_floor": us / floor,
                "repeats": same,
                "differs": differs,
            }


def steps(inputs: tuple[Tensor, ...], pool: Tensor, slots: list[Tensor]) -> None:
    for of_step in slots:
        triton_decode.selective_scan_update(*inputs, pool, of_step)


def update(rate: float) -> Iterator[dict[str, object]]:
    """States rotated past the L2: 16 steps over random slots in one graph."""
    for d_inner in (8192, 16384):
        for n_seqs in (1, 16, 128):
            pool = torch.randn(max(4 * n_seqs, 256), d_inner, 16, device="cuda")
            inputs = scan_inputs(n_seqs, d_inner, 1)[:8]
            slots = [torch.randperm(len(pool), device="cuda")[:n_seqs].int() for _ in range(16)]
            us = graph_us(steps, inputs, pool, slots) / 16
            moved = n_seqs * d_inner * (2 * 16 * 4 + 4 * 2) + d_inner * 16 * 4
            yield {
                "d_inner": d_inner,
                "sequences": n_seqs,
                "us": us,
                "GBps": moved / us / 1e3,
                "x_floor": us * rate / moved / 1e6,
            }


def convolution(rate: float) -> Iterator[dict[str, object]]:
    weight, bias = torch.randn(8192, 4, device="cuda").bfloat16(), torch.randn(8192, device="cuda").bfloat16()
    columns = torch.randn(1, 8192, 3, device="cuda").bfloat16()
    for length in (2048, 16384, 131072):
        wide = torch.randn(length, 16384, device="cuda").bfloat16()
        bounds = torch.tensor([0, length], device="cuda", dtype=torch.int32)
        for rows, x in (("packed", wide[:, :8192].contiguous()), ("half of a projection", wide[:, :8192])):
            arguments = (x, weight, bias, bounds, columns)
            out, final = conv._conv(*arguments)
            gradients = (torch.randn_like(out), torch.randn_like(final))
            for direction, passes, call, given in (
                ("forward", 2, conv._conv, arguments),
                ("backward", 3, conv._conv_backward, (*gradients, *arguments)),
            ):
                us, moved = graph_us(call, *given), passes * x.numel() * 2
                yield {
                    "pass": direction, "rows": rows, "length": length, "us": us, "GBps": moved / us / 1e3,
                    "x_floor": us * rate / moved / 1e6,
                }  # fmt: skip


def norms(rate: float) -> Iterator[dict[str, object]]:
    for n_rows, d in ((1, 4096), (2048, 4096), (16384, 4096), (2048, 8192)):
        x, residual = (torch.randn(n_rows, d, device="cuda").bfloat16() for _ in range(2))
        weight = torch.randn(d, device="cuda").bfloat16()
        for what, passes, call, given in (
            ("rms_norm", 2, norm.rms_norm, (x, weight, 1e-6)),
            ("add_rms_norm", 4, norm.add_rms_norm, (x, residual, weight, 1e-6)),
            ("rms_norm backward", 3, norm._norm_backward, (x, weight, residual, None, 1e-6)),
        ):
            us, moved = graph_us(call, *given), passes * x.numel() * 2
            yield {
                "what": what,
                "rows": n_rows,
                "d": d,
                "us": us,
                "GBps": moved / us / 1e3,
                "x_floor": us * rate / moved / 1e6,
            }
    weights = tuple(torch.randn(d, device="cuda").bfloat16() for d in (256, 16, 16))
    for n_rows in (1, 2048, 16384):
        x = torch.randn(n_rows, 288, device="cuda").bfloat16()
        us = graph_us(norm.rms_norm_sections, x, weights, 1e-6)
        yield {"what": "sections", "rows": n_rows, "us": us, "GBps": 4 * x.numel() / us / 1e3}


PARTS = {"check": check, "scan": scan, "update": update, "conv": convolution, "norm": norms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=" ".join(PARTS))
    parts = parser.parse_args().parts
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    rate = copy_rate()
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    print(json.dumps({**about, "copy_GBps": round(rate / 1e9)}), flush=True)
    for part in parts:
        for line in PARTS[part](rate):
            rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}
            print(json.dumps({"part": part, **rounded}), flush=True)


if __name__ == "__main__":
    main()
