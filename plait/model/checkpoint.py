"""Checkpoints in the public format of the Jamba family: safetensors files with a config.json beside them.

The only file that knows the public names. `load_model` takes any published spelling (one tensor per expert or fused,
tied heads, one file or many), checks every name, shape and dtype before it allocates anything, and streams layer by
layer; `save_model` writes the published spelling back.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait.config import ModelConfig
from plait.model import quantization_config
from plait.model.fill import Piece, Rounder, Source, fill
from plait.model.network import LanguageModel
from plait.model.quantization_config import matrices
from plait.model.quantized import WeightFormat, set_quantized
from plait.model.upload import Uploader
from plait.model.weight_files import INDEX, WEIGHTS, WeightFiles, read_json
from plait.model.weight_writer import save_file
from plait.model.whole_folder import complete, replacing

CONFIG = "config.json"
SHARD_BYTES = 5 * 10**9
MAX_SIZE = 2**31 - 1
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}

_CONFIG_KEYS = {  # ours -> public
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_head": "head_dim",
    "attn_period": "attn_layer_period",
    "attn_offset": "attn_layer_offset",
    "moe_period": "expert_layer_period",
    "moe_offset": "expert_layer_offset",
    "n_experts": "num_experts",
    "top_k": "num_experts_per_tok",
    "d_state": "mamba_d_state",
    "d_conv": "mamba_d_conv",
    "expand": "mamba_expand",
    "dt_rank": "mamba_dt_rank",
    "conv_bias": "mamba_conv_bias",
    "proj_bias": "mamba_proj_bias",
    "tie_embeddings": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
    "max_context": "max_position_embeddings",
    "init_std": "initializer_range",
    "router_aux_coef": "router_aux_loss_coef",
    "pad_id": "pad_token_id",
    "bos_id": "bos_token_id",
    "eos_ids": "eos_token_id",
    "dtype": "torch_dtype",
}
_OWN_KEYS = {
    "mamba_kind": "mamba_kind",
    "d_ssm_head": "mamba2_d_head",
    "n_ssm_groups": "mamba2_n_groups",
}  # Mamba-2 only
_PUBLIC_NAMES = {**_CONFIG_KEYS, **_OWN_KEYS}
_REQUIRED = ("vocab_size", "d_model", "d_ff", "n_layers", "n_heads")
_ALIASES = {"num_local_experts": "num_experts", "dtype": "torch_dtype"}


def read_config(folder: str | Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder. Unknown keys are ignored; a missing or impossible one raises
    ValueError.
    """
    return config_from_public(read_json(Path(folder) / CONFIG))


def read_quantization(folder: str | Path) -> tuple[WeightFormat, str | None] | None:
    """The format of a folder's quantized weights, and the method that made them, where it is said; None where all are
    in full precision. ValueError for a format that plait doesn't read.
    """
    stored = read_json(Path(folder) / CONFIG).get("quantization_config")
    return None if stored is None else (quantization_config.from_public(stored), quantization_config.method_of(stored))


def config_from_public(public: dict[str, Any]) -> ModelConfig:
    """A ModelConfig from the contents of a published config.json. ValueError for a model that plait can't be."""
    kind, activation = public.get("model_type", "jamba"), public.get("hidden_act", "silu")
    if kind not in ("jamba", "plait"):
        raise ValueError(f"config.json: model_type={kind!r} is not a model plait knows; it must be 'jamba' or 'plait'")
    if activation not in ("silu", "swish"):
        raise ValueError(f"config.json: hidden_act={activation!r} must be 'silu'")
    public = dict(public)
    for alias, name in _ALIASES.items():
        if public.get(name) is None and public.get(alias) is not None:
            public[name] = public[alias]
    values: dict[str, Any] = {}
    for ours, theirs in _PUBLIC_NAMES.items():
        if public.get(theirs) is not None:
            values[ours] = public[theirs]
        elif ours in _REQUIRED:
            raise ValueError(f"config.json lacks {theirs}")
    values.setdefault("n_kv_heads", values["n_heads"])
    if values.get("dt_rank") == "auto":
        values["dt_rank"] = 0
    if "dtype" in values:
        values["dtype"] = str(values["dtype"]).removeprefix("torch.")
    if "eos_ids" in values:
        ids = values["eos_ids"]
        values["eos_ids"] = tuple(ids) if isinstance(ids, list) else (ids,)
    for field in fields(ModelConfig):
        if field.name in values:
            _check_type(_PUBLIC_NAMES[field.name], values[field.name], str(field.type))
    return ModelConfig(**values)


