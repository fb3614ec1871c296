"""`plait eval` from end to end: a random model, its tokenizer, in this process and behind HTTP."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from plait.cli import main
from plait.config import ModelConfig
from plait.data import default_corpus
from plait.eval.registry import TASKS
from plait.model import LanguageModel, init_weights
from plait.model.checkpoint import save_model
from plait.serve import LLM
from plait.text import ScoreRequest, train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random"
    tokenizer = train_tokenizer([document.text for document in default_corpus()[1][:8]], 400)
    config = ModelConfig(
        vocab_size=400, d_model=16, d_ff=24, n_layers=4, n_heads=2, n_kv_heads=1, attn_period=4, attn_offset=2,
        n_experts=4, d_state=4, init_std=0.3, max_context=2048, dtype="float32",
    )  # fmt: skip
    save_model(init_weights(LanguageModel(config), seed=0).eval(), path)
    tokenizer.save(path)
    return path


RULER = ["--set", "lengths=900", "--set", "tasks=fwe,qa_1", "--limit", "2", "--batch", "3"]


def run_eval(task: str, model: object, out: Path, *more: str) -> dict:
    assert main(["eval", task, "--model", str(model), "--out", str(out), *more]) == 0
    return json.loads((out / "scores.json").read_text())


def test_ruler_in_process(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = run_eval("ruler", folder, tmp_path / "run", *RULER, "--price", "1,2")
    assert scores["n"] == 4
    assert list(scores["groups"]) == ["fwe/900", "qa_1_novels/900"]
    assert 2 * (2 * 880 - 50 - 32) <= scores["tokens"]["prompt"] <= 2 * (2 * 900 - 50 - 32)
    assert scores["cost_usd"] > 0
    assert scores["settings"]["prompt_format"] == "chat"
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")
    captured = capsys.readouterr()
    assert "qa_1_novels/900" in captured.out
    assert "report.html" in captured.out
    again = run_eval("ruler", folder, tmp_path / "run", *RULER)
    assert again["answered_now"] == 0
    assert again["metrics"] == scores["metrics"]
    assert main(["eval", "ruler", "--model", str(folder), "--out", str(tmp_path / "run"), *RULER, "--seed", "1"]) == 1
    assert "begun with seed=0, not 1" in capsys.readouterr().err


def test_two_runs_of_the_same_model_don_t_differ(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        run_eval("recall", folder, tmp_path / name, "--set", "pairs=4", "--limit", "8")
    assert (tmp_path / "a" / "samples.jsonl").read_bytes() == (tmp_path / "b" / "samples.jsonl").read_bytes()
    capsys.readouterr()
    page = tmp_path / "diff.html"
    assert main(["eval", "diff", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["nats_per_token"]["value"] == 0
    assert (found["n_shared"], found["better"], found["worse"]) == (8, [], [])
    assert page.read_text().startswith("<!doctype html>")


def test_recall_agrees_with_a_plain_forward(folder: Path, tmp_path: Path) -> None:
    """The probe's log-likelihoods are those of one call of the model, to 1e-4."""
    run_eval("recall", folder, tmp_path / "run", "--set", "pairs=4", "--limit", "4")
    model = LLM(folder).model
    for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines():
        record = json.loads(line)
        with torch.inference_mode():
            logits = model(torch.tensor([record["prompt"]])).logits[0, -1]
        expected = logits.float().log_softmax(-1)[record["continuation"][0]]
        assert record["logprob"] == pytest.approx(float(expected), abs=1e-4)


