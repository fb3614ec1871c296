"""Quantized modules compute what their dequantized weights would, in every form."""

import pytest
import torch
from torch import Tensor, nn

from plait.config import ModelConfig
from plait.model.feed_forward import MLP, MoE
from plait.model.linear import Embedding, Linear
from plait.model.quantization_config import decode, encode, format_of
from plait.model.quantized import DTYPES, Kind, WeightFormat, dequantized, pack_int4, set_quantized

CONFIG = ModelConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=2, n_heads=4, n_kv_heads=2, n_experts=4, dtype="float32"
)  # fmt: skip
FORMS = [WeightFormat(), WeightFormat("fp8"), WeightFormat("int8", 16), WeightFormat("int4", 16), WeightFormat("int4")]


def random_values(shape: tuple[int, ...], form: WeightFormat, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Values and scales as nobody rounded them: the modules must take any."""
    generator = torch.Generator().manual_seed(seed)
    low, high = {"int8": (-127, 128), "int4": (-8, 8), "fp8": (-400, 401)}[form.kind]
    values = torch.randint(low, high, shape, generator=generator)
    groups = () if form.group is None else (shape[-1] // form.group,)
    scale = torch.rand(*shape[:-1], *groups, generator=generator) / (10 * high)
    if form.kind == "int4":
        return pack_int4(values.to(torch.int8)), scale
    return values.to(torch.int8) if form.kind == "int8" else values.float().to(torch.float8_e4m3fn), scale


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize("kind", [MoE, MLP])
@torch.no_grad()
def test_feed_forwards(kind: type[MoE | MLP], tokens: int, form: WeightFormat) -> None:
    quantized, full = kind(CONFIG), kind(CONFIG)
    for i, name in enumerate(("gate_up", "down")):
        values, scale = random_values(tuple(getattr(full, name).shape), form, i)
        set_quantized(quantized, name, values, scale)
        setattr(full, name, nn.Parameter(dequantized(values, scale, torch.float32)))
    if isinstance(quantized, MoE) and isinstance(full, MoE):
        nn.init.normal_(full.router.weight)
        quantized.router.load_state_dict(full.router.state_dict())
    x = torch.randn(tokens, 32, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(quantized(x), full(x), rtol=2e-5, atol=2e-6)
    if isinstance(quantized, MoE) and isinstance(full, MoE):
        torch.testing.assert_close(quantized.observed(x)[0], full(x), rtol=2e-5, atol=2e-6)
    assert quantized.is_quantized
    assert quantized.needs_dequantizing == (form.group is not None or form.kind == "int4")


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tokens", [1, 20])
@torch.no_grad()
def test_linear_and_embedding(tokens: int, form: WeightFormat) -> None:
    values, scale = random_values((40, 32), form)
    full = dequantized(values, scale, torch.float32)
    linear, embedding = Linear(32, 40), Embedding(40, 32)
    nn.init.normal_(linear.bias)
    for module in (linear, embedding):
        set_quantized(module, "weight", values, scale)
    x = torch.randn(tokens, 32, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(linear(x), x @ full.T + linear.bias, rtol=2e-5, atol=2e-6)
    ids = torch.tensor([[3, 39, 0]])
    assert torch.equal(embedding(ids), full[ids])
    assert set(linear.state_dict()) == {"weight", "weight_scale", "bias"}


def test_a_plain_module_has_no_scale_in_its_state() -> None:
    assert set(Linear(8, 8, bias=False).state_dict()) == {"weight"}
    assert set(Embedding(8, 8).state_dict()) == {"weight"}


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_files_give_back_what_they_were_given(form: WeightFormat, packed: bool) -> None:
    values, scale = random_values((6, 32), form)
    held = dict(encode("a.weight", values, packed=packed))
    in_words = form.kind == "int4" or (packed and form.kind == "int8")
    assert set(held) == ({"a.weight_packed", "a.weight_shape"} if in_words else {"a.weight"})
    if in_words:
        assert held["a.weight_shape"].tolist() == [6, 32]
    back = decode(held["a.weight_packed" if in_words else "a.weight"], values.dtype)
    assert torch.equal(back.view(torch.uint8), values.view(torch.uint8))
    assert format_of(values, scale) == form
    empty, empty_scale = form.empty(torch.Size((6, 32)))
    assert (empty.shape, empty.dtype, empty_scale.shape) == (values.shape, values.dtype, scale.shape)


def test_every_kind_has_a_dtype_of_its_own() -> None:
    kinds: set[Kind] = set(DTYPES)
    assert len({DTYPES[kind] for kind in kinds}) == 3


def test_weights_laid_out_for_a_kernel_are_not_saved() -> None:
    with pytest.raises(ValueError, match="prepared for a kernel and have no public form"):
        format_of(torch.zeros(1, 1, 4096, dtype=torch.uint8), torch.zeros(64))
    with pytest.raises(ValueError, match="has 6 columns; packing takes a multiple of 4"):
        list(encode("a", torch.zeros(2, 6, dtype=torch.int8), packed=True))


def test_experts_are_prepared_one_by_one_over_their_own_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the layout of the whole stack at once would be, in the memory that was there."""
    from plait.model import feed_forward
    from plait.ops.moe import packed

    config = ModelConfig(
        vocab_size=64, d_model=256, d_ff=128, n_layers=2, n_heads=4, n_kv_heads=2, n_experts=3, dtype="float32"
    )
    moe = feed_forward.MoE(config)
    generator = torch.Generator().manual_seed(0)
    for name, rows in (("gate_up", 256), ("down", 256)):
        shape = (3, rows, getattr(moe, name).shape[-1])
        values = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
        set_quantized(moe, name, values, torch.ones(3, rows))
    expected = packed.pack(moe.gate_up.data, gated=True), packed.pack(moe.down.data, gated=False)
    addresses = moe.gate_up.data_ptr(), moe.down.data_ptr()
    monkeypatch.setattr(feed_forward, "prepare", lambda g, d: (packed.pack(g, gated=True), packed.pack(d, gated=False)))
    moe.prepare()
    assert torch.equal(moe.gate_up, expected[0])
    assert torch.equal(moe.down, expected[1])
    assert (moe.gate_up.data_ptr(), moe.down.data_ptr()) == addresses
