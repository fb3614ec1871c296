"""One model in plait, llama.cpp and transformers on this CPU, in turns: python benchmarks/cpu_rivals.py --help

Makes random weights of a shape (speed only: nothing here is about quality), saves them as a checkpoint, has llama.cpp's
own converter read that folder, and then runs every program in a process of its own, one after another, round after
round, so that what else the machine does falls on all of them. Prints the median of the rounds (and the best) in tokens
a second, the load time, the seconds from the start of the process to its first token, and the peak memory.

    python benchmarks/cpu_rivals.py --shape tiny --llama BUILD/bin --converter LLAMA.CPP/convert_hf_to_gguf.py

Without --llama only Python programs run. Our int8 checkpoint has every matrix in int8 (experts, MLPs, mixers, embedding
and head), as q8_0 has; `a8` also rounds activations.
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
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from string import ascii_letters
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 512, "d_ff": 2048, "n_layers": 16, "n_heads": 8, "n_kv_heads": 2, "n_experts": 8, "top_k": 2},
    "dense1b": {"d_model": 2560, "d_ff": 8192, "n_layers": 8, "n_heads": 20, "n_kv_heads": 1, "n_experts": 1,
                "top_k": 1, "dt_rank": 160, "tie_embeddings": True},
}  # fmt: skip
VOCAB = 65_536
CHUNK = 512  # tokens that go in at once, as llama.cpp has it
CONTEXT = 128  # before the decoded tokens
ROUNDED = "linear=int8_activations,moe=int8_activations"  # PLAIT_OPS


def make_model(folder: Path, shape: str) -> None:
    """A checkpoint of random weights, bf16 in `folder`/bf16 and int8 in `folder`/int8, with a small tokenizer."""
    import torch

    from plait.config import ModelConfig
    from plait.model.checkpoint import load_model, save_model
    from plait.model.init import init_weights
    from plait.model.network import LanguageModel
    from plait.quant import Scheme, quantize

    model = init_weights(LanguageModel(ModelConfig(vocab_size=VOCAB, **SHAPES[shape])), seed=0)
    save_model(model.to_dtype(torch.bfloat16), folder / "bf16")
    write_tokenizer(folder / "bf16" / "tokenizer.model")
    model = load_model(folder / "bf16", mapped=False)
    save_model(quantize(model, Scheme(level="experts+mlp+mixers", head=True)), folder / "int8")
    for kind in ("bf16", "int8"):
        write_tokenizer_json(folder / kind / "tokenizer.json")


def words() -> Iterator[str]:
    """As many as a vocabulary of VOCAB wants, and more."""
    return ("".join(letters) for n in (1, 2, 3) for letters in product(ascii_letters, repeat=n))


def write_tokenizer_json(path: Path) -> None:
    """The demo model's tokenizer with pieces added up to VOCAB, for `plait generate`."""
    import plait

    spec = json.loads((Path(plait.__file__).parent / "demo" / "tokenizer.json").read_text())
    pieces = spec["model"]["vocab"]
    n_added = VOCAB - 1 - max(*pieces.values(), *(token["id"] for token in spec["added_tokens"]))
    pieces |= {word: VOCAB - 1 - i for i, word in enumerate(islice((w for w in words() if w not in pieces), n_added))}
    path.write_text(json.dumps(spec))


