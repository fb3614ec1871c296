"""The three stages (paper section 5.2) at two sizes: pre-training, mid-training on long documents, fine-tuning. The
same at a laptop's size, run to its end and measured, is stages_cpu.py.

The `_docs` ones read what `plait data build debian_docs` writes to runs/data/debian_docs; the sources' shares of the
tokens are numbers here, to be changed by `--set data.train=…` and compared by `plait train --sweep`. RULER and recall
are measured before and after each stage, on the same samples, and stand in its report.html.
"""

from __future__ import annotations

from dataclasses import replace

from plait.config import ModelConfig, presets
from plait.parallel.mesh import ParallelConfig
from plait.train.config import DataConfig, LossConfig, OptimConfig, ProbeConfig, TrainConfig

_DOCS = "runs/data/debian_docs"
_DOCS_MIX = {
    "linux": 0.24, "anarchism": 0.12, "cppreference": 0.08, "gnome": 0.04, "handbook": 0.08, "installation": 0.03,
    "libreoffice": 0.22, "postgresql": 0.06, "python": 0.08, "rust": 0.05,
}  # fmt: skip
_DOCS_MODEL = ModelConfig(
    vocab_size=32_768, d_model=384, d_ff=768, n_layers=8, n_heads=6, n_kv_heads=2, n_experts=8, tie_embeddings=True,
    eos_ids=(2, 518), dtype="float32", max_context=262_144,
)  # fmt: skip


_MANUALS = {"linux": 0.5, "postgresql": 0.15, "handbook": 0.15, "python": 0.1, "installation": 0.05, "rust": 0.05}


def _mix(folder: str, weights: dict[str, float], manuals: float = 0.0) -> str:
    """`manuals` of the tokens from whole manuals, the rest from pages."""
    pages = [f"{folder}/shards/{name}:{weight * (1 - manuals):.4g}" for name, weight in weights.items()]
    whole = [f"{folder}/manuals/{name}:{weight * manuals:.4g}" for name, weight in _MANUALS.items() if manuals]
    return ",".join(pages + whole)


def pretrain_docs() -> TrainConfig:
    """A 55M hybrid MoE on documentation in nine languages: the whole path at the size of one GPU.

    Needs `plait data build debian_docs`. One GPU of 24 GB or more; 4,000 steps of 32K tokens are four passes over the
    text, 131M tokens, about 20 minutes of an H100. That is an estimate, and no loss is known: it was started on a CPU
    and never run to its end. Its laptop-sized twin pretrain_cpu was.
    """
    return TrainConfig(
        name="pretrain_docs",
        model=_DOCS_MODEL,
        data=DataConfig(
            train=_mix(_DOCS, _DOCS_MIX),
            heldout=f"{_DOCS}/heldout",
            tokenizer=f"{_DOCS}/tokenizer",
            packing="planned",
            stage="pretrain",
        ),
        optim=OptimConfig(lr=1e-3, warmup_steps=100, schedule="wsd", decay_share=0.2, final_share=0.05),
        losses=LossConfig(balance=0.01, router_z=1e-4, activation=1e-5),
        steps=4000,
        seq=2048,
        batch=16,
        precision="bfloat16",
        log_every=20,
        eval_every=200,
        eval_rows=64,
        checkpoint_every=500,
        probes=ProbeConfig(ruler_samples=5, ruler_lengths=(4096,), recall_samples=64),
    )


def midtrain_docs() -> TrainConfig:
    """The same model on rows of 32K tokens, half of them of documents of 16K and more: contexts grow.

    A quarter of the tokens is from whole manuals. After pretrain_docs; one GPU of 80 GB, 200 steps, 26M tokens, about
    15 minutes of an H100 (an estimate: not run). Expect RULER at 16K and 32K to rise and at 4K not to fall.
    """
    base = pretrain_docs()
    return replace(
        base,
        name="midtrain_docs",
        start="runs/pretrain_docs/model",
        data=replace(
            base.data, train=_mix(_DOCS, _DOCS_MIX, manuals=0.25), stage="midtrain", long_tokens=16_384, long_share=0.5
        ),
        optim=OptimConfig(lr=2e-4, warmup_steps=20, final_share=0.1),
        steps=200,
        seq=32_768,
        batch=4,
        accumulate=4,
        recompute="full",
        eval_every=50,
        eval_rows=8,
        checkpoint_every=100,
        probes=replace(base.probes, ruler_lengths=(4096, 16_384, 32_768)),
    )


