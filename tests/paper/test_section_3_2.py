"""Section 3.2 without its minutes of training: what is shown and drawn of given numbers, and how a drive that fails
ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from plait.paper import section_3_2


def point(size: float) -> dict[str, float]:
    return {"max": size, "ce": 4.0}


LOSSES = {"heldout_float32": 5.0, "heldout_bfloat16": 5.01, "heldout_float16": 5.0}
DATA: dict[str, Any] = {
    "heldout_at_first": 3.0,
    "drive": [point(1.0), point(2e5)],
    "driven": {**LOSSES, "heldout_float16": float("nan")},
    "runs": [
        {"alpha": 0.0, "curve": [point(2e5), point(9e4)], "steps_to_3e3": None, "loss_change": 0.0, **LOSSES},
        {"alpha": 1e-5, "curve": [point(2e5), point(30.0)], "steps_to_3e3": 2, "loss_change": -0.012, **LOSSES},
    ],
    "healthy": [
        {"alpha": 0.0, "noise": False, "heldout": 4.2, "change": 0.0, "max": 31.0},
        {"alpha": 1e-5, "noise": False, "heldout": 4.2042, "change": 0.001, "max": 29.0},
        {"alpha": 0.0, "noise": True, "heldout": 4.21, "change": 0.0024, "max": 30.0},
    ],
    "step_cost": {"share": 0.004, "spread": 0.01},
    "paper": section_3_2.PAPER,
    "conditions": {"model": "demo"},
}  # fmt: skip


def test_the_table_says_what_came_back_and_what_did_not(tmp_path: Path) -> None:
    console = Console(width=120, record=True)
    section_3_2.show(console, DATA)
    text = console.export_text()
    for part in ("2e+05", "never", "2 steps", "-1.20%", "nan", "+0.4%", "+0.100%", "healthy, other batches"):
        assert part in text
    section_3_2.draw(DATA, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_a_drive_that_does_not_get_there_says_so() -> None:
    with pytest.raises(ValueError, match="1 steps did not drive the model to 150000"):
        section_3_2.measure(section_3_2.Options(drive=1))
    with pytest.raises(ValueError, match="scale='huge'"):
        section_3_2.Options(scale="huge")
