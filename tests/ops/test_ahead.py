"""Kernels compiled in other processes are those that this one would compile, and nothing is launched for it."""

import logging
import stat
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plait.ops import ahead, launch
from plait.ops.ahead import Wanted, compile_ahead, noted
from plait.ops.compile_worker import Driver

triton = pytest.importorskip("triton", reason="Triton is an extra (gpu), and there is none for this platform")


@pytest.fixture
def hopper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Triton on an H100 that isn't there, with an empty cache."""
    if not hasattr(import_module("plait.ops.rms_norm.triton").forward_kernel, "kernel"):
        pytest.fail("kernels were imported for the interpreter")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    driver = Driver(sys.modules["triton.backends.compiler"].GPUTarget("cuda", 90, 32))
    monkeypatch.setattr(driver, "get_current_stream", lambda device: 0, raising=False)
    monkeypatch.setattr(sys.modules["triton.runtime.driver"].driver, "_active", driver)
    yield tmp_path
    for kernel in launch.Kernel.used:
        kernel.kernel.device_caches.clear()  # what was compiled in this process


def rehearse() -> None:
    """Two variants of a kernel, one of them twice, and two kernels that share a function."""
    from plait.ops.moe.gemv import _down_kernel, _gate_up_kernel
    from plait.ops.rms_norm.triton import forward_kernel

    x, weight = torch.randn(9, 256).bfloat16(), torch.ones(256).bfloat16()
    for rows in (9, 9, 16):
        given = x[:1] if rows == 16 else x
        forward_kernel[(3,)](
            given, given, weight, given, given, 256, 256, rows, 256, 1e-6, ROWS=rows // 8, BLOCK=256,
            HAS_RESIDUAL=False, num_warps=2,
        )  # fmt: skip
    words, scale = torch.empty(1 << 16, dtype=torch.int32), torch.empty(256)
    ids, out = torch.empty(2, dtype=torch.long), torch.empty(256).bfloat16()
    assert not words.any()
    assert not x.new_empty(5).any()
    assert not torch.empty_like(x).any()
    _down_kernel[(4,)](
        words, words, scale, ids, scale, out,
        D_MODEL=64, ATOMS=2, TOP_K=2, ROUTED=True, TILE=2, OVERLAP=True, num_warps=2,
    )  # fmt: skip
    _gate_up_kernel[(4, 2)](
        words, words, scale, ids, out, D_FF=64, ATOMS=2, ROUTED=True, TILE=2, OVERLAP=True, num_warps=2
    )


def test_what_is_compiled_ahead_is_found_afterwards(
    hopper: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = noted(rehearse)
    assert [one.name for one in wanted] == ["forward_kernel", "forward_kernel", "_down_kernel", "_gate_up_kernel"]
    ahead.get_ready()
    (worker,) = ahead._ready
    with caplog.at_level(logging.INFO, "plait.ops"):
        assert compile_ahead(rehearse) == 4
    assert worker.returncode == 0
    assert "4 of 4 kernels compiled" in caplog.text
    ahead.get_ready()
    assert not ahead._ready  # this is no first start
    assert "first start: 0 of 4" in capsys.readouterr().err
    hits = []
    triton.knobs.compilation.listener = lambda cache_hit, **_: hits.append(cache_hit)
    for one in wanted:
        getattr(import_module(one.module), one.name).kernel.preload(one.specialization)
    triton.knobs.compilation.listener = None
    assert hits == [True] * 4
    assert compile_ahead(rehearse) == 0


def test_what_does_not_compile_is_left_and_told(hopper: Path) -> None:
    first, second, *_ = noted(rehearse)
    broken = first._replace(specialization=first.specialization.replace("bf16", "nonsense"))
    edited = second._replace(source="another")
    failed, mismatched, right = (error for _, error in ahead._compiled([broken, edited, second], 1))
    assert "nonsense" in str(failed)
    assert mismatched == "its source is not what the other process has"
    assert right is None
    assert not Path(first.stamp).exists()
    assert Path(second.stamp).exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [("exit 3", "a process that compiles died"), ("exec sleep 60", "nothing was compiled for 0 s")],
)
def test_processes_that_die_or_hang(
    script: str, reason: str, hopper: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = hopper / "python"
    program.write_text(f"#!/bin/sh\ncat > /dev/null\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(ahead, "SILENCE_S", 0.2)
    assert compile_ahead(rehearse) == 0
    (record,) = caplog.records
    assert record.message.startswith("4 kernels (plait.ops.")
    assert record.message.endswith(f"are compiled when they are needed: {reason}")


def test_a_process_that_got_ready_for_nothing_ends(hopper: Path) -> None:
    ahead.get_ready()
    (worker,) = ahead._ready
    assert compile_ahead(lambda: None) == 0
    assert not ahead._ready
    assert worker.returncode is not None


def test_processes_share_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jobs = [Wanted("m", str(i), "", "", str(tmp_path / str(i))) for i in range(5)]
    orders = []
    monkeypatch.setattr(ahead, "noted", lambda _: jobs)
    monkeypatch.setattr(ahead, "_compiled", lambda given, n: orders.append([one.name for one in given]) or [])
    for place in range(2):
        compile_ahead(lambda: None, share=(place, 2))
    assert orders == [["0", "1", "2", "3", "4"], ["2", "3", "4", "0", "1"]]


def test_a_rehearsal_that_fails_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("no such product")

    assert compile_ahead(fail) == 0
    assert "one by one as they are needed, since the rehearsal failed: no such product" in caplog.text


def test_other_threads_launch_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, launched = [], []
    kernel = launch.Kernel(SimpleNamespace(params=[]))
    monkeypatch.setattr(launch.Kernel, "_launch", lambda self, grid, *given, **constants: launched.append(given))

    def rehearsal(*call: Any) -> None:
        taken.append(call)

    with launch.instead_of_launches(rehearsal):
        other = threading.Thread(target=lambda: kernel[(1,)]("other"))
        other.start()
        other.join()
        kernel[(2,)]("own")
    kernel[(1,)]("after")
    assert taken == [(kernel, (2,), "own")]
    assert launched == [("other",), ("after",)]
