"""Figures for Prometheus: under vLLM's names where the meaning is the same, under ours where it isn't."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from plait.serve.http.admission import Admission
from plait.serve.http.trace import OUTCOMES, Trace
from plait.serve.service import EngineStats

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000)

_GAUGES = (  # name, what it is, how it follows from the engine's figures
    ("vllm:num_requests_running", "sequences in the batch", lambda s: s.running),
    ("vllm:num_requests_waiting", "requests that wait in the engine", lambda s: s.waiting),
    ("vllm:kv_cache_usage_perc", "share of pages of keys and values in use", lambda s: s.pages_used / max(1, s.pages)),
    ("plait:state_slots_used", "state slots of running sequences", lambda s: s.slots_used),
    ("plait:state_slots_cached", "state slots that hold checkpoints of the prefix tree", lambda s: s.slots_cached),
    ("plait:state_slots", "state slots on the device", lambda s: s.slots),
    ("plait:checkpoints_host", "states kept in host memory", lambda s: s.host_states),
    ("plait:kv_pages", "pages of keys and values on the device", lambda s: s.pages),
    ("plait:step_seconds", "the last step", lambda s: s.step_ms / 1000),
)  # fmt: skip
_COUNTERS = (
    ("vllm:prompt_tokens", "prompt tokens computed or found in the prefix cache", lambda s: s.prompt_tokens_total),
    ("vllm:generation_tokens", "tokens drawn", lambda s: s.generated_tokens_total),
    ("vllm:num_preemptions", "sequences moved out of the batch for others", lambda s: s.preemptions_total),
    ("vllm:prefix_cache_queries", "prompt tokens looked up in the prefix cache", lambda s: s.prompt_tokens_total),
    ("vllm:prefix_cache_hits", "of these, tokens not computed again", lambda s: s.prefix_usable_total),
    ("vllm:spec_decode_num_draft_tokens", "tokens guessed", lambda s: s.drafts_total),
    ("vllm:spec_decode_num_accepted_tokens", "guesses that were right", lambda s: s.drafts_accepted_total),
    ("plait:prefix_tokens_matched", "prompt tokens the prefix tree knew", lambda s: s.prefix_matched_total),
    ("plait:prefix_tokens_usable", "of these, tokens with pages and a state", lambda s: s.prefix_usable_total),
    ("plait:prefix_tokens_lost", "of these, tokens lost for want of a state", lambda s: s.prefix_lost_total),
    ("plait:steps", "steps of the engine", lambda s: s.steps_total),
)  # fmt: skip


class Distribution:
    """Counts of values by bucket. prometheus_client's own takes a lock and ten times as long for each value."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name, self.text, self._bounds = name, text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, model: str) -> Metric:
        family = HistogramMetricFamily(self.name, self.text, labels=["model_name"])
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        family.add_metric([model], list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)
        return family


class Metrics:
    """Kept by the event loop's thread alone."""

    def __init__(self, model: str, admission: Admission) -> None:
        self._model, self._admission = model, admission
        self._stats: EngineStats | None = None
        self.registry = CollectorRegistry()
        self.registry.register(self)

        self._ttft = Distribution("vllm:time_to_first_token_seconds", "from request to first token", _SECONDS)
        self._between = Distribution("vllm:inter_token_latency_seconds", "between tokens of an answer", _BETWEEN)
        self._latency = Distribution("vllm:e2e_request_latency_seconds", "from request to last byte", _SECONDS)
        self._prompt = Distribution("vllm:request_prompt_tokens", "tokens of a request's prompts", _TOKENS)
        self._generated = Distribution("vllm:request_generation_tokens", "tokens of a request's answers", _TOKENS)
        self._success: Counter[tuple[str, str]] = Counter()
        self._responses: Counter[tuple[str, str]] = Counter()
        self._broken: Counter[tuple[str]] = Counter({(name,): 0 for name in OUTCOMES})  # or a first one makes no rate

    def note(self, trace: Trace, path: str) -> None:
        """A request ended; `path` is its route's, so that the number of label values stays small."""
        self._responses[path, str(trace.status)] += 1
        if trace.outcome is not None:
            self._broken[trace.outcome,] += 1
        if trace.first_token_s is None:
            return
        self._ttft.observe(trace.first_token_s)
        for seconds in trace.between_tokens_s:
            self._between.observe(seconds)
        self._latency.observe(trace.elapsed_s)
        self._prompt.observe(trace.prompt_tokens)
        self._generated.observe(trace.completion_tokens)
        for reason in trace.finish_reasons:
            self._success[reason, self._model] += 1

    def text(self, stats: EngineStats) -> bytes:
        """The Prometheus page."""
        self._stats = stats
        return generate_latest(self.registry)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        """What the engine and the queue say now; called by the registry."""
        stats = self._stats or EngineStats()
        for name, text, value in _GAUGES:
            yield self._family(GaugeMetricFamily, name, text, value(stats))
        for name, text, value in _COUNTERS:
            yield self._family(CounterMetricFamily, name, text, value(stats))
        queue = (("admitted", self._admission.running), ("queued", self._admission.waiting))
        for name, number in queue:
            yield self._family(GaugeMetricFamily, f"plait:requests_{name}", f"requests {name} by the server", number)
        for distribution in (self._ttft, self._between, self._latency, self._prompt, self._generated):
            yield distribution.family(self._model)
        yield _counted("vllm:request_success", "answers", ["finished_reason", "model_name"], self._success)
        yield _counted("plait:http_responses", "HTTP responses", ["path", "status"], self._responses)
        yield _counted("plait:requests_broken", "not answered to the end", ["outcome"], self._broken)

    def _family(self, kind: type[Metric], name: str, text: str, value: float) -> Metric:
        family = kind(name, text, labels=["model_name"])  # type: ignore[call-arg]
        family.add_metric([self._model], value)  # type: ignore[attr-defined]
        return family


def _counted(name: str, text: str, labels: list[str], counts: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family
