"""An attacker who owns the database and bypasses its protections: triggers off, references unchecked, any statement."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import psycopg

from scripts.kit.postgres import SUPERUSER, Server


class Cursor(Protocol):
    """What sqlite3's and psycopg's connections have in common here."""

    def execute(self, statement: str, parameters: Any = ...) -> Any: ...


@contextmanager
def attack(database_url: str, postgres: Server | None) -> Iterator[Cursor]:
    """Open a connection that may do anything, without triggers and references. `?` marks a parameter."""
    if postgres is None:
        connection = sqlite3.connect(database_url.removeprefix("sqlite:///"))
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        yield connection
        connection.commit()
        connection.close()
        return
    name = database_url.rpartition("/")[2]
    with psycopg.connect(postgres.url(name, SUPERUSER)) as superuser:
        tables = superuser.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            superuser.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL".encode())
        yield _Marked(superuser)


class _Marked:
    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, parameters: Any = ()) -> Any:
        return self._connection.execute(statement.replace("?", "%s").encode(), parameters)
