"""Every page, in each of its forms, to each role."""

from __future__ import annotations

import csv
import html
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from appliance.addresses import PREFIX, address_of, address_of_error, address_of_refusal
from appliance.domain.core.entry import EntryDraft, record_refusals
from appliance.domain.governance.countersignature import OrderRefused
from appliance.domain.releases.approval import ORDERED_THE_RUN
from appliance.formats.signatures.dsse import encode_envelope
from appliance.web.console.core.page import EVERYBODY, PEOPLE, Page
from appliance.web.console.core.render import SECTIONS
from appliance.web.console.pages import PAGES
from appliance.web.console.reviewers.adapter import Tab
from scripts.references.pages import ROLES
from tests.domain.runs.test_sweeps import VALIDATING
from tests.kit.console import Browser, Console, console
from tests.kit.founded import FoundedSite

PATHS = {
    "/log/{index}": ["/log/0", "/log/5", "/log/20"],
    "/runs/{run}": ["/runs/r-000001"],
    "/compare": ["/compare", "/compare?run=r-000001"],
    "/bases/{name}": ["/bases/smollm2"],
    "/sweeps/{sweep}": ["/sweeps/tried-1"],
    "/datasets/{name}": ["/datasets/clauses@1"],
    "/validation-sets/{name}": ["/validation-sets/exam@1"],
    "/adapters/{name}": [f"/adapters/clauses@1?tab={tab}" for tab in get_args(Tab)],
    "/sign/{action}": ["/sign/review", "/sign/train?given=recipe.rank:8", "/sign/countersign"],
    "/releases/{unit}/{served_model}": ["/releases/legal/labels"],
    "/people/{name}": ["/people/rita", "/people/legal"],
    "/effective-access": [
        "/effective-access",
        "/effective-access?unit=legal",
        "/effective-access?unit=legal&at=3",
        "/effective-access?unit=legal&since=0",
    ],
    "/signed/{index}": ["/signed/5", "/signed/6", "/signed/21", "/signed/26", "/signed/28"],
    "/past": ["/past", "/past?kind=principal&at=5", "/past?kind=run"],
    "/health": ["/health", "/health?tab=storage", "/health?tab=checks"],
    "/reviews": ["/reviews", "/reviews?everyone=true"],
    "/log": ["/log", "/log?type=order.refused", "/log?actor=olga&outcome=success", "/log?before=4", "/log?after=3"],
}
"""Addresses of each page whose path alone is none, or that has more than one side."""
CASES = [(page, path) for page in PAGES for path in PATHS.get(page.path, [page.path])]
NAMES = {
    "administrator": "anna",
    "auditor": "audrey",
    "operator": "olga",
    "reviewer": "rita",
    "release-owner": "otto",
    "unit": "legal",
}


def lay_inputs(site: FoundedSite) -> None:
    """Add what the addresses name beside the stage: a validation set, and a run of a sweep."""
    site.import_set()
    site.request_run(recipe=VALIDATING, sweep="tried-1")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with console("serving", tmp_path_factory.mktemp("c") / "h") as made:
        lay_inputs(made.site)
        yield made


@pytest.fixture(scope="module")
def browsers(desk: Console) -> dict[str, Browser]:
    """One signed in for each role."""
    return {kind: desk.signed_in(name) for kind, name in NAMES.items()}


def _as(path: str, form: str) -> str:
    head, mark, query = path.partition("?")
    return f"{head}.{form}{mark}{query}"


@pytest.mark.thorough
@pytest.mark.parametrize(("page", "path"), CASES, ids=[path for _, path in CASES])
def test_a_page_is_shown_to_whoever_may_see_it_in_each_form_and_to_nobody_else(
    browsers: dict[str, Browser], page: Page, path: str
) -> None:
    for kind, browser in browsers.items():
        answers = {form: browser.get(_as(path, form) if form else path) for form in ("", "json", "csv")}
        if page.table is None:
            assert answers.pop("csv").status_code in (400, 403, 404)
        expected = 200 if kind in page.seen_by else 403
        got = {form: answer.status_code for form, answer in answers.items()}
        assert got == dict.fromkeys(answers, expected), (kind, answers[""].text)
        if expected == 200:
            assert answers[""].headers["content-type"] == "text/html; charset=utf-8"
            assert isinstance(answers["json"].json(), dict)
            if "csv" in answers:
                assert next(csv.reader(io.StringIO(answers["csv"].text)))


