"""The page at `/`, in headless Chromium, and what is sent with its files."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from plait.serve.http.page import PAGE

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
PHONE = {"width": 390, "height": 800}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]


def test_every_file_is_sent_with_a_policy_and_needs_no_key(call: Callable, make_service: Callable) -> None:
    service = make_service()
    for path in PAGE:
        sent = call(service, path, None, api_keys=("k",))
        assert sent.status_code == 200
        assert "default-src 'none'" in sent.headers["content-security-policy"]
        again = call(service, path, None, {"If-None-Match": sent.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for path in ("/web/page.py", "/web/../page.py", "/web/", "/web/index.html"):
        assert call(service, path, None).status_code == 404


def test_the_files_name_nothing_from_elsewhere(call: Callable, make_service: Callable) -> None:
    service = make_service()
    for path in PAGE - {"/web/icon.svg"}:  # whose namespace is a URL
        assert not re.findall(r"https?://|\bon\w+=\"|style=\"", call(service, path, None).text), path


def test_stats(call: Callable, make_service: Callable) -> None:
    service = make_service()
    found = call(service, "/stats", None).json()
    assert found["engine"]["pages_used"] == 5
    assert found["requests"] == {"running": 0, "waiting": 0, "max_running": 256}
    assert call(service, "/stats", None, api_keys=("k",)).status_code == 401
    service.is_up = False
    assert call(service, "/stats", None).status_code == 503
    assert call(service, "/metrics", None).status_code == 200


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if not CHROMIUM:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """open_page(url, **context): the page, which may ask no other host and log no error."""
    contexts, wrong = [], []

    def opened(url: str, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1360, "height": 860}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("request", lambda r: None if r.url.startswith(url) else wrong.append(r.url))
        page.goto(url)
        page.wait_for_selector("#model option", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [error for error in wrong if "ERR_CONNECTION_REFUSED" not in error] == []  # the test's server ends first


def until(page: Any, condition: str, seconds: float = 15) -> None:
    """Waits for a JavaScript expression to hold. (Playwright's own waiting uses eval, which the policy forbids.)"""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def say(page: Any, text: str) -> None:
    page.fill("#draft", text)
    page.press("#draft", "Enter")


def finished(page: Any, n_answers: int = 1) -> Any:
    """The last answer, once it is whole."""
    until(
        page,
        f"document.querySelectorAll('.turn.assistant > .foot.figures').length === {n_answers}"
        " && !document.querySelector('.waiting')",
    )
    return page.locator(".turn.assistant").last


def test_a_conversation(open_page: Callable, start: Callable, make_service: Callable) -> None:
    service = make_service(text="Here:\n```\nx < 1\n```\nand `y`.")
    with start(service) as live:
        page = open_page(live.url)
        page.fill("#system", "Be brief.")
        page.fill("#seed", "7")
        page.press("#draft", "Shift+Enter")
        say(page, "<b>one</b>")
        answer = finished(page)
        assert answer.locator("pre").inner_text() == "x < 1"
        assert [e.inner_text() for e in answer.locator("code").all()] == ["x < 1", "y"]
        assert "tokens" in answer.locator(".foot").inner_text()
        assert page.locator(".turn.user .said").inner_text() == "<b>one</b>"
        asked = service.asked[-1]
        assert list(asked.messages) == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<b>one</b>"},
        ]
        assert (asked.sampling.seed, asked.sampling.temperature) == (7, 0.7)

        service.text = "Again."
        page.keyboard.press("Alt+r")
        until(page, "document.querySelector('.turn.assistant .said').textContent === 'Again.'")
        finished(page)
        assert len(service.asked[-1].messages) == 2
        say(page, "two")
        finished(page, 2)
        assert [m["role"] for m in service.asked[-1].messages] == ["system", "user", "assistant", "user"]
        page.reload()
        assert page.locator(".turn").count() == 4
        page.locator("text=Change").first.click()
        assert page.input_value("#draft") == "<b>one</b>"
        assert page.locator(".turn").count() == 0
        page.keyboard.press("Alt+n")
        assert page.locator("#greeting").is_visible()


def test_stop_and_failure(open_page: Callable, start: Callable, make_service: Callable) -> None:
    import asyncio

    service = make_service(text="word " * 400, wait=lambda: asyncio.sleep(0.01))
    with start(service) as live:
        page = open_page(live.url)
        say(page, "go on")
        until(page, "document.querySelector('.turn.assistant .said')?.textContent.length > 20")
        page.keyboard.press("Escape")
        assert "stopped" in finished(page).locator(".foot").inner_text()
        until(page, "document.querySelector('#send').offsetParent !== null")
        assert 0 < finished(page).locator(".said").inner_text().count("word") < 400
        assert service.cancelled == 1

        service.fails_after, service.text, service.wait = 3, "a b c d e f", None
        page.click("#again")
        page.wait_for_selector("#notice:visible")
        assert "the engine process died" in page.inner_text("#notice")
        assert "not finished" in finished(page).inner_text()
        service.fails_after = None
        page.click("#again")
        until(page, "document.querySelector('.turn.assistant .said').textContent === 'a b c d e f'")
        assert not page.is_visible("#notice")


