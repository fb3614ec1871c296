"""How long a runner takes to be ready for its first request on a GPU, and what the first requests then take.

    TRITON_CACHE_DIR=$(mktemp -d) python benchmarks/serve_start.py [--layers 8] [--one-by-one] [--max-tokens 2048]

Layers of Jamba-1.5-Mini, int8 experts and MLPs, random weights. With an empty cache it is the first start on a machine;
once more with the same cache, the second. --one-by-one: kernels compiled when they are first launched, as without
`plait.ops.ahead`. Prints a JSON line: seconds of the rehearsal, of compiling, of all of warm_up, kernels compiled, and
the first and the second step of each of some lengths, in ms: the first must not be slower for a compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from kernels_first_token import PAGES, Steps

from plait.bench.dummy import dummy_model
from plait.config import presets
from plait.ops import ahead
from plait.serve import runner as runners
from plait.serve.runner import Runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--n-drafts", type=int, default=0)
    parser.add_argument("--one-by-one", action="store_true")
    args = parser.parse_args()
    config = replace(presets["jamba-1.5-mini"], n_layers=args.layers)
    if not args.one_by_one:
        ahead.get_ready()  # as the engine does before it reads the weights
    with torch.inference_mode():
        model = dummy_model(config, "cuda", torch.bfloat16, quantize="experts_int8")
    line: dict[str, object] = {"layers": args.layers, "one_by_one": args.one_by_one, "cores": os.cpu_count()}
    compile_ahead, noted, compiled = runners.compile_ahead, ahead.noted, ahead._compiled

    def timed(rehearse: object, **options: object) -> int:
        started = time.perf_counter()
        n = 0 if args.one_by_one else compile_ahead(rehearse, **options)  # type: ignore[arg-type]
        torch.cuda.synchronize()
        line.update(ahead_s=round(time.perf_counter() - started, 2), compiled=n)
        return n

    def timed_notes(rehearse: object) -> list[ahead.Wanted]:
        started = time.perf_counter()
        wanted = noted(rehearse)  # type: ignore[arg-type]
        torch.cuda.synchronize()
        line.update(rehearsal_s=round(time.perf_counter() - started, 2), kernels=len(wanted))
        return wanted

    def timed_compiled(jobs: Sequence[ahead.Wanted], n_processes: int) -> Iterator[tuple[str, str | None]]:
        started, came = time.perf_counter(), []
        for done in compiled(jobs, n_processes):
            came.append(round(time.perf_counter() - started, 2))
            yield done
        line.update(first_and_last_compiled_s=[came[0], came[-1]], processes=n_processes)

    runners.compile_ahead, ahead.noted = timed, timed_notes  # type: ignore[assignment]
    ahead._compiled = timed_compiled
    runner = Runner(
        model, n_slots=10, n_pages=9 * PAGES, max_context=PAGES * 16, max_running=16, n_drafts=args.n_drafts
    )
    started = time.perf_counter()
    runner.warm_up(args.max_tokens)
    torch.cuda.synchronize()
    line["warm_up_s"] = round(time.perf_counter() - started, 2)
    line["why_not"] = [graphs.why_not for graphs in runner.prefills]
    steps = Steps(runner, 0)
    line["first_and_second_ms"] = {n: [round(steps.ms(n), 2) for _ in range(2)] for n in (1024, 1000, 300, 40, 2048)}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
