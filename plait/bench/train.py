"""`plait bench train`: tokens a second, MFU and peak memory of training steps, as `plait train` takes them.

Steps are those of the loop (`train.step.train_step`): routing as the router chooses, all losses, clipping, AdamW. Rows
are random tokens, one document each. The model is a named shape or what accounting says fills the device.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from plait.accounting import account, count_parameters, training_flops
from plait.config import ModelConfig
from plait.data.loader import Batch
from plait.model.network import LanguageModel
from plait.parallel.mesh import Mesh, ParallelConfig
from plait.parallel.placement import placements
from plait.parallel.plan import Plan, parallelize
from plait.train.config import LossConfig, OptimConfig, TrainConfig
from plait.train.graphed import Graphs
from plait.train.optimizer import AnyOptimizer, make_optimizer
from plait.train.processes import joined
from plait.train.recompute import recompute
from plait.train.step import train_step, whole_step
from plait.train.utilization import peak_flops

BYTES_PER_PARAMETER = {"float32": 16, "bfloat16": 16, "bfloat16_weights": 8}  # parameters, gradients, two moments

SHAPES: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        vocab_size=512, d_model=64, d_ff=96, n_layers=8, n_heads=4, n_kv_heads=2, n_experts=4, d_state=8,
        max_context=4096,
    ),
    # The shape of which transformers' speed and memory were measured: 1.84 B parameters, 0.87 B active.
    "jamba-1.8b": ModelConfig(
        vocab_size=65_536, d_model=2048, d_ff=1408, n_layers=16, n_heads=16, n_kv_heads=8, n_experts=16,
        max_context=8192,
    ),
}  # fmt: skip


AXES = ("dp_replicate", "cp", "tp", "ep")


@dataclass(frozen=True)
class Case:
    """What is timed: `batch` rows of `seq` tokens a step, in `accumulate` passes."""

    model: str  # of SHAPES, or "fill"
    batch: int  # of all processes
    seq: int
    accumulate: int = 1
    recompute: str = "none"
    rescan: int = 0
    precision: str = "bfloat16_weights"
    activation: float = 0.0  # alpha of paper section 3.2
    graph: bool = False  # steps as one CUDA graph
    dp_replicate: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1

    @classmethod
    def parse(cls, text: str) -> Case:
        """`jamba-1.8b:4x2048`, and after further colons accumulate=2, recompute=light, precision=bfloat16, graph, and
        of several processes ep=2, tp=2, cp=2, dp_replicate=2. ValueError for anything else.
        """
        name, *rest = text.split(":")
        if name not in (*SHAPES, "fill"):
            raise ValueError(f"{text!r}: no shape {name!r}; there are fill, {', '.join(SHAPES)}")
        sizes, *settings = rest or [""]
        rows, times, seq = sizes.partition("x")
        if not (times and rows.isdecimal() and seq.isdecimal()):
            raise ValueError(f"{text!r} must be SHAPE:ROWSxTOKENS, such as jamba-1.8b:4x2048")
        values: dict[str, Any] = dict(setting.partition("=")[::2] for setting in settings)
        numbers = ("accumulate", "rescan", *AXES)
        if unknown := values.keys() - {*numbers, "recompute", "precision", "activation", "graph"}:
            raise ValueError(
                f"{text!r}: {unknown.pop()!r} must be {', '.join(numbers)}, recompute, precision, activation, graph"
            )
        if "graph" in values:
            values["graph"] = True
        if "activation" in values:
            values["activation"] = float(values["activation"])
        values |= {name: int(values[name]) for name in numbers if name in values}
        return cls(name, int(rows), int(seq), **values)


@dataclass(frozen=True)
class Timing:
    """What came of a case. `failed` says why there are no numbers."""

    case: Case
    parameters: int
    active_parameters: int
    d_model: int
    n_layers: int
    processes: int = 1
    step_ms: float | None = None  # the median
    spread_ms: float | None = None  # from the first quartile to the third
    tokens_per_second: float | None = None
    mfu: float | None = None  # of the data sheet's peak of all processes' devices; what is recomputed doesn't count
    peak_gib: float | None = None
    loss: float | None = None
    failed: str | None = None


def shape_of(case: Case, device: torch.device) -> ModelConfig:
    """The named shape, or the widest Jamba block that leaves one device room for its share of a pass's activations (and
    all of the weights, so that one process and several train the same model).
    """
    if case.model != "fill":
        return SHAPES[case.model]
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 2**33
    tokens = case.batch * case.seq // case.accumulate // world()
    found = None
    for width in range(256, 8192, 256):
        config = jamba_shape(width)
        if training_bytes(config, tokens, case.precision, recomputes=case.recompute != "none") < 0.94 * total:
            found = config
    if found is None:
        raise ValueError(f"{total / 2**30:.1f} GiB are too few for any Jamba shape at {tokens} tokens a pass")
    return found


def jamba_shape(d_model: int) -> ModelConfig:
    """Eight layers in the proportions of Jamba-1.5-Mini: d_ff = 3.5 d_model, 16 experts, two at work, heads of 128."""
    heads = d_model // 128
    return ModelConfig(
        vocab_size=65_536, d_model=d_model, d_ff=7 * d_model // 2, n_layers=8, n_heads=heads,
        n_kv_heads=heads // 4 if heads % 4 == 0 else 1, n_experts=16, max_context=8192,
    )  # fmt: skip


def training_bytes(config: ModelConfig, tokens: int, precision: str, *, recomputes: bool) -> float:
    """What a step holds at its fullest, roughly: parameters and what belongs to them, and the activations that the
    backward pass needs (bf16). Per token and Mamba layer those are 10 (with recomputation 4) times d_inner, of the
    experts top_k (2 d_model + 2 d_ff), of an MLP 4 d_ff, and 4 d_model of the residual stream.
    """
    mamba = (4 if recomputes else 10) * config.d_inner * config.n_mamba_layers
    experts = config.top_k * 2 * (config.d_model + config.d_ff) * config.n_moe_layers
    mlp = 4 * config.d_ff * (config.n_layers - config.n_moe_layers)
    stream = 4 * config.d_model * config.n_layers
    head = 8 * config.vocab_size * config.d_model + 2**31
    return (
        BYTES_PER_PARAMETER[precision] * count_parameters(config) + 2 * tokens * (mamba + experts + mlp + stream) + head
    )


def time_case(case: Case, device: torch.device, *, warmup: int = 3, steps: int = 8, profile: bool = False) -> Timing:
    """Times `steps` steps after `warmup`. A case that doesn't run says why in `failed`."""
    settings: dict[str, Any] = {"precision": case.precision, "recompute": case.recompute, "rescan": case.rescan}
    parallel = ParallelConfig(dp_shard=0, **{name: getattr(case, name) for name in AXES})
    config = TrainConfig(
        name=case.model,
        model=shape_of(case, device),
        parallel=parallel,
        optim=OptimConfig(lr=1e-4, warmup_steps=1),
        losses=LossConfig(activation=case.activation),
        cuda_graph=case.graph,
        seq=case.seq,
        batch=case.batch,
        accumulate=case.accumulate,
        **settings,
    )
    counted = account(config.model, context=case.seq)
    shape: dict[str, Any] = {
        "case": case, "parameters": counted.total_params, "active_parameters": counted.active_params,
        "d_model": config.model.d_model, "n_layers": config.model.n_layers,
    }  # fmt: skip
    try:
        with joined(config, device) as mesh:
            found: dict[str, Any] = _measured(config, device, mesh, warmup, steps, profile)
        return Timing(**shape, processes=world(), **found)
    except (RuntimeError, ValueError) as error:  # out of memory among them
        return Timing(**shape, failed=f"{type(error).__name__}: {str(error).splitlines()[0]}")
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def world() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _measured(
    config: TrainConfig, device: torch.device, mesh: Mesh | None, warmup: int, steps: int, profile: bool
) -> dict[str, float]:
    model, optimizer, plan = _ready(config, device, mesh)
    batches = _batches(config, plan)
    graphs = None
    if config.cuda_graph:
        graphs = Graphs(lambda cuts, most: whole_step(cuts, most, model, optimizer, config, device, plan))

    def step() -> dict[str, float]:
        return train_step(model, optimizer, next(batches), config, device, plan, graphs=graphs)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(warmup):
        record = step()
    seconds = []
    for _ in range(steps):
        _wait(device)
        began = time.perf_counter()
        record = step()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    if profile:
        _profile(step, device)
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if steps > 1 else (median,) * 3
    found = {
        "step_ms": 1e3 * median,
        "spread_ms": 1e3 * (high - low),
        "tokens_per_second": config.tokens_per_step / median,
        "loss": record["loss"],
    }
    if (peak := peak_flops(device)) is not None:
        found["mfu"] = found["tokens_per_second"] * training_flops(config.model, config.seq) / (peak * world())
    if device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


