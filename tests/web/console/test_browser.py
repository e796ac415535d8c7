"""The console in a real Chromium: by mouse and keyboard, at desktop and phone width."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from appliance.domain.queries.proofs import parse_record, verify_record
from appliance.domain.releases.adapters import AdapterRevoked, RevokeAdapter
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.export import read_removed
from appliance.web.console.pages import PAGES
from scripts.kit.ports import free_port
from tests.kit.chromium import TIMEOUT_MS, served
from tests.kit.console import Console, console, listening
from tests.kit.log_policies import quorum_policy
from tests.kit.old_records import archive, old_template
from tests.web.console.test_pages import CASES, lay_inputs
from tests.web.console.test_streams import _frame

pytestmark = [pytest.mark.outside, pytest.mark.timeout(600)]

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
CHROMIUM = shutil.which("chromium")
WIDTHS = ((1280, 860), (360, 740))
BEYOND = "document.documentElement.scrollWidth - window.innerWidth"
"""Returns the pixels of a page beyond its window's width."""
BROKEN_HEADINGS = """
() => [...document.querySelectorAll("table.rows thead th")].filter((one) => {
  if (one.closest(".on-paper ~ [data-live]") || one.querySelector(".hidden")) return false;
  const range = document.createRange();
  range.selectNodeContents(one);
  const lines = new Set([...range.getClientRects()].map((rect) => rect.top)).size;
  return one.textContent.trim() && (!lines || lines > one.textContent.trim().split(/[\\s-]+/).length);
}).map((one) => one.textContent)
"""
"""Returns the headings of columns that are not shown, or that have a word on more than one line."""


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
        self.context.set_default_timeout(TIMEOUT_MS)
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


def _wait(page: Any, condition: str, seconds: float = TIMEOUT_MS / 1_000) -> None:
    """Playwright's own wait evaluates text in the page, which the console's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(f"() => {condition}"):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def _axe(page: Any) -> list[str]:
    """Return what axe-core finds on a page whose transitions are over: a colour half way has no contrast to measure."""
    page.evaluate("Promise.allSettled(document.getAnimations().map(one => one.finished))")
    page.evaluate(f"if (!window.axe) {{ {AXE.read_text(encoding='utf-8')} }}")
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['target']}: {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def test_no_page_has_an_error_asks_another_host_or_shuts_somebody_out(seen: Seen) -> None:
    """axe-core's rules hold in both schemes and at both widths, and nothing sticks out at 360 px, at 200 % or on paper.

    200 % of a window of 1,280 px are 640 px.
    """
    page = seen.page
    lay_inputs(seen.desk.site)
    for name, paths in _paths():
        seen.sign_in(name)
        for path in paths:
            answer = page.goto(path)
            assert answer is not None and answer.status == 200, path
            for (width, height), scheme in product(WIDTHS, ("light", "dark")):
                page.set_viewport_size({"width": width, "height": height})
                page.emulate_media(color_scheme=scheme)
                _check(page, f"{path} at {width} px, {scheme}")
            page.set_viewport_size({"width": 640, "height": 430})
            assert page.evaluate(BEYOND) <= 0, f"{path} at 200 %"
            _check_paper(page, path)
    assert len(CASES) > len(PAGES)


def _check_paper(page: Any, path: str) -> None:
    """Check that a page fits on A4 with the browser's usual margins, which is 718 px wide, without navigation."""
    page.set_viewport_size({"width": 718, "height": 1_000})
    page.emulate_media(media="print")
    assert page.evaluate(BEYOND) <= 1, f"{path}: beyond the paper"
    shown = "[...document.querySelectorAll('nav, .actions, .forms')].filter((one) => one.offsetParent).length"
    assert page.evaluate(shown) == 0, path
    assert page.evaluate(BROKEN_HEADINGS) == [], path
    page.emulate_media(media="screen")


def _paths() -> Iterator[tuple[str, list[str]]]:
    """Every address of every page, with somebody who may see it."""
    auditors = [path for page, path in CASES if "auditor" in page.seen_by]
    operators = [path for page, path in CASES if page.seen_by == ("operator",)]
    units = [path for page, path in CASES if "auditor" not in page.seen_by and path not in operators]
    assert all("unit" in page.seen_by for page, path in CASES if path in units)
    yield "audrey", auditors
    yield "olga", operators
    yield "legal", [*units, "/home", "/releases", "/releases/legal/labels", "/passkeys"]


def _check(page: Any, where: str) -> None:
    assert page.evaluate(BEYOND) <= 0, f"{where}: sticks out"
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


