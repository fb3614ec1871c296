"""The models of Figure 2: of the shapes asked for, with dummy weights, quantized by each method while seconds count."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from plait.config import ModelConfig

if TYPE_CHECKING:
    from plait.model.network import LanguageModel

CALIBRATION = {"tiny": (2, 64), "full": (16, 1024)}  # sequences of gptq's text, and tokens of each


def build(
    config: ModelConfig, method: str, device: str, *, calibration: tuple[int, int] = CALIBRATION["tiny"]
) -> tuple[LanguageModel, float, float]:
    """A model of dummy weights, quantized part by part; seconds of quantizing all of it, and of laying it out for the
    kernels. gptq's values are those of rounding to nearest (the latency does not depend on them), and its seconds those
    of one expert times their number, and of the text's passes through one layer of each kind times theirs.
    """
    import torch

    from plait.bench.dummy import dummy_part, meta_model
    from plait.quant import prepare, use_fp8_activations
    from plait.quant.parts import model_parts, quantize_part

    model, generator = meta_model(config), torch.Generator(device).manual_seed(0)
    scheme, seconds, prepared = scheme_of(method, config), 0.0, 0.0
    rounding = (
        replace(scheme, method="experts_int8", bits=8) if scheme.method == "gptq" and scheme.bits == 8 else scheme
    )
    kinds, passes = config.layer_kinds(), {}
    for name, part in model_parts(model):
        dummy_part(part, device, torch.bfloat16, generator)
        kind = kinds[int(name.split(".")[1])] if name.startswith("layers.") else None
        if scheme.method == "gptq" and kind is not None and kind not in passes:
            passes[kind] = _calibration_seconds(name, part, scheme, config.d_model, device, calibration)
        _wait(device)
        started = time.perf_counter()
        if scheme.method == "gptq" and scheme.bits == 4:
            _round_to_int4(name, part, scheme)
        else:
            quantize_part(name, part, rounding, tied=False)
        _wait(device)
        middle = time.perf_counter()
        if device.startswith("cuda"):
            prepare(part)
            _wait(device)
        seconds, prepared = seconds + middle - started, prepared + time.perf_counter() - middle
    if method == "fp8_w8a8":
        use_fp8_activations(model)
    if scheme.method == "gptq":
        seconds = _gptq_seconds(config, scheme, device) + sum(passes[kind] for kind in kinds)
    return model.eval(), seconds, prepared


def scheme_of(method: str, config: ModelConfig) -> Any:
    from plait.quant.scheme import Scheme

    group = 128 if config.d_model % 128 == 0 and config.d_ff % 128 == 0 else 32
    return {
        "bf16": Scheme("bf16"),
        "experts_int8": Scheme(),
        "fp8": Scheme("fp8"),
        "fp8_w8a8": Scheme("fp8"),
        "int8:experts": Scheme(level="experts"),
        "int8:+mixers": Scheme(level="experts+mlp+mixers"),
        "int8:+head": Scheme(level="experts+mlp+mixers", head=True),
        "gptq_int8": Scheme("gptq"),
        "gptq_int4": Scheme("gptq", bits=4, group=group),
    }[method]


def _round_to_int4(name: str, part: Any, scheme: Any) -> None:
    from plait.model.quantized import set_quantized
    from plait.quant.rows import quantize_rows

    for matrix in list(scheme.chosen(part, name, tied=False)):
        set_quantized(matrix.module, matrix.parameter, *quantize_rows(matrix.values, scheme.form))


def _calibration_seconds(
    name: str, part: Any, scheme: Any, d_model: int, device: str, calibration: tuple[int, int]
) -> float:
    """Seconds that gptq's text takes at a layer: a pass that sees the inputs of its weights, their X^T X, expert by
    expert, and a pass on to the next layer. Of two runs the shorter; random activations.
    """
    import torch

    from plait.quant.parts import hessian_of
    from plait.quant.walk import Walk, matrix_inputs

    n, seq = calibration
    chosen, timings = list(scheme.chosen(part, name, tied=False)), []
    for _ in range(2):
        walk = Walk(torch.ones(n, seq, dtype=torch.int64), torch.bfloat16, device)
        walk.x = [torch.randn(seq, d_model, device=device).bfloat16() for _ in range(n)]
        _wait(device)
        started = time.perf_counter()
        inputs = walk.inputs(part, {matrix.module for matrix in chosen})
        for matrix in chosen:
            for rows in matrix_inputs(matrix, inputs[matrix.module]):
                hessian_of(rows)
        walk.step(name, part)
        _wait(device)
        timings.append(time.perf_counter() - started)
    return min(timings)


def _gptq_seconds(config: ModelConfig, scheme: Any, device: str) -> float:
    """Seconds of gptq over the whole model, once X^T X is known: one SwiGLU's two weights times their number."""
    import torch

    from plait.quant.gptq import gptq
    from plait.quant.parts import hessian_of

    seconds = 0.0
    for rows, columns in ((2 * config.d_ff, config.d_model), (config.d_model, config.d_ff)):
        weight = torch.randn(rows, columns, device=device)
        hessian = hessian_of(torch.randn(4096, columns, device=device))
        gptq(weight[:64], hessian, scheme.form)  # compiles and allocates
        _wait(device)
        started = time.perf_counter()
        gptq(weight, hessian, scheme.form)
        _wait(device)
        seconds += time.perf_counter() - started
    n_units = config.n_moe_layers * config.n_experts + (config.n_layers - config.n_moe_layers)
    return seconds * n_units


def _wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
