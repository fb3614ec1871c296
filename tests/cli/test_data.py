"""`plait data build`, `plait data tokenizer` and `plait data inspect`."""

import json
from pathlib import Path
from typing import Any

import pytest

from plait.cli import main
from plait.text import Tokenizer


def test_tokenizer(workplace: Path, tmp_path: Path, run_plait: Any) -> None:
    out = tmp_path / "tokenizer"
    done = run_plait(
        "data", "tokenizer", "train.txt", "--held-out", "heldout.txt", "--vocab-size", 400, "--out", out, "--json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["vocab_size"], report["train"]["sources"]) == (400, ["train.txt"])
    held_out = (workplace / "heldout.txt").read_text()
    assert report["held_out"]["n_tokens"] == len(Tokenizer.from_folder(out).encode(held_out))


def test_inspect(workplace: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    shards = str(workplace / "run" / "data" / "heldout")
    assert main(["data", "inspect", shards, "--tokenizer", model, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n_documents"], report["vocab_size"]) == (1, 320)
    assert report["samples"][0]["text"].startswith((workplace / "heldout.txt").read_text()[:40])
    assert main(["data", "inspect", shards, "--samples", "0"]) == 0
    assert "1 documents" in capsys.readouterr().out


def test_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datatrove")
    assert main(["data", "build"]) == 0
    assert "debian_docs " in capsys.readouterr().out
    lines = [
        f"The keeper of tower {n} wrote in his book that ship {n * 7} had come before the storm." for n in range(60)
    ]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'[tokens]\nvocab_size = 600\nheldout_share = 0.0\n[[source]]\nname = "own"\nkind = "files"\nprofile = "none"\n'
        f'path = "{tmp_path / "a.txt"}"\n'
    )
    out = tmp_path / "out"
    assert main(["data", "build", str(recipe), "--out", str(out), "--workers", "1", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((out / "funnel.json").read_text())
    assert printed.err == ""
    assert sorted(path.name for path in out.iterdir()) == [
        "funnel.html", "funnel.json", "manifest.json", "shards", "tokenizer", "work",
    ]  # fmt: skip
    assert main(["data", "inspect", str(out / "shards" / "own")]) == 0


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["build", "nothing"], 2, "no data recipe 'nothing': there are novels, small_docs, debian_docs"),
        (["build", "novels", "--workers", "0"], 2, "--workers 0 must be at least 1"),
        (["build", "novels", "--executor", "slurm"], 2, "slurm needs partition and time"),
        (["build", "novels", "--executor-set", "time=1"], 2, "--executor-set goes with --executor slurm"),
        (
            ["build", "novels", "--executor", "slurm", "--executor-set", "time"],
            2,
            "--executor-set time: write KEY=VALUE",
        ),
        (["inspect", "missing"], 1, "missing has no metadata.json: not a shards folder"),
        (["inspect", "missing:x,other:2"], 1, "'missing:x' must be a shards folder, FOLDER:WEIGHT"),
        (["inspect", "missing", "--samples", "-1"], 2, "--samples -1 must not be negative"),
        (["tokenizer", "missing.txt", "--out", "OUT"], 1, "missing.txt does not exist"),
        (["tokenizer", "--vocab-size", "10", "--out", "OUT"], 1, "vocab_size=10 must be at least 280"),
    ],
)
def test_errors_are_one_line(
    argv: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["data", *(str(out) if a == "OUT" else a for a in argv)]) == code
    err = capsys.readouterr().err
    assert err.startswith("plait data: ")
    assert (says in err, err.count("\n")) == (True, 1)
    assert not out.exists()
