"""Removal of archived entries in both databases: what a start accepts, and what the database itself refuses."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from appliance.domain.actions.registry import EVENTS
from appliance.domain.core.entry import EntryDraft, parse_entry
from appliance.domain.retention import LogArchived, list_bits
from appliance.errors import ApplianceError, NotFound, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes, raw_digest
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.export import read_removed
from appliance.formats.signatures.dsse import parse_envelope
from appliance.store.database.engine import open_engine
from appliance.store.ledger import rows
from appliance.store.ledger.checks import check_guards
from appliance.store.ledger.copies import copy_database
from appliance.store.ledger.keys import HeldLogKeys
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.search import find_removed
from appliance.store.ledger.snapshots import Snapshots
from appliance.workflows.retention import list_removed_texts
from scripts.kit.log_builder import ORIGIN, LogBuilder
from tests.kit.archived_log import archived, old_site, prepare
from tests.kit.small_log import CODE
from tests.store.conftest import KINDS, Databases


class Copied:
    """The builder's log in a database: its entries with their own times, keys and texts."""

    def __init__(self, site: LogBuilder, engine: Engine, snapshots: Path | None = None) -> None:
        self.site, self.engine = site, engine
        self.snapshots = snapshots
        self._now = site.now
        self._opened: list[Ledger] = []
        self.ledger = self.open()

    def open(self) -> Ledger:
        vkey = self.site.first.log_key
        saved = None
        if self.snapshots is not None:
            saved = Snapshots(self.snapshots, origin=ORIGIN, code=CODE, keys=HeldLogKeys(lambda _: self.site.log))
        ledger = Ledger(
            self.engine,
            origin=ORIGIN,
            log_key=vkey,
            keys=HeldLogKeys(lambda _: self.site.log),
            clock=lambda: parse_time(self._now),
            snapshots=saved,
        )
        self._opened.append(ledger)
        return ledger

    def close(self) -> None:
        for ledger in self._opened:
            ledger.close()

    def copy(self, start: int = 0) -> None:
        """Append the builder's entries from this one on."""
        texts = {one.commitment: one for one in self.site.disclosures}
        for data in self.site.entries[start:]:
            entry = parse_entry(data)
            self._now = entry.time
            documents = {role: self.site.documents[digest] for role, digest in entry.documents.items()}
            removed = documents.get("removed", b"") if entry.type == LogArchived.type else b""
            bound = [texts[name] for name in _commitments(data, documents) if name in texts]
            draft = EntryDraft(
                type=entry.type,
                actor=entry.actor,
                source=entry.source,
                subjects=entry.subjects,
                outcome=entry.outcome,
                documents=documents,
                body=entry.body,
                disclosures=tuple(bound),
                erased=list_removed_texts(self.ledger.state, removed) if removed else (),
            )
            assert self.ledger.append(draft).entry_bytes == data

    def archive(self, made: Archived) -> None:
        """Append what follows, the entries of the archive."""
        self.site = made.after
        self.copy(len(made.before.entries))

    def execute(self, statement: str, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement), values)


def _commitments(data: bytes, documents: dict[str, bytes]) -> Iterator[str]:
    sources = [data, *documents.values()]
    for document in documents.values():
        with suppress(ApplianceError):
            sources.append(parse_envelope(document).payload)
    yield from dict.fromkeys(
        found.decode() for one in sources for found in re.findall(rb"hmac-sha256:[0-9a-f]{64}", one)
    )


Copy = Callable[..., Copied]


@pytest.fixture
def copying(engine: Engine) -> Iterator[Copy]:
    """Yield a function that opens an empty log for a builder's entries."""
    with ExitStack() as stack:
        yield lambda site, *rest: stack.enter_context(closing(Copied(site, engine, *rest)))


class Archived(NamedTuple):
    """A log before and after its old records are archived. `after` has the bytes of what is removed."""

    before: LogBuilder
    after: LogBuilder
    removed: bytes


@cache
def archived_site() -> Archived:
    """Made once in a process."""
    before = old_site()
    order, prepared = prepare(before)
    after = before.fork()
    archived(after, order, prepared.removed)
    after.documents |= before.documents
    after.disclosures = before.disclosures
    return Archived(before, after, prepared.removed)


