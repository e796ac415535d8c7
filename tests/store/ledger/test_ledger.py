"""Append and read: what one transaction writes, what it refuses, and what comes back. On SQLite and on PostgreSQL."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from appliance.domain.core.entry import EntryDraft, parse_entry
from appliance.domain.core.state import State
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.core.commitment import Disclosure, disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import hash_leaf, root_of, verify_consistency, verify_inclusion
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.store.database import tables
from appliance.store.ledger import checks as audit
from appliance.store.ledger import log_state as log_state_module
from appliance.store.ledger import rows
from appliance.store.ledger.ledger import Ledger
from tests.kit.small_log import START, Clock, SmallLog, heartbeat

ALL = (*tables.APPEND_ONLY, tables.projections, tables.disclosures)


def stop(reason: str) -> EntryDraft:
    """Return a draft with a text of any length."""
    return EntryDraft(type="service.stopped", body={"reason": reason, "process": None})


def count_rows(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one() for table in ALL
        } | {"head": connection.execute(select(tables.head.c.size)).scalar_one()}


def test_an_append_returns_a_checkpoint_over_the_whole_log(ledger: Ledger, site: SmallLog) -> None:
    for _ in range(5):
        appended = ledger.append(heartbeat())
        checkpoint = open_checkpoint(appended.checkpoint, site.log_key)
        assert checkpoint.size == appended.entry.index + 1
        assert checkpoint.root == root_of(hash_leaf(data) for data in ledger.entries())
        assert ledger.checkpoint() == appended.checkpoint


def test_an_entry_is_chained_to_the_leaf_before_it(ledger: Ledger) -> None:
    first = ledger.entry_bytes(0)
    appended = ledger.append(heartbeat())
    assert appended.entry.prev == f"sha256:{hash_leaf(first).hex()}"
    assert ledger.entry_bytes(1) == appended.entry_bytes
    assert parse_entry(appended.entry_bytes) == appended.entry


def test_a_second_process_loads_the_same_state(
    ledger: Ledger, open_ledger: Callable[[], Ledger], site: SmallLog
) -> None:
    carol = site.enrolment("carol")
    ledger.append(carol.pending)
    ledger.append(carol.enrolled)
    other = open_ledger()
    other.load()
    assert list(other.state.projections()) == list(ledger.state.projections())
    assert other.state.size == 3 and other.state.last_leaf == ledger.state.last_leaf
    assert other.append(heartbeat()).entry.index == 3


def test_an_empty_log_has_no_checkpoint(open_ledger: Callable[[], Ledger]) -> None:
    ledger = open_ledger()
    ledger.load()
    with pytest.raises(NotFound):
        ledger.checkpoint()
    assert ledger.state.size == 0 and list(ledger.entries()) == []


def test_entry_time_never_decreases_when_the_clock_goes_back(engine: Engine, site: SmallLog) -> None:
    clock = Clock()
    ledger = site.open_ledger(engine, clock)
    ledger.append(site.first_draft())
    clock.now += timedelta(hours=5)
    late = ledger.append(heartbeat()).entry.time
    clock.now -= timedelta(seconds=30)
    assert ledger.append(heartbeat()).entry.time == late
    clock.now = START + timedelta(hours=6)
    assert ledger.append(heartbeat()).entry.time > late
    ledger.close()


def test_nothing_is_appended_under_a_clock_that_went_back(
    engine: Engine, site: SmallLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise approvals and tokens would stay valid for as long as the clock is held back."""
    clock = Clock()
    ledger = site.open_ledger(engine, clock)
    last = ledger.append(site.first_draft()).entry.time
    clock.now = START - timedelta(days=400)
    for _ in range(2):
        with pytest.raises(
            Unavailable, match=f"^clock: expected a time after the last entry's, {last}, got 2025"
        ) as info:
            ledger.append(heartbeat())
        assert info.value.code == "clock" and info.value.status == 503
        with pytest.raises(Unavailable, match=r"^clock: "):
            ledger.probe()
    assert "ALARM" in caplog.text
    assert ledger.state.size == 1
    clock.now = START + timedelta(hours=1)
    assert ledger.append(heartbeat()).entry.index == 1
    assert ledger.check_projections() == []
    ledger.close()


