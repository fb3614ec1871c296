"""Where the time of a decode step on the CPU goes, kernel by kernel: python benchmarks/cpu_tape.py FOLDER [THREADS]

Replays the tape of one token at context 128 and prints, for each kind of kernel, how many there are, the median of
their summed time over the replays, and, where they read weights, gigabytes of them a second; then the whole step, in
turns with a product of one matrix of the same bytes, which is as fast as weights can be read. Run it where nothing else
runs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict

import torch

from plait import native
from plait.model.checkpoint import load_model
from plait.model.layout import Layout, Segment
from plait.model.network import LanguageModel
from plait.model.state import PAGE_SIZE, State
from plait.native import Arguments
from plait.native.tape import Tape, record
from plait.ops.linear import linear

CONTEXT, REPEATS = 128, 60


def recorded(model: LanguageModel) -> Tape:
    pages = tuple(range(CONTEXT // PAGE_SIZE + 2))
    state = State.empty(model.config, n_slots=1, n_pages=len(pages), dtype=model.dtype)
    segment = Segment(0, CONTEXT, "fresh", slot=0, pages=pages)
    ids = torch.randint(0, model.config.vocab_size, (1, CONTEXT))
    model(ids, Layout.of([segment], 1, CONTEXT), state, keep="none")
    layout = Layout.of([Segment(0, 1, "decode", slot=0, context_len=CONTEXT, pages=pages)], 1, 1)
    token = ids[:, :1].clone()
    return record(lambda: model(token, layout, state).logits)


def kind(name: str, a: Arguments) -> tuple[str, int]:
    """What to call a kernel, and the bytes of weights that it reads."""
    if name == "linear":
        return f"linear {a.width} x {a.n_out}", a.width * a.n_out * native.SIZES[a.weight_type]
    if name == "experts":
        return f"experts, {a.top_k} of {a.n_experts}", 3 * a.d_model * a.d_ff * a.top_k * native.SIZES[a.weight_type]
    return name, 0


def whole_matrix(n_bytes: int) -> Tape:
    """A product of one token and one int8 matrix of so many bytes: as fast as weights can be read here."""
    weight, scale = torch.ones(n_bytes // 4096, 4096, dtype=torch.int8), torch.ones(n_bytes // 4096)
    x = torch.ones(1, 4096)
    return record(lambda: linear(x, weight, scale=scale))


def milliseconds(tape: Tape) -> float:
    begin = time.perf_counter()
    tape.replay()
    return (time.perf_counter() - begin) * 1e3


def main() -> None:
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    torch.set_num_threads(threads)
    with torch.inference_mode():
        tape = recorded(load_model(sys.argv[1]))
        totals: dict[str, list[float]] = defaultdict(list)
        counts: dict[str, int] = defaultdict(int)
        sizes: dict[str, int] = defaultdict(int)
        for repeat in range(REPEATS):
            sums: dict[str, float] = defaultdict(float)
            for name, arguments, took in tape.timed():
                label, n_bytes = kind(name, arguments)
                sums[label] += took / 1e6
                if not repeat:
                    counts[label] += 1
                    sizes[label] += n_bytes
            for label, total in sums.items():
                totals[label].append(total)
        n_bytes = sum(sizes.values())
        matrix = whole_matrix(n_bytes)
        pair = (tape, matrix)
        plain, alone = zip(*([milliseconds(which) for which in pair] for _ in range(REPEATS)), strict=True)  # in turns
    for label, times in sorted(totals.items(), key=lambda item: -statistics.median(item[1])):
        median = statistics.median(times)
        speed = f"{sizes[label] / median / 1e6:6.1f} GB/s" if sizes[label] else ""
        print(f"{label:28} {counts[label]:4} {median:8.3f} ms (best {min(times):7.3f}) {speed}")
    print(
        f"{len(tape)} kernels, {n_bytes / 1e6:.0f} MB of weights: {statistics.median(plain):.2f} ms a step, best "
        f"{min(plain):.2f}; as one matrix {statistics.median(alone):.2f} ms, best {min(alone):.2f}"
    )


if __name__ == "__main__":
    main()
