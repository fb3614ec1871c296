"""The part of prefix-aware routing that needs no Ray."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from plait.serve.prefix_routing import PIECE, PrefixMemory, prefix_keys
from plait.text import GenerationRequest


def asked(text: str) -> GenerationRequest:
    return GenerationRequest(prompt=text)


def n_shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@given(st.integers(0, 4 * PIECE), st.text("ab", max_size=2 * PIECE), st.text("cd", max_size=2 * PIECE))
def test_prompts_share_the_keys_of_the_pieces_they_share(n: int, one: str, other: str) -> None:
    same = "x" * n
    a, b = prefix_keys(asked(same + one)), prefix_keys(asked(same + other))
    assert len(a) == (n + len(one)) // PIECE
    assert n_shared(a, b) == min(n // PIECE, len(a), len(b))


def test_a_key_is_of_all_before_it() -> None:
    a, b = prefix_keys(asked("a" * PIECE + "c" * PIECE)), prefix_keys(asked("b" * PIECE + "c" * PIECE))
    assert set(a).isdisjoint(b)


def test_turns_and_tokens() -> None:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "a" * 2000}, {"role": "assistant", "content": "b" * 600}]
    one, more = (prefix_keys(GenerationRequest(messages=turns[:n])) for n in (1, 2))
    assert more[: len(one)] == one
    assert len(more) > len(one) > 2
    with_tools = prefix_keys(GenerationRequest(messages=turns, tools=[{"type": "function"}]))
    assert n_shared(with_tools, more) == 0
    tokens = prefix_keys(GenerationRequest(token_ids=list(range(400))))
    assert len(tokens) == 400 // (PIECE // 4)
    assert prefix_keys(GenerationRequest(token_ids=[1] * 5)) == ()


def test_the_memory_names_those_who_know_most() -> None:
    memory = PrefixMemory()
    memory.note((1, 2, 3), "a")
    memory.note((1, 2), "b")
    memory.note((1, 9), "c")
    everybody = {"a", "b", "c"}
    assert memory.best((1, 2, 3, 4), everybody) == ["a"]
    assert memory.best((1, 2, 7), everybody) == ["a", "b"]
    assert memory.best((1, 2, 3), {"b", "c"}) == ["b"]  # a is gone, or full
    assert memory.best((1, 2, 3), {"d"}) == []
    assert memory.best((5,), everybody) == []
    assert memory.best((), everybody) == []


def test_the_memory_forgets_ends_before_beginnings() -> None:
    memory = PrefixMemory(size=4)
    memory.note((1, 2, 3), "a")
    memory.note((4, 5), "b")
    assert memory.best((1, 2, 3), {"a"}) == ["a"]
    assert memory.best((1,), {"a"}) == ["a"]
    memory.note((6, 7), "b")
    assert memory.best((1, 2, 3), {"a"}) == []
    assert memory.best((4, 5), {"b"}) == ["b"]
