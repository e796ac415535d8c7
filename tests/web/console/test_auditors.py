"""The auditor's pages: the log narrowed by what it counts, the past by a slider or without a script, and the banner."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import add_seconds
from appliance.domain.core.state import State
from appliance.domain.queries.effective_access import UnitAccess
from appliance.domain.queries.periods import effective_access_during, is_same
from appliance.errors import BadInput
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import verify_inclusion
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.checkpoint import parse_checkpoint, witness_vkey_of
from appliance.formats.log.note import parse_note
from appliance.formats.signatures.keys import generate_ed25519
from appliance.web.console.auditors import effective_access
from appliance.web.console.core.render import find_log_condition
from appliance.workflows.queries import spans
from appliance.workflows.queries.spans import effective_access_between, effective_access_piece
from tests.kit.console import Browser, Console, console
from tests.kit.founded import policy_set
from tests.kit.old_records import archive, cosign_with, old_template

PAGES = ("/log", "/log/5", "/past", "/effective-access", "/archives", "/checkpoint")
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


@pytest.mark.thorough
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


def test_a_date_that_cannot_be_read_is_named_beside_its_field_and_kept(auditor: Browser) -> None:
    for name in ("since", "until"):
        answer = auditor.get(f"/log?type=review.recorded&{urlencode({name: '24/11/2026'})}")
        page = html.unescape(answer.text)
        assert answer.status_code == 400 and f'name="{name}" value="24/11/2026"' in page
        beside = re.search(rf'id="problem-{name}" role="alert">([^<]*)<', page)
        assert beside is not None and beside[1].startswith(f"{name}: expected a day such as 2026-11-24")
        assert "selected>review.recorded<" in page and "<tbody>" not in page
        for form in ("json", "csv"):
            assert auditor.get(f"/log.{form}?{urlencode({name: '24/11/2026'})}").status_code == 400
    assert 'role="alert"></span>' in auditor.get("/log?since=2026-11-24").text


@pytest.mark.parametrize(
    ("page", "query", "name"),
    [
        ("/effective-access", {"unit": "legal", "since": "24/11/2026"}, "since"),
        ("/effective-access", {"unit": "legal", "since": "1h", "until": "later"}, "until"),
        ("/effective-access", {"unit": "legal", "at": "yesterday"}, "at"),
        ("/effective-access", {"unit": "legal", "at": "now", "since": "1h"}, "at"),
        ("/effective-access", {"unit": "legal", "until": "now"}, "since"),
        ("/past", {"at": "yesterday"}, "at"),
    ],
)
def test_a_moment_that_cannot_be_read_is_named_beside_its_field_and_kept(
    auditor: Browser, page: str, query: dict[str, str], name: str
) -> None:
    answer = auditor.get(f"{page}?{urlencode(query)}")
    text = html.unescape(answer.text)
    assert answer.status_code == 400
    for field, value in query.items():
        assert (f"selected>{value}<" if field == "unit" else f'name="{field}" value="{value}"') in text
    beside = re.search(rf'id="problem-{name}" role="alert">([^<]*)<', text)
    assert beside is not None and beside[1].startswith(f"{name}: expected ")
    assert auditor.get(f"{page}.json?{urlencode(query)}").status_code == 400


def test_moments_are_typed_in_the_forms_of_the_command_line(desk: Console, auditor: Browser) -> None:
    released = next(n for n, data in enumerate(desk.site.entries) if parse_entry(data).type == "release.activated")
    day = parse_entry(desk.site.entries[released]).time[:10]
    for since in ("1h", day, str(released)):
        value = auditor.get(f"/effective-access.json?unit=legal&since={since}&until=now").json()
        assert released in [one["as_of"] for one in value["periods"]], since
    assert auditor.get("/effective-access.json?unit=legal&at=now").json()["candidates"]
    assert auditor.get("/past.json?at=now").json()["rows"]
    assert auditor.get("/log.json?type=release.activated&since=1h&until=now").json()["count"] == 1


def test_the_log_is_searched_by_a_response_s_id_or_by_a_name_alone(tmp_path: Path) -> None:
    with console("serving", tmp_path / "h") as desk:
        desk.site.add(desk.site.request(7))
        desk.site.add(desk.site.answered(7))
        auditor, number = desk.signed_in("audrey"), f"{7:032x}"
        for text in (f"chatcmpl-{number}", f"cmpl-{number}", number):
            found = auditor.get(f"/log.json?subject={text}").json()
            assert [one["type"] for one in found["entries"]] == ["request.finished", "request.admitted"]
        by_name, by_subject = (auditor.get(f"/log.json?subject={one}").json() for one in ("rita", "principal:rita"))
        assert by_name["count"] == by_subject["count"] > 0 and by_name["entries"] == by_subject["entries"]
        page = html.unescape(auditor.get("/log?subject=clauses@1").text)
        assert "expected its kind too, adapter:clauses@1 or dataset:clauses@1, got 'clauses@1'" in page
        assert 'name="subject" value="rita"' in auditor.get("/log?subject=rita").text


def test_a_decision_in_the_list_is_called_valid(auditor: Browser) -> None:
    assert "approved for legal, valid" in auditor.get("/log?type=review.recorded").text


def test_units_get_no_count_in_any_form(desk: Console) -> None:
    unit = desk.signed_in("legal")
    assert [unit.get(path).status_code for path in ("/log", "/log.json", "/log.csv")] == [403] * 3


@pytest.mark.thorough
def test_a_span_read_piece_by_piece_has_the_answers_of_the_whole_span(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with console("serving", tmp_path / "h") as desk:
        desk.site.export(valid_until=add_seconds(desk.site.now, 1))
        desk.site.seal(desk.site.train(), version=2)
        desk.site.review("rita", "privacy", 2, unit="legal")
        revoked = desk.site.revoke("raul").index
        until = desk.site.now
        whole = effective_access_between(desk.context, "legal", "0", until).periods
        points = ("0", until)
        offline = effective_access_during(lambda: desk.site.entries, desk.site.documents.get, "legal", points, until)
        assert [(one.as_of, one.answer.at) for one in whole] == [(p.as_of, p.answer.at) for p in offline.periods]
        for most, changes in ((24, 300), (1, 300), (3, 4), (24, 1)):
            monkeypatch.setattr(spans, "MOST_CHANGES", changes)
            found, since, pieces = list[tuple[int, UnitAccess]](), "0", 0
            while True:
                piece, later = effective_access_piece(desk.context, "legal", since, until, most)
                found += [one for one in piece if not found or not is_same(one[1], found[-1][1])]
                pieces += 1
                if later is None:
                    break
                since = later
            assert [(as_of, answer.at) for as_of, answer in found] == [(one.as_of, one.answer.at) for one in whole]
            assert [one.effective_access for one in found[-1][1].served_models] == [False] and found[-1][0] == revoked
            assert pieces > 1 or (most, changes) == (24, 300)


def test_a_span_with_too_many_entries_is_refused_before_its_rows_are_read(
    desk: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = spans.values_between
    monkeypatch.setattr(spans, "values_between", None)
    monkeypatch.setattr(spans, "MAX_MOMENTS", 2)
    with pytest.raises(BadInput, match="expected at most 2 moments at which an answer may change, got more"):
        effective_access_between(desk.context, "legal", "0", None)
    monkeypatch.setattr(spans, "values_between", values)
    monkeypatch.setattr(spans, "MAX_MOMENTS", 400)
    assert effective_access_between(desk.context, "legal", "0", None).periods


@pytest.mark.thorough
def test_a_span_is_paged_on_its_page_and_in_each_form(
    desk: Console, auditor: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "MOMENTS_OF_A_PIECE", 2)
    whole = auditor.get("/effective-access.json?unit=legal&since=0").json()
    assert [len(one["candidates"]) for one in whole["periods"]] == [0, 1] and whole["later"] is None
    page = auditor.get("/effective-access?unit=legal&since=0").text
    assert "clauses@1" in page and page.count("No release named an adapter") == 1
    assert "<span>Next</span>" not in page and "no other answer in this span" in page
    monkeypatch.setattr(effective_access, "PERIODS", 1)
    found, since = list[dict[str, Any]](), "0"
    while since is not None:
        piece = auditor.get(f"/effective-access.json?unit=legal&since={since}").json()
        found, since = [*found, *piece["periods"]], piece["later"]
    assert found == whole["periods"]
    page = auditor.get("/effective-access?unit=legal&since=0").text
    assert "<span>Next</span>" in page and 'href="/effective-access?unit=legal&amp;since=' in page
    begins = desk.context.ledger.state.size - 2
    (row,) = csv.DictReader(io.StringIO(auditor.get(f"/effective-access.csv?unit=legal&since={begins}").text))
    assert (row["as_of"], row["adapter"], row["effective_access"]) == (str(begins), "clauses@1", "yes")
    for wrong in ("unit=legal&since=0&at=3", "unit=legal&until=5", "unit=legal&since=2999-01-01"):
        assert auditor.get(f"/effective-access.json?{wrong}").status_code == 400, wrong


def test_an_approval_that_is_no_longer_valid_is_shown_with_its_reason(desk: Console, auditor: Browser) -> None:
    desk.site.revoke("raul")
    page = auditor.get("/effective-access?unit=legal").text
    assert "raul, who decided in entry 27, is no longer a reviewer of model-risk." in page
    (candidate,) = auditor.get("/effective-access.json?unit=legal").json()["candidates"]
    assert any(review["status"]["refusal"] for review in candidate["reviews"])


def test_a_page_of_a_span_ends_after_a_bounded_number_of_evaluations(
    desk: Console, auditor: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "MOST_EVALUATIONS", 3)
    evaluated = list[str]()

    def count(state: State, unit: str, now: str, *, others: bool = True) -> UnitAccess:
        evaluated.append(now)
        return spans_effective_access(state, unit, now, others=others)

    spans_effective_access = spans.effective_access
    monkeypatch.setattr(spans, "effective_access", count)
    page = auditor.get("/effective-access.json?unit=legal&since=0").json()
    assert len(evaluated) == 3 and page["later"] is not None
    assert "The rest of the span was not read yet" in auditor.get("/effective-access?unit=legal&since=0").text


def test_a_release_after_many_changes_without_access_is_on_the_first_page(
    desk: Console, auditor: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evaluations would not reach it one by one."""
    monkeypatch.setattr(spans, "MOST_EVALUATIONS", 2)
    first, second, *_ = auditor.get("/effective-access.json?unit=legal&since=0").json()["periods"]
    assert (first["candidates"], second["candidates"][0]["release_entry"]) == ([], second["as_of"])
    page = auditor.get("/effective-access?unit=legal&since=0").text
    assert page.count("nothing. No release named an adapter for the unit.") == 1
    desk.site.enrol("archive", "unit")
    alone = auditor.get("/effective-access.json?unit=archive&since=0").json()
    assert [one["candidates"] for one in alone["periods"]] == [[]] and alone["later"] is None


