"""Interior states, and the step between x_proj and out_proj: every implementation against its own parts."""

import pytest
import torch

from plait.ops.dispatch import force
from plait.ops.linear import linear
from plait.ops.rms_norm import rms_norm_sections
from plait.ops.selective_scan import (
    IMPLEMENTATIONS,
    selective_scan,
    selective_scan_exporting,
    selective_scan_step,
    selective_scan_update,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ABLE = [name for name in IMPLEMENTATIONS if IMPLEMENTATIONS[name].why_not(torch.empty(0, device=DEVICE)) is None]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE)


def scan_inputs(lengths: list[int], d_inner: int) -> dict[str, torch.Tensor]:
    tokens = sum(lengths)
    return {
        "u": normal(tokens, d_inner), "dt": normal(tokens, d_inner, seed=1), "z": normal(tokens, d_inner, seed=2),
        "A": -normal(d_inner, 16).abs() * 8, "B": normal(tokens, 16), "C": normal(tokens, 16, seed=1),
        "D": normal(d_inner), "dt_bias": normal(d_inner, seed=1) - 3,
        "cu_seqlens": torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int(),
        "initial_state": normal(len(lengths), d_inner, 16),
    }  # fmt: skip


@pytest.mark.parametrize("name", ABLE)
@pytest.mark.parametrize(
    ("lengths", "export_at"),
    [([70, 3, 1, 64], [33, 0, 1, 64]), ([5, 40], [2, 32]), ([33], [31])],
)
@torch.no_grad()
def test_an_exported_state_is_that_of_the_sequence_cut_there(
    name: str, lengths: list[int], export_at: list[int]
) -> None:
    given = scan_inputs(lengths, 20)
    at = torch.tensor(export_at, device=DEVICE, dtype=torch.int32)
    with force(selective_scan=name):
        y, final, exported = selective_scan_exporting(**given, export_at=at)
    with force(selective_scan="reference"):
        expected_y, expected_final = selective_scan(**given)
    torch.testing.assert_close(y, expected_y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(final, expected_final, rtol=1e-4, atol=1e-4)
    bounds = given["cu_seqlens"].tolist()
    for i, cut in enumerate(export_at):
        if not cut:
            assert torch.equal(exported[i], given["initial_state"][i])
            continue
        part = slice(bounds[i], bounds[i] + cut)
        piece = {k: v[part] if k in ("u", "dt", "z", "B", "C") else v for k, v in given.items()}
        piece |= {
            "cu_seqlens": torch.tensor([0, cut], device=DEVICE).int(),
            "initial_state": given["initial_state"][i : i + 1],
        }
        with force(selective_scan="reference"):
            torch.testing.assert_close(exported[i], selective_scan(**piece)[1][0], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@torch.no_grad()
def test_an_exported_state_of_a_long_narrow_sequence_scanned_in_chunks() -> None:
    given = scan_inputs([3000, 1800], 64)
    for cuts in ([512, 1800], [513, 0], [2999, 1024], [3000, 1]):
        at = torch.tensor(cuts, device="cuda", dtype=torch.int32)
        with force(selective_scan="gluon"):
            results = selective_scan_exporting(**given, export_at=at)
        with force(selective_scan="triton"):
            expected = selective_scan_exporting(**given, export_at=at)
        for got, right in zip(results, expected, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


def test_exporting_refuses_what_wants_a_gradient() -> None:
    given = scan_inputs([3], 4)
    given["u"].requires_grad_()
    with pytest.raises(ValueError, match="no gradient"):
        selective_scan_exporting(**given, export_at=torch.tensor([1], device=DEVICE))


@pytest.mark.parametrize("name", ABLE)
@pytest.mark.parametrize("n_seqs", [1, 3, 7])
@torch.no_grad()
def test_the_fused_step_is_its_parts(name: str, n_seqs: int) -> None:
    d_inner, dt_rank, d_state = 40, 9, 5
    projected, u, z = normal(n_seqs, dt_rank + 2 * d_state), normal(n_seqs, d_inner), normal(n_seqs, 2 * d_inner)
    norms = (1 + normal(dt_rank) / 4, 1 + normal(d_state) / 4, 1 + normal(d_state, seed=1) / 4)
    weight, A = torch.nn.Parameter(normal(d_inner, dt_rank) / 3), -normal(d_inner, d_state).abs() * 4
    parameters = {"D": normal(d_inner), "z": z[:, d_inner:], "dt_bias": normal(d_inner, seed=1) - 3}
    pools = [normal(9, d_inner, d_state) for _ in range(2)]
    slots = torch.tensor([4, 8, 0, 1, 7, 2, 3], device=DEVICE)[:n_seqs]
    with force(selective_scan=name):
        y = selective_scan_step(u, projected, norms, 1e-6, weight, A, **parameters, states=pools[0], slots=slots)
    with force(selective_scan="reference", rms_norm="reference", linear="reference"):
        low, B, C = rms_norm_sections(projected, norms, 1e-6)
        expected = selective_scan_update(u, linear(low, weight), A, B, C, **parameters, states=pools[1], slots=slots)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pools[0], pools[1], rtol=1e-5, atol=1e-5)
