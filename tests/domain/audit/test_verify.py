"""The verification of a whole log: valid logs, defects that are found, and verdicts that are never given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.domain.actions.registry import NEWEST_RULES, RULE_SETS
from appliance.domain.audit.report import MAX_FINDINGS, Report
from appliance.domain.audit.verify import Audit, verify_log
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import NO_DIGEST, add_seconds
from appliance.domain.core.order import Order
from appliance.domain.core.policy import PolicySet
from appliance.domain.core.records.people import Principal
from appliance.domain.core.state import State
from appliance.domain.governance.countersignature import OrderRefused
from appliance.domain.governance.log_control import RotateLogKey
from appliance.domain.governance.service import Heartbeat
from appliance.domain.releases.reviews import ReviewRecorded
from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.commitment import Disclosure, commit
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import hash_leaf, root_of
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.log.trust import Trust
from appliance.formats.signatures.dsse import encode_envelope
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import ORIGIN, LogBuilder, policy_digest, policy_set, stage


def verify(
    site: LogBuilder,
    entries: Iterable[bytes] | None = None,
    *,
    documents: Mapping[str, bytes] | None = None,
    disclosures: Iterable[Disclosure] | None = None,
    **changes: Any,
) -> Report:
    defaults: dict[str, Any] = {"checkpoint": site.checkpoint(), "trust": site.trust, "now": site.now} | changes
    return verify_log(
        site.entries if entries is None else entries,
        (site.documents if documents is None else documents).get,
        site.disclosures if disclosures is None else disclosures,
        **defaults,
    )


def named(report: Report) -> set[int | None]:
    return {finding.index for finding in report.findings}


def rules(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings}


def reforged(site: LogBuilder, index: int, /, **changes: Any) -> list[bytes]:
    """Return the log with one entry changed and every later one chained to it anew."""
    entries: list[bytes] = []
    for place, data in enumerate(site.entries):
        value = parse_canonical(data)
        if place == index:
            value |= changes
        if entries:
            value["prev"] = f"sha256:{hash_leaf(entries[-1]).hex()}"
        entries.append(encode_canonical(value))
    return entries


def signed_over(site: LogBuilder, entries: list[bytes]) -> bytes:
    """Sign a history of one's own, as the owner of the log's key could."""
    return sign_checkpoint(Checkpoint(ORIGIN, len(entries), root_of(map(hash_leaf, entries))), site.log)


# What holds.


def test_a_whole_log_is_verified_and_counted() -> None:
    site = stage("serving")
    report = verify(site)
    assert (report.verdict, report.findings, report.essential) == ("verified", (), ())
    counts = report.counts
    kinds = [parse_entry(data) for data in site.entries]
    assert counts.entries == report.size == len(site.entries)
    assert counts.orders == sum("order" in entry.documents for entry in kinds)
    assert counts.documents == sum(len(entry.documents) for entry in kinds)
    signed = sum(
        role in entry.documents
        for entry in kinds
        for role in ("order", "countersigned", "possession", "signature", "provenance")
    )
    assert counts.signatures == signed + 1, "the checkpoint's too"
    assert (counts.adapters, counts.disclosures) == (1, len(site.disclosures))
    assert report.head == site.state.last_leaf
    assert report.checkpoint_root == report.root
    assert report.trust is not None and report.trust.administrators == ("anna", "ben")


@pytest.mark.parametrize("name", ["initialized", "staffed", "imported", "trained", "sealed", "approved", "released"])
def test_a_log_is_verified_at_every_stage(name: str) -> None:
    assert verify(stage(name)).verdict == "verified"


def test_cedar_policies_are_said_to_be_not_replayed_where_there_is_no_cedar() -> None:
    report = verify(stage("initialized"))
    assert report.cedar_policies == "not replayed"
    assert any(text.startswith("Cedar policies: not replayed") for text in report.unchecked)


def test_a_single_administrator_is_remarked() -> None:
    report = verify(LogBuilder(single=True))
    assert (report.verdict, report.single_administrator) == ("verified", True)
    assert any(text.startswith("single administrator") for text in report.remarks)


def test_a_log_from_the_future_is_remarked() -> None:
    site = stage("initialized")
    assert any(text.startswith("clock") for text in verify(site, now="2020-01-01T00:00:00.000Z").remarks)
    assert verify(site).remarks == ()


# What is never verified.


@pytest.mark.parametrize("missing", ["trust", "checkpoint"])
def test_without_trust_or_checkpoint_a_whole_log_is_unverifiable(missing: str) -> None:
    report = verify(stage("serving"), **{missing: None})
    assert report.verdict == "unverifiable"
    assert report.findings == () and report.essential


def test_nothing_is_unverifiable() -> None:
    site = stage("initialized")
    for checkpoint in (None, sign_checkpoint(Checkpoint(ORIGIN, 0, root_of([])), site.log)):
        report = verify(site, [], checkpoint=checkpoint, disclosures=[])
        assert (report.verdict, report.counts.entries) == ("unverifiable", 0)
        assert "entries: there are none" in report.essential


def test_no_entries_under_a_checkpoint_of_some_are_a_log_cut_short() -> None:
    site = stage("initialized")
    report = verify(site, [], disclosures=[])
    assert report.verdict == "failed"
    assert "expected 1 entries, as the checkpoint says, got 0" in report.findings[0].message


def test_a_broken_log_without_a_trust_file_has_failed() -> None:
    site = stage("staffed")
    report = verify(site, [*site.entries[:3], *site.entries[4:]], trust=None, checkpoint=None, disclosures=[])
    assert report.verdict == "failed"


# The trust file.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: replace(t, genesis=NO_DIGEST), "entry 0, hash: expected"),
        (lambda t: replace(t, administrators=(("anna", t.administrators[0][1]),)), "entry 0, administrators: expected"),
        (lambda t: replace(t, administrators=(*t.administrators[:1], ("ben", NO_DIGEST))), "entry 0, administrators"),
    ],
)
def test_a_log_that_is_not_the_trusted_one_is_found(change: Callable[[Trust], Trust], words: str) -> None:
    site = stage("staffed")
    report = verify(site, trust=change(site.trust))
    assert report.verdict == "failed"
    assert any(words in finding.message and finding.rule == "trust" for finding in report.findings)


def test_another_site_of_the_same_origin_is_found() -> None:
    """Same name, same people's names: another log key, other keys."""
    report = verify(stage("serving"), trust=LogBuilder().trust)
    assert report.verdict == "failed"
    assert {"checkpoint", "trust"} <= rules(report)
    assert report.checkpoint_size is None