def test_the_past_is_a_form_that_works_without_a_script_and_a_slider_over_every_entry(
    desk: Console, auditor: Browser
) -> None:
    size = desk.context.ledger.state.size
    text = auditor.get("/past?kind=principal").text
    slider = re.search(r'<input type="range" name="at" min="0" max="(\d+)" value="(\d+)"', text)
    assert slider is not None and tuple(map(int, slider.groups())) == (size - 1, size - 1)
    form = text[text.index('<form class="facets" method="get" action="/past"') :]
    assert 'data-hx-get="/past"' in form and '<button type="submit">' in form.split("</form>")[0]
    seen = [len(auditor.get(f"/past.json?kind=principal&at={at}").json()["rows"]) for at in (0, 3, size - 1)]
    assert seen == sorted(seen) and seen[0] == 2 < seen[-1]


def test_every_page_says_how_many_entries_are_checkpointed_and_when(desk: Console, auditor: Browser) -> None:
    for path in PAGES:
        text = auditor.get(path).text
        assert f'<b class="num">{desk.context.ledger.state.size}</b> entries' in text, path
        assert "no witnesses" in text and "is-behind" not in text


@pytest.mark.thorough
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
        state = find_log_condition(desk.context)
        assert (
            state.is_behind
            and state.cosigned == 0
            and "Policy requires 1 witnesses that have cosigned the log since" in state.problems[0]
        )


