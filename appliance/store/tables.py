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
    SmallInteger,
    Table,
    Text,
    literal_column,
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
"""A 64-bit integer. As a single primary key it is SQLite's row id, so that entries lie in their order on disk."""

entries = Table(
    "entries",
    metadata,
    Column("index", Counter, primary_key=True, autoincrement=False),
    Column("time", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("unit", Text),
    Column("bytes", LargeBinary, nullable=False),
    Column("leaf_hash", LargeBinary, nullable=False),
    CheckConstraint('"index" >= 0', name="index"),
    CheckConstraint("length(bytes) <= 65535", name="bytes"),
    CheckConstraint("length(leaf_hash) = 32", name="leaf_hash"),
    sqlite_strict=True,
)
UNUSUAL = entries.c.outcome != literal_column("'success'")
"""What the index over outcomes holds: nearly every entry succeeds, and each index costs the append."""

Index(None, entries.c.type, entries.c.index)
Index(None, entries.c.actor, entries.c.index)
Index(
    "ix_entries_outcome_index",
    entries.c.outcome,
    entries.c.index,
    sqlite_where=UNUSUAL,
    postgresql_where=UNUSUAL,
)
Index(
    "ix_entries_unit_type_index",
    entries.c.unit,
    entries.c.type,
    entries.c.index,
    sqlite_where=entries.c.unit.is_not(None),
    postgresql_where=entries.c.unit.is_not(None),
)

entry_subjects = Table(
    "entry_subjects",
    metadata,
    Column("index", Counter, ForeignKey("entries.index"), primary_key=True, autoincrement=False),
    Column("subject", Text, primary_key=True),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
Index(None, entry_subjects.c.subject, entry_subjects.c.index)

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

tree_nodes = Table(
    "tree_nodes",
    metadata,
    Column("level", SmallInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("index", Counter, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
    CheckConstraint("length(hash) = 32", name="hash"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("size", Counter, primary_key=True, autoincrement=False),
    Column("note", LargeBinary, nullable=False),
    sqlite_strict=True,
)

head = Table(
    "head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("size", Counter, nullable=False),
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("probes", Counter, nullable=False),
    CheckConstraint("id = 1", name="id"),
    sqlite_strict=True,
)
"""One row: the last entry. Whoever appends locks it and moves it by compare-and-swap; `probes` counts the writes that
only asked whether the database can be written."""

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
to, not including, the entry `until` that changed or removed it; NULL while it stands. Nothing decides by this cache."""
Index(
    "ix_projections_current",
    projections.c.kind,
    projections.c.id,
    unique=True,
    sqlite_where=projections.c.until.is_(None),
    postgresql_where=projections.c.until.is_(None),
)
Index(None, projections.c.kind, projections.c.since, projections.c.until)

REVISION = "0001"
"""The migration that makes these tables."""

APPEND_ONLY = (entries, entry_subjects, documents, entry_documents, tree_nodes, checkpoints)
"""Rows that are never changed and never removed."""
