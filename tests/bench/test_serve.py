"""`plait bench serve` on the model that ships: every point is complete, its share that of the bytes a step reads."""

import json
from pathlib import Path

import pytest

from plait.bench.load import Answered, Load, figures
from plait.bench.serve import Machine, PlanningClock, Point, bench_engine, plot
from plait.bench.step_bytes import step_bytes
from plait.cli import main
from plait.model.checkpoint import load_model
from plait.serve.build import build, find_model
from plait.serve.options import EngineOptions


def test_an_engine_under_load_answers_every_request_in_full() -> None:
    built = build(EngineOptions("demo", max_context=64, max_running=3, cache_tokens=256, prefix_cache=False))
    load = Load(20, 6, 7, concurrency=3)
    clock = PlanningClock(built.engine)
    answered = bench_engine(built.engine, load, built.model.config.vocab_size)
    clock.stop()
    assert [a.n_tokens for a in answered] == [6] * 7
    assert built.engine.is_idle
    built.engine.check()
    assert 0 < clock.share < 1
    assert "plan" not in vars(built.engine.scheduler)
    result = figures(load, answered)
    assert result.n_failed == 0
    assert result.new_tokens_per_s == pytest.approx(42 / result.seconds)


def test_requests_that_come_at_a_rate_wait_for_nobody() -> None:
    built = build(EngineOptions("demo", max_context=64, max_running=8, cache_tokens=512, prefix_cache=False))
    load = Load(9, 5, 6, rate=20.0)
    answered = bench_engine(built.engine, load, built.model.config.vocab_size)
    assert [a.n_tokens for a in answered] == [5] * 6
    sent = sorted(a.sent for a in answered)
    assert [moment - sent[0] for moment in sent] == pytest.approx(load.starts())  # also where a step was under way
    assert all(a.ttft_ms > 0 for a in answered)
    assert built.engine.is_idle


def test_the_command_prints_a_point_for_each_batch_and_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="pictures are an extra")
    monkeypatch.setattr(Machine, "measured", lambda device, dtype: Machine(bandwidth=2e10, flops=1e11))
    model = load_model(find_model("demo"))
    picture = tmp_path / "serve.png"
    command = ["bench", "serve", "demo", "--batch", "1,2", "--context", "8,16", "--new-tokens", "4", "--requests", "2"]
    assert main([*command, "--json", "--plot", str(picture)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(p["load"]["prompt_tokens"], p["load"]["concurrency"]) for p in told["points"]] == [
        (8, 1), (8, 2), (16, 1), (16, 2),
    ]  # fmt: skip
    for point in told["points"]:
        load, rate = point["load"], point["figures"]["decode_tokens_per_s"]
        n_bytes = step_bytes(model, load["prompt_tokens"] + 2, load["concurrency"])
        assert point["decode_share"] == pytest.approx(n_bytes / 2e10 * rate / load["concurrency"])
        assert point["peak_bytes"] > 0
        assert (point["prefill_share"] is None) == (point["load"]["concurrency"] > 1)
    assert told["weights"] == "int8_experts_mlp"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_answers_of_one_token_have_no_time_between_tokens(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are an extra")
    load = Load(5, 1, 2, concurrency=2)
    points = [Point(load, figures(load, [Answered(0.0, [(1.0, 1)]), Answered(0.0, [(2.0, 1)])]))]
    plot(points, tmp_path / "serve.png", "one token")
    assert [path.name for path in tmp_path.iterdir()] == ["serve.png"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rate", "0"], "rate=0"),
        (["--requests", "0"], "n_requests=0"),
        (["--shared", "5"], "--shared is for servers"),
        (["--layers", "2"], "--layers is of --dummy weights"),
        (["--url", "http://127.0.0.1:1/v1", "--quantize", "experts_int8"], "--quantize is not told to a server"),
        (["--plot", "no/such/folder/serve.png"], "there is no folder no/such/folder"),
        (["--batch", "one"], "--batch 'one'"),
        (["--url", "http://127.0.0.1:1/v1"], "--vocab-size"),
        (["--batch", "0"], "concurrency=0"),
    ],
)
def test_wrong_usage(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "demo", *arguments]) == 2
    assert told in capsys.readouterr().err
