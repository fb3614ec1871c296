"""A run, as values: what is trained on what, for how long, and how. Recipes return one; nothing else configures
training.
"""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from plait.config import ModelConfig, presets
from plait.parallel.mesh import ParallelConfig


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from. Texts are tokenized once, into the run's folder; shards are read where they lie."""

    train: str = "default"  # the corpus that ships, a .txt or .jsonl file, a folder of them, shards, or FOLDER:WEIGHT,…
    heldout: str = "default"
    tokenizer: str = "train"  # train one on the training text, or a folder that holds one
    packing: Literal["stream", "planned"] = "stream"  # documents end to end, or whole where they fit (data/packing.py)
    stage: str = ""  # sets the order of the data apart from that of other stages with the same seed
    long_tokens: int = 0  # with long_share: documents of at least so many tokens give that share of all tokens
    long_share: float = 0.0

    def __post_init__(self) -> None:
        if self.packing not in ("stream", "planned"):
            raise ValueError(f"data.packing={self.packing!r} must be 'stream' or 'planned'")
        if bool(self.long_tokens) != bool(self.long_share) or not 0 <= self.long_share < 1 or self.long_tokens < 0:
            raise ValueError(
                f"data.long_tokens={self.long_tokens} and data.long_share={self.long_share}: give both, the "
                "share between 0 and 1, or neither"
            )
        if self.long_tokens and self.packing != "planned":
            raise ValueError("data.long_tokens needs data.packing=planned")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, or Muon for matrices; warm-up, then a cosine or a constant rate with a linear decay at the end (WSD)."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # never of norms, biases, A_log, D and the step bias
    grad_clip: float = 1.0  # of the global gradient norm
    warmup_steps: int = 20
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_share: float = 0.2  # wsd: the last share of the steps, in which the rate falls
    final_share: float = 0.1  # of lr, at the last step
    kind: Literal["adamw", "muon"] = "adamw"  # muon: for matrices, and AdamW for the rest
    ema: float = 0.0  # decay of an average of the weights, exported as model-ema/; 0: none
    stochastic_rounding: bool = False  # of bf16 weights: updates too small for them count on average (AdamW)

    def __post_init__(self) -> None:
        _positive(self, "lr", "eps", "grad_clip")
        _share(self, "decay_share", "final_share")
        if not 0 <= self.beta1 < 1 or not 0 <= self.beta2 < 1:
            raise ValueError(f"beta1={self.beta1} and beta2={self.beta2} must be at least 0 and less than 1")
        if not math.isfinite(self.lr + self.eps + self.weight_decay):
            raise ValueError(
                f"lr={self.lr}, eps={self.eps} and weight_decay={self.weight_decay} must be finite numbers"
            )
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and weight_decay={self.weight_decay} must not be negative"
            )
        if self.kind not in ("adamw", "muon"):
            raise ValueError(f"kind={self.kind!r} must be 'adamw' or 'muon'")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema} must be at least 0 and less than 1")
        if self.stochastic_rounding and self.kind == "muon":
            raise ValueError("stochastic_rounding is AdamW's: set kind=adamw, or leave it out")
        if self.schedule not in ("cosine", "wsd"):
            raise ValueError(f"schedule={self.schedule!r} must be 'cosine' or 'wsd'")


@dataclass(frozen=True)
class GuardConfig:
    """What happens when a loss is not finite, or is more than `spike` times the median of the last `window` (0: any
    finite loss is taken).
    """

    action: Literal["stop", "skip", "rewind"] = "stop"  # leave the batch out, or all since the checkpoint
    spike: float = 0.0
    window: int = 32
    most: int = 10  # skips and rewinds in a row, after which the run stops

    def __post_init__(self) -> None:
        if self.action not in ("stop", "skip", "rewind"):
            raise ValueError(f"guard.action={self.action!r} must be 'stop', 'skip' or 'rewind'")
        if self.spike and not 1 < self.spike < math.inf:
            raise ValueError(f"guard.spike={self.spike} must be 0 (off) or greater than 1")
        _counts(self, "window", "most")


