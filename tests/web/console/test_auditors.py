"""The auditor's pages: the log narrowed by what it counts, the past by a slider or without a script, and the banner."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.queries.could_load import CouldLoad
from appliance.domain.queries.periods import could_load_during, is_same
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.cosignature import witness_vkey_of
from appliance.formats.signatures.keys import generate_ed25519
from appliance.web.console.auditors import could_load
from appliance.web.console.core.shell import log_state
from appliance.workflows.queries import spans
from appliance.workflows.queries.spans import could_load_between, could_load_piece
from tests.kit.console import Browser, Console, console
from tests.kit.founded import policy_set

PAGES = ("/log", "/log/5", "/past", "/could-load", "/checkpoint")
"""Those of the group Audit, and an entry's."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with console("serving", tmp_path_factory.mktemp("c") / "h") as made:
        yield made


@pytest.fixture(scope="module")
def auditor(desk: Console) -> Browser:
    return desk.signed_in("audrey")


def facets(browser: Browser, **query: str) -> dict[str, dict[str, int]]:
    found = browser.get(f"/log.json?{urlencode(query)}").json()["facets"]
    return {one["name"]: {value["value"]: value["count"] for value in one["values"]} for one in found}


def test_each_count_is_what_the_search_finds_that_it_leads_to(desk: Console, auditor: Browser) -> None:
    for query in ({}, {"unit": "legal"}, {"type": "review.recorded"}, {"actor": "olga", "outcome": "success"}):
        found = facets(auditor, **query)
        assert found and not found.keys() & query.keys()
        for name, values in found.items():
            for value, count in values.items():
                entries = auditor.get(f"/log.json?{urlencode({**query, name: value})}").json()["entries"]
                assert len(entries) == min(count, 50), (query, name, value)


def test_subjects_that_a_search_shows_are_counted_and_narrow_it_together(auditor: Browser) -> None:
    found = facets(auditor, type="review.recorded")["subject"]
    assert "adapter:clauses@1" in found and not any(one.startswith(("order:", "request:")) for one in found)
    text = auditor.get("/log?subject=unit:legal&type=review.recorded").text
    assert "subject=unit%3Alegal&amp;subject=adapter%3Aclauses%401" in text
    both = auditor.get("/log?subject=unit:legal&subject=adapter:clauses@1").text
    assert '<input type="hidden" name="subject" value="adapter:clauses@1">' in both


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"type": "review.recorded"},
        {"outcome": "success"},
        {"outcome": "denied"},
        {"actor": "olga", "unit": "legal"},
    ],
)
def test_a_search_is_headed_by_the_count_of_what_it_found(
    query: dict[str, str], desk: Console, auditor: Browser
) -> None:
    value = auditor.get(f"/log.json?{urlencode(query)}").json()
    size, wanted = desk.context.ledger.state.size, value["count"]
    assert len(value["entries"]) == min(wanted, 50) and not value["is_least"]
    text = " ".join(auditor.get(f"/log?{urlencode(query)}").text.split())
    assert (f"{size:,} entries<" if not query else f"{wanted:,} of {size:,} entries fit this search") in text
    assert 'href="/log.csv' in text[text.index('id="found"') :], "the links are those of the search"


def test_a_search_that_finds_nothing_counts_nothing(auditor: Browser) -> None:
    assert facets(auditor, actor="nobody") == {}


def test_units_get_no_count_in_any_form(desk: Console) -> None:
    unit = desk.signed_in("legal")
    assert [unit.get(path).status_code for path in ("/log", "/log.json", "/log.csv")] == [403] * 3


