"""Seconds to bring a model from host memory to a GPU and quantize it on the way, layer by layer (paper section 3.1).

    python benchmarks/quantize_load.py [--model jamba-1.5-mini] [--layers N] [--method experts_int8] [--no-prepare]

One bf16 layer of each kind lies in host memory and stands for all of its kind: the CPU reads as many bytes as for
different ones, though small layers may stay in its cache (none of Mini's does). Prints one JSON line: seconds in all,
until the last weight was sent and rounded in every layer, and of laying out for kernels; bytes; the peak of GPU memory
beyond what was quantized before a layer, and the bf16 layer that it may be at most.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import nn

from plait.bench.dummy import meta_model
from plait.config import presets
from plait.model.fill import allocated, quantized_on_meta, round_rows
from plait.model.upload import Uploader
from plait.quant import prepare
from plait.quant.parts import RowRounder, model_parts
from plait.quant.scheme import Scheme


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="jamba-1.5-mini", choices=presets)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--method", default="experts_int8", help="experts_int8 or fp8; METHOD:LEVEL (%(default)s)")
    parser.add_argument("--no-prepare", action="store_true")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    config = presets[args.model]
    if args.layers is not None:
        from dataclasses import replace

        config = replace(config, n_layers=args.layers)
    print(json.dumps(run(config, Scheme.named(args.method), args.device, not args.no_prepare)))


def run(config, scheme, device, prepared):  # type: ignore[no-untyped-def]
    host = host_parts(config)
    model, uploader, rounder = meta_model(config), Uploader(device), RowRounder(scheme, tied=config.tie_embeddings)
    cuda = device.startswith("cuda")
    kinds, sending, preparing, peak_over, layer_bytes, moved = config.layer_kinds(), 0.0, 0.0, 0, 0, 0
    wait(device)
    started = time.perf_counter()
    for name, part in model_parts(model):
        source = host[kinds[int(name.split(".")[1])] if name.startswith("layers.") else name]
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        bring(name, part.to(torch.bfloat16), source, device, uploader, rounder)
        n_bytes = sum(t.numel() * t.element_size() for t in source.values())
        moved, layer_bytes = moved + n_bytes, max(layer_bytes, n_bytes)
        sending += time.perf_counter() - began
        began = time.perf_counter()
        if prepared and cuda:
            prepare(part)
        preparing += time.perf_counter() - began
        if cuda:
            peak_over = max(peak_over, torch.cuda.max_memory_allocated() - before)
    wait(device)
    seconds = time.perf_counter() - started
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "method": scheme.method,
        "level": scheme.level,
        "layers": config.n_layers,
        "prepared": prepared,
        "seconds": seconds,
        "sending_and_rounding_seconds": sending,
        "preparing_seconds": preparing,
        "bf16_bytes": moved,
        "resident_bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        "peak_bytes_beyond_what_was_there": peak_over,
        "largest_layer_bf16_bytes": layer_bytes,
        "within_one_layer": peak_over <= layer_bytes,
    }


@torch.no_grad()
def bring(name, part, source, device, uploader, rounder):  # type: ignore[no-untyped-def]
    """As `plait.model.fill.fill` does, from host memory. Mutates the part."""
    dtypes = quantized_on_meta(part, name, rounder)
    tensors = allocated(part, device).state_dict(prefix=f"{name}.", keep_vars=True)
    for suffix, tensor in source.items():
        own, target = f"{name}.{suffix}", tensors[f"{name}.{suffix}"]
        if own not in dtypes:
            uploader.copy(target.detach(), tensor)
            continue
        whole = tensor, target.detach(), tensors[f"{own}_scale"]
        experts = zip(*whole, strict=True) if tensor.dim() == 3 else [whole]  # one file's tensor each
        for host, values, scale in experts:
            round_rows(own, host, values, scale, dtypes[own], uploader, rounder)
    rounder.check()


def host_parts(config):  # type: ignore[no-untyped-def]
    """Parameters of the embedding, one layer of each kind, the final norm and the head, bf16, in host memory."""
    generator, made = torch.Generator().manual_seed(0), {}
    kinds = config.layer_kinds()
    for name, part in model_parts(meta_model(config)):
        key = kinds[int(name.split(".")[1])] if name.startswith("layers.") else name
        if key not in made:
            dummy_quick(part, generator)
            made[key] = {n: p.detach().to(torch.bfloat16) for n, p in part.named_parameters()}
    return made


def dummy_quick(part: nn.Module, generator: torch.Generator) -> None:
    """Weights on the CPU, from one drawn row for all: drawing 5 GB of normal numbers takes longer than the run."""
    part.to(torch.bfloat16)
    part.to_empty(device="cpu")
    row = torch.randn(1 << 20, generator=generator).mul_(0.02).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in part.parameters():
            flat = parameter.data.view(-1)
            for first in range(0, flat.numel(), len(row)):
                flat[first : first + len(row)] = row[: flat.numel() - first]


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
