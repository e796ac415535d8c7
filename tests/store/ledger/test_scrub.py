"""Erased texts are removed from SQLite's write-ahead log, at once or as soon as no reader prevents it."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from operator import attrgetter
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine

from appliance.domain.core.entry import EntryDraft
from appliance.errors import Unavailable
from appliance.formats.core.commitment import Disclosure, disclose
from appliance.store.database.engine import (
    BUSY_TIMEOUT_S,
    checkpoint_wal,
    connect_reader,
    connect_writer,
    migrate,
    open_engine,
)
from appliance.store.ledger import rows
from appliance.store.ledger import writer as writer_module
from appliance.store.ledger.ledger import Ledger
from tests.kit.faults import failing, unreachable
from tests.kit.small_log import Enrolment, SmallLog, heartbeat

TEXT = b"mia Example"


@pytest.fixture
def mia(site: SmallLog) -> Enrolment:
    return site.enrolment("mia")


@pytest.fixture
def open_at(site: SmallLog) -> Iterator[Callable[[Path], Ledger]]:
    opened: list[Ledger] = []

    def open_one(path: Path) -> Ledger:
        opened.append(site.open_ledger(open_engine(f"sqlite:///{path}")))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def filled(open_at: Callable[[Path], Ledger], sqlite_path: Path, site: SmallLog, mia: Enrolment) -> Ledger:
    """Return a ledger that discloses the text, in its write-ahead log and in the database itself."""
    ledger = open_at(sqlite_path)
    ledger.append(site.first_draft())
    ledger.append(mia.pending)
    ledger.write_back()
    assert files_with_text(sqlite_path) == ["ledger.db", "ledger.db-wal"]
    return ledger


def erasure(enrolment: Enrolment) -> EntryDraft:
    return EntryDraft(type="heartbeat", erased=(enrolment.printed_name.commitment,))


def files_with_text(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.glob(f"{path.name}*") if TEXT in file.read_bytes())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within, somebody reads the moment of now; their connection outlives it, so that no log goes with the last one."""
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM entries").fetchone()
    try:
        yield
        reader.execute("COMMIT")
    finally:
        reader.close()


@contextmanager
def idle(path: Path) -> Iterator[None]:
    """Within, the ledger's connections are not the last ones, whose end would take the log along."""
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT count(*) FROM entries").fetchone()
        yield


