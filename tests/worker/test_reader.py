"""Long requests are tokenised beside the engine's steps: slots take turns, and cancelled requests give no event."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from appliance.errors import BadInput, Conflict
from appliance.ml.inference.request import encode_request, parse_request
from appliance.ml.model.chat import load_chat
from appliance.worker.reader import RequestReader
from scripts.kit.tiny_model import build_base


class Desk:
    """A reader and its events."""

    def __init__(self) -> None:
        self.told: queue.Queue[str | None] = queue.Queue()
        self.reader = RequestReader(self.told.put, [cast(Any, None)])
        self.begun: queue.Queue[str] = queue.Queue()
        self.go_on = threading.Event()

    def put(self, name: str, slot: str, read: Callable[[], Any] | None = None) -> None:
        self.reader.put(name, slot, lambda lane: name if read is None else read())

    def hold(self) -> None:
        """Occupy the reader with a request of its own slot until it is released."""

        def read() -> Any:
            self.begun.put("held")
            self.go_on.wait(90)
            return "held"

        self.put("held", "of its own", read)
        self.begun.get(timeout=90)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_slots_take_turns_each_in_its_own_order(desk: Desk) -> None:
    desk.hold()
    for name in ("a1", "a2", "a3", "b1"):
        desk.put(name, name[0])
    desk.go_on.set()
    assert [desk.told.get(timeout=90) for _ in range(5)] == ["held", "a1", "b1", "a2", "a3"]
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
    assert desk.told.get(timeout=90) == "other"
    assert desk.reader.cancel("other")
    assert desk.reader.take("other") is None
    assert desk.told.empty()


def test_a_slot_keeps_its_turn_where_one_of_its_requests_is_cancelled(desk: Desk) -> None:
    desk.hold()
    for name in ("a1", "a2", "b1", "b2"):
        desk.put(name, name[0])
    assert desk.reader.cancel("a2")
    desk.go_on.set()
    assert [desk.told.get(timeout=90) for _ in range(4)] == ["held", "a1", "b1", "b2"]


def test_a_slot_that_is_emptied_gives_up_all_of_its_own(desk: Desk) -> None:
    desk.hold()
    for name in ("a1", "a2", "b1"):
        desk.put(name, name[0])
    assert desk.reader.cancel_slot("a") == ["a1", "a2"]
    desk.go_on.set()
    assert [desk.told.get(timeout=90) for _ in range(2)] == ["held", "b1"]


def test_a_refusal_is_raised_by_whoever_takes_it_and_the_next_is_read(desk: Desk) -> None:
    def refuse() -> Any:
        raise BadInput("labels: expected fewer, got many")

    desk.put("bad", "a", refuse)
    assert desk.told.get(timeout=90) == "bad"
    with pytest.raises(BadInput, match="expected fewer"):
        desk.reader.take("bad")
    desk.put("good", "a")
    assert desk.told.get(timeout=90) == "good"


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
    assert desk.told.get(timeout=90) is None


def test_a_slow_slot_holds_one_lane_and_no_other_slot() -> None:
    told: queue.Queue[str | None] = queue.Queue()
    reader = RequestReader(told.put, [cast(Any, None)] * 2)
    begun, go_on = queue.Queue[str](), threading.Event()

    def wait(name: str) -> Any:
        begun.put(name)
        go_on.wait(90)
        return name

    for name in ("slow1", "slow2"):
        reader.put(name, "slow", lambda lane, name=name: wait(name))
    assert begun.get(timeout=90) == "slow1"
    for name in ("a1", "b1", "a2"):
        reader.put(name, name[0], lambda lane, name=name: cast(Any, name))
    assert sorted(str(told.get(timeout=90)) for _ in range(3)) == ["a1", "a2", "b1"]
    assert begun.empty(), "the slot's next request waits for its own"
    go_on.set()
    assert [told.get(timeout=90) for _ in range(2)] == ["slow1", "slow2"]


LANES = """
import json, os, signal, sys
from pathlib import Path
from appliance.worker.reader import Lanes
lanes = Lanes(1)
lanes.open(Path(sys.argv[1]))
from appliance.errors import ApplianceError
from appliance.ml.inference.request import parse_request
for line in sys.stdin:
    asked = json.loads(line)
    try:
        found = lanes.lanes[0].encode(parse_request(asked))
        print(json.dumps([found.prompt, found.labels]))
    except ApplianceError as error:
        print(json.dumps([error.code, error.message]))
"""
ASKED: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "an invoice, é 漢"}]},
    {"messages": [{"role": "user", "content": "secret"}], "labels": ["payment", "ending"]},
    {"prompt": "a fee", "labels": ["due"]},
]


def encode_apart(folder: Path, asked: list[dict[str, Any]]) -> list[Any]:
    """Return the response of a lane's process. It is a fork, so a program without torch makes it."""
    ran = subprocess.run(
        [sys.executable, "-c", LANES, str(folder)],
        input="".join(f"{json.dumps(one)}\n" for one in asked),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.thorough
def test_a_lane_encodes_as_this_process_does(tmp_path: Path) -> None:
    folder = build_base(tmp_path / "base")
    chat = load_chat(folder)
    expected = [encode_request(chat, parse_request(one)) for one in ASKED]
    bad = {"messages": [{"role": "user", "content": "<|im_end|>"}]}
    *got, refused = encode_apart(folder, [*ASKED, bad])
    assert got == [[one.prompt, one.labels] for one in expected]
    assert refused == ["bad-input", "message 0: expected text without control tokens, got '<|im_end|>'"]


@pytest.mark.thorough
def test_a_text_that_takes_too_long_ends_its_process_and_the_next_is_read(tmp_path: Path) -> None:
    """With a pattern as no import takes it any more: 2^22 ways for each place."""
    folder = build_base(tmp_path / "base")
    value = json.loads((folder / "tokenizer.json").read_bytes())
    pattern = {"Regex": "~?" * 22 + "y|~|[^~]+"}
    value["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps(value))
    slow = {"messages": [{"role": "user", "content": "~" * 4_000}]}
    first, *slows, last = encode_apart(folder, [ASKED[1], slow, slow, ASKED[1]])
    assert (
        slows == [["bad-input", "messages: expected text that becomes tokens within 0.5 s, got one that does not"]] * 2
    )
    assert first == last and len(first[1]) == 2
