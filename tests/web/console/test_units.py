"""A unit's person asks an adapter and sees requests and limits, by the rules of the units' API."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from appliance.domain.core.entry import parse_entry
from appliance.domain.data.kinds import DatasetDescription, InstructedDataset
from appliance.domain.queries.proofs import parse_record, verify_record, verify_text
from appliance.errors import RateLimited
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import parse_envelope
from appliance.store.database.engine import connect_writer, open_engine
from appliance.store.database.sessions import SessionRow, digest_of
from appliance.store.database.tables import sessions
from appliance.web.console.core import middleware
from appliance.web.console.units import requests
from appliance.web.operations.limits import UnitLimits
from appliance.workflows.governance import RefusedRequest
from appliance.workflows.serving import serve
from tests.kit.console import Browser, Console, console
from tests.kit.log_policies import quorum_policy

SECRET = "Who pays for the broken lamp?"


@pytest.fixture
def desk(home: Path) -> Iterator[Console]:
    with console("serving", home) as made:
        yield made


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the served model's answers texts, though the log's own dataset has labels."""
    teaching = InstructedDataset(DatasetDescription("instruction", ()), "Be brief.")
    monkeypatch.setattr(serve, "read_training_description", lambda context, dataset: teaching)


def _ask(browser: Browser, text: str = SECRET, **fields: str) -> httpx.Response:
    return browser.post("/ask", {"csrf": browser.csrf, "served_model": "labels", "text": text, **fields})


def _file(answer: httpx.Response, name: str) -> bytes:
    found = re.search(rf'href="data:[^,]*,([^"]+)" download="[^"]*{name}"', answer.text)
    assert found is not None, answer.text
    return base64.b64decode(html.unescape(found[1]))


def _entries(desk: Console, since: int) -> list[Any]:
    ledger = desk.context.ledger
    return [parse_entry(ledger.entry_bytes(index)) for index in range(since, ledger.state.size)]


def test_a_classification_shows_the_likeliest_label_and_its_record_holds(desk: Console) -> None:
    browser, size = desk.signed_in("legal"), desk.context.ledger.state.size
    answer = _ask(browser)
    assert answer.status_code == 200 and "<h2>A</h2>" in answer.text
    record = parse_record(_file(answer, "record.json"))
    answered = verify_record(record, quorum_policy([desk.context.ledger.state.site.log_key], [], 0))
    assert (answered.body.unit, answered.body.served_model, answered.body.adapter) == ("legal", "labels", "clauses@1")
    assert desk.answers.engine.asked[0]["labels"] == ["A", "B"]
    admitted, finished = _entries(desk, size)
    assert (admitted.type, finished.type) == ("request.admitted", "request.finished")
    assert answered.entry.index == finished.index


def test_an_answer_in_words_is_saved_with_the_record_that_opens_it(desk: Console, speaking: None) -> None:
    browser = desk.signed_in("legal")
    answer = _ask(browser, system="Be brief.", max_tokens="9")
    assert "The parties agree." in answer.text
    answered = verify_record(
        parse_record(_file(answer, "record.json")), quorum_policy([desk.context.ledger.state.site.log_key], [], 0)
    )
    verify_text(answered, "answer", _file(answer, "answer.txt").decode())
    (asked,) = desk.answers.engine.asked
    assert asked["max_tokens"] == 9 and asked["kind"] == "generate"
    assert [message["content"] for message in asked["messages"]] == ["Be brief.", SECRET]


def test_the_log_says_which_session_asked_and_no_text(desk: Console) -> None:
    browser, size = desk.signed_in("legal"), desk.context.ledger.state.size
    assert _ask(browser).status_code == 200
    admitted = _entries(desk, size)[0]
    opened = next(parse_entry(data) for _, data in desk.context.ledger.find(types=["session.opened"], newest=True))
    session = parse_envelope(desk.context.ledger.documents_of(opened.index)["session"])
    assert admitted.body["token"] == session.pae_digest and admitted.body["application"] is None
    assert digest_bytes(browser.secret.encode()) != admitted.body["token"]
    log = b"".join(desk.context.ledger.entry_bytes(index) for index in range(desk.context.ledger.state.size))
    assert SECRET.encode() not in log
    for form in ("", ".json", ".csv"):
        assert SECRET not in browser.get(f"/requests{form}").text


def test_an_answer_counts_against_the_limits_of_the_units_programs(home: Path) -> None:
    with console("serving", home, limits=UnitLimits(concurrent=2, requests_per_minute=2, tokens_per_day=20)) as desk:
        browser = desk.signed_in("legal")
        left = {one["name"]: one["left"] for one in browser.get("/usage.json").json()["limits"]}
        assert left == {
            "requests at once": 2, "requests in a minute": 2, "tokens in a minute": None, "tokens in a day": 20
        }  # fmt: skip
        assert _ask(browser).status_code == 200
        value = browser.get("/usage.json").json()
        left = {one["name"]: one["left"] for one in value["limits"]}
        assert (left["requests at once"], left["requests in a minute"], left["tokens in a day"]) == (2, 1, 12)
        (row,) = value["answered"]
        assert (row["served_model"], row["complete"], row["tokens_read"], row["tokens_written"]) == ("labels", 1, 7, 1)
        assert _ask(browser).status_code == 200
        size = desk.context.ledger.state.size
        refused = _ask(browser)
        assert refused.status_code == 429 and "limit is reached" in refused.text and "retry-after" in refused.headers
        assert desk.context.ledger.state.size == size and len(desk.answers.engine.asked) == 2
        with desk.authenticator.counted() as counted:
            assert counted.units == {RefusedRequest("legal", "rate-limit"): 1}


