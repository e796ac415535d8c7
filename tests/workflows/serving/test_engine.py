"""When an engine ends, all waiting callers receive an error, whatever its worker leaves behind."""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import ApplianceError, RateLimited, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.workflows.serving import engine
from scripts.kit.waiting import wait_for

PASSING_S = 100.0
"""Seconds without a frame that are no silence yet."""


class FakeWorker:
    """A worker that is ready and then sends the given frames; None: it has ended; a number: seconds without a frame."""

    pid = 7

    def __init__(self) -> None:
        self.frames: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.frames.put({"frame": "ready"})
        self.sent: list[Any] = []
        self.now = time.monotonic()

    def send(self, header: Any, blob: bytes = b"") -> None:
        self.sent.append(header)

    def receive(self, timeout_s: float) -> Any:
        while isinstance(frame := self.frames.get(), float):
            self.now += frame
            if frame >= timeout_s:
                raise Unavailable("silent", code="worker-silent")
        return None if frame is None else (frame, b"")


@pytest.fixture
def serving(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[BaseException], tuple[engine.EngineProcess, FakeWorker]]]:
    """Yield a starter of an engine whose worker's cleanup raises this."""

    def begin(error: BaseException) -> tuple[engine.EngineProcess, FakeWorker]:
        worker = FakeWorker()

        @contextmanager
        def failing(*_: Any, **__: Any) -> Iterator[FakeWorker]:
            yield worker
            raise error

        monkeypatch.setattr(engine, "worker", failing)
        monkeypatch.setattr(engine, "check_sandbox", lambda _: {})
        recipe = {"quantisation": "none", "compute_dtype": "float32"}
        ledger = SimpleNamespace(state=None)
        context: Any = SimpleNamespace(device="cpu", vllm=None, prompt_cache_bytes=0, ledger=ledger)
        return engine.EngineProcess(context, Path("/base"), digest_bytes(b"base"), recipe, lambda: None), worker

    yield begin


