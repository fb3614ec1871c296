"""Rows of other programs: what they print is read, what they complain of passed on, and their memory is their own."""

import sys
from pathlib import Path

import pytest
import torch

from plait.bench import rival_engines
from plait.bench.rival_engines import RivalPoint, rival_points
from plait.cli import main
from plait.config import ModelConfig
from plait.model.checkpoint import save_model
from plait.model.init import init_weights
from plait.model.network import LanguageModel

BENCH = f"""#!{sys.executable}
import json, sys
sys.exit("no such model") if "broken" in sys.argv[2] else None
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
kept = bytearray(64 << 20)
print(json.dumps([dict(avg_ts=100.0 if given["-n"] == "0" else 10.0 + int(given["-d"]) + int(given["-t"]))]))
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole search path, with a llama-bench that prints what it is asked."""
    (tmp_path / "llama-bench").write_text(BENCH)
    (tmp_path / "llama-bench").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(rival_engines, "find_spec", lambda name: None)
    return tmp_path


def test_llama_bench_is_asked_for_prompt_and_answer(path: Path) -> None:
    gguf = path / "tiny-q8_0.gguf"
    gguf.touch()
    grown = torch.zeros(200 << 20, dtype=torch.uint8)  # this process is larger than its children will be
    (point,) = rival_points(path, gguf, [128], 4, threads=2)
    assert (point.program, point.prompt_tokens) == ("llama.cpp tiny-q8_0", 128)
    assert (point.prompt_tokens_per_s, point.decode_tokens_per_s) == (100.0, 140.0)
    assert 64 << 20 < point.peak_bytes < grown.nbytes


def test_what_is_missing_and_what_fails_is_said(path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.gguf: there is no such file"):
        list(rival_points(path, path / "absent.gguf", [8], 4, threads=1))
    (path / "broken.gguf").touch()
    with pytest.raises(RuntimeError, match=r"llama-bench failed: no such model"):
        list(rival_points(path, path / "broken.gguf", [8], 4, threads=1))
    (path / "llama-bench").unlink()
    with pytest.raises(ValueError, match=r"llama-bench, a program of llama.cpp, is not on the path"):
        list(rival_points(path, path / "broken.gguf", [8], 4, threads=1))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["demo", "--gguf", "a.gguf"], "--gguf is for --rivals"),
        (["demo", "--rivals"], "--rivals compares a model's folder"),
        ([".", "--rivals", "--device", "cuda"], "--rivals compares a model's folder"),
    ],
)
def test_the_command_says_what_it_needs_before_it_runs(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_without_any_there_are_no_rows(path: Path) -> None:
    assert list(rival_points(path, None, [8], 4, threads=1)) == []


def test_transformers_runs_a_folder_that_was_saved(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = ModelConfig(vocab_size=64, d_model=32, d_ff=48, n_layers=2, n_heads=2, n_kv_heads=1, attn_period=2,
                         attn_offset=1, n_experts=2)  # fmt: skip
    save_model(init_weights(LanguageModel(config), seed=0), tmp_path / "model")
    (point,) = rival_points(tmp_path / "model", None, [6], 3, threads=1)
    assert isinstance(point, RivalPoint)
    assert point.program == "transformers"
    assert min(point.prompt_tokens_per_s, point.decode_tokens_per_s) > 0
    assert point.peak_bytes > 50 << 20
