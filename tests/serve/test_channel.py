"""Messages between processes: whole, in order, and never a wait for a process that is gone."""

import os
import signal
import socket
import subprocess
import threading

import msgspec
import pytest

from plait.serve.channel import Channel, Closed, Inbox, how_it_ended
from plait.serve.messages import Abort, Add, FromEngine, Outputs, Setup, ToEngine
from plait.serve.options import EngineOptions
from plait.serve.request import Output, Request
from plait.serve.service import Grammar, PrefixUse
from plait.text import SamplingParams, TokenLogprob


def pair(receives: object = ToEngine) -> tuple[Channel, Channel]:
    one, other = socket.socketpair()
    return Channel(one, FromEngine), Channel(other, receives)


def test_messages_arrive_whole_and_in_order() -> None:
    here, there = pair()
    params = SamplingParams(temperature=0.5, stop=["a", "b"], logit_bias={7: -1.5}, seed=3)
    request = Request((1, 2, 3), params, frozenset({0}), turns=(2,), grammar=Grammar("choice", '["x"]'), salt="s")
    sent = [Setup(EngineOptions("demo", n_drafts=3)), Add(1, request), Abort(1), Abort(2, 0)]
    for message in sent:
        here.send(message)
    assert [there.receive() for _ in sent] == sent
    outputs = Outputs([Output(1, 0, (5,), "stop", (TokenLogprob(5, -0.1, ((5, -0.1),)),), (), PrefixUse(16, 16, 0))])
    there.send(outputs)
    assert here.receive() == outputs


def test_a_long_prompt_passes_while_the_other_end_sends_too() -> None:
    here, there = pair()
    inbox = Inbox(there, on_close=lambda: None)
    prompt = tuple(range(300_000))
    here.send(Add(0, Request(prompt)))  # far more than a socket holds
    assert inbox.next().request.prompt == prompt


def test_a_closed_end_ends_every_wait() -> None:
    here, there = pair()
    gone = threading.Event()
    Inbox(there, on_close=gone.set)
    here.close()
    assert gone.wait(10)
    with pytest.raises(Closed):
        there.send(Abort(1))
    with pytest.raises(Closed):
        there.receive()


def test_half_a_message_is_no_message() -> None:
    one, other = socket.socketpair()
    one.sendall(Channel(socket.socketpair()[0], ToEngine).encode(Abort(1))[:-1])
    one.close()
    with pytest.raises(Closed):
        Channel(other, ToEngine).receive()


def test_a_message_of_another_kind_is_refused() -> None:
    here, there = pair(receives=Abort)
    here.send(Add(0, Request((1,))))
    with pytest.raises(msgspec.ValidationError):
        there.receive()


@pytest.mark.parametrize(("script", "told"), [("exit 3", "exit code 3"), ("kill -9 $$", "signal 9 (Killed)")])
def test_how_a_child_ended(script: str, told: str) -> None:
    assert how_it_ended(subprocess.Popen(["sh", "-c", script])) == told


def test_a_child_that_still_runs() -> None:
    child = subprocess.Popen(["sleep", "30"])
    assert "still runs" in how_it_ended(child, wait_s=0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
