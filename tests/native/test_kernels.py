"""What the C kernels promise beyond the cases: the same bits at any cut and on any number of threads, and every
instruction set of this machine within the tolerances. (The cases themselves run in tests/ops/test_ops.py.)
"""

import importlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from plait import native
from plait.ops.attention import native as attention
from plait.ops.attention import paged_attention
from plait.ops.case import OpCases
from plait.ops.causal_conv1d import native as conv
from plait.ops.dispatch import force
from plait.ops.linear import linear
from plait.ops.linear import native as products
from plait.ops.moe import native as experts
from plait.ops.rms_norm import native as norm
from plait.ops.selective_scan import native as scan
from plait.ops.selective_scan.cases import SELECTIVE_SCAN

REASON = native.why_not(torch.empty(0))
LEVELS = native.available_levels() if REASON is None else ["no library"]
OPS = ("attention", "causal_conv1d", "linear", "moe", "rms_norm", "selective_scan")


def test_there_is_a_library() -> None:
    """A machine that runs these tests has a compiler; where there is none, this says so instead of passing unseen."""
    assert REASON is None


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def native_cases() -> list[OpCases]:
    modules = [importlib.import_module(f"plait.ops.{op}.cases") for op in OPS]
    values = [value for module in modules for value in vars(module).values()]
    return [value for value in values if isinstance(value, OpCases) and "native" in value.implementations]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ops", native_cases(), ids=lambda ops: ops.op)
def test_every_level_is_right(ops: OpCases, dtype: torch.dtype, level: str) -> None:
    with native.at_level(level):
        for case in ops.cases:
            if not case.large:
                for name, error in ops.errors("native", case, "cpu", dtype).items():
                    limit = (ops.grad_tolerance if name.startswith("grad_") else ops.tolerance)[dtype]
                    assert error <= limit, f"{case.name}, {name}: {error:.2e} > {limit:.0e}"