def midtrain_docs_256k() -> TrainConfig:
    """The last growth, to rows of 256K tokens, one a step, 70 % of documents of 64K and more: whole manuals.

    After midtrain_docs; one GPU of 80 GB, 40 steps, 10M tokens, about 10 minutes of an H100 (an estimate: not run).
    Expect RULER at 128K to rise and at 4K not to fall.
    """
    base = midtrain_docs()
    return replace(
        base,
        name="midtrain_docs_256k",
        start="runs/midtrain_docs/model",
        data=replace(base.data, stage="midtrain_256k", long_tokens=65_536, long_share=0.7),
        optim=replace(base.optim, lr=1e-4, warmup_steps=4),
        steps=40,
        seq=262_144,
        batch=1,
        accumulate=1,
        eval_every=20,
        eval_rows=1,
        checkpoint_every=20,
        probes=replace(base.probes, ruler_samples=2, ruler_lengths=(4096, 32_768, 131_072)),
    )


def sft_docs() -> TrainConfig:
    """Fine-tuning on short and long conversations in one mix, so that long contexts are kept (section 5.3).

    Mix as for sft_cpu (stages_cpu.py), with `--tokenizer runs/data/debian_docs/tokenizer`, longer contexts
    (`--max-distractors 100`) and `--out runs/sft_docs_mix --heldout runs/sft_docs_heldout`. After midtrain_docs_256k;
    one GPU of 80 GB, 100 steps of 64K tokens, about 5 minutes of an H100 (an estimate: not run). RULER at no length
    should end lower than it began.
    """
    base = midtrain_docs_256k()
    return replace(
        base,
        name="sft_docs",
        start="runs/midtrain_docs_256k/model",
        data=DataConfig(
            train="runs/sft_docs_mix", heldout="runs/sft_docs_heldout", tokenizer=f"{_DOCS}/tokenizer", stage="sft"
        ),
        optim=OptimConfig(lr=3e-4, warmup_steps=5, weight_decay=0.0, final_share=0.1),
        steps=100,
        seq=32_768,
        batch=2,
        accumulate=2,
        eval_every=25,
        eval_rows=16,
        checkpoint_every=50,
    )


def pretrain_mini() -> TrainConfig:
    """Jamba-1.5-Mini's shape (52B, 12B active) on one's own shards. 64 H100s, 80 hours for 100B tokens at 40 % of peak.

    The hours are arithmetic (6 x 12e9 x 100e9 operations), not a run; no loss is known. Give the data: `--set
    data.train=web:0.6,code:0.2,books:0.15,papers:0.05 --set data.heldout=DIR --set data.tokenizer=DIR`; the paper names
    those four kinds of text and not their shares.
    """
    return TrainConfig(
        name="pretrain_mini",
        model=presets["jamba-1.5-mini"],
        data=DataConfig(
            train="web:0.6,code:0.2,books:0.15,papers:0.05",
            heldout="heldout",
            tokenizer="tokenizer",
            packing="planned",
            stage="pretrain",
        ),
        optim=OptimConfig(lr=3e-4, warmup_steps=2000, schedule="wsd", decay_share=0.2, final_share=0.05),
        losses=LossConfig(balance=0.01, router_z=1e-4, activation=1e-5),
        steps=23_842,
        seq=4096,
        batch=1024,
        accumulate=4,
        precision="bfloat16",
        parallel=ParallelConfig(dp_shard=0, ep=8),
        recompute="selective",
        compile=True,
        eval_every=1000,
        eval_rows=512,
        checkpoint_every=500,
        keep_every=5000,
    )


def midtrain_256k() -> TrainConfig:
    """Mini's long-document phase: rows of 256K tokens, 70 % of documents of 64K and more. 64 H100s, 5B tokens, 7 hours.

    The hours are arithmetic at 30 % of peak, not a run. The paper's Table 4 is what it is for (RULER 92.6 on average,
    86.1 at 256K, after fine-tuning).
    """
    base = pretrain_mini()
    return replace(
        base,
        name="midtrain_256k",
        start="runs/pretrain_mini/model",
        data=replace(base.data, stage="midtrain", long_tokens=65_536, long_share=0.7),
        optim=OptimConfig(lr=3e-5, warmup_steps=50, final_share=0.1),
        steps=1192,
        seq=262_144,
        batch=16,
        accumulate=2,
        parallel=ParallelConfig(dp_shard=0, cp=8, ep=8),
        recompute="full",
        eval_every=100,
        eval_rows=16,
        checkpoint_every=100,
    )


def sft_mini() -> TrainConfig:
    """Mini's fine-tuning: short and long conversations in one mix, rows of 64K tokens. 64 H100s, 2B tokens, 3 hours.

    The hours are arithmetic at 30 % of peak, not a run. Expect what Table 2 has for Mini, and RULER where
    midtrain_256k left it: measure both with `plait eval`, since probes load a model on one GPU only.
    """
    base = midtrain_256k()
    return replace(
        base,
        name="sft_mini",
        start="runs/midtrain_256k/model",
        data=DataConfig(train="sft", heldout="sft_heldout", tokenizer="tokenizer", stage="sft"),
        optim=OptimConfig(lr=1e-5, warmup_steps=50, weight_decay=0.0, final_share=0.1),
        steps=1907,
        seq=65_536,
        batch=16,
        parallel=ParallelConfig(dp_shard=0, cp=4, ep=8),
    )