def _check_type(name: str, value: object, wanted: str) -> None:
    """ModelConfig checks sizes against each other; here, that JSON gave a number where it takes one."""
    given = value if isinstance(value, tuple) else (value,)
    if "int" in wanted:
        fits = all(isinstance(v, int) and not isinstance(v, bool) and abs(v) <= MAX_SIZE for v in given)
        wanted = f"an integer of at most {MAX_SIZE}"
    elif wanted == "float":
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_SIZE
        wanted = "a finite number"
    elif wanted == "bool":
        fits, wanted = isinstance(value, bool), "true or false"
    else:
        fits, wanted = isinstance(value, str), "a string"
    if not fits:
        raise ValueError(f"config.json: {name}={repr(value)[:80]} must be {wanted}")


def config_to_public(config: ModelConfig) -> dict[str, Any]:
    """The contents of config.json: the published keys, as the family's own tools read them."""
    plain = config.mamba_kind == "mamba"
    public: dict[str, Any] = {
        "architectures": ["JambaForCausalLM" if plain else "PlaitForCausalLM"],
        "model_type": "jamba" if plain else "plait",
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "output_router_logits": False,
        "use_cache": True,
    }
    keys = _CONFIG_KEYS if plain else {**_CONFIG_KEYS, **_OWN_KEYS}
    public |= {theirs: getattr(config, ours) for ours, theirs in keys.items()}
    eos_ids = list(config.eos_ids)
    public["eos_token_id"] = eos_ids[0] if len(eos_ids) == 1 else eos_ids
    if config.d_head * config.n_heads == config.d_model:
        del public["head_dim"]
    return public


