from hypothesis import given
from hypothesis import strategies as st

from plait.serve.drafts import LOOK, Drafter, Worth


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


def test_hopes_are_for_the_token_under_way_and_one_more() -> None:
    drafter = Drafter(n_drafts=3)
    tokens = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5]
    assert len(tokens) % LOOK == 0
    assert drafter.hopes(tokens)
    assert drafter.guess([*tokens, 6], 9) == [7, 1]
    assert not any(drafter.hopes([*tokens, *[6] * n]) for n in range(1, LOOK))  # it is looked now and then only
    assert not Drafter(n_drafts=3).hopes([9, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5])  # only four stood there before
    assert not Drafter(n_drafts=3).hopes([5] * 8)  # a guess for the token under way, none behind it


def test_hopes_in_vain_make_it_pause() -> None:
    drafter = Drafter(n_drafts=3)
    tokens = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5]
    assert drafter.hopes(tokens)
    assert drafter.guess([*tokens, 9], 9) == []
    again = [*tokens, 9, 8, 7, 1, 2, 3, 4, 5]
    assert [drafter.hopes(again) for _ in range(3)] == [False, False, True]
    assert drafter.guess([*again, 8], 9) == []
    again += [8, 8, 7, 1, 2, 3, 4, 5]
    assert [drafter.hopes(again) for _ in range(9)] == [False] * 8 + [True]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 4))
def test_growing_by_one_or_all_at_once_guesses_alike(tokens: list[int], n_gram: int) -> None:
    step, whole = Drafter(n_drafts=2, n_gram=n_gram), Drafter(n_drafts=2, n_gram=n_gram)
    guesses = [step.guess(tokens[: n + 1], 9) for n in range(len(tokens))]
    assert whole.guess(tokens, 9) == guesses[-1]
    last = tokens[-n_gram:]
    before = [end for end in range(n_gram, len(tokens)) if tokens[end - n_gram : end] == last]
    assert guesses[-1] == (tokens[before[-1] : before[-1] + 2] if before else [])


def steps(worth: Worth, n: int, plain_s: float, guess_s: float, *, right: int = 3, n_rows: int = 4) -> list[bool]:
    """n steps of rows that take so long without and with guesses, of which so many are right. Whether each guessed."""
    made = []
    for _ in range(n):
        made.append(worth.is_open(n_rows))
        n_tokens, seconds = (n_rows * (1 + right), guess_s) if made[-1] else (n_rows, plain_s)
        worth.note(n_rows, n_tokens, seconds, guessing=made[-1])
    return made


def test_guessing_goes_on_where_it_is_faster() -> None:
    made = steps(Worth(), 1000, plain_s=1.0, guess_s=3.9)
    assert made == [True] * 8 + [False] * 8 + [True] * 984  # some steps without, to compare with


def test_guessing_that_is_slower_pauses_longer_each_time() -> None:
    worth = Worth()
    made = steps(worth, 10_000, plain_s=1.0, guess_s=4.1)
    assert 8 < sum(made) < 50
    pauses = [len(run) for run in "".join("+" if one else "-" for one in made).split("+") if run]
    assert pauses[:4] == [8, 64, 256, 1024]
    n_tokens = sum(16 if one else 4 for one in made)
    seconds = sum(4.1 if one else 1.0 for one in made)
    assert n_tokens / seconds > 0.97 * 4
    assert worth.is_open(1)  # of other numbers of rows nothing is known


def test_guessing_that_pays_again_goes_on() -> None:
    worth = Worth()
    steps(worth, 400, plain_s=1.0, guess_s=9.0)
    made = steps(worth, 2000, plain_s=1.0, guess_s=2.0)
    assert all(made[-500:])
