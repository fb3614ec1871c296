"""One process of a parity test: runs every case of a file of cases on a mesh of its own, and compares it with one
process. `python worker.py CASES RESULTS RANK WORLD STORE`.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from plait.config import ModelConfig
from plait.model import LanguageModel, Layout, Segment, State, init_weights
from plait.parallel import Mesh, ParallelConfig, Plan, parallelize, tensor_parallel
from plait.parallel.collectives import summed
from plait.parallel.context import cut_columns, cut_layout
from plait.parallel.expert import deal_experts
from plait.parallel.placement import placements
from plait.parallel.plan import split
from plait.parallel.tensor import slice_part
from plait.parallel.whole import gathered_whole
from plait.quant import quantize
from plait.train.config import LossConfig, OptimConfig, TrainConfig
from plait.train.optimizer import make_optimizer
from plait.train.recompute import recompute
from plait.train.start import first_weights, own_weights
from plait.train.step import pass_loss

TINY = {
    "vocab_size": 64, "d_model": 32, "d_ff": 48, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "attn_period": 4,
    "attn_offset": 2, "n_experts": 4, "d_state": 4, "max_context": 256, "dtype": "float32",
}  # fmt: skip
LOSSES = LossConfig(balance=0.02, router_z=1e-2, activation=1e-2, logit_z=1e-3)
Batch = tuple[torch.Tensor, torch.Tensor, list[list[int]]]


def model_of(case: dict[str, Any]) -> LanguageModel:
    config = ModelConfig(**TINY | case.get("model", {}))
    model = init_weights(LanguageModel(config), seed=3).to_dtype(getattr(torch, case["dtype"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in name:
                parameter.mul_(4)  # off the flat start, so that every path carries gradient
            elif name.endswith("norm.weight") or "bias" in name:
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel(), dtype=parameter.dtype).view_as(parameter))
        if case.get("one_expert"):  # all tokens choose the same two
            for ffn in model.feed_forwards():
                if hasattr(ffn, "router"):
                    ffn.router.weight.zero_()
    return model.train()


def batch_of(case: dict[str, Any]) -> Batch:
    rows, seq = case.get("rows", 8), case.get("seq", 32)
    random = np.random.default_rng(5)
    token_ids = torch.from_numpy(random.integers(0, TINY["vocab_size"], (rows, seq)))
    labels = token_ids.roll(-1, 1)
    labels[torch.from_numpy(random.random((rows, seq)) < 0.2)] = -100
    if case.get("idle"):  # one process has no label at all
        labels[: rows // 2] = -100
    lengths = case.get("lengths") or [
        np.diff([0, *sorted(random.choice(np.arange(1, seq), 3, replace=False)), seq]).tolist() if seq > 4 else [seq]
        for _ in range(rows)
    ]
    return token_ids, labels, lengths


def step(model: LanguageModel, plan: Plan, batch: Batch, losses: LossConfig) -> tuple[dict[str, float], float]:
    """The loss, its parts and the gradient norm of one step in two passes over halves of the rows, if there are two."""
    token_ids, labels, lengths = batch
    n_labels = plan.over_rows((plan.cut(*batch)[1] != -100).sum().double()).item()
    halves = [slice(0, len(lengths))] if len(lengths) < 2 else [slice(0, None, 2), slice(1, None, 2)]
    sums: dict[str, float] = {}
    for rows in halves:
        ids, wanted, layout = plan.cut(token_ids[rows], labels[rows], lengths[rows])
        result = pass_loss(model, plan, ids, wanted, layout, losses, n_labels=n_labels, n_passes=len(halves))
        result.loss.backward()
        for name, value in result.parts.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    return sums, float(plan.gradient_norm(model))


def rows_of(batch: Batch, rank: int, world: int) -> Batch:
    token_ids, labels, lengths = batch
    n = len(lengths) // world
    mine = slice(rank * n, (rank + 1) * n)
    return token_ids[mine], labels[mine], lengths[mine]


@functools.cache
def one_process(case: str) -> tuple[dict[str, float], float, dict[str, torch.Tensor]]:
    """The loss's parts, the gradient norm and every gradient of the case's step on one process."""
    options = json.loads(case)
    model = model_of(options)
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(options["products"])):
        parts, norm = step(model, Plan(), batch_of(options), losses_of(options))
    return parts, norm, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def losses_of(case: dict[str, Any]) -> LossConfig:
    return LossConfig(**case["losses"]) if "losses" in case else LOSSES


def parity(case: dict[str, Any]) -> dict[str, Any]:
    """`dtypes`: of the parameters, and after a slash of the products where that is another."""
    mesh = Mesh.of(ParallelConfig(**case["parallel"]))
    found = {}
    for dtypes in case["dtypes"]:
        dtype, _, products = dtypes.partition("/")
        found[dtypes] = _parity(case | {"dtype": dtype, "products": products}, mesh)
    return found


def _parity(case: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    of_model = {key: value for key, value in case.items() if key not in ("name", "parallel", "dtypes", "recompute")}
    expected, expected_norm, gradients = one_process(json.dumps(of_model, sort_keys=True))

    whole_batch, model = batch_of(case), recompute(model_of(case), case.get("recompute", "none"))
    n_rows, seq = whole_batch[0].shape
    mesh.config.check(model.config, seq=seq, rows=n_rows // min(2, n_rows), world=dist.get_world_size())
    plan = parallelize(model, mesh, dtype=getattr(torch, case["products"]) if case["products"] else None)
    mine = rows_of(whole_batch, mesh.loader_rank, mesh.config.loader_ranks)
    found, norm = step(model, plan, mine, losses_of(case))

    worst, where = 0.0, ""
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        wanted = gradients[name]
        full = gathered_whole(parameter.grad, plan.place(name), mesh, wanted.shape)
        size = float(wanted.norm())
        error = float((full - wanted).norm()) / (size if size > 0 else 1.0)
        if error > worst:
            worst, where = error, name
    return {
        "parts": {name: [found[name], expected[name]] for name in expected},
        "norm": [norm, expected_norm],
        "gradient": [worst, where],
    }


@torch.no_grad()
def serving(case: dict[str, Any]) -> dict[str, Any]:
    """Prefill, a chunk more, and decode steps of three sequences, split over all processes and whole: the greatest
    difference of their logits.
    """
    whole_model, split_model = model_of(case).eval(), model_of(case).eval()
    if case.get("quantize"):
        whole_model, split_model = quantize(whole_model), quantize(split_model)
    if case.get("whole_experts"):
        place = dist.get_rank(), dist.get_world_size()
        parts = {"embed": split_model.embed, "final_norm": split_model.final_norm, "head": split_model.head}
        for name, part in (parts | {f"layers.{i}": layer for i, layer in enumerate(split_model.layers)}).items():
            slice_part(name, part, config=split_model.config, place=place, whole_experts=True)
        deal_experts(tensor_parallel(split_model, dist.group.WORLD, experts=False, is_sliced=True), dist.group.WORLD)
    else:
        tensor_parallel(split_model, dist.group.WORLD)
    sizes = {"n_slots": 3, "n_pages": 6, "dtype": whole_model.dtype}
    states = [State.empty(whole_model.config, **sizes, split=split) for split in (1, dist.get_world_size())]
    random = np.random.default_rng(7)
    ids = torch.from_numpy(random.integers(0, 64, (3, 24)))
    done, worst, largest = [0, 0, 0], 0.0, 0.0
    for takes in ((5, 9, 0), (7, 1, 4), (1, 1, 1), (1, 1, 0), (2, 1, 1)):
        segments, tokens = [], []
        for slot, n in enumerate(takes):
            if n:
                mode = "fresh" if done[slot] == 0 else ("decode" if n == 1 else "resume")
                pages = (2 * slot, 2 * slot + 1)
                segments.append(Segment(sum(map(len, tokens)), n, mode, slot, done[slot], pages))
                tokens.append(ids[slot, done[slot] : done[slot] + n])
                done[slot] += n
        flat = torch.cat(tokens)[None]
        for keep in ("all", "last"):
            layout = Layout.of(segments, 1, flat.shape[1])
            copies = [State(s.config, *(t.clone() for t in (s.conv, s.ssm, s.k, s.v))) for s in states]
            used = copies if keep == "all" else states  # the second call writes what stays
            expected, found = (
                model(flat, layout, state, keep=keep).logits
                for model, state in zip((whole_model, split_model), used, strict=True)
            )
            worst = max(worst, float((expected - found).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    held = sum(p.numel() for p in split_model.parameters()) / sum(p.numel() for p in whole_model.parameters())
    return {"difference": worst / largest, "held": held}


def scan(case: dict[str, Any]) -> dict[str, Any]:
    """One Mamba mixer over packed rows that are cut over all processes: outputs and gradients against one process."""
    model = model_of(case | {"dtype": "float64"})
    mixer = model.layers[0].mixer
    rows, seq = len(case["lengths"]), sum(case["lengths"][0])
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(rows, seq, 32, generator=generator, dtype=torch.float64) for _ in range(2))
    group = dist.group.WORLD

    def mix(x: torch.Tensor, layout: Layout, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.clone().requires_grad_()
        mixer.zero_grad()
        y = mixer(layout.take(x), layout)
        (y * layout.take(weight)).sum().backward()
        return y.detach(), x.grad, *(p.grad.clone() for p in mixer.parameters())

    y, grad_x, *grads = mix(x, Layout.packed(case["lengths"], seq), weight)
    cut = cut_layout(case["lengths"], seq, group)
    found_y, found_grad_x, *found = mix(cut_columns(x, group), cut, cut_columns(weight, group))
    pairs = [
        (found_y, cut_columns(y.unflatten(0, (rows, seq)), group).flatten(0, 1)),
        (found_grad_x, cut_columns(grad_x, group)),
        *((summed(f, group), g) for f, g in zip(found, grads, strict=True)),
    ]
    return {"difference": max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)}


def muon(case: dict[str, Any]) -> dict[str, Any]:
    """One Muon step on a mesh and on one process: the greatest difference of any parameter's change."""
    case = case | {"dtype": "float32"}
    optim = OptimConfig(kind="muon", lr=0.1, weight_decay=0.0)
    mesh = Mesh.of(ParallelConfig(**case["parallel"]))
    changes = []
    for plan in (None, mesh):
        model = model_of(case)
        table = Plan(table=placements(model.config))
        spread = table if plan is None else parallelize(model, mesh)
        rows = batch_of(case) if plan is None else rows_of(batch_of(case), mesh.loader_rank, mesh.config.loader_ranks)
        step(model, spread, rows, LOSSES)
        make_optimizer(model, optim, spread).step()
        first = dict(model_of(case).named_parameters())
        changes.append(
            {
                name: (p if plan is None else gathered_whole(p, spread.place(name), mesh, first[name].shape))
                - first[name]
                for name, p in model.named_parameters()
                if p.dim() > 1 and "embed" not in name
            }
        )
    one, several = changes
    errors = [(one[name] - several[name]).detach().norm() / one[name].detach().norm() for name in one]
    return {"difference": float(torch.stack(errors).max())}


