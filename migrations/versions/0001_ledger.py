"""The ledger's tables, what refuses to change them, and the application's role."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPLICATION_ROLE = "appliance_app"
COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

PRIMARY_KEYS = {
    "entries": ("index",),
    "entry_keys": ("key", "block"),
    "documents": ("digest",),
    "entry_documents": ("index", "role"),
    "disclosures": ("commitment",),
    "head": ("id",),
}
APPEND_ONLY = ("entries", "entry_keys", "documents", "entry_documents")


def upgrade() -> None:
    _create_entries()
    _create_documents()
    head = _create_head()
    _create_caches()
    op.bulk_insert(head, [{"id": 1, "size": 0, "leaf_hash": bytes(32), "note": None, "probes": 0}])
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgresql()
        _grant_postgresql()
    else:
        _guard_sqlite()


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken down: expected an upgrade, got a downgrade below 0001")


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


def _guard_sqlite() -> None:
    for table in (*APPEND_ONLY, "disclosures", "head"):
        refuse = f"BEGIN SELECT RAISE(ABORT, '{table}: append-only, %s refused'); END"
        if table in PRIMARY_KEYS:
            # INSERT OR REPLACE removes the old row without firing its DELETE trigger (recursive_triggers is off).
            same = " AND ".join(f'"{column}" = NEW."{column}"' for column in PRIMARY_KEYS[table])
            standing = f"EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608 (names of this file)
            op.execute(
                f"CREATE TRIGGER {table}_refuse_replace BEFORE INSERT ON {table} WHEN {standing} {refuse % 'REPLACE'}"
            )
        if table != "head":
            op.execute(f"CREATE TRIGGER {table}_refuse_update BEFORE UPDATE ON {table} {refuse % 'UPDATE'}")
        if table != "disclosures":
            op.execute(f"CREATE TRIGGER {table}_refuse_delete BEFORE DELETE ON {table} {refuse % 'DELETE'}")
    op.execute(
        "CREATE TRIGGER head_refuse_shrink BEFORE UPDATE ON head WHEN NEW.size < OLD.size OR NEW.id <> OLD.id "
        "BEGIN SELECT RAISE(ABORT, 'head: never shrinks, UPDATE refused'); END"
    )


def _guard_postgresql() -> None:
    op.execute(
        """
        CREATE FUNCTION appliance_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '%: append-only, % refused', TG_TABLE_NAME, TG_OP
                USING ERRCODE = 'integrity_constraint_violation';
        END $$
        """
    )
    refused = dict.fromkeys(APPEND_ONLY, "UPDATE OR DELETE OR TRUNCATE")
    for table, verbs in {**refused, "disclosures": "UPDATE OR TRUNCATE", "head": "DELETE OR TRUNCATE"}.items():
        # For each statement, so that one that would touch no row is refused as well, and a cascading TRUNCATE too.
        op.execute(
            f"CREATE TRIGGER {table}_refuse BEFORE {verbs} ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION appliance_refuse()"
        )
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_refuse")
    op.execute(
        "CREATE TRIGGER head_refuse_shrink BEFORE UPDATE ON head FOR EACH ROW "
        "WHEN (NEW.size < OLD.size OR NEW.id <> OLD.id) EXECUTE FUNCTION appliance_refuse()"
    )
    op.execute("ALTER TABLE head ENABLE ALWAYS TRIGGER head_refuse_shrink")


def _grant_postgresql() -> None:
    # A role belongs to the whole cluster: it may stand already, or be made by another database's migration just now.
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
        "head": "SELECT, UPDATE",
        "disclosures": "SELECT, INSERT, DELETE",
        "projections": "SELECT, INSERT, UPDATE, DELETE",
        "alembic_version": "SELECT",
    }
    for table, granted in rights.items():
        op.execute(f"REVOKE ALL ON {table} FROM PUBLIC")
        op.execute(f"GRANT {granted} ON {table} TO {APPLICATION_ROLE}")