# Archives.


@pytest.mark.thorough
def test_archives_are_listed_and_a_removed_entry_leads_to_its_own(tmp_path: Path) -> None:
    with console(old_template(), tmp_path / "h") as desk:
        auditor, request = desk.signed_in("audrey"), f"{1:032x}"
        assert "No records were removed from the log." in auditor.get("/archives").text
        removed = auditor.get(f"/log.json?subject={request}").json()["entries"][0]["index"]
        leaf = parse_entry(desk.context.ledger.entry_bytes(removed)).link
        data = archive(desk.site)
        at = desk.context.ledger.state.size - 1
        (row,) = csv.DictReader(io.StringIO(auditor.get("/archives.csv").text))
        assert (row["index"], row["count"], row["archive"]) == (str(at), "14", digest_bytes(data))
        page = auditor.get("/archives").text
        assert f'<tr id="{at}">' in page and "anna and ben" in page and digest_bytes(data) in page
        assert "previews, refusals, replays, requests" in page
        page = auditor.get(f"/log/{removed}").text
        assert "Removed from the log" in page and "anna and ben" in page and digest_bytes(data) in page
        assert f'href="/archives?before={at + 1}#{at}"' in page
        value = auditor.get(f"/log/{removed}.json").json()
        assert (value["leaf"], value["archive"]["index"]) == (leaf, at)
        proof = [bytes.fromhex(step) for step in value["proof"]]
        checkpoint = parse_checkpoint(parse_note(value["checkpoint"].encode()).text)
        verify_inclusion(bytes.fromhex(leaf[7:]), removed, checkpoint.size, proof, checkpoint.root)
        for path in (f"/log/{removed}/proof", f"/log/{removed}/documents/order"):
            assert auditor.get(path).status_code == 404
        page = auditor.get(f"/log?subject={request}").text
        assert f"the archive {digest_bytes(data)} has it" in page and '<a href="/archives">' in page
        assert "Every entry that fits this search was removed" in page and "No entry fits this search" not in page
        assert desk.signed_in("legal").get("/archives").status_code == 403


@pytest.mark.thorough
def test_archives_are_paged_from_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.web.console.core.page.PAGE_ROWS", 1)
    with console(old_template(), tmp_path / "h") as desk:
        for records in ("refusals", "requests"):
            archive(desk.site, (records,))
            cosign_with(desk.context, desk.site)
        auditor = desk.signed_in("audrey")
        first = auditor.get("/archives.json").json()
        assert (first["count"], first["removed"]) == (2, 8)
        assert [one["records"] for one in first["rows"]] == [["requests"]]
        assert f'href="/archives?before={first["next"]}"' in auditor.get("/archives").text
        second = auditor.get(f"/archives.json?before={first['next']}").json()
        assert [one["records"] for one in second["rows"]] == [["refusals"]] and second["next"] is None


def cosign(desk: Console, keys: dict[str, Any], name: str) -> None:
    body, documents = desk.site.cosigned(keys[name], name)
    desk.site.add(body, documents=documents)