def test_nothing_is_appended_under_a_clock_that_leapt_ahead_until_somebody_says_that_it_is_right(
    engine: Engine, site: SmallLog
) -> None:
    """A year that was mistyped would hold the log up until that year."""
    clock = Clock()
    ledger = site.open_ledger(engine, clock, longest_pause_days=31)
    last = ledger.append(site.first_draft()).entry.time
    clock.now = START + timedelta(days=31)
    assert ledger.append(heartbeat()).entry.time > last
    last, clock.now = ledger.state.last_time, clock.now + timedelta(days=32)
    for act in (ledger.probe, lambda: ledger.append(heartbeat())):
        with pytest.raises(Unavailable, match=f"^clock: expected a time at most 31 days after .*{last}") as info:
            act()
        assert info.value.code == "clock" and "--after-pause" in info.value.message
    assert ledger.state.size == 2
    ledger.clock.accept_pause(last)
    ledger.probe()
    assert ledger.append(heartbeat()).entry.time > last
    clock.now += timedelta(days=365)
    with pytest.raises(Unavailable, match=r"^clock: "):
        ledger.append(heartbeat())
    ledger.close()


@pytest.mark.parametrize(
    ("draft", "error"),
    [
        (EntryDraft(type="heartbeat", body={"unknown": 1}), BadInput),
        (EntryDraft(type="no.such.type"), BadInput),
        (EntryDraft(type="heartbeat", outcome="denied"), Denied),
        (EntryDraft(type="x" * 65), BadInput),
        (EntryDraft(type="heartbeat", body={"pi": 3.14}), BadInput),
        (stop("x" * 66_000), TooLarge),
        (EntryDraft(type="heartbeat", documents={"order": b"x" * (4 << 20 | 1)}), TooLarge),
        (EntryDraft(type="heartbeat", disclosures=(Disclosure("hmac-sha256:" + "0" * 64, bytes(32), "x"),)), Tampered),
        (EntryDraft(type="heartbeat", disclosures=(disclose("a\0b", bytes(32)),)), BadInput),
    ],
)
def test_a_refused_draft_writes_nothing(
    ledger: Ledger, engine: Engine, draft: EntryDraft, error: type[Exception]
) -> None:
    before, state = count_rows(engine), ledger.state
    with pytest.raises(error):
        ledger.append(draft)
    assert count_rows(engine) == before
    assert ledger.state is state, "a refusal must not cost a replay of the whole log"
    assert ledger.append(heartbeat()).entry.index == 1


def test_an_entry_of_the_largest_size_is_appended(ledger: Ledger) -> None:
    room = 65_535 - len(ledger.append(stop("")).entry_bytes)
    assert len(ledger.append(stop("x" * room)).entry_bytes) == 65_535
    with pytest.raises(TooLarge):
        ledger.append(stop("x" * (room + 1)))


def test_a_guard_refuses_before_the_rules_and_sees_the_state_that_the_entry_would_follow(
    ledger: Ledger, engine: Engine
) -> None:
    seen: list[int] = []

    def refuse(state: State, _time: str) -> None:
        seen.append(state.size)
        raise Conflict("the head moved")

    before = count_rows(engine)
    with pytest.raises(Conflict, match="the head moved"):
        ledger.append(heartbeat(), guard=refuse)
    assert seen == [1] and count_rows(engine) == before
    assert ledger.append(heartbeat(), guard=lambda state, _: seen.append(state.size)).entry.index == 1


def test_a_document_is_stored_once_and_bound_by_its_bytes(ledger: Ledger, engine: Engine, site: SmallLog) -> None:
    carol = site.enrolment("carol")
    ledger.append(carol.pending)
    ledger.append(carol.enrolled)
    assert count_rows(engine)["documents"] == 4, "policy, order, possession, countersignature"
    assert ledger.documents_of(1) == carol.pending.documents
    assert ledger.documents_of(2) == carol.enrolled.documents
    assert ledger.document(digest_bytes(carol.order)) == carol.order
    with pytest.raises(NotFound):
        ledger.document(digest_bytes(b"unknown"))


