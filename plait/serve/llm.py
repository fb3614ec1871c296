"""`plait.LLM`: a model with its tokenizer and chat template, answering many prompts at once in this process.

The engine lives as long as the LLM, and with it the prefix cache: a prompt that begins like an earlier one, of this
call or one before, starts where that one's state was kept.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from plait.model.checkpoint import read_config
from plait.model.network import LanguageModel
from plait.serve.answer import AnswerText, Gathered
from plait.serve.build import build, check_split, find_model
from plait.serve.engine import Engine
from plait.serve.options import EngineOptions
from plait.serve.prompts import Prompts
from plait.serve.request import Request
from plait.serve.service import Delta, EngineError, Grammar
from plait.text import Completion, GenerationRequest, SamplingParams, Score, ScoreRequest

if TYPE_CHECKING:
    from plait.serve.remote import RemoteEngine

__all__ = ["LLM", "find_model"]

Prompt = str | Sequence[int] | GenerationRequest


class LLM:
    """Generates from prompts and scores texts; satisfies `text.Generator`. For one thread.

    >>> llm = LLM("demo")
    >>> llm.generate(["It was a truth"], SamplingParams(temperature=0, max_tokens=8))[0].text
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        quantize: str | None = None,
        kv_dtype: str | None = None,
        max_context: int | None = None,
        max_batched_tokens: int = 2048,
        max_running: int = 16,
        prefix_cache: bool = True,
        cache_tokens: int | None = None,
        host_gib: float = 0.0,
        disk: str | Path | None = None,
        disk_gib: float = 0.0,
        host_state_dtype: str = "float32",
        n_drafts: int = 0,
        tensor_parallel: int = 1,
        expert_parallel: bool = False,
    ) -> None:
        """model: a folder, or `demo`. quantize: METHOD or METHOD:LEVEL, or None to take the weights as they are.

        max_context bounds prompt and answer together (None: the model's own, or what there is memory for);
        max_batched_tokens the tokens of one step, so that memory does not grow with the prompt; max_running the answers
        written at once. kv_dtype: of keys and values, also `int8` (None: the model's). cache_tokens: how many the cache
        has room for (None: a share of the memory). host_gib: memory beside a GPU's for what its cache has no room for;
        disk, a folder, and disk_gib of it: for what neither has; host_state_dtype: `int8` for states there of a third
        of the bytes, which are not exact. n_drafts: tokens guessed from the text before and verified at once.
        tensor_parallel: processes that share the model, each on a GPU of its own; the engine is then in another process
        too; expert_parallel: they share mixtures by whole experts. Raises ValueError for options that no model or this
        machine can have.
        """
        options = EngineOptions(
            str(model),
            device=device,
            dtype=None if dtype is None else str(dtype).removeprefix("torch."),
            quantize=quantize,
            kv_dtype=kv_dtype,
            max_context=max_context,
            max_batched_tokens=max_batched_tokens,
            max_running=max_running,
            prefix_cache=prefix_cache,
            cache_tokens=cache_tokens,
            host_gib=host_gib,
            disk=None if disk is None else str(disk),
            disk_gib=disk_gib,
            host_state_dtype=host_state_dtype,
            n_drafts=n_drafts,
            tensor_parallel=tensor_parallel,
            expert_parallel=expert_parallel,
        )
        self.engine: Engine | RemoteEngine
        self._model: LanguageModel | None = None
        self._check_grammar: Callable[[Grammar], object] = lambda _: None  # another process does it
        if tensor_parallel == 1:
            built = build(options)
            self.engine, self._model, self.prompts = built.engine, built.model, built.prompts
            self._check_grammar = built.executor.check_grammar
        else:
            from plait.serve.remote import RemoteEngine  # what it needs is an extra

            check_split(options)
            folder = find_model(model)
            self.engine = RemoteEngine(options)
            self.prompts = Prompts.of_folder(folder, read_config(folder), max_context=self.engine.max_context)
        self.config, self.max_context = self.prompts.config, self.prompts.max_context
        self.tokenizer, self.chat_template = self.prompts.tokenizer, self.prompts.chat_template
        self.end_ids = set(self.prompts.end_ids)
        self._is_private = not prefix_cache
        self._open: dict[tuple[int, int], _Answer] = {}  # those being written, by request and answer

    @property
    def model(self) -> LanguageModel:
        """The network itself. ValueError if other processes have it, in shares."""
        if self._model is None:
            raise ValueError("the model is shared by tensor_parallel processes: none has it whole")
        return self._model

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
        priority: int = 0,
    ) -> list[Completion]:
        """One completion per prompt (n side by side when a request asks for n), in order.

        A prompt is text, a list of token ids, or a `GenerationRequest` with its own sampling; `params` goes for the
        others. `grammar`: what every answer must match. `priority`: lower goes first, among streams and calls that are
        open.
        """
        asked = [_asked(prompt, params or SamplingParams()) for prompt in _listed(prompts)]
        requests = [self._request(one, grammar, priority) for one in asked]
        answers: list[_Answer] = []
        try:
            for one, request in zip(asked, requests, strict=True):
                answers += self._begin(one, request)
            gathered = [Gathered() for _ in answers]
            for answer, whole in zip(answers, gathered, strict=True):
                for piece in self._pieces(answer):
                    whole.add(piece)
        finally:
            self._drop(answers)
        return [whole.completion() for whole in gathered]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
        priority: int = 0,
    ) -> Iterator[str]:
        """The text of one answer, in pieces as it is written. What is wrong with the prompt is raised at once; writing
        begins with the first piece asked for, and ends when the iterator is closed.
        """
        asked = _asked(prompt, params or SamplingParams())
        if asked.sampling.n != 1:
            raise ValueError(f"n={asked.sampling.n}: only one answer can be streamed")
        return self._stream(asked, self._request(asked, grammar, priority))

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """How likely each continuation is behind its context.

        Text begins a document, as it does in `generate`; token ids stand as they are, or behind bos if there are none.
        """
        prompts, n_scored = [], []
        for request in requests:
            context, continuation = self.prompts.encode(request.context), self.prompts.encode(request.continuation)
            begins = isinstance(request.context, str) or not context
            prompts.append([self.config.bos_id] * begins + context + continuation)
            n_scored.append(len(continuation))
        scoring = SamplingParams(max_tokens=0, prompt_logprobs=1)
        return [_score(completion, n) for completion, n in zip(self.generate(prompts, scoring), n_scored, strict=True)]

    def _request(self, asked: GenerationRequest, grammar: Grammar | None, priority: int) -> Request:
        if grammar is not None:
            self._check_grammar(grammar)
        return self.prompts.request(asked, grammar=grammar, priority=priority, is_private=self._is_private)

    def _begin(self, asked: GenerationRequest, request: Request) -> list[_Answer]:
        number = self.engine.add(request)
        answers = []
        for nth in range(request.params.n):
            text = AnswerText(request, self.tokenizer, nth, control_tokens=asked.messages is not None)
            self._open[number, nth] = answer = _Answer(number, nth, text)
            answers.append(answer)
        return answers

    def _stream(self, asked: GenerationRequest, request: Request) -> Iterator[str]:
        answers = self._begin(asked, request)
        try:
            for piece in self._pieces(answers[0]):
                if piece.text:
                    yield piece.text
        finally:
            self._drop(answers)

    def _pieces(self, answer: _Answer) -> Iterator[Delta]:
        """Of one answer; all others that are being written come along."""
        while True:
            while answer.pieces:
                piece = answer.pieces.popleft()
                yield piece
                if piece.finish_reason is not None:
                    return
            if answer.error is not None:
                raise EngineError(answer.error)
            self._step()

    def _step(self) -> None:
        try:
            outputs = self.engine.step()
        except BaseException as error:
            for answer in self._open.values():  # an engine in this process has dropped them all
                answer.error = f"the engine failed while this was written: {str(error) or type(error).__name__}"
                self.engine.abort(answer.request, answer.nth)
            self._open.clear()
            raise
        for out in outputs:
            answer = self._open[out.request, out.answer]
            try:
                piece = answer.text.push(out)
            except EngineError as error:
                answer.error = str(error)
                continue
            if piece is None:
                continue
            answer.pieces.append(piece)
            if piece.finish_reason is not None:
                del self._open[out.request, out.answer]
                if out.finish_reason is None:  # a stop string
                    self.engine.abort(out.request, out.answer)

    def _drop(self, answers: list[_Answer]) -> None:
        if sys.is_finalizing():  # a stream was left open: the engine goes with the process
            return
        for answer in answers:
            if self._open.pop((answer.request, answer.nth), None) is not None:
                self.engine.abort(answer.request, answer.nth)


