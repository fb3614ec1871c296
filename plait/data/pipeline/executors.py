"""datatrove's executors as builds use them: quiet, as every task has its log in a file, and back when all is done."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from loguru import logger


class QuietLocalExecutor(LocalPipelineExecutor):
    """Tasks on this machine; only errors are said aloud."""

    def run(self) -> Any:
        _only_errors()
        return super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        try:
            return super()._run_for_rank(rank, max(1, local_rank), node_rank)  # worker 0 would tell everything
        finally:
            _only_errors()  # each task ends by setting its process's log back to say all


class QuietRayExecutor(RayPipelineExecutor):
    """Tasks on the nodes of a Ray cluster; one is started on this machine if none is there."""

    def run(self) -> Any:
        import ray

        _only_errors()
        if not ray.is_initialized():
            ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
        return super().run()


class WaitingSlurmExecutor(SlurmPipelineExecutor):
    """Tasks as an array job of Slurm. datatrove's own returns when they are queued; this when none is left."""

    poll_seconds = 15.0

    def run(self) -> Any:
        _only_errors()
        super().run()
        if "SLURM_ARRAY_TASK_ID" not in os.environ and self.job_id not in (None, -1):
            while is_queued(str(self.job_id)):
                time.sleep(self.poll_seconds)


def is_queued(job_id: str) -> bool:
    """Whether Slurm knows tasks of the job that wait or run; it forgets a job some minutes after its end."""
    done = subprocess.run(["squeue", "--noheader", "--jobs", job_id], capture_output=True, text=True, check=False)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise ValueError(f"squeue failed: {' '.join(done.stderr.split())}; start the build again, it goes on")
    return bool(done.stdout.strip())


def slurm_arguments(workers: int, given: Mapping[str, str], logs: Path) -> dict[str, Any]:
    """What datatrove's Slurm executor takes. `time` and `partition` have to be given; `cpus_per_task`,
    `mem_per_cpu_gb`, `qos` and `env_command` may be; any other name is one of sbatch (`account=lab`).
    """
    missing = [name for name in ("partition", "time") if name not in given]
    if missing:
        raise ValueError(
            f"slurm needs {' and '.join(missing)}: --executor-set partition=cpu --executor-set time=04:00:00"
        )
    numbers = {name: int(given[name]) for name in ("cpus_per_task", "mem_per_cpu_gb") if name in given}
    texts = {name: given[name] for name in ("partition", "time", "qos", "env_command") if name in given}
    own_programs = f"export PATH={Path(sys.executable).parent}:$PATH"
    return {
        "workers": workers,
        "job_name": f"plait_{logs.parent.name}",
        "qos": "",
        "env_command": own_programs,
        "sbatch_args": {k: v for k, v in given.items() if k not in {*numbers, *texts}},
        **numbers,
        **texts,
    }


def _only_errors() -> None:
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
