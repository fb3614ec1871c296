"""What a model costs, from its config alone: parameters, bytes, FLOPs, fitting GPUs (paper sections 2, 3.1; Table 1).

Plain arithmetic on `ModelConfig`; no weights, no torch. GB is 10^9 bytes, GiB is 2^30.

    >>> from plait.config import presets
    >>> count_parameters(presets["jamba-1.5-mini"])
    51570323328
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Literal

from plait.config import ModelConfig

Dtype = Literal["float32", "bfloat16", "float16", "int8", "fp8"]
Level = Literal["bf16", "int8_experts", "int8_experts_mlp", "int8_experts_mlp_mixers", "int8_experts_mlp_mixers_head"]

LEVELS: tuple[Level, ...] = ("bf16", "int8_experts", "int8_experts_mlp")
"""How far weights are quantized: not at all; experts only; experts and dense MLPs, as the paper does (section 3.1)."""
FURTHER_LEVELS: tuple[Level, ...] = ("int8_experts_mlp_mixers", "int8_experts_mlp_mixers_head")
"""Beyond the paper: the large projections of the mixers too, and then the head (a tied one is the embedding)."""

RESERVE_BYTES = 4 * 2**30
"""Kept free on each GPU: driver context and libraries (about 1 GiB), allocator slack, and the activations of a prefill
chunk of 8,192 tokens (widest in the experts: tokens * top_k * 3 * d_ff * 2 bytes, 1.3 GiB in Mini, 2.3 in Large)."""

_DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1}


@dataclass(frozen=True)
class Parameters:
    """Parameter counts by kind. A tied head counts as 0; norms inside a Mamba mixer count as `mamba`."""

    embeddings: int
    head: int
    mamba: int
    attention: int
    mlp: int
    experts: int
    router: int
    norms: int

    @property
    def total(self) -> int:
        return sum(astuple(self))


@dataclass(frozen=True)
class Gpus:
    """`count` equal GPUs of `gb` GB each.

    The vendor's number is read as 10^9 bytes, the least that drivers report for it: 85.5e9 on an 80 GB H100, 85.9e9 on
    an 80 GB A100, 24.1e9 on a 24 GB A10. What a card has beyond that is left out of every answer, so a tight "no" can
    be worth trying.
    """

    count: int
    gb: int

    def __post_init__(self) -> None:
        if self.count < 1 or self.gb < 1:
            raise ValueError(f"count={self.count} and gb={self.gb} must both be at least 1")

    @classmethod
    def parse(cls, text: str) -> Gpus:
        """`8x80` is eight GPUs of 80 GB. ValueError for anything else."""
        count, times, gb = text.lower().partition("x")
        if not (times and count.isdecimal() and gb.isdecimal()):
            raise ValueError(f"gpus={text!r} must be COUNTxGB, such as 8x80 for eight GPUs of 80 GB")
        return cls(int(count), int(gb))


DEFAULT_GPUS = tuple(Gpus(count, gb) for gb in (80, 141) for count in (1, 2, 8))


@dataclass(frozen=True)
class Fit:
    """Whether weights, one sequence's KV and recurrent state, and the reserve fit on some GPUs."""

    gpus: Gpus
    level: Level
    fits: bool
    needed_bytes: int  # on each GPU, at the context asked about
    largest_context: int | None  # tokens; 0: not even one; None: no limit, there is no attention


@dataclass(frozen=True)
class Flops:
    """Operations of one token, a multiply-add counting as two."""

    decode: int
    prefill: float
    training: float


@dataclass(frozen=True)
class Account:
    """The whole account of one model at one context; `dataclasses.asdict` of it is `plait account --json`."""

    name: str
    context: int
    total_params: int
    active_params: int
    params: Parameters
    active: Parameters
    expert_share: float
    expert_and_mlp_share: float
    kv_bytes: int  # 16 bit, one sequence of `context` tokens
    kv_bytes_per_token: int
    recurrent_bytes: int  # fp32 SSM state and bf16 convolution columns, one sequence
    int8_recurrent_bytes: int  # the same with the SSM state in int8, as a host tier may keep it
    weight_bytes: dict[Level, int]  # without the scales
    scale_bytes: dict[Level, int]  # fp32, one for each row of a quantized matrix
    bytes_per_token: dict[Level, int]  # read to decode one token at batch 1
    flops_per_token: int  # flops.decode
    flops: Flops
    reserve_bytes: int
    fit: tuple[Fit, ...]