def start(case: dict[str, Any]) -> dict[str, Any]:
    """Whether the slices that a run begins with are those of the whole model."""
    mesh = Mesh.of(ParallelConfig(**case["parallel"]))
    config = TrainConfig("start", ModelConfig(**TINY), seed=3)
    ours, theirs = own_weights(config, mesh, torch.device("cpu")), split(first_weights(config), mesh)
    names = [name for name, _ in ours.named_parameters()]
    same = [torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]
    return {"same": all(same) and names == [name for name, _ in theirs.named_parameters()]}


KINDS = {"start": start, "muon": muon, "parity": parity, "serving": serving, "scan": scan}


def main() -> None:
    cases, results, rank, world, store = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    faulthandler.dump_traceback_later(260, exit=True)
    torch.set_num_threads(1)
    where = {"init_method": f"file://{store}", "rank": rank, "world_size": world}
    dist.init_process_group("gloo", **where, timeout=timedelta(seconds=120))
    found = {}
    for case in json.loads(Path(cases).read_text()):
        started = time.perf_counter()
        try:
            found[case["name"]] = KINDS[case.get("kind", "parity")](case)
        except Exception as error:  # the other processes wait for this one: tell, and end
            found[case["name"]] = {"error": f"{type(error).__name__}: {error}"}
            results.with_suffix(f".{rank}").write_text(json.dumps(found))
            raise
        found[case["name"]]["seconds"] = time.perf_counter() - started
    results.with_suffix(f".{rank}").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
