"""From folder to folder: the same bits as in memory, never more than a layer in full precision, whole or not at all."""

import gc
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import plait
from plait.config import ModelConfig
from plait.model import fill, weight_writer
from plait.model.checkpoint import load_model, read_config, save_model
from plait.model.init import init_weights
from plait.model.network import LanguageModel
from plait.model.quantization_config import level_of, matrices, model_format
from plait.quant import Scheme, load, parts, quantize
from plait.quant.checkpoint import REPORT, quantize_checkpoint
from plait.quant.rows import dequantize_rows

SCHEMES = [
    Scheme(),
    Scheme(level="experts"),
    Scheme(level="experts+mlp+mixers", head=True),
    Scheme(group=16, clip=True),
    Scheme("fp8"),
    Scheme("gptq"),
    Scheme("gptq", bits=4, group=16),
    Scheme("bf16"),
]


def stored(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_same_bits_by_every_way(scheme: Scheme, folder: Path, token_ids: Tensor, tmp_path: Path) -> None:
    """In memory then saved; layer by layer to files, in several of them; while it is loaded."""
    model = quantize(load_model(folder), scheme, calibration=token_ids)
    save_model(model, tmp_path / "memory")
    report = quantize_checkpoint(folder, tmp_path / "files", scheme, calibration=token_ids, shard_bytes=20_000)
    assert len(list((tmp_path / "files").glob("*.safetensors"))) > 1
    assert same(stored(tmp_path / "memory"), stored(tmp_path / "files"))
    assert report.bytes_after == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    done: list[tuple[int, int]] = []
    loaded = load(folder, quantize=scheme, calibration=token_ids, progress=lambda *n: done.append(n))
    assert done == [(i, 7) for i in range(1, 8)]
    again = load_model(tmp_path / "files")
    assert again.dtype == (torch.bfloat16 if scheme.method == "bf16" else torch.float32)
    expected = model(token_ids).logits
    assert torch.equal(loaded(token_ids).logits, expected)
    assert torch.equal(again(token_ids).logits, expected)
    assert level_of(again) == level_of(model)
    assert model_format(again) == (None if scheme.method == "bf16" else scheme.form)


def test_packed_into_words_it_loads_as_the_same_int8(folder: Path, token_ids: Tensor, tmp_path: Path) -> None:
    quantize_checkpoint(folder, tmp_path / "plain", Scheme())
    quantize_checkpoint(folder, tmp_path / "packed", Scheme(), packed=True)
    name = "model.layers.1.feed_forward.experts.3.up_proj.weight"
    tensors = stored(tmp_path / "packed")
    assert tensors[f"{name}_packed"].dtype == torch.int32
    assert tensors[f"{name}_shape"].tolist() == [48, 32]
    assert name not in tensors
    a, b = (load_model(tmp_path / kind) for kind in ("plain", "packed"))
    assert same(dict(a.state_dict()), dict(b.state_dict()))
    quantization = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert (quantization["format"], quantization["quant_method"]) == ("pack-quantized", "compressed-tensors")


def test_the_report_says_what_was_lost_and_where(model: LanguageModel, token_ids: Tensor, tmp_path: Path) -> None:
    model.layers[3].ffn.down.data[2, 5] = 0
    model.layers[3].ffn.down.data[2, 5, 0] = 100  # one weight far above its row
    model.layers[3].ffn.down.data[2, 5, 1] = 0.3  # which int8 then rounds to 0
    save_model(model, tmp_path / "full")
    report = quantize_checkpoint(tmp_path / "full", tmp_path / "int8", Scheme("fp8"), text=token_ids)
    assert report.quality is not None
    assert 0 < report.quality.kl_mean < 0.1
    by_name = {m.name: m for m in report.matrices}
    assert len(by_name) == 8
    assert by_name["layers.0.ffn.down"].relative_error == pytest.approx(0.026, abs=0.003)
    report = quantize_checkpoint(tmp_path / "full", tmp_path / "int8", Scheme(level="experts"))
    down = {m.name: m for m in report.matrices}["layers.3.ffn.down"]
    assert down.shape == (4, 32, 48)
    row_errors = dict(down.worst_rows)
    expected = (dequantized(tmp_path / "int8", 3)[2] - model.layers[3].ffn.down[2]).norm(dim=-1)
    expected = expected / model.layers[3].ffn.down[2].norm(dim=-1)
    for row, error in row_errors.items():
        if row // 32 == 2:
            assert error == pytest.approx(expected[row % 32].item(), rel=1e-4)
    assert report.quality is None
    assert json.loads((tmp_path / "int8" / REPORT).read_text())["bytes_after"] == report.bytes_after


def dequantized(folder: Path, layer: int) -> Tensor:
    ffn = load_model(folder).layers[layer].ffn
    return dequantize_rows(ffn.down, ffn.down_scale)


MINI_SHAPED = ModelConfig(
    vocab_size=512, d_model=256, d_ff=896, n_layers=8, n_heads=4, n_kv_heads=1, n_experts=16, dtype="bfloat16"
)


def test_the_next_start_reads_at_most_55_percent(tmp_path: Path) -> None:
    """Mini's proportions, but for smaller embeddings."""
    with torch.device("meta"):
        model = LanguageModel(MINI_SHAPED)
    model.to_empty(device="cpu")
    init_weights(model.to_dtype(torch.bfloat16), seed=0)
    save_model(model, tmp_path / "full")
    quantize_checkpoint(tmp_path / "full", tmp_path / "int8", Scheme())
    sizes = [sum(os.path.getsize(p) for p in (tmp_path / k).glob("*.safetensors")) for k in ("full", "int8")]
    assert sizes[1] <= 0.55 * sizes[0]


def live_bytes(mapped: frozenset[int] | set[int] = frozenset()) -> int:
    """Of all tensors on the CPU, each storage once, but for those (by address) that lie in a file."""
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":  # no fakes of other tests
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = 0 if storage.data_ptr() in mapped else storage.nbytes()
    return sum(found.values())


def one_layer(config: ModelConfig) -> int:
    with torch.device("meta"):
        layers = LanguageModel(config).to_dtype(getattr(torch, config.dtype)).layers
    return max(sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers)


@pytest.mark.parametrize(
    ("method", "fused", "dtype"),
    [("experts_int8", False, "float32"), ("experts_int8", True, "bfloat16"), ("fp8", False, "bfloat16")],
)
def test_loading_never_needs_more_than_the_quantized_and_one_layer(
    method: str, fused: bool, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was allocated, at every step: less than the parts before, as they are then, and this one in full."""
    config = replace(MINI_SHAPED, dtype="float32", n_layers=4, attn_period=4, attn_offset=2, n_experts=8)
    save_model(init_weights(LanguageModel(config), seed=0), tmp_path / "full", fused_experts=fused)
    gc.collect()
    before, so_far, beyond, mapped = live_bytes(), [0], [], set()
    real_round, real_rows = parts.round_into, fill.round_rows

    def sampled(*args: Any, **kwargs: Any) -> Any:
        result = real_round(*args, **kwargs)
        beyond.append(live_bytes(mapped) - before - so_far[-1])
        return result

    def seen(name: str, source: Tensor, *others: Any) -> None:
        mapped.add(source.untyped_storage().data_ptr())
        real_rows(name, source, *others)
        mapped.remove(source.untyped_storage().data_ptr())

    monkeypatch.setattr(parts, "round_into", sampled)
    monkeypatch.setattr(fill, "round_rows", seen)
    monkeypatch.setattr(fill, "CHUNK_BYTES", 2**20)
    model = load(
        tmp_path / "full", dtype=getattr(torch, dtype), quantize=method,
        progress=lambda *_: so_far.append(live_bytes() - before),
    )  # fmt: skip
    layer = one_layer(replace(config, dtype=dtype))
    assert len(beyond) >= 2 * (2 * 3 + 2)
    assert 0 < max(beyond) < layer
    assert so_far[-1] == pytest.approx(sum(t.numel() * t.element_size() for t in model.state_dict().values()), rel=1e-3)


def test_from_folder_to_folder_the_peak_is_one_layer_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(MINI_SHAPED, dtype="float32", n_layers=16)
    save_model(init_weights(LanguageModel(config), seed=0), tmp_path / "full")
    gc.collect()
    before, samples = live_bytes(), []
    real: Callable[..., Any] = parts.quantize_rows

    def sampled(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        samples.append(live_bytes() - before)
        return result

    monkeypatch.setattr(parts, "quantize_rows", sampled)
    shard = 10**6
    quantize_checkpoint(tmp_path / "full", tmp_path / "int8", Scheme(), shard_bytes=shard)
    assert len(samples) == 2 * config.n_layers
    assert max(samples) <= shard + 1.35 * one_layer(config)  # the layer, and the int8 of its first matrix
    assert max(samples) < 0.5 * os.path.getsize(tmp_path / "full" / "model.safetensors")


@pytest.mark.parametrize("when", ["first file", "config"])
def test_an_interrupt_leaves_nothing(when: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plait.quant import checkpoint

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    place = (weight_writer, "save_file") if when == "first file" else (checkpoint, "write_config")
    monkeypatch.setattr(*place, interrupted)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(folder, tmp_path / "int8", Scheme())
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_model_that_ships_still_loads() -> None:
    """It was written when quantization_config said experts_int8 and nothing of compressed-tensors."""
    folder = Path(plait.__file__).parent / "demo"
    model = load_model(folder)
    assert level_of(model) == "experts+mlp"
    assert all(m.values.dtype == torch.int8 for m in matrices(model) if ".ffn.gate_up" in m.name)
    with safe_open(folder / "model.safetensors", framework="pt") as handle:
        values = handle.get_tensor("model.layers.1.feed_forward.experts.3.down_proj.weight")
    assert torch.equal(model.layers[1].ffn.down[3], values)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"quant_method": "awq"}, "is not supported; it must be absent, or an object with quant_method"),
        ({"config_groups": {}}, "must hold config_groups with one scheme"),
        ({"config_groups": {"a": {"weights": {"num_bits": 2, "type": "int", "strategy": "channel"}}}}, "not supported"),
        (
            {
                "config_groups": {
                    "a": {"weights": {"num_bits": 8, "type": "int", "strategy": "group", "group_size": "x"}}
                }
            },
            "group_size='?x'? must be an integer",
        ),
        (
            {"config_groups": {"a": {"weights": {"num_bits": 4, "type": "int", "strategy": "channel"}}}},
            "has (shape|dtype)",
        ),
    ],
)
def test_a_config_that_lies_is_refused(change: dict[str, Any], complaint: str, folder: Path, tmp_path: Path) -> None:
    quantize_checkpoint(folder, tmp_path / "int8", Scheme())
    path = tmp_path / "int8" / "config.json"
    public = json.loads(path.read_text())
    public["quantization_config"] |= change
    path.write_text(json.dumps(public))
    with pytest.raises(ValueError, match=complaint):
        load_model(tmp_path / "int8")
    assert read_config(tmp_path / "int8").n_layers == 4


@pytest.mark.parametrize(
    ("scheme", "packed"),
    [(Scheme(), False), (Scheme(), True), (Scheme(group=16), True), (Scheme("fp8"), False),
     (Scheme("gptq", bits=4, group=16), False)],
    ids=str,
)  # fmt: skip
def test_the_compressed_tensors_library_reads_the_same_weights(
    scheme: Scheme, packed: bool, folder: Path, token_ids: Tensor, tmp_path: Path
) -> None:
    """The convention's own code, where it is installed (it is no dependency of plait's)."""
    pytest.importorskip("compressed_tensors", reason="not installed: the convention's own reader is not checked")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    quantize_checkpoint(folder, tmp_path / "q", scheme, packed=packed, calibration=token_ids)
    public = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    group = QuantizationConfig.model_validate(public).config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(public["format"])
    tensors, layers = stored(tmp_path / "q"), load_model(tmp_path / "q").layers
    for prefix, ffn, rows in (
        ("model.layers.1.feed_forward.experts.3.up_proj", layers[1].ffn, slice(48, 96)),
        ("model.layers.0.feed_forward.gate_proj", layers[0].ffn, slice(0, 48)),
    ):
        ours = dequantize_rows(ffn.gate_up, ffn.gate_up_scale)
        ours = (ours[3] if ours.dim() == 3 else ours)[rows]
        own = {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}
        assert torch.equal(compressor.decompress(own, group)["weight"].float(), ours)
    assert "model.layers.1.feed_forward.router" in public["ignore"]
    assert not any("experts" in name for name in public["ignore"])


def test_bf16_scales_in_a_file_survive_a_reader_that_rounds_them(folder: Path, tmp_path: Path) -> None:
    quantize_checkpoint(folder, tmp_path / "q", Scheme(bf16_scales=True), packed=True)
    scales = {name: t for name, t in stored(tmp_path / "q").items() if name.endswith("_scale")}
    assert len(scales) == 3 * (2 + 2 * 4)
    assert all(t.dtype == torch.float32 and torch.equal(t.bfloat16().float(), t) for t in scales.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_head_is_rounded_while_it_is_read(dtype: torch.dtype, token_ids: Tensor, tmp_path: Path) -> None:
    """Also where the file repeats the embedding as a head of its own."""
    config = ModelConfig(
        vocab_size=64, d_model=32, d_ff=48, n_layers=2, n_heads=4, n_kv_heads=2, n_experts=1, top_k=1,
        attn_period=2, attn_offset=0, tie_embeddings=True, dtype="float32", init_std=0.2,
    )  # fmt: skip
    save_model(init_weights(LanguageModel(config), seed=0), tmp_path / "full")
    file = tmp_path / "full" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    scheme = Scheme(level="experts+mlp+mixers", head=True)
    loaded = load(tmp_path / "full", dtype=dtype, quantize=scheme)
    expected = quantize(load_model(tmp_path / "full", dtype=dtype), scheme)
    assert loaded.embed.weight.dtype == torch.int8
    assert same(dict(loaded.state_dict()), dict(expected.state_dict()))


def test_weights_that_are_not_finite_are_named_while_they_are_read(model: LanguageModel, tmp_path: Path) -> None:
    model.layers[1].ffn.down.data[2, 0, 0] = torch.inf
    save_model(model, tmp_path / "broken")
    with pytest.raises(ValueError, match=r"layers.1.ffn.down: .*inf or nan"):
        load(tmp_path / "broken", quantize="experts_int8")
