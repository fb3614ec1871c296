"""plait: build, train, quantize, serve and evaluate hybrid Transformer-Mamba mixture-of-experts language models.

The public names below load what they need at first use, so `import plait` costs nothing and needs no torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plait.config import ModelConfig, presets
    from plait.model.checkpoint import load_model, save_model
    from plait.quant import quantize
    from plait.serve import LLM
    from plait.text import SamplingParams

__version__ = "0.1.0"

# torch's threads (libgomp's) spin for about a millisecond wherever they wait for each other. On a computer that does
# something else too they then wait for each other's turns: 20 to 50 times slower, where sleeping sooner costs nothing
# that could be measured (docs/log.md). It is read when torch is imported, so import plait first; setting either wins.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = ["LLM", "ModelConfig", "SamplingParams", "load_model", "presets", "quantize", "save_model"]

_HOMES = {
    "LLM": "plait.serve",
    "ModelConfig": "plait.config",
    "SamplingParams": "plait.text",
    "load_model": "plait.model.checkpoint",
    "presets": "plait.config",
    "quantize": "plait.quant",
    "save_model": "plait.model.checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'plait' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next look-up finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
