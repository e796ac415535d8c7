"""Many entries of one caller: one commit, all of them or none, and the same log as one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from appliance.domain.core.entry import EntryDraft
from appliance.domain.core.signatures import EXPIRED
from appliance.errors import BadInput, Conflict, Denied, Tampered, TooLarge, Unavailable
from appliance.formats.core.merkle import verify_inclusion
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from appliance.formats.signatures.keys import Signer
from appliance.store.database import tables
from appliance.store.database.engine import connect_reader, open_engine
from appliance.store.ledger import keys as keys_module
from appliance.store.ledger import ledger as ledger_module
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.queue import AppendedEntry
from appliance.store.ledger.writer import MAX_DOCUMENT_BYTES
from tests.kit.faults import failing
from tests.kit.small_log import START, SmallLog, heartbeat, refusal
from tests.store.conftest import Databases
from tests.store.ledger.test_failures import check_whole


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the sizes of the checkpoints that are signed."""
    sizes: list[int] = []

    def sign(checkpoint: Checkpoint, *signers: Signer) -> bytes:
        sizes.append(checkpoint.size)
        return sign_checkpoint(checkpoint, *signers)

    monkeypatch.setattr(keys_module, "sign_checkpoint", sign)
    return sizes


def mixed(site: SmallLog) -> list[EntryDraft]:
    """Entries with and without documents, disclosures, projections, and unusual outcomes; some rest on those before."""
    carol, dave = site.enrolment("carol"), site.enrolment("dave")
    return [
        *(heartbeat(), carol.pending, refusal("legal"), dave.pending, carol.enrolled, heartbeat()),
        *(refusal("claims"), dave.enrolled, heartbeat(), refusal("legal")),
    ]


def test_one_commit_and_one_checkpoint_hold_all_of_them_in_their_order(
    signed: list[int], ledger: Ledger, open_ledger: Callable[[], Ledger], site: SmallLog
) -> None:
    drafts = mixed(site)
    appended = ledger.append_all(drafts)
    assert [one.entry.type for one in appended] == [draft.type for draft in drafts]
    assert [one.entry.index for one in appended] == list(range(1, len(drafts) + 1))
    assert signed == [1, len(drafts) + 1]
    (note,) = {one.checkpoint for one in appended}
    assert open_checkpoint(note, site.log_key) == Checkpoint(
        "appliance.example/store", len(drafts) + 1, ledger.edge.root()
    )
    check_whole(ledger, open_ledger)


@pytest.fixture
def still(
    site: SmallLog, database_url: str, databases: Databases, tmp_path: Path
) -> Iterator[tuple[tuple[Engine, Ledger], tuple[Engine, Ledger]]]:
    """Two logs with the same first entry, in databases of one kind; their clock does not advance."""
    kind = database_url.partition(":")[0]
    (folder := tmp_path / "other").mkdir()
    with databases.copy(kind, databases.migrated(kind), folder) as other:
        engines = [open_engine(database_url), open_engine(other)]
        ledgers = [site.open_ledger(engine, lambda: START) for engine in engines]  # type: ignore[arg-type, misc]
        for ledger in ledgers:
            ledger.append(site.first_draft())
        yield (engines[0], ledgers[0]), (engines[1], ledgers[1])
        for ledger in ledgers:
            ledger.close()


def rows_of(engine: Engine) -> dict[str, list[Any]]:
    with connect_reader(engine) as connection:
        return {
            table.name: sorted(map(str, connection.execute(select(table)))) for table in tables.metadata.sorted_tables
        }


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", [(10,), (1, 9), (3, 4, 3), (5, 5), (2, 2, 2, 2, 2)])
def test_the_database_is_to_the_byte_the_one_that_appends_one_by_one_leave(
    sizes: tuple[int, ...], still: tuple[tuple[Engine, Ledger], tuple[Engine, Ledger]], site: SmallLog
) -> None:
    (engine, ledger), (other_engine, other) = still
    drafts = mixed(site)
    left = iter(drafts)
    together = [one for size in sizes for one in ledger.append_all([next(left) for _ in range(size)])]
    alone = [other.append(draft) for draft in drafts]
    assert [one.entry_bytes for one in together] == [one.entry_bytes for one in alone]
    assert together[-1].checkpoint == alone[-1].checkpoint
    assert rows_of(engine) == rows_of(other_engine)
    assert list(ledger.state.projections()) == list(other.state.projections())


