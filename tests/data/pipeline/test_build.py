"""Whole builds of planted documents: nothing lost without a reason, all planted found, nothing done twice."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from plait.data import open_shards
from plait.data.pipeline import BuildRecipe, Source, load_build_recipe
from plait.data.pipeline.build import Built, build
from plait.data.pipeline.ledger import read_books
from plait.data.pipeline.recipe import Contamination, Duplicates, Languages, Tokens
from plait.data.pipeline.rows import read_objects
from plait.text import Tokenizer

Prose = Callable[..., str]
N = 120
BOILERPLATE = (
    "This page is part of the handbook of the society and may be copied freely by everybody as long as this note "
    "stays with it and no fee is asked."
)
EVALUATION = [
    {"question": "Which of the seven brass lanterns did the ferryman of Korrim leave burning on the night of flood?"},
    {"question": "How many copper coins had Adelind saved when she left the mill beside the frozen canal for good?"},
    {"question": "What did the clockmaker whisper to his apprentice?"},  # eight words: the shortest that is looked for
]


def write(path: Path, texts: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "name": name}) + "\n" for name, text in texts.items()))


def planted(make_prose: Prose) -> dict[str, str]:
    """name -> text; the name says what is to become of it."""
    draw = random.Random(0)
    texts = {f"keep-{k}": make_prose(k, language="de" if k % 3 == 0 else "en") for k in range(N)}
    for k in range(20):
        original = texts[f"keep-{k}"]
        texts[f"exact-{k}"] = original.upper() if k % 2 else original.replace(" ", "  ")
        words = make_prose(500 + k, 80).split(" ")
        texts[f"keep-{500 + k}"] = " ".join(words)
        for _ in range(len(words) // 50):
            words[draw.randrange(len(words))] = draw.choice(("window", "seldom", "seven"))
        texts[f"near-{k}"] = " ".join(words)
        half = make_prose(600 + k, 40)
        texts[f"keep-{600 + k}"] = half + make_prose(700 + k, 40)
        texts[f"keep-{800 + k}"] = half + make_prose(900 + k, 40)  # half the same: two documents, not one
    for k, item in enumerate(EVALUATION * 4):
        paragraphs = make_prose(1000 + k).split("\n\n")
        asked = item["question"]
        paragraphs.insert(3, (asked, asked.upper(), asked.replace(" ", "\n"), f"« {asked} »")[k // 3])
        texts[f"contaminated-{k}"] = "\n\n".join(paragraphs)
    for k in range(12):
        texts[f"boilerplate-{k}"] = BOILERPLATE + "\n\n" + make_prose(2000 + k, language="de" if k % 2 else "en")
    texts |= {f"short-{k}": f"Too little to learn from, number {k}." for k in range(3)}
    texts["spanish"] = "El viejo puerto de la ciudad estaba lleno de barcos y nadie sabía por qué habían llegado. " * 3
    return texts


def recipe_of(folder: Path, **changes: Any) -> BuildRecipe:
    recipe = BuildRecipe(
        "planted",
        (Source("planted", "jsonl", path=str(folder / "in.jsonl"), licence="made up"),),
        languages=Languages(keep=("en", "de")),
        duplicates=Duplicates(boilerplate_documents=6),
        contamination=Contamination((str(folder / "evaluation.jsonl"),)),
        tokens=Tokens(vocab_size=700, heldout_share=0.1),
    )
    return replace(recipe, **changes)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, make_prose: Prose) -> tuple[Path, dict[str, str], Built]:
    folder = tmp_path_factory.mktemp("planted")
    texts = planted(make_prose)
    write(folder / "in.jsonl", texts)
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(item) + "\n" for item in EVALUATION))
    return folder, texts, build(recipe_of(folder), folder / "out")


def fates(folder: Path, texts: dict[str, str]) -> dict[str, str]:
    """name -> "kept", or the reason it was dropped for."""
    names = list(texts)
    found = {}
    for path in (folder / "out" / "work").glob("*/dropped/*.zst"):
        for record in read_objects(path):
            found[names[int(record["id"].rpartition(":")[2]) - 1]] = record["reason"]
    return {name: found.get(name, "kept") for name in names}


def test_what_was_planted_is_found_and_nothing_else(built: tuple[Path, dict[str, str], Built]) -> None:
    folder, texts, _ = built
    found = fates(folder, texts)
    by_kind: dict[str, Counter[str]] = {}
    for name, fate in found.items():
        by_kind.setdefault(name.partition("-")[0], Counter())[fate] += 1
    assert by_kind["keep"] == {"kept": N + 60}
    assert by_kind["exact"] == {"exact duplicate": 20}
    assert by_kind["near"] == {"near duplicate": 20}
    assert by_kind["contaminated"] == {"holds an evaluation item": 12}
    assert by_kind["boilerplate"] == {"kept": 12}
    assert by_kind["short"] == {"too short": 3}
    assert by_kind["spanish"] == {"other language": 1}


def test_boilerplate_stays_once_whatever_the_language(built: tuple[Path, dict[str, str], Built]) -> None:
    folder, _, _ = built
    tokenizer = Tokenizer.from_folder(folder / "out" / "tokenizer")
    texts = [
        tokenizer.decode(shards.document(k).tolist())
        for name in ("shards/planted", "heldout")
        for shards in [open_shards(folder / "out" / name)]
        for k in range(shards.n_documents)
    ]
    assert sum(BOILERPLATE in text for text in texts) == 1


def test_what_boilerplate_leaves_is_judged_again(tmp_path: Path, make_prose: Prose) -> None:
    """Untranslated paragraphs are boilerplate of the pages of many languages; what stays may be little, or foreign."""
    french = "Le vieux port de la ville est calme et les bateaux sont partis ce matin avec tous les marins. " * 2
    texts = {f"page-{k}": BOILERPLATE + "\n\n" + make_prose(k) for k in range(7)}
    texts["little"] = BOILERPLATE + "\n\nNothing but this."
    texts["foreign"] = BOILERPLATE + "\n\n" + french[:60]
    texts["mixed"] = "\n\n".join([make_prose(90, 4).strip(), *[f"{french}{k}" for k in "abcd"], make_prose(91, 8)])
    write(tmp_path / "in.jsonl", texts)
    (tmp_path / "evaluation.jsonl").write_text(json.dumps(EVALUATION[0]) + "\n")
    duplicates = Duplicates(similarity=0.95, boilerplate_documents=6)  # two short pages with it are much alike
    recipe = recipe_of(tmp_path, tokens=Tokens(vocab_size=600, heldout_share=0.0), duplicates=duplicates)
    built = build(recipe, tmp_path / "out")
    found = fates(tmp_path, texts)
    assert {name: found[name] for name in ("little", "foreign", "mixed")} == {
        "little": "the rest: too short",
        "foreign": "the rest: other language",
        "mixed": "several languages",
    }
    assert built.funnel["documents_kept"] == 7


def test_in_is_out_and_dropped_everywhere(built: tuple[Path, dict[str, str], Built]) -> None:
    folder, texts, result = built
    funnel = result.funnel
    assert funnel["documents_read"] == len(texts) == funnel["documents_kept"] + funnel["documents_dropped"]
    assert funnel["steps"][0]["documents_in"] == len(texts)
    for before, after in pairwise(funnel["steps"]):
        assert before["documents_out"] == after["documents_in"], (before["step"], after["step"])
        assert before["characters_out"] == after["characters_in"], (before["step"], after["step"])
    for step in funnel["steps"]:
        assert step["documents_in"] == step["documents_out"] + sum(r["documents"] for r in step["reasons"])
        for group in ("by_source", "by_language"):
            assert sum(one["documents_in"] for one in step[group].values()) == step["documents_in"]
    shards = [open_shards(folder / "out" / name) for name in ("shards/planted", "heldout")]
    assert sum(each.n_documents for each in shards) == funnel["documents_kept"]
    assert sum(each.n_tokens for each in shards) == funnel["tokens_kept"]
    dropped = [r for p in (folder / "out" / "work").glob("*/dropped/*.zst") for r in read_objects(p)]
    assert len(dropped) == funnel["documents_dropped"]
    assert all(record["reason"] and record["step"] and record["id"] for record in dropped)


def test_the_page_and_the_manifest_say_what_happened(built: tuple[Path, dict[str, str], Built]) -> None:
    folder, _, _ = built
    page = (folder / "out" / "funnel.html").read_text(encoding="utf-8")
    assert "near duplicate: 20" in page
    assert "http" not in page.partition("<body")[0]
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    (source,) = manifest["sources"]
    assert (source["licence"], source["n_files"]) == ("made up", 1)
    assert len(source["sha256"]) == 64
    assert {each["folder"] for each in manifest["shards"]} == {"shards/planted", "heldout"}
    assert manifest["evaluation"] == {"items": manifest["evaluation"]["items"], "too_short_to_look_for": 0}
    assert manifest["evaluation"]["items"] >= len(EVALUATION)
    assert set(manifest["cpu_seconds"]) == {"extract", "filter", "sign", "clean", "tokenize"}
    assert all(0 < seconds < 60 for seconds in manifest["cpu_seconds"].values())
    assert json.loads((folder / "out" / "funnel.json").read_text())["documents_read"] > 0


STAGES = ["extract", "filter", "sign", "decide", "clean", "tokenizer", "tokenize"]


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({}, []),
        ({"contamination": Contamination()}, ["clean", "tokenizer", "tokenize"]),
        ({"tokens": Tokens(vocab_size=800, heldout_share=0.1)}, ["tokenizer", "tokenize"]),
        ({"tokens": Tokens(vocab_size=700, heldout_share=0.2)}, ["tokenize"]),
        ({"duplicates": Duplicates(similarity=0.9)}, ["decide", "clean", "tokenizer", "tokenize"]),
        ({"languages": Languages(keep=("en", "de"), min_share=0.4)}, ["clean", "tokenizer", "tokenize"]),
        ({"tokens": Tokens(vocab_size=700, heldout_share=0.1, manual_tokens=0)}, []),
        ({"duplicates": Duplicates(shingle_words=4)}, ["sign", "decide", "clean", "tokenizer", "tokenize"]),
        ({"scrub_pii": True, "thresholds": {"docs": {"min_words": 15}}}, STAGES[1:]),
    ],
)
def test_a_changed_setting_redoes_what_depends_on_it(
    built: tuple[Path, dict[str, str], Built], tmp_path: Path, change: dict[str, Any], redone: list[str]
) -> None:
    folder, _, before = built
    shutil.copytree(folder / "out", tmp_path / "out")
    again = build(recipe_of(folder, **change), tmp_path / "out")
    assert list(again.redone) == redone
    if not redone:
        assert again.funnel == before.funnel


def test_a_stopped_build_goes_on_with_the_tasks_that_are_left(tmp_path: Path, make_prose: Prose) -> None:
    for k in range(3):
        write(tmp_path / "in" / f"{k}.jsonl", {str(n): make_prose((k, n)) for n in range(12)})
    recipe = BuildRecipe(
        "long", (Source("s", "jsonl", path=str(tmp_path / "in")),), tokens=Tokens(vocab_size=600), task_megabytes=0.05
    )
    first = build(recipe, tmp_path / "out")
    filtered = next((tmp_path / "out" / "work").glob("filter-*"))
    assert len(list((filtered / "books").iterdir())) == 3
    kept = {path.name: path.stat().st_mtime_ns for path in (filtered / "documents").iterdir()}
    (filtered / "log" / "completions" / "00001").unlink()
    again = build(recipe, tmp_path / "out")
    assert again.redone == ("filter",)
    assert again.funnel == first.funnel
    changed = {p.name for p in (filtered / "documents").iterdir() if p.stat().st_mtime_ns != kept[p.name]}
    assert changed == {"00001.jsonl.zst"}


def test_two_workers_give_the_same_shards_as_one(tmp_path: Path, make_prose: Prose) -> None:
    for k in range(2):
        write(tmp_path / "in" / f"{k}.jsonl", {str(n): make_prose((k, n)) for n in range(12)})
    recipe = BuildRecipe(
        "two", (Source("s", "jsonl", path=str(tmp_path / "in")),), tokens=Tokens(vocab_size=600), task_megabytes=0.05
    )
    one, two = (build(recipe, tmp_path / f"out{n}", workers=n) for n in (1, 2))
    assert one.funnel == two.funnel
    assert one.manifest["shards"] == two.manifest["shards"]


def test_what_cannot_be_read_is_in_the_books(tmp_path: Path, make_prose: Prose) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.txt").write_text(make_prose(1))
    (folder / "page.html").write_text(f"<html><body><p>{make_prose(2)}</p></body></html>")
    (folder / "empty.txt").write_text("  \n")
    (folder / "latin.txt").write_bytes("é".encode("latin-1") * 50)
    (folder / "menu.html").write_text("<html><body><nav><a href=x>here</a></nav></body></html>")
    (folder / "broken.txt.gz").write_bytes(b"not gzip")
    result = build(
        BuildRecipe("r", (Source("s", "files", path=str(folder)),), tokens=Tokens(vocab_size=600)), tmp_path / "out"
    )
    reasons = {r["reason"]: r["documents"] for r in result.funnel["steps"][0]["reasons"]}
    assert reasons == {"empty file": 1, "not UTF-8": 1, "no text in the page": 1, "damaged file": 1}
    assert result.funnel["documents_kept"] == 2


def test_nothing_left_is_an_error_that_says_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(ValueError, match="no document was kept: look at work"):
        build(BuildRecipe("r", (Source("s", "files", path=str(tmp_path / "a.txt")),)), tmp_path / "out")


def test_recipes_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'scrub_pii = true\n[languages]\nkeep = ["en"]\n[thresholds.docs]\nmin_words = 5\n'
        '[[source]]\nname = "a"\nkind = "files"\npath = "x"\nprofile = "web"\n'
    )
    recipe = load_build_recipe(str(path), {})
    assert recipe.name == "mine"
    assert recipe.sources == (Source("a", "files", path="x", profile="web"),)
    assert (recipe.languages.keep, recipe.scrub_pii, recipe.thresholds) == (("en",), True, {"docs": {"min_words": 5}})
    path.write_text('[[source]]\nname = "a"\nkind = "files"\npath = "x"\ncolour = "red"\n')
    with pytest.raises(ValueError, match="source 0: there is no colour"):
        load_build_recipe(str(path), {})
    with pytest.raises(ValueError, match="no data recipe 'x'"):
        load_build_recipe("x", {})


def test_books_of_a_task_are_whole_or_not_there(built: tuple[Path, dict[str, str], Built]) -> None:
    folder, _, _ = built
    books = read_books((folder / "out" / "work").glob("extract-*"))
    assert len(books) == 1
    assert not list((folder / "out").rglob("*.tmp"))


def test_any_datatrove_executor_can_run_the_stages(tmp_path: Path, make_prose: Prose) -> None:
    from plait.data.pipeline.build import local_executor

    write(tmp_path / "in.jsonl", {str(n): make_prose(n) for n in range(12)})
    asked: list[tuple[str, int]] = []

    def make(steps: list[Any], tasks: int, logs: Path) -> Any:
        asked.append((steps[0].name, tasks))
        return local_executor(1)(steps, tasks, logs)

    recipe = BuildRecipe("r", (Source("s", "jsonl", path=str(tmp_path / "in.jsonl")),), tokens=Tokens(vocab_size=600))
    assert build(recipe, tmp_path / "out", executor=make).funnel["documents_kept"] == 12
    assert asked == [(name, 1) for name in ("extract", "filter", "sign", "clean", "tokenize")]


def test_a_stage_that_is_not_whole_stops_the_build(tmp_path: Path, make_prose: Prose) -> None:
    """As after Slurm's executor, which returns when its jobs are queued."""

    class Queued:
        def run(self) -> None:
            pass

    write(tmp_path / "in.jsonl", {"0": make_prose(0)})
    recipe = BuildRecipe("r", (Source("s", "jsonl", path=str(tmp_path / "in.jsonl")),))
    with pytest.raises(ValueError, match="stage extract is not complete"):
        build(recipe, tmp_path / "out", executor=lambda *_: Queued())
    assert not (tmp_path / "out" / "shards").exists()
