"""An engine with its model from options: load, quantize, size the pools, put the parts together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from plait import quant
from plait.accounting import Dtype
from plait.model.checkpoint import read_config
from plait.model.linear import route_fp32_products
from plait.model.network import LanguageModel
from plait.model.state import PAGE_SIZE
from plait.model.warm_up import get_ready
from plait.serve.drafts import Worth
from plait.serve.engine import Engine
from plait.serve.few import MOST_TOKENS
from plait.serve.fit import Fitted, fit_pools
from plait.serve.options import EngineOptions
from plait.serve.prompts import Prompts
from plait.serve.runner import Runner
from plait.serve.scheduler import Limits

if TYPE_CHECKING:
    from plait.parallel.collectives import Group
    from plait.serve.workers import SharedExecutor

CPU_SHARE = 0.25
"""Of a computer's memory, what the cache may take. It is taken as it is used, not at the start."""

GPU_SHARE = 0.85
"""Of a GPU's memory that is free behind the weights; the rest is for activations."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class Loaded:
    """What one process has of a model that is served."""

    model: LanguageModel
    runner: Runner
    prompts: Prompts
    fitted: Fitted


@dataclass(frozen=True)
class Built:
    engine: Engine
    executor: Runner | SharedExecutor
    model: LanguageModel
    prompts: Prompts
    kernels: str  # which implementations run, in a line
    max_context: int


def find_model(name: str | Path) -> Path:
    """The folder of a model: the one given, or that of `demo`, the model that ships. Raises ValueError if there is
    none.
    """
    folder = Path(__file__).parents[1] / "demo" if str(name) == "demo" else Path(name)
    if not (folder / "config.json").exists():
        raise ValueError(f"{name} is no model: it must be a folder with a config.json, or 'demo'")
    return folder


def build(options: EngineOptions, *, on_failure: Callable[[str], object] | None = None) -> Built:
    """The whole engine. Raises ValueError for what doesn't fit the model or this machine.

    With tensor_parallel this process becomes rank 0 and starts the others; `on_failure` is then told, in a thread, why
    one of them is gone, and must end this process, which may be waiting for it in a collective.
    """
    if options.tensor_parallel == 1:
        loaded = build_runner(options)
        return engine_of(loaded, loaded.runner, options)
    if on_failure is None:
        raise ValueError("tensor_parallel needs an engine in a process of its own: use LLM or AsyncLLM")
    from plait.serve.workers import SharedExecutor, start_workers  # what they need is an extra

    check_split(options)
    group, channels = start_workers(options, on_failure)
    loaded = build_runner(options, group)
    return engine_of(loaded, SharedExecutor(loaded.runner, channels), options)


def engine_of(loaded: Loaded, executor: Runner | SharedExecutor, options: EngineOptions) -> Built:
    """An engine over what is loaded already."""
    fitted = loaded.fitted
    engine = Engine(
        executor,
        fitted.sizes,
        page_size=PAGE_SIZE,
        limits=Limits(
            options.max_batched_tokens,
            options.max_running,
            options.n_drafts,
            few_tokens=MOST_TOKENS if loaded.runner.device.type == "cpu" else 0,
        ),
        page_bytes=fitted.page_bytes,
        state_bytes=fitted.state_bytes,
        ladder=options.ladder,
        overlap=loaded.runner.device.type == "cuda",
        worth=Worth() if options.n_drafts else None,
    )
    return Built(engine, executor, loaded.model, loaded.prompts, loaded.model.kernels(), fitted.max_context)


def check_split(options: EngineOptions) -> None:
    """ValueError, before any process is started, for a model or machine that can't be shared by so many."""
    from plait.parallel.mesh import check_tensor_split

    if options.device.startswith("cuda") and torch.cuda.device_count() < options.tensor_parallel:
        raise ValueError(f"tensor_parallel={options.tensor_parallel}: torch sees {torch.cuda.device_count()} GPUs here")
    config, n = read_config(find_model(options.model)), options.tensor_parallel
    check_tensor_split(config, n, experts=not options.expert_parallel)
    if options.expert_parallel and (config.n_experts % n or not config.n_moe_layers):
        raise ValueError(f"expert_parallel: tensor_parallel={n} must divide n_experts={config.n_experts}")


