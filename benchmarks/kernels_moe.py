"""Times of the experts' and attention's kernels on one Hopper GPU beside their floors.

    python benchmarks/kernels_moe.py [check] [mini] [dense] [shard] [one_token] [layers] [training] [attention]
        [--sizes 1,64]

A layer is routing (softmax, top-k, sorting), both products and the weighted sum, replayed as one CUDA graph: median of
do_bench, which clears L2 between repeats; random data, one uniform draw of the routing per size. A floor is the larger
of the bytes of the experts hit at the measured copy rate and the operations at 700 TFLOP/s. Nothing is timed whose
result is wrong.
"""

import argparse
import functools
import json
import traceback
from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from plait.ops import moe
from plait.ops.attention import cases as attention_cases
from plait.ops.case import OpCases
from plait.ops.dispatch import force
from plait.ops.moe import cases as moe_cases
from plait.ops.moe import gemv, gluon, packed
from plait.ops.moe import triton as kernels

FLOPS = 700e12
MINI, SHARD = (16, 4096, 14336), (16, 8192, 3072)  # experts, d_model, d_ff: Jamba-1.5-Mini, one of 8 shards of Large


def copy_rate() -> float:
    a = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    b = torch.empty_like(a)
    return 2 * a.numel() / (triton.testing.do_bench(lambda: b.copy_(a), return_mode="median") * 1e-3)


def graph_us(call: Callable[[], object], rep: int = 60) -> float:
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return triton.testing.do_bench(graph.replay, warmup=15, rep=rep, return_mode="median") * 1e3


S = gluon.Shape
SHAPES = (  # from and to how many tokens, and the shape
    (2, 16, S(128, 8, 2, (9, 9), 1)), (2, 64, S(128, 16, 2, (8, 8), 1)), (8, 64, S(256, 16, 2, (5, 4), 1)),
    (64, 192, S(256, 32, 1, (9, 8), 1)), (192, 512, S(256, 64, 1, (8, 7), 1, 1)),
    (192, 640, S(256, 128, 1, (6, 5), 1)), (256, 8192, S(256, 128, 1, (6, 5), 16)),
    (256, 8192, S(256, 128, 1, (6, 5), 8)),
)  # fmt: skip
DENSE_SHAPES = (
    (64, 64, S(256, 32, 1, (9, 8), 1)), (64, 64, S(128, 32, 2, (6, 6), 1)), (256, 512, S(256, 128, 1, (6, 5), 8)),
)  # fmt: skip


