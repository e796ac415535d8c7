"""The initial tables, the triggers that keep entries, and the service's role."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "initial"
down_revision = None
branch_labels = None
depends_on = None

APPLICATION_ROLE = "appliance_app"
COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

PRIMARY_KEYS = {
    "entries": ("index",),
    "removed_entries": ("index",),
    "entry_keys": ("key", "block"),
    "documents": ("digest",),
    "entry_documents": ("index", "role"),
    "disclosures": ("commitment",),
    "head": ("id",),
}
APPEND_ONLY = ("entries", "removed_entries", "entry_keys", "documents", "entry_documents")


def upgrade() -> None:
    _create_entries()
    _create_documents()
    head = _create_head()
    _create_caches()
    _create_processes()
    op.bulk_insert(head, [{"id": 1, "size": 0, "leaf_hash": bytes(32), "note": None, "probes": 0}])
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgresql()
        _grant_postgresql()
    else:
        _guard_sqlite()


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken down: expected an upgrade, got a downgrade below initial")


def _create_entries() -> None:
    op.create_table(
        "entries",
        sa.Column("index", COUNTER, autoincrement=False, nullable=False),
        sa.Column("time", sa.Text, nullable=False),
        sa.Column("nodes", sa.LargeBinary, nullable=False),
        sa.Column("bytes", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("index", name="pk_entries"),
        sa.CheckConstraint('"index" >= 0', name=op.f("ck_entries_index")),
        sa.CheckConstraint("length(nodes) >= 32", name=op.f("ck_entries_nodes")),
        sa.CheckConstraint("length(bytes) <= 65535", name=op.f("ck_entries_bytes")),
        sqlite_strict=True,
    )
    op.create_table(
        "removed_entries",
        sa.Column("index", COUNTER, autoincrement=False, nullable=False),
        sa.Column("archive", COUNTER, nullable=False),
        sa.PrimaryKeyConstraint("index", name="pk_removed_entries"),
        sa.ForeignKeyConstraint(["index"], ["entries.index"], name="fk_removed_entries_index"),
        sa.ForeignKeyConstraint(["archive"], ["entries.index"], name="fk_removed_entries_archive"),
        sa.CheckConstraint('"index" < archive', name=op.f("ck_removed_entries_archive")),
        sqlite_strict=True,
    )
    op.create_table(
        "entry_keys",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("block", COUNTER, autoincrement=False, nullable=False),
        sa.Column("bits", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("key", "block", name="pk_entry_keys"),
        sa.CheckConstraint("length(bits) >= 1", name=op.f("ck_entry_keys_bits")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _create_documents() -> None:
    op.create_table(
        "documents",
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("bytes", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_documents"),
        sa.CheckConstraint("length(digest) = 32", name=op.f("ck_documents_digest")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "entry_documents",
        sa.Column("index", COUNTER, autoincrement=False, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("index", "role", name="pk_entry_documents"),
        sa.ForeignKeyConstraint(["index"], ["entries.index"], name="fk_entry_documents_index"),
        sa.ForeignKeyConstraint(["digest"], ["documents.digest"], name="fk_entry_documents_digest"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_entry_documents_digest_index", "entry_documents", ["digest", "index"])


def _create_head() -> sa.Table:
    return op.create_table(
        "head",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("size", COUNTER, nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary, nullable=False),
        sa.Column("note", sa.LargeBinary),
        sa.Column("probes", COUNTER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_head"),
        sa.CheckConstraint("id = 1", name=op.f("ck_head_id")),
        sqlite_strict=True,
    )


def _create_caches() -> None:
    op.create_table(
        "disclosures",
        sa.Column("commitment", sa.Text, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("commitment", name="pk_disclosures"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "projections",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("since", COUNTER, autoincrement=False, nullable=False),
        sa.Column("until", COUNTER),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("kind", "id", "since", name="pk_projections"),
        sa.CheckConstraint("until > since", name=op.f("ck_projections_until")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    current = sa.text("until IS NULL")
    op.create_index(
        "ix_projections_current",
        "projections",
        ["kind", "id"],
        unique=True,
        sqlite_where=current,
        postgresql_where=current,
    )
    op.create_index("ix_projections_kind_since_until", "projections", ["kind", "since", "until"])


def _create_processes() -> None:
    """Create what is no part of the ledger: reading sessions, service processes, what each owns, and batches."""
    op.create_table(
        "sessions",
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("keyid", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Text, nullable=False),
        sa.Column("entry", COUNTER, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_sessions"),
        sa.CheckConstraint("length(digest) = 32", name=op.f("ck_sessions_digest")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "processes",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("epoch", COUNTER, nullable=False),
        sa.Column("seen", COUNTER, nullable=False),
        sa.Column("about", sa.Text),
        sa.PrimaryKeyConstraint("name", name="pk_processes"),
        sa.CheckConstraint("epoch >= 1", name=op.f("ck_processes_epoch")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("process", sa.Text, nullable=False),
        sa.Column("epoch", COUNTER, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )

    op.create_table(
        "pending_batches",
        sa.Column("size", COUNTER, autoincrement=False, nullable=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("bytes", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("size", "root", name="pk_pending_batches"),
        sa.CheckConstraint("length(root) = 32", name=op.f("ck_pending_batches_root")),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


ARCHIVE_TYPE = "log.archived"
RECORD_TYPES = (
    "request.admitted",
    "request.finished",
    "samples.requested",
    "samples.shown",
    "try.requested",
    "try.finished",
    "replay.requested",
    "replay.finished",
    "replay.failed",
    "order.refused",
    "auth.refused",
    "admission.refused",
    "request.refused",
)
"""Types of the entries that an archive may remove. The database refuses to remove any other, whatever the list has."""
RECORDS = ", ".join(f"'{name}'" for name in RECORD_TYPES)
IS_REMOVED = 'EXISTS (SELECT 1 FROM removed_entries WHERE "index" = OLD."index")'
KEEPS_THE_REST = 'NEW."index" = OLD."index" AND NEW.time = OLD.time AND NEW.nodes = OLD.nodes'
UNLESS_ARCHIVED = {
    "entries_refuse_update": f"NOT (length(NEW.bytes) = 0 AND {KEEPS_THE_REST} AND {IS_REMOVED})",
    "entry_documents_refuse_delete": f"NOT {IS_REMOVED}",
    "documents_refuse_delete": "EXISTS (SELECT 1 FROM entry_documents WHERE digest = OLD.digest)",
}
"""Conditions under which a trigger refuses a change. An archive may remove the bytes of the entries that it lists,
their documents, and documents that no entry binds any more."""


def _guard_sqlite() -> None:
    for table in (*APPEND_ONLY, "disclosures", "head"):
        refuse = f"BEGIN SELECT RAISE(ABORT, '{table}: append-only, %s refused'); END"
        if table in PRIMARY_KEYS:
            # INSERT OR REPLACE removes the old row without firing its DELETE trigger (recursive_triggers is off).
            same = " AND ".join(f'"{column}" = NEW."{column}"' for column in PRIMARY_KEYS[table])
            exists = f"EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608 (names of this file)
            op.execute(
                f"CREATE TRIGGER {table}_refuse_replace BEFORE INSERT ON {table} WHEN {exists} {refuse % 'REPLACE'}"
            )
        if table != "head":
            _refuse_sqlite(table, "UPDATE", refuse)
        if table != "disclosures":
            _refuse_sqlite(table, "DELETE", refuse)
    for column, types, problem in (
        ("archive", f"'{ARCHIVE_TYPE}'", "no such archive"),
        ("index", RECORDS, "no record"),
    ):
        found = f'SELECT json_extract(CAST(bytes AS TEXT), \'$.type\') FROM entries WHERE "index" = NEW."{column}"'  # noqa: S608 (text of this file)
        op.execute(
            f"CREATE TRIGGER removed_entries_refuse_{column} BEFORE INSERT ON removed_entries "
            f"WHEN coalesce(({found}), '') NOT IN ({types}) "
            f"BEGIN SELECT RAISE(ABORT, 'removed_entries: {problem}, INSERT refused'); END"
        )
    op.execute(
        "CREATE TRIGGER head_refuse_shrink BEFORE UPDATE ON head WHEN NEW.size < OLD.size OR NEW.id <> OLD.id "
        "BEGIN SELECT RAISE(ABORT, 'head: never shrinks, UPDATE refused'); END"
    )


def _refuse_sqlite(table: str, statement: str, refuse: str) -> None:
    name = f"{table}_refuse_{statement.lower()}"
    when = f"WHEN {UNLESS_ARCHIVED[name]} " if name in UNLESS_ARCHIVED else ""
    op.execute(f"CREATE TRIGGER {name} BEFORE {statement} ON {table} {when}{refuse % statement}")


def _guard_postgresql() -> None:
    op.execute(
        """
        CREATE FUNCTION appliance_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            -- Only appliance_archive sets this, for its own statements.
            IF TG_OP <> 'TRUNCATE' AND TG_TABLE_NAME <> 'removed_entries'
                AND current_setting('appliance.archive', true) = pg_current_xact_id()::text
            THEN
                RETURN NULL;
            END IF;
            RAISE EXCEPTION '%: append-only, % refused', TG_TABLE_NAME, TG_OP
                USING ERRCODE = 'integrity_constraint_violation';
        END $$
        """
    )
    refused = dict.fromkeys(APPEND_ONLY, "UPDATE OR DELETE OR TRUNCATE")
    for table, statements in {**refused, "disclosures": "UPDATE OR TRUNCATE", "head": "DELETE OR TRUNCATE"}.items():
        # For each statement, so that one that would touch no row is refused as well, and a cascading TRUNCATE too.
        op.execute(
            f"CREATE TRIGGER {table}_refuse BEFORE {statements} ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION appliance_refuse()"
        )
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_refuse")
    op.execute(
        "CREATE TRIGGER head_refuse_shrink BEFORE UPDATE ON head FOR EACH ROW "
        "WHEN (NEW.size < OLD.size OR NEW.id <> OLD.id) EXECUTE FUNCTION appliance_refuse()"
    )
    op.execute("ALTER TABLE head ENABLE ALWAYS TRIGGER head_refuse_shrink")


def _archive_postgresql() -> None:
    """Create the function by which the service's role, which has no right to do so itself, removes what an archive
    lists."""
    op.execute(
        f"""
        CREATE FUNCTION appliance_archive(at bigint) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
            SET search_path = pg_catalog, public, pg_temp AS $$
        DECLARE
            removed bytea;
            bound bytea[];
        BEGIN
            SELECT d.bytes INTO removed FROM public.entries e
                JOIN public.entry_documents r ON r."index" = e."index" AND r.role = 'removed'
                JOIN public.documents d ON d.digest = r.digest
                WHERE e."index" = at AND convert_from(e.bytes, 'UTF8')::json ->> 'type' = '{ARCHIVE_TYPE}';
            IF removed IS NULL THEN
                RAISE EXCEPTION 'removed_entries: no such archive, INSERT refused'
                    USING ERRCODE = 'integrity_constraint_violation';
            END IF;
            INSERT INTO public.removed_entries
                SELECT e."index", at FROM public.entries e
                WHERE e."index" < least(8 * length(removed), at)
                    AND get_bit(removed, e."index") = 1;
            IF EXISTS (SELECT FROM public.removed_entries r JOIN public.entries e ON e."index" = r."index"
                WHERE r.archive = at
                    AND coalesce(convert_from(e.bytes, 'UTF8')::json ->> 'type', '') NOT IN ({RECORDS}))
            THEN
                RAISE EXCEPTION 'removed_entries: no record, INSERT refused'
                    USING ERRCODE = 'integrity_constraint_violation';
            END IF;
            bound := ARRAY(SELECT DISTINCT b.digest FROM public.entry_documents b
                JOIN public.removed_entries r ON r."index" = b."index" WHERE r.archive = at);
            PERFORM set_config('appliance.archive', pg_current_xact_id()::text, true);
            UPDATE public.entries e SET bytes = '' FROM public.removed_entries r
                WHERE r."index" = e."index" AND r.archive = at;
            DELETE FROM public.entry_documents b USING public.removed_entries r
                WHERE r."index" = b."index" AND r.archive = at;
            DELETE FROM public.documents d WHERE d.digest = ANY (bound)
                AND NOT EXISTS (SELECT FROM public.entry_documents b WHERE b.digest = d.digest);
            PERFORM set_config('appliance.archive', '', true);
        END $$
        """  # noqa: S608 (text of this file)
    )
    op.execute("REVOKE ALL ON FUNCTION appliance_archive(bigint) FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION appliance_archive(bigint) TO {APPLICATION_ROLE}")


def _grant_postgresql() -> None:
    # A role belongs to the whole cluster: it may exist already, or be made by another database's migration just now.
    op.execute(
        f"""
        DO $$ BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{APPLICATION_ROLE}') THEN
                CREATE ROLE {APPLICATION_ROLE} NOLOGIN;
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
        END $$
        """
    )
    rights = {
        **dict.fromkeys(APPEND_ONLY, "SELECT, INSERT"),
        "removed_entries": "SELECT",
        "head": "SELECT, UPDATE",
        "disclosures": "SELECT, INSERT, DELETE",
        "projections": "SELECT, INSERT, UPDATE, DELETE",
        "sessions": "SELECT, INSERT, DELETE",
        "processes": "SELECT, INSERT, UPDATE",
        "leases": "SELECT, INSERT, UPDATE, DELETE",
        "pending_batches": "SELECT, INSERT, DELETE",
        "alembic_version": "SELECT",
    }
    for table, granted in rights.items():
        op.execute(f"REVOKE ALL ON {table} FROM PUBLIC")
        op.execute(f"GRANT {granted} ON {table} TO {APPLICATION_ROLE}")
    _archive_postgresql()