# The checkpoint.


def test_a_checkpoint_by_another_key_is_found() -> None:
    site = stage("staffed")
    leaves = list(map(hash_leaf, site.entries))
    forged = sign_checkpoint(Checkpoint(ORIGIN, len(leaves), root_of(leaves)), generate_ed25519())
    report = verify(site, checkpoint=forged)
    assert (report.verdict, rules(report)) == ("failed", {"checkpoint"})


def test_a_checkpoint_of_another_log_is_found() -> None:
    site = stage("staffed")
    leaves = list(map(hash_leaf, site.entries))
    other = sign_checkpoint(Checkpoint("other.example/log", len(leaves), root_of(leaves)), site.log)
    assert rules(verify(site, checkpoint=other)) == {"checkpoint"}


@pytest.mark.parametrize("data", [b"", b"{}", b"bank.example/log\n1\n"])
def test_what_is_no_checkpoint_is_found(data: bytes) -> None:
    assert rules(verify(stage("staffed"), checkpoint=data)) == {"checkpoint"}


def test_without_trust_the_checkpoint_is_held_against_the_logs_own_key() -> None:
    site = stage("staffed")
    leaves = list(map(hash_leaf, site.entries))
    forged = sign_checkpoint(Checkpoint(ORIGIN, len(leaves), root_of(leaves)), generate_ed25519())
    assert verify(site, checkpoint=forged, trust=None).verdict == "failed"


def test_entries_beyond_the_checkpoint_are_named() -> None:
    site = stage("staffed")
    report = verify(site, checkpoint=site.checkpoint(5))
    assert report.verdict == "failed"
    assert [(f.index, f.rule) for f in report.findings] == [(5, "size")]