def test_projections_follow_the_state_and_removed_rows_are_closed(
    ledger: Ledger, engine: Engine, site: SmallLog
) -> None:
    column = tables.projections.c
    pending = select(column.id, column.since, column.until).where(column.kind == "pending")
    carol = site.enrolment("carol")
    ledger.append(carol.pending)
    with engine.connect() as connection:
        assert connection.execute(pending).all() == [(carol.digest, 1, None)]
    ledger.append(carol.enrolled)
    with engine.connect() as connection:
        assert connection.execute(pending).all() == [(carol.digest, 1, 2)]
    assert ledger.check_projections() == []


def test_disclosures_travel_beside_the_entry_and_open_their_commitments(ledger: Ledger, site: SmallLog) -> None:
    carol = site.enrolment("carol")
    ledger.append(carol.pending)
    commitment = carol.printed_name.commitment
    unknown = disclose("somebody else", bytes(32)).commitment
    assert ledger.disclosures([commitment, unknown]) == {commitment: carol.printed_name}
    assert ledger.signed_texts() == (ledger.checkpoint(), [carol.printed_name])
    assert b"Example" not in ledger.entry_bytes(1)


def test_all_texts_come_in_the_order_of_their_commitments(ledger: Ledger) -> None:
    texts = [disclose(f"text {n}", n.to_bytes(32, "big")) for n in range(300)]
    ledger.append(EntryDraft(type="heartbeat", disclosures=tuple(texts)))
    ledger.append(EntryDraft(type="heartbeat", disclosures=tuple(texts[:2])))
    assert ledger.signed_texts() == (ledger.checkpoint(), sorted(texts, key=lambda item: item.commitment))


@pytest.mark.thorough
@pytest.mark.parametrize("remembered", [True, False], ids=["by who appended them", "after a start"])
def test_every_entry_is_proved_at_every_size(
    ledger: Ledger, open_ledger: Callable[[], Ledger], remembered: bool
) -> None:
    for _ in range(20):
        ledger.append(heartbeat())
    leaves = [hash_leaf(data) for data in ledger.entries()]
    ledger = ledger if remembered else open_ledger()
    for size in range(1, len(leaves) + 1):
        root = root_of(leaves[:size])
        for index in range(size):
            verify_inclusion(leaves[index], index, size, ledger.inclusion_proof(index, size), root)
        for old in range(1, size + 1):
            verify_consistency(old, size, ledger.consistency_proof(old, size), root_of(leaves[:old]), root)


def test_a_proof_beyond_the_log_is_refused(ledger: Ledger) -> None:
    with pytest.raises(BadInput):
        ledger.inclusion_proof(0, 2)
    with pytest.raises(BadInput):
        ledger.inclusion_proof(1, 1)
    with pytest.raises(BadInput):
        ledger.consistency_proof(1, 2)


@pytest.mark.thorough
def test_entries_are_read_in_order_across_pages(ledger: Ledger) -> None:
    for _ in range(270):
        ledger.append(heartbeat())
    assert [parse_entry(data).index for data in ledger.entries()] == list(range(271))
    assert [parse_entry(data).index for data in ledger.entries(255, 258)] == [255, 256, 257]
    assert [parse_entry(data).index for data in ledger.entries(269, 9_999)] == [269, 270]
    with pytest.raises(NotFound):
        ledger.entry_bytes(271)


def test_many_threads_append_one_chain(ledger: Ledger, open_ledger: Callable[[], Ledger]) -> None:
    def work() -> None:
        for _ in range(10):
            ledger.append(heartbeat())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.state.size == 81
    open_ledger().load()


