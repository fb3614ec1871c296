"""The Grafana dashboard shows figures that there are."""

import json
import re
from collections.abc import Callable
from pathlib import Path

SERVING = Path(__file__).parents[3] / "docs" / "serving"
NAME = re.compile(r"(?:vllm|plait):\w+")
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}


def test_every_figure_exists(start: Callable, make_service: Callable) -> None:
    with start(make_service(fails_after=3)) as live, live.http() as client:
        client.post("/v1/chat/completions", json=CHAT)  # fails, and so shows the figure of failures
        there = set(NAME.findall(client.get("/metrics").text))
    panels = json.loads((SERVING / "grafana.json").read_text())["panels"]
    shown = {name for panel in panels for target in panel["targets"] for name in NAME.findall(target["expr"])}
    assert len(panels) == 12
    assert shown - there == set()


def test_the_page_on_deployment_names_figures_that_there_are(start: Callable, make_service: Callable) -> None:
    with start(make_service(fails_after=3)) as live, live.http() as client:
        client.post("/v1/chat/completions", json=CHAT)
        there = set(NAME.findall(client.get("/metrics").text))
    assert set(NAME.findall((SERVING / "deployment.md").read_text())) - there == set()
