"""What a database has besides the rows, compared with what the migrations make. An attacker could plant a trigger or a
table that copies texts before they are erased, or a view or a rule that answers in place of a table.

`migrations/catalogue-*.json` has the catalogue as the migrations leave it; `scripts/catalogue` writes it from them, and
a test compares the two. Definitions are the database's own words, with each run of white space as one space.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from sqlalchemy import Connection, text

from appliance.errors import Tampered
from appliance.store.database.catalogue_postgresql import QUERIES

Catalogue = dict[str, str]
"""What (its kind and its name) to its definition."""

FOLDER = Path(__file__).resolve().parents[3] / "migrations"
_MOST_SHOWN = 400
"""Characters of a definition, which anybody may have written."""


def read_catalogue(connection: Connection) -> Catalogue:
    found: dict[str, list[str]] = {}
    for what, definition in _read(connection):
        found.setdefault(_in_line(what), []).append(_in_line(definition))
    # Two of one name, as writable_schema allows, differ from one.
    return {what: "; ".join(sorted(definitions)) for what, definitions in sorted(found.items())}


def _read(connection: Connection) -> Iterator[tuple[str, str]]:
    if connection.dialect.name == "sqlite":
        for kind, name, table, sql in connection.execute(text("SELECT type, name, tbl_name, sql FROM sqlite_master")):
            yield f"{kind} {name}" if name == table else f"{kind} {name} on {table}", sql or ""
        return
    for query in QUERIES:
        for what, definition in connection.execute(text(query)):
            yield what, definition or ""


def _in_line(said: object) -> str:
    return " ".join(str(said).split())


@cache
def expected_catalogue(dialect: str) -> Catalogue:
    """As the migrations make it."""
    found: Catalogue = json.loads((FOLDER / f"catalogue-{dialect}.json").read_text(encoding="utf-8"))
    return found


def check_catalogue(connection: Connection) -> list[str]:
    """Findings, one for each thing that is missing, changed, or not the appliance's."""
    expected, got = expected_catalogue(connection.dialect.name), read_catalogue(connection)
    return [
        _finding(what, expected.get(what), got.get(what))
        for what in sorted(expected.keys() | got.keys())
        if expected.get(what) != got.get(what)
    ]


def _finding(what: str, expected: str | None, got: str | None) -> str:
    if expected is None:
        return f"{what}: expected none, got {_shown(got)}; drop it, once it is known who made it and what it has copied"
    return f"{what}: expected {_shown(expected)}, got {_shown(got)}; restore it as migrations/ makes it"


def _shown(definition: str | None) -> str:
    if not definition:
        return "none" if definition is None else "one"
    return definition if len(definition) <= _MOST_SHOWN else f"{definition[:_MOST_SHOWN]}…"


def require_catalogue(connection: Connection) -> None:
    """Tampered, with each finding, unless the database is as the migrations make it."""
    if findings := check_catalogue(connection):
        raise Tampered(
            f"database, schema: expected what the migrations make, got {len(findings)} differences: "
            f"{' | '.join(findings)}. docs/operations.md (When it does not start) says what to do",
            code="schema",
        )