def test_what_is_malformed_counts_as_at_the_units_api_and_is_never_asked(desk: Console, speaking: None) -> None:
    browser = desk.signed_in("legal")
    for fields, words in (
        ({"text": " "}, "your text: expected one"),
        ({"max_tokens": "0"}, "from 1 to 1024"),
        ({"max_tokens": "1e3"}, "from 1 to 1024"),
        ({"colour": "red"}, "colour"),
        ({"served_model": "payroll"}, "expected one released to legal"),
    ):
        answer = _ask(browser, **fields)
        assert answer.status_code in (400, 404) and words in answer.text, fields
        assert SECRET not in answer.text
    assert desk.answers.engine.asked == []


@pytest.mark.thorough
def test_nobody_but_the_unit_asks_and_no_other_site_makes_it(desk: Console) -> None:
    for name in ("rita", "anna", "audrey", "otto"):
        assert _ask(desk.signed_in(name)).status_code == 403
    browser = desk.signed_in("legal")
    fields = {"served_model": "labels", "text": SECRET}
    assert browser.post("/ask", fields).status_code == 403
    csrf = browser.csrf
    foreign = browser.post("/ask", {**fields, "csrf": csrf}, **{"Sec-Fetch-Site": "cross-site"})
    assert foreign.status_code == 403 and desk.answers.engine.asked == []


def test_a_revoked_session_or_adapter_answers_nothing(desk: Console) -> None:
    browser = desk.signed_in("legal")
    csrf = browser.csrf
    desk.site.revoke_tokens("legal", issued_before=desk.context.now(desk.context.ledger.state))
    refused = browser.post("/ask", {"csrf": csrf, "served_model": "labels", "text": SECRET})
    assert refused.status_code == 401 and desk.answers.engine.asked == []
    later = desk.signed_in("legal")
    desk.site.revoke("raul")
    assert _ask(later).status_code == 404
    assert "None of your served models is active now" in later.get("/ask").text


def test_a_row_that_somebody_adds_to_the_database_reads_and_asks_for_nothing(desk: Console) -> None:
    """Neither for an administrator nor for a unit, whose own session is copied under another cookie."""
    browser, size = desk.browser(), desk.context.ledger.state.size
    desk.token("legal")
    (copied,) = desk.context.sessions.of("legal")
    anna = SessionRow("anna", desk.site.keys["anna"].keyid, "2099-01-01T00:00:00.000Z", 1)
    engine = open_engine(f"sqlite:///{desk.site.home / 'ledger.db'}")
    with closing(connect_writer(engine)) as connection, connection.begin():
        for row in (copied, anna):
            values = {"digest": digest_of("browser", row.principal), **vars(row)}
            connection.execute(insert(sessions), values)
    engine.dispose()
    for name in ("legal", "anna"):
        browser.take(name)
        assert browser.get("/home.json").status_code == 401
        answer = browser.post("/ask", {"csrf": "", "served_model": "labels", "text": SECRET})
        assert answer.status_code == 401 and desk.answers.engine.asked == []
    assert [entry.type for entry in _entries(desk, size)] == ["session.opened"]


def test_the_history_is_the_units_own_a_page_at_a_time(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.web.console.core.page.PAGE_ROWS", 2)
    browser = desk.signed_in("legal")
    for _ in range(3):
        _ask(browser)
    first = browser.get("/requests.json").json()
    assert len(first["rows"]) == 2 and first["running"] == 1, "the log has one that nobody ended"
    second = browser.get(f"/requests.json?before={first['next']}").json()
    names = [one["request"] for one in first["rows"] + second["rows"]]
    assert len(set(names)) == len(names) >= 3 and second["next"] is None
    rows = list(csv.DictReader(io.StringIO(browser.get("/requests.csv").text)))
    assert [row["request"] for row in rows] == names[:2] and rows[0]["outcome"] == "success"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("stop", "stop"),
        ("failure", "cut off or failed; the client got the reason"),
        ("interrupted", "who asked went away, or the service ended"),
    ],
)
def test_how_a_request_ended_is_said_and_not_only_its_outcome_again(desk: Console, reason: str, words: str) -> None:
    assert _ask(desk.signed_in("legal")).status_code == 200
    entry = json.loads(next(data for _, data in desk.context.ledger.find(types=["request.finished"], newest=True)))
    entry["body"]["finish_reason"] = reason
    assert requests.describe_row(encode_canonical(entry)).detail == words


def test_two_units_that_use_all_places_leave_a_third_its_share(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "count_units", lambda state: 3)
    served: Any = SimpleNamespace(context=desk.context)
    places = middleware.ConsoleLimitsMiddleware(desk.app, served)._places({"method": "POST", "path": middleware.ASK})
    with ExitStack() as held:
        for unit in ("sales", "claims") * (middleware.ASKS // 2):
            held.enter_context(places.take(unit))
        held.enter_context(places.take("legal"))
        for unit in ("sales", "legal"):
            with pytest.raises(RateLimited, match="answers in the console: expected at most 4"), places.take(unit):
                pass
