"""Long requests are read beside the engine's steps: slots take turns, and what is cancelled is told to nobody."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import BadInput, Conflict
from appliance.worker.reader import Reader


class Desk:
    """A reader, and what it told."""

    def __init__(self) -> None:
        self.told: queue.Queue[str | None] = queue.Queue()
        self.reader = Reader(self.told.put)
        self.begun: queue.Queue[str] = queue.Queue()
        self.go_on = threading.Event()

    def put(self, name: str, slot: str, read: Callable[[], Any] | None = None) -> None:
        self.reader.put(name, slot, read or (lambda: name))

    def hold(self) -> None:
        """The reader is at work on a request of a slot of its own until it may go on."""

        def read() -> Any:
            self.begun.put("held")
            self.go_on.wait(30)
            return "held"

        self.put("held", "of its own", read)
        self.begun.get(timeout=30)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_slots_take_turns_each_in_its_own_order(desk: Desk) -> None:
    desk.hold()
    for name in ("a1", "a2", "a3", "b1"):
        desk.put(name, name[0])
    desk.go_on.set()
    assert [desk.told.get(timeout=30) for _ in range(5)] == ["held", "a1", "b1", "a2", "a3"]
    assert desk.reader.take("a2") == ("a", "a2")
    assert desk.reader.take("a2") is None, "once"


def test_what_is_cancelled_is_not_read_and_not_told(desk: Desk) -> None:
    """Whether it waits, is being read or was read."""
    desk.hold()
    desk.put("waiting", "a")
    desk.put("other", "a")
    assert desk.reader.cancel("waiting")
    assert desk.reader.cancel("held")
    assert not desk.reader.cancel("nobody")
    desk.go_on.set()
    assert desk.told.get(timeout=30) == "other"
    assert desk.reader.cancel("other")
    assert desk.reader.take("other") is None
    assert desk.told.empty()


def test_a_slot_keeps_its_turn_where_one_of_its_requests_is_cancelled(desk: Desk) -> None:
    desk.hold()
    for name in ("a1", "a2", "b1", "b2"):
        desk.put(name, name[0])
    assert desk.reader.cancel("a2")
    desk.go_on.set()
    assert [desk.told.get(timeout=30) for _ in range(4)] == ["held", "a1", "b1", "b2"]


def test_a_slot_that_is_emptied_gives_up_all_of_its_own(desk: Desk) -> None:
    desk.hold()
    for name in ("a1", "a2", "b1"):
        desk.put(name, name[0])
    assert desk.reader.cancel_slot("a") == ["a1", "a2"]
    desk.go_on.set()
    assert [desk.told.get(timeout=30) for _ in range(2)] == ["held", "b1"]


def test_a_refusal_is_raised_by_whoever_takes_it_and_the_next_is_read(desk: Desk) -> None:
    def refuse() -> Any:
        raise BadInput("labels: expected fewer, got many")

    desk.put("bad", "a", refuse)
    assert desk.told.get(timeout=30) == "bad"
    with pytest.raises(BadInput, match="expected fewer"):
        desk.reader.take("bad")
    desk.put("good", "a")
    assert desk.told.get(timeout=30) == "good"


def test_a_name_that_is_being_read_is_refused(desk: Desk) -> None:
    desk.hold()
    with pytest.raises(Conflict, match="expected a new name"):
        desk.put("held", "a")
    desk.go_on.set()


def test_a_defect_in_the_reader_is_told_as_its_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every later long request would wait for ever."""
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    def fail() -> Any:
        raise AssertionError("a defect")

    desk.put("bad", "a", fail)
    assert desk.told.get(timeout=30) is None
