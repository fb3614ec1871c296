"""What a checkpoint says of its quantized weights: the compressed-tensors convention, which other tools read too.

`quantization_config` in config.json gives one scheme for all quantized weights and the modules that have none; beside a
weight lies its `weight_scale`, [rows, 1] or [rows, groups], fp32. int8 and fp8 weights are stored as such, int4 (and
int8 on request) packed into int32 words as `weight_packed` with a `weight_shape`. Checkpoints that plait wrote before
said quant_method `experts_int8` and are read still.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plait.model.feed_forward import MLP, MoE, SwiGLU
from plait.model.linear import Embedding, Linear
from plait.model.network import LanguageModel
from plait.model.quantized import DTYPES, INT4_PER_WORD, WeightFormat

CONVENTION, OWN = "compressed-tensors", "experts_int8"
_BITS = {"int8": 8, "fp8": 8, "int4": 4}
_FORMATS = {"int8": "int-quantized", "fp8": "float-quantized", "int4": "pack-quantized"}
SAFETENSORS_DTYPES = {torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3", torch.int32: "I32"}
BYTES_PER_WORD = 4


class Matrix(NamedTuple):
    """A weight that multiplies activations."""

    name: str  # ours, of the parameter
    module: nn.Module
    parameter: str

    @property
    def values(self) -> Tensor:
        return getattr(self.module, self.parameter)

    @property
    def scale(self) -> Tensor | None:
        return getattr(self.module, f"{self.parameter}_scale")


def matrices(module: nn.Module, prefix: str = "") -> Iterator[Matrix]:
    """Every weight that can be quantized, in a model or a part of one named `prefix`; of an untied model the embedding
    too, which nobody should quantize.
    """
    for name, child in module.named_modules(prefix=prefix):
        names = ("gate_up", "down") if isinstance(child, SwiGLU) else ("weight",)
        if isinstance(child, SwiGLU | Linear | Embedding):
            yield from (Matrix(f"{name}.{parameter}", child, parameter) for parameter in names)


def format_of(values: Tensor, scale: Tensor) -> WeightFormat:
    """The format of a quantized weight. ValueError for weights in a kernel's own layout."""
    kind = next((kind for kind, dtype in DTYPES.items() if dtype == values.dtype), None)
    if kind is None:
        raise ValueError("the weights were prepared for a kernel and have no public form; save before preparing them")
    columns = values.shape[-1] * (INT4_PER_WORD if kind == "int4" else 1)
    return WeightFormat(kind, None if scale.dim() < values.dim() else columns // scale.shape[-1])


def model_format(model: LanguageModel) -> WeightFormat | None:
    """The one format of a model's quantized weights, None if it has none. ValueError for a mixture."""
    formats = {format_of(m.values, m.scale) for m in matrices(model) if m.scale is not None}
    if len(formats) > 1:
        raise ValueError(
            f"the model's weights are quantized in several ways, {sorted(map(str, formats))}; a file has one"
        )
    return next(iter(formats), None)


def level_of(model: LanguageModel) -> str | None:
    """'experts', 'experts+mlp', 'experts+mlp+mixers', or None for a model without quantized weights. ValueError for
    any other mixture.
    """

    def quantized(*kinds: type) -> list[bool]:
        owners = [m for m in model.modules() if isinstance(m, kinds)]
        return [any(matrix.scale is not None for matrix in matrices(m)) for m in owners]

    experts, mlps = quantized(MoE), quantized(MLP)
    mixers = [
        any(m.scale is not None for m in matrices(getattr(layer, "mixer")))  # noqa: B009 (nn.Module to mypy)
        for layer in model.layers
    ]
    if not any(experts + mlps + mixers):
        return None
    found = [experts, mlps, mixers]
    if all(len(set(part)) <= 1 for part in found):
        has = [all(part) if part else None for part in found]
        for level, wanted in (
            ("experts+mlp+mixers", (True, True, True)),
            ("experts+mlp", (True, True, False)),
            ("experts", (True, False, False)),
        ):
            if all(h is None or h == w for h, w in zip(has, wanted, strict=True)):
                return level
    raise ValueError("only some experts, MLPs or mixers are quantized; quantize all of a kind")


def to_public(
    form: WeightFormat, ignored: Sequence[str], *, packed: bool, embedding: bool, method: str, level: str | None
) -> dict[str, Any]:
    """The quantization_config of config.json. ignored: public names of the modules left in full precision."""
    grouped = form.group is not None
    name = "pack-quantized" if packed else _FORMATS[form.kind]
    weights = {
        "num_bits": _BITS[form.kind],
        "type": "float" if form.kind == "fp8" else "int",
        "symmetric": True,
        "strategy": "group" if grouped else "channel",
        "group_size": form.group,
        "dynamic": False,
        "actorder": None,
    }
    targets = ["Linear", *(["Embedding"] if embedding else [])]
    group = {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": CONVENTION,
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group | {"format": name}},
        "ignore": list(ignored),
        "kv_cache_scheme": None,
        "plait": {"method": method, "level": level, "scale": "float32"},
    }


