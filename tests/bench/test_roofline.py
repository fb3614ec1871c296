"""The roofline is drawn, whole or not at all."""

import warnings
from pathlib import Path

import pytest

from plait.bench.ops import Row
from plait.bench.roofline import plot

pytest.importorskip("matplotlib", reason="pictures are an extra (train)")


def test_a_picture_is_written(tmp_path: Path) -> None:
    rows = [
        Row("scan", "big", "fast", ms=1.0, gflop_per_s=50.0, flops_per_byte=2.0),
        Row("norm", "big", "fast", ms=1.0),  # nothing is known of its operations
        Row("moe", "big", "slow", None, note="not timed"),
    ]
    plot(rows, 3e12, 7e14, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["roofline.png"]


def test_rows_without_operations_leave_the_ceilings_alone(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot([Row("slots", "a case", "native", 1.0)], 1e11, 1e12, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