def account(
    config: ModelConfig,
    name: str = "",
    *,
    context: int = 262_144,
    gpus: Sequence[Gpus] = DEFAULT_GPUS,
    reserve_bytes: int = RESERVE_BYTES,
) -> Account:
    """Every figure below for one model. Raises ValueError for a `context` under 1 or a negative `reserve_bytes`."""
    params, active = parameters(config), active_parameters(config)
    flops = Flops(decode_flops(config, context), prefill_flops(config, context), training_flops(config, context))
    return Account(
        name=name,
        context=context,
        total_params=params.total,
        active_params=active.total,
        params=params,
        active=active,
        expert_share=params.experts / params.total,
        expert_and_mlp_share=(params.experts + params.mlp) / params.total,
        kv_bytes=kv_bytes(config, context),
        kv_bytes_per_token=kv_bytes(config, 1),
        recurrent_bytes=recurrent_bytes(config),
        int8_recurrent_bytes=recurrent_bytes(config, ssm_dtype="int8"),
        weight_bytes={level: weight_bytes(config, level) for level in LEVELS},
        scale_bytes={level: scale_bytes(config, level) for level in LEVELS},
        bytes_per_token={level: decode_bytes(config, context, level) for level in LEVELS},
        flops_per_token=flops.decode,
        flops=flops,
        reserve_bytes=reserve_bytes,
        fit=tuple(fit(config, g, level, context, reserve_bytes=reserve_bytes) for g in gpus for level in LEVELS),
    )


def count_parameters(config: ModelConfig) -> int:
    """Parameters of the whole model; tied embeddings count once."""
    return parameters(config).total


def count_active_parameters(config: ModelConfig) -> int:
    """Parameters one token passes through, embeddings and head included: all but the experts not chosen."""
    return active_parameters(config).total


def parameters(config: ModelConfig) -> Parameters:
    """All parameters, by kind."""
    table = config.vocab_size * config.d_model
    n_mlp_layers = config.n_layers - config.n_moe_layers
    return Parameters(
        embeddings=table,
        head=0 if config.tie_embeddings else table,
        mamba=config.n_mamba_layers * mamba_parameters(config),
        attention=config.n_attention_layers * attention_parameters(config),
        mlp=n_mlp_layers * mlp_parameters(config),
        experts=config.n_moe_layers * config.n_experts * mlp_parameters(config),
        router=config.n_moe_layers * config.n_experts * config.d_model,
        norms=(2 * config.n_layers + 1) * config.d_model,
    )


def active_parameters(config: ModelConfig) -> Parameters:
    """The parameters one token passes through, by kind: `top_k` experts of each mixture, and everything else."""
    return replace(parameters(config), experts=config.n_moe_layers * config.top_k * mlp_parameters(config))


def mlp_parameters(config: ModelConfig) -> int:
    """One dense SwiGLU MLP, or one expert: gate, up and down."""
    return 3 * config.d_model * config.d_ff


def attention_parameters(config: ModelConfig) -> int:
    """One attention layer: q and o over `n_heads`, k and v over `n_kv_heads`, no biases."""
    return 2 * config.d_model * config.d_head * (config.n_heads + config.n_kv_heads)


def mamba_parameters(config: ModelConfig) -> int:
    """One Mamba mixer of the config's `mamba_kind`, with its biases and inner norms.

    Mamba-1: in_proj, conv, x_proj, dt_proj and its bias, A_log, D, out_proj, norms of dt, B and C.
    Mamba-2: in_proj, conv, dt_bias, A_log and D for each head, the gated norm, out_proj.
    """
    conv = config.d_conv_channels * (config.d_conv + config.conv_bias)
    biases = (_in_proj_width(config) + config.d_model) * config.proj_bias
    if config.mamba_kind == "mamba2":
        scan = 3 * config.n_ssm_heads
        norms = config.d_inner
    else:
        scan = config.d_inner * (config.d_state + 2)
        norms = config.dt_rank + 2 * config.d_state
    return _mamba_projections(config) + biases + conv + scan + norms


