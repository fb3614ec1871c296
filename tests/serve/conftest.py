"""Models to serve: random ones of any shape, with or without a tokenizer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from plait.config import ModelConfig
from plait.data import default_corpus
from plait.model import LanguageModel, init_weights
from plait.model.checkpoint import save_model
from plait.model.state import State
from plait.serve import LLM
from plait.text import Tokenizer, train_tokenizer

TINY = {
    "d_model": 16, "d_ff": 24, "n_layers": 4, "n_heads": 2, "n_kv_heads": 1, "attn_period": 4, "attn_offset": 2,
    "n_experts": 4, "d_state": 4, "init_std": 0.3, "max_context": 512, "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """400 ids in the compact layout."""
    return train_tokenizer([document.text for document in default_corpus()[1][:8]], 400)


@contextmanager
def nan_in_unwritten_pools() -> Iterator[None]:
    """So that reading a slot or page that nobody wrote shows. Must not outlast these tests: others make pools of 2^31
    elements and count on memory that nobody touches.
    """
    empty = State.empty.__func__  # type: ignore[attr-defined]

    def filled(cls: type[State], *args: Any, **kwargs: Any) -> State:
        state = empty(cls, *args, **kwargs)
        for pool in (state.conv, state.ssm, state.k, state.v):
            if pool.is_floating_point():
                pool.fill_(torch.nan)
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(State, "empty", classmethod(filled))
        yield


@pytest.fixture(scope="module", autouse=True)
def unwritten_pools_hold_nan() -> Iterator[None]:
    with nan_in_unwritten_pools():
        yield


MakeFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> MakeFolder:
    """A saved random model: make_folder(with_tokenizer=False, seed=0, **ModelConfig fields)."""

    def make(*, with_tokenizer: bool = False, seed: int = 0, **fields: Any) -> Path:
        config = ModelConfig(**(TINY | {"vocab_size": 400 if with_tokenizer else 50} | fields))
        folder = tmp_path_factory.mktemp("model") / "saved"
        save_model(init_weights(LanguageModel(config), seed=seed).eval(), folder)
        if with_tokenizer:
            tokenizer.save(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def bare(make_folder: MakeFolder) -> LLM:
    """50 ids, no tokenizer. Three answers at a time, seven tokens a step."""
    with nan_in_unwritten_pools():  # made before what is of a module
        return LLM(make_folder(), max_batched_tokens=7, max_running=3)


@pytest.fixture(scope="session")
def llm(make_folder: MakeFolder) -> LLM:
    """400 ids and their tokenizer."""
    with nan_in_unwritten_pools():
        return LLM(make_folder(with_tokenizer=True))
