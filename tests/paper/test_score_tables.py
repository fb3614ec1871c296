"""Tables 2 to 6: the paper's cells are consistent with each other, and runs of ours stand beside them."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from plait.cli import main
from plait.eval.ruler.scoring import as_length, effective_length
from plait.paper import TAKES_RUNS, table_2, table_3, table_4, table_5, table_6
from plait.paper.score_table import MODELS

TABLES = {"table_2": table_2, "table_3": table_3, "table_5": table_5, "table_6": table_6}


def write_run(folder: Path, scores: dict) -> Path:
    folder.mkdir()
    (folder / "scores.json").write_text(
        json.dumps({"model": "models/ours", "groups": {}, "n": 7, "summary": {}} | scores)
    )
    (folder / "settings.json").write_text("{}")
    (folder / "samples.jsonl").write_text("")
    return folder


def metric(value: float) -> dict:
    return {"value": value, "low": value - 2, "high": value + 2, "n": 7, "unit": "%"}


def test_table_4_averages_are_the_means_of_its_rows() -> None:
    for name, row in table_4.PAPER.items():
        scores = [score for score in row.scores if score is not None]
        assert sum(scores) / len(scores) == pytest.approx(row.average, abs=0.11), name


def test_table_4_effective_lengths_follow_rulers_rule() -> None:
    for name, row in table_4.PAPER.items():
        scores = {n: s for n, s in zip(table_4.LENGTHS, row.scores, strict=True) if s is not None}
        found = effective_length(scores)
        assert found is not None
        assert as_length(found) == row.effective.lstrip(">"), name


def test_table_6_averages() -> None:
    rows = table_6.TABLE.rows
    for column, average in enumerate(rows["average"]):
        if average != "-":
            values = [float(cells[column]) for name, cells in rows.items() if name != "average"]
            assert sum(values) / 7 == pytest.approx(float(average), abs=0.006)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_all_cells_are_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = TABLES[name].TABLE
    assert table.columns == MODELS
    TABLES[name].show(Console(width=80, markup=False, highlight=False))
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert all(cell in out for cells in table.rows.values() for cell in cells)
    assert "--run DIR" in out


def test_ours_stand_beside_the_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gsm8k = write_run(tmp_path / "a", {"task": "gsm8k", "metrics": {"strict": metric(61.25), "flexible": metric(70)}})
    mmlu = write_run(
        tmp_path / "b", {"task": "harness", "metrics": {}, "groups": {"mmlu": {"metrics": {"acc": metric(50)}}}}
    )
    assert main(["paper", "table_2", "--run", str(gsm8k), "--run", str(mmlu), "--json"]) == 0
    rows = {row["benchmark"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["GSM8K"]["paper"]["Jamba-1.5-Mini"] == "75.8"
    assert rows["GSM8K"]["ours"]["models/ours"]["value"] == 61.25
    assert rows["MMLU"]["ours"]["models/ours"]["value"] == 50
    assert rows["BFCL"]["ours"] == {}
    table_2.show(Console(width=200, markup=False, highlight=False), [gsm8k])
    assert "61.2 ±2.0" in capsys.readouterr().out


def test_table_4_with_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = {
        "by_length": {"4096": 91.0, "8192": 86.0}, "by_task": {"vt": {}, "qa_1_xquad": {}}, "average": 88.5,
        "effective_length": 8192, "passes_longest": True,
    }  # fmt: skip
    run = write_run(tmp_path / "r", {"task": "ruler", "metrics": {}, "summary": summary})
    table_4.show(Console(width=80, markup=False, highlight=False), [run])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    words = [line.split() for line in lines]
    assert ["Jamba-1.5-Mini", "256K", "256K", "95.7", "95.2", "94.7", "93.8", "92.7", "89.8", "86.1", "92.6"] in words
    assert ["ours", ">8K", "91.0", "86.0", "-", "-", "-", "-", "-", "88.5"] in words
    assert any("qa_1_xquad use other texts" in line for line in lines)
    short = summary | {"by_length": {"1024": 91.0, "2048": 86.0}}
    short_run = write_run(tmp_path / "s", {"task": "ruler", "metrics": {}, "summary": short})
    table_4.show(Console(width=80, markup=False, highlight=False), [run, short_run])
    assert "…" not in capsys.readouterr().out
    other = write_run(tmp_path / "o", {"task": "bbh", "metrics": {}})
    with pytest.raises(ValueError, match="is a run of bbh"):
        table_4.as_json([other])


def test_runs_go_with_tables_of_scores_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "table_1", "--run", str(tmp_path)]) == 2
    assert "--run goes with table_2" in capsys.readouterr().err
    assert main(["paper", "table_4", "--run", str(tmp_path)]) == 1
    assert {"table_2", "table_4"} < TAKES_RUNS
