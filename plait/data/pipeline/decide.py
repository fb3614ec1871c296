"""Which documents and paragraphs go: one process looks at all signatures, a few hundred bytes a document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.pipeline.near_duplicates import find_duplicates
from plait.data.pipeline.recipe import Duplicates
from plait.data.pipeline.rows import read_objects, task_file
from plait.data.pipeline.stages import signature_file


def decide(signed: Path, documents: Path, out: Path, n_tasks: int, settings: Duplicates) -> dict[str, Any]:
    """Write out/RANK.npz for each task (`kept`: a line of kept.txt, or -1; `similarity`, `exact`; `first_document`),
    kept.txt and boilerplate.npz; returns counts.
    """
    files = [np.load(signature_file(signed, rank)) for rank in range(n_tasks)]
    texts = np.concatenate([file["texts"] for file in files])
    bounds = np.cumsum([0, *(len(file["texts"]) for file in files)])
    found = find_duplicates(
        texts,
        np.concatenate([file["signatures"] for file in files]),
        bands=settings.bands,
        rows_per_band=settings.rows_per_band,
        similarity=settings.similarity,
    )
    originals = sorted({duplicate.kept for duplicate in found})
    line_of = {original: line for line, original in enumerate(originals)}
    kept = np.full(len(texts), -1, dtype=np.int64)
    similarity = np.zeros(len(texts), dtype=np.float64)
    exact = np.zeros(len(texts), dtype=bool)
    for duplicate in found:
        kept[duplicate.index], similarity[duplicate.index] = line_of[duplicate.kept], duplicate.similarity
        exact[duplicate.index] = duplicate.is_exact
    out.mkdir(parents=True, exist_ok=True)
    (out / "kept.txt").write_text("\n".join(_ids(documents, originals, bounds)), encoding="utf-8")
    for rank in range(n_tasks):
        own = slice(int(bounds[rank]), int(bounds[rank + 1]))
        about = {"kept": kept[own], "similarity": similarity[own], "exact": exact[own]}
        np.savez(out / f"{rank:05d}.npz", first_document=bounds[rank], **about)  # type: ignore[arg-type]
    hashes, owners = _boilerplate(files, bounds, kept < 0, settings.boilerplate_documents)
    np.savez(out / "boilerplate.npz", hashes=hashes, owners=owners)
    counts = {"documents": len(texts), "duplicates": len(found), "boilerplate_paragraphs": len(hashes)}
    (out / "done.json").write_text(json.dumps(counts), encoding="utf-8")
    return counts


def _ids(documents: Path, wanted: list[int], bounds: np.ndarray) -> list[str]:
    ids = []
    for rank in range(len(bounds) - 1):
        own = {i - int(bounds[rank]) for i in wanted if bounds[rank] <= i < bounds[rank + 1]}
        if own:
            ids += [row["id"] for i, row in enumerate(read_objects(task_file(documents, rank))) if i in own]
    return ids


def _boilerplate(
    files: list[Any], bounds: np.ndarray, stays: np.ndarray, least_documents: int
) -> tuple[np.ndarray, np.ndarray]:
    """(hashes sorted, the document each stays in) of the paragraphs that so many of the staying documents have."""
    hashes, documents = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for file, first in zip(files, bounds[:-1], strict=True):
        owner = np.repeat(np.arange(len(file["n_paragraphs"])) + first, file["n_paragraphs"])
        counted = stays[owner]
        hashes.append(file["paragraphs"][counted])
        documents.append(owner[counted])
    flat, owners = np.concatenate(hashes), np.concatenate(documents)
    order = np.argsort(flat, kind="stable")  # so that the first of a run is the earliest document
    unique, starts, counts = np.unique(flat[order], return_index=True, return_counts=True)
    often = counts >= least_documents
    return unique[often], owners[order][starts[often]]
