"""The bytes that a decode step of a model in memory must read: what its time is measured against."""

from __future__ import annotations

from typing import cast

from torch import nn

from plait.accounting import Dtype, kv_bytes, recurrent_bytes
from plait.model.feed_forward import MoE
from plait.model.network import LanguageModel


def step_bytes(model: LanguageModel, context: int, batch: int) -> float:
    """Bytes read to decode one token of each of `batch` sequences of `context` tokens, weights as they lie in memory:
    quantized or not, of whatever dtype, with their scales. Keys, values and columns of convolutions are the model's.

    As `accounting.decode_step_bytes`: of a mixture's experts, as many as `batch` tokens touch in the mean; of the
    embedding a row a token, and all of it where it is the head. Raises ValueError for a batch under 1.
    """
    if batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")
    config, dtype = model.config, cast(Dtype, str(model.dtype).removeprefix("torch."))
    weights = sum(_read(module, batch) for module in model.modules() if module is not model.embed)
    embedding = _own_bytes(model.embed)
    weights += batch * embedding / config.vocab_size + embedding * config.tie_embeddings
    return weights + batch * (kv_bytes(config, context, dtype) + recurrent_bytes(config, dtype))


def _read(module: nn.Module, batch: int) -> float:
    """Of the module's own tensors, not its children's."""
    if not isinstance(module, MoE):
        return _own_bytes(module)
    n_experts = len(module.down)
    return _own_bytes(module) * (1 - (1 - module.top_k / n_experts) ** batch)


def _own_bytes(module: nn.Module) -> int:
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
