"""What is noted of one HTTP request while it is answered, for the log and the metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from plait.serve.service import Delta

OUTCOMES = ("disconnected", "timed_out", "failed")


@dataclass
class Trace:
    request_id: str
    method: str
    path: str
    client: str | None = None
    key: str | None = None
    model: str | None = None
    user: str | None = None
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    outcome: str | None = None  # of OUTCOMES; None: answered
    first_token_s: float | None = None  # since started
    last_token: dict[tuple[int, int], float] = field(default_factory=dict)  # (prompt, answer) -> when
    between_tokens_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    lost_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    prompt: Any = None  # only if prompts are logged

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    def note(self, prompt: int, delta: Delta) -> None:
        """A piece of an answer came. Every piece of a prompt's first answer carries the prompt's figures."""
        now = time.perf_counter()
        if self.first_token_s is None:
            self.first_token_s = now - self.started
        if delta.token_ids:
            place = (prompt, delta.answer)
            before = self.last_token.get(place)
            if before is not None:
                self.between_tokens_s.append((now - before) / len(delta.token_ids))
            self.last_token[place] = now
            self.completion_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            self.finish_reasons.append(delta.finish_reason)

    def note_prompt(self, delta: Delta) -> None:
        """Once for every prompt."""
        self.prompt_tokens += delta.prompt_tokens
        self.cached_tokens += delta.prefix.usable
        self.lost_tokens += delta.prefix.lost

    def log_fields(self) -> dict[str, Any]:
        """What the log says of it; no text that users wrote, unless the prompt was noted."""
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": round(1000 * self.elapsed_s, 2),
        }
        optional = {
            "client": self.client,
            "key": self.key,
            "user": self.user,
            "model": self.model,
            "outcome": self.outcome,
            "ttft_ms": None if self.first_token_s is None else round(1000 * self.first_token_s, 2),
            "prompt_tokens": self.prompt_tokens or None,
            "cached_tokens": self.cached_tokens or None,
            "completion_tokens": self.completion_tokens or None,
            "finish_reasons": self.finish_reasons or None,
            "prompt": self.prompt,
        }
        return fields | {name: value for name, value in optional.items() if value is not None}
