"""Cases that need several processes: a test module lists them in CASES, by number of processes, and those of all
modules run in one start for each number (worker.py): a start is an import of torch in every process.
"""

from __future__ import annotations

import functools
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

Found = Callable[[int], dict[str, Any]]


@pytest.fixture(scope="session")
def found_everywhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    modules = {item.module for item in request.session.items if hasattr(item, "module")}  # type: ignore[attr-defined]
    here = Path(__file__).parent
    modules = {module for module in modules if hasattr(module, "CASES") and Path(module.__file__ or "").parent == here}

    @functools.cache
    def run(world: int) -> dict[str, Any]:
        cases = [
            case | {"name": f"{module.__name__}: {case['name']}"}
            for module in sorted(modules, key=lambda module: module.__name__)
            for case in module.CASES.get(world, [])
        ]
        return _run(cases, world, tmp_path_factory.mktemp(f"world{world}"))

    return run


@pytest.fixture(scope="module")
def found(found_everywhere: Found, request: pytest.FixtureRequest) -> Found:
    """found(world) -> what every process found in this module's cases, {case name: [result of rank 0, ...]}."""
    prefix = f"{request.module.__name__}: "
    return lambda world: {
        name.removeprefix(prefix): results
        for name, results in found_everywhere(world).items()
        if name.startswith(prefix)
    }


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
