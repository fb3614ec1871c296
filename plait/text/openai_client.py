"""A model behind an OpenAI-compatible URL as a `text.Generator`: chat, completions, and scoring by echo."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from plait.text import Completion, GenerationRequest, SamplingParams, Score, ScoreRequest, Tokenizer

T = TypeVar("T")
R = TypeVar("R")

_RETRIED = {408, 409, 429, 500, 502, 503, 504}
_PLAIN = SamplingParams()


class OpenAIClient:
    """Satisfies `text.Generator` over HTTP.

    With the model's tokenizer, bare prompts and scored texts go as token ids, exactly as in process. Without, they go
    as text and the server cuts them; then only texts can be scored that end where a token does.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        tokenizer: Tokenizer | None = None,
        n_parallel: int = 8,
        timeout_s: float = 600,
        n_retries: int = 4,
    ) -> None:
        """`url` ends before /v1 or with it. `model` None takes the server's first."""
        self.base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.tokenizer = tokenizer
        self._key, self._timeout_s, self._n_retries = api_key, timeout_s, n_retries
        self._n_parallel = n_parallel
        self.model = model or self._first_model()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        return [completion for group in self._in_parallel(self._complete, requests) for completion in group]

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        return self._in_parallel(self._score, requests)

    def _in_parallel(self, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
        with ThreadPoolExecutor(self._n_parallel) as pool:
            return list(pool.map(call, items))

    def _first_model(self) -> str:
        models = self._send("/models", None, "data")["data"]
        if not models:
            raise ValueError(f"{self.base} serves no model: name one")
        return str(models[0]["id"])

    def _complete(self, request: GenerationRequest) -> list[Completion]:
        body = {"model": self.model} | _sampling(request.sampling)
        if request.messages is not None:
            extras = {name: list(value) for name in ("tools", "documents") if (value := getattr(request, name))}
            knobs = {} if request.knobs is None else {"knobs": dict(request.knobs)}
            body |= {"messages": list(request.messages)} | extras | knobs
            answer = self._send("/chat/completions", body, "choices")
            texts = [_message_text(choice["message"]) for choice in answer["choices"]]
        else:
            answer = self._send("/completions", body | {"prompt": self._prompt(request)}, "choices")
            texts = [choice["text"] for choice in answer["choices"]]
        return self._completions(answer, texts)

    def _prompt(self, request: GenerationRequest) -> str | list[int]:
        if request.token_ids is not None:
            return list(request.token_ids)
        assert request.prompt is not None
        if self.tokenizer is None:
            return request.prompt
        return [self.tokenizer.bos_id, *self.tokenizer.encode(request.prompt)]

    def _completions(self, answer: Mapping[str, Any], texts: Sequence[str]) -> list[Completion]:
        usage = answer.get("usage") or {}
        found = []
        for choice, text in zip(answer["choices"], texts, strict=True):
            ids = tuple(self.tokenizer.encode(text)) if self.tokenizer else ()
            n_new = usage.get("completion_tokens", len(ids)) if len(texts) == 1 else len(ids)
            reason = "length" if choice.get("finish_reason") == "length" else "stop"
            found.append(Completion(text, ids, reason, usage.get("prompt_tokens", 0), n_new))  # type: ignore[arg-type]
        return found

    def _score(self, request: ScoreRequest) -> Score:
        """Echo the prompt with its log-probabilities; one new token is asked for, since some servers give no fewer."""
        prompt, start = self._scored_prompt(request)
        body = {"model": self.model, "prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
        choice = self._send("/completions", body, "choices")["choices"][0]
        found = choice.get("logprobs")
        if not found or not found.get("token_logprobs"):
            raise ValueError(f"{self.base} gives no log-probabilities of prompts: it must know echo with logprobs")
        if isinstance(prompt, str):
            offsets = found["text_offset"]
            first = next((n for n, offset in enumerate(offsets) if offset >= start), None)
            if first is None or offsets[first] != start:
                raise ValueError(
                    "a token reaches from the context into the continuation: give the tokenizer (--tokenizer)"
                )
            end = next((n for n, offset in enumerate(offsets) if offset >= len(prompt)), len(offsets))
        else:
            first, end = start, len(prompt)
        logprobs = found["token_logprobs"][first:end]
        tops = found["top_logprobs"][first:end]
        if any(own is None for own in logprobs) or not all(tops):
            raise ValueError(f"{self.base} leaves out log-probabilities of tokens inside the prompt")
        greedy = all(own >= max(top.values()) for own, top in zip(logprobs, tops, strict=True))
        return Score(sum(logprobs), greedy, len(logprobs))

    def _scored_prompt(self, request: ScoreRequest) -> tuple[str | list[int], int]:
        """The whole prompt and where the continuation begins: a token's index, or a character's."""
        context, continuation = request.context, request.continuation
        if not context and self.tokenizer is None:
            raise ValueError("an empty context stands for the beginning of a text: give the tokenizer (--tokenizer)")
        if isinstance(context, str) and isinstance(continuation, str):
            if self.tokenizer is None:
                return context + continuation, len(context)
            bos, encode = self.tokenizer.bos_id, self.tokenizer.encode
            return [bos, *encode(context), *encode(continuation)], 1 + len(encode(context))
        before = list(context)
        if not before:
            assert self.tokenizer is not None
            before = [self.tokenizer.bos_id]
        return [*before, *continuation], len(before)

    def _send(self, path: str, body: Mapping[str, Any] | None, key: str) -> dict[str, Any]:
        """The object, with a list at `key`, that answers the POST of `body` or, without one, a GET; what may pass is
        tried again with growing pauses."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data=data, headers=headers)
        for attempt in range(self._n_retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                    return self._checked(response.read(), path, key)
            except http.client.InvalidURL as error:
                raise ValueError(f"{self.base} is no address: {error}") from error
            except urllib.error.HTTPError as error:
                said = error.read().decode("utf-8", "replace")[:500]
                if error.code not in _RETRIED or attempt == self._n_retries:
                    kind = OSError if error.code in _RETRIED else ValueError  # busy or broken; or a request it refuses
                    raise kind(f"{self.base}{path} answers {error.code}: {said}") from error
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                if attempt == self._n_retries:
                    raise OSError(f"{self.base}{path} can't be reached: {error}") from error
            time.sleep(0.5 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _checked(self, content: bytes, path: str, key: str) -> dict[str, Any]:
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get(key), list):
            said = content[:200].decode("utf-8", "replace")
            raise ValueError(f"{self.base}{path} doesn't answer as OpenAI's API does, with {key!r}: {said}")
        return answer


def _sampling(params: SamplingParams) -> dict[str, Any]:
    """The API's own fields, and those of ours that differ from their defaults."""
    body: dict[str, Any] = {"max_tokens": params.max_tokens, "temperature": params.temperature, "top_p": params.top_p}
    if params.stop:
        body["stop"] = list(params.stop)
    names = (
        "n", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty", "min_tokens",
        "ignore_eos",
    )  # fmt: skip
    return body | {n: getattr(params, n) for n in names if getattr(params, n) != getattr(_PLAIN, n)}


def _message_text(message: Mapping[str, Any]) -> str:
    """An answer as the model writes it in process: text, then its tool calls in the Jamba family's brackets."""
    text = message.get("content") or ""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    if not calls:
        return text
    listed = [{"name": call["name"], "arguments": _arguments(call["arguments"])} for call in calls]
    return f"{text}<tool_calls>{json.dumps(listed, ensure_ascii=False)}</tool_calls>"


def _arguments(written: str) -> Any:
    """What a model wrote; not always JSON, and then the text itself, which no task takes for an object."""
    try:
        return json.loads(written or "{}")
    except ValueError:
        return written
