"""The network: embedding, layers of mixer and feed-forward, final norm, head (paper section 2). The whole paper
architecture is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from plait.config import LayerKind, ModelConfig
from plait.model.attention import Attention
from plait.model.feed_forward import MLP, MoE
from plait.model.layout import Layout
from plait.model.linear import Embedding, Linear, scaled_linear
from plait.model.mamba import Mamba
from plait.model.mamba2 import Mamba2
from plait.model.norm import RMSNorm
from plait.model.state import AttentionState, MambaState, State
from plait.model.stats import Activation, LayerStats
from plait.ops.chosen import sentence
from plait.ops.rms_norm import add_rms_norm

Observe = bool | Literal["watch"]  # "watch": sizes without gradients, for which nothing is kept
MIXERS = {"attention": Attention, "mamba": Mamba, "mamba2": Mamba2}


@dataclass(frozen=True)
class Output:
    logits: Tensor  # [batch, seq, vocab_size] (zero at padding), or [n_segments, vocab_size] with keep="last"
    hidden: Tensor  # [tokens, d_model] after the final norm, flat
    stats: tuple[LayerStats, ...] = ()  # one per layer, with observe


class Layer(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, config: ModelConfig, kind: LayerKind) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = MIXERS[kind.mixer](config)
        self.ffn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.ffn: MLP | MoE = MoE(config) if kind.ffn == "moe" else MLP(config)

    def forward(
        self, x: Tensor, layout: Layout, state: MambaState | AttentionState | None = None, observe: Observe = False
    ) -> tuple[Tensor, LayerStats | None]:
        """x [tokens, d_model]. Writes into `state`, if there is one."""
        mixed = self.mixer(self.mixer_norm(x), layout, state)
        if observe:
            in_loss = observe != "watch" and not isinstance(self.mixer, Attention)
            mixed, mixer = Activation.carried(mixed) if in_loss else (mixed, Activation.watched(mixed))
        normed, x = add_rms_norm(mixed, x, self.ffn_norm.weight, self.ffn_norm.eps)
        if not observe:
            return x + self.ffn(normed), None
        if isinstance(self.ffn, MoE):
            out, router_logits, experts = self.ffn.observed(normed, observe != "watch")
            return x + out, LayerStats(mixer, Activation.watched(out), experts, router_logits)
        out = self.ffn(normed)
        return x + out, LayerStats(mixer, Activation.watched(out))


class LanguageModel(nn.Module):
    """A hybrid Transformer-Mamba mixture-of-experts language model.

    `model(token_ids, layout, state)`: without a state it trains, with one it prefills, continues or decodes, as the
    layout says of each sequence. Parameters come uninitialised: `init_weights` or `load_model` fills them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config, kind) for kind in config.layer_kinds())
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = None if config.tie_embeddings else Linear(config.d_model, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """[vocab_size, d_model], the embedding's own when they are tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def feed_forwards(self) -> list[MLP | MoE]:
        """The feed-forward of every layer, first to last."""
        return [cast(Layer, layer).ffn for layer in self.layers]

    @property
    def dtype(self) -> torch.dtype:
        return self.final_norm.weight.dtype

    def kernels(self) -> str:
        """One line: which implementation of each op runs, and why this device's own can't if they don't."""
        return sentence(self.embed.weight.device, self.dtype)

    def to_dtype(self, dtype: torch.dtype) -> LanguageModel:
        """Cast the parameters, except those that a mixer keeps in fp32 and quantized weights. Mutates and returns the
        model.
        """
        for module in self.modules():
            kept_wide = getattr(module, "fp32_parameters", ())
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_floating_point() and parameter.itemsize > 1:
                    wanted = torch.promote_types(dtype, torch.float32) if name in kept_wide else dtype
                    parameter.data = parameter.data.to(wanted)
        return self

    def forward(
        self,
        token_ids: Tensor,
        layout: Layout | None = None,
        state: State | None = None,
        *,
        keep: Literal["all", "last", "none"] = "all",
        observe: Observe = False,
    ) -> Output:
        """token_ids [batch, seq]; layout None: every row is one whole sequence.

        keep: logits of all positions, of the last one of each segment (in the layout's order), or of none. observe:
        report router logits and activation sizes of every layer ("watch": no gradients of the sizes). Writes into
        `state`, if there is one; raises ValueError on bad ids, and on a layout that names slots or pages the state has
        not.
        """
        _check_token_ids(token_ids, self.config.vocab_size)
        if keep not in ("all", "last", "none"):
            raise ValueError(f"keep={keep!r} must be 'all', 'last' or 'none'")
        layout = layout or Layout.dense(token_ids.shape[0], token_ids.shape[1], token_ids.device)
        if state is not None:
            state.check(self.config, layout)
        with torch.set_grad_enabled(torch.is_grad_enabled() and state is None):  # a state is written in place
            x = self.embed(layout.take(token_ids)).to(self.dtype)
            stats = []
            for i, layer in enumerate(self.layers):
                x, layer_stats = layer(x, layout, None if state is None else state.of_layer(i), observe)
                stats.append(layer_stats)
            hidden = self.final_norm(x)
            return Output(self._logits(hidden, layout, keep), hidden, tuple(stats) if observe else ())

    def _logits(self, hidden: Tensor, layout: Layout, keep: str) -> Tensor:
        if keep == "none":
            return hidden.new_empty(0, self.config.vocab_size)
        if keep == "last":
            return self.logits(hidden[layout.last_tokens])
        return layout.put_back(self.logits(hidden))

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., d_model] after the final norm -> [..., vocab_size]."""
        table = self.embed if self.head is None else self.head
        return self.whole_vocabulary(scaled_linear(hidden, table.weight, table.weight_scale))

    @staticmethod
    def whole_vocabulary(logits: Tensor) -> Tensor:
        """Seam: where the head's rows are split over processes, the logits of all of them."""
        return logits


def _check_token_ids(token_ids: Tensor, vocab_size: int) -> None:
    if token_ids.dim() != 2 or 0 in token_ids.shape:
        raise ValueError(
            f"token_ids has shape {tuple(token_ids.shape)}; it must be [batch, seq] with at least one token"
        )
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"token_ids has dtype {token_ids.dtype}; it must be int64 or int32")
    if token_ids.is_cpu and not torch.compiler.is_compiling():  # on a device, or in a graph, it would wait or break
        low, high = token_ids.aminmax()
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"token ids run from {int(low)} to {int(high)}; they must be between 0 and {vocab_size - 1}"
            )
