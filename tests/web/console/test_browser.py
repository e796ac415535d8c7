"""The console in a real Chromium: what a person sees and does, by mouse and by keyboard, at a desk and on a phone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from appliance.domain.queries.response import parse_record, verify_record
from appliance.domain.releases.adapters import AdapterRevoked, RevokeAdapter
from appliance.formats.log.log_policy import quorum_policy
from appliance.web.console.pages import PAGES
from scripts.kit.appliance import free_port
from tests.kit.console import Console, console, listening
from tests.web.console.test_pages import CASES
from tests.web.console.test_streams import _frame

pytestmark = [pytest.mark.outside, pytest.mark.slow, pytest.mark.timeout(300)]

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
CHROMIUM = shutil.which("chromium")
WIDTHS = ((1280, 860), (360, 740))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="scripts/setup --browser installs it")
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def desk(home: Path, request: pytest.FixtureRequest) -> Iterator[Console]:
    port = free_port()
    with console(getattr(request, "param", "serving"), home, f"http://localhost:{port}") as made, listening(made, port):
        yield made


class Seen:
    """A page, and everything that went wrong in it: console messages, failed requests, other hosts."""

    def __init__(self, chromium: Any, desk: Console, **options: Any) -> None:
        self.desk = desk
        self.context = chromium.new_context(base_url=desk.url, **options)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.bytes = 0
        host = urlsplit(desk.url).netloc
        self.page.on("console", lambda message: self._note(message.type in ("error", "warning"), message.text))
        self.page.on("pageerror", lambda error: self._note(True, str(error)))
        self.page.on("request", lambda sent: self._note(urlsplit(sent.url).netloc != host, sent.url))

    def _note(self, is_wrong: bool, what: str) -> None:
        if is_wrong:
            self.wrong.append(what)

    def sign_in(self, name: str) -> None:
        self.page.goto(self.desk.link(name))
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url("**/home")


@pytest.fixture
def seen(chromium: Any, desk: Console) -> Iterator[Seen]:
    made = Seen(chromium, desk)
    yield made
    made.context.close()
    assert made.wrong == []


def _wait(page: Any, condition: str, seconds: float = 5.0) -> None:
    """Playwright's own wait evaluates text in the page, which the console's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(f"() => {condition}"):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def _axe(page: Any) -> list[str]:
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['target']}: {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_an_error_asks_another_host_or_shuts_somebody_out(seen: Seen, scheme: str) -> None:
    """axe-core's rules hold, and at 360 px nothing sticks out."""
    page = seen.page
    page.emulate_media(color_scheme=scheme)
    for name, paths in _paths():
        seen.sign_in(name)
        for path in paths:
            for width, height in WIDTHS:
                page.set_viewport_size({"width": width, "height": height})
                answer = page.goto(path)
                assert answer is not None and answer.status == 200, path
                _check(page, f"{path} at {width} px, {scheme}")
    assert len(CASES) > len(PAGES)


def _paths() -> Iterator[tuple[str, list[str]]]:
    """Every address of every page, with somebody who may see it."""
    auditors = [path for page, path in CASES if "auditor" in page.seen_by]
    units = [path for page, path in CASES if "auditor" not in page.seen_by]
    assert all("unit" in page.seen_by for page, path in CASES if path in units)
    yield "audrey", auditors
    yield "legal", [*units, "/home", "/releases", "/releases/legal/labels", "/passkeys"]


def _check(page: Any, where: str) -> None:
    out = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert out <= 0, f"{where}: {out} px stick out"
    assert _axe(page) == [], where


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_unit_s_person_asks_by_keyboard_and_saves_the_record(seen: Seen, scheme: str) -> None:
    page = seen.page
    page.emulate_media(color_scheme=scheme)
    seen.sign_in("legal")
    page.goto("/ask")
    _tab_to(page, "your text", tag="TEXTAREA")
    page.keyboard.type("Who pays?")
    _tab_to(page, "Ask", tag="BUTTON")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="The proof of it").wait_for()
    for width, height in WIDTHS:
        page.set_viewport_size({"width": width, "height": height})
        _check(page, f"an answer at {width} px")
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Save the record").click()
    record = parse_record(Path(downloading.value.path()).read_bytes())
    answered = verify_record(record, quorum_policy([seen.desk.context.ledger.state.site.log_key], [], 0))
    assert answered.body.unit == "legal" and downloading.value.suggested_filename.endswith("-record.json")


def test_at_twice_the_size_nothing_sticks_out(chromium: Any, desk: Console) -> None:
    """200 % zoom of a window of 1280 px is one of 640 px with two device pixels each."""
    seen = Seen(chromium, desk, viewport={"width": 640, "height": 430}, device_scale_factor=2)
    for name, paths in _paths():
        seen.sign_in(name)
        for path in paths:
            seen.page.goto(path)
            assert seen.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, path
    seen.context.close()
    assert seen.wrong == []


def test_sign_in_search_and_sign_out_need_no_mouse(seen: Seen) -> None:
    page = seen.page
    page.goto(seen.desk.link("audrey"))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/home")
    _tab_to(page, "Log")
    page.keyboard.press("Enter")
    page.wait_for_url("**/log")
    _tab_to(page, "Actor", tag="INPUT")
    page.keyboard.type("olga")
    page.keyboard.press("Enter")
    page.wait_for_url("**actor=olga**")
    _wait(page, "[...document.querySelectorAll('#found tbody td:nth-child(4)')].every(n => n.textContent === 'olga')")
    _tab_to(page, "Sign out", back=True)
    page.keyboard.press("Enter")
    page.wait_for_url("**/sign-in")
    answer = page.goto("/home")
    assert answer is not None and answer.status == 401
    seen.wrong.clear()  # the browser says that the page was refused


