"""With a Triton that the Gluon kernels were not run with, their plain Triton twins run, and it is said."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plait.ops import chosen, dispatch, hopper, moe, selective_scan

GPU = torch.device("cuda:0")
PROBE: Any = SimpleNamespace(is_cuda=True, is_cpu=False, dtype=torch.bfloat16, device=GPU, requires_grad=False)


@pytest.fixture(autouse=True)
def a_hopper_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    hopper._reason.cache_clear()
    yield
    hopper._reason.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, triton: str) -> None:
    monkeypatch.setattr(hopper, "version", lambda package: triton)
    hopper._reason.cache_clear()


@pytest.mark.parametrize("triton", ["3.6.0", "3.6.1+git"])
def test_they_run_with_the_versions_they_were_run_with(monkeypatch: pytest.MonkeyPatch, triton: str) -> None:
    install(monkeypatch, triton)
    assert hopper.why_not_gluon(GPU) is None
    scan = dispatch.pick("selective_scan", selective_scan.IMPLEMENTATIONS, PROBE)
    assert scan is selective_scan.IMPLEMENTATIONS["gluon"].run


@pytest.mark.parametrize("triton", ["3.5.1", "3.7.1", "3.60.0", "4.0"])
def test_any_other_version_takes_plain_triton_and_says_why(monkeypatch: pytest.MonkeyPatch, triton: str) -> None:
    install(monkeypatch, triton)
    reason = hopper.why_not_gluon(GPU)
    assert reason == f"was run with triton 3.6.x only, and {triton} is installed"
    scans = (
        selective_scan.IMPLEMENTATIONS,
        selective_scan.EXPORTING_IMPLEMENTATIONS,
    )
    for implementations in scans:
        assert dispatch.pick("selective_scan", implementations, PROBE) is implementations["triton"].run
    with dispatch.force(selective_scan="gluon"), pytest.raises(ValueError, match=r"3\.6\.x only"):
        dispatch.pick("selective_scan", selective_scan.IMPLEMENTATIONS, PROBE)
    assert moe.PACKED_IMPLEMENTATIONS["gluon"].why_not(PROBE) == reason


def test_int8_weights_then_stay_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    real, weights = torch.empty, (torch.ones(256, 128, dtype=torch.int8), torch.ones(256, 128, dtype=torch.int8))
    monkeypatch.setattr(torch, "empty", lambda *shape, **how: PROBE if shape == (0,) else real(*shape, **how))
    install(monkeypatch, "3.7.1")
    assert moe.prepare(*weights) == weights
    install(monkeypatch, "3.6.0")
    assert moe.prepare(*weights)[0].dtype == torch.uint8


def test_a_run_says_so_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "chosen", lambda device, dtype: {"selective_scan": "triton", "moe": "triton"})
    install(monkeypatch, "3.7.1")
    text = chosen.sentence("cuda:0", torch.bfloat16)
    assert text.startswith("kernels: selective_scan triton, moe triton (the kernels in Gluon, for this GPU, are left")
    assert text.endswith("was run with triton 3.6.x only, and 3.7.1 is installed)")
    install(monkeypatch, "3.6.0")
    assert chosen.sentence("cuda:0", torch.bfloat16) == "kernels: selective_scan triton, moe triton"


def test_other_gpus_are_refused_without_a_word_about_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    install(monkeypatch, "3.7.1")
    assert hopper.why_not_gluon(GPU) == "is for Hopper GPUs (compute capability 9.0), got cuda:0"
    assert "Hopper" in str(hopper.why_not_gluon(torch.device("cpu")))
