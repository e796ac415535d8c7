"""Each entry is a valid event of OCSF, fits into one syslog message, and has no text."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.actions.registry import EVENTS
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.queries.ocsf import ACTIVITIES, CLASS_NAMES, KINDS, VERSION, encode_event
from scripts.kit.log_builder import ORIGIN, stage

SCHEMA = json.loads(Path(__file__).with_name("ocsf-1.8.0.json").read_text())
STAGES = ("kept", "decided", "replayed")
OBJECTS = {
    "metadata": "metadata",
    "actor": "actor",
    "user": "user",
    "entity": "managed_entity",
    "api": "api",
    "app": "product",
    "service": "service",
    "src_endpoint": "network_endpoint",
    "product": "product",
}
"""The object of each attribute that is one."""
EXTENDED = {"network_endpoint": {"name", "ip"}}
"""Attributes that an object has from the one that it extends."""


@cache
def entries() -> tuple[Entry, ...]:
    site = stage("serving")
    site.revoke("raul")
    site.revoke_tokens(issued_before=site.now)
    found = [parse_entry(data) for name in STAGES for data in stage(name).entries]
    return (*found, *(parse_entry(data) for data in site.entries))


def check_object(name: str, value: dict[str, Any]) -> None:
    schema = SCHEMA["objects"][name]
    base = SCHEMA["objects"].get(schema["extends"], {"attributes": [], "at_least_one": []})
    known = {*schema["attributes"], *base["attributes"], *EXTENDED.get(name, ())}
    assert set(schema["required"]) <= set(value) <= known, (name, value)
    one_of = schema["at_least_one"] or base["at_least_one"]
    assert not one_of or set(one_of) & set(value), (name, value)
    for attribute, item in value.items():
        if attribute in OBJECTS and isinstance(item, dict):
            check_object(OBJECTS[attribute], item)


def check_event(event: dict[str, Any]) -> None:
    schema = SCHEMA["classes"][str(event["class_uid"])]
    assert set(schema["required"]) <= set(event), event
    # `service` is an attribute of the class that the excerpt lists; siblings of identifiers have the same name.
    assert set(event) <= set(schema["attributes"]) | {"unmapped"}, set(event) - set(schema["attributes"])
    assert not schema["at_least_one"] or set(schema["at_least_one"]) & set(event)
    name = schema["activities"][str(event["activity_id"])]
    assert event["activity_name"] == (event["message"] if name == "Other" else name)
    assert event["class_name"] == schema["caption"]
    assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
    assert event["category_uid"] == event["class_uid"] // 1000
    assert event["severity_id"] in range(1, 6) and event["status_id"] in (1, 2, 99)
    assert event["metadata"]["version"] == VERSION
    assert all(isinstance(event[name], int) for name in ("time", "start_time", "end_time", "count") if name in event)
    for attribute, kind in OBJECTS.items():
        if attribute in event:
            check_object(kind, event[attribute])


def test_every_type_of_entries_has_a_kind_of_the_schema() -> None:
    assert KINDS.keys() == EVENTS.keys()
    for kind in KINDS.values():
        assert kind.activity_id in ACTIVITIES[kind.class_uid]
    for class_uid, activities in ACTIVITIES.items():
        schema = SCHEMA["classes"][str(class_uid)]
        assert schema["caption"] == CLASS_NAMES[class_uid]
        assert {str(number): name for number, name in activities.items()}.items() <= schema["activities"].items()


def test_every_entry_of_the_journey_is_a_valid_event() -> None:
    seen = set()
    for entry in entries():
        event = encode_event(entry, ORIGIN, "0.1.0")
        check_event(event)
        assert event["metadata"]["sequence"] == entry.index and event["metadata"]["uid"] == f"{ORIGIN}/{entry.index}"
        assert len(json.dumps(event)) < 8_000 - 200, entry.type
        seen.add(entry.type)
    assert len(seen) > 25


def test_the_schema_refuses_an_event_that_lacks_something() -> None:
    event = encode_event(entries()[0], ORIGIN, "0.1.0")
    for name in ("metadata", "app", "type_uid"):
        with pytest.raises((AssertionError, KeyError)):
            check_event({key: value for key, value in event.items() if key != name})
    with pytest.raises(AssertionError):
        check_event({**event, "invented": 1})
    with pytest.raises(AssertionError):
        check_event({**event, "metadata": {**event["metadata"], "product": {"version": "1"}}})


def test_an_event_has_no_text_and_no_commitment() -> None:
    site = stage("kept")
    texts = [one.text for one in site.disclosures]
    assert texts
    for data in site.entries:
        line = json.dumps(encode_event(parse_entry(data), site.state.site.origin, "0.1.0"), ensure_ascii=False)
        assert "hmac-sha256:" not in line
        assert not [text for text in texts if len(text) > 3 and text in line], line


def make(**fields: Any) -> dict[str, Any]:
    entry = entries()[0].model_copy(update=fields)
    return encode_event(entry, ORIGIN, "0.1.0")


def test_long_nested_and_committed_values_are_left_out() -> None:
    commitment = f"hmac-sha256:{'0' * 64}"
    body = {
        "run": "r-000001",
        "steps": 3,
        "same": True,
        "message": commitment,
        "long": "x" * 257,
        "nested": {"a": 1},
        "names": ["a", "b"],
        "mixed": ["a", commitment],
        "many": ["a"] * 17,
        "none": None,
    }
    event = make(body=body, subjects=tuple(f"run:r-{n:06}" for n in range(32)))
    assert event["unmapped"]["body"] == {"run": "r-000001", "steps": 3, "same": True, "names": ["a", "b"]}
    assert len(event["unmapped"]["subjects"]) == 16


def test_who_where_and_how_it_ended_are_mapped() -> None:
    refused = make(type="order.refused", actor="olga", source="tcp:fd00::7", outcome="denied", body={"code": "denied"})
    assert (refused["status_id"], refused["status_code"], refused["status_detail"]) == (2, "denied", "denied")
    assert refused["actor"] == {"user": {"name": "olga"}} and refused["src_endpoint"] == {"ip": "fd00::7"}
    failed = make(type="run.failed", actor="service", source="service", outcome="failure", subjects=("run:r-000001",))
    assert (failed["severity_id"], failed["entity"]) == (2, {"name": "r-000001", "type": "run"})
    assert failed["actor"] == {"app_name": "appliance"} and failed["src_endpoint"] == {"name": "service"}
    admitted = make(type="adapter.admitted", subjects=("unit:legal", "adapter:clauses@1"))
    assert admitted["entity"] == {"name": "clauses@1", "type": "adapter"}
    released = make(type="release.activated", subjects=(f"order:sha256:{'0' * 64}", "adapter:clauses@1"))
    assert released["entity"]["name"] == "clauses@1"
    pending = make(type="order.pending", outcome="pending", subjects=("principal:olga",))
    assert (pending["status_id"], pending["status"], pending["severity_id"]) == (99, "pending", 1)
    assert pending["entity"] == {"name": "olga", "type": "principal", "type_id": 2}
    counted = {"count": 3, "since": "2026-11-24T11:59:00.000Z", "principals": ["rob"], "keys": []}
    attempts = make(type="auth.refused", outcome="denied", body=counted)
    assert attempts["user"] == {"name": "rob"} and attempts["count"] == 3
    assert attempts["end_time"] > attempts["start_time"] - 10**12
    check_event(attempts)
