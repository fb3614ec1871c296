"""`make lock`: resolve plait with its train, serve, data and dev extras anew; write the versions to requirements.lock.

pip resolves and installs nothing; this keeps names, versions and platform markers. No hashes and no index: each
machine's pip settings say where packages come from, and a build of torch for that machine (a local version such as
+cpu) satisfies the same line. What torch adds on some platforms only (CUDA libraries) it pins itself: left out.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
LOCK = REPOSITORY / "requirements.lock"
# triton is the one that torch's CUDA builds of this version pin, so that one lock serves them and the CPU builds.
EXTRAS = "train,serve,data,dev"
WANTED = [f".[{EXTRAS}]", "torch==2.13.0", "triton==3.7.1 ; platform_system == 'Linux'"]
Metadata = dict[str, Any]
HEADER = """\
# Exact versions of what `make setup` installs: plait's core with the train, serve, data and dev extras. Made by
# `make lock`; change pyproject.toml or .ci/lock.py instead.
"""


def resolve() -> dict[str, Metadata]:
    """What pip would install into an empty environment: metadata by normalised name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            "--report",
            str(report),
        ]
        subprocess.run([*pip, *WANTED], cwd=REPOSITORY, check=True)
        return {
            normal(item["metadata"]["name"]): item["metadata"] for item in json.loads(report.read_text())["install"]
        }


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def edges(packages: dict[str, Metadata]) -> dict[str, list[tuple[str, str | None]]]:
    """For each package, who requires it under which marker (None: always)."""
    requirements = {
        name: [Requirement(line) for line in data.get("requires_dist", [])] for name, data in packages.items()
    }
    extras = {name: {""} for name in packages}
    for requirement in [Requirement(f"plait[{EXTRAS}]"), *(r for rs in requirements.values() for r in rs)]:
        extras.get(normal(requirement.name), set()).update(requirement.extras)
    found: dict[str, list[tuple[str, str | None]]] = {name: [] for name in packages}
    for name, its_requirements in requirements.items():
        for requirement in its_requirements:
            target, marker = normal(requirement.name), requirement.marker
            if target not in packages or not applies(marker, extras[name]):
                continue
            where = platforms(marker)
            if where is None or name != "torch":
                found[target].append((name, where))
    return found


def applies(marker: Marker | None, extras: set[str]) -> bool:
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def platforms(marker: Marker | None) -> str | None:
    """A marker without its extra: `platform_system == "Linux" and extra == "dev"` gives the first half."""
    return re.sub(r"""(?:^| and )extra == (["'])[^"']*\1""", "", str(marker or "")).removeprefix(" and ") or None


def condition(name: str, required_by: dict[str, list[tuple[str, str | None]]], above: frozenset[str]) -> str | None:
    """The marker under which a package is needed: "" for always, None if only some platforms of torch ask for it."""
    if name == "plait":
        return ""
    ways = set()
    for parent, marker in required_by[name]:
        outer = None if parent in above else condition(parent, required_by, above | {name})
        if outer is not None:
            both = " and ".join(f"({part})" for part in (outer, marker) if part)
            ways.add(both and str(Marker(both)))
    if not ways:
        return None
    return "" if "" in ways else " or ".join(sorted(ways))


def lock_text(packages: dict[str, Metadata]) -> str:
    required_by = edges(packages)
    lines = []
    for name in sorted(packages.keys() - {"plait"}):
        marker = condition(name, required_by, frozenset({name}))
        if marker is not None:
            version = packages[name]["version"].partition("+")[0]
            lines.append(f"{name}=={version}" + (f" ; {Marker(marker)}" if marker else ""))
    return HEADER + "\n".join(lines) + "\n"


if __name__ == "__main__":
    temporary = LOCK.with_suffix(".tmp")
    temporary.write_text(lock_text(resolve()), encoding="utf-8")
    os.replace(temporary, LOCK)
    print(f"{LOCK.name}: {sum(1 for line in LOCK.read_text().splitlines() if '==' in line)} packages")
