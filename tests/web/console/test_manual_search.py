"""The manual in Chromium under the console's content security policy: search, width of a phone, accessibility."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from appliance.web.console import app
from appliance.web.console.core import manual
from scripts.manual.build import build_manual
from tests.kit.chromium import Tab, browser, open_tab, served
from tests.web.console.test_browser import _axe

pytestmark = pytest.mark.outside


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manual") / "site"
    build_manual(folder)
    return folder


@pytest.fixture(scope="module")
def tab(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """Yield a browser without a session, at the first page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "manual_routes", lambda: manual.manual_routes(site))
        with served("staffed", tmp_path_factory.mktemp("home")) as desk, browser() as launched:
            made = open_tab(launched, desk.url)
            made.page.goto(f"{desk.url}/docs/")
            yield made


def test_a_search_leads_to_a_section(tab: Tab) -> None:
    tab.page.fill("#query", "legal hold")
    tab.page.wait_for_selector("#found a")
    assert "Sections: " in tab.page.inner_text("#found")
    tab.page.fill("#query", "word-that-no-page-has")
    tab.page.wait_for_function("document.querySelector('#found p').textContent.startsWith('No section')")
    tab.page.fill("#query", "tiers materiality")
    tab.page.wait_for_selector("#found a")
    tab.page.press("#query", "Enter")
    tab.page.wait_for_url("**/docs/*/**#*")


def test_a_page_that_is_opened_as_a_file_leads_to_others_and_offers_no_search(tab: Tab, site: Path) -> None:
    with closing(tab.page.context.browser.new_page()) as page:
        page.goto(f"{(site / 'reference/errors/index.html').as_uri()}#conflict")
        assert not page.is_visible("#query")
        page.click("a.brand")
        page.wait_for_url((site / "index.html").as_uri())
        assert page.is_visible("article h1")


def test_nothing_was_refused_and_no_other_host_was_asked(tab: Tab) -> None:
    address = tab.page.url.split("/docs/")[0]
    for path in ("concepts/", "reference/cli/", "tutorials/reviewer/", "formats/ledger/"):
        tab.page.goto(f"{address}/docs/{path}")
    assert tab.errors == []
    assert tab.hosts == {address.removeprefix("http://")}


@pytest.mark.parametrize("path", ["", "concepts/", "reference/policy/", "guides/units/", "formats/ledger/"])
def test_a_page_fits_a_phone(tab: Tab, path: str) -> None:
    tab.page.set_viewport_size({"width": 390, "height": 844})
    tab.page.goto(f"{tab.page.url.split('/docs/')[0]}/docs/{path}")
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("path", ["", "concepts/", "reference/policy/", "tutorials/operator/", "operations/service/"])
def test_a_page_is_accessible(tab: Tab, path: str) -> None:
    tab.page.set_viewport_size({"width": 1280, "height": 900})
    tab.page.goto(f"{tab.page.url.split('/docs/')[0]}/docs/{path}")
    assert _axe(tab.page) == []
