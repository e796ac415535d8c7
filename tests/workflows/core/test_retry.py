"""While the ledger cannot be written a job's worker is paused, and its result is recorded afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.entry import EntryDraft
from appliance.domain.data.imports import ImportRequested
from appliance.domain.governance.service import Heartbeat
from appliance.domain.governance.sessions import AuthRefused
from appliance.errors import Denied, Unavailable
from appliance.store.database.engine import migrate, open_engine
from appliance.store.database.processes import Processes
from appliance.store.ledger.ledger import Ledger
from appliance.workflows.core import retry as patience
from appliance.workflows.core.contact import Contact
from appliance.workflows.core.context import ALL_ROLES
from appliance.workflows.core.jobs import ItemsInProgress, Jobs
from appliance.workflows.core.retry import append_with_retry, state_with_retry
from appliance.workflows.data import imports as ingest
from appliance.workflows.lifecycle.recovery import start_missed_work
from appliance.workflows.runs import train
from scripts.kit.log_builder import stage
from tests.kit.small_log import SmallLog

GONE = Unavailable("ledger: expected a database, got none")
UNKNOWN = Unavailable("ledger: expected to find out whether it was committed, got no answer", code="commit-unknown")


class Worker:
    """`told`: the calls that it got, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    site, engine = SmallLog(), open_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    migrate(engine)
    with closing(site.open_ledger(engine)) as ledger:
        ledger.append(site.first_draft())
        yield ledger


@pytest.fixture
def context(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(patience, "RETRY_S", 0.01)
    seen: list[object] = []
    return SimpleNamespace(
        contact=Contact(),
        process=None,
        ledger=ledger,
        workers={"r-000001": Worker()},
        closing=threading.Event(),
        appended=lambda entry, body: seen.append(body),
        seen=seen,
    )


def failing(ledger: Ledger, errors: list[Exception], monkeypatch: pytest.MonkeyPatch, *, stands: bool = False) -> None:
    """Let the next appends raise these, one each. With `stands`, their entries are durable nevertheless."""
    append_all = ledger.append_all

    def fail(drafts: Sequence[EntryDraft], **rest: Any) -> Any:
        appended = append_all(drafts, **rest) if stands or not errors else None
        if errors:
            raise errors.pop(0)
        return appended

    monkeypatch.setattr(ledger, "append_all", fail)


def test_a_job_waits_with_its_worker_frozen_until_its_outcome_is_an_entry(
    context: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(ledger, [GONE, GONE], monkeypatch)
    appended = append_with_retry(context, Heartbeat())
    assert (appended.entry.index, ledger.state.size) == (1, 2)
    assert context.workers["r-000001"].told == ["pause", "pause", "resume"]
    append_with_retry(context, Heartbeat())
    assert context.workers["r-000001"].told[3:] == [], "nothing is frozen where nothing failed"


@pytest.mark.parametrize("errors", [[UNKNOWN], [UNKNOWN, GONE], [GONE, UNKNOWN]])
def test_an_entry_whose_commit_nobody_saw_the_end_of_is_not_written_twice(
    context: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, errors: list[Exception]
) -> None:
    body = AuthRefused(count=1, since=ledger.state.last_time, principals=(), keys=())
    for error in errors:
        failing(ledger, [error], monkeypatch, stands=error is UNKNOWN)
    appended = append_with_retry(context, body)
    assert (appended.entry.index, ledger.state.size) == (1, 2)
    assert appended.entry_bytes == ledger.entry_bytes(1)
    assert context.seen == [body], "and whoever counts entries is told of it once"


def test_an_entry_that_does_not_stand_is_written_after_all(
    context: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(ledger, [UNKNOWN, GONE], monkeypatch)
    append_with_retry(context, AuthRefused(count=1, since=ledger.state.last_time, principals=(), keys=()))
    assert ledger.state.size == 2


def test_a_job_waits_no_longer_than_it_was_told_nor_than_the_service_lives(
    context: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(ledger, [GONE] * 1_000, monkeypatch)
    with pytest.raises(Unavailable):
        append_with_retry(context, Heartbeat(), most_s=0.03)
    context.closing.set()
    with pytest.raises(Unavailable):
        append_with_retry(context, Heartbeat())


def test_what_a_rule_refuses_is_raised_at_once(context: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(ledger, [Denied("no")], monkeypatch)
    with pytest.raises(Denied):
        append_with_retry(context, Heartbeat())
    assert context.workers["r-000001"].told == []


def test_the_state_is_known_once_the_database_answers(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    state, answers = context.ledger.state, iter([GONE, GONE, None])

    class Away:
        @property
        def state(self) -> Any:
            if (error := next(answers)) is not None:
                raise error
            return state

    context.ledger = Away()
    assert state_with_retry(context) is state


@pytest.mark.parametrize("busy", [False, True])
def test_what_nobody_carries_though_its_order_stands_is_taken_up(monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    """The client got an error with an unknown outcome."""
    site = stage("imported")
    run = site.request_run()
    wanted = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order())
    carried: list[str] = []
    monkeypatch.setattr(train, "execute_run", lambda _, run_id: not carried.append(run_id))
    monkeypatch.setattr(ingest, "import_rows", lambda _, digest: carried.append(digest))
    context: Any = SimpleNamespace(
        ledger=SimpleNamespace(state=site.state),
        items_in_progress=ItemsInProgress(),
        processes=Processes(),
        process=None,
        roles=ALL_ROLES,
        runs_here=True,
        contact=Contact(),
        refresh=lambda: False,
        **{name: Jobs(name) for name in ("runs", "cluster_runs", "bases", "datasets")},
    )
    over = threading.Event()
    if busy:
        for jobs in (context.runs, context.datasets):
            jobs.put(over.wait)
    start_missed_work(context)
    over.set()
    for jobs in (context.runs, context.datasets):
        jobs.stop(10)
    imported = site.state.imports.get(wanted.subjects[0].removeprefix("order:")).order
    assert sorted(carried) == ([] if busy else sorted([run, imported]))  # two queues, each with a thread of its own


def test_an_import_that_was_taken_up_twice_is_carried_through_once() -> None:
    site = stage("imported")
    context: Any = SimpleNamespace(ledger=SimpleNamespace(state=site.state), items_in_progress=ItemsInProgress())
    (digest,) = (row.order for row in site.state.imports.values() if row.action == "import-dataset")

    def work(staging: Path, source: Path) -> dict[str, Any]:
        raise AssertionError("it was imported before")

    ingest._run_import(context, digest, work)
