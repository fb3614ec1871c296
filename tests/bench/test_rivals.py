"""A rival is compared before it is timed, and one that is wrong or was never compared is not timed."""

from dataclasses import replace

import pytest
import torch

from plait.bench import ops as bench
from plait.bench.rivals import RIVALS, Rival, rivals_of
from plait.ops.rms_norm.cases import RMS_NORM

CPU = torch.device("cpu")
NORM = next(rival for rival in RIVALS if rival.ops is RMS_NORM)


def test_a_right_rival_passes() -> None:
    assert bench._rival_failure(NORM, CPU, torch.float32) is None


def test_a_wrong_rival_is_refused() -> None:
    def wrong(inputs: bench.Inputs, loose: bool) -> object:
        run = NORM.build(inputs, loose)
        assert run is not None
        return lambda: (run()[0] * 1.01,)

    failure = bench._rival_failure(replace(NORM, build=wrong), CPU, torch.float32)
    assert failure is not None
    assert "is off by 1.0e-02" in failure


@pytest.mark.parametrize("raises", [False, True])
def test_a_rival_that_takes_nothing_is_refused(raises: bool) -> None:
    def never(inputs: bench.Inputs, loose: bool) -> None:
        if raises:
            raise RuntimeError("head_dim must be 128")

    failure = bench._rival_failure(replace(NORM, build=never), CPU, torch.float32)
    assert failure is not None
    assert "took none" in failure


def test_only_what_is_installed_is_a_rival() -> None:
    absent = Rival("nobody", "plait_no_such_package", RMS_NORM, NORM.build)
    assert absent.name not in [rival.name for rival in rivals_of(RMS_NORM)]
    assert NORM in list(rivals_of(RMS_NORM))
