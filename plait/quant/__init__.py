"""Quantization (paper section 3.1): of a model in memory, while a checkpoint is loaded, or from folder to folder.

`Scheme` says what and how. `quantize` takes a model, `load` reads one and quantizes it layer by layer on its way, and
`checkpoint.quantize_checkpoint` writes a folder without ever holding the model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from plait.config import ModelConfig
from plait.model.checkpoint import load_model, read_config, read_quantization
from plait.model.feed_forward import SwiGLU
from plait.model.network import LanguageModel
from plait.model.quantization_config import format_of, matrices
from plait.ops.moe import fp8
from plait.quant.parts import RowRounder, calibration_walk, cast_part, model_parts, quantize_part
from plait.quant.scheme import LEVELS, METHODS, Level, Scheme

__all__ = ["LEVELS", "METHODS", "Scheme", "load", "prepare", "quantize", "say_progress", "use_fp8_activations"]

Progress = Callable[[int, int], None]  # parts done, and how many there are


def quantize(
    model: LanguageModel,
    method: str | Scheme = "experts_int8",
    *,
    level: Level = "experts+mlp",
    calibration: Tensor | None = None,
) -> LanguageModel:
    """Quantize in place, one matrix at a time, and return the model. A Scheme says more than a method and a level,
    which may also come as one word, 'METHOD:LEVEL'.

    calibration: token ids [n_sequences, seq], which `gptq` needs. What is quantized already is left alone. Raises
    ValueError for weights that are not finite, and for weights quantized already in another format.
    """
    if isinstance(method, str) and ":" not in method:
        method = Scheme(method, level)  # type: ignore[arg-type]
    scheme = _scheme(method)
    for matrix in matrices(model):
        if matrix.scale is not None and matrix.values.dtype != torch.uint8:  # laid out for a kernel: int8 rows
            scheme.check_on((format_of(matrix.values, matrix.scale), None))
    quantizer = _Quantizer(scheme, model.config, model.dtype, calibration, model.embed.weight.device)
    for name, part in model_parts(model):
        quantizer(name, part)
    return model


def load(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    quantize: str | Scheme | None = None,
    calibration: Tensor | None = None,
    progress: Progress | None = None,
    share: Callable[[str, nn.Module], object] | None = None,
) -> LanguageModel:
    """A checkpoint ready to serve: quantized while it is read (paper section 3.1), if asked (a method, 'METHOD:LEVEL',
    or a Scheme), and laid out for the device's kernels.

    Where rows are rounded alone, some of them are in full precision at a time: the peak is the quantized model and less
    than one layer. gptq needs a whole layer, and its quantized form beside it. `share(name, part)` may cut each part
    down to one process's share of it, quantized as the whole is. Raises what `load_model` and `quantize` raise.
    """
    config = read_config(folder)
    scheme = None if quantize is None else _scheme(quantize)
    if scheme is not None:
        scheme.check_on(read_quantization(folder))
    dtype = dtype or getattr(torch, config.dtype)
    quantizer, rounder = None, None
    if scheme is not None and scheme.rounds_rows:
        rounder = RowRounder(scheme, tied=config.tie_embeddings)
    elif scheme is not None:
        quantizer = _Quantizer(scheme, config, dtype, calibration, device)
    n_parts = config.n_layers + (2 if config.tie_embeddings else 3)
    done = 0

    def on_part(name: str, part: nn.Module) -> None:
        nonlocal done
        if quantizer is not None:
            quantizer(name, part)
        if rounder is not None:
            rounder.check()
        if share is not None:
            share(name, part)
        if torch.device(device).type == "cuda":
            prepare(part)
        done += 1
        if progress is not None:
            progress(done, n_parts)

    mapped = scheme is None and torch.device(device).type == "cpu"
    return load_model(folder, device=device, dtype=dtype, on_part=on_part, rounder=rounder, mapped=mapped)


def say_progress(done: int, n: int) -> None:
    """One line that counts parts, on a terminal only: a Progress."""
    if sys.stderr.isatty():
        print(f"\r{done}/{n} parts", end="\n" if done == n else "", file=sys.stderr, flush=True)


def prepare(model: nn.Module) -> None:
    """Lay int8 experts and MLPs out as this device's kernels read them fastest; they can't be saved after. Mutates."""
    for module in model.modules():
        if isinstance(module, SwiGLU):
            module.prepare()


def use_fp8_activations(model: LanguageModel) -> LanguageModel:
    """Round the activations of fp8 experts and MLPs to fp8 too, token by token, in calls of many tokens (prefill):
    faster where tensor cores multiply fp8, and less exact. Mutates and returns the model. ValueError for a model
    without fp8 feed-forwards, or a device without such products.
    """
    found = [ffn for ffn in model.feed_forwards() if ffn.down.dtype == torch.float8_e4m3fn]
    if not found:
        raise ValueError("the model has no fp8 experts or MLPs; quantize it with method='fp8' first")
    if reason := fp8.why_not(found[0].down.device):
        raise ValueError(reason)
    for ffn in found:
        ffn.fp8_activations = True
    return model


def _scheme(method: str | Scheme) -> Scheme:
    return method if isinstance(method, Scheme) else Scheme.named(method)


class _Quantizer:
    """Quantizes the parts of a model as they come, with calibration sequences walking along where needed."""

    def __init__(
        self,
        scheme: Scheme,
        config: ModelConfig,
        dtype: torch.dtype,
        calibration: Tensor | None,
        device: torch.device | str,
    ) -> None:
        self.scheme, self.tied = scheme, config.tie_embeddings
        self.walk = calibration_walk(scheme, config, dtype, calibration, device)

    def __call__(self, name: str, part: nn.Module) -> None:
        if self.scheme.method == "bf16":
            cast_part(part, torch.bfloat16)
            return
        quantize_part(name, part, self.scheme, tied=self.tied, walk=self.walk)
        if self.walk is not None:
            self.walk.step(name, part)