def _in_proj_width(config: ModelConfig) -> int:
    """Channels of in_proj's output: u and z in Mamba-1; z, u, B, C and dt in Mamba-2."""
    if config.mamba_kind == "mamba2":
        return 2 * config.d_inner + 2 * config.n_ssm_groups * config.d_state + config.n_ssm_heads
    return 2 * config.d_inner


def _mamba_projections(config: ModelConfig) -> int:
    """Weights of one mixer's matrix products."""
    outer = _mamba_outer(config)
    if config.mamba_kind == "mamba2":
        return outer
    x_proj, dt_proj = config.d_inner * (config.dt_rank + 2 * config.d_state), config.d_inner * config.dt_rank
    return outer + x_proj + dt_proj


def _mamba_outer(config: ModelConfig) -> int:
    """Weights of in_proj and out_proj of one mixer."""
    return config.d_model * (_in_proj_width(config) + config.d_inner)


def kv_bytes(config: ModelConfig, context: int, dtype: Dtype = "bfloat16") -> int:
    """Keys and values of one sequence of `context` tokens in all attention layers; a quantized cache's scales not."""
    _check_context(context)
    return 2 * config.n_attention_layers * config.n_kv_heads * config.d_head * context * _width(dtype)


def page_bytes(config: ModelConfig, page_size: int, dtype: Dtype = "bfloat16") -> int:
    """One page of keys and values in all attention layers; int8 ones have an fp32 scale for each token and head."""
    scales = 2 * config.n_attention_layers * page_size * config.n_kv_heads * _width("float32")
    return kv_bytes(config, page_size, dtype) + scales * (dtype == "int8")


def recurrent_bytes(config: ModelConfig, dtype: Dtype = "bfloat16", ssm_dtype: Dtype = "float32") -> int:
    """One sequence's Mamba state at any length: the fp32 SSM state and `d_conv - 1` convolution inputs in `dtype`. An
    int8 SSM state, as host and disk may have it, has a scale of two bytes for each channel.
    """
    ssm = config.d_inner * (config.d_state * _width(ssm_dtype) + 2 * (ssm_dtype == "int8"))
    conv = config.d_conv_channels * (config.d_conv - 1) * _width(dtype)
    return config.n_mamba_layers * (ssm + conv)


def weight_bytes(config: ModelConfig, level: Level) -> int:
    """Stored weights: quantized ones at one byte, all others (A_log and D too) at two. `scale_bytes` come on top."""
    return 2 * parameters(config).total - round(_int8(config, level)[0])


def scale_bytes(config: ModelConfig, level: Level) -> int:
    """The fp32 scales of ExpertsInt8, one for each output row of a quantized matrix (section 3.1)."""
    return round(_int8(config, level)[1]) * _width("float32")


def decode_bytes(config: ModelConfig, context: int, level: Level) -> int:
    """Bytes read to decode one token at batch 1 with `context` tokens in the cache.

    Active weights and their scales, one row of the embeddings, the whole head (tied or not), the 16-bit KV cache and
    the recurrent state. What is written is not counted.
    """
    return round(decode_step_bytes(config, context, level, 1))


def decode_step_bytes(config: ModelConfig, context: int, level: Level, batch: int) -> float:
    """Bytes read in a step that decodes one token of each of `batch` sequences, each `context` tokens long.

    As `decode_bytes`; of the experts, as many as `batch` tokens touch in the mean if each picks its `top_k` evenly.
    """
    if batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")
    touched = config.n_experts * (1 - (1 - config.top_k / config.n_experts) ** batch) if config.n_experts > 1 else 1.0
    active = active_parameters(config)
    experts = config.n_moe_layers * mlp_parameters(config) * touched
    fixed = active.total - active.experts - active.embeddings - active.head + config.vocab_size * config.d_model
    int8, int8_rows = _int8(config, level, touched)
    weights = 2 * (fixed + experts) - int8 + int8_rows * _width("float32")
    looked_up = batch * 2 * config.d_model
    return weights + looked_up + batch * (kv_bytes(config, context) + recurrent_bytes(config))