MULTIPLE_CHOICE = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}, dev: {rows}}}}}
test_split: test
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 0.0}}
"""


def test_the_harness_itself_agrees_with_a_plain_forward(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-evaluation-harness on a task of ours: its log-likelihoods are those of one call of the model, to 1e-4."""
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = [{"question": f"What is {n} plus 2?", "choices": [str(n + 2), str(n)], "answer": 0} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.yaml").write_text(MULTIPLE_CHOICE.format(rows=tmp_path / "rows.jsonl"))
    scores = run_eval("harness", folder, tmp_path / "run", "--set", "tasks=sums", "--set", f"include={tmp_path}/tasks",
                      "--price", "1,1")  # fmt: skip
    assert list(scores["groups"]) == ["sums"]
    assert scores["tokens"]["prompt"] > scores["tokens"]["completion"] > 0
    assert scores["cost_usd"] > 0
    llm = LLM(folder)
    assert llm.tokenizer is not None
    records = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(records) == 4
    for record in records:
        for (context, continuation), found in zip(
            json.loads(record["prompt"]), json.loads(record["output"]), strict=True
        ):
            assert context.count("Answer:") == 3
            ids = [llm.tokenizer.bos_id, *llm.tokenizer.encode(context + continuation)]
            n = len(ids) - 1 - len(llm.tokenizer.encode(context))
            with torch.inference_mode():
                logprobs = llm.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            expected = sum(float(logprobs[at - 1, ids[at]]) for at in range(len(ids) - n, len(ids)))
            assert float(found[0]) == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """`plait serve` of the same model, on a free port."""
    command = [sys.executable, "-m", "plait", "serve", str(folder), "--port", "0", "--max-context", "1024"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = []
        assert server.stdout is not None
        for line in server.stdout:
            said.append(line)
            if '"event":"serving"' in line:
                break
        assert said, "the server said nothing"
        assert '"event":"serving"' in said[-1], said
        reader = threading.Thread(target=server.stdout.read, daemon=True)  # so that its log never fills the pipe
        reader.start()
        yield json.loads(said[-1])["url"]
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.mark.parametrize(
    ("task", "more"), [("ruler", [*RULER, "--limit", "1"]), ("recall", ["--set", "pairs=4", "--limit", "4"])]
)
def test_a_server_gives_the_same_scores(task: str, more: list[str], folder: Path, url: str, tmp_path: Path) -> None:
    here = run_eval(task, folder, tmp_path / "here", *more)
    there = run_eval(task, url, tmp_path / "there", *more, "--tokenizer", str(folder))
    assert there["metrics"] == here["metrics"]
    assert there["tokens"] == here["tokens"]
    outputs = [
        [json.loads(line)["output"] for line in (tmp_path / name / "samples.jsonl").read_text().splitlines()]
        for name in ("here", "there")
    ]
    assert outputs[0] == outputs[1]


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}  {task.about}" in out for name, task in TASKS.items())
    assert "--set lengths=4096" in out
    assert main(["eval", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {*TASKS, "harness"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["rular", "--model", "m", "--out", "x"], "did you mean ruler"),
        (["harnes", "--model", "m", "--out", "x"], "did you mean harness"),
        (["ruler"], "--model MODEL --out DIR"),
        (["ruler", "extra", "--model", "m", "--out", "x"], "only diff takes folders"),
        (["ruler", "--model", "m", "--out", "x", "--set", "lengths"], "write NAME=VALUE"),
        (["ruler", "--model", "m", "--out", "x", "--set", "size=1"], "has no option 'size'"),
        (["ruler", "--model", "m", "--out", "x", "--price", "1"], "write two numbers"),
        (["ruler", "--model", "m", "--out", "x", "--price", "1,nan"], "a price must be at least 0"),
        (["harness", "--model", "m", "--out", "x", "--set", "size=1"], "harness has no option 'size'"),
        (["diff", "a"], "diff compares two runs"),
    ],
)
def test_wrong_usage(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *argv]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_data_is_named_by_flag_or_variable(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["eval", "gsm8k", "--model", str(folder), "--out", str(tmp_path / "x")]
    assert main(argv) == 1
    assert "--data DIR" in capsys.readouterr().err
    monkeypatch.setenv("PLAIT_EVAL_DATA", str(tmp_path))
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path} has no gsm8k/test.jsonl.gz" in error
    assert error.count("\n") == 1
    monkeypatch.setenv("PLAIT_EVAL_DATA", str(tmp_path / "nowhere"))
    assert main(argv) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_log_likelihoods_of_text_agree_too(folder: Path, url: str) -> None:
    from plait.text.openai_client import OpenAIClient

    llm = LLM(folder)
    requests = [
        ScoreRequest("It was a truth", " universally"),
        ScoreRequest("", "Emma"),
        ScoreRequest([5, 30], [31, 32]),
    ]
    client = OpenAIClient(url, tokenizer=llm.tokenizer)
    for here, there in zip(llm.loglikelihood(requests), client.loglikelihood(requests), strict=True):
        assert there.logprob == pytest.approx(here.logprob, abs=1e-4)
        assert (there.is_greedy, there.n_tokens) == (here.is_greedy, here.n_tokens)
