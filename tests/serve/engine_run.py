"""An engine with its fake executor, and what came out of it so far."""

from dataclasses import dataclass, field

from plait.serve.engine import Engine
from plait.serve.pools import PoolSizes
from plait.serve.request import Output, Request
from plait.text import SamplingParams
from tests.serve.fake_executor import FakeExecutor, answer

PAGE = 4


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    scores: list[int] = field(default_factory=list)
    n_logprobs: int = 0
    finish: str | None = None
    error: str | None = None


class Run:
    """Steps an engine, gathers answers, and checks the books after every step."""

    def __init__(self, sizes: PoolSizes, *, vocab_size: int = 5, **options: object) -> None:
        self.executor = FakeExecutor(sizes, PAGE, vocab_size)
        self.engine = Engine(self.executor, sizes, page_size=PAGE, **options)  # type: ignore[arg-type]
        self.requests: dict[int, Request] = {}
        self.answers: dict[tuple[int, int], Answer] = {}
        self.aborted: set[tuple[int, int]] = set()

    def add(self, request: Request) -> int:
        number = self.engine.add(request)
        self.requests[number] = request
        self.answers |= {(number, i): Answer() for i in range(request.params.n)}
        return number

    def ask(self, prompt: list[int], max_tokens: int = 4, **fields: object) -> list[int]:
        """One answer, to its end."""
        number = self.add(Request(tuple(prompt), SamplingParams(max_tokens=max_tokens), **fields))  # type: ignore[arg-type]
        self.finish()
        return self.answers[number, 0].token_ids

    def abort(self, number: int, nth: int | None = None) -> None:
        self.engine.abort(number, nth)
        self.aborted |= {
            key for key, a in self.answers.items() if key[0] == number and nth in (None, key[1]) and not a.finish
        }

    def step(self) -> list[Output]:
        outputs = self.engine.step()
        for out in outputs:
            got = self.answers[out.request, out.answer]
            assert got.finish is None
            assert (out.request, out.answer) not in self.aborted
            got.token_ids += out.token_ids
            got.scores += [s.token_id for s in out.prompt_logprobs]
            got.n_logprobs += len(out.logprobs)
            got.finish, got.error = out.finish_reason, out.error
        self.engine.check()
        return outputs

    def finish(self, most: int = 100_000) -> None:
        for _ in range(most):
            if self.engine.is_idle:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def check_answers(self) -> None:
        for key, got in self.answers.items():
            request = self.requests[key[0]]
            if key in self.aborted:
                assert got.finish is None
                continue
            params = request.params
            free = answer(request.prompt, params.max_tokens, self.executor.vocab_size)
            ends = [i + 1 for i, t in enumerate(free) if t in request.end_ids and i >= params.min_tokens]
            n = ends[0] if ends else len(free)
            if request.grammar is not None and (n_drawn := int(request.grammar.text) - len(request.prompt)) < len(free):
                assert (got.finish, got.error) == ("abort", f"grammar: {request.grammar.text}") or n <= n_drawn + 1
                assert got.token_ids == free[: len(got.token_ids)]
                continue
            assert got.token_ids == free[:n]
            assert got.finish == ("stop" if ends else "length")
            assert got.n_logprobs == (n if params.logprobs is not None else 0)
            assert got.scores == (list(request.prompt[1:]) if params.prompt_logprobs is not None else [])
