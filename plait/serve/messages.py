"""What passes between a server, its engine process, and the workers of tensor parallelism (`Channel`)."""

from __future__ import annotations

import msgspec

from plait.serve.options import EngineOptions
from plait.serve.plan import StepPlan
from plait.serve.request import Output, Request
from plait.serve.service import EngineStats

# To the engine process. `id` is the sender's own number of a request.


class Add(msgspec.Struct, tag=True, frozen=True):
    id: int
    request: Request


class Abort(msgspec.Struct, tag=True, frozen=True):
    id: int
    answer: int | None = None  # None: all answers


class Embed(msgspec.Struct, tag=True, frozen=True):
    id: int
    token_ids: list[int]


class AskStats(msgspec.Struct, tag=True, frozen=True):
    id: int


class Setup(msgspec.Struct, tag=True, frozen=True):
    """The first message to a process: what to build, and its place among the processes that share the model."""

    options: EngineOptions
    rank: int = 0
    port: int = 0  # of the rendezvous on this machine, when there are several


ToEngine = Add | Abort | Embed | AskStats | Setup

# From the engine process


class Ready(msgspec.Struct, tag=True, frozen=True):
    kernels: str
    max_context: int


class Outputs(msgspec.Struct, tag=True, frozen=True):
    """Of one step; `Output.request` is the id that the sender gave."""

    outputs: list[Output]


class Refused(msgspec.Struct, tag=True, frozen=True):
    id: int
    reason: str


class Embedded(msgspec.Struct, tag=True, frozen=True):
    id: int
    vector: list[float]


class Stats(msgspec.Struct, tag=True, frozen=True):
    id: int
    stats: EngineStats


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The engine can't go on; the process ends behind this."""

    reason: str


FromEngine = Ready | Outputs | Refused | Embedded | Stats | Failed

# From rank 0 to the other workers, which do what it does


class Launch(msgspec.Struct, tag=True, frozen=True):
    plan: StepPlan


class Collect(msgspec.Struct, tag=True, frozen=True):
    pass


class Reset(msgspec.Struct, tag=True, frozen=True):
    pass


ToWorker = Setup | Launch | Collect | Reset | Embed
FromWorker = Failed
