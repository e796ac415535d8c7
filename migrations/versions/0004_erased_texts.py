"""SQLite: the texts are stored anew, once, as pages can hold copies of those that were erased before this build."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        return
    # As `store.ledger.rows` does at each erasure: SQLite overwrites each page that it frees.
    connection.exec_driver_sql("CREATE TABLE disclosures_kept AS SELECT * FROM disclosures ORDER BY commitment")
    connection.exec_driver_sql("DELETE FROM disclosures")
    kept = connection.exec_driver_sql("SELECT * FROM disclosures_kept ORDER BY rowid")
    while some := kept.fetchmany(1000):
        connection.exec_driver_sql("INSERT INTO disclosures VALUES (?, ?, ?)", [tuple(row) for row in some])
    kept.close()
    connection.exec_driver_sql("DELETE FROM disclosures_kept")
    connection.exec_driver_sql("DROP TABLE disclosures_kept")


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken down: expected an upgrade, got a downgrade below 0004")
