from hypothesis import given
from hypothesis import strategies as st

from plait.serve.drafts import Drafter


def test_what_followed_last_time_is_guessed() -> None:
    drafter = Drafter(n_drafts=3)
    tokens = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
    assert drafter.guess(tokens, 9) == [4, 5]
    assert drafter.guess(tokens, 1) == [4]
    assert drafter.guess([*tokens, 9], 9) == []
    assert drafter.guess([*tokens, 9, 8, 1, 2, 3], 9) == [9, 8]  # the latest occurrence


def test_right_guesses_make_the_next_twice_as_long() -> None:
    drafter, tokens = Drafter(n_drafts=7), [1, 2, 3, 4, 5, 6, 7, 8, 9] * 2
    for expected in (2, 4, 7, 7):
        guess = drafter.guess(tokens, 99)
        assert guess == [1, 2, 3, 4, 5, 6, 7][:expected]
        drafter.note(expected)
    drafter.guess(tokens, 99)
    drafter.note(4)  # more than half, not all: the length stays
    assert len(drafter.guess(tokens, 99)) == 7
    drafter.note(3)
    assert [len(drafter.guess(tokens, 99)) for _ in range(3)] == [0, 0, 2]


def test_wrong_guesses_make_it_pause_longer_each_time() -> None:
    drafter = Drafter(n_drafts=2, max_pause=12)
    tokens = [1, 2, 3] * 3
    pauses = []
    for _ in range(4):
        assert drafter.guess(tokens, 9)
        drafter.note(0)
        pauses.append(0)
        while not drafter.guess(tokens, 9):
            pauses[-1] += 1
    assert pauses == [2, 8, 12, 12]
    drafter.note(1)  # half of them pays
    assert drafter.guess(tokens, 9) == [1, 2]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 4))
def test_growing_by_one_or_all_at_once_guesses_alike(tokens: list[int], n_gram: int) -> None:
    step, whole = Drafter(n_drafts=2, n_gram=n_gram), Drafter(n_drafts=2, n_gram=n_gram)
    guesses = [step.guess(tokens[: n + 1], 9) for n in range(len(tokens))]
    assert whole.guess(tokens, 9) == guesses[-1]
    last = tokens[-n_gram:]
    before = [end for end in range(n_gram, len(tokens)) if tokens[end - n_gram : end] == last]
    assert guesses[-1] == (tokens[before[-1] : before[-1] + 2] if before else [])
