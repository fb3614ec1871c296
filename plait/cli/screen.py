"""What commands share: their way to print, and the error of wrong usage."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Commands = Any  # what argparse's add_subparsers returns; its class has no public name


class UsageError(ValueError):
    """The command line itself is wrong, as opposed to what it led to: exit code 2."""


def print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))


def console() -> Console:
    """As wide as the terminal; into a pipe or a file wide enough that tables keep all their figures."""
    import os

    from rich.console import Console

    made = Console(markup=False, highlight=False)  # names and paths may hold [brackets]
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 120
    return made


def table(*columns: str) -> Table:
    """Left-aligned labels, right-aligned numbers."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left", no_wrap=True)
    return made


def check_picture(flag: str, path: str | None) -> None:
    """Before the work whose picture it will be: UsageError if matplotlib or the folder is missing."""
    import importlib.util
    from pathlib import Path

    if path is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"{flag} needs matplotlib: pip install 'plait[bench]'")
    if not Path(path).absolute().parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {Path(path).parent}")


def suggest(given: str, allowed: Collection[str]) -> str:
    """`did you mean …` when something is close, else everything there is."""
    import difflib

    close = difflib.get_close_matches(given.lower(), allowed, n=5, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(allowed)}"