def test_every_role_is_a_persons_or_a_units() -> None:
    """A role that came later would see nothing."""
    assert {role.partition(":")[0] for role in ROLES} == set(EVERYBODY) == {*PEOPLE, "unit"}


LINKED = {
    "auditor": {"/log/0", "/runs/r-000001", "/adapters/clauses@1", "/people/rita"},
    "unit": {"/ask", "/requests", "/sessions", "/releases/legal/labels"},
}
"""Some of the pages that each role reaches by links from its home."""


@pytest.mark.thorough
@pytest.mark.parametrize("kind", LINKED)
def test_every_link_of_every_page_leads_somewhere(kind: str, browsers: dict[str, Browser]) -> None:
    browser = browsers[kind]
    seen, waiting = set[tuple[str, ...]](), ["/home"]
    while waiting:
        address = waiting.pop()
        path, _, query = address.partition("?")
        address_kind = (path, *sorted(part.partition("=")[0] for part in query.split("&")))
        if address_kind in seen:
            continue
        seen.add(address_kind)
        answer = browser.get(address)
        assert answer.status_code == 200, (address, answer.text)
        if answer.headers["content-type"].startswith("text/html"):
            found = re.findall(r'(?:href|src|action)="(/[^"#]*)', answer.text)
            # tests/test_manual.py follows the links of the manual.
            waiting += [html.unescape(link) for link in found if link != "/sign-out" and not link.startswith(PREFIX)]
    assert LINKED[kind] <= {path for path, *_ in seen}


def test_a_page_links_to_its_section_of_the_manual(browsers: dict[str, Browser]) -> None:
    for address, template in (("/home", "home/home.html"), ("/sign/review", "signing/form.html")):
        text = browsers["reviewer"].get(address).text
        assert f'<a href="{address_of(SECTIONS[template])}"' in text


def test_a_refusal_links_to_its_codes_in_the_manual(browsers: dict[str, Browser]) -> None:
    refused = browsers["auditor"].get("/start-sweep")
    assert refused.status_code == 403
    assert f'href="{address_of_error("denied")}"' in refused.text
    assert f'href="{address_of_refusal("role-missing")}"' in refused.text


def test_a_list_is_a_page_long_and_its_next_page_continues(desk: Console, browsers: dict[str, Browser]) -> None:
    import appliance.web.console.auditors.log as log

    browser, size, found = browsers["auditor"], desk.context.ledger.state.size, list[int]()
    before: int | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "PAGE_ROWS", 7)
        while True:
            value = browser.get(f"/log.json{'' if before is None else f'?before={before}'}").json()
            found += [row["index"] for row in value["entries"]]
            assert len(value["entries"]) <= 7
            before = value["older"]
            if before is None:
                break
        newer = browser.get("/log.json?after=3").json()
    assert found == list(range(size - 1, -1, -1))
    assert [row["index"] for row in newer["entries"]] == list(range(10, 3, -1))
    assert (newer["older"], newer["newer"]) == (4, 10)


def test_a_search_for_a_name_that_the_log_does_not_know_says_so(browsers: dict[str, Browser]) -> None:
    answer = browsers["auditor"].get("/log?actor=ogla")
    assert answer.status_code == 200 and "No entry fits this search." in answer.text
    assert "did you mean olga?" in answer.text


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/log?since=yesterday", "expected a day such as 2026-11-24"),
        ("/log?before=x", "before"),
        ("/log?colour=red", "colour"),
        ("/log?actor=a&actor=b", "expected one, got 2"),
        ("/runs/r-1", "run"),
        ("/runs/r-999999", "expected the id of a recorded run"),
        ("/adapters/clauses@9", "clauses@9"),
        ("/past?kind=wether", "a kind of object"),
        ("/log/999999", "expected one of the log"),
        ("/log/99999999999999999999999999", "index"),
        ("/log/99999999999999999999999999/documents/order", "expected one of the log"),
        ("/log/0/documents/nothing", "expected policy, got nothing"),
        ("/past?at=99999999999999999999999999", "at"),
        ("/effective-access?unit=legal&at=99999999999999999999999999", "at"),
        ("/runs/r-000001?run=r-000002", "in the path alone"),
        ("/compare?run=r-000001&run=r-000001", "each run once"),
        ("/nowhere", "expected a page"),
    ],
)
def test_an_address_that_does_not_fit_is_answered_with_what_does_not(
    browsers: dict[str, Browser], path: str, words: str
) -> None:
    answer = browsers["auditor"].get(path)
    assert answer.status_code in (400, 404), answer.text
    assert words in answer.text and "What to do" in answer.text