def _ready(
    config: TrainConfig, device: torch.device, mesh: Mesh | None = None
) -> tuple[LanguageModel, AnyOptimizer, Plan]:
    """The model is made and drawn on the device: drawing billions of numbers on the host would outlast the timing."""
    with device:
        model = LanguageModel(config.model)
    if config.precision == "bfloat16_weights":
        model.to_dtype(torch.bfloat16)
    torch.manual_seed(config.seed)  # every process draws the same
    _draw(model, config)
    model = recompute(model.train(), config.recompute, rescan=config.rescan)
    plan = Plan(table=placements(config.model))
    if mesh is not None:
        plan = parallelize(model, mesh, dtype=torch.bfloat16 if config.precision == "bfloat16" else None)
        gc.collect()
    return model, make_optimizer(model, config.optim, plan), plan


@torch.no_grad()
def _draw(model: LanguageModel, config: TrainConfig) -> None:
    """As `init_weights` does, but with the device's own random numbers and one size for all matrices."""
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf == "A_log":
            parameter.copy_(torch.arange(1, parameter.shape[1] + 1, device=parameter.device).log().expand_as(parameter))
        elif leaf == "dt_bias":
            parameter.uniform_(-6.9, -2.3)
        elif leaf == "D" or (parameter.dim() == 1 and leaf == "weight"):
            parameter.fill_(1.0)
        elif leaf == "bias":
            parameter.zero_()
        else:
            parameter.normal_(std=config.model.init_std)


def _batches(config: TrainConfig, plan: Plan) -> Iterator[Batch]:
    """This process's rows of random tokens without end, each one document, the next token as label."""
    generator = np.random.default_rng(0)
    rank, ranks = plan.loader_place
    while True:
        ids = generator.integers(0, config.model.vocab_size, (config.batch, config.seq + 1))[rank::ranks]
        yield Batch(ids[:, :-1], ids[:, 1:], tuple(np.array([config.seq]) for _ in range(len(ids))))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _profile(step: Callable[[], dict[str, float]], device: torch.device) -> None:
    """Prints which kernels a step's time goes to, and warns of every place where the host waits for the device."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    with torch.profiler.profile() as profiler:
        step()
        _wait(device)
    by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=45, max_name_column_width=70))


def as_row(timing: Timing) -> dict[str, Any]:
    """For JSON: flat, without what is unknown."""
    values = asdict(timing)
    return {k: v for k, v in {**values.pop("case"), **values}.items() if v is not None}