def test_a_date_that_cannot_be_read_is_named_beside_its_field_until_it_is_corrected(seen: Seen) -> None:
    page = seen.page
    seen.sign_in("audrey")
    page.goto("/log")
    page.get_by_label("Since").fill("24/11/2026")
    page.keyboard.press("Enter")
    page.locator("#problem-since", has_text="expected a day such as").wait_for()
    assert page.get_by_label("Since").input_value() == "24/11/2026" and _axe(page) == []
    page.get_by_label("Since").fill("2026-01-01")
    page.keyboard.press("Enter")
    page.locator("#found tbody tr").first.wait_for()
    _wait(page, "document.getElementById('problem-since').textContent === ''")
    seen.wrong.clear()  # the browser says that the first search was refused


@pytest.mark.parametrize("desk", ["trained"], indirect=True)
def test_a_run_continues_before_ones_eyes(seen: Seen) -> None:
    page, progress = seen.page, seen.desk.context.progress
    seen.sign_in("olga")
    for step in range(1, 21):
        progress.publish("r-000001", _frame(step, loss=f"{3 - step / 10:.6f}"))
    page.goto("/runs/r-000001")
    _wait(page, "document.querySelector('[data-show=step]').textContent === '20'")
    assert page.locator(".plot canvas").count() == 4
    progress.publish("r-000001", _frame(21, loss="0.500000"))
    _wait(page, "document.querySelector('[data-show=step]').textContent === '21'")
    assert page.locator("[data-show=loss]").inner_text() == "0.500"
    assert page.locator("[data-show=left]").inner_text() == "19 s"


COLOURS = """
() => [...document.querySelectorAll(".plot canvas")].map((canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  const counts = {};
  for (let at = 0; at < data.length; at += 4) {
    if (data[at + 3] === 255) {
      const colour = "#" + [...data.slice(at, at + 3)].map((one) => one.toString(16).padStart(2, "0")).join("");
      counts[colour] = (counts[colour] || 0) + 1;
    }
  }
  return Object.keys(counts);
})
"""
"""Returns the colours of each curve's canvas."""


@pytest.mark.parametrize("desk", ["trained"], indirect=True)
def test_curves_have_the_colours_of_the_theme_and_of_paper_without_a_reload(seen: Seen) -> None:
    page, progress = seen.page, seen.desk.context.progress
    seen.sign_in("olga")
    for step in range(1, 21):
        progress.publish("r-000001", _frame(step, loss=f"{3 - step / 10:.6f}"))
    page.emulate_media(color_scheme="light")
    page.goto("/runs/r-000001")
    _wait(page, "document.querySelectorAll('.plot canvas').length === 4")
    light, dark = "#1f5f8b", "#86bfe6"
    for media, scheme, shown, other in (
        ("screen", "light", light, dark),
        ("screen", "dark", dark, light),
        ("print", "dark", light, dark),
        ("screen", "dark", dark, light),
    ):
        page.emulate_media(media=media, color_scheme=scheme)
        deadline = time.monotonic() + TIMEOUT_MS / 1_000
        while len(found := page.evaluate(COLOURS)) != 4 or any(shown not in one or other in one for one in found):
            assert time.monotonic() < deadline, (media, scheme, found)
            time.sleep(0.05)


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
    page.evaluate(f"{line}.dataset.before = 'yes'")
    seen.desk.note("run.started")  # the list is replaced, and its rows are told all the same
    _wait(page, f"{line}.dataset.before === undefined")
    for step in range(2, 13):
        context.progress.publish("r-000001", _frame(step, loss="0.500000", peak_bytes=3 << 30))
    _wait(page, f"{line}.querySelector('[data-show=step]').textContent === '12'")
    assert page.locator("[data-show=loss]").inner_text() == "0.500"
    assert page.locator("[data-show=memory]").inner_text() == "3.22 GB"
    assert page.locator("[data-show=left]").inner_text() == "28 s"

    def answer_late(route: Any) -> None:
        """Answer with a list that was made before the last event."""
        text = route.fetch().text()
        assert 'data-show="step">12<' in text
        route.fulfill(content_type="text/html", body=text.replace('data-show="step">12<', 'data-show="step">7<'))

    page.route("**/runs?*", answer_late)
    page.route("**/runs", answer_late)
    page.evaluate(f"{line}.dataset.before = 'yes'")
    seen.desk.note("run.checkpointed")
    _wait(page, f"{line}.dataset.before === undefined")
    _wait(page, f"{line}.querySelector('[data-show=step]').textContent === '12'")


def _load(page: Any, path: str) -> float:
    """Open a page and return the seconds that it took, which are more beside other work."""
    began = time.monotonic()
    page.goto(path)
    return time.monotonic() - began


def _check_prompt(took_s: float, loading_s: float, page: Any) -> None:
    """Check that a change shows within 1.5 seconds, beside a page's loading before or after it."""
    assert took_s < 1.5 + max(loading_s, _load(page, page.url)), took_s