def test_a_number_beyond_the_log_is_only_the_end_of_it(browsers: dict[str, Browser]) -> None:
    far = 10**26
    assert browsers["auditor"].get(f"/log.json?after={far}").json()["entries"] == []
    assert browsers["auditor"].get(f"/log.json?before={far}").json()["entries"] != []
    assert browsers["auditor"].get(f"/runs.json?before={far}").json()["rows"] != []


def test_a_document_is_downloaded_as_the_bytes_that_the_entry_binds(
    desk: Console, browsers: dict[str, Browser]
) -> None:
    answer = browsers["auditor"].get("/log/0/documents/policy")
    assert answer.content == desk.context.ledger.documents_of(0)["policy"]
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="entry-0-policy"'


def test_the_whole_log_is_downloaded_as_an_export(browsers: dict[str, Browser]) -> None:
    answer = browsers["auditor"].get("/exports/ledger.tar")
    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as export:
        assert len(export.getnames()) > 2


def test_a_refused_page_names_the_invariant_and_what_would_allow_it(browsers: dict[str, Browser]) -> None:
    answer = browsers["unit"].get("/log")
    assert answer.status_code == 403
    for words in ("legal is unit. This action needs", "Rule that no policy can relax", "two administrators grant"):
        assert words in answer.text


def test_a_refused_order_is_explained_on_the_page_of_its_entry(tmp_path: Path) -> None:
    refusals = record_refusals([ORDERED_THE_RUN("principal:olga")])
    with console("sealed", tmp_path / "h") as desk:
        order = desk.site.review_order("rita", "privacy")
        envelope = desk.site.sign(order)
        body = OrderRefused(order=envelope.pae_digest, action=order.action, code="denied", refusals=refusals)
        refused = desk.context.ledger.append(
            EntryDraft(
                type=body.type,
                actor="rita",
                subjects=(f"order:{envelope.pae_digest}",),
                outcome="denied",
                documents={"order": encode_envelope(envelope)},
                body=body,
            )
        ).entry
        text = desk.signed_in("audrey").get(f"/log/{refused.index}").text
    assert "olga ordered the training run" in text and "Ask another reviewer" in text


def test_a_blind_validation_set_is_listed_with_its_counts_and_no_row_of_it(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        desk.site.import_set()
        browser = desk.signed_in("vera")
        (one,) = browser.get("/data.json").json()["validation_sets"]
        assert one["name"] == "exam@1" and one["state"] is None
        assert browser.get("/data.csv").text.count("validation-set,exam@1") == 1
        assert "exam@1" in browser.get("/data").text and "exam" in browser.get("/imports").text


ELSEWHERE = {"/invitation", "/previews/", "/sign//", "/help/passkeys", "/log//proof", "/proof.html"}
"""Rows of the manual's table whose pages are routes of their own."""


def test_the_table_of_the_manual_has_each_page_and_its_readers() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "guides" / "console.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`/[^|]*) \| ([^|]+) \|", text, re.MULTILINE)
    told = {
        re.sub(r"[A-Z_]{2,}(@N)?", "", path): readers.strip()
        for paths, readers in rows
        for path in re.findall(r"`([^`]+)`", paths)
    }
    pages = {re.sub(r"\{\w+\}", "", page.path): page for page in PAGES}
    assert told.keys() - ELSEWHERE == pages.keys()
    words = {EVERYBODY: "everybody", PEOPLE: "people", ("operator",): "operators"}
    assert {path: told[path] for path in pages} == {
        path: words.get(page.seen_by, "units") for path, page in pages.items()
    }