def test_a_root_that_was_not_signed_names_the_last_entry() -> None:
    site = stage("staffed")
    last = len(site.entries) - 1
    report = verify(site, reforged(site, last, source="tcp"))
    assert [(f.index, f.rule) for f in report.findings] == [(last, "root")]
    assert f"entry {last}: expected the signed root" in report.findings[0].message


def test_a_last_entry_that_names_another_before_it_is_named_too() -> None:
    site = stage("staffed")
    last = len(site.entries) - 1
    edited = encode_canonical(parse_canonical(site.entries[last]) | {"prev": NO_DIGEST})
    report = verify(site, [*site.entries[:last], edited])
    assert [(f.index, f.rule) for f in report.findings] == [(last - 1, "chain"), (last, "root")]
    assert report.findings[1].message.startswith(f"entry {last} or the one before: expected the signed root")


def test_a_history_rewritten_from_an_entry_on_does_not_have_the_signed_root() -> None:
    site = stage("serving")
    report = verify(site, reforged(site, 4, source="tcp"))
    assert (report.verdict, rules(report)) == ("failed", {"root"})


def test_a_first_entry_that_follows_something_is_named() -> None:
    site = stage("staffed")
    entries = reforged(site, 0, prev="sha256:" + "1" * 64)
    report = verify(site, entries, checkpoint=signed_over(site, entries), trust=None)
    assert [(f.index, f.rule) for f in report.findings] == [(0, "chain")]
    assert "entry 0, prev: expected" in report.findings[0].message


def test_a_log_of_one_entry_is_held_against_its_checkpoint() -> None:
    site = stage("initialized")
    assert verify(site).verdict == "verified"
    assert verify(site, trust=None).verdict == "unverifiable"
    other = signed_over(site, [b"another"])
    assert rules(verify(site, checkpoint=other, trust=None)) == {"root"}


def quiet(site: LogBuilder) -> int:
    """Append entries that no other entry needs. Return the index of the middle one."""
    middle = site.add(Heartbeat()).index + 1
    for _ in range(3):
        site.add(Heartbeat())
    return middle


def test_after_a_gap_the_rest_is_replayed_in_its_place() -> None:
    site = stage("staffed")
    middle = quiet(site)
    entries = [*site.entries[:middle], *site.entries[middle + 1 :]]
    report = verify(site, entries)
    assert [(f.index, f.rule) for f in report.findings] == [(middle, "sequence"), (None, "size")]
    assert report.counts.entries == len(entries)
    assert any(text.startswith(f"entry {middle} was not replayed") for text in report.unchecked)


def test_after_an_edit_the_rest_is_replayed_in_its_place() -> None:
    site = stage("staffed")
    middle = quiet(site)
    edited = encode_canonical(parse_canonical(site.entries[middle]) | {"source": "tcp"})
    report = verify(site, [*site.entries[:middle], edited, *site.entries[middle + 1 :]])
    assert [(f.index, f.rule) for f in report.findings] == [(middle, "chain"), (None, "root")]
    assert report.counts.entries == len(site.entries)


def test_after_an_entry_that_does_not_stand_the_rest_is_replayed_in_its_place() -> None:
    site = stage("staffed")
    middle = quiet(site)
    entries = reforged(site, middle, actor="anna")
    report = verify(site, entries, checkpoint=signed_over(site, entries))
    assert [(f.index, f.rule) for f in report.findings] == [(middle, "denied")]
    assert report.counts.entries == len(entries) - 1


def test_after_bytes_that_are_no_entry_the_rest_is_replayed_in_its_place() -> None:
    site = stage("staffed")
    middle = quiet(site)
    report = verify(site, [*site.entries[:middle], b"junk", *site.entries[middle + 1 :]])
    assert {(f.index, f.rule) for f in report.findings} == {(middle, "encoding"), (middle, "chain"), (None, "root")}
    assert report.counts.entries == len(site.entries) - 1


