"""Documents to tokens: corpora, tokenized shards, and batches in a reproducible order (paper section 5.2)."""

from plait.data.austen import extract_austen, fetch_austen
from plait.data.documents import Document, default_corpus, read_documents, split_chapters
from plait.data.loader import IGNORE, Batch, Loader, evaluation_batches
from plait.data.mixture import Mixture, Part, open_mixture
from plait.data.shards import (
    TokenShards,
    add_loss_mask,
    merge_shards,
    open_shards,
    tokenizer_hash,
    write_shards,
)

__all__ = [
    "IGNORE",
    "Batch",
    "Document",
    "Loader",
    "Mixture",
    "Part",
    "TokenShards",
    "add_loss_mask",
    "default_corpus",
    "evaluation_batches",
    "extract_austen",
    "fetch_austen",
    "merge_shards",
    "open_mixture",
    "open_shards",
    "read_documents",
    "split_chapters",
    "tokenizer_hash",
    "write_shards",
]
