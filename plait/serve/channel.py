"""Typed messages between two processes of one machine: length and msgpack, over a socket pair.

The other end of a channel is a child process, started with `start_child`. A process that dies closes its end, and that
is how the other learns of it: nothing waits for a process that is gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import msgspec

_LENGTH = struct.Struct("<Q")
_PIECE = 2**20  # bytes of a message asked for at once


class Closed(EOFError):
    """The process at the other end is gone."""


class Channel:
    """One end. `receives` is the type of what comes in: a msgspec.Struct, or a union of tagged ones."""

    def __init__(self, end: socket.socket, receives: Any) -> None:
        end.setblocking(True)
        self._socket = end
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(receives)
        self._sending = threading.Lock()
        self._length: int | None = None  # of the message that is coming
        self._come = bytearray()  # of it, or of its length, so far

    def fileno(self) -> int:
        return self._socket.fileno()

    def encode(self, message: msgspec.Struct) -> bytes:
        body = self._encoder.encode(message)
        return _LENGTH.pack(len(body)) + body

    def send(self, message: msgspec.Struct) -> None:
        """Raises Closed if the other end is gone. Waits while it doesn't read."""
        self.send_encoded(self.encode(message))

    def send_encoded(self, frame: bytes) -> None:
        try:
            with self._sending:
                self._socket.sendall(frame)
        except OSError as error:
            raise Closed(str(error)) from None

    def receive(self) -> Any:
        """Wait for one message. Raises Closed if the other end is gone. After an interrupt (Ctrl-C) it can be called
        again, and goes on where it was.
        """
        if self._length is None:
            (self._length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        body, self._length = self._exactly(self._length), None
        return self._decoder.decode(body)

    def _exactly(self, n: int) -> bytearray:
        while len(self._come) < n:
            try:
                got = self._socket.recv(min(n - len(self._come), _PIECE))
            except OSError as error:
                raise Closed(str(error)) from None
            if not got:
                raise Closed("the other end closed the channel")
            self._come += got
        come, self._come = self._come, bytearray()
        return come

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in receive
        self._socket.close()


class Inbox:
    """What came through a channel, read by a thread of its own, so that neither end ever waits to send for long.

    `on_close` runs in that thread when the other end is gone.
    """

    def __init__(self, channel: Channel, on_close: Callable[[], object]) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._channel, self._on_close = channel, on_close
        threading.Thread(target=self._read, daemon=True, name="inbox").start()

    def _read(self) -> None:
        try:
            while True:
                self._queue.put(self._channel.receive())
        except Closed:
            self._on_close()

    def next(self) -> Any:
        """Wait for the next message."""
        return self._queue.get()

    def drain(self) -> list[Any]:
        """What is there now, without waiting."""
        return [self._queue.get() for _ in range(self._queue.qsize())]


def start_child(module: str, *arguments: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run `python -m module FD arguments` with one end of a socket pair as its file descriptor FD; returns the other.

    A process of its own, not a fork: torch and threads don't survive forks, and a user's script needs no main guard.
    Ctrl-C in a terminal reaches the parent only, which then says what to do.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", module, str(theirs.fileno()), *arguments]
        child = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
    return child, ours


def inherited(fd: str, receives: Any) -> Channel:
    """The child's end."""
    return Channel(socket.socket(fileno=int(fd)), receives)


def how_it_ended(child: subprocess.Popen[bytes], wait_s: float = 5.0) -> str:
    """`exit code 1`, or `signal 9 (Killed)`, of a child that is ending."""
    try:
        code = child.wait(wait_s)
    except subprocess.TimeoutExpired:
        return "its channel closed, though it still runs"
    if code >= 0:
        return f"exit code {code}"
    import signal

    return f"signal {-code} ({signal.strsignal(-code) or 'unknown'})"


def leave(code: int = 1) -> None:
    """End this process now, whatever its threads wait for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