class Experts:
    def __init__(self, n_experts: int, d_model: int, d_ff: int):
        self.shape = (n_experts, d_model, d_ff)
        generator = torch.Generator("cuda").manual_seed(1)
        draw = {"device": "cuda", "generator": generator}
        self.gate_up = torch.randint(-127, 128, (n_experts, 2 * d_ff, d_model), dtype=torch.int8, **draw)
        self.down = torch.randint(-127, 128, (n_experts, d_model, d_ff), dtype=torch.int8, **draw)
        self.gate_up_scale = (0.5 + torch.rand(n_experts, 2 * d_ff, **draw)) / 73 / d_model**0.5
        self.down_scale = (0.5 + torch.rand(n_experts, d_model, **draw)) / 73 / d_ff**0.5
        self.packed = (
            torch.cat([packed.pack(w[None], gated=True) for w in self.gate_up]),
            torch.cat([packed.pack(w[None], gated=False) for w in self.down]),
            self.gate_up_scale,
            self.down_scale,
        )
        self.rows = (self.gate_up, self.down, self.gate_up_scale, self.down_scale)

    def expected(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """fp32 with the activations rounded where the kernels round them."""
        out = torch.zeros_like(x, dtype=torch.float32)
        for e in ids.unique().tolist():
            token, choice = (ids == e).nonzero(as_tuple=True)
            gate, up = (x[token].float() @ (self.gate_up[e].float() * self.gate_up_scale[e][:, None]).T).chunk(2, -1)
            y = torch.nn.functional.silu(gate).mul_(up) @ (self.down[e].float() * self.down_scale[e][:, None]).T
            out.index_put_((token,), y * weights[token, choice][:, None], accumulate=True)
        return out

    def floor_us(self, tokens: int, hit: int, rate: float, bytes_per_weight: float = 1.0) -> float:
        _, d_model, d_ff = self.shape
        top_k = min(2, self.shape[0])
        bytes_ = hit * 3 * d_model * d_ff * bytes_per_weight + 4 * tokens * d_model
        return max(bytes_ / rate, tokens * top_k * 6 * d_model * d_ff / FLOPS) * 1e6


def error(got: Tensor, expected: Tensor) -> float:
    return ((got.float() - expected).norm() / expected.norm()).item()


def inputs(tokens: int, experts: Experts, seed: int) -> tuple[Tensor, Tensor]:
    draw = {"device": "cuda", "generator": torch.Generator("cuda").manual_seed(seed)}
    return (
        torch.randn(tokens, experts.shape[1], **draw).bfloat16(),
        torch.randn(tokens, experts.shape[0], **draw).bfloat16(),
    )


def row(
    part: str, name: str, experts: Experts, tokens: int, hit: int, us: float, rate: float, err: float, **more
) -> dict:
    floor = experts.floor_us(tokens, hit, rate)
    top_k = min(2, experts.shape[0])
    tflops = tokens * top_k * 6 * experts.shape[1] * experts.shape[2] / us / 1e6
    result = {"part": part, "what": name, "tokens": tokens, "hit": hit, "us": round(us, 1), "floor_us": round(floor, 1),
              "x_floor": round(us / floor, 3), "tflops": round(tflops), "error": round(err, 5), **more}  # fmt: skip
    print(json.dumps(result), flush=True)
    return result


def int8(part: str, experts: Experts, sizes: list[int], rate: float, variants: dict) -> list[dict]:
    """Every variant at every size: checked against fp32 (up to 2048 tokens, sampled above), ten runs bitwise equal,
    then timed.
    """
    rows = []
    top_k = min(2, experts.shape[0])
    for tokens in sizes:
        x, logits = inputs(tokens, experts, tokens)
        weights, ids = kernels.route(logits, top_k)
        hit = ids.unique().numel()
        some = torch.arange(tokens, device="cuda") if tokens <= 512 else torch.randperm(tokens, device="cuda")[:128]
        expected = experts.expected(x[some], weights[some], ids[some])
        for name, (applies, run) in variants.items():
            if not applies(tokens):
                continue
            try:
                first = run(x, weights, ids)
                err = error(first[some], expected)
                same = all(torch.equal(run(x, weights, ids), first) for _ in range(3 if tokens > 4096 else 10))
                if not err < 6e-3 or not same:
                    print(
                        json.dumps({"part": part, "what": name, "tokens": tokens, "WRONG": err, "repeats": same}),
                        flush=True,
                    )
                    continue

                def layer(run: Callable = run, x: Tensor = x, logits: Tensor = logits) -> Tensor:
                    return run(x, *(kernels.route(logits, top_k) if experts.shape[0] > 1 else (None, None)))

                us = graph_us(layer)
                rows.append(row(part, name, experts, tokens, hit, us, rate, err))
            except Exception:
                print(name, tokens, traceback.format_exc()[-1500:], flush=True)
    return rows


def training(rate: float) -> list[dict]:
    """Routing, experts and combination, forward and backward, bf16, 8192 tokens of the Mini shape; FLOPs are 3 x
    forward.
    """
    n_experts, d_model, d_ff = MINI
    rows, tokens = [], 8192
    generator = torch.Generator("cuda").manual_seed(3)

    def make(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, device="cuda", generator=generator) * scale).bfloat16().requires_grad_()

    gate_up = make(n_experts, 2 * d_ff, d_model, scale=d_model**-0.5)
    down = make(n_experts, d_model, d_ff, scale=d_ff**-0.5)
    x, logits = make(tokens, d_model), make(tokens, n_experts)
    cotangent = torch.randn(tokens, d_model, device="cuda", generator=generator).bfloat16()
    inputs_ = (x, logits, gate_up, down)

    def step(name: str) -> tuple[Tensor, ...]:
        with force(moe=name):
            weights, ids = moe.route(logits, 2)
            out = moe.combine(moe.expert_outputs(x, ids, gate_up, down), weights)
        return out, *torch.autograd.grad(out, inputs_, cotangent)

    expected = step("grouped")
    got = step("triton")
    err = max(error(a, b.float()) for a, b in zip(got, expected, strict=True))
    again = all(torch.equal(a, b) for a, b in zip(got, step("triton"), strict=True))
    print(json.dumps({"part": "training", "error against the loop": err, "repeats": again}), flush=True)
    del expected, got
    flops = 3 * tokens * 2 * 6 * d_model * d_ff
    for name in ("triton", "grouped"):
        us = triton.testing.do_bench(lambda name=name: step(name), warmup=100, rep=400, return_mode="median") * 1e3
        rows.append({"part": "training", "what": name, "us": round(us), "tflops": round(flops / us / 1e6)})
        print(json.dumps(rows[-1]), flush=True)

    # The rival alone: the two grouped products and PyTorch's SwiGLU on rows already sorted.
    by = kernels.order(kernels.route(logits.detach(), 2)[1], n_experts, 16)
    sorted_rows = kernels.gather(x.detach(), by).requires_grad_()
    dy = torch.randn_like(sorted_rows)

    def rival() -> None:
        gate, up = F.grouped_mm(sorted_rows, gate_up.transpose(1, 2), offs=by.ends).chunk(2, -1)
        y = F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=by.ends)
        torch.autograd.grad(y, (sorted_rows, gate_up, down), dy)

    us = triton.testing.do_bench(rival, warmup=100, rep=400, return_mode="median") * 1e3
    rows.append({"part": "training", "what": "grouped_mm alone", "us": round(us), "tflops": round(flops / us / 1e6)})
    print(json.dumps(rows[-1]), flush=True)
    return rows


