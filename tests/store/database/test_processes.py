"""Several processes on one PostgreSQL: each has a name under an epoch, and leases that end with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.errors import Conflict, Unavailable
from appliance.store.database import processes
from appliance.store.database.engine import discard, open_engine
from appliance.store.database.processes import ProcessDescription, Processes, list_members
from appliance.store.ledger.ledger import Ledger
from scripts.kit.postgres import SUPERUSER
from tests.kit.small_log import SmallLog, heartbeat
from tests.store.conftest import Databases


def about(**changes: object) -> ProcessDescription:
    return ProcessDescription(
        **{
            "roles": ("units",),
            "host": "h1",
            "pid": 7,
            "since": "now",
            "version": "0.1.0.dev1",
            "compatibility": 7,
            **changes,
        }
    )  # type: ignore[arg-type]


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    with databases.copy("postgresql", databases.migrated("postgresql"), None) as url:  # type: ignore[arg-type]
        yield url


def member(url: str, name: str = "", **changes: object) -> Processes:
    return Processes(open_engine(url, process=name), name, about(**changes))


def look(url: str) -> list[str]:
    engine = open_engine(url)
    found = [one.name for one in list_members(engine)]
    engine.dispose()
    return found


def end_sessions(databases: Databases, url: str) -> None:
    superuser = open_engine(databases.server().url(url.rpartition("/")[2], SUPERUSER))
    with superuser.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    superuser.dispose()


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the monotonic time by one that the test sets."""
    now = [1000.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    return now


def watch(one: Processes, passing: list[float], seconds: int) -> None:
    for _ in range(seconds):
        passing[0] += 1
        one.beat()


def test_a_name_has_one_holder_until_that_has_ended(url: str) -> None:
    with member(url) as first:
        with (
            pytest.raises(Conflict, match=r"expected no other service on its log, got .*process id 7 on h1") as info,
            member(url),
        ):
            pass
        assert info.value.code == "locked"
    with member(url) as second:
        assert second.epoch > first.epoch


def test_processes_beside_each_other_have_names_and_one_compatibility_number(url: str) -> None:
    with member(url), pytest.raises(Conflict, match="expected a name for each"), member(url, "gateway-1"):
        pass
    with member(url, "gateway-1") as first, member(url, "gateway-2", host="h2") as second:
        first.beat()
        assert [(one.name, one.about.host) for one in first.others] == [("gateway-2", "h2")]
        assert [one.name for one in second.others] == ["gateway-1"]
        with pytest.raises(Conflict, match=r"without a name|none for this one"), member(url):
            pass
        refused = r"^build: 0.1.0.dev1 has compatibility number 8, and 0.1.0.dev1 of gateway-1 \(.*\) has 7; stop all"
        with pytest.raises(Conflict, match=refused) as info, member(url, "g", compatibility=8):
            pass
        assert info.value.code == "other-build"
        with member(url, "g", version="0.1.0.dev2+g12345678") as another_build:
            assert {one.about.version for one in another_build.others} == {"0.1.0.dev1"}
        assert look(url) == ["gateway-1", "gateway-2"]


def test_a_build_that_does_not_say_its_number_is_another_one(url: str) -> None:
    with member(url, "old"):
        engine = open_engine(url)
        with engine.begin() as connection:
            # Less and more than this build knows.
            said = '{"roles": ["units"], "host": "h1", "pid": 7, "code": "sha256:1", "since": "now"}'
            connection.exec_driver_sql("UPDATE processes SET about = %s", (said,))
        engine.dispose()
        with pytest.raises(Conflict, match=r"and unknown of old \(process id 7 on h1\) has 0"), member(url, "new"):
            pass
    assert look(url) == []


def test_a_session_that_the_server_ended_is_taken_again_under_the_same_epoch(url: str, databases: Databases) -> None:
    with member(url) as first:
        epoch = first.epoch
        end_sessions(databases, url)
        first.beat()
        assert (first.is_lost, first.epoch) == (False, epoch)
        with pytest.raises(Conflict), member(url):
            pass


def test_who_took_the_name_meanwhile_has_it(url: str, databases: Databases) -> None:
    with member(url) as first:
        end_sessions(databases, url)
        with member(url) as second:
            first.beat()
            assert first.is_lost
            second.beat()
            assert not second.is_lost
        with member(url) as third:
            first.leave()
            third.beat()
            assert not third.is_lost, "who was fenced takes nothing away"


def test_a_session_that_is_lost_at_our_end_alone_does_not_shut_us_out(url: str) -> None:
    with member(url) as first:
        ghost, first._connection = first._connection, None
        first.beat()
        # The server ends the old session some time after it was told to; until then that session has the lock.
        while not first._has_lock:
            first.beat()
        assert not first.is_lost
        with pytest.raises(Conflict), member(url):
            pass
        assert ghost is not None
        discard(ghost)


def test_a_silent_process_is_lost_and_what_it_owned_is_free_once(url: str, passing: list[float]) -> None:
    with member(url, "runner-1") as paused, member(url, "runner-2") as second, member(url, "runner-3") as third:
        assert paused.acquire_lease("runs") and paused.acquire_lease("runs") and not second.acquire_lease("runs")
        assert second.list_leases() == {"runs"}
        watch(second, passing, 9)
        assert second.silent == ()
        third.beat()
        watch(second, passing, 3)
        (gone,) = (one for one in second.silent if one.name == "runner-1")
        assert second.end(gone) and not third.end(gone)
        assert not second.list_leases()
        assert [second.acquire_lease("runs"), third.acquire_lease("runs")] == [True, False]
        assert not paused.acquire_lease("free"), "its epoch was taken away, and it does not know it yet"
        assert "free" not in second.list_leases() | paused.list_own_leases()
        paused.beat()
        assert paused.is_lost
        assert not paused.acquire_lease("runs")


def test_a_process_whose_row_says_that_it_ended_has_lost_its_name(url: str) -> None:
    """Others do not see it, and record it as lost."""
    with member(url, "a") as hidden, member(url, "b") as other:
        engine = open_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE processes SET about = NULL WHERE name = 'a'")
        engine.dispose()
        assert [one.name for one in other.list_live()] == ["b"]
        hidden.beat()
        assert hidden.is_lost


def test_a_withdrawn_name_is_lost_in_this_epoch_only(url: str) -> None:
    with member(url, "a") as one, member(url, "b") as other:
        other.withdraw("a", one.epoch - 1)
        one.beat()
        assert not one.is_lost
        other.withdraw("a", one.epoch)
        one.beat()
        assert one.is_lost


def test_a_sign_of_life_between_the_look_and_the_end_saves(url: str, passing: list[float]) -> None:
    with member(url, "a") as quick, member(url, "b") as slow:
        watch(slow, passing, 12)
        (seen,) = slow.silent
        quick.beat()
        assert not slow.end(seen)
        watch(slow, passing, 1)
        assert slow.silent == ()


def test_who_was_cut_off_itself_declares_nobody_lost(url: str, passing: list[float]) -> None:
    with member(url, "a"), member(url, "b") as cut_off:
        watch(cut_off, passing, 3)
        passing[0] += 60
        assert cut_off.silent == (), "it has not looked yet"
        cut_off.beat()
        assert cut_off.silent == ()
        watch(cut_off, passing, 11)
        assert [one.name for one in cut_off.silent] == ["a"]


@pytest.mark.thorough
def test_a_fenced_process_appends_nothing_even_in_the_middle_of_an_append(url: str, site: SmallLog) -> None:
    def opened(one: Processes) -> Ledger:
        ledger = site.open_ledger(open_engine(url, process=one.name))
        ledger.load()
        ledger.fence, ledger.notifies_others = one.fence, True
        return ledger

    with member(url, "old") as old, member(url, "new") as new:
        paused, other = opened(old), opened(new)
        paused.append(site.first_draft())
        other.append(heartbeat())
        # As one that stopped after it had locked the head.
        inside = old._server.connect()
        inside.exec_driver_sql("SELECT 1 FROM head FOR UPDATE")
        new.beat()
        assert new.end(next(one for one in new.others if one.name == "old"))
        discard(inside)
        other.append(heartbeat())
        with pytest.raises(Unavailable) as info:
            paused.append(heartbeat())
        assert info.value.code == "fenced"
        assert other.state.size == 3
        with pytest.raises(Unavailable):
            paused.append(heartbeat())
        assert not other.refresh()
        assert [entry.index for entry in other.take_followed()] == [0]
        paused.close()
        other.close()


def test_processes_that_append_at_once_fold_each_others_entries(url: str, site: SmallLog) -> None:
    with member(url, "one") as one, member(url, "two") as two:
        ledgers = []
        for each in (one, two):
            ledger = site.open_ledger(open_engine(url, process=each.name))
            ledger.load()
            ledger.fence, ledger.notifies_others = each.fence, True
            ledgers.append(ledger)
        first, second = ledgers
        first.append(site.first_draft())
        for _ in range(5):
            second.append(heartbeat())
            first.append(heartbeat())
        assert second.refresh()
        assert first.edge == second.edge and first.state.size == 11
        assert [entry.index for entry in first.take_followed()] == [1, 3, 5, 7, 9]
        assert first.take_followed() == []
        for ledger in ledgers:
            ledger.close()


def test_on_sqlite_there_is_one_process_and_everything_is_its_own(tmp_path: object) -> None:
    with Processes(open_engine(f"sqlite:///{tmp_path}/ledger.db"), "", about()) as only:
        only.beat()
        assert only.acquire_lease("runs") and only.fence is None and only.others == () and not only.is_lost
