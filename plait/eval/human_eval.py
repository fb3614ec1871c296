"""HumanEval, functions from their docstrings, judged by running their tests (paper section 6.1). Off unless asked."""

from __future__ import annotations

from plait.eval.gsm8k import read_rows
from plait.eval.sandbox import need_sandbox, run_program
from plait.eval.task import Answer, Inputs, Metric, Option, Plan, Sample, Task, file_version, ready

_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def plan(inputs: Inputs) -> Plan:
    if inputs.options["execute"] != "yes":
        raise ValueError(
            "humaneval runs programs that the model writes, in a limited process that is no wall: in a container that"
            " holds nothing of value, ask for it with --set execute=yes"
        )
    need_sandbox()
    path = inputs.file("humaneval/HumanEval.jsonl.gz", "HumanEval.jsonl.gz", "HumanEval.jsonl")
    samples = [
        Sample(
            id=row["task_id"],
            prompt=row["prompt"] if inputs.prompt_format == "text" else _chat_prompt(row["prompt"]),
            max_tokens=512 if inputs.prompt_format == "text" else 1024,
            stop=_STOPS if inputs.prompt_format == "text" else (),
            references=(row["canonical_solution"],),
            facts={"function": row["prompt"], "test": row["test"], "entry_point": row["entry_point"]},
        )
        for row in read_rows(path)
    ]
    return Plan(ready(samples, inputs), {"rows": file_version(path)})


def _chat_prompt(function: str) -> str:
    return (
        f"Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{function}```"
    )


def program(sample: Sample, output: str) -> str:
    """What is run: the function, then its tests. A code block that defines the function stands for itself."""
    name, test = sample.facts["entry_point"], sample.facts["test"]
    block = code_block(output)
    if block is not None and f"def {name}" in block:
        header = sample.facts["function"].split(f"def {name}")[0]  # imports and helpers above it
        return f"{header}\n{block}\n\n{test}\n\ncheck({name})\n"
    return f"{sample.facts['function']}{output if block is None else block}\n\n{test}\n\ncheck({name})\n"


def code_block(output: str) -> str | None:
    """The inside of the first fenced block; one that was cut off goes to the end."""
    _, fence, behind = output.partition("```")
    if not fence:
        return None
    _, _, inside = behind.partition("\n")
    return inside.partition("```")[0]


def score(sample: Sample, answer: Answer) -> dict[str, float]:
    return {"pass@1": float(run_program(program(sample, answer.text)).passed)}


HUMANEVAL = Task(
    name="humaneval",
    about="Python functions from docstrings (Table 2): runs what the model wrote, off unless --set execute=yes",
    plan=plan,
    score=score,
    metrics=(Metric("pass@1"),),
    options={"execute": Option("no", "yes allows running programs that the model writes")},
)
