"""`plait bench train` on the CPU: cases as they are written, sizes that fit, and one timed end to end."""

from __future__ import annotations

import json

import pytest
import torch

from plait.accounting import count_active_parameters, count_parameters
from plait.bench.train import SHAPES, Case, as_row, jamba_shape, shape_of, time_case, training_bytes
from plait.cli import main

CPU = torch.device("cpu")


def test_cases_are_parsed_and_bad_ones_named() -> None:
    found = Case.parse("jamba-1.8b:4x2048:recompute=selective:accumulate=2:graph")
    assert found == Case("jamba-1.8b", 4, 2048, accumulate=2, recompute="selective", graph=True)
    for text, why in {"huge:1x2": "no shape 'huge'", "tiny:1": "ROWSxTOKENS", "tiny:1x2:speed=9": "'speed'"}.items():
        with pytest.raises(ValueError, match=why):
            Case.parse(text)


def test_the_compared_shape_is_that_of_the_measurement() -> None:
    assert count_parameters(SHAPES["jamba-1.8b"]) == pytest.approx(1.84e9, rel=1e-3)
    assert count_active_parameters(SHAPES["jamba-1.8b"]) == pytest.approx(0.87e9, rel=3e-3)


def test_filling_takes_the_widest_that_fits() -> None:
    config = shape_of(Case("fill", 2, 256), CPU)  # a CPU counts as 8 GiB
    wider = jamba_shape(config.d_model + 256)
    assert training_bytes(config, 512, "bfloat16_weights", recomputes=False) < 0.94 * 2**33
    assert training_bytes(wider, 512, "bfloat16_weights", recomputes=False) >= 0.94 * 2**33
    with pytest.raises(ValueError, match="too few for any Jamba shape at 1048576 tokens"):
        shape_of(Case("fill", 1024, 1024), CPU)


def test_a_case_is_timed_and_a_failing_one_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = time_case(Case("tiny", 2, 16, accumulate=2, precision="float32"), CPU, warmup=0, steps=2)
    assert timing.failed is None
    assert timing.tokens_per_second == pytest.approx(32 / (timing.step_ms / 1000))
    assert timing.loss == pytest.approx(6.24, abs=0.1)  # ln 512
    assert as_row(timing)["model"] == "tiny"
    assert main(["bench", "train", "tiny:1x8", "--steps", "1", "--warmup", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["active_parameters"] == timing.active_parameters

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory left\nfor this")

    monkeypatch.setattr("plait.bench.train._measured", full)
    assert time_case(Case("tiny", 1, 8), CPU).failed == "OutOfMemoryError: no memory left"
    assert main(["bench", "train", "tiny:1x8"]) == 1
