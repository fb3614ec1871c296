"""Whose folder it is: config.json says which run lies in it, and a run is continued only as it was started."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from plait.train.config import TrainConfig

CONFIG = "config.json"


def check_folder(out: Path, config: TrainConfig, *, resume: bool) -> None:
    """Raises ValueError if `out` holds another run, or this one and it isn't to be resumed. Only where it
    computes may change.
    """
    path = out / CONFIG
    if not path.exists():
        return
    if not resume:
        raise ValueError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    try:
        saved = _flat({k: v for k, v in json.loads(path.read_text()).items() if k != "versions"})
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); choose another --out") from error
    asked = _flat(json.loads(json.dumps(asdict(config))))
    missing = object()
    changed = [
        f"{name} ({saved.get(name, 'unset')}, now {asked.get(name, 'unset')})"
        for name in {**asked, **saved}
        if saved.get(name, missing) != asked.get(name, missing) and not _may_change(name)
    ]
    if changed:
        raise ValueError(
            f"{out} was started with other values of {', '.join(changed)}; "
            "resume with the same, or choose another --out"
        )


def _may_change(name: str) -> bool:
    """What decides where and how fast a run computes and what is measured beside it, not what is computed."""
    free = {
        "device",
        "parallel",
        "recompute",
        "rescan",
        "compile",
        "cuda_graph",
        "hang_seconds",
        "profile_step",
        "keep_every",
    }
    return name.partition(".")[0] in free | {"keep_every", "probes", "wandb"}


def claim_folder(out: Path, config: TrainConfig) -> None:
    """Write config.json, with the versions that the run started with, unless it is there."""
    path = out / CONFIG
    if path.exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**asdict(config), "versions": versions}, indent=2) + "\n")
    partial.replace(path)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
