"""Every address that a browser can request gives a page or a refusal, and never a defect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from appliance.web.console.core.page import Page
from appliance.web.console.pages import PAGES
from tests.kit.console import Browser, Console, console

HOSTILE_TO_EACH_FORM = ("\0", "\N{RIGHT-TO-LEFT OVERRIDE}", "\r\nX-Evil: 1")
HOSTILE = (
    *("", "-1", "0", "9" * 25, "9" * 5000, "\N{FULLWIDTH DIGIT ONE}", "1e9", "%s", "../..", "a/b", "a:b"),
    *("labels@1", "clauses@1", "clauses@0", "__proto__", "'\"<>", "x" * 3000),
    *("2026-02-30", "9999-12-31T23:59:59.999Z", "sha256:x", ":", *HOSTILE_TO_EACH_FORM),
)
"""Words for a page. Its JSON and its CSV read an address by the same function, so they get fewer."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with console("released", tmp_path_factory.mktemp("h") / "home") as made:
        yield made


@pytest.fixture(scope="module")
def browsers(desk: Console) -> dict[str, Browser]:
    """One of each person's, who has a limited number of sessions."""
    return {name: desk.signed_in(name) for name in ("audrey", "legal")}


def _addresses(page: Page, text: str) -> Iterator[str]:
    named = re.findall(r"\{([a-z]+)\}", page.path)
    path = page.path
    for name in named:
        path = path.replace(f"{{{name}}}", quote(text or "x", safe=""))
    if named:
        yield path
    usual = re.sub(r"\{(name)\}", "clauses@1", page.path)
    usual = re.sub(r"\{[a-z]+\}", "1", usual)
    yield from (f"{usual}?{name}={quote(text)}" for name in page.query.model_fields if name not in named)


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["", ".json", ".csv"])
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_no_word_in_an_address_is_a_defect(browsers: dict[str, Browser], page: Page, form: str) -> None:
    browser = browsers["audrey" if "auditor" in page.seen_by else "legal"]
    for text in HOSTILE_TO_EACH_FORM if form else HOSTILE:
        for address in _addresses(page, text):
            path, _, query = address.partition("?")
            answer = browser.get(f"{path}{form}{'?' if query else ''}{query}")
            assert answer.status_code in (200, 400, 403, 404), address[:200]
            assert "x-evil" not in answer.headers


@pytest.mark.parametrize("text", ["9" * 5000, "-1", "\N{FULLWIDTH DIGIT ONE}", "1.0", "999999"])
def test_an_entry_that_is_none_has_no_document_and_no_proof(
    desk: Console, browsers: dict[str, Browser], text: str
) -> None:
    for browser, status in ((browsers["audrey"], 404), (browsers["legal"], 403), (desk.browser(), 401)):
        for rest in ("documents/order", "proof"):
            assert browser.get(f"/log/{quote(text)}/{rest}").status_code == status
