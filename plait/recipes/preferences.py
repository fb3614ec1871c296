"""Direct preference optimisation, which the paper compares its post-training with (section 5.4)."""

from __future__ import annotations

from dataclasses import replace

from plait.recipes.sft import sft_demo
from plait.train.config import DataConfig, DpoConfig, OptimConfig, TrainConfig


def dpo() -> TrainConfig:
    """The model that ships learns to prefer one answer over another. 2 CPU cores, seconds a step.

        plait train dpo --set data.train=pairs.jsonl --set data.heldout=other_pairs.jsonl
        plait train dpo --set start=DIR --set model=PRESET --set lora.rank=16 --set data.train=pairs.jsonl

    A line of the file is {"prompt": text or messages, "chosen": text, "rejected": text}. The loss begins at ln 2; what
    to watch is the accuracy on held-out pairs. A larger dpo.beta keeps the model nearer to what it was.
    """
    return replace(
        sft_demo(),
        name="dpo",
        data=DataConfig(train="pairs.jsonl"),
        dpo=DpoConfig(beta=0.1),
        optim=OptimConfig(lr=5e-5, warmup_steps=5, weight_decay=0.0, final_share=0.1),
        steps=50,
        batch=8,
        checkpoint_every=25,
    )