def scan_inputs(
    lengths: list[int], d_inner: int, d_state: int = 16, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator, tokens = torch.Generator().manual_seed(1), sum(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    A = -torch.arange(1, d_state + 1).float().repeat(d_inner, 1) * normal(d_inner, d_state).abs()
    rows = [normal(tokens, d_inner).to(dtype) for _ in range(3)]
    bc = [normal(tokens, d_state).to(dtype) for _ in range(2)]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return [rows[0], rows[1], A, *bc, normal(d_inner), rows[2], normal(d_inner) - 3, bounds]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d_state", [16, 7])
def test_a_scan_cut_anywhere_gives_the_same_bits(level: str, dtype: torch.dtype, d_state: int) -> None:
    u, dt, A, B, C, D, z, bias, bounds = scan_inputs([101], 37, d_state, dtype)
    with native.at_level(level):
        whole, final = scan.selective_scan(u, dt, A, B, C, D, z, bias, bounds, None)
        for cuts in ([1, 33], [32, 64], [50]):
            state, pieces = None, []
            for begin, end in zip([0, *cuts], [*cuts, 101], strict=True):
                part = [t[begin:end] for t in (u, dt, B, C, z)]
                bound = torch.tensor([0, end - begin])
                y, state = scan.selective_scan(part[0], part[1], A, part[2], part[3], D, part[4], bias, bound, state)
                pieces.append(y)
            assert torch.equal(torch.cat(pieces), whole)
            assert torch.equal(state, final)
        pool, slot = torch.zeros(3, 37, d_state), torch.tensor([1])
        one_each = [[t[i : i + 1] for t in (u, dt, B, C, z)] for i in range(101)]
        steps = [scan.selective_scan_update(*t[:2], A, *t[2:4], D, t[4], bias, pool, slot) for t in one_each]
        assert torch.equal(torch.cat(steps), whole)
        assert torch.equal(pool[1], final[0])
        assert not pool[[0, 2]].any()


@pytest.mark.parametrize("level", LEVELS)
def test_a_convolution_cut_anywhere_gives_the_same_bits(level: str) -> None:
    x, weight, bias = torch.randn(70, 2 * 37)[:, 37:], torch.randn(37, 4), torch.randn(37)
    with native.at_level(level):
        whole, final = conv.causal_conv1d(x, weight, bias, torch.tensor([0, 70]), None)
        first, columns = conv.causal_conv1d(x[:2], weight, bias, torch.tensor([0, 2]), None)
        pool, slot = torch.stack([torch.zeros_like(columns[0]), columns[0]]), torch.tensor([1])
        steps = [conv.causal_conv1d_update(x[i : i + 1], weight, bias, pool, slot) for i in range(2, 70)]
        assert torch.equal(torch.cat([first, *steps]), whole)
        assert torch.equal(pool[1], final[0])


def results(n_threads: int) -> list[Tensor]:
    """Of every kernel, on that many threads, gradients too; large enough to be shared out."""
    torch.set_num_threads(n_threads)
    torch.manual_seed(2)
    found: list[Tensor] = []

    inputs = scan_inputs([300, 1, 45], 300)
    leaves = [t.requires_grad_() for t in inputs[:8]]
    state = torch.randn(3, 300, 16, requires_grad=True)
    y, final = scan.selective_scan(*inputs, state)
    found += [y, final, *torch.autograd.grad((y.sin().sum() + final.cos().sum()), [*leaves, state])]

    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((346, 300), (300, 4), (300,)))
    y, columns = conv.causal_conv1d(x, weight, bias, inputs[8], None)
    found += [y, columns, *torch.autograd.grad(y.sin().sum() + columns.sum(), [x, weight, bias])]

    scale = torch.randn(300, requires_grad=True)
    y = norm.rms_norm(x, scale, 1e-6)
    found += [y, *torch.autograd.grad(y.sin().sum(), [x, scale])]

    with torch.no_grad():
        x, ids = torch.randn(3, 256), torch.tensor([[0, 2], [2, 1], [3, 0]])
        for dtype in (torch.float32, torch.bfloat16):
            found.append(products.linear(x, torch.randn(1000, 256).to(dtype), None))
            up, down = torch.randn(4, 1024, 256).to(dtype), torch.randn(4, 256, 512).to(dtype)
            found.append(experts.expert_outputs(x, ids, up, down, None, None))
        pages = torch.randn(2, 100, 16, 2, 32).bfloat16()
        table, seqs = torch.randperm(90).view(2, 45), torch.tensor([0, 1, 2])
        query = torch.randn(2, 8, 32).bfloat16()
        found.append(attention.paged_attention(query, *pages, table, seqs, torch.tensor([700, 40])))
    return found


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    one = results(1)
    for n_threads in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(one, results(n_threads), strict=True))


def test_the_number_of_tokens_changes_no_bit() -> None:
    x = torch.randn(8, 300)
    weights = [
        torch.randn(40, 300),
        torch.randn(40, 300).bfloat16(),
        torch.randint(-127, 128, (40, 300)).to(torch.int8),
    ]
    for weight in weights:
        scale = torch.rand(40) if weight.dtype == torch.int8 else None
        for dtype in (torch.float32, torch.bfloat16):
            together = products.linear(x.to(dtype), weight, scale)
            alone = [products.linear(row[None].to(dtype), weight, scale) for row in x]
            assert torch.equal(together, torch.cat(alone))


def test_int8_weights_with_bf16_activations_are_exact() -> None:
    """The sum is the true one, rounded once: what ExpertsInt8 asks for, whatever the order of the terms."""
    x = torch.randn(2, 777).bfloat16()
    weight = torch.randint(-127, 128, (50, 777)).to(torch.int8)
    small = (x.abs() < x.abs().amax(1, keepdim=True) * 2.0**-14) & (x != 0)
    assert not small.any()
    scale = torch.full((50,), 2.0**-10)
    expected = (x.double() @ weight.double().T * 2.0**-10).bfloat16()
    assert torch.equal(products.linear(x, weight, scale), expected)


