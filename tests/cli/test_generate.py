"""`plait generate`."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plait.cli import main
from plait.serve import LLM, SamplingParams


@pytest.fixture
def generated(model: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """generated("--prompt", "x", ...) -> what it prints."""

    def run(*args: str) -> str:
        assert main(["generate", model, *args]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


@pytest.fixture(scope="module")
def llm(model: str) -> LLM:
    return LLM(model)


def test_as_a_process_reading_stdin(run_plait: Any, model: str, llm: LLM) -> None:
    done = run_plait("generate", model, "--prompt", "-", "--temperature", 0, "--max-tokens", 9, stdin="Emma was\n")
    expected = llm.generate("Emma was", SamplingParams(temperature=0, max_tokens=9))[0].text
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Emma was{expected}\n", "")


def test_a_start_looks_for_no_garbage_and_leaves_the_collector_on(model: str) -> None:
    """Looking through what torch's import makes takes a seventh of a start."""
    code = f"""
import gc
runs = []
gc.callbacks.append(lambda phase, info: runs.append(info["generation"]) if phase == "start" else None)
from plait.cli.generate import load_llm
from argparse import Namespace
runs.clear()
load_llm(Namespace(model={model!r}, device="cpu", dtype=None, quantize=None))
print(len(runs), gc.isenabled(), gc.get_freeze_count() > 100_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "True", "True"], done.stderr[-2000:]


def test_wrong_sampling_is_wrong_usage(run_plait: Any) -> None:
    done = run_plait("generate", "anything", "--prompt", "x", "--temperature", "-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "plait generate: temperature=-1.0 must be a number of at least 0\n"


def test_the_same_seed_gives_the_same_text(generated: Any, llm: LLM) -> None:
    args = ("--prompt", "Emma", "--seed", "3", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01")
    args += ("--temperature", "1.5", "--repetition-penalty", "1.2", "--max-tokens", "12")
    params = SamplingParams(
        seed=3, top_k=50, top_p=0.9, min_p=0.01, temperature=1.5, repetition_penalty=1.2, max_tokens=12
    )
    assert generated(*args) == generated(*args) == f"Emma{llm.generate('Emma', params)[0].text}\n"


def test_several_prompts_and_answers(generated: Any) -> None:
    out = generated("--prompt", "Emma", "--prompt", "Mr.", "--n", "2", "--seed", "1", "--max-tokens", "3")
    assert [out.count(f"--- {name}\n") for name in ("1.1", "1.2", "2.1", "2.2")] == [1] * 4
    assert (out.count("\nEmma"), out.count("\nMr.")) == (2, 2)


def test_json(generated: Any, llm: LLM, model: str) -> None:
    args = ["--prompt", "Emma", "--prompt", "Mr.", "--n", "2", "--seed", "1", "--max-tokens", "3", "--logprobs", "2"]
    out = json.loads(generated(*args, "--json"))
    assert out["model"] == model
    assert [row["prompt"] for row in out["completions"]] == ["Emma", "Emma", "Mr.", "Mr."]
    expected = llm.generate(["Emma", "Mr."], SamplingParams(n=2, seed=1, max_tokens=3, logprobs=2))
    for row, completion in zip(out["completions"], expected, strict=True):
        assert (row["text"], row["token_ids"]) == (completion.text, list(completion.token_ids))
        assert (row["finish_reason"], row["completion_tokens"]) == (completion.finish_reason, len(row["token_ids"]))
        assert [len(entry["top"]) for entry in row["logprobs"]] == [2] * len(row["token_ids"])


def test_stop_and_quantize(generated: Any, model: str) -> None:
    free = generated("--prompt", "Emma", "--temperature", "0", "--max-tokens", "20").removeprefix("Emma")[:-1]
    stop = free[len(free) // 2]
    args = ["--prompt", "Emma", "--temperature", "0", "--max-tokens", "20", "--stop", stop]
    assert generated(*args) == f"Emma{free[: free.index(stop)]}\n"
    int8 = LLM(model, quantize="experts_int8").generate("Emma", SamplingParams(temperature=0, max_tokens=20))[0].text
    assert generated(*args[:-2], "--quantize", "experts_int8") == f"Emma{int8}\n"
    assert generated(*args[:-2], "--dtype", "bfloat16").startswith("Emma")


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["missing", "--prompt", "x"], 1, "missing is no model: it must be a folder with a config.json, or 'demo'"),
        (["EMPTY", "--prompt", "x"], 1, "is no model"),
        (["MODEL", "--prompt", "x", "--n", "0"], 2, "n=0 must be an integer of at least 1"),
        (["MODEL", "--prompt", "x", "--stop", ""], 2, "must be non-empty strings"),
        (["MODEL", "--prompt", "x", "--top-p", "0"], 2, "top_p=0 must be greater than 0"),
        (["MODEL", "--prompt", "x", "--max-tokens", "0"], 2, "max_tokens=0"),
        (["MODEL", "--prompt", "x", "--logprobs", "2"], 2, "--logprobs are shown with --json only"),
        (["MODEL", "--prompt", "-", "--prompt", "-"], 2, "--prompt - reads all of stdin, so it can be given once"),
        (["MODEL", "--prompt", "x", "--device", "cuda:99"], 1, "device='cuda:99'"),
        (["MODEL", "--prompt", "x" * 70_000], 1, "fit in max_context=65536"),
        (["MODEL", "--prompt", "\udc80"], 1, "lone surrogate"),
    ],
)
def test_errors_are_one_line_and_nothing_is_printed(
    argv: list[str], code: int, says: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MODEL": model, "EMPTY": str(tmp_path)}
    assert main(["generate", *(places.get(a, a) for a in argv)]) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("plait generate: ")
    assert says in err


@pytest.mark.parametrize(
    "argv",
    [["m"], ["--prompt", "x"], ["m", "--prompt", "x", "--dtype", "int3"], ["m", "--prompt", "x", "--top-k", "few"]],
)
def test_wrong_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *argv])
    assert (stop.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


def test_one_newline_at_the_end_of_stdin_is_the_shells(
    generated: Any, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Emma\n\n"))
    out = generated("--prompt", "-", "--temperature", "0", "--max-tokens", "4")
    assert out == f"Emma\n{llm.generate('Emma' + chr(10), SamplingParams(temperature=0, max_tokens=4))[0].text}\n"
