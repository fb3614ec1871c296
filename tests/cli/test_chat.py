"""`plait chat`, with lines from a pipe and under a terminal."""

import io
import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.cli import main
from plait.cli.chat import HELP
from plait.serve import LLM, SamplingParams
from plait.text import GenerationRequest


@pytest.fixture(scope="module")
def endless(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model with end tokens that are never the likeliest: greedy answers end at max_tokens only."""
    folder = tmp_path_factory.mktemp("endless") / "model"
    changed = plait.load_model(model)
    with torch.no_grad():
        changed.head_weight[list(LLM(model).end_ids)] = 0
    plait.save_model(changed, folder, beside=model)
    return str(folder)


@pytest.fixture
def chat(endless: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """chat(*lines) -> what it prints when these are piped in."""

    def run(*lines: str, args: tuple[str, ...] = ("--temperature", "0", "--max-tokens", "6")) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        assert main(["chat", endless, *args]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


@pytest.fixture(scope="module")
def reply(endless: str) -> Any:
    """reply(user, assistant, user, ..., system="") -> the model's answer, as the chat shows it."""
    llm = LLM(endless)

    def answer(*contents: str, system: str = "", max_tokens: int = 6) -> str:
        messages = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
        messages = [{"role": "system", "content": system}] * bool(system) + messages
        params = SamplingParams(temperature=0, max_tokens=max_tokens)
        return llm.generate(GenerationRequest(messages=messages, sampling=params))[0].text.removeprefix(" ")

    return answer


def test_each_answer_knows_what_was_said(chat: Any, reply: Any) -> None:
    first = reply("Hello")
    second = reply("Hello", first, "And you?")
    assert chat("Hello", "", "And you?") == f"{first}\n{second}\n"


def test_commands(chat: Any, reply: Any) -> None:
    assert chat("/help") == HELP + "\n"
    assert chat("Hello", "/reset", "Hello") == f"{reply('Hello')}\n" * 2
    assert chat("Hello", "/retry", "/retry") == f"{reply('Hello')}\n" * 3
    assert chat("/retry") == "nothing to answer yet\n"
    assert chat("Hello", "/system Be brief.", "Hello") == f"{reply('Hello')}\n{reply('Hello', system='Be brief.')}\n"
    assert chat("Hello", args=("--system", "Be brief.", "--temperature", "0", "--max-tokens", "6")) == (
        f"{reply('Hello', system='Be brief.')}\n"
    )
    assert chat("/set max_tokens 2", "Hello") == f"{reply('Hello', max_tokens=2)}\n"
    assert chat("/quit", "Hello") == chat("/exit", "Hello") == ""
    assert chat("/nonsense") == "unknown command /nonsense; /help lists them\n"
    assert chat("/show") == "(empty)\n"
    shown = chat("Hello", "/show").removeprefix(f"{reply('Hello')}\n")
    assert re.search(r"<\|user\|> Hello<\|eom\|>.*<\|assistant\|> ", shown, re.DOTALL)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/set", "no setting ''; there are temperature, top_p"),
        ("/set heat 3", "no setting 'heat'"),
        ("/set temperature -1", "temperature=-1.0 must be"),
        ("/set top_k many", "top_k is a number, not 'many'"),
        ("/set seed", "seed is a number, not ''"),
        ("/set max_tokens 0", "max_tokens=0"),
    ],
)
def test_settings_are_checked_and_the_old_ones_stay(line: str, says: str, chat: Any, reply: Any) -> None:
    out = chat(line, "Hello")
    assert says in out
    assert out.endswith(f"\n{reply('Hello')}\n")


def test_what_is_too_long_is_taken_back(chat: Any, reply: Any) -> None:
    out = chat("x" * 70_000, "/show", "Hello")
    assert "fit in max_context=65536; /reset starts over\n(empty)\n" in out
    assert out.endswith(f"{reply('Hello')}\n")


def test_a_model_without_a_tokenizer_has_no_chat(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plait.save_model(plait.load_model(model), tmp_path / "bare")
    assert main(["chat", str(tmp_path / "bare")]) == 1
    assert "has no tokenizer, so there is nothing to chat with" in capsys.readouterr().err


class Terminal:
    """A process under a pseudo-terminal of its own."""

    def __init__(self, *argv: str, env: dict[str, str]) -> None:
        self.screen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(argv[0], argv, env)

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """What is shown until `text` (taken off the screen)."""
        end = time.monotonic() + seconds
        while text not in self.screen:
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not appear in {self.screen!r}"
            self.screen += os.read(self.fd, 4096).decode(errors="replace")
        before, _, self.screen = self.screen.partition(text)
        return before

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def exit_code(self) -> int:
        """Reads on until it ends."""
        try:
            while os.read(self.fd, 4096):
                pass
        except OSError:  # what Linux says when the other side is closed
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_under_a_terminal(endless: str, reply: Any) -> None:
    root = str(Path(plait.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root, "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
    argv = [sys.executable, "-m", "plait", "chat", endless, "--temperature", "0", "--max-tokens", "50000"]
    terminal = Terminal(*argv, env=env)
    try:
        terminal.wait_for(f"{endless}: /help for commands, Ctrl-D to leave")
        terminal.wait_for("> ")
        terminal.type("\x03")  # at the prompt: a new one
        terminal.wait_for("> ")
        terminal.type("Hello\n")
        terminal.wait_for("Hello\r\n")
        time.sleep(0.3)
        terminal.type("\x03")
        answer = terminal.wait_for(" [stopped]")
        assert answer.startswith(reply("Hello", max_tokens=1)[:1])
        terminal.wait_for(" s\x1b[0m\r\n")
        for line in ("/set max_tokens 3", "/reset"):
            terminal.wait_for("> ")
            terminal.type(line + "\n")
            terminal.wait_for(line + "\r\n")
        terminal.wait_for("> ")
        terminal.type("Hello\n")
        terminal.wait_for("Hello\r\n")
        assert terminal.wait_for("\r\n\x1b[2m").replace("\r\n", "\n") == reply("Hello", max_tokens=3)
        terminal.wait_for(" s\x1b[0m\r\n> ")
        terminal.type("\x04")
        terminal.wait_for("\r\n")  # so that the shell's prompt begins a line
        assert terminal.exit_code() == 0
    except BaseException:
        os.kill(terminal.pid, signal.SIGKILL)
        raise


def test_wrong_sampling_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "anything", "--top-p", "2"]) == 2
    assert capsys.readouterr().err.startswith("plait chat: top_p=2.0 must be")


def test_the_help_tells_the_default_that_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["chat", "--help"])
    assert "new tokens at most (512)" in capsys.readouterr().out
