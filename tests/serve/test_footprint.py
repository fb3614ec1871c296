"""What `accounting.footprint` says an engine allocates is what it allocates: every storage and a chunk's peak."""

import gc
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from plait.accounting import Level, footprint, parameters, scale_bytes
from plait.bench.dummy import dummy_model
from plait.config import ModelConfig, presets
from plait.model import LanguageModel, init_weights
from plait.serve.build import engine_of, with_pools
from plait.serve.options import EngineOptions
from plait.serve.plan import Row, Start, StepPlan
from plait.serve.prompts import Prompts
from plait.serve.request import Request
from plait.serve.runner import Runner
from plait.text import SamplingParams

SHAPES = {
    "mamba is widest": {"d_model": 128, "d_ff": 128, "n_kv_heads": 2, "n_experts": 8, "top_k": 2},
    "mlp is widest": {"d_model": 64, "d_ff": 256, "n_kv_heads": 1, "n_experts": 4, "top_k": 1},
}


def peak_of(runner: Runner, sequence: int, n_tokens: int, page_size: int) -> int:
    """Bytes that a prefill chunk has allocated at its worst moment, on a CPU, as torch's allocator tells."""
    start = Start(sequence, tuple(range(n_tokens)), SamplingParams(temperature=0), frozenset(), 0, None)
    row = Row(sequence, "fresh", n_tokens, 0, 0, list(range(-(-n_tokens // page_size))), list(start.prompt), True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        runner.launch(StepPlan(1, [row], started=[start]))
        runner.collect()
    live = peak = 0
    assert profile.profiler is not None
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize("shape", SHAPES)
def test_the_account_is_within_5_percent_of_what_is_allocated(shape: str) -> None:
    config = ModelConfig(**SHAPES[shape], n_layers=8, n_heads=4, vocab_size=1024, dtype="float32")  # type: ignore[arg-type]
    model = init_weights(LanguageModel(config), seed=0).eval()
    slots, pages, n_tokens, max_context = 5, 100, 512, 2048
    runner = Runner(model, n_slots=slots, n_pages=pages, max_context=max_context, static=False)
    peak_of(runner, 0, n_tokens, 16)  # makes what is made once
    activations = peak_of(runner, 1, n_tokens, 16)
    state = runner.state
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.state_dict().values()}
    said = footprint(
        config, slots=slots, pages=pages, max_context=max_context, max_batched_tokens=n_tokens, dtype="float32"
    )
    assert said.weights == sum(storages.values())
    assert said.states == state.conv.nbytes + state.ssm.nbytes
    assert said.pages == state.k.nbytes + state.v.nbytes
    assert said.tables == runner._tables.host.nbytes + runner._last.nbytes
    assert said.activations == pytest.approx(activations, rel=0.1)
    fixed = sum(storages.values()) + sum(pool.nbytes for pool in (state.conv, state.ssm, state.k, state.v))
    measured = fixed + runner._tables.host.nbytes + runner._last.nbytes + activations
    assert activations > 0.05 * measured  # else the last of the parts wouldn't count
    assert said.total == pytest.approx(measured, rel=0.05)


MINI_8 = replace(presets["jamba-1.5-mini"], n_layers=8)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("quantize", "level", "chunk"), [("experts_int8", "int8_experts_mlp", 8192), (None, "bf16", 2048)]
)
def test_the_account_is_within_5_percent_on_a_gpu(quantize: str | None, level: Level, chunk: int) -> None:
    """An engine with eight layers of Mini, from its weights to the end of 16 answers at once."""
    found = measured_on_a_gpu(MINI_8, quantize, chunk)
    sizes = found.pop("sizes")
    said = footprint(MINI_8, **sizes, level=level)
    print({k: f"{v / 2**30:.3f} GiB" for k, v in (asdict(said) | {"total": said.total} | found).items()})
    assert said.weights == pytest.approx(found["weights_seen"], rel=0.01)
    beside = found["pools_seen"] - said.states - said.pages - said.tables
    assert 0 < beside < 2**28  # graphs and the libraries' workspaces: 0.16 GiB on an H100
    assert said.total == pytest.approx(found["allocated"], rel=0.05)
    assert said.total == pytest.approx(found["reserved"], rel=0.1)  # graphs, and what the allocator can't use


def measured_on_a_gpu(config: ModelConfig, quantize: str | None, chunk: int) -> dict[str, Any]:
    """Bytes beyond what was there, and the sizes they belong to."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = dummy_model(config, "cuda", torch.bfloat16, quantize=quantize)
    torch.cuda.empty_cache()  # what making them took is no part of serving
    torch.cuda.reset_peak_memory_stats()
    weights = torch.cuda.memory_allocated() - before
    options = EngineOptions(
        "mini", device="cuda", max_context=32_768, cache_tokens=131_072, cached_states=8, max_batched_tokens=chunk
    )
    loaded = with_pools(model, Prompts(config, None, None), options)
    pools = torch.cuda.memory_allocated() - before - weights
    engine = engine_of(loaded, loaded.runner, options).engine
    for nth in range(16):
        prompt = (nth + 1, *range(1, 4096))
        engine.add(Request(prompt, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)))
    while not engine.is_idle:
        engine.step()
    sizes = {"slots": loaded.fitted.sizes.slots, "pages": loaded.fitted.sizes.pages, "max_context": 32_768}
    return {
        "weights_seen": weights, "pools_seen": pools, "allocated": torch.cuda.max_memory_allocated() - before,
        "reserved": torch.cuda.max_memory_reserved() - before, "sizes": sizes | {"max_batched_tokens": chunk},
    }  # fmt: skip


def test_int8_pages_and_weights() -> None:
    config = ModelConfig(d_model=64, d_ff=128, n_layers=8, n_heads=4, n_kv_heads=2, n_experts=4, vocab_size=512)
    sizes = {"slots": 1, "pages": 9, "max_context": 100, "max_batched_tokens": 8}
    plain = footprint(config, **sizes)  # type: ignore[arg-type]
    small = footprint(config, **sizes, kv_dtype="int8", level="int8_experts_mlp")  # type: ignore[arg-type]
    assert small.pages == plain.pages // 2 + 10 * 2 * config.n_attention_layers * 16 * 2 * 4
    assert plain.weights - small.weights == parameters(config).experts + parameters(config).mlp - scale_bytes(
        config, "int8_experts_mlp"
    )
    with pytest.raises(ValueError, match="slots=0"):
        footprint(config, **{**sizes, "slots": 0})  # type: ignore[arg-type]