class _Answer:
    """An answer being written, and its pieces that nobody has taken yet."""

    def __init__(self, request: int, nth: int, text: AnswerText) -> None:
        self.request, self.nth, self.text = request, nth, text
        self.pieces: deque[Delta] = deque()
        self.error: str | None = None


def _listed(prompts: Any) -> Sequence[Prompt]:
    if hasattr(prompts, "tolist"):  # an array or a tensor, of one prompt or of several
        prompts = prompts.tolist()
    if isinstance(prompts, str | GenerationRequest) or not isinstance(prompts, Sequence):
        return [prompts]
    return [prompts] if len(prompts) > 0 and isinstance(prompts[0], int) else prompts


def _asked(prompt: Any, params: SamplingParams) -> GenerationRequest:
    if isinstance(prompt, GenerationRequest):
        return prompt
    if isinstance(prompt, str):
        return GenerationRequest(prompt=prompt, sampling=params)
    if isinstance(prompt, Sequence) or hasattr(prompt, "tolist"):
        return GenerationRequest(token_ids=prompt, sampling=params)
    raise ValueError(
        f"a prompt is text, a list of token ids, or a GenerationRequest, not {type(prompt).__name__} "
        "(messages go into GenerationRequest(messages=...))"
    )


def _score(completion: Completion, n: int) -> Score:
    assert completion.prompt_logprobs is not None
    scored = [entry for entry in completion.prompt_logprobs[-n:] if entry is not None]
    assert len(scored) == n
    greedy = all(entry.top[0][0] == entry.token_id for entry in scored)
    return Score(sum(entry.logprob for entry in scored), greedy, n)
