"""Figure 3: latency and throughput of Jamba-1.5-Mini and models of its size by context length (paper section 4).

The paper: batch size 1, 512 new tokens, two A100 of 80 GB; it prints curves, not numbers.
`plait paper figure_3 --scale full --device cuda` takes about 3 minutes on one H200.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.config import presets
from plait.paper import by_context
from plait.paper.rivals import rivals

if TYPE_CHECKING:
    from rich.console import Console

MODELS = {
    "Jamba-1.5-Mini": presets["jamba-1.5-mini"],
    "Mixtral 8x7B": rivals["Mixtral 8x7B"].config,
    "LLaMA-3.1 8B": rivals["LLaMA-3.1 8B"].config,
}


@dataclass(frozen=True)
class Options(by_context.Options):
    models: tuple[str, ...] = tuple(MODELS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.models if name not in MODELS]:
            raise ValueError(f"models: {unknown[0]!r} must be among {', '.join(MODELS)}")


def measure(options: Options, say: Callable[[str], object] | None = None) -> dict[str, Any]:
    return by_context.measure(MODELS, options, say)


def show(console: Console, data: dict[str, Any]) -> None:
    by_context.show(console, "Figure 3", data)


def draw(data: dict[str, Any], path: Path) -> None:
    by_context.draw("Figure 3", data, path)
