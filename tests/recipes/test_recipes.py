"""Finding recipes: by name, and in files of one's own."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from plait.recipes import RECIPES, find_recipe, load_recipe
from plait.recipes.tiny import tiny_cpu

ONE = """
from plait.recipes.tiny import tiny_cpu
from dataclasses import replace

def _base():
    return tiny_cpu()

def longer():
    return replace(_base(), name="longer", steps=900)
"""


def test_shipped_ones_by_name() -> None:
    assert find_recipe("tiny_cpu") is tiny_cpu
    assert load_recipe("demo", ["steps=7", "model.d_model=80"]).model.d_head == 16
    assert {"tiny_cpu", "demo", "pretrain_docs", "midtrain_256k", "sft_demo"} <= set(RECIPES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_a_valid_configuration_that_says_what_it_is_for(name: str) -> None:
    config = load_recipe(name)
    assert config.name == name
    assert len((RECIPES[name].__doc__ or "").split()) > 10


def test_contexts_grow_from_stage_to_stage() -> None:
    for stages, longest in (
        (("pretrain_docs", "midtrain_docs", "midtrain_docs_256k"), 262_144),
        (("pretrain_mini", "midtrain_256k"), 262_144),
        (("pretrain_cpu", "midtrain_cpu", "midtrain_cpu_16k"), 16_384),
    ):
        configs = [load_recipe(name) for name in stages]
        assert all(before.seq < after.seq for before, after in pairwise(configs))
        assert configs[-1].seq == longest <= configs[-1].model.max_context
        assert all(after.start == f"runs/{before.name}/model" for before, after in pairwise(configs))
        assert all(after.model == configs[0].model and after.data.long_share > 0 for after in configs[1:])
        assert len({config.data.stage for config in configs}) == len(configs)


def test_every_stage_says_where_it_runs_how_long_and_what_to_expect() -> None:
    """Purpose, hardware, time and an expected number, or that it was never run."""
    for name, recipe in RECIPES.items():
        if name.startswith(("pretrain", "midtrain", "sft")):
            text = " ".join((recipe.__doc__ or "").split())
            assert re.search(r"\d+ H100s|GPU of \d+ GB|CPU cores", text), name
            assert re.search(r"hours?|minutes?", text), name
            assert re.search(r"[Ee]xpect|should end|not run|never run|not a run", text), name


def test_stages_of_one_gpu_are_probed_before_and_after() -> None:
    for name in RECIPES:
        if (
            name.startswith(("pretrain", "midtrain", "sft"))
            and load_recipe(name).parallel.cp * load_recipe(name).parallel.ep == 1
        ):
            probes = load_recipe(name).probes
            assert probes.ruler_samples, name
            assert probes.recall_samples, name
            assert max(probes.ruler_lengths) <= load_recipe(name).model.max_context


def test_the_only_one_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "json.py"  # a name that a module has already
    path.write_text(ONE)
    config = load_recipe(str(path), ["seq=64"])
    assert (config.name, config.steps, config.seq) == ("longer", 900, 64)
    assert load_recipe(f"{path}:longer").steps == 900
    import json

    assert json.loads("3") == 3


def test_dataclasses_with_postponed_annotations(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from plait.config import presets\n"
        "from plait.train.config import TrainConfig\n"
        "@dataclass(frozen=True)\n"
        "class Own(TrainConfig):\n"
        "    kind: ClassVar[str] = 'x'\n"
        "    rounds: int = 1\n"
        "def own():\n"
        "    return Own('own', presets['tiny'])\n"
    )
    assert load_recipe(str(path), ["rounds=4"]).rounds == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (ONE, "shorter", "has no function 'shorter'; it has longer"),
        ("x = 3", "", r"holds 0 functions \(\); say which"),
        ("from plait.recipes.tiny import tiny_cpu", "tiny_cpu", "has no function 'tiny_cpu'; it has none"),
        (ONE + "def b():\n    return 1\n", "", r"holds 2 functions \(longer, b\); say which: .*:NAME"),
        (ONE + "def b():\n    return 1\n", "b", "a recipe returns a TrainConfig; b gave int"),
        (ONE + "def b(x=1):\n    return 1\n", "b", "a recipe takes no arguments; b does"),
    ],
)
def test_what_is_no_recipe(content: str, name: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.py"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_recipe(f"{path}:{name}" if name else str(path))


def test_names_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'tiny': did you mean tiny_cpu\? \(or give a file"):
        find_recipe("tiny")
    with pytest.raises(ValueError, match="no recipe 'zzz': there are tiny_cpu, demo"):
        find_recipe("zzz")
    with pytest.raises(ValueError, match=r"nowhere\.py does not exist"):
        find_recipe("nowhere.py:run")


def test_a_mistake_in_a_file_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "runs.py").write_text("def f(:\n")
    with pytest.raises(SyntaxError):
        find_recipe(str(tmp_path / "runs.py"))
