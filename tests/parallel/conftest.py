"""Cases that need several processes: a test module lists them in CASES, by number of processes, and those of all
modules run in few starts for each number (worker.py): a start is an import of torch in every process.
"""

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

AT_ONCE = 12  # cases of a start: a minute and a half on two cores that others use too

Results = Callable[[int, str], Any]
Found = Callable[[int, str], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def found_everywhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    here = Path(__file__).parent
    modules = {item.module for item in request.session.items if hasattr(item, "module")}  # type: ignore[attr-defined]
    modules = {m for m in modules if hasattr(m, "CASES") and Path(m.__file__ or "").parent == here}
    started: dict[tuple[int, int], dict[str, Any] | Exception] = {}

    def results(world: int, name: str) -> Any:
        cases = [
            case | {"name": f"{module.__name__}: {case['name']}"}
            for module in sorted(modules, key=lambda module: module.__name__)
            for case in module.CASES.get(world, [])
        ]
        place = next(i for i, case in enumerate(cases) if case["name"] == name)
        start = place // AT_ONCE
        if (world, start) not in started:
            try:
                some = cases[start * AT_ONCE : (start + 1) * AT_ONCE]
                started[world, start] = _run(some, world, tmp_path_factory.mktemp(f"world{world}_{start}"))
            except (AssertionError, subprocess.TimeoutExpired) as error:
                started[world, start] = error  # said by every test that asks; not tried again
        if isinstance(was := started[world, start], Exception):
            raise was
        return was[name]

    return results


@pytest.fixture(scope="module")
def found(found_everywhere: Results, request: pytest.FixtureRequest) -> Found:
    """found(world, case) -> what every process found in a case of this module: [result of rank 0, ...]."""
    return lambda world, case: found_everywhere(world, f"{request.module.__name__}: {case}")


def _run(cases: list[dict[str, Any]], world: int, folder: Path) -> dict[str, Any]:
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
