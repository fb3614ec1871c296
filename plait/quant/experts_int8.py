"""ExpertsInt8 (paper section 3.1): expert and MLP weights in int8, everything else untouched, no calibration.

The method itself is `rows.quantize_rows` with a scale per output row; here is what a model takes before and after.
"""

from __future__ import annotations

from dataclasses import dataclass

from plait.model.network import LanguageModel


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a model's parameters and scales, in all and in its feed-forwards."""

    total: int
    feed_forward: int


def weight_bytes(model: LanguageModel) -> WeightBytes:
    """What the weights take in memory as they are now."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in model.state_dict().items()}
    return WeightBytes(sum(sizes.values()), sum(size for name, size in sizes.items() if ".ffn." in name))
