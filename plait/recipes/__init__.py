"""Named runs. A recipe is a function without arguments that returns a TrainConfig; its docstring says purpose,
hardware, time, result.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from plait.recipes.preferences import dpo
from plait.recipes.sft import sft_demo, sft_long
from plait.recipes.stages import (
    midtrain_256k,
    midtrain_docs,
    midtrain_docs_256k,
    pretrain_docs,
    pretrain_mini,
    sft_docs,
    sft_mini,
)
from plait.recipes.stages_cpu import midtrain_cpu, midtrain_cpu_16k, pretrain_cpu, sft_cpu
from plait.recipes.tiny import demo, tiny_cpu
from plait.train.config import TrainConfig, with_settings

Recipe = Callable[[], TrainConfig]
_SHIPPED: tuple[Recipe, ...] = (
    tiny_cpu, demo, sft_demo, sft_long, dpo, pretrain_cpu, midtrain_cpu, midtrain_cpu_16k, sft_cpu,
    pretrain_docs, midtrain_docs, midtrain_docs_256k, sft_docs, pretrain_mini, midtrain_256k, sft_mini,
)  # fmt: skip
RECIPES: dict[str, Recipe] = {recipe.__name__: recipe for recipe in _SHIPPED}


def load_recipe(name: str, settings: Sequence[str] = ()) -> TrainConfig:
    """The configuration a recipe gives, with `key=value` settings applied. Raises ValueError for a bad name or setting,
    and for a function that isn't a recipe.
    """
    recipe = find_recipe(name)
    if inspect.signature(recipe).parameters:
        raise ValueError(f"{name}: a recipe takes no arguments; {recipe.__name__} does")
    config = recipe()
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{name}: a recipe returns a TrainConfig; {recipe.__name__} gave {type(config).__name__}")
    return with_settings(config, settings)


def find_recipe(name: str) -> Recipe:
    """A shipped recipe by its name, or one from a file of the user's own: `runs.py`, or `runs.py:my_run` if it holds
    several.
    """
    if name in RECIPES:
        return RECIPES[name]
    path, _, wanted = name.partition(":")
    if path.endswith(".py"):
        return _from_file(Path(path), wanted)
    close = difflib.get_close_matches(name, RECIPES, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(RECIPES)}"
    raise ValueError(f"no recipe {name!r}: {hint} (or give a file: my_runs.py or my_runs.py:my_run)")


def _from_file(path: Path, wanted: str) -> Recipe:
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    spec = importlib.util.spec_from_file_location(f"plait_recipe_file_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    own = {
        n: f
        for n, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and not n.startswith("_")
    }
    if wanted:
        if wanted not in own:
            raise ValueError(f"{path} has no function {wanted!r}; it has {', '.join(own) or 'none'}")
        return own[wanted]
    if len(own) != 1:
        raise ValueError(f"{path} holds {len(own)} functions ({', '.join(own)}); say which: {path}:NAME")
    return next(iter(own.values()))
