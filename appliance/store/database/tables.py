"""The tables. Rows of the ledger are only added; projections cache the state that results from them.

`migrations/` creates these tables, their triggers and, on PostgreSQL, the role of the service; a test compares both.
Hashes and digests are 32 raw bytes. `index` is always the index of an entry.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.schema import SchemaItem

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Counter = BigInteger().with_variant(Integer, "sqlite")
"""A 64-bit integer. As a single primary key it is SQLite's row id, so that entries are in order on disk."""


def _table(name: str, *columns: SchemaItem, rowid: bool = False) -> Table:
    """Return a new table, which is strict in SQLite and has no row ids there unless `rowid` is set.

    A row id would be a second unique key, by which INSERT OR REPLACE could remove a row unseen by triggers.
    """
    return Table(name, metadata, *columns, sqlite_strict=True, sqlite_with_rowid=rowid)


entries = _table(
    "entries",
    Column("index", Counter, primary_key=True, autoincrement=False),
    Column("time", Text, nullable=False),
    Column("nodes", LargeBinary, nullable=False),
    Column("bytes", LargeBinary, nullable=False),
    CheckConstraint('"index" >= 0', name="index"),
    CheckConstraint("length(nodes) >= 32", name="nodes"),
    CheckConstraint("length(bytes) <= 65535", name="bytes"),
    rowid=True,
)
"""Entries of the log. `nodes` are the Merkle tree nodes that the entry completes, from its leaf hash upwards, 32 bytes
each. `bytes` is empty if an archive removed the entry's bytes.

The column precedes `bytes`, which may continue on overflow pages.
"""

removed_entries = _table(
    "removed_entries",
    Column("index", Counter, ForeignKey("entries.index"), primary_key=True, autoincrement=False),
    Column("archive", Counter, ForeignKey("entries.index"), nullable=False),
    CheckConstraint('"index" < archive', name="archive"),
    rowid=True,
)
"""Entries whose bytes and documents were removed, each with the entry of the archive that has them.

Triggers let no other entry lose its bytes or documents.
"""

entry_keys = _table(
    "entry_keys",
    Column("key", Text, primary_key=True),
    Column("block", Counter, primary_key=True, autoincrement=False),
    Column("bits", LargeBinary, nullable=False),
    CheckConstraint("length(bits) >= 1", name="bits"),
)
"""Index for searches: which entries of a block have a key. `store.ledger.search_index` defines the bits."""

documents = _table(
    "documents",
    Column("digest", LargeBinary, primary_key=True),
    Column("bytes", LargeBinary, nullable=False),
    CheckConstraint("length(digest) = 32", name="digest"),
)

entry_documents = _table(
    "entry_documents",
    Column("index", Counter, ForeignKey("entries.index"), primary_key=True, autoincrement=False),
    Column("role", Text, primary_key=True),
    Column("digest", LargeBinary, ForeignKey("documents.digest"), nullable=False),
)
Index(None, entry_documents.c.digest, entry_documents.c.index)

head = _table(
    "head",
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("size", Counter, nullable=False),
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("note", LargeBinary),
    Column("probes", Counter, nullable=False),
    CheckConstraint("id = 1", name="id"),
    rowid=True,
)
"""One row: the last entry, and the signed checkpoint over the log, NULL while the log is empty.

An append locks this row and changes it by compare-and-swap. `probes` counts writes that only test whether the database
can be written.
"""

disclosures = _table(
    "disclosures",
    Column("commitment", Text, primary_key=True),
    Column("salt", LargeBinary, nullable=False),
    Column("text", Text, nullable=False),
)
"""Texts behind the commitments of entries and orders; they are added and erased, never changed."""

projections = _table(
    "projections",
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("since", Counter, primary_key=True, autoincrement=False),
    Column("until", Counter),
    Column("value", Text, nullable=False),
    CheckConstraint("until > since", name="until"),
)
"""The state as rows, one for each value that an object ever had, in canonical JSON.

A value is valid from the entry `since` up to, but not including, the entry `until`, which changed or removed it;
`until` is NULL for current values. No decision uses this cache.
"""
Index(
    "ix_projections_current",
    projections.c.kind,
    projections.c.id,
    unique=True,
    sqlite_where=projections.c.until.is_(None),
    postgresql_where=projections.c.until.is_(None),
)
Index(None, projections.c.kind, projections.c.since, projections.c.until)

sessions = _table(
    "sessions",
    Column("digest", LargeBinary, primary_key=True),
    Column("principal", Text, nullable=False),
    Column("keyid", Text, nullable=False),
    Column("expires_at", Text, nullable=False),
    Column("entry", Counter, nullable=False),
    CheckConstraint("length(digest) = 32", name="digest"),
)
"""Read-only sessions of people by the digest of their token; not part of the ledger, and removed after they end."""

processes = _table(
    "processes",
    Column("name", Text, primary_key=True),
    Column("epoch", Counter, nullable=False),
    Column("seen", Counter, nullable=False),
    Column("about", Text),
    CheckConstraint("epoch >= 1", name="epoch"),
)
"""The service processes of the log, on PostgreSQL.

`epoch` counts how often the name was taken or taken away, `seen` is the last heartbeat of its holder (milliseconds
since 1970 by the server's clock), and `about` describes the holder, NULL once it has ended. An append is committed only
under the epoch with which it began.
"""

leases = _table(
    "leases",
    Column("name", Text, primary_key=True),
    Column("process", Text, nullable=False),
    Column("epoch", Counter, nullable=False),
)
"""Work that only one process does, with the holder and its epoch. A lease is free when its epoch is no longer
current."""

pending_batches = _table(
    "pending_batches",
    Column("size", Counter, primary_key=True, autoincrement=False),
    Column("root", LargeBinary, primary_key=True),
    Column("bytes", LargeBinary, nullable=False),
    CheckConstraint("length(root) = 32", name="root"),
)
"""Entries for which a signer was asked for a checkpoint, until they are committed, on PostgreSQL.

`size` and `root` are those of the log after them.
"""

REVISION = "initial"
"""The revision of migrations/ that this code needs."""
OLDER: tuple[str, ...] = ()
"""Released revisions before `REVISION`, from which a start migrates by itself."""
DEVELOPMENT = ("0001", "0002", "0003", "0004")
"""Revisions of builds before the first release. No migration leads from them."""

APPEND_ONLY = (entries, removed_entries, entry_keys, documents, entry_documents)
"""Tables whose rows are never changed or removed, except those of entries that an archive removes."""
