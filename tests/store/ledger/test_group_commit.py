"""Concurrent appends share one durable commit and one checkpoint; a single one waits for no other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine

from appliance.domain.core.entry import EntryDraft
from appliance.errors import ApplianceError, Conflict, Denied, Unavailable
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from appliance.formats.signatures.keys import Signer
from appliance.store.ledger import keys as keys_module
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.queue import AppendedEntry
from tests.kit.faults import failing
from tests.kit.small_log import SmallLog, heartbeat, refusal
from tests.store.ledger.test_failures import check_whole

Result = AppendedEntry | BaseException


@contextmanager
def held(ledger: Ledger) -> Any:
    """Hold the lock in a thread of its own, as if a commit were running."""
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger.lock:
            taken.set()
            release.wait(90)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(90)
    try:
        yield
    finally:
        release.set()
        holder.join(90)


def together(ledger: Ledger, drafts: list[EntryDraft], guard: Any = None) -> list[Result]:
    """Each draft from a thread of its own, all of them waiting before the first can be committed."""

    def one(draft: EntryDraft) -> Result:
        try:
            return ledger.append(draft, guard=guard)
        except (ApplianceError, KeyboardInterrupt) as error:
            return error

    with ThreadPoolExecutor(len(drafts)) as pool:
        with held(ledger):
            wanted = [pool.submit(one, draft) for draft in drafts]
            wait_until(lambda: len(ledger._queue._waiting) == len(drafts))
        return [future.result(90) for future in wanted]


def wait_until(holds: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(3_000):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("expected the threads to queue up within 30 s")


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the sizes of the checkpoints that are signed."""
    sizes: list[int] = []

    def sign(checkpoint: Checkpoint, *signers: Signer) -> bytes:
        sizes.append(checkpoint.size)
        return sign_checkpoint(checkpoint, *signers)

    monkeypatch.setattr(keys_module, "sign_checkpoint", sign)
    return sizes


def test_appends_that_wait_share_one_commit_and_one_checkpoint(
    signed: list[int], ledger: Ledger, open_ledger: Callable[[], Ledger], site: SmallLog
) -> None:
    results = together(ledger, [heartbeat() for _ in range(12)])
    assert sorted(r.entry.index for r in results if isinstance(r, AppendedEntry)) == list(range(1, 13))
    assert signed[-1:] == [13] and len(signed) <= 2, "one for the first entry of the log, one for all of these"
    assert {open_checkpoint(r.checkpoint, site.log_key).size for r in results if isinstance(r, AppendedEntry)} == {13}
    check_whole(ledger, open_ledger)


def test_a_refused_append_costs_those_beside_it_nothing(
    ledger: Ledger, open_ledger: Callable[[], Ledger], site: SmallLog
) -> None:
    carol = site.enrolment("carol")
    results = together(ledger, [heartbeat(), carol.pending, carol.pending, EntryDraft(type="no.such"), heartbeat()])
    refused = [r for r in results if not isinstance(r, AppendedEntry)]
    assert sorted(type(r).__name__ for r in refused) == ["BadInput", "Conflict"]
    assert ledger.state.size == 4
    check_whole(ledger, open_ledger)


def test_of_two_that_exclude_each_other_in_one_commit_the_first_stands(ledger: Ledger, site: SmallLog) -> None:
    """The second is decided over the state after the first, though that is not durable yet."""

    def guard(state: Any, _time: str) -> None:
        if state.size > 1:
            raise Denied("only one")

    results = together(ledger, [heartbeat(), heartbeat(), heartbeat()], guard)
    assert [isinstance(r, AppendedEntry) for r in results].count(True) == 1
    assert all(isinstance(r, AppendedEntry | Denied) for r in results)


@pytest.mark.thorough
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_failure_at_any_step_of_a_shared_commit_leaves_all_or_none(
    engine: Engine, site: SmallLog, open_ledger: Callable[[], Ledger], after: bool
) -> None:
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    for step in range(40):
        people = [site.enrolment(f"p-{step}-{n}-{after}".lower()) for n in range(3)]
        size = ledger.state.size
        with failing(engine, step, after=after) as steps:
            results = together(ledger, [person.pending for person in people])
        stood = [isinstance(r, AppendedEntry) for r in results]
        assert len(set(stood)) == 1, "all or none"
        assert all(isinstance(r, AppendedEntry | Unavailable) for r in results), results
        assert ledger.state.size == size + (3 if stood[0] else 0)
        check_whole(ledger, open_ledger)
        if steps.fired is None:
            break
    assert step >= 13
    ledger.close()


