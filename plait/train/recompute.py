"""Activation checkpointing: what a layer keeps for its backward pass, and what it computes again.

light: what costs arithmetic is kept, matrix products, attention and the scan, and the layer's input; norms,
convolution, the scan's steps (dt), gates and the sorting of tokens by expert, which cost a pass over memory each, are
done again.
selective: the scan too is computed again (it keeps a state every 16 tokens).
full: only the layer's input is kept, and all of it is computed again.

Exchanges between processes inside a layer are made again in all three. Statistics are results of a layer, not counters,
so nothing is counted twice.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from plait.model.attention import Attention
from plait.model.feed_forward import MLP
from plait.model.network import LanguageModel, Layer

_aten = torch.ops.aten
PRODUCTS = ("mm", "bmm", "addmm", "_grouped_mm")
ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
)
SIZES = ("linalg_vector_norm",)  # scalars that are reported
SIZE, SCAN = "plait::size", "plait::selective_scan"
NARROW = 512  # the inner dim of a product below which repeating it is cheaper than keeping it (dt_proj)


def recompute(model: LanguageModel, mode: str, *, rescan: int = 0) -> LanguageModel:
    """`mode` none, light, selective or full. With light, the first `rescan` Mamba layers are selective. Mutates and
    returns the model; before it is parallelized.
    """
    if mode == "none":
        return model
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    for layer in cast(list[Layer], list(model.layers)):
        if mode != "full":
            keeps_scan = mode == "light" and (isinstance(layer.mixer, Attention) or rescan <= 0)
            rescan -= not isinstance(layer.mixer, Attention)
            policy = functools.partial(_policy, layer, keeps_scan)
            options = options | {"context_fn": functools.partial(create_selective_checkpoint_contexts, policy)}
        _wrap(layer, "forward", options)
    return model


def _wrap(module: nn.Module, method: str, options: dict[str, Any]) -> None:
    plain = getattr(module, method)

    def checkpointed(*args: Any) -> Any:
        return checkpoint(plain, *args, **options) if torch.is_grad_enabled() else plain(*args)

    setattr(module, method, checkpointed)


def _policy(layer: Layer, keeps_scan: bool, _context: Any, op: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if _kept(layer, op, args, keeps_scan) else CheckpointPolicy.PREFER_RECOMPUTE


def _kept(layer: Layer, op: Any, args: tuple[Any, ...], keeps_scan: bool) -> bool:
    namespace, _, name = op.name().partition("::")
    name = name.partition(".")[0]
    if namespace == "aten":
        if name in PRODUCTS:
            left, right = args[-2:] if name == "addmm" else args[:2]
            return left.shape[-1] >= NARROW and not _is_last(layer, right)
        return name in ATTENTION or name in SIZES
    return op.name().startswith(SIZE) or (keeps_scan and op.name().startswith(SCAN))


def _is_last(layer: Layer, right: Tensor) -> bool:
    """Whether the factor is a dense MLP's second matrix: no backward pass asks for what the layer ends with."""
    return isinstance(layer.ffn, MLP) and right.shape == layer.ffn.down.shape[::-1]
