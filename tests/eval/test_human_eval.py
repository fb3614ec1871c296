"""Programs of a model: run only when asked, and stopped when they do what they must not."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.eval.human_eval import HUMANEVAL, code_block
from plait.eval.task import Answer, Inputs

ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef twice(x):\n    """Twice x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
    "entry_point": "twice",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "humaneval").mkdir()
    (tmp_path / "humaneval" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROW).encode()))
    return tmp_path


def test_it_is_off_unless_asked(data: Path, inputs_of: Callable[..., Inputs]) -> None:
    with pytest.raises(ValueError, match="--set execute=yes"):
        HUMANEVAL.plan(inputs_of("humaneval", data=data))


@pytest.mark.parametrize(
    ("output", "passes"),
    [
        ("    return 2 * x\n", 1),
        ("    return x + 2\n", 0),
        ("    return (\n", 0),
        ("", 0),
        ("Here:\n```python\ndef twice(x):\n    return math.floor(2 * x)\n```\nDone.", 1),
        ("```python\n    return 2 * x\n```", 1),
        ("    import sys\n    sys.exit(0)\n", 0),
        ("    import os\n    os._exit(0)\n", 0),
    ],
)
def test_only_a_program_whose_tests_pass_passes(
    output: str, passes: int, data: Path, inputs_of: Callable[..., Inputs]
) -> None:
    sample = HUMANEVAL.plan(inputs_of("humaneval", {"execute": "yes"}, data=data)).drafts[0].make()
    assert HUMANEVAL.score(sample, Answer(output)) == {"pass@1": passes}


def test_code_blocks() -> None:
    assert code_block("a\n```python\nx\n```\nb```\ny```") == "x\n"
    assert code_block("```\nx") == "x"
    assert code_block("x") is None
