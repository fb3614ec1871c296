"""`plait chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from plait.cli.generate import add_model_arguments, add_sampling_arguments, load_llm, sampling_params
from plait.cli.screen import Commands

if TYPE_CHECKING:
    from plait.serve import LLM
    from plait.text import SamplingParams

HELP = """\
/help              this list
/system TEXT       set the system message (no text: none) and start over
/reset             forget the conversation
/retry             answer the last message again
/set NAME VALUE    sampling: temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, seed
/show              the conversation as the model sees it
/quit              leave (or Ctrl-D); Ctrl-C stops an answer"""


def add(commands: Commands) -> None:
    parser = commands.add_parser("chat", help="talk to a model in the terminal")
    add_model_arguments(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="system message")
    add_sampling_arguments(parser, max_tokens=512)
    parser.set_defaults(handler=run)


@dataclass
class Conversation:
    llm: LLM
    params: SamplingParams
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)

    def prompt(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}, *self.messages] if self.system else list(self.messages)

    def answer(self) -> None:
        """Stream an answer to the last message; Ctrl-C ends it early and keeps what was written.

        A message that can't be answered (too long a conversation, say) is taken back, and the reason is printed.
        """
        from plait.text import GenerationRequest

        started = time.perf_counter()
        pieces: list[str] = []
        try:
            for piece in self.llm.stream(GenerationRequest(messages=self.prompt(), sampling=self.params)):
                shown = piece if pieces else piece.removeprefix(" ")  # the template leaves it to the model
                pieces.append(piece)
                print(shown, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        except ValueError as error:
            self.messages.pop()
            print(f"{error}; /reset starts over")
            return
        text = "".join(pieces).removeprefix(" ")
        self.messages.append({"role": "assistant", "content": text})
        seconds = time.perf_counter() - started
        if sys.stdout.isatty():
            print(f"\n\x1b[2m{seconds:.1f} s\x1b[0m")
        else:
            print()

    def command(self, line: str) -> bool:
        """Carry out a /command; False to leave."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("/quit", "/exit"):
            return False
        if name == "/help":
            print(HELP)
        elif name == "/reset":
            self.messages.clear()
        elif name == "/system":
            self.system = rest
            self.messages.clear()
        elif name == "/retry":
            self._retry()
        elif name == "/set":
            self._set(*rest.partition(" ")[::2])
        elif name == "/show":
            assert self.llm.chat_template is not None
            print(
                self.llm.chat_template.render(self.prompt(), add_generation_prompt=True) if self.prompt() else "(empty)"
            )
        else:
            print(f"unknown command {name}; /help lists them")
        return True

    def _retry(self) -> None:
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if self.messages:
            self.answer()
        else:
            print("nothing to answer yet")

    def _set(self, name: str, value: str) -> None:
        kinds = {"temperature": float, "top_p": float, "min_p": float, "repetition_penalty": float, "top_k": int,
                 "max_tokens": int, "seed": int}  # fmt: skip
        if name not in kinds:
            print(f"no setting {name!r}; there are {', '.join(kinds)}")
            return
        try:
            number = kinds[name](value)
        except ValueError:
            print(f"{name} is a number, not {value!r}")
            return
        try:
            self.params = replace(self.params, **{name: number})
        except ValueError as error:
            print(error)


def run(args: argparse.Namespace) -> int:
    params = sampling_params(args)
    llm = load_llm(args)
    if llm.chat_template is None:
        raise ValueError(f"{args.model} has no tokenizer, so there is nothing to chat with")
    conversation = Conversation(llm, params, args.system)
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  arrow keys and history in input()
        print(f"{args.model}: /help for commands, Ctrl-D to leave")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            if sys.stdin.isatty():
                print()
            return 0
        except KeyboardInterrupt:
            print()
            continue
        if line.startswith("/"):
            if not conversation.command(line):
                return 0
        elif line:
            conversation.messages.append({"role": "user", "content": line})
            conversation.answer()