def test_a_span_read_piece_by_piece_has_the_answers_of_the_whole_span(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with console("serving", tmp_path / "h") as desk:
        desk.site.export(valid_until=add_seconds(desk.site.now, 1))
        desk.site.seal(desk.site.train(), version=2)
        desk.site.review("rita", "privacy", 2, unit="legal")
        revoked = desk.site.revoke("raul").index
        until = desk.site.now
        whole = could_load_between(desk.context, "legal", "0", until)["periods"]
        points = ("0", until)
        offline = could_load_during(lambda: desk.site.entries, desk.site.documents.get, "legal", points, until)
        assert [(one["as_of"], one["at"]) for one in whole] == [(p.as_of, p.answer.at) for p in offline.periods]
        for most, changes in ((24, 300), (1, 300), (3, 4), (24, 1)):
            monkeypatch.setattr(spans, "MOST_CHANGES", changes)
            found, since, pieces = list[tuple[int, CouldLoad]](), "0", 0
            while True:
                piece, later = could_load_piece(desk.context, "legal", since, until, most)
                found += [one for one in piece if not found or not is_same(one[1], found[-1][1])]
                pieces += 1
                if later is None:
                    break
                since = later
            assert [(as_of, answer.at) for as_of, answer in found] == [(one["as_of"], one["at"]) for one in whole]
            assert [one.could_load for one in found[-1][1].tasks] == [False] and found[-1][0] == revoked
            assert pieces > 1 or (most, changes) == (24, 300)


def test_a_span_is_paged_on_its_page_and_in_each_form(
    desk: Console, auditor: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(could_load, "MOMENTS", 5)
    counts, since = list[int](), "0"
    while since is not None:
        found = auditor.get(f"/could-load.json?unit=legal&since={since}").json()
        counts += [len(one["candidates"]) for one in found["periods"]]
        since = found["later"]
    assert sorted(set(counts)) == [0, 1] and counts == sorted(counts)
    page = auditor.get("/could-load?unit=legal&since=0").text
    assert "<span>Next</span>" in page and 'href="/could-load?unit=legal&amp;since=' in page
    begins = desk.context.ledger.state.size - 2
    (row,) = csv.DictReader(io.StringIO(auditor.get(f"/could-load.csv?unit=legal&since={begins}").text))
    assert (row["as_of"], row["adapter"], row["could_load"]) == (str(begins), "clauses@1", "yes")
    for wrong in ("unit=legal&since=0&at=3", "unit=legal&until=5", "unit=legal&since=2999-01-01"):
        assert auditor.get(f"/could-load.json?{wrong}").status_code == 400, wrong


def test_the_past_is_a_form_that_works_without_a_script_and_a_slider_over_every_entry(
    desk: Console, auditor: Browser
) -> None:
    size = desk.context.ledger.state.size
    text = auditor.get("/past?kind=principal").text
    slider = re.search(r'<input type="range" name="at" min="0" max="(\d+)" value="(\d+)"', text)
    assert slider is not None and tuple(map(int, slider.groups())) == (size - 1, size - 1)
    form = text[text.index('<form class="facets" method="get" action="/past"') :]
    assert 'data-hx-get="/past"' in form and '<button type="submit">' in form.split("</form>")[0]
    seen = [len(auditor.get(f"/past.json?kind=principal&at={at}").json()["things"]) for at in (0, 3, size - 1)]
    assert seen == sorted(seen) and seen[0] == 2 < seen[-1]


def test_every_page_says_how_many_entries_are_checkpointed_and_when(desk: Console, auditor: Browser) -> None:
    for path in PAGES:
        text = auditor.get(path).text
        assert f'<b class="num">{desk.context.ledger.state.size}</b> entries' in text, path
        assert "no witnesses" in text and "is-behind" not in text


def test_every_page_says_how_old_the_witnesses_are_and_is_red_once_they_are_behind(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        names = ("witness.example/w1", "witness.example/w2")
        keys = {name: generate_ed25519() for name in names}
        vkeys = tuple(witness_vkey_of(name, key) for name, key in keys.items())
        desk.site.adopt(policy_set(witnesses=vkeys, witness_quorum=1, witness_lifetime_s=3_600))
        browser = desk.signed_in("audrey")

        def told(path: str) -> tuple[str, bool, bool]:
            text = browser.get(path).text
            line = re.search(r'<p class="logline[^>]*>(.*?)</p>', text, re.DOTALL)
            assert line is not None
            said = " ".join(re.sub("<[^>]*>", "", line[1]).split())
            return said, 'class="logline is-behind"' in text, "lacks the witnesses that policy requires" in text

        assert all(told(path)[1:] == (True, True) for path in PAGES)
        cosign(desk, keys, names[0])
        for path in PAGES:
            said, behind, banner = told(path)
            # One of two has never cosigned: that is said in red, though policy asks for one alone.
            assert "1 of 2 witnesses, one never cosigned" in said and (behind, banner) == (True, False), said
        cosign(desk, keys, names[1])
        for path in PAGES:
            said, behind, banner = told(path)
            assert re.search(r"2 of 2 witnesses, the oldest \d+ s ago$", said) and not behind and not banner, said
        later = parse_time(desk.site.now) + timedelta(seconds=7_200)
        desk.context.clock = lambda: later
        # The session has ended by then: the state is asked as a page asks it.
        state = log_state(desk.context)
        assert state.is_behind and state.cosigned == 0 and "expected 1 cosignatures since" in state.against[0]


def cosign(desk: Console, keys: dict[str, Any], name: str) -> None:
    body, documents = desk.site.cosigned(keys[name], name)
    desk.site.add(body, documents=documents)
