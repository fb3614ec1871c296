"""Activation checkpointing: what a layer keeps for its backward pass, and what it computes again.

full: only the layer's input is kept, and all of it is computed again, exchanges between processes included.
selective: within a mixer and the experts or the MLP, `SAVED` is kept, matrix products and attention; activations,
convolution, inner norms and scan are computed again. What lies around them is kept: the router's choice and the tokens
that travelled to the experts. Statistics are results of a layer, not counters, so nothing is counted twice.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from plait.model.feed_forward import MoE
from plait.model.network import LanguageModel, Layer

_aten = torch.ops.aten
SAVED = (
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten._grouped_mm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
)


def recompute(model: LanguageModel, mode: str) -> LanguageModel:
    """`mode` none, selective or full. Mutates and returns the model; before it is parallelized."""
    if mode == "none":
        return model
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for layer in cast(list[Layer], list(model.layers)):
        if mode == "full":
            _wrap(layer, "forward", options)
        else:
            _wrap(layer.mixer, "forward", options)
            _wrap(layer.ffn, "own_outputs" if isinstance(layer.ffn, MoE) else "forward", options)
    return model


def _wrap(module: nn.Module, method: str, options: dict[str, Any]) -> None:
    plain = getattr(module, method)

    def checkpointed(*args: Any) -> Any:
        return checkpoint(plain, *args, **options) if torch.is_grad_enabled() else plain(*args)

    setattr(module, method, checkpointed)


def _policy(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in SAVED else CheckpointPolicy.PREFER_RECOMPUTE