def from_public(quantization: object) -> WeightFormat:
    """The format of the quantized weights. ValueError for what plait can't read."""
    if isinstance(quantization, dict) and quantization.get("quant_method") == OWN:
        return WeightFormat()
    if not isinstance(quantization, dict) or quantization.get("quant_method") != CONVENTION:
        raise ValueError(
            f"config.json: quantization_config={str(quantization)[:80]} is not supported; it must be absent, or an "
            f"object with quant_method {CONVENTION!r} or {OWN!r}"
        )
    groups = quantization.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, dict) else []
    weights = [scheme.get("weights") for scheme in schemes if isinstance(scheme, dict)]
    if not weights or not isinstance(weights[0], dict) or any(w != weights[0] for w in weights):
        raise ValueError("config.json: quantization_config must hold config_groups with one scheme for all weights")
    return _format_of_scheme(weights[0])


def method_of(quantization: dict[str, Any]) -> str | None:
    """By which of our methods the weights were quantized; None for files of others."""
    if quantization.get("quant_method") == OWN:
        return OWN
    own = quantization.get("plait")
    return own.get("method") if isinstance(own, dict) and isinstance(own.get("method"), str) else None


def _format_of_scheme(weights: dict[str, Any]) -> WeightFormat:
    kinds = {("int", 8): "int8", ("float", 8): "fp8", ("int", 4): "int4"}
    kind = kinds.get((str(weights.get("type")), weights.get("num_bits")))  # type: ignore[arg-type]
    strategy, group = weights.get("strategy"), weights.get("group_size")
    known = kind is not None and strategy in ("channel", "group") and weights.get("symmetric") in (True, None)
    if not known or weights.get("actorder") not in (None, "static", "weight"):
        raise ValueError(
            f"config.json: quantized weights {str(weights)[:120]} are not supported; they must be symmetric int8, int4 "
            "or fp8, with a scale per channel or group, and not reordered"
        )
    if strategy == "group" and (not isinstance(group, int) or isinstance(group, bool)):
        raise ValueError(f"config.json: group_size={str(group)[:80]} must be an integer")
    return WeightFormat(kind, group if strategy == "group" else None)  # type: ignore[arg-type]


def stored_form(name: str, wanted: Tensor) -> tuple[list[str], tuple[int, ...]]:
    """The safetensors dtypes and the shape in which a file may hold the quantized values `wanted` under `name`."""
    if name.endswith(".weight_packed") and wanted.dtype == torch.int8:
        return ["I32"], (*wanted.shape[:-1], -(-wanted.shape[-1] // BYTES_PER_WORD))
    return [SAFETENSORS_DTYPES[wanted.dtype]], tuple(wanted.shape)


def encode(name: str, values: Tensor, *, packed: bool = False) -> Iterator[tuple[str, Tensor]]:
    """A public tensor as a file holds it: itself, or words of int32 and the shape they had. packed: int8 too."""
    if values.dtype == torch.int8 and packed:
        if values.shape[-1] % BYTES_PER_WORD:
            raise ValueError(f"{name} has {values.shape[-1]} columns; packing takes a multiple of {BYTES_PER_WORD}")
        words = (values.contiguous().view(torch.uint8) ^ 128).view(torch.int32)  # each plus 128, lowest byte first
        per_word = BYTES_PER_WORD
    elif values.dtype == torch.int32:
        words, per_word = values, INT4_PER_WORD
    else:
        yield name, values
        return
    yield f"{name}_packed", words
    yield f"{name}_shape", torch.tensor([words.shape[0], words.shape[1] * per_word])


def decode(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """What `encode` was given, for values of that dtype in memory."""
    if stored.dtype == torch.int32 and dtype == torch.int8:
        return (stored.view(torch.uint8) ^ 128).view(torch.int8)
    return stored
