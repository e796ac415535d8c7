"""Two who verify a log at the same time say what one says: of whole logs, of broken ones, wherever they part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.domain import events as e
from appliance.domain.ahead import verify_first, verify_second
from appliance.domain.report import Report
from appliance.domain.verify import Audit, verify_log
from appliance.errors import ApplianceError
from appliance.formats.canonical import encode_canonical, parse_canonical
from appliance.formats.commitment import Disclosure
from tests.domain.builder import Site, stage
from tests.domain.test_verify import reforged, signed_over


def long_site() -> Site:
    """Requests in flight, a service that starts again, and more signed orders, after the whole journey."""
    site = stage("serving")
    for number in range(3, 9):
        site.add(site.request(number))
        if number % 2:
            site.add(site.answered(number))
        site.add(e.Heartbeat())
    site.review("rita", "privacy")
    site.add(e.RequestRefused(unit="sales", code="not-found", message="no release", count=1))
    site.add(site.answered(4))
    site.revoke("raul")
    site.add(e.AuthRefused(count=1, since=site.now))
    return site


SITE = long_site()
SIZE = len(SITE.entries)


def alone(
    entries: Iterable[bytes], documents: Mapping[str, bytes], disclosures: list[Disclosure], note: bytes
) -> Report:
    return verify_log(entries, documents.get, disclosures, note, SITE.trust, now=SITE.now)


def by_two(
    entries: list[bytes], documents: Mapping[str, bytes], disclosures: list[Disclosure], note: bytes, start: int
) -> tuple[Report, bool]:
    """The report, and whether the two have verified the log together."""
    try:
        first = verify_first(Audit(documents.get, (), None, None), iter(entries), start)
        audit = Audit(documents.get, disclosures, note, SITE.trust)
        if verify_second(audit, iter(entries), start, documents.get) == first.ended:
            audit.count(first.counted)
            return audit.report(SITE.now), True
    except (ApplianceError, LookupError):  # a process that has ended, whyever, has said nothing
        pass
    return alone(entries, documents, disclosures, note), False


@pytest.mark.parametrize("start", [*range(1, SIZE, 4), SIZE - 1])
def test_a_whole_log_may_be_parted_anywhere(start: int) -> None:
    report, joined = by_two(SITE.entries, SITE.documents, SITE.disclosures, SITE.checkpoint(), start)
    assert joined, "both parts were verified once"
    assert report == alone(SITE.entries, SITE.documents, SITE.disclosures, SITE.checkpoint())
    assert report.verdict == "verified"


def broken(kind: str, index: int, other: int) -> list[bytes]:
    entries = list(SITE.entries)
    edits: dict[str, list[bytes]] = {
        "edit": [entries[index].replace(b'"source":"unix"', b'"source":"tcp"')],
        "drop": [],
        "insert": [entries[other], entries[index]],
        "repeat": [entries[index], entries[index]],
        "junk": [b"junk"],
        "rename": [entries[index].replace(b'"request:0', b'"request:1').replace(b'"request":"0', b'"request":"1')],
    }
    if kind in edits:
        entries[index : index + 1] = edits[kind]
    elif kind == "swap":
        entries[index], entries[other] = entries[other], entries[index]
    elif kind == "cut":
        del entries[index:]
    else:
        entries = reforged(SITE, index, **{"fork": {"source": "tcp"}, "forge": {"actor": "legal"}}[kind])
    return entries


INDEX = st.integers(0, SIZE - 1)
KINDS = ["edit", "drop", "insert", "repeat", "junk", "rename", "swap", "cut", "fork", "forge"]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(KINDS), st.integers(0, SIZE - 1), st.integers(0, SIZE - 1), st.integers(1, SIZE - 1), st.booleans()
)
def test_of_a_broken_log_two_say_what_one_says(kind: str, index: int, other: int, start: int, signed: bool) -> None:
    entries = broken(kind, index, other)
    note = signed_over(SITE, entries) if signed else SITE.checkpoint()
    report, _ = by_two(entries, SITE.documents, SITE.disclosures, note, start)
    assert report == alone(entries, SITE.documents, SITE.disclosures, note)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(SITE.documents)), st.sampled_from(SITE.disclosures), st.integers(1, SIZE - 1))
def test_of_a_log_that_lost_a_document_or_a_text_two_say_what_one_says(lost: str, text: Disclosure, start: int) -> None:
    documents = {digest: data for digest, data in SITE.documents.items() if digest != lost}
    lie = Disclosure(text.commitment, bytes(32), "no such text")
    for kept, texts in ((documents, SITE.disclosures), (SITE.documents, [lie]), (SITE.documents, [])):
        report, _ = by_two(SITE.entries, kept, texts, SITE.checkpoint(), start)
        assert report == alone(SITE.entries, kept, texts, SITE.checkpoint())


def test_a_first_part_that_ended_in_another_state_is_not_the_one_that_was_believed() -> None:
    """It differs where only its own verification sees it."""
    start = SIZE - 2
    index = next(i for i, data in enumerate(SITE.entries) if b'"request.admitted"' in data)
    lied = reforged(SITE, index, subjects=["request:" + "e" * 32])
    first = verify_first(Audit(SITE.documents.get, (), None, None), iter(SITE.entries), start)
    audit = Audit(SITE.documents.get, [], signed_over(SITE, lied), None)
    assert verify_second(audit, iter(lied), start, SITE.documents.get) != first.ended


@pytest.mark.parametrize("part", [verify_first, verify_second])
def test_a_finding_in_either_part_ends_it(part: Any) -> None:
    entries = list(SITE.entries)
    place = 3 if part is verify_first else SIZE - 3
    entries[place] = (
        entries[place].replace(b'"source":"unix"', b'"source":"tcp"').replace(b'"source":"service"', b'"source":"x"')
    )
    audit = Audit(SITE.documents.get, [], SITE.checkpoint(), SITE.trust)
    rest = () if part is verify_first else (SITE.documents.get,)
    with pytest.raises(ApplianceError):
        part(audit, iter(entries), SIZE - 8, *rest)


def test_whoever_believes_the_first_part_still_holds_it_against_the_trust_file() -> None:
    audit = Audit(SITE.documents.get, [], SITE.checkpoint(), stage_of_another().trust)
    with pytest.raises(ApplianceError):
        verify_second(audit, iter(SITE.entries), SIZE - 4, SITE.documents.get)


def stage_of_another() -> Site:
    return Site()


@pytest.mark.parametrize("field", ["size", "last_time", "last_leaf"])
def test_the_fingerprint_is_of_the_whole_state(field: str) -> None:
    audit = Audit(SITE.documents.get, (), None, None)
    for data in SITE.entries:
        audit.take(data)
    seen = {audit.fingerprint()}
    for table in audit.state.tables:
        for key, value in list(table.items()):
            table.set(key, None)
            assert audit.fingerprint() not in seen, (table.kind, key)
            table.set(key, value)
            seen = {audit.fingerprint()}
    before = audit.fingerprint()
    setattr(audit.state, field, 7 if field == "size" else "x")
    assert audit.fingerprint() != before


def test_a_request_named_otherwise_in_subject_and_body_is_found() -> None:
    """The fold ahead reads a request's name where the rules do not."""
    index = next(i for i, data in enumerate(SITE.entries) if b'"request.admitted"' in data)
    value: dict[str, Any] = parse_canonical(SITE.entries[index])
    entries = reforged(SITE, index, subjects=["request:" + "f" * 32, *value["subjects"][1:]])
    note = signed_over(SITE, entries)
    report, joined = by_two(entries, SITE.documents, SITE.disclosures, note, SIZE - 1)
    assert (report.verdict, joined) == ("failed", False)
    assert report == alone(entries, SITE.documents, SITE.disclosures, note)
    assert encode_canonical(value) == SITE.entries[index]
