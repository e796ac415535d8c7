"""More released adapters than slots: the least recently used one is unloaded, and admitted again on request."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.signatures import TOKEN_REVOKED
from appliance.domain.releases.approval import REVIEW_ENDED
from appliance.domain.serving.slots import AdapterLoaded
from appliance.errors import Denied, NotFound, RateLimited, Unavailable
from appliance.formats.core.canonical import parse_canonical
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.inference.reading import encode_fingerprint, read_fingerprint
from appliance.ml.model.base import load_base
from appliance.web.core.auth import CallerAuthenticator
from appliance.workflows.governance import UnitCaller, beat
from appliance.workflows.releases import exports
from appliance.workflows.serving import slots
from appliance.workflows.serving.answering import SERVICE_ENDS
from appliance.workflows.serving.serve import ServingWorkflow
from scripts.benches import serving_home
from scripts.benches.serving_home import UNITS, Home
from scripts.benches.serving_worker import make_adapters
from scripts.kit.appliance import found_site
from scripts.kit.ports import free_port
from scripts.kit.tiny_model import build_base
from scripts.kit.warm import forked_workers

REQUESTED = {"messages": [{"role": "user", "content": "the parties agree"}], "max_tokens": 3, "temperature": 0.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Three units, each with an adapter of its own that was sealed, reviewed and released."""
    folder = tmp_path_factory.mktemp("serving")
    site = found_site(folder / "home", free_port())
    serving_home.enrol(site)
    site.stop()
    base = build_base(folder / "base")
    with forked_workers(), serving_home.opened(site) as home:
        home.import_base(base)
        home.import_dataset()
        for unit, path in zip(UNITS, make_adapters(str(base), folder, [4, 8, 4]), strict=False):
            adapter = home.seal(path, f"own-{unit}", _probe(base, path))
            home.approve(adapter, unit)
            home.release(adapter, unit, "own")
        yield home


