"""The command line: contract of `--json`, exit codes, one-line errors, and what starting it costs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import plait
from plait.cli import main
from plait.cli.screen import console
from plait.config import presets
from plait.model.checkpoint import config_to_public


def run(*args: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "plait", *args], capture_output=True, text=True, timeout=60, **kwargs)


def test_help_is_quick_and_lists_the_commands() -> None:
    seconds = []
    for _ in range(3):  # the best of three, so that a busy machine doesn't fail it
        start = time.perf_counter()
        done = run("--help")
        seconds.append(time.perf_counter() - start)
    assert done.returncode == 0
    assert "account" in done.stdout
    assert "paper" in done.stdout
    assert min(seconds) <= 0.7


@pytest.mark.parametrize("argv", [["--help"], ["account", "jamba-1.5-mini"], ["paper", "table_1", "--json"]])
def test_no_torch_for_what_needs_none(argv: list[str]) -> None:
    script = f"""
import sys
from plait.cli import main
try:
    main({argv!r})
except SystemExit:
    pass
heavy = {{"torch", "numpy", "transformers"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"plait {plait.__version__}\n")


@pytest.mark.parametrize(
    ("preset", "total", "active", "kv_gib"),
    [
        ("jamba-1.5-mini", 51_570_323_328, 12_110_311_296, 4),
        ("jamba-1.5-large", 398_555_145_696, 94_149_338_592, 9),
    ],
)
def test_account_json_contract(
    preset: str, total: int, active: int, kv_gib: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["account", preset, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out["name"], out["context"]) == (preset, 262_144)
    assert (out["total_params"], out["active_params"]) == (total, active)
    assert sum(out["params"].values()) == total
    assert out["kv_bytes"] == kv_gib * 2**30
    assert out["recurrent_bytes"] > 0
    assert list(out["weight_bytes"]) == ["bf16", "int8_experts", "int8_experts_mlp"]
    assert out["weight_bytes"]["bf16"] == 2 * total
    assert out["flops_per_token"] > 2 * 0.95 * active
    assert len(out["fit"]) == 6 * 3
    assert out["fit"][0].keys() == {"gpus", "level", "fits", "needed_bytes", "largest_context"}


def test_account_takes_a_context_and_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "jamba-1.5-mini", "--context", "1000", "--gpus", "4x24", "1x192", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["kv_bytes"] == 1000 * 16_384
    assert [f["gpus"] for f in out["fit"][::3]] == [{"count": 4, "gb": 24}, {"count": 1, "gb": 192}]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("preset", sorted(presets))
def test_account_fits_the_screen(
    preset: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["account", preset]) == 0
    out = capsys.readouterr().out
    title, *lines = out.splitlines()
    assert title.startswith(f"{preset}: ")
    assert max(map(len, lines)) <= columns
    assert len(lines) <= 40
    assert "…" not in out


def test_account_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    main(["account", "jamba-1.5-mini"])
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["total", "51,570,323,328", "12,110,311,296", "100.0%"] in words
    assert ["weights", "103.14", "58.04", "55.22"] in words
    assert ["fits", "on", "1", "x", "80", "GB", "no", "yes", "(1.07M)", "yes", "(1.24M)"] in words
    assert ["KV", "cache,", "16", "bit", "4.00", "GiB"] in words


def test_account_says_when_only_a_shorter_sequence_fits(capsys: pytest.CaptureFixture[str]) -> None:
    main(["account", "jamba-1.5-mini", "--gpus", "1x63"])
    left = 63 * 10**9 - 4 * 2**30 - (55_224_917_760 + 35_651_584) - 16_056_320
    assert f"no ({left // 16_384:,})" in capsys.readouterr().out


def test_account_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_to_public(presets["tiny"])))
    assert main(["account", str(tmp_path), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out["name"], out["total_params"]) == (str(tmp_path), 4_934_296)


def test_a_folder_without_a_config_is_a_failure_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"plait account: {tmp_path / 'config.json'}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "x/config.json"),
            "x/config.json: No such file or directory",
        ),
        (ValueError("model_type='llama' is not one plait reads;\n  give a Jamba checkpoint"), None),
        (PermissionError(13, "Permission denied", "config.json"), "config.json: Permission denied"),
        (OSError("disk on fire"), "disk on fire"),
    ],
)
def test_what_goes_wrong_in_a_folder_is_one_line(
    error: Exception,
    line: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read_config(folder: Path) -> None:
        raise error

    monkeypatch.setattr("plait.model.checkpoint.read_config", read_config)
    assert main(["account", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    expected = line or "model_type='llama' is not one plait reads; give a Jamba checkpoint"
    assert (out, err) == ("", f"plait account: {expected}\n")
    monkeypatch.setenv("PLAIT_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(["account", str(tmp_path)])


@pytest.mark.parametrize("error", [MemoryError("300 GiB"), RuntimeError("can't allocate memory: 300 GiB")])
def test_too_little_memory_is_one_line_and_other_bugs_keep_their_traceback(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_config(folder: Path) -> None:
        raise error

    monkeypatch.setattr("plait.model.checkpoint.read_config", read_config)
    assert main(["account", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"plait account: out of memory: {error}\n"
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        main(["account", str(tmp_path)])


def test_a_pipe_has_room_for_wide_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == 120
    monkeypatch.setenv("COLUMNS", "60")
    assert console().width == 60


def test_an_unknown_preset_lists_close_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "Jamba-1.5-Mnii"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "plait account: 'Jamba-1.5-Mnii' is neither a folder nor a preset; did you mean jamba-1.5-mini or "
    )
    assert err.count("\n") == 1


def test_a_preset_like_none_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "zzz"]) == 2
    err = capsys.readouterr().err
    assert all(preset in err for preset in presets)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "COMMAND"),
        (["acount", "tiny"], "invalid choice: 'acount'"),
        (["account"], "PRESET|DIR"),
        (["account", "tiny", "--context", "many"], "--context"),
        (["account", "tiny", "--gpus", "8y80"], "must be COUNTxGB, such as 8x80"),
        (["account", "tiny", "--gpus", "0x80"], "at least 1"),
        (["account", "tiny", "--colour"], "--colour"),
        (["paper", "table_1", "extra"], "extra"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert "--help`" in err


@pytest.mark.parametrize("context", ["0", "-5"])
def test_a_context_under_one_is_wrong_usage(context: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", "tiny", "--context", context]) == 2
    assert f"--context {context} must be at least 1" in capsys.readouterr().err


def test_an_interrupt_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("plait.cli.account.run", interrupted)
    assert main(["account", "tiny"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: object) -> int:
        raise KeyError("d_model")

    monkeypatch.setattr("plait.cli.account.run", broken)
    with pytest.raises(KeyError):
        main(["account", "tiny"])


def test_a_closed_pipe_is_no_error_message() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "plait", "account", "tiny", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), err) == (141, b"")


def test_paper_without_a_name_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper"]) == 0
    assert capsys.readouterr().out.startswith("table_1  ")
    assert main(["paper", "--json"]) == 0
    assert "table_1" in json.loads(capsys.readouterr().out)


def test_an_unknown_result_lists_close_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "table1"]) == 2
    assert capsys.readouterr().err.startswith("plait paper: the paper has no 'table1' here; did you mean table_1 or ")
