"""LanguageModel: what it refuses, what it reports, which logits it keeps, and how far narrow dtypes are from fp32."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plait.config import ModelConfig
from plait.model.init import init_weights
from plait.model.layout import Layout, Segment
from plait.model.network import LanguageModel
from plait.model.state import State
from plait.model.stats import Activation
from plait.quant import quantize

CONFIG = ModelConfig(
    vocab_size=40, d_model=32, d_ff=48, n_layers=4, n_heads=4, n_kv_heads=2, attn_period=4, attn_offset=2, n_experts=3,
    dtype="float32", init_std=0.2,
)  # fmt: skip
MAMBA2 = replace(CONFIG, mamba_kind="mamba2", d_ssm_head=8)
TOKENS = torch.randint(0, 40, (2, 17), generator=torch.Generator().manual_seed(0))


def _model(config: ModelConfig = CONFIG) -> LanguageModel:
    return init_weights(LanguageModel(config), seed=0).eval()


def _state(model: LanguageModel, n_slots: int = 2) -> State:
    return State.empty(model.config, n_slots=n_slots, n_pages=8, page_size=8, dtype=model.dtype)


PREFILL = Layout.of(
    [Segment(row * 17, 17, slot=row, pages=(3 * row, 3 * row + 1, 3 * row + 2)) for row in (0, 1)], 2, 17
)


@pytest.mark.parametrize(
    ("token_ids", "complaint"),
    [
        (torch.tensor([[0, 40]]), "token ids run from 0 to 40; they must be between 0 and 39"),
        (torch.tensor([[-100, 3]]), "token ids run from -100 to 3"),
        (torch.tensor([1, 2]), r"token_ids has shape \(2,\); it must be \[batch, seq\]"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"token_ids has shape \(1, 2, 3\)"),
        (torch.zeros(0, 3, dtype=torch.long), r"token_ids has shape \(0, 3\).* at least one token"),
        (torch.zeros(3, 0, dtype=torch.long), r"token_ids has shape \(3, 0\)"),
        (torch.zeros(1, 2), "token_ids has dtype torch.float32; it must be int64 or int32"),
        (torch.zeros(1, 2, dtype=torch.bool), "token_ids has dtype torch.bool"),
        (torch.zeros(1, 2, dtype=torch.uint8), "token_ids has dtype torch.uint8"),
    ],
)
def test_bad_token_ids(token_ids: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        _model()(token_ids)


def test_int32_token_ids_and_a_layout_of_another_batch() -> None:
    model = _model()
    assert torch.equal(model(TOKENS.int()).logits, model(TOKENS).logits)
    with pytest.raises(ValueError, match=r"the layout is of batch=2, seq=17; given \(1, 17\)"):
        model(TOKENS[:1], PREFILL)


def test_keep_chooses_among_the_same_logits() -> None:
    model = _model()
    layout = Layout.of([Segment(20, 3), Segment(2, 5), Segment(30, 1, "decode", 1, 4, (0,))], 2, 17)
    whole = model(TOKENS, layout).logits
    last = model(TOKENS, layout, keep="last").logits
    assert whole.shape == (2, 17, 40)
    at_ends = whole.flatten(0, 1)[[30, 6, 22]]  # the layout's order: decode first, then by start
    torch.testing.assert_close(last, at_ends, atol=1e-5, rtol=0)
    none = model(TOKENS, layout, keep="none")
    assert none.logits.shape == (0, 40)
    torch.testing.assert_close(none.hidden[layout.last_tokens] @ model.head_weight.T, last)
    with pytest.raises(ValueError, match="keep='first' must be 'all', 'last' or 'none'"):
        model(TOKENS, keep="first")


@pytest.mark.parametrize("config", [CONFIG, MAMBA2, replace(CONFIG, tie_embeddings=True)])
def test_observing_changes_nothing_and_reports_what_flowed(config: ModelConfig) -> None:
    model = _model(config)
    seen: dict[tuple[int, str], Tensor] = {}
    for i, layer in enumerate(model.layers):
        layer.mixer.register_forward_hook(lambda _m, _a, out, i=i: seen.update({(i, "mixer"): out}))
    plain, out = model(TOKENS), model(TOKENS, observe=True)
    assert plain.stats == ()
    assert torch.equal(plain.logits, out.logits)
    assert len(out.stats) == config.n_layers
    for i, (stats, kind) in enumerate(zip(out.stats, config.layer_kinds(), strict=True)):
        mixed = seen[i, "mixer"]
        torch.testing.assert_close(stats.mixer.max_abs, mixed.abs().max())
        torch.testing.assert_close(stats.mixer.mean_square, mixed.square().mean())
        assert (stats.router_logits is None) == (stats.experts is None) == (kind.ffn == "mlp")
        if stats.router_logits is not None:
            assert stats.router_logits.shape == (TOKENS.numel(), 3)
            assert stats.router_logits.requires_grad
        assert not stats.ffn.max_abs.requires_grad
        assert not stats.ffn.mean_square.requires_grad
        assert stats.mixer.mean_square.requires_grad == (kind.mixer != "attention")
        if stats.experts is not None:
            assert stats.experts.mean_square.requires_grad
    watched = model(TOKENS, observe="watch").stats
    for seen_stats, stats in zip(watched, out.stats, strict=True):
        sizes = [(seen_stats.mixer, stats.mixer), (seen_stats.experts, stats.experts)]
        for size, expected in sizes:
            if size is not None and expected is not None:
                assert not size.mean_square.requires_grad
                assert torch.equal(size.mean_square, expected.mean_square)


def test_expert_maxima_are_of_unweighted_outputs_of_chosen_experts() -> None:
    model = _model()
    moe = model.layers[1].ffn
    inputs: list[Tensor] = []
    moe_input = moe.router.register_forward_hook(lambda _m, given, _out: inputs.append(given[0].detach()))
    stats = model(TOKENS, observe=True).stats[1]
    moe_input.remove()
    x, outputs = inputs[0], []
    chosen = stats.router_logits.topk(CONFIG.top_k, dim=-1).indices
    for token, experts in zip(x, chosen.tolist(), strict=True):
        for e in experts:
            gate, up = (moe.gate_up[e] @ token).chunk(2)
            outputs.append(moe.down[e] @ (torch.nn.functional.silu(gate) * up))
    stacked = torch.stack(outputs)
    torch.testing.assert_close(stats.experts.max_abs, stacked.abs().max(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(stats.experts.mean_square, stacked.square().mean(), atol=1e-6, rtol=1e-5)


def test_activations_of_narrow_tensors_are_measured_in_fp32() -> None:
    big = torch.full((4, 4), 300.0, dtype=torch.float16)  # its square is past 65504
    assert float(Activation.of(big).mean_square) == 90_000
    assert Activation.of(big).max_abs.dtype == torch.float32


@pytest.mark.parametrize("config", [CONFIG, MAMBA2])
def test_a_call_with_a_state_never_records_gradients(config: ModelConfig) -> None:
    model = _model(config)
    assert model(TOKENS).logits.requires_grad
    state = _state(model)
    out = model(TOKENS, PREFILL, state, observe=True)
    assert not out.logits.requires_grad
    assert not out.hidden.requires_grad
    assert not out.stats[1].router_logits.requires_grad
    assert not any(pool.requires_grad for pool in (state.conv, state.ssm, state.k, state.v))
    decode = Layout.of([Segment(r, 1, "decode", r, 17, (3 * r, 3 * r + 1, 3 * r + 2)) for r in (0, 1)], 2, 1)
    assert not model(TOKENS[:, :1], decode, state).logits.requires_grad
    assert torch.is_grad_enabled()


def test_to_dtype_keeps_the_recurrence_wide_and_int8_as_it_is() -> None:
    model = quantize(_model())
    assert model.to_dtype(torch.bfloat16) is model
    assert model.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        wanted = torch.bfloat16
        if name.endswith(("A_log", "D", "dt_bias", "_scale")):
            wanted = torch.float32
        elif name.endswith((".gate_up", ".down")):
            wanted = torch.int8
        assert tensor.dtype == wanted, name
    wide = _model().to_dtype(torch.float64)
    assert {p.dtype for p in wide.parameters()} == {torch.float64}


# Largest difference from fp32 of 1360 logits, in standard deviations of the logits. bf16 keeps 8 bits and fp16 11: one
# cast rounds by up to 2^-9 (2^-12), there are about 30 of them on the way, and the largest of many is some four
# deviations out. Seen: 0.07 and 0.007.
NARROW = {torch.bfloat16: 0.15, torch.float16: 0.02}


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("config", [CONFIG, MAMBA2], ids=["mamba", "mamba2"])
def test_narrow_models_are_close_to_fp32(config: ModelConfig, dtype: torch.dtype) -> None:
    narrow = _model(config).to_dtype(dtype)
    wide = _model(config).to_dtype(dtype).to_dtype(torch.float32)  # the same, rounded, weights
    with torch.no_grad():
        wanted = wide(TOKENS).logits
        trained, served = narrow(TOKENS).logits, narrow(TOKENS, PREFILL, _state(narrow)).logits
    assert trained.dtype == served.dtype == dtype
    for got in (trained, served):
        error = float((got.float() - wanted).abs().max() / wanted.std())
        assert 0 < error < NARROW[dtype], error


def test_tied_embeddings_share_one_parameter() -> None:
    model = _model(replace(CONFIG, tie_embeddings=True))
    assert model.head is None
    assert model.head_weight is model.embed.weight
    assert not any("head" in name for name, _ in model.named_parameters())
    before = model(TOKENS).logits
    with torch.no_grad():
        model.embed.weight.mul_(2)
    assert not torch.equal(model(TOKENS).logits, before)
