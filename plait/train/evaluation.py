"""The loss on held-out text, while a run goes on and after it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from plait.data.loader import Batch, evaluation_batches
from plait.data.shards import TokenShards
from plait.model.layout import Layout
from plait.model.losses import IGNORE
from plait.model.network import LanguageModel
from plait.parallel.plan import Plan
from plait.train.config import TrainConfig
from plait.train.step import autocast, tensors_of


@torch.no_grad()
def evaluate(
    model: LanguageModel, heldout: TokenShards, config: TrainConfig, device: torch.device, plan: Plan | None = None
) -> float:
    """Mean cross entropy, in nats per token, over the first eval_rows rows of the held-out tokens; the same on every
    process.
    """
    plan = plan or Plan()
    was_training = model.training
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    for part in _parts(heldout, config, device, plan.loader_place):
        token_ids, labels, layout = plan.cut(*part)
        with autocast(config, device, plan):
            hidden = model(token_ids, layout, keep="none").hidden
            total, _ = plan.next_token_sums(model, hidden, layout.take(labels))
        totals += torch.stack([total.double(), (labels != IGNORE).sum().double()])
    plan.release(model)
    model.train(was_training)
    loss, count = plan.over_rows(totals).tolist()
    return loss / max(1, count)


def heldout_rows(
    heldout: TokenShards, config: TrainConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Layout]]:
    """The first eval_rows rows of the held-out tokens, a pass at a time: token ids, labels [rows, seq] and layout."""
    for token_ids, labels, lengths in _parts(heldout, config, device, (0, 1)):
        yield token_ids, labels, Layout.packed(lengths, token_ids.shape[1], device)


def _parts(
    heldout: TokenShards, config: TrainConfig, device: torch.device, place: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor, list[list[int]]]]:
    """This process's rows of every pass. Where there are several processes all have as many: the rest has no labels."""
    (rank, world), rows = place, config.batch // config.accumulate
    batches = evaluation_batches(heldout, seq=config.seq, batch=rows, rank=rank, world=world)
    for index, batch in enumerate(batches):
        wanted = config.eval_rows - index * rows
        if wanted <= 0:
            return
        own = max(0, wanted - rank * (rows // world))
        batch.labels[own:] = IGNORE
        n = own if world == 1 else rows // world
        kept = Batch(batch.token_ids[:n], batch.labels[:n], batch.segment_lengths[:n])
        yield from tensors_of(kept, 1, device)
