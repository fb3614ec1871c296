"""From a checkpoint to a quantized one, a layer at a time: the model is never held as a whole.

Text given along walks through the layers as they are read, before and after rounding, so that the report can say what
became of perplexity without a second pass.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait.model.checkpoint import (
    load_model,
    read_config,
    read_quantization,
    stored_dtype,
    stored_tensors,
    write_config,
)
from plait.model.weight_writer import WeightWriter
from plait.model.whole_folder import complete, replacing
from plait.quant.parts import MatrixReport, calibration_walk, cast_part, quantize_part
from plait.quant.quality import Head, Quality, compared
from plait.quant.scheme import Scheme
from plait.quant.walk import Walk

REPORT = "quantization_report.json"
SHARD_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Report:
    """What `quantize_checkpoint` did."""

    scheme: Scheme
    packed: bool
    was_quantized: bool  # some weights were, in the source
    seconds: float  # reading, rounding, evaluating and writing
    rounding_seconds: float  # of these, rounding (and calibration)
    bytes_before: int  # of all tensors, as stored
    bytes_after: int
    feed_forward_bytes_before: int
    feed_forward_bytes_after: int
    matrices: tuple[MatrixReport, ...]
    quality: Quality | None

    def as_json(self) -> dict[str, Any]:
        values = asdict(self) | {"quality": None if self.quality is None else self.quality.as_json()}
        return values.pop("scheme") | values


def quantize_checkpoint(
    source: str | Path,
    target: str | Path,
    scheme: Scheme,
    *,
    packed: bool = False,
    calibration: Tensor | None = None,
    text: Tensor | None = None,
    device: torch.device | str = "cpu",
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Read the folder `source`, write the folder `target`, whole or not at all, with the report inside.

    packed: int8 in int32 words (format pack-quantized), which vLLM loads. calibration, text: token ids [n_sequences,
    seq], for gptq and for the report. progress(done, n) is called after each part. Peak: one layer in full precision,
    its quantized form, and shard_bytes. Raises ValueError for folders and weights that can't be used.
    """
    source, target = Path(source), Path(target).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; a model is saved as a folder")
    config, there = read_config(source), read_quantization(source)
    scheme.check_on(there)
    dtype = torch.bfloat16 if scheme.method == "bf16" else getattr(torch, config.dtype)
    started = time.perf_counter()
    with replacing(target) as partial:
        job = _Job(scheme, packed, WeightWriter(partial, shard_bytes), calibration, text, device, progress)
        job.start(config, dtype)
        model = load_model(source, device=device, on_part=job)
        job.writer.finish()
        write_config(model, partial, packed=packed, method=(there and there[1]) or scheme.method)
        report = replace(job.report(), was_quantized=there is not None, seconds=time.perf_counter() - started)
        (partial / REPORT).write_text(json.dumps(report.as_json(), indent=2) + "\n")
        complete(partial, target, source)
    return report


def add_to_report(folder: str | Path, name: str, values: dict[str, Any]) -> None:
    """Something more that was found out about a quantized folder, into its report."""
    path = Path(folder) / REPORT
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(json.loads(path.read_text()) | {name: values}, indent=2) + "\n")
    os.replace(partial, path)


class _Job:
    """What happens to each part of the model as it is read."""

    def __init__(
        self,
        scheme: Scheme,
        packed: bool,
        writer: WeightWriter,
        calibration: Tensor | None,
        text: Tensor | None,
        device: torch.device | str,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.scheme, self.packed, self.writer, self.device = scheme, packed, writer, device
        self.calibration, self.text, self.progress = calibration, text, progress
        self.bytes = {"before": [0, 0], "after": [0, 0]}  # of all, of feed-forwards
        self.matrices: list[MatrixReport] = []
        self.rounding_seconds, self.done = 0.0, 0

    def start(self, config: Any, dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype
        self.n_parts = config.n_layers + (2 if config.tie_embeddings else 3)
        own = getattr(torch, config.dtype)
        self.walk = calibration_walk(self.scheme, config, own, self.calibration, self.device)
        kinds = () if self.text is None else (own, dtype)
        self.ends = [(Walk(self.text, kind, self.device), Head()) for kind in kinds if self.text is not None]

    def __call__(self, name: str, part: nn.Module) -> None:
        self._count("before", name, part)
        self._evaluate(0, name, part)
        started = time.perf_counter()
        if self.scheme.method == "bf16":
            cast_part(part, self.dtype)
        tied = self.config.tie_embeddings
        self.matrices += quantize_part(name, part, self.scheme, tied=tied, walk=self.walk, measure=True)
        if self.walk is not None:
            self.walk.step(name, part)
        self.rounding_seconds += time.perf_counter() - started
        self._evaluate(1, name, part)
        self._write(name, part)
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.n_parts)

    def _evaluate(self, which: int, name: str, part: nn.Module) -> None:
        if self.ends:
            walk, head = self.ends[which]
            walk.step(name, part)
            head.see(name, part, tied=self.config.tie_embeddings)

    def _write(self, name: str, part: nn.Module) -> None:
        self._count("after", name, part)
        tensors = part.state_dict(prefix=f"{name}.")
        for stored, tensor in stored_tensors(tensors, self.config, packed=self.packed):
            self.writer.add(stored, tensor.to(stored_dtype(stored, tensor, self.dtype)))
        part.to("meta")

    def _count(self, when: str, name: str, part: nn.Module) -> None:
        for tensor_name, tensor in part.state_dict(prefix=f"{name}.").items():
            n_bytes = tensor.numel() * tensor.element_size()
            self.bytes[when][0] += n_bytes
            self.bytes[when][1] += n_bytes * (".ffn." in tensor_name)

    def report(self) -> Report:
        quality = compared(self.ends[0], self.ends[1]) if self.ends else None
        (before, ffn_before), (after, ffn_after) = self.bytes["before"], self.bytes["after"]
        return Report(
            self.scheme, self.packed, False, 0.0, self.rounding_seconds, before, after, ffn_before, ffn_after,
            tuple(self.matrices), quality,
        )  # fmt: skip
