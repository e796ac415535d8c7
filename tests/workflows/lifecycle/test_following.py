"""A process without contact to the ledger serves and records nothing; entries of other processes take effect."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from appliance.domain.governance.service import Heartbeat, ProcessLost
from appliance.domain.runs.control import Cancel, RunCancelled
from appliance.errors import Denied, Unavailable
from appliance.slurm.worker import ClusterWorker
from appliance.workflows.core import contact as contact_module
from appliance.workflows.core.contact import SILENT_S, Contact
from appliance.workflows.core.context import Context
from appliance.workflows.core.record import append
from appliance.workflows.lifecycle.following import LEDGER_LOST, TAKEN_OVER, LogFollower
from appliance.workflows.serving.answering import LoadedSlot
from scripts.kit.log_builder import stage


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(contact_module, "now_s", lambda: now[0])
    return now


def test_the_clock_of_contact_continues_while_the_host_sleeps() -> None:
    assert abs(contact_module.now_s() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1


class Named:
    """The parts of an entry, a log and processes that the follower uses."""

    def __init__(self, **members: Any) -> None:
        self.__dict__.update(members)


def following(contact: Contact, **members: Any) -> tuple[LogFollower, list[str]]:
    cut: list[str] = []
    context = cast(Context, Named(contact=contact, workers={}, **members))
    return LogFollower(context, cut_off_all=cut.append), cut


def slot(contact: Contact) -> LoadedSlot:
    return LoadedSlot(cast(Any, None), "s", cast(Any, None), cast(Callable[[], Any], lambda: None), contact)


def test_alone_on_its_ledger_a_process_is_always_in_contact(passing: list[float]) -> None:
    contact = Contact()
    passing[0] += 1e6
    contact.check()
    slot(contact).give()


def test_no_token_leaves_once_the_last_contact_is_five_seconds_old(passing: list[float]) -> None:
    contact = Contact()
    contact.record_reading(passing[0])
    passing[0] += SILENT_S
    slot(contact).give()
    passing[0] += 0.001
    with pytest.raises(Unavailable) as info:
        slot(contact).give()
    assert info.value.code == "no-contact"
    contact.record_reading(passing[0])
    slot(contact).give()


def test_a_contact_counts_from_when_it_began_and_never_backwards(passing: list[float]) -> None:
    contact = Contact()
    contact.record_reading(passing[0])
    contact.record_reading(passing[0] - 60)
    assert not contact.is_lost
    passing[0] += 7
    contact.record_reading(passing[0] - 6)
    assert contact.is_lost


def test_what_others_took_over_from_is_never_in_contact_again(passing: list[float]) -> None:
    contact = Contact()
    contact.end()
    contact.record_reading(passing[0])
    assert contact.is_lost


def test_nothing_is_recorded_without_contact(passing: list[float]) -> None:
    contact = Contact()
    contact.record_reading(passing[0] - 6)
    context = cast(Context, Named(contact=contact, ledger=None, process=None))
    with pytest.raises(Unavailable, match="expected contact with the database in the last 5 s"):
        append(context, Heartbeat())


def test_answers_under_way_are_cut_once_and_again_after_the_next_loss(passing: list[float]) -> None:
    contact = Contact()
    contact.record_reading(passing[0])
    watched, cut = following(contact)
    watched.watch()
    passing[0] += 6
    watched.watch()
    watched.watch()
    assert cut == [LEDGER_LOST()]
    contact.record_reading(passing[0])
    watched.watch()
    passing[0] += 6
    watched.watch()
    assert len(cut) == 2


@pytest.mark.parametrize(("types", "rechecked"), [(("request.admitted", "heartbeat"), 0), (("release.activated",), 1)])
def test_what_answers_is_asked_again_after_every_entry_of_others_but_the_many(
    passing: list[float], types: tuple[str, ...], rechecked: int
) -> None:
    told, heard = [], []
    entries = [[Named(type=kind) for kind in types], []]
    state = Named(runs={}, imports={})
    ledger = Named(take_followed=lambda: entries.pop(0) if entries else [], refresh=lambda: None, state=state, loads=1)
    one, _ = following(Contact(), ledger=ledger, processes=Named(is_lost=False))
    one.on_entry, one.close_obsolete = heard.append, lambda: told.append("asked")
    one.catch_up()
    assert ([entry.type for entry in heard], len(told)) == (list(types), rechecked)


@pytest.mark.parametrize(("epoch", "is_over"), [(3, True), (2, False)])
def test_a_process_that_the_log_says_is_lost_ends(passing: list[float], epoch: int, is_over: bool) -> None:
    """Its requests are closed in the log, so no token may leave any more."""
    body = ProcessLost(process="gateway-2", epoch=epoch, last_contact="2026-01-01T00:00:00.000Z")
    entries = [[Named(type=ProcessLost.type, body=body)], []]
    state = Named(runs={}, imports={})
    ledger = Named(take_followed=lambda: entries.pop(0), refresh=lambda: None, state=state, loads=1)
    contact = Contact()
    processes = Named(is_lost=False, epoch=3)
    one, cut = following(contact, ledger=ledger, processes=processes, process="gateway-2")
    one.catch_up()
    assert (contact.is_lost, cut) == (is_over, [TAKEN_OVER()] * is_over)


def test_contact_is_made_only_once_what_was_read_has_been_acted_upon(passing: list[float]) -> None:
    contact = Contact()
    contact.record_reading(passing[0])

    def refuse() -> None:
        raise Denied("not now")

    ledger = Named(
        take_followed=lambda: [Named(type="adapter.revoked")],
        refresh=lambda: None,
        state=Named(runs={}, imports={}),
        loads=1,
    )
    one, _ = following(contact, ledger=ledger, processes=Named(is_lost=False))
    one.close_obsolete = refuse
    passing[0] += 6
    with pytest.raises(Denied):
        one.catch_up()
    assert contact.is_lost


def test_a_log_that_was_folded_anew_is_acted_upon_as_a_whole(passing: list[float]) -> None:
    """The entries that others appended meanwhile are then not known one by one."""
    told: list[str] = []
    ledger = Named(take_followed=list, refresh=lambda: None, state=Named(runs={}, imports={}), loads=1)
    one, _ = following(Contact(), ledger=ledger, processes=Named(is_lost=False))
    one.close_obsolete = lambda: told.append("asked")
    one.catch_up()
    assert told == []
    ledger.loads = 2
    one.catch_up()
    one.catch_up()
    assert told == ["asked"]


def test_a_shared_folder_that_hangs_delays_no_contact(passing: list[float]) -> None:
    site, hangs, over, ended = stage("imported").fork(), threading.Event(), threading.Event(), list[str]()
    run = site.request_run(on="slurm")
    site.ordered(RunCancelled(policy=site.in_force), site.order(Cancel, "olga", run=run))
    worker = ClusterWorker.__new__(ClusterWorker)
    worker.pid, worker._lock, worker._ends = 7, threading.Lock(), False

    def kill() -> None:
        hangs.set()
        over.wait(60)
        ended.append(run)

    worker.kill = kill  # type: ignore[method-assign]
    ledger = Named(take_followed=lambda: [Named(type="run.cancelled")], refresh=lambda: None, state=site.state, loads=1)
    contact = Contact()
    one, _ = following(contact, ledger=ledger, processes=Named(is_lost=False))
    one.context.workers[run] = worker
    for _ in range(3):
        passing[0] += 1
        one.catch_up()
    assert hangs.wait(60) and not ended
    assert not contact.is_lost
    over.set()
    while not ended:
        time.sleep(0.005)
    assert ended == [run], "it is told once"
