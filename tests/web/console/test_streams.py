"""Events for open pages: told within a second, gone on with after a break, and ended with the session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from appliance.errors import BadInput, NotAuthenticated, TooMany
from appliance.web.console.core import events
from appliance.web.console.core import gate as gates
from appliance.web.console.core.events import Changes, Event, stream
from appliance.web.console.core.gate import STREAMS_OF_ONE, Gate
from appliance.web.console.core.security import Site
from appliance.web.console.operators import live
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


def _follow(desk: Console, after: str = "") -> Event | None:
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


def test_the_list_of_runs_is_told_how_far_each_is_and_goes_on_after_a_break(desk: Console) -> None:
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
    assert running["step"] == 31 and running["loss"] == 1.5
    assert desk.signed_in("legal").get("/runs/events").status_code == 403
    desk.context.progress.publish(RUN, {"frame": "progress", "done": 3, "total": 9})
    assert live.pace_of(desk.context, RUN).detail == "evaluated 3 of 9 rows"


def test_a_run_without_a_step_has_no_pace(desk: Console) -> None:
    assert live.pace_of(desk.context, "r-000009") == live.Pace()


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


def test_nothing_is_sent_after_the_session_has_ended() -> None:
    """Not even the event that was due: the session is looked at before it."""
    changes, stands = Changes(), [True]

    def check() -> None:
        if not stands[0]:
            raise NotAuthenticated("session: ended")

    def find(after: str) -> Event | None:
        count = str(changes.count)
        return None if after == count else Event(count, "changed", {})

    async def run() -> list[str]:
        answer = stream("", find, check)
        iterator = answer.body_iterator
        told = [await anext(iterator), await anext(iterator)]
        stands[0] = False
        changes.note("adapter.revoked")
        told += [text async for text in iterator]
        return told

    told = asyncio.run(run())
    assert told[1].startswith("id: 0\nevent: changed") and told[2:] == ["event: end\ndata: {}\n\n"]


def test_a_quiet_stream_looks_at_its_session_too() -> None:
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
    desk.changes.note("adapter.revoked")
    assert desk.changes.count == before + 1


def test_one_session_does_not_take_the_streams_of_all() -> None:
    """Whose cookie it is is not asked before: strangers, who have none, share what one session has."""

    async def run() -> None:
        release = asyncio.Event()

        async def follow(scope: Scope, receive: Receive, send: Send) -> None:
            await release.wait()
            await Response("followed")(scope, receive, send)

        desk: Any = SimpleNamespace(site=Site("http://localhost:8330"), refuse=_refuse)
        gate = Gate(follow, desk)
        open_ones = [asyncio.create_task(_ask(gate, "hers")) for _ in range(STREAMS_OF_ONE)]
        await asyncio.sleep(0)
        assert await _ask(gate, "hers") == 429
        his = asyncio.create_task(_ask(gate, "his"))
        await asyncio.sleep(0)
        release.set()
        assert await asyncio.gather(*open_ones, his) == [200] * (STREAMS_OF_ONE + 1)
        assert await _ask(gate, "hers") == 200

    asyncio.run(asyncio.wait_for(run(), 20))


def test_slow_forms_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "FORM_S", 0.5)

    async def run() -> None:
        desk: Any = SimpleNamespace(site=Site("http://localhost:8330"), refuse=_refuse)
        gate = Gate(Response("signed in"), desk)
        slow = [asyncio.create_task(_ask(gate, "", "/sign-in/code", slow=True)) for _ in range(2 * gates.FORMS)]
        await asyncio.sleep(0)
        assert await _ask(gate, "", "/sign-in/code") == 200
        assert await asyncio.gather(*slow) == [429] * len(slow), "refused in time"

    asyncio.run(asyncio.wait_for(run(), 20))


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, TooMany | BadInput), error
    return Response(error.message, 429)


async def _ask(gate: Gate, cookie: str, form: str = "", *, slow: bool = False) -> int:
    """The status of a request for the stream of changes, or of a form, which never comes where it is `slow`."""
    found: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            found.append(message["status"])

    async def receive() -> Message:
        if slow:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"host", b"localhost:8330"), (b"cookie", f"appliance-8330={cookie}".encode())]
    method, path = ("POST", form) if form else ("GET", "/changes/events")
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
    await gate(scope, receive, send)
    return found[0]