def test_int8_activations_are_an_opt_in() -> None:
    x, weight, scale = torch.randn(3, 512), torch.randint(-127, 128, (64, 512)).to(torch.int8), torch.rand(64)
    expected = x.double() @ (weight.double() * scale.double()[:, None]).T
    few, many = x, x.repeat(20, 1)
    for rows, right in ((few, expected), (many, expected.repeat(20, 1))):
        with force(linear="int8_activations"):
            rough = linear(rows, weight, scale=scale)
        error = (rough - right).abs().max() / right.abs().max()
        assert 1e-4 < error < 2e-2
        assert (linear(rows, weight, scale=scale) - right).abs().max() / right.abs().max() < 2e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_activation_is_not_hidden(bad: float) -> None:
    x, weight = torch.randn(2, 64), torch.randint(-9, 10, (32, 64)).to(torch.int8)
    x[0, 3] = bad
    y = products.linear(x, weight, torch.ones(32))
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


def test_pages_in_int8() -> None:
    pages = torch.randn(2, 9, 16, 2, 32)
    scales = pages.abs().amax(-1) / 127
    quantized = (pages / scales[..., None]).round().to(torch.int8)
    table, bounds, context = torch.randperm(8).view(2, 4), torch.tensor([0, 1, 2]), torch.tensor([33, 60])
    query = torch.randn(2, 4, 32)
    y = attention.decode(query, *quantized, table, bounds, context, k_scales=scales[0], v_scales=scales[1])
    with force(attention="reference"):
        exact = (quantized.float() * scales[..., None]).unbind(0)
        expected = paged_attention(query, *exact, page_table=table, cu_seqlens=bounds, context_lens=context)
    torch.testing.assert_close(y, expected, rtol=2e-6, atol=2e-6)


def test_a_state_too_large_is_refused() -> None:
    inputs = scan_inputs([2], 3, scan.MAX_STATE + 1)
    with pytest.raises(ValueError, match=r"d_state=257: the native scan takes at most 256.*chunked"):
        scan.selective_scan(*inputs, None)


def test_an_empty_sequence_passes_its_state_on() -> None:
    inputs, state = scan_inputs([3, 0, 2], 20), torch.randn(3, 20, 16)
    _, final = scan.selective_scan(*inputs, state)
    assert torch.equal(final[1], state[1])


def test_the_cases_of_the_scan_reach_every_path() -> None:
    """d_state 16 has a loop of its own; a width that is no multiple of the lanes has a tail."""
    sizes = {tuple(case.inputs(torch.Generator())["A"].shape) for case in SELECTIVE_SCAN.cases if not case.large}
    assert any(n == 16 for _, n in sizes)
    assert any(n != 16 for _, n in sizes)
    assert any(d % 16 for d, _ in sizes)


@pytest.mark.parametrize("bounds", [[0, 3, 100], [0, 8, 3, 10], [2, 8, 10], [-1, 10]])
def test_bounds_of_sequences_outside_the_tokens_are_refused(bounds: list[int]) -> None:
    """Before anything is read: a kernel would follow them past its inputs."""
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    n_seqs, draws = len(bounds) - 1, torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws)

    with pytest.raises(IndexError, match="a bound of cu_seqlens is out of range"):
        conv.causal_conv1d(draw(10, 4), draw(4, 4), None, cu_seqlens, None)
    with pytest.raises(IndexError, match="a bound of cu_seqlens is out of range"):
        scan.selective_scan(
            draw(10, 4), draw(10, 4), -draw(4, 2).exp(), draw(10, 2), draw(10, 2), draw(4), draw(10, 4), draw(4),
            cu_seqlens, None,
        )  # fmt: skip
    pages, new = torch.zeros(8, 16, 2, 8), draw(10, 2, 8)
    table = torch.arange(n_seqs, dtype=torch.int32)[:, None]
    with pytest.raises(IndexError, match="a bound of cu_seqlens is out of range"):
        attention.write_pages(new, new, pages, pages, table, cu_seqlens, torch.zeros(n_seqs, dtype=torch.int32))
    assert not pages.any()
    with pytest.raises(IndexError, match="a bound of cu_seqlens is out of range"):
        attention.decode(new, pages, pages, table, cu_seqlens, torch.zeros(n_seqs, dtype=torch.int32))