def test_json(open_page: Callable, start: Callable, make_service: Callable) -> None:
    service = make_service(text='{"name": "Ada", "age": 36, "is": [true, null]}')
    with start(service) as live:
        page = open_page(live.url)
        page.check("input[value=json_schema]")
        page.fill("#schema", "{")
        say(page, "who?")
        assert "The schema is not JSON" in page.inner_text("#notice")
        page.fill("#schema", '{"type": "object"}')
        page.click("#again")
        answer = finished(page)
        assert answer.locator(".badge").inner_text() == "JSON"
        assert json.loads(answer.locator("pre").inner_text()) == json.loads(service.text)
        assert [e.inner_text() for e in answer.locator(".key").all()] == ['"name"', '"age"', '"is"']
        assert service.grammars[-1] is not None
        service.text = "{oh"
        page.click("#again")
        page.wait_for_selector(".badge.wrong")


def test_tool_calls(open_page: Callable, start: Callable, make_service: Callable) -> None:
    called = [{"name": "get_weather", "arguments": {"city": "Paris"}}]
    service = make_service(text=f"<tool_calls>{json.dumps(called)}</tool_calls>")
    with start(service) as live:
        page = open_page(live.url)
        page.fill("#tools", json.dumps(TOOLS))
        say(page, "Paris?")
        answer = finished(page)
        assert answer.locator("h4").inner_text() == "Calls get_weather"
        assert json.loads(answer.locator(".call pre").inner_text()) == {"city": "Paris"}
        service.text = "It rains."
        answer.locator("textarea").fill('{"sky": "grey"}')
        answer.locator("text=Send the results").click()
        assert finished(page, 2).locator(".said").inner_text() == "It rains."
        _, assistant, result = service.asked[-1].messages
        assert assistant["tool_calls"][0]["function"]["name"] == "get_weather"
        assert (result["role"], result["content"]) == ("tool", '{"sky": "grey"}')


def test_the_engine_at_work(open_page: Callable, start: Callable, make_service: Callable) -> None:
    with start(make_service()) as live:
        page = open_page(live.url)
        until(page, "document.querySelector('#pages-text').textContent === '5 of 10'")
        assert page.inner_text("#slots-text") == "5 of 8"
        widths = page.eval_on_selector_all("#slots span", "spans => spans.map(s => s.style.width)")
        assert widths == ["25%", "37.5%"]
        assert "prompt tokens" in page.inner_text("#totals")
        page.click("#toggle-engine")
        assert page.locator("#engine").is_hidden()


def test_the_key_is_asked_for(browser: Any, start: Callable, make_service: Callable) -> None:
    with start(make_service(), api_keys=("secret",)) as live:
        page = browser.new_page()
        page.goto(live.url)
        page.wait_for_selector("#notice:visible")
        assert "API key" in page.inner_text("#notice")
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        page.wait_for_selector("#model option", state="attached")
        say(page, "x")
        assert finished(page).locator(".said").inner_text() == "Hello there"
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
        page.close()


def test_a_phone(open_page: Callable, start: Callable, make_service: Callable) -> None:
    with start(make_service(text="long" * 200)) as live:
        page = open_page(live.url, viewport=PHONE)
        say(page, "unbroken" * 40)
        finished(page)
        for panel in (None, "request", "engine"):
            if panel:
                page.click(f"#toggle-{panel}")
                assert page.locator(f"#{panel}").is_visible()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), panel
        page.keyboard.press("Escape")
        assert page.locator("#engine").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_and_reached_by_keyboard(
    open_page: Callable, start: Callable, make_service: Callable, scheme: str
) -> None:
    with start(make_service()) as live:
        page = open_page(live.url, color_scheme=scheme)
        say(page, "x")
        finished(page)
        assert page.evaluate(UNNAMED) == []
        assert {pair: ratio for pair, ratio in page.evaluate(CONTRASTS).items() if ratio < 4.5} == {}
        is_dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128"
        assert page.evaluate(is_dark) == (scheme == "dark")
        other = "Light" if scheme == "dark" else "Dark"
        while page.inner_text("#theme") != other:
            page.click("#theme")
        assert page.evaluate(is_dark) == (other == "Dark")
        reached = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id"))
        assert {"draft", "send", "again", "new", "system", "temperature", "theme", "toggle-engine"} <= reached


UNNAMED = """() => [...document.querySelectorAll('button, input, select, textarea')].filter(e =>
  !(e.textContent.trim() && e.tagName === 'BUTTON') && !e.labels?.length && !e.ariaLabel).map(e => e.outerHTML)"""
CONTRASTS = """() => {
  const probe = document.body.appendChild(document.createElement('i'));
  const canvas = new OffscreenCanvas(1, 1).getContext('2d');
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = name => {
    probe.style.color = `var(--${name})`;
    canvas.fillStyle = getComputedStyle(probe).color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b + .05;
  };
  const found = {};
  for (const [ink, papers] of [['text', ['page', 'raised', 'sunken']], ['faint', ['page', 'sunken']],
                               ['wrong', ['page']], ['accent', ['page']], ['on-accent', ['accent']],
                               ['cached', ['page']]])
    for (const paper of papers) {
      const [a, b] = [light(ink), light(paper)];
      found[`${ink} on ${paper}`] = Math.max(a, b) / Math.min(a, b);
    }
  probe.remove();
  return found;
}"""
