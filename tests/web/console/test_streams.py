"""Events for open pages: sent within a second, resumed after a break, and ended with the session."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from appliance.domain.core.entry import parse_entry
from appliance.domain.queries.unit_reading import find_unit_reader
from appliance.errors import BadInput, NotAuthenticated, RateLimited
from appliance.web.console.core import events, middleware
from appliance.web.console.core.events import RecentEntries, ServerSentEvent, follow, follow_as_unit, stream
from appliance.web.console.core.middleware import STREAMS_OF_ONE, ConsoleLimitsMiddleware
from appliance.web.console.core.security import ConsoleOrigin
from appliance.web.console.operators import live
from scripts.kit.log_builder import stage
from tests.kit.console import Console, console

RUN = "r-000001"


@pytest.fixture
def desk(home: Path) -> Iterator[Console]:
    with console("trained", home) as made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "TICK_S", 0.005)
    monkeypatch.setattr(events, "QUIET_S", 0.02)


def _frame(step: int, **more: Any) -> dict[str, Any]:
    told = {
        **{"frame": "step", "step": step, "steps": 40, "loss": "1.5", "learning_rate": "0.0002", "grad_norm": "0.5"},
        **{"tokens": 100 * step, "trained_tokens": 10 * step, "spike": None, "validation_loss": None},
        **{"seconds": f"{step}.0", "peak_bytes": 1 << 30},
    }
    return {**told, **more}


def _parse(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


def _follow(desk: Console, after: str = "") -> ServerSentEvent | None:
    return live.follow(desk.context, RUN)(after)


def test_a_run_is_followed_from_its_first_step_and_each_step_is_told_once(desk: Console) -> None:
    first = _follow(desk)
    assert first is not None and first.data["points"] == []
    for step in (1, 2):
        desk.context.progress.publish(RUN, _frame(step))
    second = _follow(desk, first.id)
    assert second is not None and [point[0] for point in second.data["points"]] == [1, 2]
    assert _follow(desk, second.id) is None
    desk.context.progress.publish(RUN, _frame(3, validation_loss="1.25"))
    third = _follow(desk, second.id)
    assert third is not None and third.data["points"] == [(3, 1.5, 1.25, 0.0002, 0.5, 3.0, 1 << 30)]
    assert (third.data["step"], third.data["steps"], third.data["left_s"]) == (3, 40, 37.0)
    assert third.data["tokens_s"] == 100.0 and not third.data["fresh"]


def test_an_id_of_another_life_of_the_service_begins_from_the_first_step(desk: Console) -> None:
    first = _follow(desk)
    assert first is not None
    desk.context.began = "2030-01-01T00:00:00.000Z"
    again = _follow(desk, first.id)
    assert again is not None and again.data["fresh"]
    assert _follow(desk, "../../etc") is not None


def test_the_stream_of_an_ended_run_ends_with_its_last_event(desk: Console) -> None:
    for step in range(1, 4):
        desk.context.progress.publish(RUN, _frame(step))
    desk.context.progress.end(RUN)
    browser = desk.signed_in("olga")
    answer = browser.get(f"/runs/{RUN}/events")
    (event,) = _parse(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert event["data"]["last"] and [point[0] for point in event["data"]["points"]][-3:] == [1, 2, 3]
    resumed = browser.get(f"/runs/{RUN}/events", **{"Last-Event-ID": event["id"]})
    assert _parse(resumed.text)[0]["data"]["points"] == []
    assert browser.get("/runs/r-999999/events").status_code == 404


def test_the_list_of_runs_is_told_how_far_each_is_and_continues_after_a_break(desk: Console) -> None:
    state = desk.context.ledger.state
    row = state.runs.get(RUN)
    assert row is not None
    state.runs.set(RUN, row.model_copy(update={"status": "running"}))
    for step in range(1, 31):
        desk.context.progress.publish(RUN, _frame(step, peak_bytes=step << 30))
    find = live.follow_all(desk.context)
    first = find("")
    assert first is not None and find(first.id) is None, "nothing is told twice"
    told = first.data["runs"][RUN]
    assert (told["step"], told["steps"], told["loss"], told["peak_bytes"]) == (30, 40, 1.5, 30 << 30)
    assert told["tokens_s"] == 100.0 and told["left_s"] == 10.0
    desk.context.progress.publish(RUN, _frame(31))
    second = find(first.id)
    assert second is not None and second.data["runs"][RUN]["step"] == 31
    (running,) = desk.signed_in("olga").get("/runs.json").json()["running"]
    progress = running["progress"]
    assert progress["step"] == 31 and progress["loss"] == 1.5
    assert desk.signed_in("legal").get("/runs/events").status_code == 403
    desk.context.progress.publish(RUN, {"frame": "progress", "done": 3, "total": 9})
    assert live.read_step_progress(desk.context, RUN).detail == "evaluated 3 of 9 rows"


def test_a_run_without_a_step_has_no_pace(desk: Console) -> None:
    assert live.read_step_progress(desk.context, "r-000009") == live.StepProgress()


def test_a_long_curve_is_thinned_to_what_a_screen_shows() -> None:
    steps = [_frame(step, validation_loss="1.0" if step == 777 else None) for step in range(1, 10_001)]
    told = live.progress_of(steps)
    assert len(told["points"]) <= live.MOST_POINTS + 2
    assert told["points"][0][0] == 1 and told["points"][-1][0] == 10_000
    assert 777 in [point[0] for point in told["points"]]


def test_a_private_run_has_points_without_a_loss_and_no_time_that_is_left() -> None:
    told = live.progress_of([_frame(step, loss=None, seconds="0.000", peak_bytes=0) for step in (1, 2)])
    assert [point[:3] for point in told["points"]] == [(1, None, None), (2, None, None)]
    assert (told["tokens_s"], told["left_s"], told["step"]) == (None, None, 2)


async def _take(answer: Any, until: int) -> list[str]:
    found = []
    async for text in answer.body_iterator:
        found.append(text)
        if len(found) >= until:
            break
    return found


def test_a_units_page_is_told_of_entries_that_the_unit_may_read_and_of_no_number(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with console("serving", home) as desk:
        reader = find_unit_reader(desk.context.ledger.state, "sales")
        assert reader is not None
        entries = [entry for entry in map(parse_entry, desk.site.entries) if entry.type not in events._QUIET_TYPES]
        hidden = [entry for entry in entries if not reader.may_read(entry)]
        changes = RecentEntries()
        find = follow_as_unit(desk.context, changes, "sales", "")
        first = find("")
        assert first == ServerSentEvent("", "changed", {}) and find("") is None
        for entry in hidden:
            changes.note(entry)
        assert len(hidden) > 5 and find("") is None
        changes.note(entries[0])
        assert find("") == first and find("") is None
        changes.note(entries[0])
        changes.note(hidden[0])
        assert find("") == first, "a readable entry before a hidden one is not missed"
        monkeypatch.setattr(events, "KEPT_S", 0.02)
        desk.changes.note(hidden[0])
        told = {name: _parse(desk.signed_in(name).get("/changes/events").text)[0] for name in ("legal", "olga")}
        assert told["legal"]["id"] == "" and re.fullmatch(r"[0-9a-f]{16}\.[1-9][0-9]*", told["olga"]["id"])


@pytest.mark.parametrize("name", ["olga", "legal"])
def test_a_change_between_a_page_and_its_stream_is_told(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(events, "KEPT_S", 0.02)
    with console("serving", home) as desk:
        readable = parse_entry(desk.site.entries[0])
        browser = desk.signed_in(name)
        desk.changes.note(readable)

        def follow_from(moment: str) -> list[str]:
            return [one["event"] for one in _parse(browser.get(f"/changes/events?since={moment}").text)]

        found = re.search(r'<body data-since="([^"]+)">', browser.get("/home").text)
        assert found is not None and follow_from(found[1]) == []
        desk.changes.note(readable)
        assert follow_from(found[1]) == ["changed"]
        for unknown in ("", "undefined", RecentEntries().moment()):
            assert follow_from(unknown) == ["changed"]


def test_a_page_that_is_older_than_a_minute_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = RecentEntries()
    moment = changes.moment()
    assert changes.count_at(moment) == 0
    monkeypatch.setattr(events, "_CONNECT_S", 0.0)
    assert changes.count_at(moment) is None
    assert follow(changes, moment)("") == ServerSentEvent(changes.event_id(0), "changed", {})


def test_nothing_is_sent_after_the_session_has_ended() -> None:
    """Not even the event that was due: the session is looked at before it."""
    changes, stands = RecentEntries(), [True]

    def check() -> None:
        if not stands[0]:
            raise NotAuthenticated("session: ended")

    def find(after: str) -> ServerSentEvent | None:
        count = str(changes.count)
        return None if after == count else ServerSentEvent(count, "changed", {})

    async def run() -> list[str]:
        answer = stream("", find, check)
        iterator = answer.body_iterator
        told = [await anext(iterator), await anext(iterator)]
        stands[0] = False
        changes.note(parse_entry(stage("serving").entries[-1]))
        told += [text async for text in iterator]
        return told

    told = asyncio.run(run())
    assert told[1].startswith("id: 0\nevent: changed") and told[2:] == ["event: end\ndata: {}\n\n"]


def test_a_quiet_stream_previews_at_its_session_too() -> None:
    def check() -> None:
        raise NotAuthenticated("session: ended")

    async def run() -> list[str]:
        return [text async for text in stream("", lambda after: None, check).body_iterator]

    assert asyncio.run(run())[-1] == "event: end\ndata: {}\n\n"


def test_a_quiet_stream_is_kept_open_and_ends_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT_S", 0.05)

    async def run() -> list[str]:
        return [text async for text in stream("", lambda after: None, lambda: None).body_iterator]

    told = asyncio.run(run())
    assert told[0] == "retry: 2000\n\n" and set(told[1:]) == {": open\n\n"}


def test_entries_that_no_open_page_shows_wake_nobody(desk: Console) -> None:
    before = desk.changes.count
    desk.signed_in("olga")
    assert desk.changes.count == before
    desk.note("adapter.revoked")
    assert desk.changes.count == before + 1


@pytest.mark.parametrize(
    ("form", "most"),
    [
        ("", STREAMS_OF_ONE),
        ("/sign/train", middleware.FORMS_OF_ONE),
        ("page", middleware.PAGES_OF_ONE),
        ("/exports/ledger.tar", 1),
    ],
)
def test_one_person_does_not_take_what_all_need(form: str, most: int) -> None:
    """Streams, forms and pages, whatever the number of their sessions."""

    async def run() -> None:
        release, begun = asyncio.Event(), list[str]()

        async def follow(scope: Scope, receive: Receive, send: Send) -> None:
            begun.append(scope["path"])
            await release.wait()
            await Response("followed")(scope, receive, send)

        app = ConsoleLimitsMiddleware(follow, _desk())
        hers = [asyncio.create_task(_ask(app, f"rita-{number}", form)) for number in range(most)]
        await _settle(lambda: len(begun) == most)
        assert await _ask(app, "rita-x", form) == 429
        others = [asyncio.create_task(_ask(app, cookie, form)) for cookie in ("raul-1", "nobody-1")]
        await _settle(lambda: len(begun) == most + 2)
        release.set()
        assert await asyncio.gather(*hers, *others) == [200] * (most + 2)
        assert await _ask(app, "rita-1", form) == 200

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("form", ["page", "/sign-in/code"])
def test_browsers_without_a_session_wait_for_their_turn_and_those_of_one_address_for_each_other(form: str) -> None:
    async def run() -> None:
        release, begun = asyncio.Event(), list[str]()

        async def follow(scope: Scope, receive: Receive, send: Send) -> None:
            begun.append(scope["client"][0])
            await release.wait()
            await Response("followed")(scope, receive, send)

        app = ConsoleLimitsMiddleware(follow, _desk())
        many = [asyncio.create_task(_ask(app, "", form, address="10.0.0.1")) for _ in range(64)]
        await _settle(lambda: len(begun) >= middleware.TURNS_OF_ONE)
        another = asyncio.create_task(_ask(app, "", form, address="10.0.0.2"))
        gone = asyncio.create_task(_ask(app, "", form, address="10.0.0.1", leaves=True))
        await _settle(lambda: "10.0.0.2" in begun)
        assert begun == ["10.0.0.1"] * middleware.TURNS_OF_ONE + ["10.0.0.2"]
        assert middleware.TURNS_OF_ONE < middleware.TURNS
        release.set()
        assert await asyncio.gather(*many, another) == [200] * 65
        assert await gone == 0, "a client that left gets no page"

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_browser_without_a_session_waits_some_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "TURN_S", 0.2)

    async def run() -> None:
        release = asyncio.Event()

        async def follow(scope: Scope, receive: Receive, send: Send) -> None:
            await release.wait()
            await Response("followed")(scope, receive, send)

        app = ConsoleLimitsMiddleware(follow, _desk())
        held = [asyncio.create_task(_ask(app, "", "page")) for _ in range(middleware.TURNS_OF_ONE)]
        await asyncio.sleep(0)
        assert await _ask(app, "", "page") == 429
        release.set()
        assert await asyncio.gather(*held) == [200] * len(held)
        assert await _ask(app, "", "page") == 200

    asyncio.run(asyncio.wait_for(run(), 60))


async def _settle(holds: Callable[[], bool]) -> None:
    """Let each request look at its session, which is done in threads, until this holds, and then a moment more."""
    while not holds():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)


def _desk() -> Any:
    def viewer(request: Request) -> SimpleNamespace:
        name = request.cookies["appliance-8330"].partition("-")[0]
        if name == "nobody":
            raise NotAuthenticated("session: expected one that is open, got another")
        return SimpleNamespace(name=name)

    return SimpleNamespace(site=ConsoleOrigin("http://localhost:8330"), refuse=_refuse, viewer=viewer)


@pytest.mark.thorough
def test_slow_forms_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "FORM_S", 0.5)

    async def run() -> None:
        app = ConsoleLimitsMiddleware(Response("signed in"), _desk())
        slow = [asyncio.create_task(_ask(app, "", "/sign-in/code", slow=True)) for _ in range(2 * middleware.FORMS)]
        await asyncio.sleep(0)
        assert await _ask(app, "", "/sign-in/code") == 200
        assert await asyncio.gather(*slow) == [429] * len(slow), "refused in time"

    asyncio.run(asyncio.wait_for(run(), 60))


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RateLimited | BadInput), error
    return Response(error.message, 429)


async def _ask(
    app: ConsoleLimitsMiddleware,
    cookie: str,
    form: str = "",
    *,
    slow: bool = False,
    leaves: bool = False,
    address: str = "10.0.0.1",
) -> int:
    """Return the status of a request for the stream of changes, for a page, or of a form, which never comes if it is
    `slow`. A client that `leaves` after its request may get none, which is 0."""
    found: list[int] = []
    sent: list[str] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            found.append(message["status"])

    async def receive() -> Message:
        if slow:
            await asyncio.sleep(60)
        sent.append("http.disconnect" if leaves and sent else "http.request")
        return {"type": sent[-1], "body": b"", "more_body": False}

    headers = [(b"host", b"localhost:8330")]
    headers += [(b"cookie", f"appliance-8330={cookie}".encode())] if cookie else []
    method, path = ("POST", form) if form.startswith("/") else ("GET", "/home" if form else "/changes/events")
    method = "GET" if path.startswith(middleware.DOWNLOADS) else method
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
    await app({**scope, "client": (address, 1)}, receive, send)
    return found[0] if found else 0