def test_an_owner_who_chains_over_bytes_that_are_no_entry_is_found_there_alone() -> None:
    site = stage("staffed")
    middle = quiet(site)
    entries = [*site.entries[:middle], b"junk"]
    for data in site.entries[middle + 1 :]:
        chained = parse_canonical(data) | {"prev": f"sha256:{hash_leaf(entries[-1]).hex()}"}
        entries.append(encode_canonical(chained))
    report = verify(site, entries, checkpoint=signed_over(site, entries))
    assert [(f.index, f.rule) for f in report.findings] == [(middle, "encoding")]
    assert report.counts.entries == len(entries) - 1


def test_time_that_goes_back_over_an_entry_that_does_not_stand_is_found() -> None:
    site = stage("staffed")
    middle = quiet(site)
    late = add_seconds(site.now, 3600)
    entries = reforged(site, middle, actor="anna", time=late)
    report = verify(site, entries, checkpoint=signed_over(site, entries))
    assert [f.rule for f in report.findings] == ["denied", "entry-out-of-order", "entry-out-of-order"]


# What an owner of the log's key, who signs a history of his own, does not get past.


def forged_by_owner(site: LogBuilder, entries: list[bytes], **changes: Any) -> Report:
    return verify(site, entries, checkpoint=signed_over(site, entries), **changes)


def test_an_owner_who_changes_an_outcome_is_found_by_the_rules() -> None:
    site = stage("serving")
    index = next(i for i, data in enumerate(site.entries) if b'"review.recorded"' in data)
    report = forged_by_owner(site, reforged(site, index, actor="raul"))
    assert report.verdict == "failed"
    assert index in named(report)
    assert "actor: expected the signer rita, got raul" in report.findings[0].message


def test_an_owner_who_leaves_out_a_review_is_found_where_it_was_needed() -> None:
    site = stage("serving")
    index = next(i for i, data in enumerate(site.entries) if b'"review.recorded"' in data)
    entries: list[bytes] = []
    for data in [*site.entries[:index], *site.entries[index + 1 :]]:
        value = parse_canonical(data)
        value["index"] = len(entries)
        if entries:
            value["prev"] = f"sha256:{hash_leaf(entries[-1]).hex()}"
        entries.append(encode_canonical(value))
    report = forged_by_owner(site, entries)
    assert report.verdict == "failed"
    released = next(i for i, data in enumerate(entries) if b'"release.activated"' in data)
    finding = next(f for f in report.findings if f.index == released)
    assert "needs 2 valid approvals" in finding.message
    assert f"entry {released} was not replayed" in report.unchecked[-1]


def test_an_owner_who_forges_an_approval_is_found() -> None:
    """He has the service's keys and no reviewer's."""
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    envelope = site.sign(order, generate_ed25519())
    entry, documents = site.entry(
        ReviewRecorded(policy=site.in_force),
        documents={"order": encode_envelope(envelope)},
        signed=((envelope.pae_digest, order),),
    )
    entries = [*site.entries, entry.encoded]
    kept = {**site.documents, entry.documents["order"]: documents["order"]}
    report = forged_by_owner(site, entries, documents=kept)
    assert (entry.index, "not-authenticated") in [(f.index, f.rule) for f in report.findings]
    assert {f.rule for f in report.findings} <= {"not-authenticated", "unbound-text"}
    assert report.counts.entries == len(site.entries)


def test_after_a_first_entry_that_does_not_stand_nothing_is_replayed_and_that_is_said() -> None:
    site = stage("staffed")
    entries = reforged(site, 0, outcome="failure")
    report = forged_by_owner(site, entries, disclosures=[])
    assert report.verdict == "failed"
    assert report.counts.entries == 0
    assert any("since the first entry does not hold" in text for text in report.unchecked)


# Documents and texts.


def test_a_document_that_is_gone_is_named() -> None:
    site = stage("staffed")
    index, entry = next((i, parse_entry(d)) for i, d in enumerate(site.entries) if b'"possession"' in d)
    digest = entry.documents["possession"]
    report = verify(site, documents={k: v for k, v in site.documents.items() if k != digest})
    finding = report.findings[0]
    assert (finding.index, finding.rule) == (index, "document-invalid")
    assert f"document possession: expected {digest}, got none" in finding.message


