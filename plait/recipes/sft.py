"""Supervised fine-tuning on what `plait synth mix` wrote: skills, long contexts and chats (paper section 5.3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from plait.recipes.tiny import demo
from plait.train.config import DataConfig, LossConfig, OptimConfig, ProbeConfig, TrainConfig

_DEMO_FOLDER = str(Path(__file__).parents[1] / "demo")


def sft_demo() -> TrainConfig:
    """The model that ships learns to answer questions on tables. 2 CPU cores, 2 minutes. The mix it trains on:

        plait synth table_qa --n 2000 --out runs/tables
        plait synth mix runs/tables/chat.jsonl --tokenizer demo --max-tokens 1024 \\
            --out runs/sft --heldout runs/sft_heldout

    Conversations are packed to rows of `seq` tokens with the loss on the assistant's turns alone; a mix of one's own
    goes in with `--set data.train=DIR --set data.heldout=DIR`. Expect the loss on answers to fall from 7.2 nats per
    token to 2.1 on held-out ones, in 40 steps.
    """
    return TrainConfig(
        name="sft_demo",
        model=demo().model,
        start=_DEMO_FOLDER,
        data=DataConfig(train="runs/sft", heldout="runs/sft_heldout", tokenizer=_DEMO_FOLDER),
        optim=OptimConfig(lr=5e-4, warmup_steps=5, weight_decay=0.0, final_share=0.1),
        losses=LossConfig(balance=0.01, router_z=1e-4, activation=1e-5),
        steps=40,
        seq=1024,
        batch=8,
        log_every=5,
        eval_every=10,
        eval_rows=16,
        checkpoint_every=20,
        probes=ProbeConfig(ruler_samples=2, ruler_lengths=(1024, 4096), recall_samples=32),
    )


def sft_long() -> TrainConfig:
    """The same on long rows, so that contexts learned before aren't unlearned: short and long conversations in one mix.

    Long ones: `plait synth table_qa --distractors plait/data/corpus --max-distractors 24`, or `plait synth document_qa
    --context 12000`; their file goes into the mix with `--long-context FILE`. A row is as long as the longest
    conversation; memory is that of 16,384 tokens at once. 2 CPU cores, about 15 minutes (an estimate: not run, but
    sft_cpu was).
    """
    base = sft_demo()
    probes = replace(base.probes, ruler_lengths=(1024, 8192))
    return replace(base, name="sft_long", seq=16_384, batch=1, steps=100, eval_rows=2, probes=probes)