def check() -> None:
    """Every small case on this GPU in bf16, and what the subnormal weights of the Hopper kernel give: the same bits."""
    failed = 0
    for module in (moe_cases, attention_cases):
        for ops in (value for value in vars(module).values() if isinstance(value, OpCases)):
            for name, implementation in ops.implementations.items():
                dtype = torch.bfloat16
                if implementation.why_not(torch.empty(0, dtype=dtype, device="cuda")) is not None:
                    continue
                worst = 0.0
                for case in (case for case in ops.cases if not case.large):
                    for result, err in ops.errors(name, case, "cuda", dtype).items():
                        limit = (ops.grad_tolerance if result.startswith("grad_") else ops.tolerance)[dtype]
                        worst = max(worst, err / limit)
                        if not err <= limit:
                            failed += 1
                            print("FAILED", ops.op, name, case.name, result, err, limit, flush=True)
                print("checked", ops.op, name, f"worst error is {worst:.2f} of the tolerance", flush=True)
    experts = Experts(4, 512, 1024)
    x, logits = inputs(200, experts, 0)
    weights, ids = kernels.route(logits, 2)
    both = [gluon.moe(x, weights, ids, *experts.packed, subnormal=way) for way in (True, False)]
    print("subnormal weights give the same bits:", torch.equal(*both), flush=True)
    print("checks failed:", failed, flush=True)


def one_token(rate: float) -> list[dict]:
    """The matrix-vector kernels: tiles and warps, one at a time around the first."""
    rows = []
    best = gemv.Tiles((8, 4), (16, 8))
    choices = [best._replace(gate_up=c) for c in ((8, 4), (16, 8), (16, 4))]
    choices += [best._replace(down=c) for c in ((32, 8), (8, 8), (16, 4))]
    for part, sizes in (("mini", MINI), ("dense", (1, *MINI[1:])), ("shard", SHARD)):
        experts = Experts(*sizes)
        x, logits = inputs(1, experts, 1)
        weights, ids = kernels.route(logits, min(2, sizes[0])) if sizes[0] > 1 else (None, None)
        for tiles in choices:
            arguments = (x, weights, ids, *experts.packed)
            err = error(gemv.moe(*arguments, tiles=tiles), gemv.moe(*arguments).float())
            us = graph_us(lambda arguments=arguments, tiles=tiles: gemv.moe(*arguments, tiles=tiles), rep=30)
            name = f"gate/up {tiles.gate_up} down {tiles.down}"
            rows.append(row(f"{part}, one token, no routing", name, experts, 1, min(2, sizes[0]), us, rate, err))
            del arguments
        del experts
        torch.cuda.empty_cache()
    return rows


def layers(rate: float, n: int = 8) -> list[dict]:
    """One token through n layers with weights of their own in one graph, no routing, us a layer: what serving sees,
    where nothing clears the L2 between layers.
    """
    rows = []
    for part, (n_experts, d_model, d_ff) in (("mini", MINI), ("dense", (1, *MINI[1:])), ("shard", SHARD)):
        dense = n_experts == 1
        experts = Experts(n if dense else n_experts, d_model, d_ff)
        x, logits = inputs(1, experts, 1)
        weights, _ = kernels.route(logits, 2)
        ids = [torch.tensor([[2 * i % n_experts, (2 * i + 1) % n_experts]], device="cuda") for i in range(n)]
        calls = []
        for i in range(n):
            own = tuple(t[i : i + 1] for t in experts.packed) if dense else experts.packed
            calls.append(functools.partial(gemv.moe, x, *((None, None) if dense else (weights, ids[i])), *own))
        us = graph_us(lambda calls=calls: [call() for call in calls]) / n
        floor = experts.floor_us(1, 1 if dense else 2, rate)
        rows.append({"part": f"{part}, {n} layers", "us": round(us, 2), "x_floor": round(us / floor, 3)})
        print(json.dumps(rows[-1]), flush=True)
        del experts, own, calls
        torch.cuda.empty_cache()
    return rows