def _int8(config: ModelConfig, level: Level, n_experts: float | None = None) -> tuple[float, float]:
    """Weights that are int8 at a level, and the rows they lie in; of each mixture's experts, all or n_experts."""
    levels = (*LEVELS, *FURTHER_LEVELS)
    if level not in levels:
        raise ValueError(f"level={level!r} must be one of {', '.join(levels)}")
    n_stacked = config.n_moe_layers * (config.n_experts if n_experts is None else n_experts)
    n_mlps = config.n_layers - config.n_moe_layers
    ffn, ffn_rows = mlp_parameters(config), 2 * config.d_ff + config.d_model
    mixers = config.n_mamba_layers * _mamba_outer(config) + config.n_attention_layers * attention_parameters(config)
    mixer_rows = config.n_mamba_layers * (_in_proj_width(config) + config.d_model)
    attention_rows = config.d_head * (config.n_heads + 2 * config.n_kv_heads) + config.d_model
    added = (
        (0, 0),
        (n_stacked * ffn, n_stacked * ffn_rows),
        (n_mlps * ffn, n_mlps * ffn_rows),
        (mixers, mixer_rows + config.n_attention_layers * attention_rows),
        (config.vocab_size * config.d_model, config.vocab_size),
    )
    taken = added[: levels.index(level) + 1]
    return sum(weights for weights, _ in taken), sum(rows for _, rows in taken)


def decode_flops(config: ModelConfig, context: int) -> int:
    """Operations of the token that brings a sequence to `context` tokens, its logits included.

      2 * (active matrix weights + head)                                every product of a weight with the token
    + 4 * n_heads * d_head * context        for each attention layer    q.k and p.v over `context` positions
    + (7 * d_state + 3) * d_inner           for each Mamba-1 layer      exp(dt A), dt x B, h update, C h; dt x, D x
    + (5 * d_state + 3) * d_inner + 2 * n_ssm_heads, in Mamba-2         where the decay is one number for a whole head
    + 2 * d_conv * d_conv_channels          for each Mamba layer        the causal convolution

    Norms, activations, gates and softmax (about 1 % of the attention term) are left out, as is usual.
    """
    _check_context(context)
    return _body_flops(config) + _head_flops(config) + _attention_flops(config, context)


def prefill_flops(config: ModelConfig, context: int) -> float:
    """Operations of one token of a prompt of `context` tokens, on average over the prompt.

    As `decode_flops`, but token t attends to t positions, (context + 1) / 2 in the mean, and logits are computed once,
    for the last position. The scan is counted as the recurrence; in matrix form (SSD) it does more.
    """
    _check_context(context)
    return _body_flops(config) + _attention_flops(config, 1) * (context + 1) / 2 + _head_flops(config) / context


def training_flops(config: ModelConfig, seq: int) -> float:
    """Operations of one token of training on sequences of `seq` tokens: 3 forward passes with logits at every position.

    This is the count for MFU, so what activation checkpointing computes twice counts once.
    """
    _check_context(seq)
    return 3 * (_body_flops(config) + _attention_flops(config, 1) * (seq + 1) / 2 + _head_flops(config))


def _body_flops(config: ModelConfig) -> int:
    """All but the attention scores and the head: the same for every token, at any length."""
    active = active_parameters(config)
    weights = config.n_mamba_layers * _mamba_projections(config)
    weights += active.attention + active.mlp + active.experts + active.router
    if config.mamba_kind == "mamba2":
        scan = config.d_inner * (5 * config.d_state + 3) + 2 * config.n_ssm_heads
    else:
        scan = config.d_inner * (7 * config.d_state + 3)
    conv = 2 * config.d_conv * config.d_conv_channels
    return 2 * weights + config.n_mamba_layers * (scan + conv)


def _head_flops(config: ModelConfig) -> int:
    return 2 * config.vocab_size * config.d_model


def _attention_flops(config: ModelConfig, attended: int) -> int:
    return 4 * config.n_attention_layers * config.n_heads * config.d_head * attended


