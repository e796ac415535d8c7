"""Writes a synthetic log as an export and as a SQLite database with the rows that the ledger would have written."""

from __future__ import annotations

import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, Engine, Table

from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import encode_disclosure
from appliance.formats.core.digest import digest_bytes, raw_digest
from appliance.formats.core.fields import encode_base64
from appliance.formats.log.export import MEMBERS, VERSION
from appliance.store.database import tables
from appliance.store.database.engine import connect_writer, migrate, open_engine
from appliance.store.ledger import rows
from appliance.store.ledger.rows import LogHead
from appliance.store.ledger.search_index import BLOCK, index_block, keys_of, list_rows
from scripts.benches.signed_site import Made
from scripts.benches.synthetic import Synthetic

_BLOCK = tarfile.BLOCKSIZE
_USTAR_LIMIT = 8**11
_BATCH = 5_000


class ExportFile:
    """An export of a log, written in one pass. `close` fills in the parts whose sizes are known only at the end.

    The bytes are those of `formats.log.export.write_export`, which reads a log twice.
    """

    def __init__(self, path: Path, log: Synthetic) -> None:
        self._log = log
        self._stream: BinaryIO = path.open("w+b")
        self._texts: BinaryIO = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed with the export
        self._documents: BinaryIO = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
        self._seen: set[str] = set()
        self._header = encode_canonical({"origin": log.origin, "size": log.size, "version": VERSION})
        self._stream.write(bytes(5 * _BLOCK))

    def take(self, made: Made) -> None:
        self._stream.write(made.data + b"\n")
        for _, data in sorted(made.documents.items()):
            digest = digest_bytes(data)
            if digest not in self._seen:
                self._seen.add(digest)
                line = encode_canonical({"bytes": encode_base64(data), "digest": digest})
                self._documents.write(line + b"\n")
        for disclosure in made.disclosures:
            self._texts.write(encode_disclosure(disclosure) + b"\n")

    def close(self) -> None:
        stream = self._stream
        entry_bytes = stream.tell() - 5 * _BLOCK
        stream.write(bytes(-entry_bytes % _BLOCK))
        for name, spooled in zip(MEMBERS[3:], (self._documents, self._texts), strict=True):
            length = spooled.tell()
            stream.write(_tar_header(name, length))
            spooled.seek(0)
            shutil.copyfileobj(spooled, stream)
            stream.write(bytes(-length % _BLOCK))
            spooled.close()
        stream.write(bytes(2 * _BLOCK))
        stream.seek(0)
        for name, data in zip(MEMBERS[:2], (self._header, self._log.checkpoint()), strict=True):
            stream.write(_tar_header(name, len(data)) + data.ljust(_BLOCK, b"\0"))
        stream.write(_tar_header(MEMBERS[2], entry_bytes))
        stream.close()


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.USTAR_FORMAT if size < _USTAR_LIMIT else tarfile.GNU_FORMAT)


class DatabaseFile:
    """A migrated SQLite database that is filled in one transaction.

    Search keys and indexes have another order than the log, so `close` writes them.
    """

    def __init__(self, path: Path, log: Synthetic) -> None:
        self._log = log
        self.engine: Engine = open_engine(f"sqlite:///{path}")
        migrate(self.engine)
        self._connection: Connection = connect_writer(self.engine)
        self._driver: sqlite3.Connection = self._connection.connection.driver_connection
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "foreign_keys = OFF", "cache_size = -200000"):
            self._driver.execute(f"PRAGMA {pragma}").close()
        self._indexes = self._drop_indexes()
        self._driver.execute("CREATE TEMP TABLE unsorted (key TEXT, block INTEGER, bits BLOB)")
        self._keys: list[tuple[int, list[str]]] = []
        self._connection.begin()
        self._batch: list[Made] = []
        self._stored: set[bytes] = set()

    def _drop_indexes(self) -> list[str]:
        """Drop the indexes of the table of documents, and return the statements that make them again."""
        found = self._driver.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL "
            "AND tbl_name = 'entry_documents'"
        ).fetchall()
        for name, _ in found:
            self._driver.execute(f'DROP INDEX "{name}"')
        return [sql for _, sql in found]

    def take(self, made: Made) -> None:
        self._batch.append(made)
        if len(self._batch) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        self._insert(tables.entries, (_entry_row(made) for made in batch))
        for made in batch:
            self._keys.append((made.index, keys_of(made)))
            if len(self._keys) == BLOCK:
                filed = list_rows(made.index // BLOCK, index_block(self._keys))
                self._driver.executemany("INSERT INTO unsorted VALUES (?, ?, ?)", filed)
                self._keys.clear()
        for made in (made for made in batch if made.documents or made.changes):
            self._insert_attachments(made)

    def _insert_attachments(self, made: Made) -> None:
        """Insert the documents, the projections and the disclosures of an entry."""
        bound = {role: raw_digest(digest_bytes(data)) for role, data in made.documents.items()}
        new = {digest: made.documents[role] for role, digest in bound.items() if digest not in self._stored}
        self._stored.update(new)
        self._insert(tables.documents, new.items())
        self._insert(tables.entry_documents, ((made.index, role, digest) for role, digest in bound.items()))
        if made.changes:
            rows.write_projections(self._connection, made.index, made.changes)
        if made.disclosures:
            rows.insert_disclosures(self._connection, made.disclosures)

    def _insert(self, table: Table, values: Iterable[tuple[object, ...]]) -> None:
        """Insert rows, whose values have the order of the table's columns."""
        places = ", ".join("?" for _ in table.columns)
        self._driver.executemany(f'INSERT INTO "{table.name}" VALUES ({places})', values)  # noqa: S608

    def close(self) -> None:
        """Write keys, head, checkpoint and indexes. The file is then as a service leaves it."""
        self._flush()
        self._driver.execute("INSERT INTO entry_keys SELECT * FROM unsorted ORDER BY key, block")
        before, head = rows.read_head(self._connection), LogHead(self._log.index, self._log.leaf)
        rows.move_head(self._connection, before, head, self._log.checkpoint())
        for sql in self._indexes:
            self._driver.execute(sql)
        self._connection.commit()
        self._driver.execute("PRAGMA journal_mode = WAL").close()
        self._connection.invalidate()
        self._connection.close()
        self.engine.dispose()


def _entry_row(made: Made) -> tuple[object, ...]:
    """Return the row of an entry, in the order of the table's columns."""
    return made.index, made.time, b"".join(made.nodes), made.data


def write_log(log: Synthetic, *, export: Path | None = None, database: Path | None = None) -> None:
    """Make the whole log, and write it to the export and to the database that are given, in one pass."""
    places: list[ExportFile | DatabaseFile] = []
    places += [ExportFile(export, log)] if export else []
    places += [DatabaseFile(database, log)] if database else []
    for made in log.entries():
        for place in places:
            place.take(made)
    for place in places:
        place.close()
