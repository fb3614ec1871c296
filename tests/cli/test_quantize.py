"""`plait quantize` and `plait convert`: what is written can be used, and nothing is half written."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plait.cli import main
from plait.config import ModelConfig
from plait.model import checkpoint, weight_writer
from plait.model.checkpoint import save_model
from plait.model.init import init_weights
from plait.model.network import LanguageModel
from plait.serve import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def answer(folder: str | Path) -> str:
    return LLM(folder).generate("Emma was", GREEDY)[0].text


def test_quantize_as_a_process(run_plait: Any, model: str, workplace: Path) -> None:
    done = run_plait("quantize", model, "int8")
    assert (done.returncode, done.stderr) == (0, "")
    assert "experts and MLPs, bytes      46,592   14,592   31.3%" in done.stdout
    assert done.stdout.endswith("written to int8\n")
    assert answer(workplace / "int8") == LLM(model, quantize="experts_int8").generate("Emma was", GREEDY)[0].text
    tensors = load_file(workplace / "int8" / "model.safetensors")
    assert {n.split(".")[-2] for n, t in tensors.items() if t.dtype == torch.int8} == {
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert (workplace / "int8" / "tokenizer.json").exists()


@pytest.mark.parametrize("level", ["experts", "experts+mlp"])
def test_quantize_json(level: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", model, str(tmp_path / "q"), "--level", level, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["method"], report["level"]) == ("experts_int8", level)
    n_moe, n_mlp, rows = 2 * 4, 2, 2 * 24 + 16  # matrices of experts and MLPs, rows of gate, up and down
    weights = 3 * 16 * 24
    assert report["feed_forward_bytes_before"] == 4 * ((n_moe + n_mlp) * weights + 2 * 4 * 16)
    n_int8 = n_moe + (n_mlp if level == "experts+mlp" else 0)
    saved = n_int8 * (3 * weights - 4 * rows)
    assert report["bytes_before"] - report["bytes_after"] == saved
    assert report["feed_forward_bytes_before"] - report["feed_forward_bytes_after"] == saved
    assert json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]["plait"]["level"] == level


def test_convert_writes_what_it_read(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", model, str(tmp_path / "fused"), "--to", "hf-fused"]) == 0
    assert capsys.readouterr().out == f"written to {tmp_path / 'fused'}\n"
    assert main(["convert", str(tmp_path / "fused"), str(tmp_path / "hf")]) == 0
    names = {n: set(load_file(tmp_path / n / "model.safetensors")) for n in ("fused", "hf")}
    assert "model.layers.1.feed_forward.experts.gate_up_proj" in names["fused"] - names["hf"]
    original, back = (load_file(Path(f) / "model.safetensors") for f in (model, tmp_path / "hf"))
    assert original.keys() == back.keys()
    assert all(torch.equal(original[name], back[name]) for name in original)
    assert answer(model) == answer(tmp_path / "fused") == answer(tmp_path / "hf")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_convert_to_another_precision(dtype: str, model: str, tmp_path: Path) -> None:
    assert main(["convert", model, str(tmp_path / "half"), "--dtype", dtype]) == 0
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    wide = ("A_log", ".D", "dt_proj.bias")  # what a mixer keeps in fp32
    assert {t.dtype for n, t in tensors.items() if not n.endswith(wide)} == {getattr(torch, dtype)}
    assert LLM(tmp_path / "half").model.dtype == getattr(torch, dtype)
    assert isinstance(answer(tmp_path / "half"), str)


def test_int8_experts_have_no_fused_spelling(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["quantize", model, str(tmp_path / "int8")])
    assert main(["convert", str(tmp_path / "int8"), str(tmp_path / "f"), "--to", "hf-fused"]) == 1
    assert "int8 experts, which have no fused spelling; use --to hf" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()
    assert main(["convert", str(tmp_path / "int8"), str(tmp_path / "again")]) == 0
    assert answer(tmp_path / "again") == answer(tmp_path / "int8")


COMMANDS = pytest.mark.parametrize("command", ["quantize", "convert"])


@COMMANDS
@pytest.mark.parametrize("moment", ["weights written", "files copied", "all but renamed"])
@pytest.mark.parametrize("target_exists", [False, True])
def test_an_interrupt_leaves_no_half_checkpoint(
    command: str, moment: str, target_exists: bool, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    if target_exists:
        shutil.copytree(model, target)
    places: dict[str, tuple[Any, str]] = {
        "weights written": (weight_writer if command == "quantize" else checkpoint, "save_file"),
        "files copied": (shutil, "copy2"),
        "all but renamed": (Path, "chmod"),
    }
    real = getattr(*places[moment])

    def interrupted(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(*places[moment], interrupted)
    assert main([command, model, str(target)]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["target"] * target_exists
    if target_exists:
        assert answer(target) == answer(model)


@COMMANDS
@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("MODEL", "MODEL", "is the source itself; name another folder"),
        ("MODEL", "MODEL/../model", "is the source itself"),
        ("MODEL", "MODEL/int8", "lie in one another"),
        ("MODEL", "MODEL/..", "lie in one another"),
        ("TMP/missing", "TMP/x", "is no model"),
        ("TMP", "TMP/x", "is no model"),
        ("TMP/cut", "TMP/x", "model.safetensors"),
        ("TMP/pickle", "TMP/x", "is a pickle"),
        ("MODEL", "TMP/full", "is not empty and no model; name a new folder"),
        ("MODEL", "TMP/file", "/file"),
        ("MODEL", "TMP/file/x", "file"),
    ],
)
def test_bad_folders(
    command: str, source: str, target: str, says: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    shutil.copytree(model, tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "model.safetensors", 1000)
    shutil.copytree(model, tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").rename(tmp_path / "pickle" / "pytorch_model.bin")
    before = sorted(tmp_path.rglob("*")), sorted(Path(model).rglob("*"))
    argv = [a.replace("MODEL", model).replace("TMP", str(tmp_path)) for a in (source, target)]
    assert main([command, *argv]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"plait {command}: ")
    assert says in err
    assert (sorted(tmp_path.rglob("*")), sorted(Path(model).rglob("*"))) == before


def test_an_existing_model_is_replaced_and_keeps_its_other_files(model: str, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "target")
    (tmp_path / "target" / "NOTES.md").write_text("mine")
    assert main(["quantize", model, str(tmp_path / "target")]) == 0
    assert (tmp_path / "target" / "NOTES.md").read_text() == "mine"
    assert LLM(tmp_path / "target").model.feed_forwards()[0].is_int8


def test_quantize_reports_on_a_text(
    model: str, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["quantize", model, str(tmp_path / "q"), "--text", str(workplace / "heldout.txt"), "--seq", "64", "--fp16"]
    assert main([*argv, "--level", "experts+mlp+mixers", "--head", "--tokens", "300"]) == 0
    out = capsys.readouterr().out
    assert "perplexity before" in out
    assert "over 252 positions" in out  # 300 tokens are 4 sequences of 63 behind the beginning-of-text id
    assert "fp16: 0 sites overflow" in out
    assert "worst row" in out
    report = json.loads((tmp_path / "q" / "quantization_report.json").read_text())
    assert abs(report["quality"]["perplexity_change"]) < 0.01
    assert report["fp16"]["overflowing"] == []
    assert report["head"] is True
    assert {m["name"] for m in report["matrices"]} >= {"head.weight", "layers.2.mixer.q_proj.weight"}


@pytest.mark.parametrize("extra", [["--method", "fp8"], ["--packed"], ["--group", "8", "--clip"]])
def test_other_forms_answer_too(extra: list[str], model: str, tmp_path: Path) -> None:
    assert main(["quantize", model, str(tmp_path / "q"), *extra]) == 0
    assert len(LLM(tmp_path / "q").generate("Emma was", GREEDY)[0].token_ids) == 12


def test_gptq_by_command(model: str, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["quantize", model, str(tmp_path / "q"), "--method", "gptq", "--bits", "4", "--group", "8", "--json"]
    assert main(argv) == 2
    assert "needs --calibration FILE" in capsys.readouterr().err
    text = str(workplace / "train.txt")
    assert main([*argv, "--calibration", text, "--text", text, "--seq", "128", "--tokens", "1000"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bits"] == 4
    assert abs(report["quality"]["perplexity_change"]) < 0.05
    assert len(LLM(tmp_path / "q").generate("Emma was", GREEDY)[0].token_ids) == 12


@pytest.mark.parametrize(
    ("extra", "code", "says"),
    [
        (["--fp16"], 2, "--fp16 needs --text FILE"),
        (["--bits", "4"], 1, "bits=4 must be 8, or 4 with method='gptq'"),
        (["--group", "16"], 1, "group=16 does not divide 24 columns"),
        (["--text", "missing.txt"], 1, "missing.txt is no file"),
        (["--tokens", "1"], 2, "must be at least 2"),
    ],
)
def test_quantize_refuses(
    extra: list[str], code: int, says: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", model, str(tmp_path / "q"), *extra]) == code
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_quantizing_what_is_quantized_says_so(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", model, str(tmp_path / "once")]) == 0
    assert "nothing was rounded" not in capsys.readouterr().out
    assert main(["quantize", str(tmp_path / "once"), str(tmp_path / "twice")]) == 0
    assert "nothing was rounded: all weights of this level were quantized in" in capsys.readouterr().out.replace(
        "\n", " "
    )


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--method", "fp8"], "method='fp8' needs"),
        (["--method", "bf16"], "method='bf16' needs"),
        (["--method", "gptq", "--calibration", "text"], "method='gptq' with bits=8 needs"),
        (["--group", "8"], "method='experts_int8' with group=8 needs"),
        (["--bf16-scales"], "bf16_scales needs"),
        (["--clip"], "clip needs"),
    ],
)
def test_what_quantized_weights_cannot_become_is_refused(
    arguments: list[str], asked: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read or written: no file says fp8 of weights that are int8."""
    (tmp_path / "text").write_text("Emma was")
    arguments = [str(tmp_path / a) if a == "text" else a for a in arguments]
    main(["quantize", model, str(tmp_path / "once")])
    capsys.readouterr()
    assert main(["quantize", str(tmp_path / "once"), str(tmp_path / "twice"), *arguments]) == 1
    told = capsys.readouterr().err
    assert f"quantized already (int8, a scale per row, by experts_int8); {asked} them in full precision" in told
    assert not (tmp_path / "twice").exists()


def test_a_level_that_the_model_lacks_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = ModelConfig(
        vocab_size=64, d_model=16, d_ff=24, n_layers=2, n_heads=2, n_kv_heads=1, n_experts=1, top_k=1, dt_rank=2
    )
    save_model(init_weights(LanguageModel(dense), seed=0), tmp_path / "dense")
    assert main(["quantize", str(tmp_path / "dense"), str(tmp_path / "q"), "--level", "experts"]) == 0
    assert "nothing was rounded: the model has no weights of level experts" in capsys.readouterr().out


def test_a_text_of_bytes_is_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_bytes(b"ok \xff\xfe")
    assert main(["quantize", model, str(tmp_path / "q"), "--text", str(tmp_path / "text")]) == 1
    assert "text is not UTF-8 text: invalid start byte at byte 3" in capsys.readouterr().err
    assert not (tmp_path / "q").exists()