def fit(
    config: ModelConfig, gpus: Gpus, level: Level, context: int = 262_144, *, reserve_bytes: int = RESERVE_BYTES
) -> Fit:
    """Does one sequence of `context` tokens fit beside the weights, and what is the longest that does?

    Weights, scales and recurrent state divide evenly over the GPUs. KV heads are dealt out whole, so a GPU holds
    ceil(n_kv_heads / count) of them: with one KV head every GPU holds all of the cache. `reserve_bytes` is per GPU.
    """
    if reserve_bytes < 0:
        raise ValueError(f"reserve_bytes={reserve_bytes} must be at least 0")
    fixed = -(-(weight_bytes(config, level) + scale_bytes(config, level) + recurrent_bytes(config)) // gpus.count)
    fixed += reserve_bytes
    available = gpus.gb * 10**9
    kv_heads = -(-config.n_kv_heads // gpus.count)
    needed = fixed + kv_bytes(config, context) // config.n_kv_heads * kv_heads
    kv_per_token = kv_bytes(config, 1) // config.n_kv_heads * kv_heads
    largest: int | None = max(0, available - fixed) // kv_per_token if kv_per_token else None
    if largest is None and fixed > available:
        largest = 0
    return Fit(gpus, level, needed <= available, needed, largest)


def _check_context(context: int) -> None:
    if context < 1:
        raise ValueError(f"context={context} must be at least 1 token")


def _width(dtype: Dtype) -> int:
    if dtype not in _DTYPE_BYTES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(_DTYPE_BYTES)}")
    return _DTYPE_BYTES[dtype]


@dataclass(frozen=True)
class Footprint:
    """Bytes of an engine's process on one device. Left out: the driver's and libraries' own memory, allocator slack,
    CUDA graphs, counts for penalties (4 bytes a token id for each sequence that asks), and host and disk tiers.
    """

    weights: int
    states: int
    pages: int
    tables: int
    activations: int  # of one step of max_batched_tokens, at its widest

    @property
    def total(self) -> int:
        return self.weights + self.states + self.pages + self.tables + self.activations


def footprint(
    config: ModelConfig,
    *,
    slots: int,
    pages: int,
    max_context: int,
    max_batched_tokens: int,
    page_size: int = 16,
    dtype: Dtype = "bfloat16",
    kv_dtype: Dtype | None = None,
    level: Level = "bf16",
) -> Footprint:
    """What an engine of these sizes allocates; one slot and one page more are its own. `level` quantizes weights that
    are `dtype` otherwise (A_log, D and dt_bias are fp32 in Mamba-1 and 2). Raises ValueError for sizes under 1.
    """
    for name, size in {"slots": slots, "pages": pages, "max_batched_tokens": max_batched_tokens}.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")
    params, kv_dtype, width = parameters(config), kv_dtype or dtype, _width(dtype)
    quantized = round(_int8(config, level)[0])
    scan = config.d_inner * (config.d_state + 2) if config.mamba_kind == "mamba" else 3 * config.n_ssm_heads
    weights = width * (params.total - quantized) + quantized + scale_bytes(config, level)
    weights += config.n_mamba_layers * scan * (_width("float32") - width)
    return Footprint(
        weights=weights,
        states=(slots + 1) * recurrent_bytes(config, dtype),
        pages=(pages + 1) * page_bytes(config, page_size, kv_dtype),
        tables=(slots + 1) * -(-max_context // page_size) * 4 + 4 * slots * 8,
        activations=max_batched_tokens * width * _widest(config) + config.vocab_size * width,
    )


def _widest(config: ModelConfig) -> int:
    """Numbers that live at once for each token of a chunk, in the layer where they are most; two of d_model are the
    residual and its norm.

    Mamba: in_proj's output, u behind the convolution, dt, y, and the layer's output.
    MLP: gate and up, their product, two of d_model. Experts: the same for top_k, each with its output.
    Attention: q and its output, k and v, the layer's output.
    """
    mamba = 5 * config.d_inner + config.d_model if config.n_mamba_layers else 0
    mlp = 3 * config.d_ff + 2 * config.d_model if config.n_moe_layers < config.n_layers else 0
    share = min(1.0, 1.5 * config.top_k / max(config.n_experts, 1))  # of the tokens, in the busiest expert
    moe = round(3 * config.d_ff * share) + (config.top_k + 1) * config.d_model if config.n_moe_layers else 0
    attention = (2 * config.n_heads + 2 * config.n_kv_heads) * config.d_head + config.d_model
    return 2 * config.d_model + max(mamba, mlp, moe, attention * (config.n_attention_layers > 0))
