"""One answer being written: its tokens, its places, and how far it has been fed."""

from __future__ import annotations

from collections.abc import Hashable

from plait.serve.drafts import Drafter
from plait.serve.prefix_tree import Node
from plait.serve.request import Request
from plait.serve.service import PrefixUse


class Sequence:
    """Books of one answer. `n_fed` and `n_drawing` are as of the last plan made, `tokens` as of the last committed."""

    __slots__ = (
        "answer", "drafter", "end_ids", "id", "keep", "key", "last_kept", "leader", "max_len", "min_len",
        "n_before_drafts", "n_drawing", "n_fed", "n_held", "n_prompt", "n_scored", "n_scores_out", "next_rung", "node",
        "pages", "prefix", "request", "request_id", "salt", "slot", "spare", "tokens", "waits_to", "was_started",
    )  # fmt: skip

    def __init__(
        self,
        request_id: int,
        request: Request,
        answer: int,
        *,
        number: int,
        max_len: int,
        key: tuple[int, int],
        keep: list[int],
    ) -> None:
        """`number`: its own, in plans; `max_len`: prompt and answer together; `key`: the smaller, the sooner its turn;
        `keep`: where in the prompt a state is to be kept, ascending.
        """
        self.id, self.request_id, self.request, self.answer = number, request_id, request, answer
        self.key, self.keep, self.max_len = key, keep, max_len
        self.tokens = list(request.prompt)  # and those drawn
        self.n_prompt = len(request.prompt)
        self.min_len = self.n_prompt + request.params.min_tokens
        self.end_ids = request.end_ids
        self.salt: Hashable = ("private", request_id) if request.is_private else request.salt
        self.leader: Sequence | None = None  # someone ahead whose prompt begins alike,
        self.waits_to = 0  # and where a state is kept on the way for this one to start from
        self.prefix = PrefixUse()
        self.was_started = False
        self.n_scored = 0  # prompt tokens whose logprobs are planned
        self.n_scores_out = 0  # and given out
        self.n_drawing = 0  # draws under way
        self.drafter: Drafter | None = None
        self.spare = -1  # the slot with the state before the drafts under way,
        self.n_before_drafts = 0  # and how far that was fed
        self.lose_places()

    def lose_places(self) -> None:
        self.slot = -1
        self.pages: list[int] = []
        self.n_held = 0  # tokens that the pages have room for
        self.n_fed = 0  # tokens whose state and pages are computed, when all plans are executed
        self.last_kept = 0
        self.next_rung = 0  # at the end of which page to think of keeping a state of the answer
        self.node: Node = NOWHERE

    @property
    def is_running(self) -> bool:
        return self.slot >= 0


NOWHERE = Node(None, (), 0, [], "device", 0)


def positions_to_keep(request: Request, page_size: int, min_gap: int) -> list[int]:
    """Where in a prompt a state is kept for those who come later, ascending, at the ends of pages.

    Always the last page's end that leaves a token to feed (the same prompt then hits when it is seen again, and further
    answers to it start there), and the ends of turns, latest first, as far as they are `min_gap` tokens apart: every
    second one ends a chunk, and many short chunks are slow.
    """
    last = (len(request.prompt) - 1) // page_size * page_size
    found = [last] if last else []
    for turn in sorted((t // page_size * page_size for t in request.turns), reverse=True):
        if found and min_gap <= turn <= found[-1] - min_gap:
            found.append(turn)
    return found[::-1]