def test_services_on_one_database_continue_each_others_chain(
    ledger: Ledger, open_ledger: Callable[[], Ledger], site: SmallLog
) -> None:
    other = open_ledger()
    for turn in range(6):
        appended = (ledger, other)[turn % 2].append(heartbeat())
        assert appended.entry.index == turn + 1
    carol = site.enrolment("carol")
    ledger.append(carol.pending)
    other.append(carol.enrolled)
    ledger.refresh()
    assert ledger.state.principals.get("carol") is not None
    assert ledger.check_projections() == []


def test_a_replay_sent_to_another_service_is_refused(
    ledger: Ledger, open_ledger: Callable[[], Ledger], site: SmallLog
) -> None:
    other = open_ledger()
    other.load()
    carol = site.enrolment("carol")
    ledger.append(carol.pending)
    with pytest.raises(Conflict):
        other.append(carol.pending)


@pytest.mark.parametrize("step", ["advance", "check_end"])
def test_an_entry_of_another_service_in_the_middle_of_a_load_is_no_tampering(
    ledger: Ledger, open_ledger: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A load sees one moment of the database, from its very first statement on."""
    real = getattr(log_state_module, step)

    def interrupted(*args: Any, **rest: Any) -> None:
        monkeypatch.setattr(log_state_module, step, real)
        ledger.append(heartbeat())
        real(*args, **rest)

    other = open_ledger()
    monkeypatch.setattr(log_state_module, step, interrupted)
    other.load()
    assert other.state.size == 1
    assert other.append(heartbeat()).entry.index == 2


@pytest.mark.parametrize("call", ["refresh", "check_projections"])
def test_an_entry_of_another_service_in_the_middle_of_a_check_is_no_finding(
    ledger: Ledger, open_ledger: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch, site: SmallLog, call: str
) -> None:
    other = open_ledger()
    other.load()
    ledger.append(heartbeat())
    read = rows.read_head

    def interrupted(connection: Any) -> rows.LogHead:
        head = read(connection)
        for module in (rows, audit):
            monkeypatch.setattr(module, "read_head", read)
        ledger.append(site.enrolment("carol").pending)
        return head

    for module in (rows, audit):
        monkeypatch.setattr(module, "read_head", interrupted)
    assert getattr(other, call)() in ([], True)
    assert other.append(heartbeat()).entry.index == 3


def test_services_that_append_at_once_lose_nothing(ledger: Ledger, open_ledger: Callable[[], Ledger]) -> None:
    others = [open_ledger() for _ in range(3)]
    errors: list[ApplianceError] = []

    def work(service: Ledger) -> None:
        try:
            for _ in range(8):
                service.append(heartbeat())
        except ApplianceError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(service,)) for service in (ledger, *others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    ledger.refresh()
    assert ledger.state.size == 33
    final = open_ledger()
    final.load()
    assert final.check_projections() == []


def test_projections_are_rebuilt_from_the_entries(ledger: Ledger, owner_engine: Engine, site: SmallLog) -> None:
    carol = site.enrolment("carol")
    ledger.append(carol.pending)
    ledger.append(carol.enrolled)
    with owner_engine.begin() as connection:
        connection.execute(tables.projections.delete())
    assert len(ledger.check_projections()) == 8, "site, two keys, two people; pending and gone; carol and her key"
    ledger.rebuild_projections()
    assert ledger.check_projections() == []


def test_what_was_written_ahead_is_written_back_while_others_append(
    ledger: Ledger, open_ledger: Callable[[], Ledger], database_url: str, tmp_path: Path
) -> None:
    with closing(open_ledger()) as other:
        for number in range(4):
            size = (ledger, other)[number % 2].append(heartbeat()).entry.index + 1
        ledger.write_back()
    if database_url.startswith("sqlite"):
        # The database's own file, without what lies beside it.
        shutil.copyfile(database_url.removeprefix("sqlite:///"), tmp_path / "alone.db")
        with closing(sqlite3.connect(tmp_path / "alone.db")) as alone:
            assert alone.execute('SELECT count(*), max("index") FROM entries').fetchone() == (size, size - 1)
    assert ledger.append(heartbeat()).entry.index == size
