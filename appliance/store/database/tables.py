"""The tables. The ledger's rows are only ever added; projections are a cache of the fold over them.

`migrations/` creates these tables, their triggers and, in PostgreSQL, the application's role; a test holds the two
together. Hashes and digests are raw bytes (32); `index` is always the index of an entry.
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

entries = Table(
    "entries",
    metadata,
    Column("index", Counter, primary_key=True, autoincrement=False),
    Column("time", Text, nullable=False),
    Column("nodes", LargeBinary, nullable=False),
    Column("bytes", LargeBinary, nullable=False),
    CheckConstraint('"index" >= 0', name="index"),
    CheckConstraint("length(nodes) >= 32", name="nodes"),
    CheckConstraint("length(bytes) <= 65535", name="bytes"),
    sqlite_strict=True,
)
"""`nodes`: the tree's nodes that this entry completes, from its own leaf hash upwards, 32 bytes each. The column is
before the bytes, which may continue in other pages."""

entry_keys = Table(
    "entry_keys",
    metadata,
    Column("key", Text, primary_key=True),
    Column("block", Counter, primary_key=True, autoincrement=False),
    Column("bits", LargeBinary, nullable=False),
    CheckConstraint("length(bits) >= 1", name="bits"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
"""What entries are searched by: which entries of a block have a key. See `store.filing`, which gives the bits."""

documents = Table(
    "documents",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("bytes", LargeBinary, nullable=False),
    CheckConstraint("length(digest) = 32", name="digest"),
    sqlite_strict=True,
    # A row id would be a second unique key: INSERT OR REPLACE by it removes another row, and no trigger sees which.
    sqlite_with_rowid=False,
)

entry_documents = Table(
    "entry_documents",
    metadata,
    Column("index", Counter, ForeignKey("entries.index"), primary_key=True, autoincrement=False),
    Column("role", Text, primary_key=True),
    Column("digest", LargeBinary, ForeignKey("documents.digest"), nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
Index(None, entry_documents.c.digest, entry_documents.c.index)

head = Table(
    "head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("size", Counter, nullable=False),
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("note", LargeBinary),
    Column("probes", Counter, nullable=False),
    CheckConstraint("id = 1", name="id"),
    sqlite_strict=True,
)
"""One row: the last entry, and the signed checkpoint over the log, NULL while it is empty. An append locks it and
changes it by compare-and-swap; `probes` counts the writes that only test whether the database can be written."""

disclosures = Table(
    "disclosures",
    metadata,
    Column("commitment", Text, primary_key=True),
    Column("salt", LargeBinary, nullable=False),
    Column("text", Text, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
"""Texts behind the commitments of entries and orders: added and erased, never changed."""

projections = Table(
    "projections",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("since", Counter, primary_key=True, autoincrement=False),
    Column("until", Counter),
    Column("value", Text, nullable=False),
    CheckConstraint("until > since", name="until"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
"""The fold as rows, one for each value that a thing ever had: in canonical JSON, from the entry `since` that set it up
to, not including, the entry `until` that changed or removed it; NULL while it is in force. No decision uses this
cache."""
Index(
    "ix_projections_current",
    projections.c.kind,
    projections.c.id,
    unique=True,
    sqlite_where=projections.c.until.is_(None),
    postgresql_where=projections.c.until.is_(None),
)
Index(None, projections.c.kind, projections.c.since, projections.c.until)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("principal", Text, nullable=False),
    Column("keyid", Text, nullable=False),
    Column("expires_at", Text, nullable=False),
    Column("entry", Counter, nullable=False),
    CheckConstraint("length(digest) = 32", name="digest"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
"""Reading sessions of people, by the digest of their token: no part of the ledger, and removed when they have ended."""

processes = Table(
    "processes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("epoch", Counter, nullable=False),
    Column("seen", Counter, nullable=False),
    Column("about", Text),
    CheckConstraint("epoch >= 1", name="epoch"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
"""The service processes of the log, on PostgreSQL: how often each name was taken or taken away, when its holder was
last in contact (milliseconds since 1970 by the server's clock), and what it is, NULL once it has ended. An append of a
process is committed only under the epoch that it began with."""

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("process", Text, nullable=False),
    Column("epoch", Counter, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
"""What one process alone does: by whom, in which epoch. Free once that process is in another."""

REVISION = "0004"
"""The last migration that makes these tables."""
OLDER = ("0001", "0002", "0003")
"""From which a start brings a database up to date."""

APPEND_ONLY = (entries, entry_keys, documents, entry_documents)
"""Rows that are never changed and never removed."""