_MIXER_NAMES = {
    "attention": ("self_attn", {f"{x}_proj.weight": f"{x}_proj.weight" for x in "qkvo"}),
    "mamba": (
        "mamba",
        {
            "in_proj.weight": "in_proj.weight",
            "in_proj.bias": "in_proj.bias",
            "conv.weight": "conv1d.weight",
            "conv.bias": "conv1d.bias",
            "x_proj.weight": "x_proj.weight",
            "dt_proj.weight": "dt_proj.weight",
            "dt_bias": "dt_proj.bias",
            "A_log": "A_log",
            "D": "D",
            "dt_norm.weight": "dt_layernorm.weight",
            "B_norm.weight": "b_layernorm.weight",
            "C_norm.weight": "c_layernorm.weight",
            "out_proj.weight": "out_proj.weight",
            "out_proj.bias": "out_proj.bias",
        },
    ),
    "mamba2": (
        "mamba2",
        {name: name.replace("conv.", "conv1d.") for name in (
            "in_proj.weight", "in_proj.bias", "conv.weight", "conv.bias", "dt_bias", "A_log", "D", "norm.weight",
            "out_proj.weight", "out_proj.bias")},
    ),
}  # fmt: skip
_TOP_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.final_layernorm.weight",
    "head.weight": "lm_head.weight",
}
_NORM_NAMES = {"mixer_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "pre_ff_layernorm.weight"}


_kinds = functools.cache(ModelConfig.layer_kinds)


def pieces(name: str, config: ModelConfig, *, fused: bool = False) -> Iterator[Piece]:
    """The public tensors that our tensor `name` is made of. `fused`: expert weights as newer transformers stacks
    them.
    """

    def whole(tensor: Tensor) -> Tensor:
        return tensor

    if name in _TOP_NAMES:
        yield Piece(_TOP_NAMES[name], whole)
        return
    if name.endswith(".weight_scale"):
        yield from (Piece(f"{p.name}_scale", _as_column) for p in pieces(name.removesuffix("_scale"), config))
        return
    _, index, rest = name.split(".", 2)
    prefix, kind = f"model.layers.{index}.", _kinds(config)[int(index)]
    block, _, leaf = rest.partition(".")
    if rest in _NORM_NAMES:
        yield Piece(prefix + _NORM_NAMES[rest], whole)
    elif block == "mixer":
        folder, names = _MIXER_NAMES[kind.mixer]
        yield Piece(f"{prefix}{folder}.{names[leaf]}", _with_one_channel if leaf == "conv.weight" else whole)
    elif leaf == "router.weight":
        yield Piece(f"{prefix}feed_forward.router.weight", whole)
    elif kind.ffn == "mlp":
        yield from _swiglu_pieces(f"{prefix}feed_forward.", leaf, config.d_ff, whole)
    elif fused and not leaf.endswith("_scale"):
        yield Piece(f"{prefix}feed_forward.experts.{leaf}_proj", whole)
    else:
        for expert in range(config.n_experts):
            public = f"{prefix}feed_forward.experts.{expert}."
            yield from _swiglu_pieces(public, leaf, config.d_ff, itemgetter(expert))


def _with_one_channel(weight: Tensor) -> Tensor:
    """[channels, d_conv] as the depthwise convolution it is: [channels, 1, d_conv]."""
    return weight.unsqueeze(1)


def _as_column(scale: Tensor) -> Tensor:
    """The file's [rows, 1], as quantized checkpoints are commonly written, or [rows, groups]."""
    return scale if scale.dim() == 2 else scale[:, None]


def _swiglu_pieces(prefix: str, leaf: str, d_ff: int, expert: Callable[[Tensor], Tensor]) -> list[Piece]:
    weight, suffix = leaf, "weight"
    if leaf.endswith("_scale"):
        one, weight, suffix = expert, leaf.removesuffix("_scale"), "weight_scale"
        expert = lambda t: _as_column(one(t))  # noqa: E731
    if weight == "down":
        return [Piece(f"{prefix}down_proj.{suffix}", expert)]
    return [
        Piece(f"{prefix}gate_proj.{suffix}", lambda t: expert(t)[:d_ff]),
        Piece(f"{prefix}up_proj.{suffix}", lambda t: expert(t)[d_ff:]),
    ]


def public_tensors(
    tensors: dict[str, Tensor], config: ModelConfig, *, fused: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """(public name, view) of every tensor of ours: parameters, or anything shaped like them, such as gradients."""
    for name, tensor in tensors.items():
        for piece in pieces(name, config, fused=fused):
            yield piece.name, piece.part(tensor)


def load_model(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    on_part: Callable[[str, nn.Module], None] | None = None,
    rounder: Rounder | None = None,
    mapped: bool | None = None,
) -> LanguageModel:
    """The model of a checkpoint folder, in eval mode; dtype None keeps the checkpoint's (quantized weights stay so in
    any).

    Streams: the peak is the model and one layer's files. `on_part(name, module)` is called with the embedding, each
    layer, the final norm and the head, in this order, when its weights are there and those after it take no memory yet;
    it may replace them (quantization at load) or move them away. `rounder` quantizes weights while they are read: they
    never are there in full. `mapped`: weights that the files hold as they are used stay in the files' pages, read when
    first used and shared between processes (writing to them changes this process's copy alone; the files must stay
    whole meanwhile); by default so on a CPU without on_part. Raises ValueError for
    missing, extra, mis-shaped or truncated tensors, and for a config.json that can't be, before anything of their size
    is allocated.
    """
    folder = Path(folder)
    public = read_json(folder / CONFIG)
    config, files = config_from_public(public), WeightFiles(folder)
    if config.n_layers > len(files.tensors):
        raise ValueError(
            f"{folder}: config.json asks for {config.n_layers} layers; the files hold {len(files.tensors)} tensors"
        )
    config = replace(config, dtype=_published_dtype(public, config, files))
    model = _on_meta(config, dtype or getattr(torch, config.dtype))
    if public.get("quantization_config") is not None:
        _quantize_on_meta(model, public["quantization_config"], files)
    if mapped is None:
        mapped = on_part is None and torch.device(device).type == "cpu"
    sources, uploader = _sources(model, files), Uploader(device)
    for name, part in model.named_children():
        parts = part.named_children() if isinstance(part, nn.ModuleList) else [("", part)]
        for index, one in parts:
            prefix = f"{name}.{index}" if index else name
            fill(one, prefix, sources, files, uploader, mapped, rounder)
            if prefix == "embed" and model.head is None:
                _check_tied_head(sources["embed.weight"][0][1], model.dtype, files)
            if on_part is not None:
                on_part(prefix, one.eval())
    return model.eval()


def _published_dtype(public: dict[str, Any], config: ModelConfig, files: WeightFiles) -> str:
    """What config.json says; where it is silent, what the embeddings are stored in."""
    embed = files.tensors.get(_TOP_NAMES["embed.weight"])
    if embed is None or public.get("torch_dtype") or public.get("dtype"):
        return config.dtype
    return next((str(d).removeprefix("torch.") for d, stored in DTYPES.items() if stored == embed.dtype), config.dtype)


def _on_meta(config: ModelConfig, dtype: torch.dtype) -> LanguageModel:
    """The model without memory: names, shapes and dtypes only."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} must be one of {', '.join(map(str, DTYPES))}")
    try:
        with torch.device("meta"):
            return LanguageModel(config).to_dtype(dtype)
    except RuntimeError as error:  # a matrix of more than 2^63 bytes
        raise ValueError(f"config.json describes a model of impossible size: {str(error).splitlines()[0]}") from None


def _quantize_on_meta(model: LanguageModel, quantization: object, files: WeightFiles) -> None:
    """Give the weights whose scales the files hold the format that config.json tells. Mutates the model."""
    form, found = quantization_config.from_public(quantization), False
    for matrix in matrices(model):
        scale = next(pieces(f"{matrix.name}_scale", model.config)).name
        if any(spelling in files.tensors for spelling in _spellings(scale)):
            set_quantized(matrix.module, matrix.parameter, *form.empty(matrix.values.shape))
            found = True
    if not found:
        raise ValueError(
            f"{files.folder}: config.json has a quantization_config, but no weight here has a weight_scale"
        )


def _sources(model: LanguageModel, files: WeightFiles) -> dict[str, list[Source]]:
    """Where every tensor of the model lies in the files. ValueError unless the two match, tensor for tensor."""
    fused = any(name.endswith(".experts.gate_up_proj") for name in files.tensors)
    left = dict(files.tensors)
    sources: dict[str, list[Source]] = {}
    for name, tensor in model.state_dict().items():
        sources[name] = []
        for piece in pieces(name, model.config, fused=fused):
            spelling = next((s for s in _spellings(piece.name) if s in left), None)
            if spelling is None:
                raise ValueError(f"{files.folder}: tensor {piece.name} is missing")
            _check_stored(spelling, files, piece.part(tensor))
            sources[name].append((piece, spelling))
            del left[spelling]
            if spelling.endswith("_packed"):
                left.pop(f"{spelling.removesuffix('_packed')}_shape", None)
    if model.head is None and _TOP_NAMES["head.weight"] in left:  # a tied file may carry the head too
        _check_stored(_TOP_NAMES["head.weight"], files, model.embed.weight)
        del left[_TOP_NAMES["head.weight"]]
    if left:
        shown = ", ".join(sorted(left)[:5])
        raise ValueError(f"{files.folder}: {len(left)} tensors are no part of the model of config.json: {shown}")
    return sources


def _spellings(name: str) -> Iterator[str]:
    """The hub's name of a tensor, then what some early checkpoints call it: `moe` for any feed-forward, and a dense one
    as a mixture of one expert; each also as a quantized weight in words.
    """
    for suffix in ("", "_packed") if name.endswith(".weight") else ("",):
        yield f"{name}{suffix}"
        yield name.replace(".feed_forward.", ".moe.") + suffix
        yield name.replace(".feed_forward.", ".feed_forward.experts.0.") + suffix
        yield name.replace(".feed_forward.", ".moe.experts.0.") + suffix


def _check_stored(name: str, files: WeightFiles, wanted: Tensor) -> None:
    stored = files.tensors[name]
    where = f"{stored.file.name}: tensor {name}"
    allowed, shape = list(DTYPES.values()), tuple(wanted.shape)
    if wanted.dtype in quantization_config.SAFETENSORS_DTYPES:
        allowed, shape = quantization_config.stored_form(name, wanted)
    if stored.shape != shape:
        raise ValueError(f"{where} has shape {list(stored.shape)}; config.json asks for {list(shape)}")
    if stored.dtype not in allowed:
        raise ValueError(f"{where} has dtype {stored.dtype}; config.json asks for {', '.join(allowed)}")


def _check_tied_head(embed: str, dtype: torch.dtype, files: WeightFiles) -> None:
    """ValueError if a model that ties its head comes with a head of its own."""
    head = _TOP_NAMES["head.weight"]
    if head in files.tensors:
        with files.opened() as read:
            if not torch.equal(read(head).to(dtype), read(embed).to(dtype)):
                raise ValueError(f"config.json ties {head} to the embeddings, but the file's own differs from them")


def save_model(
    model: LanguageModel,
    folder: str | Path,
    *,
    beside: str | Path | None = None,
    fused_experts: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the public layout; what was loaded from it is written back bit for bit.

    Tensors are written in the model's dtype (what a mixer keeps in fp32 too, where that is exact). The folder appears
    whole or not at all. `beside` is a folder whose other files (tokenizer, templates, model card) are copied along; an
    existing `folder` keeps what this save doesn't write, but for old weights. `fused_experts`: expert names as newer
    transformers fuses them. ValueError for a path that can't be a model's folder, or a dtype that has no public form.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a model is saved as a folder")
    if beside is not None and not Path(beside).is_dir():
        raise ValueError(f"beside={str(beside)!r} is not a folder")
    if str(model.dtype).removeprefix("torch.") not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"a model in {model.dtype} has no public form; call to_dtype(torch.float32) first")
    with replacing(folder) as partial:
        _write(model, partial, fused_experts, shard_bytes)
        complete(partial, folder, beside)


def _write(model: LanguageModel, folder: Path, fused: bool, shard_bytes: int) -> None:
    named = _stored(model, fused)
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, tensor in named.items():
        n_bytes = tensor.numel() * stored_dtype(name, tensor, model.dtype).itemsize
        if shards[-1] and size + n_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + n_bytes, total + n_bytes
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        part = {n: named[n].detach().to("cpu", stored_dtype(n, named[n], model.dtype)).contiguous() for n in names}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    write_config(model, folder)


def _stored(model: LanguageModel, fused: bool) -> dict[str, Tensor]:
    quantized = quantization_config.model_format(model) is not None
    return dict(stored_tensors(dict(model.state_dict()), model.config, fused=fused and not quantized))


def stored_tensors(
    tensors: dict[str, Tensor], config: ModelConfig, *, fused: bool = False, packed: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """(name, contents) of everything a file holds for these tensors of ours, in their own dtypes."""
    for name, tensor in public_tensors(tensors, config, fused=fused):
        yield from quantization_config.encode(name, tensor, packed=packed)


def write_config(model: LanguageModel, folder: Path, *, packed: bool = False, method: str = "experts_int8") -> None:
    """Write config.json, with the model's dtype and quantization. The weights themselves may be on the meta device."""
    public = config_to_public(model.config) | {"torch_dtype": str(model.dtype).removeprefix("torch.")}
    public |= _quantization_to_public(model, packed, method)
    (folder / CONFIG).write_text(json.dumps(public, indent=2) + "\n")


def _quantization_to_public(model: LanguageModel, packed: bool, method: str) -> dict[str, Any]:
    form = quantization_config.model_format(model)
    if form is None:
        return {}
    plain = [m.name for m in matrices(model) if m.scale is None and m.module is not model.embed]
    plain += ["head.weight"] * model.config.tie_embeddings  # elsewhere a module, whose weight is the embedding's
    ignored = [p.name.removesuffix(".weight") for name in plain for p in pieces(name, model.config)]
    return {
        "quantization_config": quantization_config.to_public(
            form,
            ignored,
            packed=packed,
            embedding=model.embed.weight_scale is not None,
            method=method,
            level=quantization_config.level_of(model),
        )
    }


def stored_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The model's dtype; quantized weights and their scales as they are, and so what a mixer keeps wider, unless that
    is exact.
    """
    if tensor.dtype == dtype or tensor.dtype not in DTYPES or name.endswith("_scale"):
        return tensor.dtype
    return dtype if torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) else tensor.dtype
