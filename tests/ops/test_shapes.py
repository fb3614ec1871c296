"""Arguments of a wrong shape, kind or device are refused by name, before a kernel reads past them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from plait.ops import moe as experts
from plait.ops.attention import attention, paged_attention, write_pages
from plait.ops.causal_conv1d import causal_conv1d, causal_conv1d_update, columns_at
from plait.ops.linear import linear
from plait.ops.rms_norm import add_rms_norm, rms_norm, rms_norm_sections
from plait.ops.selective_scan import selective_scan, selective_scan_exporting, selective_scan_update
from plait.ops.shapes import Shapes
from plait.ops.slots import put
from plait.ops.ssd import ssd, ssd_update

Given = dict[str, Any]


def _ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _scan(tokens: int = 10) -> Given:
    """d_inner=6, d_state=4."""
    return {
        "u": torch.randn(tokens, 6), "dt": torch.randn(tokens, 6), "A": -torch.rand(6, 4), "B": torch.randn(tokens, 4),
        "C": torch.randn(tokens, 4), "D": torch.randn(6), "z": torch.randn(tokens, 6), "dt_bias": torch.randn(6),
    }  # fmt: skip


def _pool() -> Given:
    return {"states": torch.zeros(5, 6, 4), "slots": torch.tensor([0, 4])}


def _conv() -> Given:
    return {"x": torch.randn(10, 6), "weight": torch.randn(6, 4), "bias": torch.randn(6)}


def _moe() -> Given:
    """4 experts, top 2, d_model=8, d_ff=16."""
    return {
        "x": torch.randn(2, 8), "weights": torch.rand(2, 2), "expert_ids": torch.tensor([[0, 1], [3, 2]]),
        "gate_up": torch.randn(4, 32, 8), "down": torch.randn(4, 8, 16),
    }  # fmt: skip


def _int8(given: Given) -> Given:
    scales = {"gate_up_scale": torch.rand(4, 32), "down_scale": torch.rand(4, 8)}
    return given | {name: given[name].to(torch.int8) for name in ("gate_up", "down")} | scales


def _paged() -> Given:
    """Two tokens of two sequences, pages of 16, 4 query heads, 2 of keys, d_head=8."""
    return {
        "q": torch.randn(2, 4, 8), "k_pages": torch.randn(3, 16, 2, 8), "v_pages": torch.randn(3, 16, 2, 8),
        "page_table": torch.tensor([[0], [1]], dtype=torch.int32), "cu_seqlens": _ints(0, 1, 2),
        "context_lens": _ints(3, 4),
    }  # fmt: skip


def _write() -> Given:
    given = _paged()
    del given["q"]
    return given | {"k": torch.randn(2, 2, 8), "v": torch.randn(2, 2, 8)}


def _ssd() -> Given:
    """4 heads of 3, 2 groups, d_state=5."""
    return {
        "x": torch.randn(10, 4, 3), "dt": torch.randn(10, 4), "A": -torch.rand(4), "B": torch.randn(10, 2, 5),
        "C": torch.randn(10, 2, 5), "D": torch.randn(4), "dt_bias": torch.randn(4),
    }  # fmt: skip


BOUNDS = {"cu_seqlens": _ints(0, 3, 10)}
CALLS: dict[str, tuple[Callable[..., Any], Given]] = {
    "selective_scan": (selective_scan, _scan() | BOUNDS | {"initial_state": torch.zeros(2, 6, 4)}),
    "selective_scan_exporting": (selective_scan_exporting, _scan() | BOUNDS | {"export_at": _ints(1, 2)}),
    "selective_scan_update": (selective_scan_update, _scan(2) | _pool()),
    "causal_conv1d": (causal_conv1d, _conv() | BOUNDS | {"initial_columns": torch.zeros(2, 6, 3)}),
    "causal_conv1d_update": (
        causal_conv1d_update, _conv() | {"columns": torch.zeros(12, 6, 3), "slots": torch.arange(10)}
    ),
    "columns_at": (columns_at, {"x": torch.randn(10, 6), **BOUNDS, "export_at": _ints(1, 2), "d_conv": 4}),
    "rms_norm": (rms_norm, {"x": torch.randn(3, 8), "weight": torch.randn(8), "eps": 1e-6}),
    "add_rms_norm": (
        add_rms_norm, {"x": torch.randn(3, 8), "residual": torch.randn(3, 8), "weight": torch.randn(8), "eps": 1e-6}
    ),
    "moe": (experts.moe, _moe()),
    "int8 moe": (experts.moe, _int8(_moe())),
    "expert_outputs": (experts.expert_outputs, {n: t for n, t in _moe().items() if n != "weights"}),
    "combine": (experts.combine, {"outputs": torch.randn(3, 2, 8), "weights": torch.rand(3, 2)}),
    "swiglu": (
        experts.swiglu, {"x": torch.randn(2, 8), "gate_up": torch.randn(32, 8), "down": torch.randn(8, 16)}
    ),
    "linear": (linear, {"x": torch.randn(2, 8), "weight": torch.randn(5, 8)}),
    "int8 linear": (
        linear, {"x": torch.randn(2, 8), "weight": torch.ones(5, 8, dtype=torch.int8), "scale": torch.rand(5)}
    ),
    "attention": (
        attention, {"q": torch.randn(10, 4, 8), "k": torch.randn(10, 2, 8), "v": torch.randn(10, 2, 8), **BOUNDS}
    ),
    "paged_attention": (paged_attention, _paged()),
    "write_pages": (write_pages, _write()),
    "ssd": (ssd, _ssd() | BOUNDS | {"initial_state": torch.zeros(2, 4, 3, 5)}),
    "ssd_update": (ssd_update, _ssd() | {"states": torch.zeros(12, 4, 3, 5), "slots": torch.arange(10)}),
}  # fmt: skip
ANY_DIMS = {("rms_norm", "x"), ("swiglu", "x"), ("linear", "x"), ("int8 linear", "x")}  # [..., d]
ANY_WIDTH = {
    ("selective_scan", "cu_seqlens"), ("causal_conv1d", "cu_seqlens"), ("columns_at", "x"), ("attention", "cu_seqlens"),
    ("expert_outputs", "expert_ids"), ("combine", "outputs"), ("paged_attention", "page_table"),
    ("write_pages", "page_table"), ("ssd", "cu_seqlens"),
}  # fmt: skip
TENSORS = [(op, name) for op, (_, given) in CALLS.items() for name, t in given.items() if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize(("op", "name"), [own for own in TENSORS if own not in ANY_DIMS])
def test_a_dim_too_many_is_refused(op: str, name: str) -> None:
    call, given = CALLS[op]
    call(**given)  # as it is, it runs
    with pytest.raises(ValueError, match=r"\[.*\]"):
        call(**given | {name: given[name][None]})


@pytest.mark.parametrize(("op", "name"), [own for own in TENSORS if own not in ANY_WIDTH])
def test_another_width_is_refused(op: str, name: str) -> None:
    call, given = CALLS[op]
    tensor = given[name]
    with pytest.raises(ValueError, match=r"\[.*\]"):
        call(**given | {name: torch.cat([tensor, tensor[..., :1]], -1)})


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_another_device_is_refused(op: str, name: str) -> None:
    call, given = CALLS[op]
    with pytest.raises(ValueError, match=r"lies on|on meta"):
        call(**given | {name: given[name].to("meta")})


def test_the_message_names_what_was_given_and_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"^selective_scan: D has shape \[3\]; it must be \[d_inner\] = \[6\]$"):
        selective_scan(**_scan() | BOUNDS | {"D": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"initial_columns has shape \[2, 6, 2\]; .* d_conv-1\] = \[2, 6, 3\]"):
        causal_conv1d(**_conv() | BOUNDS | {"initial_columns": torch.zeros(2, 6, 2)})
    with pytest.raises(ValueError, match=r"weight has shape \[7\]; it must be \[d\] = \[8\]"):
        rms_norm(torch.zeros(2, 3, 8), torch.zeros(7), 1e-6)
    with pytest.raises(ValueError, match=r"expert_ids has dtype torch.float32; it must be int32 or int64"):
        experts.moe(**_moe() | {"expert_ids": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"u has dtype torch.int64; it must be a floating type"):
        selective_scan(**_scan() | BOUNDS | {"u": torch.ones(10, 6, dtype=torch.int64)})


def test_scales_belong_to_weights_of_a_byte() -> None:
    with pytest.raises(ValueError, match="need gate_up_scale and down_scale"):
        experts.moe(**_int8(_moe()) | {"down_scale": None})
    with pytest.raises(ValueError, match="take no scales"):
        experts.moe(**_moe() | {"gate_up_scale": torch.ones(4, 32), "down_scale": torch.ones(4, 8)})
    with pytest.raises(ValueError, match=r"weights of torch\.int8 need a scale"):
        linear(torch.ones(1, 2), torch.ones(3, 2, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"weights of torch\.float32 take none"):
        linear(torch.ones(1, 2), torch.ones(3, 2), scale=torch.ones(3))


@pytest.mark.parametrize("top_k", [0, 5])
def test_top_k_outside_the_experts_is_refused(top_k: int) -> None:
    with pytest.raises(ValueError, match=rf"top_k={top_k} between 1 and n_experts"):
        experts.route(torch.randn(3, 4), top_k)


def test_heads_and_groups_must_divide() -> None:
    with pytest.raises(ValueError, match="n_heads=3 of q must be a multiple of n_kv_heads=2"):
        attention(torch.zeros(10, 3, 8), torch.zeros(10, 2, 8), torch.zeros(10, 2, 8), **BOUNDS)
    given = _ssd()
    with pytest.raises(ValueError, match="n_ssm_heads=4 of x must be a multiple of n_ssm_groups=3"):
        ssd(**given | {"B": torch.zeros(10, 3, 5), "C": torch.zeros(10, 3, 5)}, **BOUNDS)


def test_sections_and_rows_of_a_pool() -> None:
    with pytest.raises(ValueError, match=r"x has shape \[3, 8\]; its last dim must be \[2, 3, 2\] together"):
        rms_norm_sections(torch.zeros(3, 8), (torch.ones(2), torch.ones(3), torch.ones(2)), 1e-6)
    with pytest.raises(ValueError, match=r"rows has shape \[1, 4, 3\]; it must be \[1, 4, 2\]"):
        put(torch.zeros(3, 4, 2), torch.tensor([1]), torch.zeros(1, 4, 3))


def test_what_passed_once_is_not_compared_again() -> None:
    shapes = Shapes("op", x="... d", weight="d")
    shapes.check(torch.zeros(2, 3), torch.zeros(3))
    shapes._check = None  # type: ignore[assignment, method-assign]
    shapes.check(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(TypeError, match="not callable"):
        shapes.check(torch.ones(2, 4), torch.ones(3))