@dataclass(frozen=True)
class LoraConfig:
    """Adapters beside frozen weights (train/lora.py); rank 0: none, and all weights are trained.

    A target is what a matrix is called: a projection, `gate_up` and `down` (experts and MLPs), `router`, `head`.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = (
        "in_proj", "x_proj", "dt_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_up", "down",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank={self.rank} must not be negative; 0 is off")
        _positive(self, "alpha")
        if not self.targets:
            raise ValueError("lora.targets must name at least one matrix")


@dataclass(frozen=True)
class ProbeConfig:
    """What is measured on the model before the first step and after the last (train/probes.py); 0 samples: nothing."""

    ruler_samples: int = 0  # a task and length
    ruler_lengths: tuple[int, ...] = (4096,)  # tokens of prompt and answer
    ruler_tasks: tuple[str, ...] = ()  # all 13 if there are none
    recall_samples: int = 0  # a size, of associative recall and of copying

    def __post_init__(self) -> None:
        if self.ruler_samples < 0 or self.recall_samples < 0:
            raise ValueError(
                f"probes.ruler_samples={self.ruler_samples} and probes.recall_samples={self.recall_samples} must not "
                "be negative; 0 is off"
            )
        if not self.ruler_lengths or min(self.ruler_lengths) < 512:
            raise ValueError(f"probes.ruler_lengths={self.ruler_lengths} must be lengths of at least 512 tokens")

    @property
    def any(self) -> bool:
        return bool(self.ruler_samples or self.recall_samples)


@dataclass(frozen=True)
class DpoConfig:
    """Training on preferences (train/preferences.py): data.train is a file of pairs. beta 0: on texts, as ever."""

    beta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"dpo.beta={self.beta} must be a number of at least 0; 0 is off")


@dataclass(frozen=True)
class LossConfig:
    """Coefficients of what is added to the next-token loss."""

    balance: float = 0.01
    router_z: float = 1e-4
    logit_z: float = 0.0  # of the squared log-partition of the next token
    activation: float = 0.0  # alpha of paper section 3.2, which used 1e-5
    choice_bias: float = 0.0  # instead of balance: how fast a bias on the choice of experts moves (train/balance.py)

    def __post_init__(self) -> None:
        for name, coefficient in asdict(self).items():
            if not 0 <= coefficient < math.inf:
                raise ValueError(f"losses.{name}={coefficient} must be a number of at least 0")
        if self.choice_bias and self.balance:
            raise ValueError(
                f"losses.choice_bias={self.choice_bias} balances without a loss: set losses.balance=0, or choice_bias=0"
            )


@dataclass(frozen=True)
class TrainConfig:
    """One run. `batch` rows of `seq` tokens make a step, in `accumulate` passes.

    precision bfloat16: products, with fp32 parameters and optimizer (16 bytes a parameter); bfloat16_weights:
    parameters (but those of the SSM), gradients and moments too (8 bytes), so that small updates are lost to rounding
    (unless optim.stochastic_rounding).
    """

    name: str
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    steps: int = 1000
    seq: int = 256
    batch: int = 8
    accumulate: int = 1
    seed: int = 0
    device: str = "auto"  # cpu, cuda, or the better of what is there
    precision: Literal["float32", "bfloat16", "bfloat16_weights"] = "float32"  # narrow: none; products; all
    log_every: int = 10
    eval_every: int = 100
    eval_rows: int = 64  # rows of the held-out text, from its start
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    keep_every: int = 0  # checkpoints of steps that this divides are never dropped; 0: none
    parallel: ParallelConfig = field(default_factory=lambda: ParallelConfig(dp_shard=0))
    recompute: Literal["none", "light", "selective", "full"] = "none"  # of activations (train/recompute.py)
    rescan: int = 0  # with recompute=light: so many Mamba layers are selective
    compile: bool = False  # each layer by torch.compile
    cuda_graph: bool = False  # steps whose rows are cut into documents alike run as one graph (train/graphed.py)
    guard: GuardConfig = field(default_factory=GuardConfig)
    hang_seconds: int = 1800  # without a step, after which every process prints its stacks and ends
    profile_step: int = 0  # the three steps from this one are written to profile/; 0: none
    wandb: str = ""  # project of Weights & Biases that gets the metrics too; empty: none
    start: str = ""  # folder of a model whose weights the run begins with; empty draws them
    lora: LoraConfig = field(default_factory=LoraConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    probes: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        _counts(self, "steps", "seq", "batch", "accumulate", "log_every")
        _counts(self, "eval_every", "eval_rows", "checkpoint_every", "keep_checkpoints")
        if self.batch % self.accumulate:
            raise ValueError(f"batch={self.batch} must be a multiple of accumulate={self.accumulate}")
        if self.precision not in ("float32", "bfloat16", "bfloat16_weights"):
            raise ValueError(f"precision={self.precision!r} must be 'float32', 'bfloat16' or 'bfloat16_weights'")
        if self.recompute not in ("none", "light", "selective", "full"):
            raise ValueError(f"recompute={self.recompute!r} must be 'none', 'light', 'selective' or 'full'")
        if self.rescan < 0 or (self.rescan and self.recompute != "light"):
            raise ValueError(f"rescan={self.rescan} must be a number of layers, with recompute=light")
        _counts(self, "hang_seconds")
        if self.keep_every < 0 or self.profile_step < 0:
            raise ValueError(f"keep_every={self.keep_every} and profile_step={self.profile_step} must not be negative")
        if self.lora.rank and (self.optim.ema or self.parallel.world > 1):
            raise ValueError("lora trains on one process and without optim.ema: set lora.rank=0 or change those")
        if self.cuda_graph and self.parallel.world > 1:
            raise ValueError("cuda_graph runs on one process: set cuda_graph=false, or parallel to one")
        if self.cuda_graph and self.optim.kind == "muon":
            raise ValueError("cuda_graph: a step of Muon waits for the device; set optim.kind=adamw, or no graph")
        if self.optim.stochastic_rounding and self.precision != "bfloat16_weights":
            raise ValueError(f"optim.stochastic_rounding needs precision=bfloat16_weights, not {self.precision}")
        if self.dpo.beta and (not self.start or self.parallel.world > 1 or self.optim.ema or self.cuda_graph):
            raise ValueError(
                "dpo begins with a model, on one process, without optim.ema and cuda_graph: set start=FOLDER and leave "
                "out the others"
            )
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.seq


def _positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name}={getattr(config, name)} must be greater than 0")


def _counts(config: object, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(config, name), int) or getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)!r} must be a whole number of at least 1")


def _share(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}={getattr(config, name)} must be between 0 and 1")


def with_settings(config: TrainConfig, settings: Sequence[str]) -> TrainConfig:
    """Apply `key=value` settings: `steps=20`, `optim.lr=3e-4`, `model.n_layers=4`, `model=jamba-tiny-dev`.

    They are checked together, so their order does not matter (of one key given twice the last counts; a preset comes
    before changes to its parts). ValueError names a bad key or value.
    """
    return _changed(config, [_Setting.of(text) for text in settings])


@dataclass(frozen=True)
class _Setting:
    path: tuple[str, ...]
    value: str
    text: str  # as it was given

    @classmethod
    def of(cls, text: str) -> _Setting:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: it must be key=value, for example steps=20 or optim.lr=3e-4")
        return cls(tuple(key.split(".")), value, text)


def _changed(config: Any, settings: list[_Setting]) -> Any:
    """A copy of a configuration dataclass with the settings applied, constructed (and so checked) once."""
    hints = typing.get_type_hints(type(config))
    kinds = {f.name: hints[f.name] for f in fields(config)}
    by_name: dict[str, list[_Setting]] = {}
    for setting in settings:
        name = setting.path[0]
        if name not in kinds:
            raise ValueError(
                f"--set {setting.text}: {type(config).__name__} has no {name!r}; {_suggestion(name, kinds)}"
            )
        by_name.setdefault(name, []).append(setting)
    values: dict[str, Any] = {}
    for name, group in by_name.items():
        value = getattr(config, name)
        for setting in group:
            if len(setting.path) == 1:
                value = _parse(kinds[name], setting)
        parts = [replace(s, path=s.path[1:]) for s in group if len(s.path) > 1]
        if parts and not is_dataclass(kinds[name]):
            raise ValueError(f"--set {parts[0].text}: {name} is a single value, it has no parts")
        values[name] = _changed(value, parts) if parts else value
    if isinstance(config, ModelConfig):
        values = _derived(config, values) | values
    return replace(config, **values)


def _derived(model: ModelConfig, values: dict[str, Any]) -> dict[str, int]:
    """Sizes that the model derived from others now changed: 0, to be derived anew."""
    again: dict[str, int] = {}
    if {"d_model", "n_heads"} & values.keys() and model.d_head == model.d_model // model.n_heads:
        again["d_head"] = 0
    if "d_model" in values and model.dt_rank == -(-model.d_model // 16):
        again["dt_rank"] = 0
    return again


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"


def _parse(kind: Any, setting: _Setting) -> Any:
    value, where = setting.value, f"--set {setting.text}"
    options = typing.get_args(kind)
    if kind is ModelConfig:
        if value not in presets:
            raise ValueError(f"{where}: {value!r} is not a preset; {_suggestion(value, presets)}")
        return presets[value]
    if is_dataclass(kind):
        name = setting.path[0]
        raise ValueError(f"{where}: set its parts: {', '.join(f'{name}.{f.name}' for f in fields(kind))}")
    if typing.get_origin(kind) is Literal:
        if value not in options:
            raise ValueError(f"{where}: {value!r} must be one of {', '.join(options)}")
        return value
    if typing.get_origin(kind) is tuple:
        return tuple(_parse(options[0], replace(setting, value=item)) for item in value.split(","))
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[value.lower()]
        return kind(value)
    except (ValueError, KeyError):
        raise ValueError(f"{where}: {value!r} is not {_KIND_NAMES[kind]}") from None


_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}
