"""Requests made from our own OpenAPI description, right and wrong ones: no 5xx, no reply that breaks it.

The short run is part of CI. The long one, at least 10,000 cases, takes about ten minutes: `pytest --slow` on this file.
`positive_data_acceptance` is left out: what fits the schema may still be wrong (a token id that the model hasn't).
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or ""
pytestmark = pytest.mark.skipif(not COMMAND, reason="schemathesis is not installed (the extra dev brings it)")


def n_cases(url: str, *options: str) -> int:
    """Runs it; how many cases it tried. Fails with its report if one of them failed."""
    fixed = ["--checks=all", "--exclude-checks=positive_data_acceptance", "--mode=all", "--seed=1", "--no-color"]
    fixed += ["--generation-database=none", "--suppress-health-check=all", "--warnings=off"]
    ran = subprocess.run(
        [COMMAND, "run", f"{url}/openapi.json", *fixed, *options], capture_output=True, text=True, timeout=3000
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    counted = re.search(r"([\d,]+) generated", ran.stdout)
    assert counted is not None, ran.stdout[-2000:]
    return int(counted[1].replace(",", ""))


def test_some_hundreds(start: Callable, make_service: Callable, tmp_path: Path) -> None:
    with start(make_service(), batch_folder=tmp_path) as live:
        assert n_cases(live.url, "--phases=fuzzing", "--max-examples=20") >= 250


@pytest.mark.slow
def test_ten_thousand(start: Callable, make_service: Callable, tmp_path: Path) -> None:
    with start(make_service(), batch_folder=tmp_path) as live:
        assert n_cases(live.url, "--max-examples=650", "--workers=2") >= 10_000
