"""Programs that try to get out: each is stopped by the kernel, and nothing of what they tried is left."""

import os
import sys
import time
from pathlib import Path

import pytest

from plait.eval.sandbox import need_sandbox, run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs of a model are run on Linux only")

REFUSED = {
    "a socket": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "a bare socket": "import _socket; _socket.socket()",
    "another program": "import subprocess; subprocess.run(['true'])",
    "another program, past the standard library": (
        "import _posixsubprocess, os\nr, w = os.pipe() if 0 else (3, 4)\n_posixsubprocess.fork_exec([b'/bin/true'],"
        " [b'/bin/true'], True, (), None, None, -1, -1, -1, -1, -1, -1, r, w, False, False, 0, None, None, None, -1,"
        " None, False)"
    ),
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "a fork bomb": "import os\nwhile True: os.fork()",
    "a bomb of threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()",
    "a file": "open({there!r}, 'w')",
    "a file, with the guard's own names changed": (
        "import os, sys\nos.path.realpath = lambda path: os.getcwd()\nf = sys._getframe()\n"
        "while f:\n    f.f_globals['_ALLOWED'] = {{}}\n    f = f.f_back\nopen({there!r}, 'w')"
    ),
    "a file from an open folder": (
        "import os\nd = os.open({folder!r}, os.O_RDONLY)\nos.open('out', os.O_CREAT | os.O_WRONLY, dir_fd=d)"
    ),
    "a file opened for appending": "import os; os.open({there!r}, os.O_APPEND | os.O_CREAT)",
    "a file without a name": "import os; os.open({folder!r}, os.O_TMPFILE | os.O_RDWR)",
    "a database": "import sqlite3; sqlite3.connect({there!r}).execute('create table a (b)')",
    "a fifo": "import os; os.mkfifo({there!r})",
    "a link": "import os; os.symlink('/etc', {there!r})",
    "another folder": "import os; os.chdir({folder!r})",
    "removing a file": "import os; os.remove({kept!r})",
    "renaming a file": "import os; os.rename({kept!r}, {there!r})",
    "cutting a file": "import os; os.truncate({kept!r}, 0)",
    "permissions": "import os; os.chmod({kept!r}, 0)",
    "a signal to the parent": "import os; os.kill(os.getppid(), 15)",
    "higher limits": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (10, 10))",
    "memory of another process": "open(f'/proc/{{__import__(\"os\").getppid()}}/mem', 'r+b')",
}


@pytest.mark.parametrize("attempt", REFUSED)
def test_the_kernel_refuses(attempt: str, tmp_path: Path) -> None:
    kept, there = tmp_path / "kept", tmp_path / "out"
    kept.write_text("x")
    outcome = run_program(REFUSED[attempt].format(there=str(there), folder=str(tmp_path), kept=str(kept)))
    assert not outcome.passed
    refusals = "not permitted", "can't start new thread", "unable to open", "not allowed"
    assert any(said in outcome.said for said in refusals)
    assert not there.exists()
    assert kept.read_text() == "x"


def test_machine_code_is_filtered_too(tmp_path: Path) -> None:
    source = f"import ctypes; assert ctypes.CDLL(None).system(b'touch {tmp_path}/out') != 0"
    assert run_program(source).passed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import signal\nfor s in (1, 2, 3, 10, 12, 13, 14, 15, 24): signal.signal(s, 1)\nwhile True: pass",
        "while True: print('x' * 1_000_000)",
        "import time; time.sleep(60)",
    ],
)
def test_time_is_limited_whatever_it_does(source: str) -> None:
    start = time.monotonic()
    outcome = run_program(source, timeout_s=1)
    assert outcome.said == "stopped after 1 seconds"
    assert time.monotonic() - start < 4


def test_memory_and_words_are_limited() -> None:
    assert "MemoryError" in run_program("x = bytearray(4 << 30)").said
    assert not run_program("import sys\nwhile True: sys.stderr.write('x' * 10_000)").passed


@pytest.mark.parametrize("source", ["raise SystemExit", "import os; os._exit(0)", "assert False", "(", "\ud800"])
def test_what_does_not_come_to_its_end_has_not_passed(source: str) -> None:
    assert not run_program(source).passed


def test_ordinary_programs_run_and_see_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "x")
    modules = "math, re, json, random, heapq, itertools, functools, collections, datetime, hashlib, decimal, statistics"
    source = f"import os, {modules}\nassert 'SECRET_KEY' not in os.environ\nprint(sorted([3, 1, 2]))\n" + "#" * 300_000
    outcome = run_program(source)
    assert outcome.passed, outcome.said


def test_no_process_and_no_file_is_left() -> None:
    before = set(os.listdir("/dev/fd"))
    for _ in range(5):
        run_program("x = 1")
    assert len(set(os.listdir("/dev/fd"))) <= len(before)


def test_where_programs_cannot_be_shut_in_none_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ValueError, match="not on linux riscv64"):
        need_sandbox()