def test_a_document_of_other_bytes_is_named() -> None:
    site = stage("staffed")
    index, entry = next((i, parse_entry(d)) for i, d in enumerate(site.entries) if b'"possession"' in d)
    digest = entry.documents["order"]
    report = verify(site, documents={**site.documents, digest: site.documents[digest] + b"\n"})
    assert (report.findings[0].index, report.findings[0].rule) == (index, "document-invalid")


def test_a_text_that_does_not_open_its_commitment_is_found_and_not_shown() -> None:
    site = stage("staffed")
    first = site.disclosures[0]
    lie = Disclosure(first.commitment, first.salt, "Mallory Example")
    report = verify(site, disclosures=[lie, *site.disclosures[1:]])
    assert (report.verdict, rules(report)) == ("failed", {"disclosure", "missing-text"})
    assert "Mallory" not in report.model_dump_json()
    assert report.counts.disclosures == len(site.disclosures) - 1


def test_a_text_that_nothing_binds_is_found() -> None:
    site = stage("staffed")
    salt = bytes(32)
    stray = Disclosure(commit("stray", salt), salt, "stray")
    assert rules(verify(site, disclosures=[*site.disclosures, stray])) == {"unbound-text"}


def test_an_erased_text_leaves_the_log_verified() -> None:
    site = stage("kept")
    report = verify(site)
    erased = [text for text in site.state.texts.values() if text.erased is not None]
    assert len(erased) == 1
    assert (report.verdict, report.counts.disclosures) == ("verified", len(site.state.texts) - 1)


def test_a_text_that_no_entry_erased_and_that_is_gone_is_found() -> None:
    """A database administrator can remove it; the entry that binds it shows that it existed."""
    site = stage("staffed")
    gone, *others = site.disclosures
    report = verify(site, disclosures=others)
    assert report.verdict == "failed"
    (finding,) = report.findings
    bound = site.state.texts.get(gone.commitment)
    assert bound is not None and (finding.index, finding.rule) == (bound.entry, "missing-text")
    assert f"disclosure {gone.commitment}: expected its text, which no entry erased, got none" in finding.message


def test_what_no_rule_foresaw_is_a_finding_and_no_end_of_the_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    def unforeseen(_case: object) -> None:
        raise OverflowError

    site = stage("staffed")
    site.add(Heartbeat())
    monkeypatch.setitem(RULE_SETS[NEWEST_RULES].rules, "heartbeat", unforeseen)
    report = verify(site)
    assert report.verdict == "failed"
    (finding,) = report.findings
    assert finding.index == len(site.entries) - 1
    assert finding.message.endswith("expected what a rule can check, got OverflowError")


def test_what_only_begins_as_a_commitment_is_no_text() -> None:
    """An attacker with the log's key can record a refused order that the service would not have recorded."""
    site = stage("staffed")
    order = site.order(RotateLogKey, "anna", log_key="hmac-sha256:zz", old_until=site.now)
    envelope = site.sign(order)
    body = OrderRefused(order=envelope.pae_digest, action=order.action, code="denied", refusals=())
    site.add(body, actor="anna", outcome="denied", documents={"order": encode_envelope(envelope)})
    assert verify(site).verdict == "verified"


# Any change of a log that its owner has signed.

SITE = stage("serving")
SIZE = len(SITE.entries)
INDEX = st.integers(0, SIZE - 1)
KNOWN = re.compile(r"entry (\d+)")


def assert_found(report: Report, *indexes: int) -> None:
    assert report.verdict == "failed"
    assert set(indexes) & named(report), (indexes, report.findings)
    assert all(finding.message for finding in report.findings)


@pytest.mark.essential
@settings(max_examples=50, deadline=None)
@given(index=INDEX, data=st.data())
def test_any_edit_of_any_byte_is_found_and_named(index: int, data: st.DataObject) -> None:
    old = SITE.entries[index]
    place = data.draw(st.integers(0, len(old) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != old[place]))
    edited = old[:place] + bytes([byte]) + old[place + 1 :]
    assert_found(verify(SITE, [*SITE.entries[:index], edited, *SITE.entries[index + 1 :]]), index)