def _probe(folder: Path, adapter: Path) -> dict[str, Any]:
    base = load_base(folder, quantisation="nf4-double", compute_dtype="bfloat16", device="cpu", own_layers=True)
    plain, held = read_fingerprint(base), AdapterSlots(base)
    held.load("a", *((adapter / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")))
    with held.using("a"):
        return encode_fingerprint(base, plain, read_fingerprint(base))


def _caller(home: Home, unit: str) -> UnitCaller:
    state = home.context.ledger.state
    principal = state.principals.get(unit)
    assert principal is not None
    return UnitCaller(unit, "sha256:" + "0" * 64, state.last_time, principal.keyid)


def _ask(home: Home, serving: ServingWorkflow, unit: str, **changes: Any) -> str:
    answer = serving.answer(_caller(home, unit), "own", "generate", {**REQUESTED, **changes}, "tcp:127.0.0.1")
    return "".join(frame["text"] for frame in answer if frame["frame"] == "token")


def _log(home: Home, since: int) -> list[tuple[str, str]]:
    """Return what was loaded, unloaded and answered, with its unit."""
    ledger = home.context.ledger
    entries = [json.loads(ledger.entry_bytes(index)) for index in range(since, ledger.state.size)]
    kinds = ("adapter.admitted", "adapter.loaded", "adapter.unloaded", "request.admitted")
    return [(entry["type"].partition(".")[2], entry["body"]["unit"]) for entry in entries if entry["type"] in kinds]


@pytest.mark.thorough
def test_the_slot_that_was_asked_for_longest_ago_makes_room(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MAX_LOADED", 2)
    first, second, third = UNITS[:3]
    with closing(ServingWorkflow(home.context)) as serving:
        told = {unit: _ask(home, serving, unit) for unit in (first, second, first)}
        since = home.context.ledger.state.size
        told[third] = _ask(home, serving, third)
        assert _log(home, since) == [
            ("unloaded", second),
            ("admitted", third),
            ("loaded", third),
            ("admitted", third),
        ]
        since = home.context.ledger.state.size
        assert _ask(home, serving, second) == told[second], "it is admitted and loaded again, and answers as before"
        assert _log(home, since)[:3] == [("unloaded", first), ("admitted", second), ("loaded", second)]
        assert len(serving._slots._table) == 2
    unloaded = next(home.context.ledger.entry_bytes(index) for index in range(since, since + 3))
    assert parse_canonical(unloaded)["body"]["reason"] == "slot-needed"


@pytest.mark.thorough
def test_a_slot_that_answers_is_not_taken(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is cut off for another unit's: while all slots are in use, the new request waits."""
    monkeypatch.setattr(slots, "MAX_LOADED", 1)
    first, second = UNITS[:2]
    with closing(ServingWorkflow(home.context)) as serving:
        going = serving.answer(
            _caller(home, first), "own", "generate", {**REQUESTED, "max_tokens": 200}, "tcp:127.0.0.1"
        )
        next(going)
        with pytest.raises(RateLimited, match="slots: expected one of 1 that is idle"):
            _ask(home, serving, second)
        going.close()
        assert _ask(home, serving, second)
        assert [loaded.row.unit for loaded in serving._slots._table.values()] == [second]


@pytest.mark.thorough
def test_with_vllm_a_slot_makes_room_before_vllm_is_full(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    made = slots.Slots(replace(home.context, vllm=Path("/vllm")))
    monkeypatch.setattr(made, "_settle", emptied.append)
    for number in range(8):
        stub: Any = SimpleNamespace(
            row=SimpleNamespace(unit=f"u{number}", served_model="own"),
            close_if_idle=lambda _: True,
            close=lambda _: None,
            engine=None,
        )
        made._table[f"u{number}/own"] = stub
    made._make_room()
    assert list(made._table) == [f"u{number}/own" for number in range(1, 8)] and emptied == ["u0/own"]


@pytest.mark.thorough
def test_a_load_whose_commit_nobody_saw_the_end_of_is_emptied_and_loaded_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entry is durable: by the log the slot is filled, so another admission would be refused."""
    unit, append, seen = UNITS[0], slots.append, [True]

    def lose(context: Any, body: Any, **rest: Any) -> Any:
        appended = append(context, body, **rest)
        if isinstance(body, AdapterLoaded) and seen:
            seen.clear()
            raise Unavailable("ledger: expected to find out whether it was committed", code="commit-unknown")
        return appended

    monkeypatch.setattr(slots, "append", lose)
    with closing(ServingWorkflow(home.context)) as serving:
        since = home.context.ledger.state.size
        with pytest.raises(Unavailable):
            _ask(home, serving, unit)
        assert _ask(home, serving, unit)
        whole = [(kind, unit) for kind in ("admitted", "loaded")]
        assert _log(home, since) == [*whole, ("unloaded", unit), *whole, ("admitted", unit)]


@pytest.mark.parametrize("is_ending", [True, False])
def test_a_load_that_the_end_of_the_service_ends_is_no_refusal_of_the_adapter(
    home: Home, monkeypatch: pytest.MonkeyPatch, is_ending: bool
) -> None:
    unit = UNITS[0]
    with closing(ServingWorkflow(home.context)) as serving:

        def end(*_: Any) -> None:
            if is_ending:
                serving.close()
            raise Unavailable("worker: expected a result, got its end", code="worker-ended")

        monkeypatch.setattr(slots.EngineProcess, "load", end)
        since = home.context.ledger.state.size
        with pytest.raises(Unavailable) as refused:
            _ask(home, serving, unit)
        entries = [
            parse_canonical(home.context.ledger.entry_bytes(index)) for index in range(since, since + 2 - is_ending)
        ]
        assert since + 2 - is_ending == home.context.ledger.state.size
        assert [entry["type"] for entry in entries] == ["adapter.admitted", "admission.refused"][: 2 - is_ending]
        assert refused.value.code == ("service-ends" if is_ending else "worker-ended")


@pytest.mark.thorough
def test_a_load_that_was_denied_leaves_the_engine_before_the_next_admission(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was released once more while it was loaded: by that it is admitted again, in another slot."""
    unit, admit, unload, told = UNITS[0], slots.admit, slots.EngineProcess.unload, []

    def load(engine: slots.EngineProcess, slot: str, files: Any) -> None:
        monkeypatch.undo()
        watch()
        engine.load(slot, files)
        told.append(("loaded", slot))
        home.release(f"own-{unit}@1", unit, "own")

    def watch() -> None:
        monkeypatch.setattr(slots, "admit", lambda *asked: (told.append(("admitted", "")), admit(*asked))[1])
        monkeypatch.setattr(
            slots.EngineProcess,
            "unload",
            lambda engine, slot: (told.append(("unloaded", slot)), unload(engine, slot))[1],
        )

    with closing(ServingWorkflow(home.context)) as serving:
        watch()
        monkeypatch.setattr(slots.EngineProcess, "load", load)
        assert _ask(home, serving, unit)
        (kept,) = serving._slots._loaded_slots
        (_, first), *_ = [one for one in told if one[0] == "loaded"]
        assert told == [("admitted", ""), ("loaded", first), ("unloaded", first), ("admitted", "")]
        assert kept.slot != first
    assert home.context.ledger.state.slots.get(f"{unit}/own") is None


def test_a_name_that_a_client_made_up_leaves_nothing_behind(home: Home) -> None:
    with closing(ServingWorkflow(home.context)) as serving:
        for number in range(3):
            with pytest.raises(NotFound, match="model: expected one released"):
                serving.answer(_caller(home, UNITS[0]), f"made-up-{number}", "generate", REQUESTED, "tcp:127.0.0.1")
        assert serving._slots._turns == {}


@pytest.mark.thorough
def test_a_flood_of_refused_requests_is_counted_without_the_text_of_any(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that is refused is recorded once, until another reason refuses it or a load succeeds."""
    context, unit, reasons = home.context, UNITS[0], [REVIEW_ENDED("review:7")]
    authenticator = CallerAuthenticator(context)
    with closing(ServingWorkflow(context)) as serving:
        serving.refused.connect(authenticator.count)
        _ask(home, serving, UNITS[1])
        since = context.ledger.state.size
        with monkeypatch.context() as refusing:
            decided = SimpleNamespace(changed=False, approvals=(), reasons=reasons)
            refusing.setattr(exports, "decide_admission", lambda *_: decided)
            for number in range(20):
                with pytest.raises(Denied, match="approval of entry 7"):
                    _ask(home, serving, unit)
                with pytest.raises(NotFound):
                    serving.answer(_caller(home, unit), f"Jane Doe, {number}", "generate", REQUESTED, "tcp:127.0.0.1")
            reasons[0] = REVIEW_ENDED("review:8")
            with pytest.raises(Denied, match="approval of entry 8"):
                _ask(home, serving, unit)
        assert _ask(home, serving, unit)
        with authenticator.counted() as refusals:
            beat(context, refusals)
    found = [json.loads(context.ledger.entry_bytes(n)) for n in range(since, context.ledger.state.size)]
    assert [entry["body"]["refusals"][0]["subject"] for entry in found if entry["type"] == "admission.refused"] == [
        "review:7",
        "review:8",
    ]
    counted = [entry["body"] for entry in found if entry["type"] == "request.refused"]
    assert counted == [
        {"unit": unit, "application": None, "served_model": None, "code": "model-not-found", "count": 20},
        {"unit": unit, "application": None, "served_model": "own", "code": "not-admitted", "count": 21},
    ]
    assert "Jane" not in str(found)


@pytest.mark.thorough
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_an_answer_that_is_closed_while_the_engine_is_asked_holds_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A client that leaves at once: its request is ended by one thread while another begins it."""
    with closing(ServingWorkflow(home.context)) as serving:
        going = serving.answer(
            _caller(home, UNITS[0]), "own", "generate", {**REQUESTED, "max_tokens": 200}, "tcp:127.0.0.1"
        )
        engine, slot = going.loaded.engine, going.loaded.slot
        ask = engine.ask
        if when == "before":
            going.close()
        else:
            monkeypatch.setattr(engine, "ask", lambda *wanted: (going.close(), ask(*wanted)))
        heard: list[Any] = []
        going.start(heard.append)
        assert not engine.answers(slot)
        assert engine._pending == {}
        assert going.request not in home.context.ledger.state.requests, "its end is recorded"
        monkeypatch.setattr(engine, "ask", ask)
        assert _ask(home, serving, UNITS[0])


@pytest.mark.thorough
def test_an_answer_that_is_cut_before_it_was_begun_asks_nothing(home: Home) -> None:
    with closing(ServingWorkflow(home.context)) as serving:
        going = serving.answer(_caller(home, UNITS[0]), "own", "generate", REQUESTED, "tcp:127.0.0.1")
        going.cut(TOKEN_REVOKED(f"unit:{UNITS[0]}", entry=7))
        with pytest.raises(Denied, match=r"The answer was cut off: The token of .* was revoked by entry 7\.") as cut:
            next(going)
        assert cut.value.code == "cut-off" and cut.value.refusals[0].code == "token-revoked"
        assert going.loaded.engine._pending == {}
        assert going.request not in home.context.ledger.state.requests


@pytest.mark.thorough
def test_a_client_may_ask_again_for_an_answer_that_the_end_of_the_service_cut(home: Home) -> None:
    with closing(ServingWorkflow(home.context)) as serving:
        long = {**REQUESTED, "max_tokens": 200}
        going = serving.answer(_caller(home, UNITS[0]), "own", "generate", long, "tcp:127.0.0.1")
        next(going)
        serving.cut_off_all(SERVICE_ENDS())
        with pytest.raises(Unavailable, match=r"The answer was cut off: The service is shut down\.") as cut:
            next(going)
        assert (cut.value.status, cut.value.code) == (503, "service-ends")
        assert going.request not in home.context.ledger.state.requests, "its end is recorded"


@pytest.mark.thorough
def test_an_answer_that_is_cut_leaves_its_slot_free(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not given yet is not given, and the slot makes room for another."""
    monkeypatch.setattr(slots, "MAX_LOADED", 1)
    first, second = UNITS[:2]
    with closing(ServingWorkflow(home.context)) as serving:
        going = serving.answer(
            _caller(home, first), "own", "generate", {**REQUESTED, "max_tokens": 200}, "tcp:127.0.0.1"
        )
        next(going)
        loaded = going.loaded
        going.cut(TOKEN_REVOKED(f"unit:{UNITS[0]}", entry=7))
        with pytest.raises(Denied, match=r"The token of .* was revoked by entry 7\.") as cut:
            next(going)
        assert cut.value.code == "cut-off" and cut.value.refusals[0].code == "token-revoked"
        going.cut(TOKEN_REVOKED(f"unit:{first}", entry=8))
        assert not loaded.engine.answers(loaded.slot)
        assert _ask(home, serving, second)


@pytest.mark.thorough
def test_an_answer_of_a_worker_that_hangs_is_cut_at_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(ServingWorkflow(home.context)) as serving:
        long = {**REQUESTED, "max_tokens": 200}
        going = serving.answer(_caller(home, UNITS[0]), "own", "generate", long, "tcp:127.0.0.1")
        next(going)
        pid = going.loaded.engine._worker.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            while going._frames is not None and not going._frames.empty():
                next(going)
            monkeypatch.setattr(serving._slots, "_find_blockers", lambda _: [REVIEW_ENDED("review:7")])
            serving._close_obsolete()
            began = time.monotonic()
            with pytest.raises(Denied, match=r"The answer was cut off: .* the approval of entry 7") as cut:
                next(going)
            assert cut.value.code == "cut-off" and cut.value.refusals[0].code == "review-ended"
            assert time.monotonic() - began < 10
        finally:
            os.kill(pid, signal.SIGCONT)


def test_an_engine_that_holds_nothing_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that are released to another base: a machine that holds one base cannot wait for the service's end."""

    class Started:
        alive = True

        def __init__(self, *_: object) -> None:
            self.closed = False

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(slots, "EngineProcess", Started)
    monkeypatch.setattr(slots, "checked_base", lambda _, base: Path(base))
    monkeypatch.setattr(slots, "_unload_or_end", lambda *_: None)
    held = slots.Slots(SimpleNamespace(vllm=None, clock=None, contact=None, artifacts=SimpleNamespace(path=Path)))  # type: ignore[arg-type]
    monkeypatch.setattr(held, "_record_emptied", lambda _: None)

    def begin(base: str, served_model: str) -> Any:
        adapter = SimpleNamespace(base=base, base_digest=f"sha256:{base}")
        files = {"recipe.json": b'{"compute_dtype":"float32","quantisation":"none"}'}
        row = SimpleNamespace(unit="legal", served_model=served_model)
        loaded = held._begin(row, served_model, SimpleNamespace(adapter=adapter, files=files))  # type: ignore[arg-type]
        held._table[f"legal/{served_model}"] = loaded
        return loaded

    first, second = begin("old", "a"), begin("old", "b")
    assert first.engine is second.engine
    held._close(first, "released to another")
    held._empty("legal/a")
    beside = begin("new", "a")
    assert not first.engine.closed, "another served model answers by it"
    held._close(second, "released to another")
    held._empty("legal/b")
    assert begin("new", "b").engine is beside.engine and not first.engine.closed, "nothing is needed for a second slot"
    third = begin("newest", "c")
    assert first.engine.closed and not beside.engine.closed and not third.engine.closed


@pytest.mark.thorough
def test_a_slot_whose_served_model_was_released_to_another_adapter_serves_no_more(home: Home) -> None:
    first, second = UNITS[:2]
    with closing(ServingWorkflow(home.context)) as serving:
        assert _ask(home, serving, first)
        (loaded,) = serving._slots._table.values()
        assert serving._slots._find_blockers(loaded) == []
        home.approve(f"own-{second}@1", first)
        home.release(f"own-{second}@1", first, "own")
        assert [reason.code for reason in serving._slots._find_blockers(loaded)] == ["released-another"]
        home.release(f"own-{first}@1", first, "own")
