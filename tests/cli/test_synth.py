import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from plait.cli import main
from plait.data import default_corpus, open_shards
from plait.text import train_tokenizer


def run_json(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    assert main([*map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_tables_to_tokens_without_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "towns.csv").write_text("Town,People\nArden,1200\nBo,340\nCray,77\n")
    train_tokenizer([default_corpus()[0][0].text], 600).save(tmp_path / "tokenizer")
    made = run_json(capsys, "synth", "table_qa", "--csv", tmp_path / "towns.csv", "--n", 6, "--out", tmp_path / "qa")
    assert made["n_records"] == 6
    assert [stage["n_out"] for stage in made["stages"]] == [6, 6, 6, 6]
    lines = [json.loads(line) for line in Path(made["chat"]).read_text().splitlines()]
    assert all("Arden" in line["messages"][0]["content"] for line in lines)
    assert json.loads(lines[0]["provenance"])["source"] == {"kind": "csv", "file": "towns.csv", "seed": 0}

    where = "--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "mix"
    mix = run_json(capsys, "synth", "mix", f"{made['chat']}=2", *where)
    assert mix["parts"][0]["conversations"] == 12
    assert open_shards(tmp_path / "mix").n_documents == 12
    assert 0 < mix["parts"][0]["learned_tokens"] < mix["parts"][0]["tokens"]


def test_evaluation_texts_are_dropped_and_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    clean = run_json(capsys, "synth", "table_qa", "--n", 8, "--out", tmp_path / "a")
    leaked = json.loads(Path(clean["chat"]).read_text().splitlines()[3])["messages"][0]["content"]
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": leaked}))
    sets = "--decontaminate", tmp_path / "exam.jsonl"
    made = run_json(capsys, "synth", "table_qa", "--n", 8, "--out", tmp_path / "b", *sets)
    assert made["n_records"] < 8
    assert made["decontamination"]["sets"][0]["found"] == 8 - made["n_records"]
    assert made["stages"][2]["dropped"] == {"contaminated by exam": 8 - made["n_records"]}


def test_a_table_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["synth", "table_qa", "--n", "3", "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert out.split()[:3] == ["step", "in", "out"]
    assert "3 conversations in" in out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["steerability"], 2, "steerability needs a model: name one with --model"),
        (["table_qa", "--paragraphs"], 2, "table_qa needs a model"),
        (["table_qa", "--csv", "nowhere.csv"], 1, "nowhere.csv"),
        (["tool_use", "--model", "demo", "--case", "juggling"], 1, "must be among one_call"),
    ],
)
def test_one_line_says_what_is_wrong(args: list[str], code: int, message: str, capsys, tmp_path: Path) -> None:
    assert main(["synth", *args, "--out", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert error.startswith("plait synth: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_mix_of_kinds_with_some_put_aside(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    train_tokenizer([default_corpus()[0][0].text], 600).save(tmp_path / "tokenizer")
    made = run_json(capsys, "synth", "table_qa", "--n", 40, "--out", tmp_path / "qa")
    args = ["--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "a", "--heldout", tmp_path / "b"]
    mixes = run_json(capsys, "synth", "mix", "--long-context", made["chat"], *args, "--heldout-share", 0.3)
    kept, aside = (mixes[str(tmp_path / name)]["parts"][0] for name in "ab")
    assert kept["kind"] == aside["kind"] == "long_context"
    assert kept["conversations"] + aside["conversations"] == 40
    assert 4 <= aside["conversations"] <= 20
    assert open_shards(tmp_path / "b").loss_mask.sum() == aside["learned_tokens"] > 0
    assert main(["synth", "mix", made["chat"], "--tokenizer", "demo", "--out", str(tmp_path / "c")]) == 0
    assert "table_qa" in capsys.readouterr().out


def test_recorded_conversations_need_no_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    chat = "USER: Hi\n\n\nASSISTANT: {} <|endoftext|>\n\n\n"
    rows = [{"system": "SYSTEM: no functions", "chat": chat.format(text)} for text in ("Hello.", "")]
    (tmp_path / "glaive.json").write_text(json.dumps(rows))
    made = run_json(capsys, "synth", "tool_records", "--records", tmp_path / "glaive.json", "--out", tmp_path / "r")
    assert made["n_records"] == 1
    assert made["stages"][2]["dropped"] == {"empty answer": 1}
    assert main(["synth", "tool_records", "--records", "nowhere", "--out", str(tmp_path / "x")]) == 2


def test_mix_names_files_that_are_not_there(capsys, tmp_path: Path) -> None:
    args = ["--tokenizer", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["synth", "mix", "nowhere.jsonl", *args]) == 2
    assert "nowhere.jsonl is not a chat file" in capsys.readouterr().err


class Endpoint(BaseHTTPRequestHandler):
    """Speaks the chat API: fails once, then answers `Write …` drafts with a polite line and ratings with a number."""

    failures = 1

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "stub"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if type(self).failures:
            type(self).failures -= 1
            self._send(503, {"error": "busy"})
            return
        text = "9" if body["messages"][-1]["content"].startswith("Rate") else "Dear all; this is short."
        choices = [{"message": {"content": text}, "finish_reason": "stop"} for _ in range(body.get("n", 1))]
        self._send(200, {"choices": choices, "usage": {}})

    def _send(self, code: int, answer: dict) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["document_qa"], "not the JSON that was asked for"),
        (["document_qa", "--similarity", "meaning", "--context", "2000"], "not the JSON that was asked for"),
        (["tool_use", "--case", "one_call"], "calls are not the assignment"),
        (["table_qa", "--paragraphs"], "cell missing in the text"),
    ],
)
def test_a_model_that_knows_nothing_leaves_a_funnel_that_says_why(
    args: list[str], reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = "--model", f"http://127.0.0.1:{server.server_port}", "--out", tmp_path / "a"
        made = run_json(capsys, "synth", *args, "--n", 3, *where)
        server.shutdown()
    assert made["n_records"] == 0
    assert {key: n for stage in made["stages"] for key, n in stage["dropped"].items()} == {reason: 3}
    assert reason in (tmp_path / "a" / "funnel.html").read_text(encoding="utf-8")


def test_any_chat_endpoint_will_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        args = "steerability", "--n", 12, "--samples", 2, "--model", f"http://127.0.0.1:{server.server_port}"
        made = run_json(capsys, "synth", *args, "--out", tmp_path / "a")
        again = run_json(capsys, "synth", *args, "--out", tmp_path / "b", "--cache", tmp_path / "a.cache.sqlite")
        server.shutdown()
    assert made["n_records"] >= 1
    assert made["stages"][2]["n_in"] == 12, "two answers that are the same count once"
    assert made["requests"]["calls"] == made["requests"]["asked"]
    assert "calls" not in again["requests"], "all from the cache"
    assert Path(again["chat"]).read_bytes() == Path(made["chat"]).read_bytes()
