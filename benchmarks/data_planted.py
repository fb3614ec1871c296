"""Plant duplicates, boilerplate and evaluation items in real documents and count what a build finds.

    python benchmarks/data_planted.py runs/data/debian_docs --evaluation DIR_OR_FILE --out runs/planted

The documents are what the first build kept, so nothing among them is a duplicate: whatever else is dropped is dropped
falsely. Items are the strings of the evaluation sets that have eight words or more.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from plait.data.pipeline.build import build
from plait.data.pipeline.contamination import items_of
from plait.data.pipeline.near_duplicates import word_hashes
from plait.data.pipeline.recipe import BuildRecipe, Contamination, Source, Tokens
from plait.data.pipeline.rows import read_objects, read_rows

BOILERPLATE = (
    "You may copy and pass on this document under the terms of the licence that came with it, which has no further "
    "conditions beyond those that are named on the first page."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    texts = planted(real_documents(args.build, args.documents), items(args.evaluation))
    args.out.mkdir(parents=True)
    with (args.out / "in.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for *_, text in texts)
    recipe = BuildRecipe(
        "planted",
        (Source("planted", "jsonl", path=str(args.out / "in.jsonl")),),
        contamination=Contamination((args.evaluation,)),
        tokens=Tokens(vocab_size=4096, training_characters=1_000_000),
        task_megabytes=4,
    )
    build(recipe, args.out / "build", workers=args.workers)
    report(args.out, [(kind, original) for kind, original, _ in texts])


def real_documents(folder: Path, n: int) -> list[str]:
    """n of the documents that a build kept, of 100 words or more."""
    files = sorted((max((folder / "work").glob("clean-*"), key=lambda p: p.stat().st_mtime) / "documents").iterdir())
    found = [row.text for file in files for row in read_rows(file) if len(row.text.split()) >= 100]
    return random.Random(0).sample(found, n)


def items(path: str) -> list[str]:
    found = sorted({item for item in items_of(Path(path)) if 8 <= len(word_hashes(item)) <= 200})
    return random.Random(1).sample(found, min(500, len(found)))


def planted(documents: list[str], questions: list[str]) -> list[tuple[str, int, str]]:
    """(kind, the document that it was made of, text)."""
    draw = random.Random(2)
    texts = [("keep", k, text) for k, text in enumerate(documents)]
    part = [list(enumerate(documents))[k::8] for k in range(5)]
    texts += [("exact", k, "  ".join(text.split())) for k, text in part[0]]
    texts += [("words", k, changed(text, draw)) for k, text in part[1]]
    texts += [
        ("added", k, text + "\n\nThis paragraph was added to the copy and says no more.\n") for k, text in part[2]
    ]
    texts += [
        ("item", k, inserted(fresh(text, draw), item)) for (k, text), item in zip(part[3], questions, strict=False)
    ]
    texts += [("boilerplate", k, f"{BOILERPLATE}\n\n{fresh(text, draw)}") for k, text in part[4][:200]]
    return texts


def changed(text: str, draw: random.Random) -> str:
    """One word in 60 is another."""
    words = text.split(" ")
    for place in draw.sample(range(len(words)), max(1, len(words) // 60)):
        words[place] = draw.choice(("seldom", "perhaps", "window"))
    return " ".join(words)


def fresh(text: str, draw: random.Random) -> str:
    """The same words in another order, line by line: like the original to no rule but those on language."""
    lines = [line.split(" ") for line in text.split("\n")]
    for words in lines:
        draw.shuffle(words)
    return "\n".join(" ".join(words) for words in lines)


def inserted(text: str, item: str) -> str:
    blocks = text.split("\n\n")
    return "\n\n".join([*blocks[: len(blocks) // 2], item, *blocks[len(blocks) // 2 :]])


def report(out: Path, planted_as: list[tuple[str, int]]) -> None:
    """What became of each kind. A copy is missed if it was kept beside its original."""
    fate = ["kept"] * len(planted_as)
    for file in (out / "build" / "work").glob("*/dropped/*.zst"):
        for record in read_objects(file):
            fate[int(record["id"].rpartition(":")[2]) - 1] = record["reason"]
    for kind in ("keep", "exact", "words", "added", "item", "boilerplate"):
        own = [(fate[i], fate[original]) for i, (k, original) in enumerate(planted_as) if k == kind]
        print(f"{kind:12} {len(own):5,}  {dict(Counter(mine for mine, _ in own))}")
        if kind in ("exact", "words", "added"):
            print(f"{'':12} kept beside their originals: {sum(pair == ('kept', 'kept') for pair in own)}")
    kept = [row.text for file in (out / "build" / "work").glob("clean-*/documents/*.zst") for row in read_rows(file)]
    print(f"the boilerplate is left in {sum(BOILERPLATE in text for text in kept)} documents")


if __name__ == "__main__":
    main()
