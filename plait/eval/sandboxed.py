"""What the sandbox's process runs: limits, then a filter of system calls that can't be taken off, then the program.

A script of the standard library alone: `python -I -S sandboxed.py VERDICT_FD LIMITS`, LIMITS being JSON. Standard input
holds the length of the program, the program, and a token that is read only when the program has come to its end, and
then written to the file descriptor VERDICT_FD.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys

# Read files, compute, sleep, write to what is open already, exit. Not there: processes, threads, sockets, signals to
# others, files opened for writing, changes of files and folders, other programs.
_ALLOWED = {
    "x86_64": (
        0xC000003E, 257,  # the kernel's name for the architecture, and openat
        (
            0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20, 21, 23, 24, 25, 28, 35, 39, 60, 63, 79, 89,
            96, 102, 104, 107, 108, 110, 131, 186, 201, 202, 204, 217, 219, 228, 229, 230, 231, 262, 267, 269, 270,
            271, 273, 318, 332, 334, 439,
        ),
    ),
    "aarch64": (
        0xC00000B7, 56,
        (
            17, 48, 57, 61, 62, 63, 64, 65, 66, 67, 72, 73, 78, 79, 80, 93, 94, 98, 99, 101, 113, 114, 115, 123, 124,
            128, 132, 134, 135, 139, 160, 169, 172, 173, 174, 175, 176, 177, 178, 214, 215, 216, 222, 226, 233, 278,
            291, 293, 439,
        ),
    ),
}  # fmt: skip
_OPEN_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # refused calls fail with EPERM
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FLAGS_OF_OPENAT = 0, 4, 16 + 2 * 8  # offsets in the kernel's struct seccomp_data


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _filter(architecture: int, openat: int, allowed: tuple[int, ...]) -> bytes:
    lines = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
        _instruction(_EQUAL, openat, 0, 4),
        _instruction(_LOAD, _FLAGS_OF_OPENAT),
        _instruction(_ANY_BIT, _OPEN_TO_WRITE, 0, 1),
        _instruction(_RETURN, _REFUSE),
        _instruction(_RETURN, _ALLOW),
    ]
    for number in allowed:
        lines += [_instruction(_EQUAL, number, 0, 1), _instruction(_RETURN, _ALLOW)]
    return b"".join([*lines, _instruction(_RETURN, _REFUSE)])


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def _give_up_system_calls() -> None:
    instructions = _filter(*_ALLOWED[platform.machine()])
    kept = ctypes.create_string_buffer(instructions)
    program = _Program(len(instructions) // 8, ctypes.addressof(kept))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.byref(program), 0, 0):  # no new privileges, then the filter
        raise OSError(ctypes.get_errno(), "the kernel takes no filter of system calls")


def _read(size: int) -> bytes:
    """Exactly so many bytes, and no more into a buffer: the token must stay in the pipe."""
    found = b""
    while len(found) < size and (piece := os.read(0, size - len(found))):
        found += piece
    return found


def _main(verdict: int, limits: dict[str, int]) -> None:
    source = _read(int(_read(12))).decode()
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    _give_up_system_calls()
    exec(compile(source, "program", "exec"), {"__name__": "__main__"})
    os.write(verdict, _read(32))


if __name__ == "__main__":
    _main(int(sys.argv[1]), json.loads(sys.argv[2]))