FIELDS = st.sampled_from(
    ["actor", "source", "subjects", "outcome", "time", "body", "documents", "type", "prev", "index"]
)
VALUES = {
    "actor": "eve",
    "source": "elsewhere",
    "subjects": ["unit:nowhere"],
    "outcome": "interrupted",
    "time": "2026-01-15T09:59:59.999Z",
    "body": {},
    "documents": {"order": NO_DIGEST},
    "type": "service.stopped",
    "prev": NO_DIGEST,
    "index": 77,
}


@pytest.mark.thorough
@settings(max_examples=40, deadline=None)
@given(index=st.integers(1, SIZE - 1), field=st.sampled_from(sorted(VALUES)))
def test_any_edit_of_any_field_is_found_and_named(index: int, field: str) -> None:
    value = parse_canonical(SITE.entries[index])
    edited = encode_canonical(value | {field: VALUES[field]})
    if edited == SITE.entries[index]:
        return
    report = verify(SITE, [*SITE.entries[:index], edited, *SITE.entries[index + 1 :]])
    assert_found(report, index)


@pytest.mark.thorough
@settings(max_examples=25, deadline=None)
@given(index=INDEX)
def test_any_entry_dropped_is_found_and_named(index: int) -> None:
    report = verify(SITE, [*SITE.entries[:index], *SITE.entries[index + 1 :]])
    if index < SIZE - 1:
        assert_found(report, index)
    assert f"expected {SIZE} entries, as the checkpoint says, got {SIZE - 1}" in str(report.findings)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(0, SIZE - 1))
def test_any_tail_cut_off_is_found_with_both_sizes(size: int) -> None:
    report = verify(SITE, SITE.entries[:size], disclosures=[])
    assert report.verdict == "failed"
    assert [f.message for f in report.findings if f.rule != "missing-text"] == [
        f"size: expected {SIZE} entries, as the checkpoint says, got {size}: the log is cut short"
    ]


@settings(max_examples=25, deadline=None)
@given(pair=st.lists(INDEX, min_size=2, max_size=2, unique=True).map(sorted))
def test_any_two_entries_swapped_are_found_and_named(pair: list[int]) -> None:
    first, second = pair
    entries = list(SITE.entries)
    entries[first], entries[second] = entries[second], entries[first]
    assert_found(verify(SITE, entries), first)


@pytest.mark.thorough
@settings(max_examples=25, deadline=None)
@given(index=INDEX, copied=INDEX)
def test_any_entry_put_in_is_found_and_named(index: int, copied: int) -> None:
    report = verify(SITE, [*SITE.entries[:index], SITE.entries[copied], *SITE.entries[index:]])
    assert_found(report, index, index - 1, copied, copied + 1)
    assert SIZE in named(report), "one more than the checkpoint says"


@pytest.mark.thorough
@settings(max_examples=15, deadline=None)
@given(index=st.integers(1, SIZE - 1), source=st.sampled_from(["tcp", "x"]))
def test_a_history_rewritten_and_chained_again_is_found(index: int, source: str) -> None:
    report = verify(SITE, reforged(SITE, index, source=source))
    assert (report.verdict, report.findings[-1].rule) == ("failed", "root")


@pytest.mark.thorough
@settings(max_examples=50, deadline=None)
@given(index=INDEX, junk=st.one_of(st.binary(max_size=80), st.just(b"[" * 5000), st.just(b"x" * 70_000)))
def test_bytes_that_are_no_entry_are_findings_and_never_a_crash(index: int, junk: bytes) -> None:
    report = verify(SITE, [*SITE.entries[:index], junk, *SITE.entries[index + 1 :]])
    assert_found(report, index)
    assert "encoding" in rules(report)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8) | st.just(NO_DIGEST),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(index=INDEX, data=st.data(), junk=JSON)
def test_a_hostile_owners_body_is_a_finding_and_never_a_crash(index: int, data: st.DataObject, junk: Any) -> None:
    """One member of the body or the entry is anything at all; the rest is chained and signed by the log's own key."""
    value = parse_canonical(SITE.entries[index])
    where = value["body"] if value["body"] and data.draw(st.booleans()) else value
    where[data.draw(st.sampled_from(sorted(where)))] = junk
    entries = reforged(SITE, index, **value)
    if entries != SITE.entries:
        assert verify(SITE, entries, checkpoint=signed_over(SITE, entries)).verdict in ("failed", "verified")


