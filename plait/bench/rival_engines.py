"""The same model in llama.cpp and in transformers on this CPU, where they are installed: rows beside our own.

Each runs in a process of its own, one answer at a time, on as many threads as it is told, with random tokens; loading
is not counted. llama.cpp reads a GGUF file, which its own converter makes from a folder that plait saved;
`llama-bench` comes with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# A process's peak counts from the size of the one that started it, so a small one stands between.
MEASURED = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([done.returncode, done.stdout, done.stderr[-400:], peak]))
"""
TRANSFORMERS = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM
folder, n_prompt, n_new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(int(sys.argv[4]))
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
ids = torch.randint(0, model.config.vocab_size, (1, n_prompt))
with torch.inference_mode():
    for _ in range(2):  # one to warm up
        begin = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        prompt = time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in range(n_new):
        token = out.logits[:, -1:].argmax(-1)
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
print(json.dumps([n_prompt / prompt, n_new / (time.perf_counter() - begin)]))
"""


@dataclass(frozen=True)
class RivalPoint:
    """One program at one prompt length, one answer at once. Tokens a second."""

    program: str
    prompt_tokens: int
    prompt_tokens_per_s: float
    decode_tokens_per_s: float
    peak_bytes: int  # of its process, with the files that it maps


def rival_points(
    folder: Path, gguf: Path | None, contexts: Sequence[int], new_tokens: int, threads: int
) -> Iterator[RivalPoint]:
    """Every installed program at every prompt length. ValueError for a GGUF file without `llama-bench` on the path;
    RuntimeError, with what it said, for a program that fails.
    """
    bench = shutil.which("llama-bench")
    if gguf is not None and (bench is None or not gguf.is_file()):
        reason = "there is no such file" if bench else "llama-bench, a program of llama.cpp, is not on the path"
        raise ValueError(f"can't run {gguf}: {reason}")
    if gguf is not None:
        assert bench is not None
        yield from (_llama_cpp(bench, gguf, context, new_tokens, threads) for context in contexts)
    if find_spec("transformers") is not None:
        yield from (_transformers(folder, context, new_tokens, threads) for context in contexts)


def _llama_cpp(bench: str, gguf: Path, context: int, new_tokens: int, threads: int) -> RivalPoint:
    command = [bench, "-m", str(gguf), "-t", str(threads), "-r", "2", "-o", "json"]
    prompt, peak = _said([*command, "-p", str(context), "-n", "0"])
    decode, its_peak = _said([*command, "-p", "0", "-n", str(new_tokens), "-d", str(context)])
    in_s, out_s = (float(json.loads(said)[0]["avg_ts"]) for said in (prompt, decode))
    return RivalPoint(f"llama.cpp {gguf.stem}", context, in_s, out_s, max(peak, its_peak))


def _transformers(folder: Path, context: int, new_tokens: int, threads: int) -> RivalPoint:
    arguments = map(str, (folder, context, new_tokens, threads))
    said, peak = _said([sys.executable, "-c", TRANSFORMERS, *arguments], OMP_NUM_THREADS=str(threads))
    in_s, out_s = json.loads(said.splitlines()[-1])
    return RivalPoint("transformers", context, in_s, out_s, peak)


def _said(command: list[str], **environment: str) -> tuple[str, int]:
    """What a program prints, and the most bytes it took. RuntimeError if it fails."""
    measured = [sys.executable, "-c", MEASURED, *command]
    done = subprocess.run(measured, check=False, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise RuntimeError(f"{command[0]} could not be started: {done.stderr.strip()[-400:]}")
    code, said, complaint, peak = json.loads(done.stdout)
    if code:
        raise RuntimeError(f"{Path(command[0]).name} failed: {complaint.strip()}")
    return said, peak
