"""A computation recorded once and repeated in one C call: for the CPU what a CUDA graph is for a GPU.

    tape = record(lambda: model(token_ids, layout, state))     # a decode step, run as usual
    token_ids.copy_(...); layout.context_lens.add_(1)          # the next one's inputs, in the same memory
    tape.replay()                                              # the same kernels again; tape.output has new contents

As with a graph, what a tape reads and writes lies where it lay: shapes, weights and pools are those of the recording,
and what changes from step to step is written into the tensors that were recorded. Kernels read lengths, slots and page
numbers from those and check them themselves (IndexError). A step that needs anything but native kernels, views and
fresh memory can't be recorded (TapeError), so nothing is left out in silence.

Between kernels the threads of the team stay awake, which saves about 10 microseconds a kernel; and one that has nothing
to do fetches the weights of the kernels to come into its cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from plait import native

aten = torch.ops.aten
FRESH = ("aten::empty", "aten::new_empty", "aten::arange", "aten::promote_types")  # memory, and constants


KINDS = (torch.float32, torch.bfloat16)


class TapeError(RuntimeError):
    """The computation has a step that a tape can't hold."""


class _Step(ctypes.Structure):
    """plait_step of src/parallel.h."""

    _fields_ = [("run", ctypes.c_void_p), ("args", ctypes.c_void_p), ("weights", ctypes.c_void_p * 2),
                ("n_bytes", ctypes.c_int64 * 2), ("before", ctypes.c_int64)]  # fmt: skip


class _AddArgs(native.Arguments):
    """add_args of src/add.c, in its order."""

    _fields_ = native.fields(("n", "type", "y_type"), ("a", "b", "y"))


class Tape:
    """Made by `record`. Not for several threads at once."""

    def __init__(self) -> None:
        self.output: Any = None  # what the recorded function returned; replaying overwrites its contents
        self._names: list[str] = []
        self._arguments: list[native.Arguments] = []
        self._alive: list[Any] = []  # every tensor that was made, and the function with what it refers to

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, arguments: native.Arguments) -> None:
        self._names.append(name)
        self._arguments.append(type(arguments).from_buffer_copy(arguments))

    def keep(self, thing: Any) -> None:
        self._alive.append(thing)

    def close(self) -> None:
        """Ready to be replayed. The level and the number of threads are those in use now."""
        at = native.level()
        self._steps, before = (_Step * len(self))(), 0
        for step, name, arguments in zip(self._steps, self._names, self._arguments, strict=True):
            step.run = ctypes.cast(native.kernel(name, at), ctypes.c_void_p)
            step.args = ctypes.addressof(arguments)
            for i, (address, n_bytes) in enumerate(arguments.read_once()):
                step.weights[i], step.n_bytes[i] = address, n_bytes
            step.before = before
            before += sum(step.n_bytes)
        self._run = native.replayer()
        self._n_threads = torch.get_num_threads()

    def replay(self) -> Any:
        """Run every kernel again and return `output`. IndexError for an index out of range: nothing ran after it."""
        self._replay(None)
        return self.output

    def timed(self) -> list[tuple[str, native.Arguments, int]]:
        """As replay; (name, arguments, nanoseconds) of every kernel, in order."""
        took = (ctypes.c_int64 * len(self))()
        self._replay(took)
        return list(zip(self._names, self._arguments, took, strict=True))

    def _replay(self, nanoseconds: Any) -> None:
        error = self._run(self._steps, len(self._steps), self._n_threads, nanoseconds)
        if error:
            raise IndexError(f"tape: {native.ERRORS[error]} is out of range")


def record(function: Callable[[], Any]) -> Tape:
    """Run `function` (without gradients) and keep its kernels. TapeError, when it has run, if it can't be kept."""
    tape = Tape()
    tape.keep(function)
    mode = _Recording(tape)
    with torch.no_grad(), native.recording(tape.add), mode:
        tape.output = function()
    if mode.refused:
        raise TapeError(f"a tape holds native kernels only; this computation also needs {_listed(mode.refused)}")
    tape.close()
    return tape


def _listed(names: list[str]) -> str:
    """Each name once, and not more than ten."""
    once = list(dict.fromkeys(names))
    return ", ".join(once[:10]) + (f" and {len(once) - 10} more" if len(once) > 10 else "")


class _Recording(TorchDispatchMode):
    """Sees every PyTorch operation: lets views and fresh memory pass, keeps sums and casts, notes what can't be kept.

    Two more may pass: what is computed from weights alone, since those stay; and the bounds that are looked at to check
    an input (aminmax, and what follows from that alone), since the kernels check again.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.refused: list[str] = []
        self.bounds: set[int] = set()  # ids of tensors, all of which are kept alive
        self.constants: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler (1.5 s) to keep it away from the method below. A tape is not compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.tape.keep(out)
        given = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        made = {id(t) for t in tree_iter(out) if isinstance(t, Tensor)}
        if given and all(isinstance(t, nn.Parameter) or id(t) in self.constants for t in given):
            self.constants |= made
        elif func is aten.aminmax.default or (given and all(id(t) in self.bounds for t in given)):
            self.bounds |= made
        elif not (self._keep_elementwise(func, args, kwargs, out) or _needs_no_kernel(func)):
            self.refused.append(func.name())
        return out

    def _keep_elementwise(self, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        """Put a sum or a cast onto the tape, if it is one."""
        if func is aten.add.Tensor and not kwargs and _alike(*args):
            a, b = args
        elif func is aten._to_copy.default and _alike(args[0], args[0]) and out.dtype in KINDS:
            a, b = args[0], None
        else:
            return False
        kinds = native.TYPES[a.dtype], native.TYPES[out.dtype]
        self.tape.add("add", _AddArgs(out.numel(), *kinds, *map(native.pointer, (a, b, out))))
        return True


def _needs_no_kernel(func: Any) -> bool:
    return func.is_view or func is aten._unsafe_view.default or func.name().startswith(FRESH)


def _alike(a: Any, b: Any) -> bool:
    """Whether these are contiguous tensors of one kind that the kernels know."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.dtype not in KINDS or not a.is_cpu:
        return False
    return a.dtype == b.dtype and a.shape == b.shape and a.is_contiguous() and b.is_contiguous()