@pytest.mark.thorough
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_document_of_any_bytes_is_a_finding_and_never_a_crash(data: st.DataObject) -> None:
    """Bound by its true digest, in a log that its owner signs: what the rules parse is hostile."""
    index = data.draw(st.sampled_from([i for i, d in enumerate(SITE.entries) if parse_entry(d).documents]))
    entry = parse_entry(SITE.entries[index])
    role = data.draw(st.sampled_from(sorted(entry.documents)))
    true = SITE.documents[entry.documents[role]]
    place = data.draw(st.integers(0, len(true) - 1))
    junk = data.draw(
        st.sampled_from([b"", b"{}", b"[]", b"null", true[:place], true + b" "])
        | st.binary(max_size=20)
        | st.integers(0, 255).map(lambda byte: true[:place] + bytes([byte]) + true[place + 1 :])
    )
    changed = {**entry.documents, role: digest_bytes(junk)}
    entries = reforged(SITE, index, documents=changed)
    report = verify(
        SITE,
        entries,
        checkpoint=signed_over(SITE, entries),
        documents={**SITE.documents, digest_bytes(junk): junk},
        disclosures=[],
    )
    assert report.verdict == "failed" or junk == true


def test_findings_are_bounded_and_the_rest_is_counted() -> None:
    site = stage("initialized")
    entries = [*site.entries, *[b"junk"] * (MAX_FINDINGS + 7)]
    report = verify(site, entries, checkpoint=signed_over(site, entries))
    assert (len(report.findings), report.omitted) == (MAX_FINDINGS, 7)


# Cedar policies.


class Recorder:
    """A stand-in of `access`: forbids what it is given, and records the policy sets."""

    def __init__(self, forbidden: str = "", broken: bool = False) -> None:
        self.forbidden, self.broken = forbidden, broken
        self.wanted: list[tuple[str, str]] = []

    def __call__(self, policy: PolicySet) -> Callable[[Principal, Order, State, str], tuple[str, ...]]:
        if self.broken:
            raise BadInput("policy set: expected Cedar, got none")

        def decide(principal: Principal, order: Order, state: State, now: str) -> tuple[str, ...]:
            assert principal.name == order.signer
            self.wanted.append((policy_digest(policy), order.action))
            return ("Cedar policy no-go: forbids it",) if order.action == self.forbidden else ()

        return decide


def test_cedar_policies_are_asked_again_for_every_order_under_the_set_in_force() -> None:
    site = stage("approved")
    site.adopt(policy_set(clock_skew_s=61))
    site.activate()
    recorder = Recorder()
    report = verify(site, replay=recorder)
    assert (report.verdict, report.cedar_policies) == ("verified", "replayed")
    bound = [role for data in site.entries for role in parse_entry(data).documents]
    assert report.counts.decisions == bound.count("order")
    assert len(recorder.wanted) == bound.count("order") + bound.count("countersigned")
    assert [action for digest, action in recorder.wanted if digest != policy_digest(site.policy)] == ["activate"]


def test_an_order_that_the_sites_policies_forbid_is_named() -> None:
    report = verify(SITE, replay=Recorder("activate"))
    index = next(i for i, data in enumerate(SITE.entries) if b'"release.activated"' in data)
    assert [(f.index, f.rule) for f in report.findings] == [(index, "cedar-policy")]
    assert "Cedar policy no-go" in report.findings[0].message


def test_cedar_policies_that_cannot_be_read_are_a_finding() -> None:
    report = verify(SITE, replay=Recorder(broken=True))
    assert (report.verdict, rules(report)) == ("failed", {"cedar-policy"})
    assert report.counts.decisions == 0


# A verification under way.


def test_a_verification_gives_the_fold_it_made() -> None:
    audit = Audit(SITE.documents.get, SITE.disclosures, SITE.checkpoint(), SITE.trust)
    for data in SITE.entries:
        audit.take(data)
    assert list(audit.state.projections()) == list(SITE.state.projections())
    assert audit.report(add_seconds(SITE.now, 1)).verdict == "verified"
