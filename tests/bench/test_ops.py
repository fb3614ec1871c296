"""`plait bench ops`: right implementations are timed, wrong ones are not."""

import json

import pytest
import torch

from plait.bench import ops as bench
from plait.cli import main
from plait.ops.case import Case, Cost, Inputs, OpCases
from plait.ops.dispatch import Implementation, anywhere, pick


def _op(wrong: bool) -> OpCases:
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * (3 if wrong else 2)

    implementations = {"fast": Implementation(double, anywhere), "reference": Implementation(lambda x: x * 2, anywhere)}

    def inputs(size: int) -> Inputs:
        return {"x": torch.ones(size, dtype=torch.float64)}

    return OpCases(
        op="double",
        call=lambda x: (pick("double", implementations, x)(x),),
        implementations=implementations,
        cases=(
            Case("small", lambda _: inputs(5)),
            Case("big", lambda _: inputs(100_000), large=True, cost=lambda i: Cost(bytes=8 * i["x"].numel(), flops=7)),
            Case("for a GPU", lambda _: inputs(1 << 30), large=True),
        ),
        tolerance={torch.float32: 1e-6},
    )


def _rows(monkeypatch, *, wrong: bool = False, **options) -> list[bench.Row]:
    monkeypatch.setattr(bench, "all_op_cases", lambda: [_op(wrong)])
    monkeypatch.setattr(bench, "copy_bandwidth", lambda _: 1e9)
    monkeypatch.setattr(bench, "SECONDS", {"cpu": 0.01})
    return list(bench.bench_ops(torch.device("cpu"), torch.float32, **options))


def test_a_right_implementation_is_timed(monkeypatch) -> None:
    (row,) = _rows(monkeypatch)
    assert (row.op, row.case, row.implementation) == ("double", "big", "fast")
    assert row.ms > 0
    assert abs(row.gb_per_s * row.ms - 0.8) < 1e-9  # 100,000 fp32 in and out: 0.8 MB
    assert abs(row.floor_share - row.gb_per_s) < 1e-9  # the copy moves 1 GB/s


def test_what_is_too_large_for_a_cpu_is_named(monkeypatch) -> None:
    monkeypatch.setattr(bench, "all_op_cases", lambda: [_op(wrong=False)])
    assert bench.left_out(torch.device("cpu")) == ["double, for a GPU"]
    assert bench.left_out(torch.device("cuda")) == []


def test_a_wrong_implementation_is_not_timed(monkeypatch) -> None:
    (row,) = _rows(monkeypatch, wrong=True)
    assert row.ms is None
    assert "out0 of 'small' is off by 5.0e-01" in row.note


def test_the_reference_is_timed_when_asked_for(monkeypatch) -> None:
    assert [row.implementation for row in _rows(monkeypatch, with_reference=True)] == ["fast", "reference"]
    assert _rows(monkeypatch, only=["other"]) == []


def test_the_command_writes_each_row_as_soon_as_it_is_there(monkeypatch, tmp_path, capsys) -> None:
    def rows(*_, **__):
        for name in ("first", "second"):
            yield bench.Row("double", "big", name, 1.0)
            written = (tmp_path / "rows.jsonl").read_text().splitlines()
            assert json.loads(written[-1])["implementation"] == name

    monkeypatch.setattr(bench, "bench_ops", rows)
    monkeypatch.setattr(bench, "left_out", lambda *_: [])
    assert main(["bench", "ops", "rms_norm", "--json", "--rows", str(tmp_path / "rows.jsonl")]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tuned", "x.json"], "give --tune too"),
        (["--plot", "no/such/folder/r.png"], "there is no folder no/such/folder"),
        (["no_such_op"], "no op 'no_such_op'"),
    ],
)
def test_wrong_usage(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ops", *arguments]) == 2
    assert told in capsys.readouterr().err
