"""What to quantize, and how: one description for every method and every way to run it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from plait.model.feed_forward import MLP, MoE
from plait.model.quantization_config import Matrix, matrices
from plait.model.quantized import WeightFormat

Method = Literal["experts_int8", "fp8", "gptq", "bf16"]
METHODS: tuple[Method, ...] = get_args(Method)
Level = Literal["experts", "experts+mlp", "experts+mlp+mixers"]
LEVELS: tuple[Level, ...] = get_args(Level)

# x_proj and dt_proj, 4 % of a mixer's weights, stay: they make the step sizes, which live in exponentials.
MIXER_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "out_proj")


@dataclass(frozen=True)
class Scheme:
    """A method and its extent. ValueError, on construction, for what does not go together.

    `experts_int8` and `fp8` round rows to nearest; `gptq` corrects later columns for the error of earlier ones, on
    calibration text; `bf16` only casts. level: experts, dense MLPs too (the paper's, and the default), the large
    projections of the mixers too. head: the output head too (and with tied weights the embedding, its other use).
    """

    method: Method = "experts_int8"
    level: Level = "experts+mlp"
    head: bool = False
    bits: int = 8  # 4 with gptq only
    group: int | None = None  # columns that share a scale; None: a whole row
    clip: bool = False  # search the scale of least error
    act_order: bool = False  # gptq: columns of the largest activations first
    bf16_scales: bool = False  # only scales that bf16 has too: readers that keep scales so read the same weights

    @classmethod
    def named(cls, text: str) -> Scheme:
        """METHOD, METHOD:LEVEL or METHOD:LEVEL+head, as command lines say it: 'experts_int8:experts+mlp+mixers+head'.
        ValueError for anything else.
        """
        method, colon, extent = text.partition(":")
        level = extent.removesuffix("+head") if colon else cls.level
        return cls(method, level, head=extent.endswith("+head"))  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("level", LEVELS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")
        if self.bits not in ((4, 8) if self.method == "gptq" else (8,)):
            raise ValueError(f"bits={self.bits} must be 8, or 4 with method='gptq'; method={self.method!r}")
        if self.act_order and self.method != "gptq":
            raise ValueError(f"act_order goes with method='gptq', not {self.method!r}")
        if self.method == "fp8" and (self.group is not None or self.clip):
            raise ValueError("fp8 has a scale per row, taken from its largest weight: no group, no clip")
        assert self.form.kind

    @property
    def rounds_rows(self) -> bool:
        """Whether every row is rounded alone, from its weights: such weights can be quantized while they are read."""
        return self.method in ("experts_int8", "fp8")

    @property
    def form(self) -> WeightFormat:
        """How the quantized weights are stored. Nothing reads it for `bf16`."""
        if self.method == "fp8":
            return WeightFormat("fp8")
        return WeightFormat("int4" if self.bits == 4 else "int8", self.group)

    def check_on(self, there: tuple[WeightFormat, str | None] | None) -> None:
        """ValueError where a model whose weights are quantized already (in a format, by a method if that is known)
        can't become what this scheme says, which takes them in full precision. Where the format is the same they are
        left as they are.
        """
        if there is None:
            return
        form, method = there
        options = [name for name in ("clip", "act_order", "bf16_scales") if getattr(self, name)]
        other = self.method == "bf16" or self.form != form or (self.method == "gptq" and method != "gptq")
        if other or options:
            have = f"{form.kind}, " + ("a scale per row" if form.group is None else f"groups of {form.group}")
            raise ValueError(
                f"weights are quantized already ({have}{f', by {method}' if method else ''}); "
                f"{self._asked(options)} needs them in full precision: give the checkpoint that they were made from"
            )

    def _asked(self, options: list[str]) -> str:
        bits = f" with bits={self.bits}" if self.method == "gptq" else ""
        group = f" with group={self.group}" if self.group is not None else ""
        return " and ".join(options) if options and self.method != "gptq" else f"method={self.method!r}{bits}{group}"

    def chosen(self, part: nn.Module, prefix: str, *, tied: bool) -> Iterator[Matrix]:
        """The matrices of a part of a model (named `prefix`) to quantize: those that are not yet."""
        for matrix in matrices(part, prefix):
            if self.method != "bf16" and matrix.scale is None and self._takes(matrix, tied):
                yield matrix

    def _takes(self, matrix: Matrix, tied: bool) -> bool:
        if isinstance(matrix.module, MoE):
            return True
        if isinstance(matrix.module, MLP):
            return self.level != "experts"
        owner = matrix.name.removesuffix(".weight").rsplit(".", 1)[-1]
        if owner in MIXER_PROJECTIONS:
            return self.level == "experts+mlp+mixers"
        return self.head and owner == ("embed" if tied else "head")