def _tab_to(page: Any, label: str, *, tag: str = "", back: bool = False) -> None:
    """Tab until what has the focus says this; each stop on the way can be seen."""
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        told = page.evaluate(
            """() => { const e = document.activeElement, s = getComputedStyle(e);
                return [e.tagName, (e.labels?.[0]?.textContent || e.textContent).trim(), s.outlineStyle]; }"""
        )
        assert told[0] == "BODY" or told[2] != "none", told
        if told[1].startswith(label) and (not tag or told[0] == tag):
            return
    raise AssertionError(f"no focus on {label}")


def test_a_facet_changes_the_list_and_the_address_and_back_goes_back(seen: Seen) -> None:
    page = seen.page
    seen.sign_in("audrey")
    page.goto("/log")
    page.get_by_label("Type").select_option("run.requested")
    page.wait_for_url("**type=run.requested**")
    _wait(page, "document.querySelectorAll('#found tbody tr').length === 1")
    page.go_back()
    _wait(page, "document.querySelectorAll('#found tbody tr').length > 1")


@pytest.mark.parametrize("desk", ["trained"], indirect=True)
def test_a_run_goes_on_before_ones_eyes(seen: Seen) -> None:
    page, progress = seen.page, seen.desk.context.progress
    seen.sign_in("olga")
    for step in range(1, 21):
        progress.publish("r-000001", _frame(step, loss=f"{3 - step / 10:.6f}"))
    page.goto("/runs/r-000001")
    _wait(page, "document.querySelector('[data-show=step]').textContent === '20'")
    assert page.locator(".plot canvas").count() == 4
    progress.publish("r-000001", _frame(21, loss="0.500000"))
    _wait(page, "document.querySelector('[data-show=step]').textContent === '21'", 2.0)
    assert page.locator("[data-show=loss]").inner_text() == "0.500"
    assert page.locator("[data-show=left]").inner_text() == "19 s"


@pytest.mark.parametrize("desk", ["trained"], indirect=True)
def test_the_list_of_runs_moves_with_them(seen: Seen) -> None:
    context = seen.desk.context
    row = context.ledger.state.runs.get("r-000001")
    assert row is not None
    context.ledger.state.runs.set("r-000001", row.model_copy(update={"status": "running"}))
    context.progress.publish("r-000001", _frame(1))
    page = seen.page
    seen.sign_in("olga")
    page.goto("/runs")
    line = "document.querySelector('[data-of=r-000001]')"
    _wait(page, f"{line} !== null")
    assert _axe(page) == []
    page.wait_for_timeout(600)
    seen.desk.changes.note("run.started")  # the list is replaced, and its rows are told all the same
    page.wait_for_timeout(1_200)
    for step in range(2, 13):
        context.progress.publish("r-000001", _frame(step, loss="0.500000", peak_bytes=3 << 30))
    _wait(page, f"{line}.querySelector('[data-show=step]').textContent === '12'", 3.0)
    assert page.locator("[data-show=loss]").inner_text() == "0.500"
    assert page.locator("[data-show=memory]").inner_text() == "3.0 GiB"
    assert page.locator("[data-show=left]").inner_text() == "28 s"


def test_a_revocation_shows_on_a_units_open_page_within_a_second(seen: Seen) -> None:
    page, site = seen.page, seen.desk.site
    seen.sign_in("legal")
    page.goto("/releases/legal/labels")
    page.wait_for_timeout(1_500)
    assert page.locator(".tile .figure").first.inner_text() == "yes"
    order = site.order(RevokeAdapter, "rita", **site.on_adapter(1), reason=site.text("It answers names."))
    site.ordered(AdapterRevoked(policy=site.in_force), order)
    seen.desk.changes.note("adapter.revoked")  # as the service's own appends do
    began = time.monotonic()
    _wait(page, "document.querySelector('.tile .figure').textContent === 'no'", 3.0)
    assert time.monotonic() - began < 1.5
    assert "revoked by entry" in page.locator(".reasons").first.inner_text()


def test_a_sign_out_ends_the_streams_of_every_tab(seen: Seen) -> None:
    page = seen.page
    seen.sign_in("olga")
    page.wait_for_timeout(800)
    other = seen.context.new_page()
    other.goto("/home")
    other.get_by_role("button", name="Sign out").click()
    other.wait_for_url("**/sign-in")
    seen.desk.changes.note("adapter.revoked")
    page.get_by_role("heading", name="You are not signed in").wait_for(timeout=5_000)
    seen.wrong.clear()  # the browser says that the page was refused


@pytest.mark.parametrize("path", ["/sign-in", "/home", "/log", "/runs/r-000001"])
def test_the_first_page_is_quick_and_light_on_a_slow_machine(chromium: Any, desk: Console, path: str) -> None:
    """A cold cache and a processor four times slowed: under a second to paint, under 120 kB sent."""
    seen = Seen(chromium, desk)
    page = seen.page
    seen.sign_in("audrey")
    session = seen.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.clearBrowserCache")
    session.send("Emulation.setCPUThrottlingRate", {"rate": 4})
    received: list[int] = []
    session.on("Network.loadingFinished", lambda told: received.append(int(told["encodedDataLength"])))
    page.goto(path, wait_until="load")
    paint = "performance.getEntriesByName('first-contentful-paint')[0]"
    _wait(page, f"{paint} !== undefined")
    painted = page.evaluate(f"{paint}.startTime")
    page.wait_for_timeout(200)
    seen.context.close()
    print(f"{path}: {sum(received):,} bytes, painted after {painted:.0f} ms")
    assert sum(received) < 120_000, received
    assert painted < 1_000
