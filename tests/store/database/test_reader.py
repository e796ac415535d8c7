"""The cached connection for proofs does not hold SQLite to an old snapshot or a removed file."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from appliance.errors import Unavailable
from appliance.store.database.engine import DatabaseReader, open_engine
from appliance.store.ledger.ledger import Ledger
from tests.kit.small_log import SmallLog, heartbeat


@pytest.fixture
def ledger(sqlite_path: Path, site: SmallLog) -> Iterator[Ledger]:
    """As a service that was started again: it remembers no node of its own appends."""
    url = f"sqlite:///{sqlite_path}"
    with closing(site.open_ledger(open_engine(url))) as before:
        before.append(site.first_draft())
        for _ in range(4):
            before.append(heartbeat())
    with closing(site.open_ledger(open_engine(url))) as ledger:
        yield ledger


def test_a_proof_holds_the_write_ahead_log_to_nothing(ledger: Ledger, sqlite_path: Path) -> None:
    assert len(ledger.inclusion_proof(0, 5)) == 3
    with closing(sqlite3.connect(sqlite_path)) as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)


def test_after_a_close_nothing_of_a_proof_is_open(ledger: Ledger, sqlite_path: Path) -> None:
    """The last connection to go takes the write-ahead log with it."""
    ledger.inclusion_proof(0, 5)
    ledger.close()
    assert [path.name for path in sqlite_path.parent.iterdir()] == [sqlite_path.name]


def test_a_file_put_in_its_place_is_the_one_that_answers(ledger: Ledger, sqlite_path: Path, tmp_path: Path) -> None:
    """The open connection would continue to prove from a file that was removed."""
    first = ledger.inclusion_proof(0, 5)
    ledger.close()
    shutil.copyfile(sqlite_path, tmp_path / "copy.db")
    assert ledger.inclusion_proof(0, 5) == first
    sqlite_path.rename(tmp_path / "away.db")
    with pytest.raises(Unavailable):
        ledger.inclusion_proof(0, 5)
    os.replace(tmp_path / "copy.db", sqlite_path)
    assert ledger.inclusion_proof(0, 5) == first


def test_who_comes_meanwhile_is_given_another_connection(ledger: Ledger, sqlite_path: Path) -> None:
    engine = open_engine(f"sqlite:///{sqlite_path}")
    with closing(DatabaseReader(engine)) as reader:
        with reader.ask() as one, reader.ask() as other:
            assert one is not other
        with reader.ask() as again:
            assert again is one
    engine.dispose()
