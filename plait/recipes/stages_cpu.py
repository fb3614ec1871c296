"""All stages at the size of a laptop: pre-training, two steps of mid-training, fine-tuning, one after the other.

    plait data build small_docs
    plait train pretrain_cpu
    plait train midtrain_cpu
    plait train midtrain_cpu_16k
    plait synth table_qa --n 2000 --out runs/tables
    plait synth table_qa --n 300 --seed 1 --distractors plait/data/corpus --max-distractors 24 --out runs/tables_long
    plait synth mix runs/tables/chat.jsonl --long-context runs/tables_long/chat.jsonl --max-tokens 8192 \\
        --tokenizer runs/data/small_docs/tokenizer --out runs/sft_cpu_mix --heldout runs/sft_cpu_heldout
    plait train sft_cpu

They show that every stage runs and what it moves; a model of this size and schooling knows little, and RULER says so.
"""

from __future__ import annotations

from dataclasses import replace

from plait.config import ModelConfig
from plait.train.config import DataConfig, LossConfig, OptimConfig, ProbeConfig, TrainConfig

_DATA = "runs/data/small_docs"
_MODEL = ModelConfig(
    vocab_size=8192, d_model=128, d_ff=256, n_layers=8, n_heads=4, n_kv_heads=2, n_experts=8, tie_embeddings=True,
    eos_ids=(2, 518), dtype="float32", max_context=65_536,
)  # fmt: skip
_WITH_MANUALS = (
    f"{_DATA}/shards/anarchism:0.5,{_DATA}/shards/postgresql:0.18,{_DATA}/manuals/postgresql:0.15,"
    f"{_DATA}/shards/gnome:0.17"
)
_PROBES = ProbeConfig(ruler_samples=2, ruler_lengths=(1024, 4096), recall_samples=32)


def pretrain_cpu() -> TrainConfig:
    """A hybrid MoE of 5.5M parameters (3.1M active) on 1.6M tokens of manuals in seven languages.

    Needs `plait data build small_docs`. 2 CPU cores, 12 minutes at 2,400 tokens a second (half an hour beside other
    work). Expect a held-out loss of 4.86 nats per token, from 9.01; RULER at 1K and 4K, recall and copying all 0.0.
    """
    return TrainConfig(
        name="pretrain_cpu",
        model=_MODEL,
        data=DataConfig(
            train=f"{_DATA}/shards/anarchism:0.5,{_DATA}/shards/postgresql:0.33,{_DATA}/shards/gnome:0.17",
            heldout=f"{_DATA}/heldout",
            tokenizer=f"{_DATA}/tokenizer",
            packing="planned",
            stage="pretrain",
        ),
        optim=OptimConfig(lr=3e-3, warmup_steps=30, schedule="wsd", decay_share=0.3, final_share=0.05),
        losses=LossConfig(balance=0.01, router_z=1e-4, activation=1e-5),
        steps=400,
        seq=512,
        batch=8,
        log_every=20,
        eval_every=100,
        eval_rows=96,
        checkpoint_every=200,
        probes=_PROBES,
    )


def midtrain_cpu() -> TrainConfig:
    """The same model on rows of 4K tokens, 60 % of them from documents of 4K and more, whole manuals among them.

    After pretrain_cpu. 2 CPU cores, 3 minutes. Expect a held-out loss of 4.84, from 4.86, on rows eight times as long;
    the probes stay at 0.0.
    """
    base = pretrain_cpu()
    return replace(
        base,
        name="midtrain_cpu",
        start="runs/pretrain_cpu/model",
        data=replace(base.data, train=_WITH_MANUALS, stage="midtrain", long_tokens=4096, long_share=0.6),
        optim=OptimConfig(lr=6e-4, warmup_steps=5, final_share=0.1),
        steps=40,
        seq=4096,
        batch=1,
        log_every=5,
        eval_every=20,
        eval_rows=12,
        checkpoint_every=20,
    )


def midtrain_cpu_16k() -> TrainConfig:
    """Contexts grow once more, to rows of 16K tokens, 60 % of them from documents of 16K and more.

    After midtrain_cpu. 2 CPU cores, 4 minutes, 5 GB. Expect a held-out loss of 4.83, from 4.84; the probes stay at 0.0.
    """
    base = midtrain_cpu()
    return replace(
        base,
        name="midtrain_cpu_16k",
        start="runs/midtrain_cpu/model",
        data=replace(base.data, stage="midtrain_16k", long_tokens=16_384),
        optim=OptimConfig(lr=3e-4, warmup_steps=2, final_share=0.1),
        steps=12,
        seq=16_384,
        log_every=2,
        eval_every=6,
        eval_rows=3,
        checkpoint_every=6,
    )


def sft_cpu() -> TrainConfig:
    """Questions on tables, in short conversations and in long ones of 4K tokens, with the loss on the answers alone.

    After midtrain_cpu_16k, on the mix named above. 2 CPU cores, 4 minutes. Expect the loss on answers to fall from 5.56
    nats per token to 3.30 on held-out ones, short and long; a model that knows no more than this one has 0.0 on every
    probe before and after.
    """
    base = midtrain_cpu_16k()
    return replace(
        base,
        name="sft_cpu",
        start="runs/midtrain_cpu_16k/model",
        data=DataConfig(
            train="runs/sft_cpu_mix", heldout="runs/sft_cpu_heldout", tokenizer=f"{_DATA}/tokenizer", stage="sft"
        ),
        optim=OptimConfig(lr=1e-3, warmup_steps=3, weight_decay=0.0, final_share=0.1),
        steps=20,
        seq=8192,
        log_every=5,
        eval_every=10,
        eval_rows=11,
        checkpoint_every=10,
    )