def test_each_of_those_that_failed_together_raises_an_error_of_its_own(engine: Engine, ledger: Ledger) -> None:
    with failing(ledger._engine, "COMMIT", after=False):
        results = together(ledger, [heartbeat() for _ in range(3)])
    assert all(isinstance(r, Unavailable) for r in results)
    assert len({id(r) for r in results}) == 3


def test_an_interrupt_of_the_one_that_commits_is_an_error_for_the_others(ledger: Ledger) -> None:
    with failing(ledger._engine, "COMMIT", after=False, error=lambda _: KeyboardInterrupt()):
        results = together(ledger, [heartbeat() for _ in range(3)])
    assert sorted(type(r).__name__ for r in results) == ["KeyboardInterrupt", "Unavailable", "Unavailable"]
    assert ledger.append(heartbeat()).entry.index == 1


def test_whoever_holds_the_lock_appends_for_all_who_wait(ledger: Ledger) -> None:
    """Workflows hold the lock around a decision and its entry: waiting for another's commit would never end."""
    results: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        with ledger.lock:
            wanted = [pool.submit(ledger.append, heartbeat()) for _ in range(4)]
            wait_until(lambda: len(ledger._queue._waiting) == 4)
            results.append(ledger.append(heartbeat()).entry.index)
            assert ledger.state.size == 6
        results += [future.result(90).entry.index for future in wanted]
    assert sorted(results) == [1, 2, 3, 4, 5]


@pytest.mark.thorough
def test_who_comes_while_another_is_settled_by_the_lock_holder_is_not_forgotten(ledger: Ledger) -> None:
    """The one whose turn is next finds its own entry settled; it still commits for whoever left theirs to it."""
    for _ in range(200):
        with ThreadPoolExecutor(6) as pool:
            wanted = [pool.submit(ledger.append, heartbeat()) for _ in range(6)]
            with ledger.lock:
                ledger.append(heartbeat())
            for future in wanted:
                future.result(90)
    assert ledger.state.size == 1 + 200 * 7


@pytest.mark.thorough
def test_sixty_four_writers_each_get_every_entry_they_were_told_of(
    ledger: Ledger, open_ledger: Callable[[], Ledger], signed: list[int]
) -> None:
    def write(name: str) -> list[int]:
        return [ledger.append(refusal(name)).entry.index for _ in range(5)]

    with ThreadPoolExecutor(64) as pool:
        told = list(pool.map(write, [f"unit-{n}" for n in range(64)]))
    assert all(indices == sorted(indices) for indices in told)
    assert sorted(index for indices in told for index in indices) == list(range(1, 321))
    for number, indices in enumerate(told):
        assert [index for index, _ in ledger.find(actor=f"unit-{number}")] == indices
    assert len(signed) < 320
    check_whole(ledger, open_ledger)


@pytest.mark.thorough
def test_two_services_on_one_database_go_on_from_each_other(ledger: Ledger, open_ledger: Callable[[], Ledger]) -> None:
    """Each with a lock of its own: what serialises them is the head's row."""
    other = open_ledger()
    other.load()

    def write(one: Ledger) -> list[int]:
        return [one.append(heartbeat()).entry.index for _ in range(25)]

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(write, [ledger, other] * 4))
    assert sorted(index for indices in told for index in indices) == list(range(1, 201))
    ledger.refresh()
    other.refresh()
    check_whole(ledger, open_ledger)
    check_whole(other, open_ledger)


def test_the_same_order_through_two_services_at_once_stands_once(
    ledger: Ledger, open_ledger: Callable[[], Ledger], site: SmallLog
) -> None:
    other = open_ledger()
    other.load()
    carol = site.enrolment("carol")

    def give(one: Ledger) -> bool:
        try:
            one.append(carol.pending)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(give, [ledger, other] * 4)) == [False] * 7 + [True]


def test_an_error_of_the_appliance_can_be_raised_in_many_threads() -> None:
    import copy

    for error in (Denied("a", code="d"), Conflict("x"), Unavailable("y", code="commit-unknown")):
        again = copy.copy(error)
        assert isinstance(again, ApplianceError)
        assert (str(again), again.message, again.code, vars(again)) == (
            str(error), error.message, error.code, vars(error),
        )  # fmt: skip
