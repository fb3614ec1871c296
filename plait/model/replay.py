"""A call of the model on fixed buffers, kept so that it can be repeated without Python: for decode on a CPU."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from plait.ops.tape import TapeError, record


def recorded(call: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor] | str:
    """Run `call` and return (what repeats it, its result, which that overwrites), or why it can't be kept: then
    something in it is no native kernel. Inputs and outputs stay where they lie, weights included.
    """
    try:
        tape = record(call)
    except (TapeError, RuntimeError) as error:  # RuntimeError: there is no native library
        return ", ".join(dict.fromkeys(str(error).split(", ")))  # each missing operation once
    return tape.replay, tape.output
