"""Archives of records: a log without them verifies, and no order can remove anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from appliance.domain.audit import archives
from appliance.domain.audit.archives import (
    Selection,
    digest_authority,
    find_archive_problems,
    find_cosigned_note,
    replay_states,
)
from appliance.domain.audit.report import Report
from appliance.domain.audit.verify import verify_log
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import add_seconds
from appliance.domain.core.policy import Retention
from appliance.domain.retention import ARCHIVE_UNFIT, ArchiveLog, LogArchived, find_retention_time, has_bit, list_bits
from appliance.errors import BadInput, Conflict, Denied
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import root_of
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint, witness_vkey_of
from appliance.formats.log.export import encode_removed, hash_line, read_removed
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import ORIGIN, LogBuilder
from tests.kit.archived_log import (
    CLASSES,
    DAY_S,
    NAME,
    VKEY,
    archive_of,
    archive_order,
    archived,
    cosign,
    log_bytes,
    old_site,
    policy_set,
    prepare,
    refuse,
    remove,
)
from tests.kit.refusals import refuses


def verify(site: LogBuilder, entries: Iterable[bytes] | None = None, **changes: Any) -> Report:
    lines = list(site.entries if entries is None else entries)
    leaves = [hash_line(data) for data in lines]
    given: dict[str, Any] = {
        "entries": lines,
        "documents": site.documents.get,
        "disclosures": site.disclosures,
        "checkpoint": sign_checkpoint(Checkpoint(ORIGIN, len(leaves), root_of(leaves)), site.log),
        "trust": site.trust,
        "again": lambda: lines,
    }
    return verify_log(**given | changes, now=add_seconds(site.now, 1))


def rules_of(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings}


@pytest.fixture(scope="module")
def whole() -> LogBuilder:
    """Return a site whose old records are archived, with all bytes still there."""
    return old_site()


def bits_of(site: LogBuilder, *types: str) -> bytes:
    """Return the bit list of the entries of these types."""
    found = [parse_entry(data) for data in site.entries]
    return sum(1 << entry.index for entry in found if entry.type in types).to_bytes(64, "little").rstrip(b"\0")


def test_a_log_without_its_old_records_verifies_and_so_it_does_with_their_archive() -> None:
    site = old_site()
    order, prepared = prepare(site)
    whole = site.fork()
    archived(site, order, prepared.removed)
    assert sum(read_removed(data) is not None for data in site.entries) == order.count == 14
    report = verify(site)
    assert (report.verdict, report.findings) == ("verified", ())
    (line,) = (one for one in report.unchecked if order.archive in one)
    assert line.startswith(f"14 of the 14 entries that entry {len(site.entries) - 1} removed")
    (remark,) = report.remarks
    assert "by order of anna and ben" in remark
    # The archive's bytes in their places.
    entries = [*whole.entries, *site.entries[len(whole.entries) :]]
    documents = whole.documents | site.documents
    report = verify(site, entries, documents=documents.get, with_archives=True)
    assert (report.verdict, report.findings) == ("verified", ())
    assert not [one for one in report.unchecked if order.archive in one]


def test_the_state_is_the_same_with_and_without_the_removed_entries() -> None:
    site = old_site()
    order, prepared = prepare(site)
    archived(site.fork(), order, prepared.removed)
    ahead = site.fork()
    archived(ahead, order, prepared.removed)
    (replayed,) = replay_states(ahead.entries, ahead.documents.get, {len(ahead.entries)})
    kept = {(kind, key): value for kind, key, value in ahead.state.projections()}
    assert kept == {(kind, key): value for kind, key, value in replayed.projections()}
    assert digest_authority(replayed) == digest_authority(ahead.state)


def test_the_archive_is_an_export_that_verifies_by_itself() -> None:
    site = old_site()
    order, _ = prepare(site)
    assert digest_bytes(archive_of(site)) == order.archive
    assert find_archive_problems(log_bytes(site), order, prepare(site)[1].removed) == []


# What stays.


def test_an_entry_under_a_legal_hold_stays() -> None:
    site = old_site()
    site.hold("unit:legal")
    cosign(site)
    _, prepared = prepare(site)
    assert prepared.selection.removed == {"previews": 4, "refusals": 1, "replays": 2}
    assert prepared.selection.kept == {"held": 7, "open": 1}


def test_a_hold_after_the_archive_stops_it() -> None:
    site = old_site()
    order, prepared = prepare(site)
    held = site.hold("principal:rita")
    with refuses(site, Denied, f"Entry {held.index} placed a legal hold on rita after"):
        site.two(LogArchived(policy=site.in_force), order, {"removed": prepared.removed})


def test_a_hold_on_a_person_keeps_both_entries_of_a_sample_view() -> None:
    """Its end has no actor but the service."""
    site = old_site()
    site.hold("principal:rita")
    cosign(site)
    selection = Selection(site.state, len(site.entries), ("previews",))
    selection.read(site.entries, site.documents.get)
    assert (selection.kept["held"], selection.removed.total()) == (4, 0)


def test_a_hold_on_what_a_refused_order_is_about_keeps_the_refusal_with_its_text() -> None:
    """The refusal's own subjects are its order's identity alone."""
    site = old_site()
    _, unheld = prepare(site, records=("refusals",))
    site.hold("adapter:clauses@1")
    cosign(site)
    _, held = prepare(site, records=("refusals",))
    assert (unheld.fields.count, held.fields.count, held.selection.kept["held"]) == (2, 1, 1)
    order = archive_order(site, held, count=2, removed=unheld.fields.removed)
    assert find_archive_problems(log_bytes(site), order, unheld.removed)
    site.two(LogArchived(policy=site.in_force), order, {"removed": unheld.removed})
    texts = [one for one in site.disclosures if one.commitment in site.state.texts]
    (finding,) = verify(site, disclosures=texts, with_archives=True).findings
    assert "which the hold of entry" in finding.message and "on adapter:clauses@1 keeps" in finding.message


def test_a_record_whose_text_was_erased_stays() -> None:
    site = old_site()
    text = next(one for one in site.disclosures if one.text == "I try it.")
    site.erase(text.commitment)
    site.disclosures.remove(text)
    cosign(site)
    _, prepared = prepare(site)
    assert prepared.selection.kept == {"open": 1, "text-shared": 1}


def test_a_text_that_is_erased_after_the_archive_was_prepared_stops_it() -> None:
    site = old_site()
    order, prepared = prepare(site)
    site.erase(next(one.commitment for one in site.disclosures if one.text == "I try it."))
    documents = {"removed": prepared.removed}
    pending = site.pend(order, documents)
    with refuses(site, Denied, "no entry whose text was erased"):
        site.countersign(LogArchived(policy=site.in_force), order, pending, documents)


# What is too young, not witnessed, or kept by policy.


def test_records_stay_for_the_retention_of_their_class() -> None:
    site = old_site(days=182)
    order, prepared = prepare(site)
    with refuses(site, Denied, "Policy (retention) has the log keep previews up to entry"):
        site.two(LogArchived(policy=site.in_force), order, {"removed": prepared.removed})


def test_a_clock_that_is_set_ahead_ends_no_retention_while_the_witnesses_see_another_time() -> None:
    site = old_site(days=100)
    site.now = add_seconds(site.now, 100 * DAY_S)
    order, prepared = prepare(site)
    witnessed = site.state.witnesses.get(NAME)
    assert witnessed is not None and witnessed.time < add_seconds(order.last, 183 * DAY_S) < site.now
    with refuses(site, Denied, f"By the clocks of the log and of the witnesses it is {witnessed.time}."):
        site.two(LogArchived(policy=site.in_force), order, {"removed": prepared.removed})
    cosign(site)
    order, prepared = prepare(site)
    archived(site, order, prepared.removed)


def test_the_time_is_that_of_as_many_witnesses_as_policy_requires() -> None:
    """One of two witnesses is hostile: its clock is set ahead, too."""
    site = old_site(days=100)
    other, name = generate_ed25519(), "witness.example/w2"
    vkeys = (VKEY, witness_vkey_of(name, other))
    site.adopt(policy_set(witnesses=vkeys, witness_quorum=2, retention=site.state.parameters.retention))
    cosign(site)
    honest = site.state.witnesses.get(NAME)
    site.now = add_seconds(site.now, 100 * DAY_S)
    body, documents = site.cosigned(other, name)
    site.add(body, documents=documents)
    rows, rules = site.state.witnesses.values(), site.state.parameters
    assert honest is not None and find_retention_time(rows, rules, honest.size, site.now) == honest.time
    order, prepared = prepare(site)
    order = archive_order(site, prepared, size=honest.size)
    with refuses(site, Denied, f"of the witnesses it is {honest.time}."):
        site.two(LogArchived(policy=site.in_force), order, {"removed": prepared.removed})


def test_a_second_archive_has_the_entry_of_the_first() -> None:
    """Otherwise it would not verify by itself: no entry in it would name what it lacks."""
    site = old_site()
    first, prepared = prepare(site, records=("refusals",))
    second, others = prepare(site, records=("requests",))
    done = archived(site, first, prepared.removed)
    with refuses(site, Denied, f"Entry {done.index} archived records. It is not in this archive"):
        site.two(LogArchived(policy=site.in_force), second, {"removed": others.removed})
    with pytest.raises(Conflict, match=f"cosigned checkpoint with entry {done.index}, which archived records"):
        find_cosigned_note(log_bytes(site, len(site.entries)), second.size)
    cosign(site)
    second, others = prepare(site, records=("requests",))
    archive = archive_of(site)
    archived(site, second, others.removed)
    assert digest_bytes(archive) == second.archive
    report = verify(site)
    assert (report.verdict, report.findings) == ("verified", ())


def test_policy_names_no_class_by_itself_and_none_for_less_than_six_months() -> None:
    site = old_site()
    site.adopt(policy_set(witnesses=(VKEY,)))
    cosign(site)
    order, prepared = prepare(site)
    with refuses(site, Denied, "Policy (retention) has the log keep previews for ever"):
        site.two(LogArchived(policy=site.in_force), order, {"removed": prepared.removed})
    with pytest.raises(ValueError, match="greater than or equal to 183"):
        Retention(records="requests", days=182)
    rows = (Retention(records="requests", days=183),) * 2
    with pytest.raises(ValueError, match="retention: expected each class of records once"):
        policy_set(retention=rows)


def test_an_archive_has_only_what_witnesses_have_cosigned() -> None:
    site = old_site()
    order, prepared = prepare(site)
    beyond = site.order(ArchiveLog, "anna", **order.model_dump(include={*ArchiveLog.model_fields} - {*_COMMON}))
    larger = beyond.model_copy(update={"size": order.size + 1})
    with refuses(site, Denied, f"have cosigned {order.size} entries. The archive has {order.size + 1}."):
        site.two(LogArchived(policy=site.in_force), larger, {"removed": prepared.removed})


def test_an_archive_is_not_larger_than_the_log_and_has_what_is_removed() -> None:
    site = old_site()
    order, prepared = prepare(site)
    size = len(site.entries)
    for changes in ({"size": size + 1}, {"up_to": order.size + 1}):
        with refuses(site, Denied, f"The log has {size}."):
            changed = order.model_copy(update=changes)
            site.two(LogArchived(policy=site.in_force), changed, {"removed": prepared.removed})
    refused = ARCHIVE_UNFIT(up_to=order.size + 1, size=order.size, entries=size)
    assert refused.code == "archive-unfit"


_COMMON = ("origin", "signer", "nonce", "issued_at", "expires_at", "reason")


# Orders of two administrators who lie, in a log that lacks the bytes and in one with its archive.

Lie = Callable[[LogBuilder, ArchiveLog, bytes], tuple[dict[str, Any], bytes]]


def _authority_removed(site: LogBuilder, order: ArchiveLog, removed: bytes) -> tuple[dict[str, Any], bytes]:
    """Remove a revocation, too."""
    bits = int.from_bytes(bits_of(site, "principal.revoked"), "little") | int.from_bytes(removed, "little")
    return {"count": order.count + 1}, _encode(bits)


def _encode(bits: int) -> bytes:
    return bits.to_bytes(64, "little").rstrip(b"\0")


def _held(site: LogBuilder, order: ArchiveLog, removed: bytes) -> tuple[dict[str, Any], bytes]:
    return {}, removed


def _state(site: LogBuilder, order: ArchiveLog, removed: bytes) -> tuple[dict[str, Any], bytes]:
    """Name a state in which Eve is an administrator."""
    eve = site.fork()
    eve.enrol("eve", "administrator")
    return {"state": digest_authority(eve.state)}, removed


def _time(site: LogBuilder, order: ArchiveLog, removed: bytes) -> tuple[dict[str, Any], bytes]:
    return {"last": add_seconds(order.last, -DAY_S)}, removed


def _half(site: LogBuilder, order: ArchiveLog, removed: bytes) -> tuple[dict[str, Any], bytes]:
    """Keep the end of a request without its beginning."""
    first = next(index for index in list_bits(removed) if parse_entry(site.entries[index]).type == "request.admitted")
    bits = int.from_bytes(removed, "little") & ~(1 << first)
    return {"count": order.count - 1}, _encode(bits)


def _lying(lie: Lie) -> tuple[LogBuilder, LogBuilder, ArchiveLog, bytes]:
    site = old_site()
    if lie is _authority_removed:
        site = _with_revocation()
    if lie is _held:
        site = _with_hold()
    true, prepared = prepare(site, up_to=log_bytes(site).size if lie is _authority_removed else None)
    order, removed = true, prepared.removed
    if lie is _held:
        _, unheld = prepare(old_site())
        order, removed = archive_order(site, prepared, count=unheld.fields.count), unheld.removed
    changes, removed = lie(site, order, removed)
    order = site.order(
        ArchiveLog,
        "anna",
        **order.model_dump(exclude={*_COMMON}) | {"records": order.records, "removed": digest_bytes(removed)} | changes,
    )
    return site, site.fork(), order, removed


def _with_revocation() -> LogBuilder:
    site = old_site()
    site.revoke("raul")
    refuse(site)
    site.now = add_seconds(site.now, 200 * DAY_S)
    cosign(site)
    return site


def _with_hold() -> LogBuilder:
    site = old_site()
    site.hold("unit:legal")
    cosign(site)
    return site


@pytest.mark.parametrize("lie", [_authority_removed, _held, _state, _time, _half])
def test_the_service_and_the_client_find_a_lie_before_it_is_signed(lie: Lie) -> None:
    site, _, order, removed = _lying(lie)
    assert find_archive_problems(log_bytes(site), order, removed)


@pytest.mark.parametrize("lie", [_authority_removed, _held, _state, _time, _half])
def test_an_auditor_with_the_archive_finds_a_lie(lie: Lie) -> None:
    site, whole, order, removed = _lying(lie)
    entry = site.two(LogArchived(policy=site.in_force), order, {"removed": removed})
    entries = [*whole.entries, *site.entries[len(whole.entries) :]]
    texts = [one for one in site.disclosures if one.commitment in site.state.texts]
    report = verify(site, entries, disclosures=texts, with_archives=True)
    assert {(finding.index, finding.rule) for finding in report.findings} == {(entry.index, "archive")}


@pytest.mark.parametrize("lie", [_authority_removed, _state])
def test_an_auditor_without_the_archive_finds_what_changes_power(lie: Lie) -> None:
    site, _, order, removed = _lying(lie)
    site.two(LogArchived(policy=site.in_force), order, {"removed": removed})
    remove(site, removed)
    assert verify(site).verdict == "failed"


def test_bytes_that_no_archive_names_are_missing() -> None:
    site = old_site()
    index = next(i for i, data in enumerate(site.entries) if parse_entry(data).type == "request.refused")
    site.entries[index] = encode_removed(hash_line(site.entries[index]))
    report = verify(site)
    assert (report.findings[0].index, report.findings[0].rule) == (index, "removed")


def test_an_archive_that_one_administrator_ordered_removes_nothing() -> None:
    site = old_site()
    order, prepared = prepare(site)
    entry, documents = site.entry(
        LogArchived(policy=site.in_force),
        documents={"order": _envelope(site, order), "removed": prepared.removed},
        signed=((site.sign(order).pae_digest, order),),
    )
    site.entries.append(entry.encoded)
    site.documents |= {digest_bytes(data): data for data in documents.values()}
    remove(site, prepared.removed)
    report = verify(site)
    assert "removed" in rules_of(report) and report.verdict == "failed"


def _envelope(site: LogBuilder, order: ArchiveLog) -> bytes:
    from appliance.formats.signatures.dsse import encode_envelope

    return encode_envelope(site.sign(order))


def test_another_archive_follows_the_first() -> None:
    site = old_site()
    order, prepared = prepare(site, records=("requests",))
    archived(site, order, prepared.removed)
    cosign(site)
    second, more = prepare(site, records=CLASSES)
    assert not [index for index in list_bits(more.removed) if has_bit(prepared.removed, index)]
    archived(site, second, more.removed)
    report = verify(site)
    assert report.verdict == "verified", [finding.message for finding in report.findings]
    assert [row.count for row in site.state.archives.values()] == [6, 8]


def test_nothing_to_remove_and_too_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    site = old_site()
    with pytest.raises(BadInput, match="there is nothing to remove"):
        prepare(site, up_to=5)
    monkeypatch.setattr(archives, "MOST_ARCHIVED", 3)
    with pytest.raises(BadInput, match="name an earlier entry"):
        prepare(site)


@pytest.mark.parametrize(
    ("removed", "words"),
    [(b"", "a list without zero bytes"), (b"\x02\0", "a list without zero bytes"), (b"\x03", "no first entry")],
)
def test_the_list_of_removed_entries_has_one_encoding(removed: bytes, words: str) -> None:
    site = old_site()
    order, _ = prepare(site)
    changed = order.model_copy(update={"removed": digest_bytes(removed), "count": max(removed.count(b"\x02"), 2)})
    with refuses(site, Denied, words):
        site.two(LogArchived(policy=site.in_force), changed, {"removed": removed})
