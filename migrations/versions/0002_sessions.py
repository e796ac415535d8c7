"""People's reading sessions, which are no part of the ledger: added, looked up and removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "appliance_app"
COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
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
    if op.get_bind().dialect.name == "postgresql":
        op.execute("REVOKE ALL ON sessions FROM PUBLIC")
        op.execute(f"GRANT SELECT, INSERT, DELETE ON sessions TO {APPLICATION_ROLE}")


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken down: expected an upgrade, got a downgrade below 0002")
