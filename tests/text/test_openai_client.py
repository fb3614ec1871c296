"""A model behind HTTP: the same scores as in this process, errors in one line, patience with a busy server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from plait.text import GenerationRequest, SamplingParams, ScoreRequest, Tokenizer
from plait.text.openai_client import OpenAIClient


class Server:
    """What an OpenAI-compatible server does, over a language model that likes even token ids."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict, str | None]] = []
        self.failures = 0
        self.page = b""  # what a server of something else says
        self.arguments = '{"a": 1}'

    def logprob(self, token: int) -> float:
        return -0.5 if token % 2 == 0 else -2.0

    def answer(self, path: str, body: dict) -> dict:
        if path == "/v1/models":
            return {"data": [{"id": "served"}]}
        if path == "/v1/chat/completions":
            message = {"content": body["messages"][-1]["content"].upper()}
            if body.get("tools"):
                message = {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": self.arguments}}]}
            return {
                "choices": [{"message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2},
            }
        prompt = body["prompt"]
        choice: dict = {"text": f"{len(prompt)} {type(prompt).__name__}", "finish_reason": "length"}
        if body.get("echo"):
            ids = prompt if isinstance(prompt, list) else [ord(c) for c in prompt]
            own = [self.logprob(i) for i in ids]
            choice["logprobs"] = {
                "token_logprobs": [None, *own[1:], -1.0],
                "top_logprobs": [None, *[{"best": -0.5, "own": p} for p in own[1:]], {"best": -1.0}],
                "text_offset": list(range(len(ids) + 1)),
            }
        return {"choices": [choice], "usage": {"prompt_tokens": len(prompt), "completion_tokens": 1}}


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: dict) -> None:
            state.requests.append((self.path, body, self.headers.get("Authorization")))
            code, content = 200, None
            if state.failures:
                state.failures -= 1
                code, content = 503, {"error": "busy"}
            elif body.get("model") == "wrong":
                code, content = 404, {"error": "no such model"}
            data = state.page or json.dumps(content or state.answer(self.path, body)).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield state, f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()
    thread.join()


def test_the_first_model_is_taken_and_the_key_sent(server: tuple[Server, str]) -> None:
    state, url = server
    client = OpenAIClient(f"{url}/v1/", api_key="k")
    assert client.model == "served"
    assert state.requests == [("/v1/models", {}, "Bearer k")]


def test_bare_prompts_go_as_token_ids_with_a_tokenizer(server: tuple[Server, str], compact: Tokenizer) -> None:
    state, url = server
    requests = [GenerationRequest(prompt="Emma was", sampling=SamplingParams(temperature=0, max_tokens=4, stop=["."]))]
    OpenAIClient(url, model="m", tokenizer=compact).generate(requests)
    (_, body, _), *_ = state.requests
    assert body["prompt"] == [compact.bos_id, *compact.encode("Emma was")]
    assert {k: body[k] for k in ("model", "max_tokens", "temperature", "stop")} == {
        "model": "m", "max_tokens": 4, "temperature": 0, "stop": ["."]
    }  # fmt: skip
    assert "seed" not in body
    completion = OpenAIClient(url, model="m").generate(requests)[0]
    assert (completion.text, completion.finish_reason) == ("8 str", "length")
    assert (completion.prompt_tokens, completion.completion_tokens) == (8, 1)


def test_answers_keep_the_order_of_the_requests(server: tuple[Server, str]) -> None:
    client = OpenAIClient(server[1], model="m", n_parallel=4)
    answers = client.generate([GenerationRequest(messages=[{"role": "user", "content": f"m{n}"}]) for n in range(20)])
    assert [answer.text for answer in answers] == [f"M{n}" for n in range(20)]


def test_tool_calls_come_back_as_in_process(server: tuple[Server, str]) -> None:
    from plait.text import parse_tool_calls

    request = GenerationRequest(messages=[{"role": "user", "content": "x"}], tools=[{"type": "function"}])
    text = OpenAIClient(server[1], model="m").generate([request])[0].text
    call = parse_tool_calls(text).tool_calls[0]
    assert (call.name, json.loads(call.arguments)) == ("f", {"a": 1})
    server[0].arguments = '{"a": '
    text = OpenAIClient(server[1], model="m").generate([request])[0].text
    assert '{\\"a\\": ' in text
    assert not parse_tool_calls(text).tool_calls


def test_scores_are_sums_over_the_continuation(server: tuple[Server, str], compact: Tokenizer) -> None:
    client = OpenAIClient(server[1], model="m", tokenizer=compact)
    even, mixed, empty = client.loglikelihood(
        [ScoreRequest([1, 2, 3], [4, 6]), ScoreRequest([1], [2, 3]), ScoreRequest([], [2])]
    )
    assert (even.logprob, even.is_greedy, even.n_tokens) == (-1.0, True, 2)
    assert (mixed.logprob, mixed.is_greedy, mixed.n_tokens) == (-2.5, False, 2)
    assert (empty.logprob, empty.n_tokens) == (-0.5, 1)
    text = client.loglikelihood([ScoreRequest("Emma", " was")])[0]
    assert server[0].requests[-1][1]["prompt"][0] == compact.bos_id
    ids = compact.encode(" was")
    assert text.logprob == sum(-0.5 if i % 2 == 0 else -2.0 for i in ids)


def test_scores_of_text_without_a_tokenizer_follow_character_offsets(server: tuple[Server, str]) -> None:
    client = OpenAIClient(server[1], model="m")
    found = client.loglikelihood([ScoreRequest("ab", "dc")])[0]
    assert (found.logprob, found.n_tokens) == (-0.5 - 2.0, 2)  # d is 100, c is 99
    with pytest.raises(ValueError, match="--tokenizer"):
        client.loglikelihood([ScoreRequest("", "d")])


def test_a_busy_server_is_asked_again(server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("plait.text.openai_client.time.sleep", pauses.append)
    state, url = server
    state.failures = 2
    assert OpenAIClient(url, model="m").generate([GenerationRequest(prompt="x")])[0].text == "1 str"
    assert pauses == [0.5, 1.0]
    state.failures = 9
    with pytest.raises(OSError, match=r"answers 503: .*busy"):
        OpenAIClient(url, model="m", n_retries=1).generate([GenerationRequest(prompt="x")])


def test_errors_name_the_address_and_what_was_said(server: tuple[Server, str]) -> None:
    with pytest.raises(ValueError, match=r"/v1/completions answers 404: .*no such model"):
        OpenAIClient(server[1], model="wrong").generate([GenerationRequest(prompt="x")])
    with pytest.raises(OSError, match="can't be reached"):
        OpenAIClient("http://127.0.0.1:9", model="m", n_retries=0).generate([GenerationRequest(prompt="x")])


@pytest.mark.parametrize("page", [b"<html>Welcome</html>", b"[]", b"{}", b'{"data": 3, "choices": null}'])
def test_another_kind_of_server_is_named(page: bytes, server: tuple[Server, str]) -> None:
    server[0].page = page
    with pytest.raises(ValueError, match=r"/v1/models doesn't answer as OpenAI's API does, with 'data'"):
        OpenAIClient(server[1])
    with pytest.raises(ValueError, match=r"/v1/completions doesn't answer as OpenAI's API does, with 'choices'"):
        OpenAIClient(server[1], model="m").generate([GenerationRequest(prompt="x")])


def test_what_is_no_address_is_said_so() -> None:
    with pytest.raises(ValueError, match="http://host:port/v1 is no address"):
        OpenAIClient("http://host:port/v1", model="m").generate([GenerationRequest(prompt="x")])


def test_log_probabilities_with_gaps_are_refused(server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server[0], "logprob", lambda token: None)
    with pytest.raises(ValueError, match="leaves out log-probabilities"):
        OpenAIClient(server[1], model="m").loglikelihood([ScoreRequest("ab", "cd")])
