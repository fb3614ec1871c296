"""The public names of the package, loaded at first use."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import plait


def test_every_public_name_is_the_one_its_home_defines() -> None:
    for name, home in plait._HOMES.items():
        assert getattr(plait, name) is getattr(importlib.import_module(home), name)


def test_type_checkers_see_the_same_names_from_the_same_homes() -> None:
    tree = ast.parse(Path(plait.__file__).read_text(encoding="utf-8"))
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and str(node.module).startswith("plait.")
    ]
    assert {alias.name: node.module for node in imports for alias in node.names} == plait._HOMES


def test_the_names_are_listed_before_they_are_loaded() -> None:
    assert sorted(plait._HOMES) == plait.__all__
    assert set(plait.__all__) | {"__version__"} <= set(dir(plait))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'load_modle'; its public names are .*load_model"):
        plait.load_modle  # noqa: B018


@pytest.mark.parametrize(
    ("given", "seen"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_do_not_spin_for_long_unless_told(given: dict[str, str], seen: str) -> None:
    ours = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    told = subprocess.run(
        [sys.executable, "-c", "import os, plait; print(os.environ.get('GOMP_SPINCOUNT'))"],
        env=ours | given, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == seen
