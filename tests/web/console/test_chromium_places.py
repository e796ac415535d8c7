"""In real Chromium: orders that begin on the page of what they are about, with a filled form, signed with a passkey."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.runs.training import Train
from appliance.web.console.operators.records import read_order
from tests.kit.chromium import Tab, browser, served
from tests.kit.console import Console
from tests.kit.founded import policy_set
from tests.web.console.test_browser import _axe
from tests.web.console.test_chromium import enrolled, newest, press_sign, signed_in, wait_for_lines

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def launched() -> Iterator[Any]:
    with browser() as made:
        yield made


@pytest.fixture
def desk(home: Path) -> Iterator[Console]:
    with served("sealed", home) as made:
        made.site.adopt(policy_set(passkeys_on_localhost=True))
        yield made


def _with_passkey(desk: Console, launched: Any, name: str) -> Tab:
    tab = signed_in(desk, launched, name)
    tab.authenticator()
    enrolled(desk, tab, name)
    return tab


def _sign(tab: Tab, then: str = "**/signed/*") -> None:
    tab.page.get_by_role("button", name="Show what is signed").click()
    tab.page.get_by_text("You are about to sign").wait_for()
    wait_for_lines(tab)
    press_sign(tab)
    tab.page.wait_for_url(then)


def test_an_operator_cancels_a_run_on_its_page_and_starts_it_again(desk: Console, launched: Any) -> None:
    run = desk.site.request_run()
    tab = _with_passkey(desk, launched, "olga")
    tab.page.goto(f"/runs/{run}")
    tab.page.get_by_role("link", name="Cancel").click()
    _sign(tab)
    assert newest(desk).type == "run.cancelled"
    tab.page.goto(f"/runs/{run}")
    assert "Cancelled by olga" in tab.page.locator(".banner").inner_text()
    assert tab.page.locator("[data-plot]").count() == 0 and _axe(tab.page) == []
    tab.page.get_by_role("link", name="Start again with these values").click()
    _sign(tab)
    # A worker may have started the run already, so that the newest entry is not its request.
    first, second = desk.context.ledger.state.runs.values()[-2:]
    assert first.id == run and isinstance(read_order(desk.context, second), Train)
    assert read_order(desk.context, first).recipe == read_order(desk.context, second).recipe
    assert tab.errors == []


def test_an_administrator_revokes_a_key_from_the_person_s_page(desk: Console, launched: Any) -> None:
    tab = _with_passkey(desk, launched, "anna")
    tab.page.goto("/people/raul")
    assert _axe(tab.page) == []
    tab.page.get_by_role("link", name="Revoke key file").click()
    _sign(tab)
    key = desk.context.ledger.state.keys.get(desk.site.keys["raul"].keyid)
    assert newest(desk).type == "key.revoked" and key is not None and key.revoked is not None
    tab.page.goto("/people/raul")
    assert "revoked by entry" in tab.page.locator("#keys").inner_text()


def test_the_runs_of_a_sweep_are_signed_from_its_plan(desk: Console, launched: Any) -> None:
    tab = _with_passkey(desk, launched, "olga")
    tab.page.goto("/start-sweep")
    tab.page.get_by_label("Name of the adapter").fill("tried")
    tab.page.get_by_label("Base").select_option("smollm2")
    tab.page.get_by_label("Dataset").select_option("clauses@1")
    tab.page.get_by_label("Ranks").fill("8, 16")
    tab.page.get_by_role("button", name="Show the runs").click()
    for left in (2, 1):
        tab.page.get_by_role("link", name="Sign run").nth(left - 1).wait_for()
        assert tab.page.get_by_role("link", name="Sign run").count() == left and _axe(tab.page) == []
        tab.page.get_by_role("link", name="Sign run").first.click()
        _sign(tab, "**/start-sweep?*")
    tab.page.get_by_role("link", name="Follow the sweep").click()
    tab.page.locator("#list tbody tr").nth(1).wait_for()
    assert tab.page.locator("#list tbody tr").count() == 2
    tab.page.locator("main").get_by_role("link", name="Compare runs").click()
    tab.page.get_by_role("heading", name="Compare runs").wait_for()
    assert "rank" in tab.page.locator("main").inner_text() and tab.errors == []
