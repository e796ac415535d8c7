"""A snapshot gives back the very state that was taken: every row of every table, and the place in the log."""

from __future__ import annotations

import json

import pytest

from appliance.domain.core.names import NO_DIGEST
from appliance.domain.core.state import State
from appliance.domain.governance.service import ServiceStarted
from appliance.domain.governance.sessions import SessionOpened
from appliance.errors import BadInput
from appliance.formats.signatures.dsse import encode_envelope
from appliance.store.ledger.snapshots import ROWS, decode_snapshot, encode_snapshot, take_snapshot
from scripts.kit.log_builder import LogBuilder, stage
from tests.kit.ahead import reset_clock, run_ahead
from tests.kit.archived_log import archived, old_site, prepare

STAGES = (
    *(
        "initialized",
        "staffed",
        "imported",
        "trained",
        "sealed",
        "approved",
        "released",
        "serving",
        "kept",
        "replayed",
        "decided",
    ),
    "crowded",
)


def _site(name: str) -> LogBuilder:
    if name != "crowded":
        return stage(name)
    site = stage("kept")
    site.revoke_tokens(token=f"sha256:{'a' * 64}")
    site.hold("dataset:clauses")
    site.import_set()
    site.export()
    reset_clock(site, run_ahead(site, 3_600))
    site.pend(*site.enrolment("nina", ("operator",)))
    site.invite("tess", "operator")
    site.add(ServiceStarted(version="0.1.0", code=f"sha256:{'c' * 64}", layers={}, process="door", epoch=1))
    return site


def _again(state: State) -> State:
    return decode_snapshot(encode_snapshot(take_snapshot(state)))


def _rows(state: State) -> list[tuple[str, str, object, type]]:
    return [(table.kind, key, value, type(value)) for table in state.tables for key, value in table.items()]


def test_every_table_of_the_state_has_its_rows_named() -> None:
    assert len(ROWS) == len(State().tables)


@pytest.mark.parametrize("name", STAGES)
def test_a_state_comes_back_as_it_was(name: str) -> None:
    state = _site(name).state
    again = _again(state)
    assert again.place == state.place
    assert _rows(again) == _rows(state)
    assert list(again.projections()) == list(state.projections())


def test_open_sessions_come_back_as_they_were() -> None:
    site = stage("staffed")
    site.add(SessionOpened(identity=None), documents={"session": encode_envelope(site.session("rita"))}, actor="rita")
    assert _rows(_again(site.state)) == _rows(site.state)
    assert len(site.state.sessions) == 1


def test_processes_and_their_slots_come_back_as_they_were() -> None:
    site = stage("released")
    site.add(ServiceStarted(version="1", code=NO_DIGEST, layers={}, process="gateway-1", epoch=3))
    site.add(site.loaded(site.add(site.admitted(process="gateway-1")).index))
    assert [slot.key for slot in site.state.slots.values()] == ["legal/labels@gateway-1"]
    assert _rows(_again(site.state)) == _rows(site.state)
    assert len(site.state.processes) == 1


def test_archives_come_back_as_they_were() -> None:
    site = old_site()
    order, prepared = prepare(site)
    archived(site, order, prepared.removed)
    assert _rows(_again(site.state)) == _rows(site.state)
    assert len(site.state.archives) == 1


def test_a_state_that_came_back_takes_the_next_entry() -> None:
    site = stage("serving")
    whole = site.fork()
    site.state = _again(site.state)
    for one in (site, whole):
        one.add(one.answered(2))
    assert _rows(site.state) == _rows(whole.state)


@pytest.mark.thorough
def test_every_kind_of_row_is_among_them() -> None:
    """Else the round trips above would say nothing of it."""
    found = {name for each in STAGES for name in ROWS if len(getattr(_site(each).state, name))}
    found |= {"archives", "processes", "sessions"}  # which have a round trip of their own
    assert set(ROWS) - found == set()


def test_what_was_taken_does_not_change_with_the_state() -> None:
    site = stage("serving")
    taken = take_snapshot(site.state)
    before = encode_snapshot(taken)
    site.add(site.answered(2))
    assert encode_snapshot(taken) == before != encode_snapshot(take_snapshot(site.state))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[:-1], f"expected {len(ROWS)} tables, got {len(ROWS) - 1}"),
        (lambda lines: [b"[1]", *lines[1:]], "expected size, time and hash"),
        (lambda lines: [b"?", *lines[1:]], "expected size, time and hash"),
        (lambda lines: [lines[0], b'{"site":{"origin":1}}', *lines[2:]], "site.log_keys: expected a value"),
        (lambda lines: [lines[0], b"[]", *lines[2:]], "expected an object, got a list"),
        (lambda lines: [*lines[:5], json.dumps({"sha256:00": "1"}).encode(), *lines[6:]], "expected a whole number"),
    ],
)
def test_bytes_that_are_no_snapshot_are_refused(change: object, words: str) -> None:
    lines = encode_snapshot(take_snapshot(stage("staffed").state)).split(b"\n")
    assert callable(change)
    with pytest.raises(BadInput, match=words):
        decode_snapshot(b"\n".join(change(lines)))