def attend(rate: float) -> list[dict]:
    """Attention of the Mini shape: every large case, each implementation that passes it."""
    rows = []
    for ops in (attention_cases.PAGED, attention_cases.FORWARD):
        for case in ops.cases:
            if not case.large:
                continue
            with torch.device("cuda"):
                made = case.inputs(torch.Generator("cuda").manual_seed(0))
            inputs_ = ops.cast(made, "cuda", torch.bfloat16)
            del made
            cost = case.cost(inputs_)
            floor = max(cost.bytes / rate, cost.flops / FLOPS) * 1e6
            outputs = {}
            for name in ("triton", "sdpa", "cudnn"):
                if name not in ops.implementations:
                    continue
                try:
                    outputs[name] = ops.run(name, inputs_)["out0"].float()
                    call = functools.partial(ops.call, **inputs_)
                    with torch.no_grad(), force(attention=name):
                        if name == "triton" and "decode" in case.name:
                            us = graph_us(call)
                        else:
                            us = triton.testing.do_bench(call, rep=60, return_mode="median") * 1e3
                    del call
                    rows.append({"part": "attention", "what": name, "case": case.name, "us": round(us, 1),
                                 "floor_us": round(floor, 1), "x_floor": round(us / floor, 2),
                                 "tflops": round(cost.flops / us / 1e6),
                                 "GBps": round(cost.bytes / us / 1e3)})  # fmt: skip
                    print(json.dumps(rows[-1]), flush=True)
                except Exception:
                    print(name, case.name, traceback.format_exc()[-800:], flush=True)
            for name in outputs:
                print(case.name, name, "against sdpa:", error(outputs[name], outputs["sdpa"]), flush=True)
            del inputs_, outputs
            torch.cuda.empty_cache()
    return rows


def gluon_variant(experts: Experts, shape: gluon.Shape | None = None, subnormal: bool = True):
    return lambda x, weights, ids: gluon.moe(x, weights, ids, *experts.packed, shape=shape, subnormal=subnormal)


def variants_of(experts: Experts, dense: bool, tuning: bool) -> dict:
    if dense:

        def one_expert(x: Tensor, weights: Tensor, ids: Tensor, **options) -> Tensor:
            return gluon.moe(x, None, None, *experts.packed, **options)

        found = {"default": (lambda t: True, one_expert)}
        for low, high, shape in DENSE_SHAPES if tuning else ():
            found[f"gluon {shape}"] = (
                lambda t, low=low, high=high: low <= t <= high,
                lambda x, w, i, shape=shape: one_expert(x, w, i, shape=shape),
            )
        return found
    found = {
        "default": (lambda t: True, gluon_variant(experts)),
        "plain triton": (lambda t: t in (1, 64, 2048), lambda x, w, i: kernels.moe(x, w, i, *experts.rows)),
    }
    if tuning:
        for low, high, shape in SHAPES:
            found[f"gluon {shape}"] = (
                lambda t, low=low, high=high: low <= t <= high,
                gluon_variant(experts, shape),
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["mini", "shard", "dense"])
    parser.add_argument(
        "--sizes", type=lambda s: [int(n) for n in s.split(",")], default=[1, 2, 8, 64, 128, 512, 2048, 8192]
    )
    parser.add_argument("--variants", action="store_true", help="also every tile shape worth trying")
    parser.add_argument("--out")
    args = parser.parse_args()
    rate = copy_rate()
    where = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_GBps": round(rate / 1e9),
    }
    print(json.dumps(where), flush=True)
    rows = []
    for part in args.parts:
        if part == "check":
            check()
            continue
        if part in (others := {"training": training, "one_token": one_token, "layers": layers, "attention": attend}):
            rows += others[part](rate)
            continue
        experts = Experts(*{"mini": MINI, "shard": SHARD, "dense": (1, *MINI[1:])}[part])
        rows += int8(part, experts, args.sizes, rate, variants_of(experts, part == "dense", args.variants))
        del experts
        torch.cuda.empty_cache()
    if args.out:
        with open(args.out, "w") as file:
            json.dump({"where": where, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
