"""A tape repeats a decode step: the bits of the model itself, step by step, as its inputs change in place."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plait import native
from plait.config import ModelConfig
from plait.model.init import init_weights
from plait.model.layout import Layout, Segment
from plait.model.network import LanguageModel
from plait.model.quantized import set_quantized
from plait.model.state import PAGE_SIZE, State
from plait.native.tape import TapeError, record
from plait.ops.linear import linear
from plait.ops.moe import moe, swiglu

if native.why_not(torch.empty(0)) is not None:
    pytest.skip("needs a C compiler", allow_module_level=True)

CONFIG = ModelConfig(
    vocab_size=97, d_model=48, d_ff=64, n_layers=4, n_heads=4, n_kv_heads=2, attn_period=3, attn_offset=1, n_experts=3
)
PAGES = tuple(range(3))


def small_model(dtype: torch.dtype, *, quantized: bool = False, tied: bool = False) -> LanguageModel:
    model = init_weights(LanguageModel(replace(CONFIG, tie_embeddings=tied)), seed=3).to_dtype(dtype).eval()
    with torch.no_grad():
        for module in list(model.modules()) if quantized else ():
            for name in ("weight", "gate_up", "down"):
                weight = getattr(module, name, None)
                if hasattr(module, f"{name}_scale") and weight is not None:
                    scale = weight.float().abs().amax(-1) / 127
                    set_quantized(module, name, (weight.float() / scale[..., None]).round().to(torch.int8), scale)
    return model


def prefilled(model: LanguageModel) -> State:
    """Slots 0 and 1 hold 14 and 15 tokens; the pages of the second lie behind the first's."""
    state = State.empty(model.config, n_slots=2, n_pages=6, dtype=model.dtype)
    ids = torch.randint(0, CONFIG.vocab_size, (1, 29), generator=torch.Generator().manual_seed(0))
    segments = [Segment(0, 14, slot=0, pages=PAGES), Segment(14, 15, slot=1, pages=(3, 4, 5))]
    model(ids, Layout.of(segments, 1, 29), state, keep="none")
    return state


def step_layout(done: int) -> Layout:
    segments = [
        Segment(0, 1, "decode", slot=0, context_len=14 + done, pages=PAGES),
        Segment(1, 1, "decode", slot=1, context_len=15 + done, pages=(3, 4, 5)),
    ]
    return Layout.of(segments, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantized", [False, True])
@torch.no_grad()
def test_a_tape_writes_what_the_model_does(dtype: torch.dtype, quantized: bool) -> None:
    """Over a page boundary, and with the thread team awake."""
    model = small_model(dtype, quantized=quantized, tied=quantized)
    steps = torch.randint(0, CONFIG.vocab_size, (5, 1, 2), generator=torch.Generator().manual_seed(1))
    eager = prefilled(model)
    expected = [model(ids, step_layout(i), eager).logits for i, ids in enumerate(steps)]
    assert 14 + len(steps) > PAGE_SIZE

    state, ids, layout = prefilled(model), steps[0].clone(), step_layout(0)
    tape = record(lambda: model(ids, layout, state).logits)
    assert torch.equal(tape.output, expected[0])
    for i in range(1, len(steps)):
        ids.copy_(steps[i])
        layout.context_lens.add_(1)
        assert torch.equal(tape.replay(), expected[i])
    assert torch.equal(state.ssm, eager.ssm)
    assert torch.equal(state.conv, eager.conv)
    assert torch.equal(state.k[:, 0], eager.k[:, 0])  # full; what lies behind the last token was never written


@torch.no_grad()
def test_a_tape_tells_what_each_kernel_took_and_reads_alike_with_any_number_of_threads() -> None:
    """More threads than items, and threads with nothing to do, which fetch what the next kernels will read."""
    model = small_model(torch.float32, quantized=True)
    outputs = []
    for threads in (1, 2, 5):
        state, ids, layout = prefilled(model), torch.zeros(1, 2, dtype=torch.int64), step_layout(0)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            tape = record(lambda: model(ids, layout, state).logits)  # noqa: B023  (called at once)
        finally:
            torch.set_num_threads(before)
        for _ in range(5):
            tape.replay()
        timed = tape.timed()
        assert len(timed) == len(tape)
        assert all(nanoseconds >= 0 for _, _, nanoseconds in timed)
        assert sum(nanoseconds for _, _, nanoseconds in timed) > 0
        outputs.append(tape.output)
    assert all(torch.equal(output, outputs[0]) for output in outputs[1:])


@torch.no_grad()
def test_an_index_out_of_range_is_an_error_not_a_crash() -> None:
    model = small_model(torch.float32)
    state, ids, layout = prefilled(model), torch.zeros(1, 2, dtype=torch.int64), step_layout(0)
    tape = record(lambda: model(ids, layout, state).logits)
    pages = ((layout.page_table, 6, "page number"), (layout.context_lens, 48, "page number"))
    for tensor, bad, what in ((ids, 97, "token id"), (ids, -1, "token id"), (layout.slots, 2, "state slot"), *pages):
        before = tensor.clone()
        tensor.fill_(bad)
        with pytest.raises(IndexError, match=what):
            tape.replay()
        tensor.copy_(before)
    tape.replay()


@torch.no_grad()
def test_what_no_kernel_does_is_refused_by_name() -> None:
    x = torch.randn(2, 8)
    with pytest.raises(TapeError, match=r"aten::cumsum"):
        record(lambda: x.cumsum(-1))
    with pytest.raises(TapeError, match=r"aten::add\.Tensor"):
        record(lambda: x + x[:1])
    with pytest.raises(TapeError, match="_local_scalar_dense"):
        record(lambda: x[0, 0].item())


def test_what_a_kernel_reads_once_is_its_weights() -> None:
    """Who is idle fetches those ranges: inside the tensor, all of it, and none that an index chooses."""
    x, weight, scale = torch.randn(1, 8), torch.ones(32, 8, dtype=torch.int8), torch.ones(32)
    tape = record(lambda: linear(x, weight, scale=scale))
    assert [arguments.read_once() for _, arguments, _ in tape.timed()] == [[(weight.data_ptr(), weight.numel())]]
    gate_up, down = torch.randn(2 * 16, 8), torch.randn(8, 16)
    (dense,) = (arguments.read_once() for _, arguments, _ in record(lambda: swiglu(x, gate_up, down)).timed())
    assert dense == [(gate_up.data_ptr(), gate_up.nbytes // 2), (gate_up[16:].data_ptr(), gate_up.nbytes // 2)]
    ids, shares = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
    chosen = record(lambda: moe(x, shares, ids, gate_up[None], down[None])).timed()
    assert [arguments.read_once() for _, arguments, _ in chosen] == [[]]


def test_sums_casts_and_bounds_pass() -> None:
    a, b = torch.randn(3, 8), torch.randn(3, 8)

    def sum_of_checked() -> Tensor:
        low, high = a.aminmax()
        assert low <= high
        return (a + b).to(torch.bfloat16)

    tape = record(sum_of_checked)
    assert torch.equal(tape.output, (a + b).bfloat16())
    a.fill_(1e-3)
    assert torch.equal(tape.replay(), (a + b).bfloat16())
    assert len(tape) == 2


def test_recording_ends_when_it_fails() -> None:
    x = torch.randn(2, 8)
    with pytest.raises(ZeroDivisionError):
        record(lambda: 1 / 0)
    assert len(record(lambda: x + x)) == 1