def test_what_was_just_appended_is_proved_from_memory(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_places: object) -> Any:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(ledger, "_read_nodes", refuse)
    for count in (64, 1, 7):
        appended = ledger.append_all([refusal(f"unit-{n}") for n in range(count)])
        size, root = ledger.state.size, ledger.edge.root()
        for one in appended:
            proof = ledger.inclusion_proof(one.entry.index, size)
            verify_inclusion(one.entry.leaf, one.entry.index, size, proof, root)


def test_nothing_to_append_writes_and_signs_nothing(ledger: Ledger, signed: list[int]) -> None:
    signed.clear()
    with failing(ledger._engine, "no statement", after=False) as steps:
        assert ledger.append_all([]) == []
    assert (steps._count, signed, ledger.state.size) == (-1, [], 1)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 5])
def test_what_refuses_one_refuses_all_and_says_which(
    at: int, ledger: Ledger, open_ledger: Callable[[], Ledger], site: SmallLog, signed: list[int]
) -> None:
    drafts = [heartbeat(), site.enrolment("carol").pending, refusal(), refusal("claims"), heartbeat()]
    drafts.insert(at, refusal("no\nname"))
    signed.clear()
    with pytest.raises(BadInput, match=f"^draft {at + 1} of 6: entry {at + 1} "):
        ledger.append_all(drafts)
    assert (ledger.state.size, signed) == (1, [])
    check_whole(ledger, open_ledger)
    del drafts[at]
    assert [one.entry.index for one in ledger.append_all(drafts)] == [1, 2, 3, 4, 5]
    check_whole(ledger, open_ledger)


def test_each_is_decided_over_the_state_after_those_before_it(
    ledger: Ledger, open_ledger: Callable[[], Ledger], site: SmallLog
) -> None:
    carol = site.enrolment("carol")
    with pytest.raises(Conflict, match=r"^draft 3 of 3: ") as caught:
        ledger.append_all([carol.pending, carol.enrolled, carol.pending])
    assert (caught.value.code, caught.value.status) == ("conflict", 409)
    assert ledger.state.principals.get("carol") is None
    ledger.append_all([carol.pending, carol.enrolled])
    assert ledger.state.principals.get("carol") is not None
    check_whole(ledger, open_ledger)


def test_a_document_too_large_is_named_before_anything_is_asked(ledger: Ledger) -> None:
    large = EntryDraft(type="heartbeat", documents={"order": bytes(MAX_DOCUMENT_BYTES + 1)})
    with (
        failing(ledger._engine, "no statement", after=False) as steps,
        pytest.raises(TooLarge, match=r"^draft 2 of 2: document order: "),
    ):
        ledger.append_all([heartbeat(), large])
    assert steps._count == -1


def test_the_guard_is_asked_once_over_the_state_before_the_first(ledger: Ledger) -> None:
    seen: list[int] = []
    ledger.append_all([heartbeat(), heartbeat()], guard=lambda state, _time: seen.append(state.size))
    assert seen == [1]

    def refuse(_state: Any, _time: str) -> None:
        raise Denied("no", refusals=(EXPIRED(expires="then", now="now"),))

    with pytest.raises(Denied, match=r"^no: It expired at then"):
        ledger.append_all([heartbeat(), heartbeat()], guard=refuse)
    assert ledger.state.size == 3


