"""Failover of PostgreSQL: a synchronous standby loses no entry, and the loss of a lagging one is detected."""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.kit.appliance import Appliance, Refused, found_site
from scripts.kit.ports import free_port
from scripts.kit.postgres import APPLICATION, OWNER, Server, find_binaries, run_server
from scripts.kit.waiting import wait_for

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]


@contextmanager
def pair() -> Iterator[tuple[Server, Server]]:
    """Yield a primary and a standby that streams from it."""
    with run_server(find_binaries()) as primary:
        primary.execute(f"CREATE ROLE {APPLICATION} LOGIN PASSWORD '{primary.passwords[APPLICATION]}'")
        folder = Path(tempfile.mkdtemp(prefix="ap-sb-", dir=primary.folder.parent))
        standby = primary.add_standby(folder, "second")
        try:
            yield primary, standby
        finally:
            standby.stop()
            shutil.rmtree(folder)


@contextmanager
def site_on(primary: Server, standby: Server, home: Path) -> Iterator[Appliance]:
    """Yield a service with both servers in its settings, as docs/guides/postgresql.md writes them."""
    database = primary.create_database()

    def url(user: str) -> str:
        hosts = f"host=127.0.0.1:{primary.port}&host=127.0.0.1:{standby.port}&target_session_attrs=primary"
        return f"postgresql://{user}:{primary.passwords[user]}@/{database}?{hosts}"

    site = found_site(
        home,
        free_port(),
        {"axel": "auditor"},
        APPLIANCE_DATABASE_URL=url(APPLICATION),
        APPLIANCE_MIGRATION_URL=url(OWNER),
        APPLIANCE_PROCESS="main",
    )
    try:
        yield site
    finally:
        if site.service is not None:
            site.stop()


def database_of(site: Appliance) -> str:
    return site.environment["APPLIANCE_DATABASE_URL"].partition("@/")[2].partition("?")[0]


def find_number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1])


def fail_over(primary: Server, standby: Server) -> None:
    primary.stop(signal.SIGQUIT)
    standby.promote()


def test_a_synchronous_standby_has_every_acknowledged_entry(tmp_path: Path) -> None:
    with pair() as (primary, standby):
        primary.configure(synchronous_standby_names="second")
        wait_for(lambda: primary.execute("SELECT sync_state FROM pg_stat_replication") == [("sync",)], "sync")
        # A role that asks for less does not get it: the service asks for itself.
        primary.execute(f"ALTER ROLE {APPLICATION} SET synchronous_commit = 'local'")
        with site_on(primary, standby, tmp_path / "h") as site:
            # Without the standby nothing is acknowledged; with it, what waited is.
            standby.stop()
            waiting = threading.Thread(target=site.enrol, args=("olga", "operator"))
            waiting.start()
            waiting.join(1.5)
            assert waiting.is_alive()
            standby.start()
            waiting.join(120)
            assert not waiting.is_alive()

            before = site.entries()
            fail_over(primary, standby)
            site.enrol("rita", "reviewer:privacy")
            assert site.entries()[: len(before)] == before
            assert {"olga", "rita"} <= {person["name"] for person in site.get("/v1/principals", "axel")}


def test_entries_that_an_asynchronous_standby_lacks_are_missed_and_named(tmp_path: Path) -> None:
    with pair() as (primary, standby), site_on(primary, standby, tmp_path / "h") as site:
        wait_for(
            lambda: primary.execute("SELECT pg_current_wal_lsn() = replay_lsn FROM pg_stat_replication") == [(True,)],
            "the standby has what was written so far",
        )
        standby.configure(primary_conninfo="")
        wait_for(lambda: not primary.execute("SELECT 1 FROM pg_stat_replication"), "the standby lags")
        wait_for(
            lambda: standby.execute("SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()") == [(True,)],
            "the standby replays what it has received",
        )
        # Each minute the service appends a heartbeat, so the sizes are read and not counted.
        ((size,),) = standby.execute("SELECT size FROM head", database_of(site))
        site.enrol("olga", "operator")
        written = site.get("/v1/status", "axel")["log"]["size"]
        assert written >= size + 2
        note = site.home / "witnessed" / "process-main.note"
        wait_for(
            lambda: note.exists() and int(note.read_text().splitlines()[1]) >= written,
            "the checkpoint of the last commit is kept",
        )
        fail_over(primary, standby)

        # The service that runs has committed more than the promoted server holds.
        lost = rf"expected a log of at least ([0-9]+) entries, seen before, got {size}\b"
        with pytest.raises(Refused, match=lost) as refused:
            site.enrol("rita", "reviewer:privacy")
        assert refused.value.code == "tampered" and find_number(lost, str(refused.value)) >= written
        site.stop()
        # A start compares the log with the checkpoint of its own last commit, which is not in the database.
        with pytest.raises(RuntimeError, match="log-truncated"):
            site.start()
        assert find_number(rf"entries {size} to ([0-9]+) are lost", site.log()) >= written - 1
