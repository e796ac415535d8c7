"""Rules of every entry, whatever its type: position, body, documents, claims, subjects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from appliance.domain.actions.apply import apply
from appliance.domain.actions.registry import EVENTS, NEWEST_RULES, ORDERS, RULE_SETS
from appliance.domain.core.entry import Entry, Event, encode_entry, parse_entry
from appliance.domain.core.names import NO_DIGEST, Canonical, encode_value
from appliance.domain.core.order import encode_order
from appliance.domain.core.state import UNPROJECTED, State
from appliance.domain.governance.countersignature import OrderPending
from appliance.domain.governance.people import PrincipalRevoked, RevokePrincipal
from appliance.domain.governance.service import Heartbeat, ServiceStopped
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.domain.releases.reviews import ReviewRecorded
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, Tampered, TooLarge
from appliance.formats.core.canonical import MAX_DEPTH, MAX_INTEGER, encode_canonical, parse_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import encode_envelope
from scripts.kit.log_builder import LogBuilder, policy_digest, policy_set, stage
from tests.kit.refusals import refuses, snapshot


def test_every_type_of_entry_has_a_rule_and_every_rule_a_type() -> None:
    assert set(RULE_SETS[NEWEST_RULES].rules) == set(EVENTS)


def test_the_journey_used_by_these_tests_covers_what_a_site_does() -> None:
    types = {parse_entry(data).type for data in stage("serving").entries}
    assert types >= {
        "appliance.initialized", "order.pending", "principal.enrolled", "import.requested", "base.imported",
        "dataset.imported", "run.requested", "run.started", "run.finished", "adapter.sealed", "review.recorded",
        "release.activated", "adapter.admitted", "adapter.loaded", "request.admitted", "request.finished",
    }  # fmt: skip


def test_folding_the_same_entries_again_gives_the_same_state() -> None:
    site, again = stage("serving"), State()
    for data in site.entries:
        entry = parse_entry(data)
        apply(again, entry, {role: site.documents[digest] for role, digest in entry.documents.items()})
    assert snapshot(again) == snapshot(site.state)


def test_changes_are_told_once_and_are_rows_of_the_state_but_for_orders_and_requests() -> None:
    site, again = stage("serving"), State()
    rows: dict[tuple[str, str], Any] = {}
    for data in site.entries:
        entry = parse_entry(data)
        apply(again, entry, {role: site.documents[digest] for role, digest in entry.documents.items()})
        for kind, key, value in again.take_changes():
            rows[kind, key] = value
    assert again.take_changes() == []
    assert {key: value for key, value in rows.items() if value is not None} == {
        (kind, key): value for kind, key, value in site.state.projections() if kind not in UNPROJECTED
    }


@pytest.mark.parametrize(
    ("changes", "error", "words", "code"),
    [
        ({"index": 2}, Conflict, "index: expected 1, got 2", None),
        ({"index": 0}, Conflict, "index: expected 1, got 0", None),
        ({"prev": NO_DIGEST}, Tampered, "prev: expected sha256:", "chain"),
        ({"time": "2026-01-15T09:29:59.999Z"}, Tampered, "time: expected at least", "entry-out-of-order"),
        ({"type": "appliance.initialized"}, Denied, "expected appliance.initialized first and once", None),
        ({"type": "appliance.unknown"}, BadInput, "known types", None),
        ({"body": {"extra": 1}}, BadInput, "expected no field of this name", None),
        ({"outcome": "failure"}, Denied, "outcome: expected", None),
        ({"actor": "anna"}, Denied, "actor: expected service, got anna", None),
        ({"subjects": ("unit:legal",)}, Denied, "subjects: expected ()", None),
        ({"bound": {"order": NO_DIGEST}}, BadInput, "documents: expected []", None),
    ],
)
def test_an_entry_that_is_not_the_next_is_refused(
    changes: dict[str, Any], error: type[ApplianceError], words: str, code: str | None
) -> None:
    site = stage("initialized")
    with refuses(site, error, words, code=code):
        site.add(Heartbeat(), **changes)


def test_time_may_stand_still() -> None:
    site = stage("initialized")
    site.now = parse_entry(site.entries[-1]).time
    site.add(Heartbeat())
    assert site.state.size == 2


def test_nothing_comes_before_the_first_entry() -> None:
    site = LogBuilder()
    entry, _ = site.entry(Heartbeat(), index=0, prev=NO_DIGEST)
    with pytest.raises(Denied, match=r"expected appliance\.initialized first and once, got heartbeat"):
        apply(State(), entry, {})


@pytest.mark.parametrize("field", ["run", "sandbox_probes", "layers", "accepted_missing"])
def test_a_body_with_a_field_left_out_is_refused(field: str) -> None:
    site = stage("imported")
    run = site.request_run()
    body = {key: value for key, value in site.started(run).model_dump(mode="json").items() if key != field}
    with refuses(site, BadInput, field):
        site.add(site.started(run), body=body)


def test_a_body_with_a_default_left_out_is_refused() -> None:
    """Every field is written out, so that one value has one encoding."""
    site = stage("initialized")
    order = site.order(RevokePrincipal, "anna", principal="ben")
    payload = parse_canonical(encode_order(order))
    del payload["predicate"]["reason"]
    with pytest.raises(BadInput, match="canonical JSON"):
        ORDERS.parse(encode_canonical(payload))


def test_a_document_that_is_missing_or_another_is_named() -> None:
    site = stage("initialized")
    order, documents = site.enrolment("olga", ("operator",))
    envelope = site.sign(order)
    bound = {"order": encode_envelope(envelope), **documents}
    entry, _ = site.entry(OrderPending(policy=site.in_force), documents=bound, signed=((envelope.pae_digest, order),))
    for role in bound:
        with refuses(site, Tampered, f"document {role}: expected", "got none", code="document-invalid"):
            apply(site.state, entry, {key: data for key, data in bound.items() if key != role})
        with refuses(site, Tampered, f"document {role}: expected {digest_bytes(bound[role])}", code="document-invalid"):
            apply(site.state, entry, bound | {role: bound[role] + b" "})
    apply(site.state, entry, bound)


def test_an_entry_lacking_a_required_document_is_refused() -> None:
    site = stage("initialized")
    with refuses(site, BadInput, "documents: expected ['order'], got []"):
        site.add(PrincipalRevoked(policy=site.in_force), actor="anna", subjects=())


def test_an_entry_filed_under_other_subjects_is_refused() -> None:
    """Otherwise a search for the adapter would miss its own review."""
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    with refuses(site, Denied, "subjects: expected ('order:sha256:", "adapter:clauses@1"):
        site.ordered(ReviewRecorded(policy=site.in_force), order, subjects=("adapter:clauses@1",))


def test_an_entry_whose_actor_is_not_the_orders_signer_is_refused() -> None:
    site = stage("sealed")
    with refuses(site, Denied, "actor: expected the signer rita, got raul"):
        site.ordered(ReviewRecorded(policy=site.in_force), site.review_order("rita", "privacy"), actor="raul")


def test_an_entry_names_the_policy_set_in_force() -> None:
    site = stage("sealed")
    other = policy_digest(policy_set(reviewers=3))
    with refuses(site, Denied, f"policy: expected {site.in_force}, got {other}"):
        site.ordered(ReviewRecorded(policy=other), site.review_order("rita", "privacy"))


def test_an_order_of_another_action_does_not_stand_for_this_entry() -> None:
    site = stage("sealed")
    order = site.order(RevokeAdapter, "rita", **site.on_adapter())
    with refuses(site, Denied, "order: expected review, got revoke-adapter"):
        site.ordered(ReviewRecorded(policy=site.in_force), order)


# The entry itself.


def test_an_entry_longer_than_a_bundle_holds_is_refused() -> None:
    site = stage("initialized")
    with refuses(site, TooLarge, "65535"):
        site.add(ServiceStopped(reason="x" * 70_000, process=None))
    with pytest.raises(TooLarge, match="65535"):
        parse_entry(b"x" * 65_536)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"v":1', b'"v":2'),
        (b'"index":1', b'"index":-1'),
        (b'"index":1', b'"index":1.0'),
        (b'"outcome":"success"', b'"outcome":"maybe"'),
        (b'{"actor"', b'{ "actor"'),
        (b'"type":"heartbeat"', b'"type":"heartbeat","more":1'),
        (b'"documents":{}', b'"documents":{"order":"md5:00"}'),
        (b'"subjects":[]', b'"subjects":[1]'),
        (b'"body":{}', b'"body":{"a":1.5}'),
        (b'"body":{}', b'"body":{"a":1,"a":2}'),
    ],
)
def test_entry_bytes_have_one_spelling(old: bytes, new: bytes) -> None:
    site = stage("initialized")
    data = site.add(Heartbeat()).encoded
    assert data.count(old) == 1
    with pytest.raises(BadInput):
        parse_entry(data.replace(old, new))


def test_a_parsed_entry_keeps_its_bytes() -> None:
    for data in stage("serving").entries:
        entry = parse_entry(data)
        assert entry.encoded == data == encode_value(Entry.model_validate_json(data))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def made(**changes: Any) -> Entry:
    value = parse_canonical(stage("initialized").entries[0])
    return Entry(**value | {"subjects": ()} | changes)


@pytest.mark.thorough
@settings(deadline=None)
@given(
    body=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), JSON), text=st.text(max_size=9)
)
def test_an_entry_is_encoded_as_any_other_canonical_json(body: dict[str, Any], text: str) -> None:
    """Whatever its body holds and in whatever order: the short way gives the bytes of the long one, and reads them."""
    entry = made(body=body, source=text, subjects=(text,), documents={"b": NO_DIGEST, text: NO_DIGEST})
    assert entry.encoded == encode_canonical(entry.model_dump(mode="json"))
    assert parse_entry(entry.encoded) == entry


@pytest.mark.parametrize("value", [1.5, MAX_INTEGER + 1, {1: 2}, b"x", "\ud800", {"\udc00": 1}, [1.0]])
def test_a_body_that_has_no_canonical_form_makes_no_entry(value: Any) -> None:
    with pytest.raises(BadInput):
        encode_entry(made(body={"facts": value}))


def test_an_entry_nests_as_deep_as_canonical_json() -> None:
    deepest: Any = []
    for _ in range(MAX_DEPTH - 3):
        deepest = [deepest]
    entry = made(body={"a": deepest})
    assert entry.encoded == encode_canonical(entry.model_dump(mode="json"))
    with pytest.raises(BadInput, match="nesting"):
        made(body={"a": [deepest]})
    with pytest.raises(BadInput):
        parse_entry(entry.encoded.replace(b"[[]]", b"[[[]]]"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"body":{}', b'"body":{"b":1,"a":1}'),
        (b'"body":{}', b'"body":{"a":{"b":1,"a":1}}'),
        (b'"body":{}', b'"body":{"a":[{"b":1,"a":1}]}'),
        (b'"body":{}', b'"body":{"a":1e3}'),
        (b'"body":{}', b'"body":{"a":-0}'),
        (b'"body":{}', b'"body":{"a":NaN}'),
        (b'"body":{}', b'"body":{"a":9007199254740992}'),
        (b'"body":{}', b'"body":{"a":"\\u0041"}'),
        (b'"body":{}', b'"body":{"a":"\\/"}'),
        (b'"body":{}', b'"body":{"a":"\\ud800"}'),
        (b'"body":{}', b'"body":{"a":"\xff"}'),
        (b'"body":{}', '"body":{"\ue000":1,"\U00010000":1}'.encode()),
        (b'"documents":{}', f'"documents":{{"b":"{NO_DIGEST}","a":"{NO_DIGEST}"}}'.encode()),
        (b'"index":1', b'"index":9007199254740992'),
        (b'"index":1', b'"index":true'),
        (b'"v":1}', b'"v":1}\n'),
        (b'"v":1}', b'"v":1} '),
    ],
)
def test_entry_bytes_have_one_order(old: bytes, new: bytes) -> None:
    data = stage("initialized").add(Heartbeat()).encoded
    assert data.count(old) == 1
    with pytest.raises(BadInput):
        parse_entry(data.replace(old, new))


def fields_of(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field
        for part in [field.annotation, *get_args(field.annotation)]:
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from fields_of(part)


@pytest.mark.parametrize("model", EVENTS.values(), ids=lambda model: model.type)
def test_every_field_of_a_body_is_written_out(model: type[Event]) -> None:
    """A field with a default could be left out: two encodings of one value."""
    assert [name for name, field in fields_of(model) if not field.is_required()] == []
    assert model.model_config["strict"] and model.model_config["extra"] == "forbid"
    for part in (part for _, field in fields_of(model) for part in [field.annotation, *get_args(field.annotation)]):
        if isinstance(part, type) and issubclass(part, BaseModel):
            assert issubclass(part, Canonical), "or it would keep an order of its own"
