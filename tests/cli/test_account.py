"""`plait account --fit`: an engine's memory, and no number where the question is unclear."""

import json

import pytest

from plait.cli import main


def fit(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, int]:
    assert main(["account", *arguments, "--fit", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_sizes_of_an_engine(capsys: pytest.CaptureFixture[str]) -> None:
    one, more = (
        fit(capsys, "jamba-1.5-mini"),
        fit(capsys, "jamba-1.5-mini", "--max-running", "20", "--kv-dtype", "int8"),
    )
    assert one["total"] == sum(one[name] for name in ("weights", "states", "pages", "tables", "activations"))
    assert more["states"] / one["states"] == 21 / 17
    assert more["pages"] / one["pages"] == pytest.approx((128 + 4) / 256, rel=1e-4)


def test_a_folder_of_quantized_weights_needs_their_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "demo", "--fit"]) == 2
    assert (
        "weights of demo are int8: say which of them with --level int8_experts or int8_experts_mlp"
        in capsys.readouterr().err
    )
    assert fit(capsys, "demo", "--level", "int8_experts_mlp")["weights"] < 9 * 2**20


@pytest.mark.parametrize("flag", [["--max-running", "3"], ["--level", "bf16"], ["--cached-states", "0"]])
def test_what_only_fit_takes_is_refused_without_it(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "jamba-1.5-mini", *flag]) == 2
    assert f"{flag[0]} is of --fit" in capsys.readouterr().err


def test_states_on_the_host_may_be_a_third(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "jamba-1.5-mini", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out["recurrent_bytes"], out["int8_recurrent_bytes"]) == (16_056_320, 28 * 8192 * (16 + 2 + 3 * 2))
