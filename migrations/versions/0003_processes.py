"""The service processes of one log and what each of them owns, which are no part of the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

APPLICATION_ROLE = "appliance_app"
COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
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
    if op.get_bind().dialect.name == "postgresql":
        rights = {"processes": "SELECT, INSERT, UPDATE", "leases": "SELECT, INSERT, UPDATE, DELETE"}
        for table, granted in rights.items():
            op.execute(f"REVOKE ALL ON {table} FROM PUBLIC")
            op.execute(f"GRANT {granted} ON {table} TO {APPLICATION_ROLE}")


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken down: expected an upgrade, got a downgrade below 0003")
