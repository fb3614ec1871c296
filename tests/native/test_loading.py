"""The library is found or built once, the environment chooses, and without it every op still runs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from plait import native
from plait.native import build
from plait.ops.dispatch import force
from plait.ops.rms_norm import rms_norm
from plait.ops.selective_scan import IMPLEMENTATIONS

PROBE = torch.empty(0)
ANY_COMPILER = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """As in a new process with an empty cache folder; afterwards as before."""

    def forget() -> None:
        for cached in (native._open, native._why_not_open, native.kernel, native.replayer):
            cached.cache_clear()
        native._level = None

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PLAIT_NATIVE_LIBRARY", raising=False)
    forget()
    yield tmp_path / "plait"
    monkeypatch.undo()
    forget()


def test_off_is_off(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_NATIVE", "off")
    assert native.why_not(PROBE) == "PLAIT_NATIVE=off"
    assert rms_norm(torch.ones(2, 4), torch.ones(4), 1e-6).shape == (2, 4)
    with force(rms_norm="native"), pytest.raises(ValueError, match=r"native.*can't run: PLAIT_NATIVE=off"):
        rms_norm(torch.ones(2, 4), torch.ones(4), 1e-6)


def test_without_a_compiler_the_reason_says_so(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_packaged", lambda: fresh.parent / "nothing here")
    monkeypatch.setattr(build, "compiler", lambda: None)
    assert "no C compiler: install gcc or clang, or set CC" in (native.why_not(PROBE) or "")
    assert next(name for name, it in IMPLEMENTATIONS.items() if it.why_not(PROBE) is None) == "chunked"


@pytest.mark.parametrize("command", ["false", "no-such-compiler"])
def test_a_compiler_that_fails_leaves_nothing(fresh: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(native, "_packaged", lambda: fresh.parent / "nothing here")
    monkeypatch.setenv("CC", command)
    assert command in (native.why_not(PROBE) or "")
    assert not fresh.exists() or not list(fresh.iterdir())


def test_a_build_is_one_file_and_is_found_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_packaged", lambda: fresh.parent / "nothing here")
    built = build.build(fresh, ("-O0",), only=("generic",))
    assert list(fresh.iterdir()) == [built]
    monkeypatch.setattr(build, "compiler", lambda: None)  # so it can only be found
    assert native.available_levels() == ["generic"]
    assert native.level() == "generic"


def test_a_source_that_changes_changes_the_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = build.library_name()
    shutil.copytree(build.SOURCES, tmp_path / "src")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "src")
    assert build.library_name() == before
    (tmp_path / "src" / "norm.c").write_text("/* another */")
    assert build.library_name() != before


def test_what_it_cannot_compute_it_says() -> None:
    assert "float64" in (native.why_not(torch.empty(0, dtype=torch.float64)) or "")
    assert "CPU" in (native.why_not(torch.empty(0, device="meta")) or "")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def test_the_environment_chooses_the_level() -> None:
    code = "from plait import native; print(native.level())"
    assert run_python(code, PLAIT_NATIVE_LEVEL="generic").stdout.strip() == "generic"
    refused = run_python(code, PLAIT_NATIVE_LEVEL="abacus")
    assert refused.returncode != 0
    assert "PLAIT_NATIVE_LEVEL='abacus': this machine runs generic" in refused.stderr


def test_a_library_that_was_asked_for_and_cannot_be_loaded_is_an_error() -> None:
    refused = run_python(
        "import torch; from plait import native; native.why_not(torch.empty(0))", PLAIT_NATIVE_LIBRARY=__file__
    )
    assert refused.returncode != 0
    assert f"ValueError: PLAIT_NATIVE_LIBRARY={__file__!r} can't be loaded" in refused.stderr


SANITIZED = """
import importlib, torch
from plait import native
from plait.ops.case import OpCases
for op in {ops!r}:
    for ops in vars(importlib.import_module(f"plait.ops.{{op}}.cases")).values():
        if isinstance(ops, OpCases) and "native" in ops.implementations:
            for level in native.available_levels():
                for case in ops.cases:
                    for dtype in (torch.float32, torch.bfloat16):
                        if not case.large:
                            with native.at_level(level):
                                ops.run("native", ops.cast(case.inputs(torch.Generator()), "cpu", dtype), case.grads)
from plait.native.tape import record
from plait.ops.attention import native as attention
from plait.ops.linear import blocked, look_up
ids, table, x = torch.tensor([0, 6]), torch.randn(7, 33), torch.randn(20, 33)
weight, scale, pages = torch.ones(40, 33, dtype=torch.int8), torch.ones(40), torch.zeros(2, 3, 5, 2, 7)
where = torch.tensor([[2, 0, 1]]), torch.tensor([0, 6]), torch.tensor([9])
for level in native.available_levels():
    with native.at_level(level):
        for dtype in (torch.float32, torch.bfloat16):
            look_up(ids, table, dtype)
            look_up(ids, weight, dtype, scale=scale)
            attention.write_pages(*torch.ones(2, 6, 2, 7, dtype=dtype), *pages.to(dtype), *where)
            for rounded in (False, True):
                blocked.linear(x.to(dtype), weight, scale, round_activations=rounded)
                blocked.swiglu(x.to(dtype), weight, weight[:33, :20].contiguous(), scale, scale[:33].contiguous(),
                               round_activations=rounded)
        record(lambda: table + table).replay()
print("clean")
"""
PLANTED = """
import torch
from plait.ops.linear import native as products
products._multiply(torch.ones(1, 64), torch.ones(16, 32), None, bits=24)  # reads 64 columns of 32
print("not seen")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers' runtimes are preloaded the way Linux does it")
def test_the_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Every kernel on every small case under ASan and UBSan, which see torch's buffers too; and they do see a fault.

    Not optimised: with -O1 compiling takes four times as long, and it is most of the whole.
    """
    assert ANY_COMPILER is not None
    runtimes = [
        subprocess.run([ANY_COMPILER, f"-print-file-name=lib{name}.so"], capture_output=True, text=True).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    assert all(os.path.isabs(path) for path in runtimes), "this compiler has no sanitizer runtimes"
    flags = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    library = build.build(tmp_path, flags, only=("generic", native.level()))
    environment = {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PLAIT_NATIVE_LIBRARY": str(library),
        "PLAIT_NATIVE_LEVEL": "generic",
    }
    ops = ("attention", "causal_conv1d", "linear", "moe", "rms_norm", "selective_scan")
    clean = run_python(SANITIZED.format(ops=ops), **environment)
    assert clean.stdout.strip() == "clean", clean.stderr[-3000:]
    planted = run_python(PLANTED, **environment)
    assert "heap-buffer-overflow" in planted.stderr


def test_a_start_does_not_load_the_compiler() -> None:
    """torch._dynamo and sympy take a second and a half; decorators, initialisers and meta tensors drag them in."""
    code = """
import sys, torch
from plait import LLM, SamplingParams
LLM("demo").generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=2))
print(sorted({"torch._dynamo", "sympy"} & set(sys.modules)))
"""
    done = run_python(code)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]