def build_runner(options: EngineOptions, group: Group | None = None) -> Loaded:
    """The model on its device, and pools for it; with a group, this process's share of both. Raises ValueError for
    what doesn't fit.
    """
    folder, device = find_model(options.model), _device(options.device)
    if device.type == "cpu":
        route_fp32_products()
    else:
        get_ready()
    dtype = None if options.dtype is None else _dtype("dtype", options.dtype)
    if group is None:
        progress = None if options.quantize is None else quant.say_progress
        model = quant.load(folder, device=device, dtype=dtype, quantize=options.quantize, progress=progress)
    else:
        model = _load_share(
            folder, torch.device("cuda", group.rank()) if device.type == "cuda" else device, options, group
        )
    prompts = Prompts.of_folder(folder, model.config)
    return with_pools(model, prompts, options, group)


def _load_share(folder: Path, device: torch.device, options: EngineOptions, group: Group) -> LanguageModel:
    """What this process of a group holds of a model, cut out of each part as it is read: a whole model is nowhere."""
    from plait.parallel.expert import deal_experts
    from plait.parallel.tensor import slice_part, tensor_parallel  # bring torch's compiler: seconds

    dtype = None if options.dtype is None else _dtype("dtype", options.dtype)
    dealt, place = options.expert_parallel, (group.rank(), group.size())
    share = partial(slice_part, config=read_config(folder), place=place, whole_experts=dealt)
    model = quant.load(folder, device=device, dtype=dtype, quantize=options.quantize, share=share)
    model = tensor_parallel(model, group, experts=not dealt, is_sliced=True)
    return deal_experts(model, group) if dealt else model


def with_pools(model: LanguageModel, prompts: Prompts, options: EngineOptions, group: Group | None = None) -> Loaded:
    """A runner for a model that lies on its device, with pools of what memory is left there; in a group, where it is
    least, because all carry out the same plans.
    """
    device = model.final_norm.weight.device
    free_bytes, split = _free_bytes(device), 1
    if group is not None:
        from plait.parallel.collectives import gathered

        free_bytes, split = int(gathered(torch.tensor([free_bytes], device=device), group).min()), group.size()
    kv_dtype = model.dtype if options.kv_dtype is None else _dtype("kv_dtype", options.kv_dtype)
    fitted = fit_pools(
        model.config,
        options,
        page_size=PAGE_SIZE,
        dtype=_name(model.dtype),
        kv_dtype=_name(kv_dtype),
        free_bytes=free_bytes * split,
        all_bytes=None if device.type == "cuda" else _memory_bytes(),
        split=split,
    )
    prompts.max_context, sizes = fitted.max_context, fitted.sizes
    runner = Runner(
        model,
        n_slots=sizes.slots,
        n_pages=sizes.pages,
        max_context=fitted.max_context,
        max_running=options.max_running,
        split=split,
        kv_dtype=None if options.kv_dtype is None else kv_dtype,
        host_states=sizes.host_slots,
        host_pages=sizes.host_pages,
        disk=None if options.disk is None else Path(options.disk),
        int8_states=options.host_state_dtype == "int8",
        n_drafts=options.n_drafts,
        tokenizer=prompts.tokenizer,
        static=False if split > 1 and device.type == "cpu" else None,  # a tape holds no collectives
    )
    if device.type == "cuda":
        runner.warm_up(options.max_batched_tokens)
    elif runner.graphs is not None:
        runner.graphs.try_one()
    return Loaded(model, runner, prompts, fitted)


def _dtype(option: str, name: str) -> torch.dtype:
    allowed = [known for known in DTYPES if option == "kv_dtype" or known != "int8"]
    if name not in allowed:
        raise ValueError(f"{option}={name!r} must be one of {', '.join(allowed)}")
    return DTYPES[name]


def _name(dtype: torch.dtype) -> Dtype:
    return cast(Dtype, next(name for name, known in DTYPES.items() if known == dtype))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(CPU_SHARE * _memory_bytes())


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} must be cpu, cuda, or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r} must be cpu, cuda, or cuda:N")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise ValueError(f"device={name!r}: torch sees {n_gpus} CUDA devices here; use device=cpu")
    return device
