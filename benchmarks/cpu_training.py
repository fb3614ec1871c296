"""A training step in plait and in transformers (with mambapy) on this CPU, in turns: python benchmarks/cpu_training.py

The same small mixture (32 M parameters), fp32, batch 4 x 512: forward, backward, AdamW, in processes of their own,
round after round. Prints the median of the rounds (and the best) in tokens a second, and the peak memory. transformers'
default scan is not run: its backward is quadratic in the length.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH, LENGTH, VOCAB = 4, 512, 8192
SHAPE: dict[str, Any] = {
    "d_model": 256,
    "d_ff": 896,
    "n_layers": 8,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_experts": 8,
    "top_k": 2,
}


def plait_step() -> Callable[[], None]:
    import torch

    from plait.config import ModelConfig
    from plait.model.init import init_weights
    from plait.model.linear import route_fp32_products
    from plait.model.losses import next_token_loss
    from plait.model.network import LanguageModel

    route_fp32_products()
    model = init_weights(LanguageModel(ModelConfig(vocab_size=VOCAB, **SHAPE)), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, VOCAB, (BATCH, LENGTH))

    def step() -> None:
        loss = next_token_loss(model(ids).logits, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def transformers_step() -> Callable[[], None]:
    import torch
    from transformers import JambaConfig, JambaForCausalLM

    config = JambaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=896, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, num_experts=8, num_experts_per_tok=2, use_mamba_kernels=False, use_mambapy=True,
        use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    model = JambaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, VOCAB, (BATCH, LENGTH))

    def step() -> None:
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def child(program: str, threads: int, steps: int) -> None:
    import torch

    torch.set_num_threads(threads)
    step = {"plait": plait_step, "transformers + mambapy": transformers_step}[program]()
    step()
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024
    print(json.dumps({"tokens/s": BATCH * LENGTH / statistics.median(times), "peak MiB": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a round, after one to warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.threads, options.steps)
        return
    results: dict[str, list[dict[str, float]]] = {"plait": [], "transformers + mambapy": []}
    for _ in range(options.rounds):
        for program, found in results.items():
            command = [sys.executable, __file__, "--child", program, "--threads", str(options.threads)]
            command += ["--steps", str(options.steps)]
            setting = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            done = subprocess.run(command, env=setting, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{program} failed: {done.stderr.splitlines()[-1:]}")
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(program, found[-1], flush=True)
    for program, found in results.items():
        speeds, peaks = ([one[key] for one in found] for key in ("tokens/s", "peak MiB"))
        print(f"{program:24} {statistics.median(speeds):8.0f} tokens/s (best {max(speeds):.0f}), {min(peaks):.0f} MiB")


if __name__ == "__main__":
    main()
