"""What PLAIT_OPS names is what runs, or an error says why not."""

import pytest
import torch

from plait.ops import dispatch
from plait.ops.dispatch import Implementation, anywhere, force, pick

PROBE = torch.empty(0)
TABLE = {
    "fast": Implementation(lambda: "fast", lambda _: "needs a faster machine"),
    "slow": Implementation(lambda: "slow", anywhere),
}


def test_the_first_that_can_run_is_picked_and_a_forced_one_runs_or_raises() -> None:
    assert pick("moe", TABLE, PROBE)() == "slow"
    with force(moe="fast"), pytest.raises(ValueError, match="'fast' was asked for and can't run: needs a faster"):
        pick("moe", TABLE, PROBE)
    with force(moe="nosuch"), pytest.raises(ValueError, match="no implementation 'nosuch'; there are fast, slow"):
        pick("moe", TABLE, PROBE)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("moe", "'moe' must be OP=IMPLEMENTATION"),
        ("selective_scna=chunked", "there is no op 'selective_scna'; there are adamw, attention, causal_conv1d"),
        ("moe=slow, scan=slow", "there is no op 'scan'"),
    ],
)
def test_a_setting_that_names_no_op_is_refused(setting: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_SETTING", setting)
    with pytest.raises(ValueError, match=told):
        pick("moe", TABLE, PROBE)


@pytest.mark.parametrize("op", ["moe", "moe_route", "moe_combine", "selective_scan", "linear"])
def test_every_op_that_is_picked_can_be_named(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_SETTING", f" {op} = slow ,")
    assert pick(op, TABLE, PROBE)() == "slow"
