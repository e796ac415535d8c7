"""Runs the migrations on the connection that `store/database/engine.py` passes in, or by hand on the settings' own."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from appliance.store.database.tables import metadata


def run(connection: Connection) -> None:
    # One transaction for all of it: SQLite and PostgreSQL both roll a CREATE TABLE back.
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


connection = context.config.attributes.get("connection")
if connection is not None:
    run(connection)
else:
    from appliance.config.settings import load_settings
    from appliance.store.database.engine import begin_migration, open_engine

    with begin_migration(open_engine(load_settings().migration_url.get_secret_value())) as connection:
        run(connection)
