"""Shared by the tests of ops."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def unwritten_memory_is_nan() -> Iterator[None]:
    """torch.empty and its kin give NaN, so that an element no kernel wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.utils.deterministic.fill_uninitialized_memory: on
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