@pytest.fixture(params=KINDS)
def copied(request: pytest.FixtureRequest, databases: Databases, filed: None, tmp_path: Path) -> Iterator[Copied]:
    """Yield a log whose old records are archived, with an index row for each entry."""
    made = archived_site()

    def fill(url: str) -> None:
        filling = Copied(made.before, open_engine(url))
        filling.copy()
        filling.archive(made)
        filling.close()

    kind = str(request.param)
    with databases.copy(kind, databases.filled(kind, "archived", fill), tmp_path) as url:
        copied = Copied(made.after, open_engine(url))
        copied.ledger.load()
        yield copied
        copied.close()


@pytest.mark.thorough
def test_removed_entries_are_gone_and_the_log_loads(copied: Copied) -> None:
    ledger, removed = copied.ledger, list(list_bits(archived_site().removed))
    assert [index for index, data in enumerate(ledger.entries()) if read_removed(data) is not None] == removed
    with pytest.raises(NotFound, match="by order of anna and ben; the archive sha256:") as refused:
        ledger.entry_bytes(removed[0])
    assert refused.value.code == "archived"
    assert [name for name, count in _count_left(copied.engine, removed).items() if count] == []
    again = copied.open()
    again.load()
    assert list(again.state.projections()) == list(ledger.state.projections())
    assert again.check_projections() == ledger.check_projections() == []
    assert [one for one in again.ask(check_guards) if "fsync" not in one] == []
    ledger.rebuild_projections()
    assert ledger.check_projections() == []


def _count_left(engine: Engine, removed: list[int]) -> dict[str, int]:
    listed = ", ".join(map(str, removed))
    queries = {
        "bytes": f'SELECT count(*) FROM entries WHERE "index" IN ({listed}) AND length(bytes) > 0',
        "bound": f'SELECT count(*) FROM entry_documents WHERE "index" IN ({listed})',
        "documents": "SELECT count(*) FROM documents WHERE digest NOT IN (SELECT digest FROM entry_documents)",
    }
    with engine.connect() as connection:
        return {name: connection.execute(text(query)).scalar_one() for name, query in queries.items()}


def _find_archives(ledger: Ledger, subject: str) -> list[int]:
    return ledger.ask(lambda connection: find_removed(connection, ledger.partial_block, {"subjects": [subject]}))


def test_a_search_leaves_removed_entries_out_and_names_their_archive(copied: Copied) -> None:
    ledger, request = copied.ledger, f"request:{1:032x}"
    assert ledger.find(subjects=[request]) == []
    assert _find_archives(ledger, request) == [ledger.state.size - 1]
    assert _find_archives(ledger, "unit:nobody") == []
    pages, after = [], -1
    while page := ledger.find(after=after, limit=1):
        pages.append(page[0][0])
        after = page[0][0]
    present = [index for index, data in enumerate(ledger.entries()) if read_removed(data) is None]
    assert pages == present
    assert [index for index, _ in ledger.find(limit=1000, newest=True)] == present[::-1]


@pytest.mark.thorough
def test_a_start_from_a_snapshot_accepts_removed_entries(copying: Copy, tmp_path: Path) -> None:
    """One that was made before them, and one that was made after."""
    made = archived_site()
    copied = copying(made.before, tmp_path / "snapshot")
    copied.copy()
    copied.ledger.seal_snapshot(1)
    copied.archive(made)
    for _ in range(2):
        again = copied.open()
        again.load()
        assert list(again.state.projections()) == list(copied.ledger.state.projections())
        again.seal_snapshot(1)


@pytest.mark.parametrize("copied", ["sqlite"], indirect=True)
def test_a_start_refuses_missing_bytes_that_no_archive_names(copied: Copied) -> None:
    """As somebody removes them who can change the file. The service's role on PostgreSQL cannot drop a trigger."""
    index = next(i for i, data in enumerate(copied.ledger.entries()) if b'"principal.enrolled"' in data)
    _forge(copied.engine, index)
    with pytest.raises(Tampered, match=f"entry {index}: expected its bytes, got none: no archive names it"):
        copied.open().load()


def _forge(engine: Engine, index: int) -> None:
    with engine.begin() as connection:
        for name in ("entries_refuse_update", "entry_documents_refuse_delete"):
            connection.execute(text(f"DROP TRIGGER {name}"))
        connection.execute(text("UPDATE entries SET bytes = x'' WHERE \"index\" = :at"), {"at": index})
        connection.execute(text('DELETE FROM entry_documents WHERE "index" = :at'), {"at": index})