def test_an_error_that_says_where_is_otherwise_the_same() -> None:
    error = BadInput("a", reasons=("b", "c"), code="d").within("draft 1 of 2")
    assert (str(error), error.message, error.code, error.reasons) == (
        *("draft 1 of 2: a: b; c", "draft 1 of 2: a: b; c", "d", ("b", "c")),
    )


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.essential
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_failure_at_any_step_leaves_all_or_none(
    engine: Engine, site: SmallLog, open_ledger: Callable[[], Ledger], after: bool
) -> None:
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    fired = []
    for step in range(60):
        people = [site.enrolment(f"p-{step}-{n}-{after}".lower()) for n in range(2)]
        drafts = [heartbeat(), *(draft for one in people for draft in (one.pending, one.enrolled)), refusal()]
        size = ledger.state.size
        with failing(engine, step, after=after) as steps:
            try:
                appended = ledger.append_all(drafts)
            except Unavailable:
                appended = []
        assert len(appended) in (0, len(drafts))
        assert ledger.state.size == size + len(appended)
        assert {one.digest in ledger.state.orders for one in people} == {bool(appended)}
        check_whole(ledger, open_ledger)
        ledger.append(heartbeat())
        if steps.fired is None:
            break
        fired.append(steps.fired)
        assert bool(appended) == (steps.fired == "COMMIT" and after), f"step {step}: {steps.fired}"
    assert "COMMIT" in fired and len(fired) >= 20, fired
    ledger.close()


@pytest.mark.parametrize("at", [0, 3, 5])
def test_bytes_of_any_of_them_that_were_stored_otherwise_are_not_signed(
    at: int,
    ledger: Ledger,
    open_ledger: Callable[[], Ledger],
    monkeypatch: pytest.MonkeyPatch,
    signed: list[int],
) -> None:
    insert = ledger_module.rows.insert_entries

    def flip(connection: Any, added: Any) -> None:
        flipped = list(added)
        entry, nodes, data, documents = flipped[at]
        flipped[at] = entry, nodes, data[:-2] + bytes([data[-2] ^ 1]) + data[-1:], documents
        insert(connection, flipped)

    signed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.rows, "insert_entries", flip)
        with pytest.raises(Tampered, match=f"entry {at + 1}: expected the bytes that were written"):
            ledger.append_all([refusal(f"unit-{n}") for n in range(6)])
    assert signed == []
    check_whole(ledger, open_ledger)
    assert [one.entry.index for one in ledger.append_all([heartbeat(), heartbeat()])] == [1, 2]


# --- others at the same time --------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_two_services_and_lone_appends_at_once_never_part_what_one_caller_appended(
    ledger: Ledger, open_ledger: Callable[[], Ledger]
) -> None:
    """What serialises two services is the head's row: whoever comes second applies what the first has written."""
    other = open_ledger()
    other.load()

    def write(one: Ledger, count: int) -> list[list[AppendedEntry]]:
        return [one.append_all([heartbeat() for _ in range(count)]) for _ in range(8)]

    with ThreadPoolExecutor(8) as pool:
        told = [
            appended
            for batches in pool.map(write, [ledger, other] * 4, [5, 1, 3, 7, 1, 2, 5, 4])
            for appended in batches
        ]
    found = [[one.entry.index for one in appended] for appended in told]
    assert all(indices == list(range(indices[0], indices[0] + len(indices))) for indices in found)
    assert sorted(index for indices in found for index in indices) == list(range(1, 8 * 28 + 1))
    assert all(len({one.checkpoint for one in appended}) == 1 for appended in told)
    ledger.refresh()
    other.refresh()
    check_whole(ledger, open_ledger)
    check_whole(other, open_ledger)


def test_the_same_orders_through_two_services_at_once_stand_once(
    ledger: Ledger, open_ledger: Callable[[], Ledger], site: SmallLog
) -> None:
    other = open_ledger()
    other.load()
    carol = site.enrolment("carol")

    def give(one: Ledger) -> bool:
        try:
            one.append_all([heartbeat(), carol.pending, carol.enrolled])
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(give, [ledger, other] * 4)) == [False] * 7 + [True]
    ledger.refresh()
    assert ledger.state.size == 4
    check_whole(ledger, open_ledger)
