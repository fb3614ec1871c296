"""Cases that need several processes: all of one number of processes run in one start of them (worker.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).parents[2]
TIMEOUT = 280  # seconds for all cases of a start; a process that hangs shows its stacks at 260


@pytest.fixture(scope="session")
def run_cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[dict[str, Any]], int], dict[str, Any]]:
    """run_cases(cases, world) -> what every process found, {case name: [result of rank 0, ...]}."""

    def run(cases: list[dict[str, Any]], world: int) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(f"world{world}")
        (folder / "cases.json").write_text(json.dumps(cases))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        arguments = [str(WORKER), str(folder / "cases.json"), str(folder / "found")]
        processes = []
        for rank in range(world):
            with (folder / f"log.{rank}").open("w") as log:
                command = [sys.executable, *arguments, str(rank), str(world), str(folder / "store")]
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        try:
            for process in processes:
                process.wait(timeout=TIMEOUT)
        finally:
            for process in processes:
                process.kill()
        logs = "\n".join((folder / f"log.{rank}").read_text()[-3000:] for rank in range(world))
        assert [process.returncode for process in processes] == [0] * world, logs
        found = [json.loads((folder / f"found.{rank}").read_text()) for rank in range(world)]
        return {case["name"]: [results[case["name"]] for results in found] for case in cases}

    return run