def test_a_unit_below_its_share_is_accepted_while_others_hold_all_places(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "count_units", lambda _: 4)
    made, worker = serving(OSError())
    for unit in ("legal", "claims"):
        for number in range(engine.WAITING // 2):
            made.ask(f"{unit}-{number}", f"{unit}/labels/7", "generate", {}, lambda _: None)
    for number in range(engine.WAITING // 4):
        made.ask(f"sales-{number}", "sales/labels/9", "generate", {}, lambda _: None)
    for unit in ("legal", "claims", "sales"):
        with pytest.raises(RateLimited):
            made.ask("one-more", f"{unit}/drafts/8", "generate", {}, lambda _: None)
    made.leave("sales-0", ended=True)
    made.ask("one-more", "sales/labels/9", "generate", {}, lambda _: None)
    assert sum(frame["frame"] == "generate" for frame in worker.sent) == 41


CLEANUPS = [OSError(errno.EROFS, "Read-only file system"), Unavailable("not now"), RecursionError("maximum depth")]


@pytest.mark.parametrize("error", CLEANUPS, ids=lambda error: type(error).__name__)
def test_who_waits_for_an_engine_hears_its_end_whatever_its_cleanup_does(
    serving: Any, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    made, worker = serving(error)
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    made.ask("r-1", "slot", "generate", {}, heard.put)
    refused: list[ApplianceError] = []

    def unload() -> None:
        try:
            made.unload("slot")
        except ApplianceError as ended:
            refused.append(ended)

    turn = threading.Thread(target=unload)
    turn.start()
    while len(worker.sent) < 3:
        turn.join(0.01)
    worker.frames.put(None)
    assert heard.get(timeout=60) is None
    turn.join(60)
    assert [ended.code for ended in refused] == ["engine-ended"], "a load or an unload gives its turn back"
    made.leave("r-1", ended=True)
    assert not made.alive and not made.answers("slot")
    assert "ALARM: an engine ended and left something behind" in caplog.text


def test_an_engine_whose_reader_fails_is_ended_and_says_so(serving: Any, caplog: pytest.LogCaptureFixture) -> None:
    made, worker = serving(Unavailable("not now"))
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    made.ask("r-1", "slot", "generate", {}, heard.put)
    made.ask("r-2", "slot", "generate", {}, lambda frame: frame["none such"] if frame else None)
    worker.frames.put({"frame": "token", "id": "r-2", "text": "x"})
    assert heard.get(timeout=60) is None
    assert "ALARM: engine: a defect of the appliance" in caplog.text


def test_an_engine_that_does_not_start_says_why_and_not_how_its_cleanup_went(serving: Any) -> None:
    with pytest.raises(Unavailable, match="expected the frame ready"):
        original = FakeWorker.__init__

        def broken(self: FakeWorker) -> None:
            original(self)
            self.frames.get()
            self.frames.put({"frame": "other"})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeWorker, "__init__", broken)
            serving(OSError(errno.EIO, "Input/output error"))


def token(text: Any = "x") -> dict[str, Any]:
    return {"frame": "token", "id": "r-1", "text": text}


def done(**changes: Any) -> dict[str, Any]:
    counted = {"finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}
    return {"frame": "done", "id": "r-1", **counted, **changes}


WRONG = [
    pytest.param([token(5)], id="no text"),
    pytest.param([{"frame": "token", "id": "r-1"}], id="none"),
    pytest.param([token()] * 5, id="too many"),
    pytest.param([token("x" * (1 << 20))] * 3, id="too long"),
    pytest.param([done(finish_reason="x" * 5000)], id="a reason of its own"),
    pytest.param([done(finish_reason=["stop"])], id="a list"),
    pytest.param([done(prompt_tokens=-1)], id="less than none"),
    pytest.param([done(cached_tokens=2)], id="more tokens that were not read again than there are"),
    pytest.param([done(cached_tokens="0")], id="tokens that are text"),
    pytest.param([done(completion_tokens="many")], id="no number"),
    pytest.param([done(completion_tokens=True)], id="a truth"),
    pytest.param([done(completion_tokens=1 << 70)], id="more than an entry holds"),
]


@pytest.mark.parametrize("said", WRONG)
def test_an_engine_that_says_what_no_answer_is_ends_and_who_waits_hears_its_end(
    serving: Any, caplog: pytest.LogCaptureFixture, said: list[Any]
) -> None:
    made, worker = serving(Unavailable("its cleanup"))
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    made.ask("r-1", "slot", "generate", {"max_tokens": 2}, heard.put)
    for frame in said:
        worker.frames.put(frame)
    told = [heard.get(timeout=60)]
    while told[-1] is not None:
        told.append(heard.get(timeout=60))
    assert len(told) == len(said) and not made.alive
    assert "an engine is ended: engine, " in caplog.text


def test_a_worker_that_does_not_read_holds_up_no_cut(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, worker = serving(Unavailable("its cleanup"))
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for name in ("r-1", "r-2"):
        made.ask(name, "slot", "generate", {}, heard.put)
    reads = threading.Event()
    monkeypatch.setattr(worker, "send", lambda *_: reads.wait(60))
    for name in ("r-1", "r-2"):
        cutting = threading.Thread(target=made.cut, args=(name, "revoked"))
        cutting.start()
        cutting.join(90)
        assert not cutting.is_alive()
    assert [heard.get(timeout=60)["code"] for _ in range(2)] == ["cut-off", "cut-off"]
    reads.set()
    worker.frames.put(None)


def test_an_answer_of_as_many_pieces_as_were_asked_for_and_its_rest_is_told(serving: Any) -> None:
    made, worker = serving(Unavailable("its cleanup"))
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    made.ask("r-1", "slot", "generate", {"max_tokens": 2}, heard.put)
    said = [token(), token(), token("the rest"), done()]
    for frame in said:
        worker.frames.put(frame)
    assert [heard.get(timeout=60) for _ in said] == said and made.alive
    worker.frames.put(None)


@pytest.fixture
def timed(serving: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[engine.EngineProcess, FakeWorker]]:
    """Return a starter of an engine whose clock advances as its worker sets."""

    def begin() -> tuple[engine.EngineProcess, FakeWorker]:
        made, worker = serving(Unavailable("its cleanup"))
        monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: worker.now))
        return made, worker

    return begin


def test_a_worker_that_says_that_it_works_is_not_taken_for_dead(timed: Any) -> None:
    """It reads a long prompt, and for longer than a silence may last."""
    made, worker = timed()
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    made.ask("r-1", "slot", "generate", {}, heard.put)
    load = threading.Thread(target=made.unload, args=("other",))
    load.start()
    while len(worker.sent) < 3:
        load.join(0.01)
    for _ in range(5):
        worker.frames.put(PASSING_S)
        worker.frames.put(SIGN)
    worker.frames.put({"frame": "unloaded", "slot": "other"})
    load.join(60)
    worker.frames.put(done())
    assert heard.get(timeout=60)["frame"] == "done"
    assert made.alive
    assert heard.empty(), "a sign is told to nobody"
    made.leave("r-1", ended=True)
    worker.frames.put(None)


SIGN = {"frame": "working", "computed": 0}
GROWS = ({**SIGN, "computed": number} for number in count(1))
STRANGE = {"frame": "token", "id": "r-9", "text": "x"}


@pytest.mark.parametrize(
    ("what", "said", "words"),
    [
        ("unload", SIGN, "a load or an unload: expected a frame of it"),
        ("unload", STRANGE, "a load or an unload: expected a frame of it"),
        ("generate", {**token(), "id": "r-2"}, "request r-1: expected a frame of it"),
        ("generate", GROWS, "request r-1: expected a frame of it"),
        ("generate", SIGN, "request r-1: expected progress"),
    ],
)
def test_a_worker_that_only_says_that_it_works_is_ended(
    timed: Any, caplog: pytest.LogCaptureFixture, what: str, said: Any, words: str
) -> None:
    made, worker = timed()
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def unload() -> None:
        with suppress(Unavailable):
            made.unload("other")

    if what == "unload":
        threading.Thread(target=unload, daemon=True).start()
        while len(worker.sent) < 2:
            time.sleep(0.005)
    else:
        made.ask("r-1", "slot", "generate", {}, heard.put)
        made.ask("r-2", "slot", "generate", {}, lambda frame: None)
    for _ in range(int(engine.ANSWER_S / PASSING_S) + 2):
        worker.frames.put(PASSING_S)
        worker.frames.put(next(GROWS) if said is GROWS else said)
    wait_for(lambda: not made.alive, "the engine's end")
    assert f"an engine is ended: engine, {words}" in caplog.text
    if what != "unload":
        assert heard.get(timeout=60) is None
    assert made._turn.acquire(timeout=60), "the next unload has its turn"


def test_a_worker_that_computes_is_not_ended_while_no_request_has_a_frame(timed: Any) -> None:
    """It reads many long prompts in turns, which end together."""
    made, worker = timed()
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    made.ask("r-1", "slot", "generate", {}, heard.put)
    for number in range(int(engine.PROGRESS_S / PASSING_S) + 2):
        worker.frames.put(PASSING_S)
        worker.frames.put({**SIGN, "computed": number})
    worker.frames.put(done())
    assert heard.get(timeout=60)["frame"] == "done"
    assert made.alive
    worker.frames.put(None)


@pytest.mark.parametrize("computed", [None, -1, True, 1 << 53, "1"])
def test_a_worker_whose_count_is_none_is_ended(
    serving: Any, caplog: pytest.LogCaptureFixture, computed: object
) -> None:
    made, worker = serving(Unavailable("its cleanup"))
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    made.ask("r-1", "slot", "generate", {}, heard.put)
    worker.frames.put({"frame": "working", "computed": computed})
    assert heard.get(timeout=60) is None
    assert "an engine is ended: engine, working: expected a count" in caplog.text


def test_a_request_that_waits_for_others_is_not_given_up(timed: Any) -> None:
    made, worker = timed()
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    made.ask("r-2", "slot", "generate", {}, lambda frame: None)
    made.ask("r-1", "slot", "generate", {}, heard.put)
    for _ in range(int(engine.PROGRESS_S / PASSING_S) + 2):
        worker.frames.put(PASSING_S)
        worker.frames.put({**token(), "id": "r-2"})
    worker.frames.put(done())
    assert heard.get(timeout=60)["frame"] == "done"
    assert made.alive
    worker.frames.put(None)