def killed(ledger: Ledger, path: Path, mia: Enrolment, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the database on disk after a kill between the commit and its scrub."""
    with monkeypatch.context() as patch:
        patch.setattr(ledger._writer, "scrub", lambda: None)
        ledger.append(erasure(mia))
    folder = path.parent / "after"
    folder.mkdir()
    for name in ("ledger.db", "ledger.db-wal"):
        shutil.copyfile(path.parent / name, folder / name)
    assert "ledger.db-wal" in files_with_text(folder / "ledger.db")
    return folder / "ledger.db"


def test_an_erased_text_is_in_no_file_at_once(filled: Ledger, sqlite_path: Path, mia: Enrolment) -> None:
    filled.append(erasure(mia))
    assert files_with_text(sqlite_path) == []


@pytest.mark.thorough
def test_a_reader_of_an_older_moment_holds_the_scrub_up_until_it_has_gone(
    filled: Ledger, sqlite_path: Path, mia: Enrolment
) -> None:
    with reading(sqlite_path):
        began = time.monotonic()
        filled.append(erasure(mia))
        filled.write_back()
        assert time.monotonic() - began < BUSY_TIMEOUT_S / 2, "who appends does not wait for a reader"
        filled.append(heartbeat())
        assert files_with_text(sqlite_path)
    with idle(sqlite_path):
        filled.write_back()
        assert files_with_text(sqlite_path) == []


def test_a_disk_that_fails_a_scrub_is_asked_again(
    filled: Ledger, sqlite_path: Path, mia: Enrolment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_connection: Connection, _mode: str) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "checkpoint_wal", fail)
        filled.append(erasure(mia))
        filled.write_back()
        assert files_with_text(sqlite_path)
    filled.write_back()
    assert files_with_text(sqlite_path) == []


def test_a_commit_whose_answer_was_lost_is_scrubbed_after(filled: Ledger, sqlite_path: Path, mia: Enrolment) -> None:
    with idle(sqlite_path):
        with failing(filled._engine, "COMMIT", after=True) as steps:
            filled.append(erasure(mia))
        assert steps.fired == "COMMIT"
        assert files_with_text(sqlite_path) == []


def test_a_commit_of_which_nobody_can_tell_owes_a_scrub(filled: Ledger, sqlite_path: Path, mia: Enrolment) -> None:
    with idle(sqlite_path):
        filled._engine.dispose()
        with (
            unreachable(filled._engine),
            failing(filled._engine, "COMMIT", after=True),
            pytest.raises(Unavailable) as caught,
        ):
            filled.append(erasure(mia))
        assert caught.value.code == "commit-unknown"
        assert files_with_text(sqlite_path)
        filled.write_back()
        assert files_with_text(sqlite_path) == []


def test_a_load_scrubs_what_a_killed_service_owed(
    filled: Ledger,
    open_at: Callable[[Path], Ledger],
    sqlite_path: Path,
    mia: Enrolment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = killed(filled, sqlite_path, mia, monkeypatch)
    open_at(left).load()
    assert files_with_text(left) == []


def test_a_load_beside_a_reader_does_not_fail_and_owes_the_scrub(
    filled: Ledger,
    open_at: Callable[[Path], Ledger],
    sqlite_path: Path,
    mia: Enrolment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = killed(filled, sqlite_path, mia, monkeypatch)
    ledger = open_at(left)
    with reading(left):
        ledger.load()
        assert ledger.state.size == 3
        assert files_with_text(left)
    ledger.write_back()
    assert files_with_text(left) == []


def test_a_checkpoint_leaves_the_wait_of_its_connection_as_it_was(sqlite_path: Path) -> None:
    engine = open_engine(f"sqlite:///{sqlite_path}")
    with connect_reader(engine) as connection:
        assert checkpoint_wal(connection, "TRUNCATE")
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == BUSY_TIMEOUT_S * 1000
    engine.dispose()


def erase_many(engine: Engine) -> tuple[list[Disclosure], list[Disclosure]]:
    """Erase texts whose rows move within SQLite's pages as they are added. Return the erased and the other ones."""
    made = random.Random(9)
    texts = [disclose(made.randbytes(made.randint(150, 450)).hex(), made.randbytes(32)) for _ in range(600)]
    with connect_writer(engine) as connection, connection.begin():
        rows.insert_disclosures(connection, texts)
    with connect_writer(engine) as connection, connection.begin():
        rows.delete_disclosures(connection, [one.commitment for one in texts[:200]])
    return texts[:200], texts[200:]


def left_of(erased: list[Disclosure], path: Path) -> int:
    """Of how many the salt, or an end of the text, is on disk."""
    data = b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
    return sum(
        any(part in data for part in (one.salt, one.text[:16].encode(), one.text[-16:].encode())) for one in erased
    )


def test_no_page_keeps_a_copy_of_a_text_that_moved(sqlite_path: Path) -> None:
    engine = open_engine(f"sqlite:///{sqlite_path}")
    migrate(engine)
    erased, others = erase_many(engine)
    with connect_reader(engine) as connection:
        assert rows.read_all_disclosures(connection) == sorted(others, key=attrgetter("commitment"))
    engine.dispose()
    assert left_of(erased, sqlite_path) == 0


def test_what_is_written_is_in_no_temporary_file(filled: Ledger) -> None:
    """SQLite's are outside the home, where no erasure reaches."""
    writer = filled._writer._connection
    assert writer is not None and writer.exec_driver_sql("PRAGMA temp_store").scalar_one() == 2


def test_both_databases_erase_and_write_back(ledger: Ledger, mia: Enrolment) -> None:
    """PostgreSQL has no such log, so nothing is done there."""
    ledger.append(mia.pending)
    ledger.append(erasure(mia))
    ledger.write_back()
    assert ledger.disclosures([mia.printed_name.commitment]) == {}
