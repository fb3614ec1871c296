"""Nearness by meaning: words that keep the same company are alike even in texts that share none of them."""

import random
import subprocess
import sys

from plait.data import default_corpus
from plait.synth.bm25 import BM25
from plait.synth.embedding import Embedding
from plait.synth.long_context import passages_of

SEA = ["ship", "harbour", "sail", "captain", "wave", "anchor", "storm", "deck"]
FOOD = ["bread", "oven", "flour", "butter", "kitchen", "baker", "cake", "sugar"]


def about(words: list[str], rng: random.Random) -> str:
    return " ".join(rng.sample(words, 4) + rng.sample(["the", "and", "of", "with", "it"], 3))


def test_synonyms_of_a_topic_are_near_without_a_shared_word() -> None:
    rng = random.Random(0)
    texts = [about(SEA, rng) for _ in range(40)] + [about(FOOD, rng) for _ in range(40)]
    without_captain = [i for i, text in enumerate(texts) if "captain" not in text]
    known = Embedding(texts, size=2)
    found = known.most_similar("captain", 40)
    assert all(i < 40 for i in found)
    assert any(i in without_captain and i < 40 for i in found)
    assert all(i not in without_captain for i in BM25(texts).most_similar("captain", 80))


def test_a_passage_is_nearest_to_itself_and_to_its_own_half() -> None:
    passages = [p.text for document in default_corpus()[0] for p in passages_of(document)][:200]
    known = Embedding(passages)
    assert all(known.most_similar(text, 1) == [i] for i, text in enumerate(passages))
    halves = [" ".join(text.split()[: len(text.split()) // 2]) for text in passages]
    assert sum(i in known.most_similar(half, 3) for i, half in enumerate(halves)) >= 180


def test_the_same_in_every_process() -> None:
    code = (
        "from plait.synth.embedding import Embedding;"
        "print(Embedding(['a b c', 'b c d', 'x y z', 'y z w', 'a d'], size=3).most_similar('a', 5))"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert "0" in runs.pop()


def test_few_texts_and_none() -> None:
    assert Embedding([]).most_similar("a", 3) == []
    assert Embedding(["only one text"]).most_similar("one", 3) == [0]
    assert Embedding(["", "word"]).most_similar("word", 1) == [1]