def write_tokenizer(path: Path) -> None:
    """A SentencePiece model of VOCAB pieces, for the converter, which wants one."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.vocab_size = 2, VOCAB
    model.trainer_spec.byte_fallback = True
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{i:02X}>", 6) for i in range(256))]
    pieces += [(word, 1) for word in islice(words(), VOCAB - len(pieces))]
    for i, (piece, kind) in enumerate(pieces):
        model.pieces.add(piece=piece, score=-float(i), type=kind)
    path.write_bytes(model.SerializeToString())


# ---- what runs in a process of its own ----


def measured(run: Callable[[], object], repeats: int) -> float:
    """Seconds, the median after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def since_start() -> float:
    """Seconds since this process began."""
    began = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def run_plait(folder: str, prompts: list[int], new_tokens: int) -> dict[str, float]:
    import torch

    from plait.model.checkpoint import load_model
    from plait.model.layout import Layout, Segment
    from plait.model.state import PAGE_SIZE, State
    from plait.native.tape import record

    begin = time.perf_counter()
    model = load_model(folder)
    found = {"load_s": time.perf_counter() - begin}
    pages = tuple(range(-(-max(*prompts, CONTEXT + 2 * new_tokens) // PAGE_SIZE)))
    state = State.empty(model.config, n_slots=1, n_pages=len(pages), dtype=model.dtype)

    @torch.inference_mode()
    def prefill(n: int) -> torch.Tensor:
        for begin in range(0, n, CHUNK):
            size = min(CHUNK, n - begin)
            segment = Segment(0, size, "resume" if begin else "fresh", slot=0, context_len=begin, pages=pages)
            logits = model(torch.randint(0, VOCAB, (1, size)), Layout.of([segment], 1, size), state, keep="last").logits
        return logits

    token = prefill(CONTEXT).argmax(-1)[None]
    with torch.inference_mode():
        layout = Layout.of([Segment(0, 1, "decode", slot=0, context_len=CONTEXT, pages=pages)], 1, 1)
        tape = record(lambda: model(token, layout, state).logits)

        def decode() -> None:
            for _ in range(new_tokens):
                layout.context_lens.add_(1)
                token.fill_(int(tape.replay().argmax()))

        def start_over() -> None:
            layout.context_lens.fill_(CONTEXT)
            decode()

        found["decode"] = new_tokens / measured(start_over, 3)
    for n in prompts:
        found[f"prefill {n}"] = n / measured(lambda n=n: prefill(n), 3)  # type: ignore[misc]
    return found


def run_transformers(folder: str, prompts: list[int], new_tokens: int) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, use_mamba_kernels=False)
    found = {"load_s": time.perf_counter() - begin}

    @torch.inference_mode()
    def prefill(n: int) -> Any:
        return model(torch.randint(0, VOCAB, (1, n)), use_cache=True, logits_to_keep=1)

    prefill(8)
    found["first_token_s"] = since_start()
    out = prefill(CONTEXT)

    @torch.inference_mode()
    def decode() -> None:
        nonlocal out
        for _ in range(new_tokens):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)

    found["decode"] = new_tokens / measured(decode, 1)
    for n in prompts:
        found[f"prefill {n}"] = n / measured(lambda n=n: prefill(n), 1)  # type: ignore[misc]
    return found


def run_compiled(folder: str, prompts: list[int], new_tokens: int) -> dict[str, float]:
    """transformers through torch.compile, the first prompt length only: another one compiles anew, for minutes."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, use_mamba_kernels=False)
    compiled = torch.compile(model)
    ids = torch.randint(0, VOCAB, (1, prompts[0]))
    begin = time.perf_counter()
    with torch.inference_mode():
        compiled(ids, use_cache=False, logits_to_keep=1)
        found = {"compile_s": time.perf_counter() - begin}
        seconds = measured(lambda: compiled(ids, use_cache=False, logits_to_keep=1), 3)
    return found | {f"prefill {prompts[0]}": prompts[0] / seconds}


def run_here(program: str, folder: str, prompts: list[int], new_tokens: int, threads: int) -> None:
    """Print one JSON object: what a program in this process did."""
    import torch

    torch.set_num_threads(threads)
    with torch.no_grad():
        run = {"plait": run_plait, "transformers": run_transformers, "compiled": run_compiled}[program]
        found = run(folder, prompts, new_tokens)
    found["peak_mib"] = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024
    print(json.dumps(found))


# ---- the parent ----


def python_row(program: str, folder: Path, options: argparse.Namespace, **environment: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", program, "--folder", str(folder)]
    command += ["--threads", str(options.threads), "--new", str(options.new), "--prompts", *map(str, options.prompts)]
    setting = {**os.environ, "OMP_NUM_THREADS": str(options.threads), **environment}
    done = subprocess.run(command, env=setting, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} on {folder} failed: {done.stderr.splitlines()[-1:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def plait_row(folder: Path, options: argparse.Namespace, **environment: str) -> dict[str, float]:
    found = python_row("plait", folder, options, **environment)
    return found | {"first_token_s": first_token_s(folder, options, **environment)}


def first_token_s(folder: Path, options: argparse.Namespace, **environment: str) -> float:
    """Seconds from starting `plait generate` to what it writes behind the prompt."""
    prompt = "a"
    command = [sys.executable, "-m", "plait", "generate", str(folder), "--prompt", prompt, "--max-tokens", "1"]
    setting = {**os.environ, "OMP_NUM_THREADS": str(options.threads), **environment}
    begin = time.perf_counter()
    with subprocess.Popen(command, env=setting, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        written = 0
        while written <= len(prompt) and (piece := os.read(process.stdout.fileno(), 4096)):
            written += len(piece)
        seconds = time.perf_counter() - begin
        _, complaint = process.communicate()
    if process.returncode:
        raise RuntimeError(f"plait generate on {folder} failed: {complaint.decode().splitlines()[-1:]}")
    return seconds


def llama_row(model: Path, options: argparse.Namespace) -> dict[str, float]:
    bench = [str(options.llama / "llama-bench"), "-m", str(model), "-t", str(options.threads), "-o", "json"]
    peak = 0.0

    def run(*arguments: str) -> list[dict[str, Any]]:
        nonlocal peak
        with subprocess.Popen([*bench, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            said = process.stdout.read()
            peak = max(peak, os.wait4(process.pid, 0)[2].ru_maxrss / 1024)
        return list(json.loads(said))

    prompts = ",".join(map(str, options.prompts))
    decode = run("-p", "0", "-n", str(options.new), "-d", str(CONTEXT), "-r", "3")[0]["avg_ts"]
    found = {"decode": decode}
    found |= {f"prefill {row['n_prompt']}": row["avg_ts"] for row in run("-p", prompts, "-n", "0", "-r", "3")}
    begin = time.perf_counter()
    run("-p", "0", "-n", "1", "-r", "1", "--no-warmup")
    found["first_token_s"] = time.perf_counter() - begin
    return found | {"peak_mib": peak}


def read_afresh(file: Path) -> None:
    """Let the system forget a file that it keeps in memory and read it again, as after a boot: what was read lies in
    larger pages than what was written, and decoding from those is a tenth faster. Linux only.
    """
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while opened.read(1 << 24):
                pass


def convert(folder: Path, kind: str, converter: Path) -> Path:
    """The GGUF file of the bf16 checkpoint, as llama.cpp's converter writes it from our folder."""
    target = folder / f"{kind}.gguf"
    if not target.exists():
        command = [sys.executable, str(converter), str(folder / "bf16"), "--outtype", kind, "--outfile", str(target)]
        subprocess.run(command, check=True, capture_output=True)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--folder", type=Path, default=Path("runs/cpu_rivals"), help="where models are kept")
    parser.add_argument("--llama", type=Path, help="the bin folder of a llama.cpp build")
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--compiled", action="store_true", help="transformers through torch.compile too (minutes)")
    parser.add_argument("--only", nargs="*", help="these rows (a part of their names)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--new", type=int, default=48, help="tokens to decode")
    parser.add_argument("--json", type=Path, help="write every round there too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "make":
        make_model(options.folder, options.shape)
        return
    if options.child:
        run_here(options.child, str(options.folder), options.prompts, options.new, options.threads)
        return
    folder = options.folder / options.shape
    if not (folder / "int8").exists():
        making = [sys.executable, __file__, "--child", "make", "--folder", str(folder), "--shape", options.shape]
        subprocess.run(making, check=True)  # elsewhere, so that this process stays small: children inherit its peak
    rows: dict[str, Callable[[], dict[str, float]]] = {
        "plait bf16": lambda: plait_row(folder / "bf16", options),
        "plait int8": lambda: plait_row(folder / "int8", options),
        "plait int8 a8": lambda: plait_row(folder / "int8", options, PLAIT_OPS=ROUNDED),
        "transformers bf16": lambda: python_row("transformers", folder / "bf16", options),
    }
    if options.compiled:
        rows["transformers bf16, compiled"] = lambda: python_row("compiled", folder / "bf16", options)
    if options.llama:
        for kind in ("bf16", "q8_0"):
            gguf = convert(folder, kind, options.converter)
            rows[f"llama.cpp {kind}"] = lambda gguf=gguf: llama_row(gguf, options)  # type: ignore[misc]
    if options.only:
        rows = {name: row for name, row in rows.items() if any(part in name for part in options.only)}
    for file in (*folder.glob("*/*.safetensors"), *folder.glob("*.gguf")):
        read_afresh(file)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    for _ in range(options.rounds):
        for name, row in rows.items():
            results[name].append(row())
            print(f"{name:18}", {key: round(value, 2) for key, value in results[name][-1].items()}, flush=True)
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def show(results: dict[str, list[dict[str, float]]]) -> None:
    columns = list(dict.fromkeys(key for rounds in results.values() for one in rounds for key in one))
    print("\n| | " + " | ".join(columns) + " |\n|---" * 1 + "|---" * len(columns) + "|")
    for name, rounds in results.items():
        cells = []
        for key in columns:
            values = [one[key] for one in rounds if key in one]
            best = min if key.endswith(("_s", "_mib")) else max
            cells.append(f"{statistics.median(values):.4g} (best {best(values):.4g})" if values else "")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