REFUSED = (
    'UPDATE entries SET bytes = EMPTY WHERE "index" = 3',
    'UPDATE entries SET bytes = EMPTY WHERE "index" = (SELECT max("index") FROM entries)',
    'UPDATE entries SET time = \'now\' WHERE "index" = (SELECT min("index") FROM removed_entries)',
    'UPDATE entries SET nodes = bytes WHERE "index" = (SELECT min("index") FROM removed_entries)',
    'DELETE FROM entry_documents WHERE "index" = 0',
    "DELETE FROM documents",
    "DELETE FROM removed_entries",
    "UPDATE removed_entries SET archive = 60",
    "INSERT INTO removed_entries VALUES (3, 5)",
)


def test_the_database_refuses_to_remove_anything_else(copied: Copied) -> None:
    for statement in REFUSED:
        empty = "x''" if copied.engine.dialect.name == "sqlite" else "''"
        with pytest.raises(SQLAlchemyError, match=r"refused|permission denied"):
            copied.execute(statement.replace("EMPTY", empty))
    if copied.engine.dialect.name == "postgresql":
        with pytest.raises(SQLAlchemyError, match=r"no such archive"):
            copied.execute("SELECT appliance_archive(3)")


def test_the_database_removes_records_alone_whatever_archive_the_service_claims(copied: Copied) -> None:
    """As somebody who has taken over the service's role, and lists an enrolment."""
    at = len(copied.site.entries)
    data = copied.site.entries[-1]
    first = next(index for index, one in enumerate(copied.ledger.entries()) if b'"principal.enrolled"' in one)
    removed = bytes(first // 8) + bytes([1 << first % 8])
    digest = raw_digest(digest_bytes(removed))
    is_postgresql = copied.engine.dialect.name == "postgresql"
    remove = "SELECT appliance_archive(:at)" if is_postgresql else "INSERT INTO removed_entries VALUES (:first, :at)"
    with pytest.raises(SQLAlchemyError, match="removed_entries: no record"), copied.engine.begin() as connection:
        for statement in (
            "INSERT INTO documents VALUES (:digest, :removed)",
            "INSERT INTO entries (\"index\", time, nodes, bytes) VALUES (:at, 'now', :nodes, :data)",
            "INSERT INTO entry_documents VALUES (:at, 'removed', :digest)",
            remove,
        ):
            values = {"at": at, "data": data, "digest": digest, "removed": removed, "nodes": bytes(32), "first": first}
            connection.execute(text(statement), values)


def test_the_database_knows_the_types_of_records() -> None:
    initial = importlib.import_module("migrations.versions.0001_initial")
    assert set(initial.RECORD_TYPES) == {name for name, event in EVENTS.items() if event.records is not None}
    assert LogArchived.type == initial.ARCHIVE_TYPE


@pytest.mark.thorough
def test_an_append_that_fails_removes_nothing(copying: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two statements of the removal, and after the last: the disk is full, or the process is killed."""
    made = archived_site()
    copied = copying(made.before)
    copied.copy()
    real = rows.archive_entries

    def fail(*given: Any) -> None:
        real(*given)
        raise OSError("no space left")

    monkeypatch.setattr(rows, "archive_entries", fail)
    with pytest.raises(Unavailable, match="no space left"):
        copied.archive(made)
    monkeypatch.undo()
    again = copied.open()
    again.load()
    size = len(made.after.entries) - 1
    assert again.state.size == size
    assert all(read_removed(data) is None for data in again.entries())
    copied.ledger = again
    copied.copy(size)
    assert sum(read_removed(data) is not None for data in again.entries()) == 14


@pytest.mark.thorough
def test_a_log_without_archives_never_asks_for_them(copying: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = copying(archived_site().before)
    copied.copy()
    monkeypatch.setattr(rows, "list_archives", lambda _: pytest.fail("asked"))
    copied.open().load()


@pytest.mark.thorough
def test_an_archived_log_is_backed_up(copied: Copied, tmp_path: Path) -> None:
    """On PostgreSQL, the dump's entries are compared with the checkpoint, too."""
    url = copied.engine.url.render_as_string(hide_password=False)
    made, _ = copy_database(url, tmp_path / "copy", archived_site().before.trust, lambda: None)
    assert list(made.state.projections()) == list(copied.ledger.state.projections())
    assert made.frontier.root() == copied.ledger.edge.root()
