"""Tasks elsewhere: what Slurm is asked for, with programs of its names that run the script here; Ray where it is."""

import os
import stat
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from plait.data.pipeline.build import slurm_executor
from plait.data.pipeline.executors import WaitingSlurmExecutor, is_queued, slurm_arguments
from plait.data.pipeline.recipe import Source
from plait.data.pipeline.rows import read_rows, task_file
from plait.data.pipeline.sources import SourceFile
from plait.data.pipeline.stages import Extract, Task

Prose = Callable[..., str]

# An array job: every task in the background, one after the other; the queue is a file that goes when all are done.
SBATCH = """#!/bin/bash
script="${@: -1}"
n=$(ls "$FAKE_SLURM" | wc -l)
cp "$script" "$FAKE_SLURM/script-$n"
echo "$@" >> "$FAKE_SLURM/arguments"
if grep -q launch_pickled_pipeline "$script"; then
    touch "$FAKE_SLURM/queued"
    last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
    export SLURM_NODELIST=node1
    (for task in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$task bash "$FAKE_SLURM/script-$n"; done
        rm "$FAKE_SLURM/queued") > "$FAKE_SLURM/output" 2>&1 &
fi
echo "Submitted batch job 4711"
"""
SQUEUE = '#!/bin/bash\n[ -e "$FAKE_SLURM/queued" ] && echo "4711 cpu plait R"\nexit 0\n'
SCONTROL = "#!/bin/bash\necho node1\n"
SRUN = '#!/bin/bash\nshift 3\nexec "$@"\n'  # srun -l -n 1 PROGRAM …


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that notes what was submitted."""
    programs, notes = tmp_path / "bin", tmp_path / "slurm"
    programs.mkdir()
    notes.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(notes))
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[3]}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(WaitingSlurmExecutor, "poll_seconds", 0.2)
    return notes


def extraction(folder: Path, make_prose: Prose) -> Extract:
    """Two tasks of one text each."""
    folder.mkdir(exist_ok=True)
    source = Source("s", "files", path=str(folder))
    tasks = []
    for k in range(2):
        path = folder / f"{k}.txt"
        path.write_text(make_prose(k))
        tasks.append(Task(source, (SourceFile(str(path), path.name, path.stat().st_size),)))
    return Extract(folder / "out", tuple(tasks))


def test_a_stage_is_an_array_job_and_returns_when_it_is_done(slurm: Path, tmp_path: Path, make_prose: Prose) -> None:
    step = extraction(tmp_path / "in", make_prose)
    settings = {"partition": "cpu", "time": "00:10:00", "mem_per_cpu_gb": "3", "account": "lab"}
    make = slurm_executor(8, settings)
    make([step], 2, step.out / "log").run()
    assert not (slurm / "queued").exists()
    script = (slurm / "script-0").read_text()
    for line in ("array=0-1%2", "partition=cpu", "time=00:10:00", "mem-per-cpu=3G", "account=lab", "nodes=1"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --qos" not in script
    assert f"export PATH={Path(sys.executable).parent}:$PATH\n" in script
    assert f"launch_pickled_pipeline {step.out / 'log' / 'executor.pik'}" in script
    assert sorted(path.name for path in (step.out / "log" / "completions").iterdir()) == ["00000", "00001"]
    assert [row.text for k in range(2) for row in read_rows(task_file(step.out, k))] == [make_prose(0), make_prose(1)]
    n_submitted = len((slurm / "arguments").read_text().splitlines())
    make([step], 2, step.out / "log").run()  # all is there: nothing is submitted
    assert len((slurm / "arguments").read_text().splitlines()) == n_submitted


def test_a_queue_that_cannot_be_asked_is_an_error(slurm: Path, tmp_path: Path) -> None:
    assert not is_queued("4711")
    (slurm / "queued").touch()
    assert is_queued("4711")
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text('#!/bin/bash\necho "slurm_load_jobs error: Invalid job id specified" >&2\nexit 1\n')
    assert not is_queued("4711")
    squeue.write_text('#!/bin/bash\necho "Unable to contact slurm controller" >&2\nexit 1\n')
    with pytest.raises(ValueError, match="Unable to contact slurm controller; start the build again"):
        is_queued("4711")


def test_what_slurm_needs_is_named() -> None:
    with pytest.raises(ValueError, match="slurm needs partition and time"):
        slurm_executor(2, {})
    asked = slurm_arguments(3, {"partition": "p", "time": "1", "qos": "high", "constraint": "amd"}, Path("a/b/log"))
    assert (asked["workers"], asked["job_name"], asked["qos"]) == (3, "plait_b", "high")
    assert asked["sbatch_args"] == {"constraint": "amd"}


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is an extra")
@pytest.mark.slow
def test_a_stage_on_ray(tmp_path: Path, make_prose: Prose) -> None:
    import ray

    from plait.data.pipeline.build import ray_executor

    step = extraction(tmp_path / "in", make_prose)
    ray.init(num_cpus=2, log_to_driver=False, configure_logging=False, include_dashboard=False)
    try:
        ray_executor(2)([step], 2, step.out / "log").run()
    finally:
        ray.shutdown()
    assert [row.text for k in range(2) for row in read_rows(task_file(step.out, k))] == [make_prose(0), make_prose(1)]
