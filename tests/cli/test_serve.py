"""`plait serve`: what is refused before a model is loaded, and keys."""

from pathlib import Path
from typing import Any

import pytest

from plait.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "no API key"),
        (["--port", "99999"], "port=99999"),
        (["--max-running", "0"], "max_running=0"),
        (["--host-state-dtype", "int8"], "give host_gib, or disk"),
        (["--disk-gib", "1"], "disk=None and disk_gib=1.0 go together"),
        (["--expert-parallel"], "give tensor_parallel at least 2"),
        (["--new-key", "ann"], "--api-keys FILE"),
        (["--replicas", "2", "--max-replicas", "3"], "--replicas/--max-replicas need --ray"),
    ],
)
def test_wrong_usage(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PLAIT_API_KEY", raising=False)
    assert main(["serve", "demo", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err


def test_a_new_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    assert main(["serve", "demo", "--new-key", "ann", "--api-keys", str(file)]) == 0
    key = capsys.readouterr().out.strip()
    assert key.startswith("plait-")
    assert len(key) > 40
    assert file.read_text().startswith("ann sha256:")
    assert main(["serve", "demo", "--new-key", "ann", "--api-keys", str(file)]) == 1


def test_what_is_kept_beside_the_device() -> None:
    from plait.cli import _parser
    from plait.cli.serve import engine_options
    from plait.serve.options import EngineOptions

    given = ["--host-gib", "1.5", "--disk", "kept", "--disk-gib", "20", "--host-state-dtype", "int8"]
    args: Any = _parser().parse_args(["serve", "demo", *given, "--tensor-parallel", "2", "--expert-parallel"])
    assert engine_options(args) == EngineOptions(
        "demo", host_gib=1.5, disk="kept", disk_gib=20.0, host_state_dtype="int8", tensor_parallel=2,
        expert_parallel=True,
    )  # fmt: skip


def test_a_key_from_the_environment_opens_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    from plait.cli import _parser
    from plait.cli.serve import server_settings

    monkeypatch.setenv("PLAIT_API_KEY", "secret")
    given = ["--host", "0.0.0.0", "--max-body-mib", "0.5", "--drain", "3", "--batch-dir", "kept"]
    args: Any = _parser().parse_args(["serve", "demo", *given])
    settings = server_settings(args)
    assert settings.api_keys == ("secret",)
    assert settings.batch_folder == Path("kept")
    assert (settings.max_body_bytes, settings.drain_s) == (524_288, 3)
