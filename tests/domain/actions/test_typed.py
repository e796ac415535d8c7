"""Entries read in one pass are the entries read step by step: the same are taken, with the same values and bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.domain.actions.apply import parse_body, parse_typed
from appliance.domain.core.entry import Entry, Event, parse_entry
from appliance.domain.core.names import encode_value, write_canonical
from appliance.domain.governance.service import ServiceStarted
from appliance.domain.governance.sessions import AuthRefused
from appliance.errors import ApplianceError
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from scripts.kit.log_builder import SANDBOX_PROBES, stage

SITE = stage("serving")
SITE.add(
    ServiceStarted(
        version="1", code="sha256:" + "1" * 64, layers={"seccomp": True, "landlock": False}, process=None, epoch=None
    )
)
SITE.add(AuthRefused(count=2, since=SITE.now, principals=(), keys=()))
ENTRIES = [
    *SITE.entries,
    *stage("replayed").entries[len(stage("imported").entries) :],
    *stage("decided").entries[len(stage("sealed").entries) :],
]


def step_by_step(data: bytes) -> tuple[Entry, Event]:
    entry = parse_entry(data)
    return entry, parse_body(entry)


def in_one_pass(data: bytes) -> tuple[Entry, Event]:
    entry = parse_typed(data)
    return entry, parse_body(entry)


def outcome(read: Any, data: bytes) -> Any:
    """Return the parsed fields and body, or the refusal's words."""
    try:
        entry, body = read(data)
    except ApplianceError as error:
        return type(error), error.message
    assert entry.encoded == data == write_canonical(entry)
    return entry.model_dump(mode="json"), entry.leaf, entry.link, body, write_canonical(body)


@pytest.mark.parametrize("data", ENTRIES, ids=range(len(ENTRIES)))
def test_both_ways_of_reading_give_the_same_entry(data: bytes) -> None:
    assert outcome(in_one_pass, data) == outcome(step_by_step, data)
    assert isinstance(parse_typed(data).body, Event), "the short way was taken"


@pytest.mark.parametrize("data", ENTRIES, ids=range(len(ENTRIES)))
def test_a_body_is_written_as_any_other_canonical_json(data: bytes) -> None:
    _, body = step_by_step(data)
    assert write_canonical(body) == encode_value(body) == encode_canonical(parse_canonical(data)["body"])


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(sorted(SANDBOX_PROBES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.thorough
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ENTRIES), st.data())
def test_both_ways_of_reading_refuse_the_same(data: bytes, draw: st.DataObject) -> None:
    """One member of the entry, of its body, or of an object in the body is anything at all, or is gone."""
    value = where = parse_canonical(data)
    for _ in range(draw.draw(st.integers(0, 2))):
        inner = [member for member in where.values() if isinstance(member, dict) and member]
        where = draw.draw(st.sampled_from(inner)) if inner else where
    name = draw.draw(st.sampled_from(sorted(where)) | st.text(max_size=4))
    where[name] = draw.draw(JUNK)
    if draw.draw(st.integers(0, 3)) == 0:
        del where[name]
    try:
        changed = encode_canonical(value)
    except ApplianceError:
        return
    assert outcome(in_one_pass, changed) == outcome(step_by_step, changed)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ENTRIES), st.data())
def test_both_ways_of_reading_refuse_the_same_bytes(data: bytes, draw: st.DataObject) -> None:
    place = draw.draw(st.integers(0, len(data) - 1))
    put = draw.draw(st.binary(max_size=3) | st.sampled_from([b"\\", b'"', b"{", b"}", b",", b"0", b".5", b"e1", b" "]))
    changed = data[:place] + put + data[place + draw.draw(st.integers(0, 2)) :]
    assert outcome(in_one_pass, changed) == outcome(step_by_step, changed)


def test_an_entry_of_an_unknown_type_is_read_and_has_no_body_of_a_type() -> None:
    data = encode_canonical(parse_canonical(ENTRIES[-1]) | {"type": "appliance.unknown"})
    assert parse_typed(data).body == parse_canonical(data)["body"]
    assert outcome(in_one_pass, data) == outcome(step_by_step, data)