def test_a_revocation_shows_on_a_units_open_page_within_a_second(seen: Seen) -> None:
    page, site = seen.page, seen.desk.site
    seen.sign_in("legal")
    loading_s = _load(page, "/releases/legal/labels")
    assert page.locator(".tile .figure").first.inner_text() == "yes"
    order = site.order(RevokeAdapter, "rita", **site.on_adapter(1), reason=site.text("It answers names."))
    site.ordered(AdapterRevoked(policy=site.in_force), order)
    seen.desk.note("adapter.revoked", "adapter:clauses@1")  # as the service's own appends do
    began = time.monotonic()
    _wait(page, "document.querySelector('.tile .figure').textContent === 'no'")
    took_s = time.monotonic() - began
    assert "revoked by entry" in page.locator(".reasons").first.inner_text()
    _check_prompt(took_s, loading_s, page)


def test_a_suspension_shows_within_a_second_and_its_chips_fit_a_narrow_screen(seen: Seen) -> None:
    page, site = seen.page, seen.desk.site
    seen.sign_in("rita")
    loading_s = _load(page, "/releases/legal/labels")
    site.suspend(served_model="labels")
    seen.desk.note("release.suspended", "adapter:clauses@1", "unit:legal")  # as the service's own appends do
    began = time.monotonic()
    page.get_by_text("suspended for legal/labels by rita").wait_for()
    took_s = time.monotonic() - began
    assert page.get_by_role("link", name="Resume").count() == 1
    _check_prompt(took_s, loading_s, page)
    for path in ("/releases/legal/labels", "/releases", "/adapters/clauses@1", "/adapters"):
        page.goto(path)
        for width, height in WIDTHS:
            page.set_viewport_size({"width": width, "height": height})
            assert "suspended for legal" in page.content()
            _check(page, f"{path} at {width} px")


def test_a_sign_out_ends_the_streams_of_every_tab(seen: Seen) -> None:
    page = seen.page
    with page.expect_response("**/changes/events**"):
        seen.sign_in("olga")
    other = seen.context.new_page()
    other.goto("/home")
    other.get_by_role("button", name="Sign out").click()
    other.wait_for_url("**/sign-in")
    seen.desk.note("adapter.revoked")
    page.get_by_role("heading", name="Sign in").wait_for()
    seen.wrong.clear()  # the browser says that the page was refused


@pytest.mark.parametrize("path", ["/sign-in", "/home", "/log", "/runs/r-000001"])
def test_the_first_page_is_quick_and_light_on_a_slow_machine(chromium: Any, desk: Console, path: str) -> None:
    """A cold cache and a processor four times slowed: under a second to paint, under 120 kB sent."""
    seen = Seen(chromium, desk)
    page = seen.page
    seen.sign_in("audrey")
    session = seen.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Emulation.setCPUThrottlingRate", {"rate": 4})
    received: list[int] = []
    session.on("Network.loadingFinished", lambda told: received.append(int(told["encodedDataLength"])))
    paint = "performance.getEntriesByName('first-contentful-paint')[0]"
    painted: list[float] = []
    while len(painted) < 5 and min(painted, default=1_000) >= 1_000:  # again, if other work took the processor
        session.send("Network.clearBrowserCache")
        received.clear()
        page.goto(path, wait_until="load")
        _wait(page, f"{paint} !== undefined")
        painted.append(page.evaluate(f"{paint}.startTime"))
        page.wait_for_timeout(200)
        assert sum(received) < 120_000, received
    seen.context.close()
    print(f"{path}: {sum(received):,} bytes, painted after {min(painted):.0f} ms")
    assert min(painted) < 1_000, painted


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_removed_entry_leads_to_its_archive(chromium: Any, home: Path, scheme: str) -> None:
    with served(old_template(), home) as desk:
        data = archive(desk.site)
        at = desk.context.ledger.state.size - 1
        removed = next(i for i, line in enumerate(desk.context.ledger.entries()) if read_removed(line) is not None)
        seen = Seen(chromium, desk, color_scheme=scheme)
        seen.sign_in("audrey")
        for width, height in WIDTHS:
            seen.page.set_viewport_size({"width": width, "height": height})
            seen.page.goto(f"/log/{removed}")
            _check(seen.page, f"a removed entry at {width} px")
            seen.page.get_by_role("link", name="in the list").click()
            seen.page.wait_for_url(f"**/archives?before={at + 1}#{at}")
            assert digest_bytes(data) in seen.page.locator("tr:target").inner_text()
            _check(seen.page, f"archives at {width} px")
        seen.page.get_by_role("link", name=str(at), exact=True).click()
        seen.page.get_by_role("heading", name=f"Entry {at}").wait_for()
        seen.context.close()
        assert seen.wrong == []
