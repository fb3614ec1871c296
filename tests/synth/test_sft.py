import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plait.data import IGNORE, Loader, TokenShards, default_corpus, evaluation_batches, open_shards
from plait.synth.decontaminate import Decontaminator
from plait.synth.record import Record, from_chat, write_jsonl
from plait.synth.sft import MixPart, Side, encode_chat, mixed, write_sft
from plait.text import ChatTemplate, Tokenizer, train_tokenizer

CALL = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, "é"]}'}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def chat(*turns: tuple[str, str], **more: object) -> Record:
    return Record("r", "skill", messages=tuple({"role": role, "content": content} for role, content in turns), **more)


SIMPLE = chat(("user", "Hi <|eom|>? 1"), ("assistant", "Hello!"), ("user", "More"), ("assistant", "Yes, more."))
CHAT = chat(*((turn["role"], turn["content"].replace("<|eom|>", "")) for turn in SIMPLE.messages))
TOOLS = Record(
    "t",
    "tool_use",
    messages=(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Call it"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "It is 7."},
    ),
    tools=(TOOL,),
)
CITED = Record(
    "c",
    "document_qa",
    messages=(
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Emma.", "citations": [{"document_id": 1}]},
    ),
    documents=({"title": "a", "text": "x"}, {"title": "b", "text": "Emma"}),
    knobs={"is_set": True, "citation_mode": "fast"},
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([default_corpus()[0][0].text], 600)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate()


@pytest.mark.parametrize(
    ("record", "learned"),
    [
        (SIMPLE, [" Hello!<|eom|>", " Yes, more.<|eom|>"]),
        (
            TOOLS,
            [
                ' <tool_calls>[\n{"name": "f", "arguments": {"a": [1, "é"]}}\n]</tool_calls><|eom|>',
                " It is 7.<|eom|>",
            ],
        ),
        (CITED, [" Emma.<citations>[1]</citations><|eom|>"]),
    ],
)
def test_exactly_the_assistants_turns_are_learned(tokenizer, template, record: Record, learned: list[str]) -> None:
    record = from_chat(json.loads(json.dumps(record.chat())))
    ids, mask = encode_chat(record, tokenizer, template)
    edges = np.flatnonzero(np.diff(mask, prepend=0, append=0)).reshape(-1, 2)
    assert [tokenizer.decode(ids[a:b], control_tokens=True) for a, b in edges] == learned
    assert len(ids) == len(mask)


def write_parts(tmp_path: Path) -> list[MixPart]:
    write_jsonl([CHAT.chat(), replace(CHAT, id="s2").chat()], tmp_path / "chats.jsonl")
    wrong = [replace(CHAT, messages=CHAT.messages[:1]), replace(CHAT, tools=({"type": "retrieval"},))]
    write_jsonl([record.chat() for record in (TOOLS, CITED, *wrong)], tmp_path / "skills.jsonl")
    return [MixPart(tmp_path / "chats.jsonl", 2, "conversation"), MixPart(tmp_path / "skills.jsonl")]


def test_shards_and_mask_fit_and_load(tokenizer, template, tmp_path: Path) -> None:
    write_sft(write_parts(tmp_path), tokenizer, template, tmp_path / "out")
    shards = open_shards(tmp_path / "out")
    mask = shards.loss_mask
    assert mask is not None
    assert shards.n_documents == 6
    for i, record in enumerate([CHAT, CHAT, CHAT, CHAT, TOOLS, CITED]):
        ids, learned = encode_chat(record, tokenizer, template)
        assert shards.document(i).tolist() == [*ids, shards.metadata.eos_id]
        assert mask[shards.offsets[i] : shards.offsets[i + 1]].tolist() == [*learned, 0]

    report = json.loads((tmp_path / "out" / "mix.json").read_text())
    assert [(p["file"], p["kind"], p["skill"], p["conversations"]) for p in report["parts"]] == [
        ("chats.jsonl", "conversation", "skill", 4),
        ("skills.jsonl", "skill", "tool_use", 1),
        ("skills.jsonl", "skill", "document_qa", 1),
    ]
    assert report["left_out"] == {"not a conversation": 1, "refused by the template": 1}
    assert sum(p["learned_tokens"] for p in report["parts"]) == mask.sum()
    assert sum(p["tokens"] for p in report["parts"]) == shards.n_tokens
    assert shards.metadata.sources[0].n_characters > 4 * sum(len(turn["content"]) for turn in CHAT.messages)


def test_packed_labels_are_the_next_tokens_of_the_assistant_and_no_others(tokenizer, template, tmp_path: Path) -> None:
    shards = write_sft(write_parts(tmp_path), tokenizer, template, tmp_path / "out")
    mask = shards.loss_mask
    unmasked = TokenShards(shards.path, replace(shards.metadata, has_loss_mask=False))
    masked, plain = (Loader(given, seq=37, batch=4, seed=3) for given in (shards, unmasked))
    n_rows = plain.n_windows(epochs=3)
    learned = []
    for index in range(n_rows // 4):
        batch, whole = masked.batch(index), plain.batch(index)
        assert (batch.token_ids == whole.token_ids).all()
        assert ((batch.labels == whole.labels) | (batch.labels == IGNORE)).all()
        learned += batch.labels[batch.labels != IGNORE].tolist()
        halves = [masked.batch(index, rank, 2).labels for rank in range(2)]
        assert (np.concatenate(halves) == batch.labels).all()
    tokens = shards.read(0, shards.n_tokens)
    once = np.bincount(tokens[mask == 1], minlength=600)
    seen = np.bincount(learned, minlength=600)
    assert (seen >= 2 * once).all(), "two whole epochs and part of a third"
    assert (seen <= 3 * once).all()


def test_what_is_too_long_or_contaminated_stays_out(tokenizer, template, tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    evaluation = Decontaminator({"set": ["It is 7."]}, n=3, shortest=3)
    longest = len(encode_chat(CITED, tokenizer, template)[0])
    write_sft(parts, tokenizer, template, tmp_path / "out", max_tokens=longest, decontaminator=evaluation)
    report = json.loads((tmp_path / "out" / "mix.json").read_text())
    assert report["left_out"] == {
        "contaminated by set": 1,
        f"longer than {longest} tokens": 1,
        "not a conversation": 1,
        "refused by the template": 1,
    }
    assert report["decontamination"]["sets"][0]["found"] == 1


def test_shares_are_random_halves_that_repeat(tokenizer, template, tmp_path: Path) -> None:
    records = [replace(CHAT, id=str(i)).chat() for i in range(200)]
    write_jsonl(records, tmp_path / "c.jsonl")
    sizes = [
        write_sft([MixPart(tmp_path / "c.jsonl", 0.5)], tokenizer, template, tmp_path / f"o{i}", seed=seed).n_documents
        for i, seed in enumerate((0, 0, 1))
    ]
    assert sizes[0] == sizes[1]
    assert 70 < sizes[0] < 130


def test_nothing_half_written(tokenizer, template, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps(SIMPLE.chat()) + "\n{oops\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl line 2"):
        write_sft([MixPart(tmp_path / "bad.jsonl")], tokenizer, template, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_nothing_is_written_over_and_no_part_is_empty(tokenizer, template, tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        write_sft(parts, tokenizer, template, tmp_path / "out")
    with pytest.raises(ValueError, match="times=0"):
        MixPart(tmp_path / "x.jsonl", 0)


def test_a_mask_that_does_not_fit_is_refused(tokenizer, template, tmp_path: Path) -> None:
    shards = write_sft(write_parts(tmp_path), tokenizer, template, tmp_path / "out")
    (tmp_path / "out" / "loss_mask.bin").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"loss_mask\.bin has 1 bytes where"):
        open_shards(shards.path)
    (tmp_path / "out" / "loss_mask.bin").unlink()
    with pytest.raises(ValueError, match=r"loss_mask\.bin is missing"):
        open_shards(shards.path)


def test_held_out_rows_have_labels_of_the_assistant_only(tokenizer, template, tmp_path: Path) -> None:
    shards = write_sft(write_parts(tmp_path), tokenizer, template, tmp_path / "out")
    labels = np.concatenate([b.labels.reshape(-1) for b in evaluation_batches(shards, seq=29, batch=3)])
    tokens = shards.read(0, shards.n_tokens)
    assert labels[labels != IGNORE].tolist() == tokens[shards.loss_mask == 1].tolist()


def test_every_conversation_is_on_one_side(tokenizer, template, tmp_path: Path) -> None:
    records = [replace(CHAT, id=str(i)).with_messages(*chat(("user", f"no. {i}"), ("assistant", "ok")).messages).chat()
               for i in range(300)]  # fmt: skip
    write_jsonl(records, tmp_path / "c.jsonl")
    parts = [MixPart(tmp_path / "c.jsonl")]
    train, held_out = (
        write_sft(parts, tokenizer, template, tmp_path / str(side), side=Side(0.2, held_out=side))
        for side in (False, True)
    )
    texts = [{tuple(shards.document(i).tolist()) for i in range(shards.n_documents)} for shards in (train, held_out)]
    assert len(texts[0]) + len(texts[1]) == 300
    assert not texts[0] & texts[1]
    assert 35 < held_out.n_documents < 90
    with pytest.raises(ValueError, match="share 1"):
        Side(1, held_out=True)


def with_call(call: object) -> dict:
    return {"messages": [{"role": "assistant", "tool_calls": call}]}


@pytest.mark.parametrize(
    "line",
    [
        {},
        [1],
        {"messages": []},
        {"messages": ["a"]},
        {"messages": [{"role": "user"}], "tools": "["},
        {"messages": [{"role": "user"}], "tools": [3]},
        {"messages": [{"role": "user"}], "documents": 3},
        {"messages": [{"role": "user"}], "knobs": [1]},
        {"messages": [{"role": "user"}], "provenance": {"facts": 3}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        with_call(3),
        with_call([{"name": "f", "arguments": "{}"}]),
        with_call([{"function": {"arguments": "{}"}}]),
        with_call([{"function": {"name": "f", "arguments": "{oops"}}]),
        with_call([{"function": {"name": "f", "arguments": "[1]"}}]),
    ],
)
def test_lines_that_are_no_chat_are_refused(line: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chat record"):
        from_chat(line)
    write_jsonl([CHAT.chat(), line], tmp_path / "chats.jsonl")
    with pytest.raises(ValueError, match=r"chats\.jsonl, record 2: "):
        list(mixed([MixPart(tmp_path / "chats.jsonl")], 0))


def test_arguments_may_be_objects() -> None:
    given = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": {"a": [1, "é"]}}}
    assert from_chat(with_call([given])).messages[0]["tool_calls"] == [CALL]
    given["function"] = {"name": "f"}
    assert from_chat(with_call([given])).messages[0]["tool_calls"][0]["function"]["arguments"] == "{}"


def test_a_mix_of_which_nothing_is_left_says_why(tokenizer, template, tmp_path: Path) -> None:
    write_jsonl([replace(CHAT, messages=CHAT.messages[:1]).chat()] * 2, tmp_path / "c.jsonl")
    with pytest.raises(ValueError, match=r"no conversation is left: not a conversation \(2\)"):
        write_sft([MixPart(tmp_path / "c.jsonl")], tokenizer, template, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_a_template_without_bos_is_refused(tokenizer, tmp_path: Path) -> None:
    write_jsonl([CHAT.chat()], tmp_path / "c.jsonl")
    template = ChatTemplate("{% for m in messages %}<|bom|>{{ m.content }}<|eom|>{% endfor %}")
    with pytest.raises(ValueError, match="must begin with the beginning-of-text token"):
        write_sft([MixPart(tmp_path / "c.jsonl")], tokenizer, template, tmp_path / "out")
