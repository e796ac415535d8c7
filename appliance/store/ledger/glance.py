"""A look at a log without folding it, to see whether what is around it is in order. Nothing decides by it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, select, text

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import Time
from appliance.domain.core.records.site import Site, Witness
from appliance.store.database.engine import check_migrated, connect_reader, database_errors
from appliance.store.database.tables import projections
from appliance.store.ledger.rows import read_entry_bytes, read_head


@dataclass(frozen=True)
class Glance:
    """`role`: the login that the service has; `powers`: what it may do that an application needs not."""

    size: int
    last_time: Time | None
    site: Site | None
    witnesses: tuple[Witness, ...]
    role: str
    powers: tuple[str, ...]


def glance(engine: Engine) -> Glance:
    """Conflict or Tampered where tables, triggers or rights are not what the migrations make; Unavailable where nothing
    answers."""
    check_migrated(engine)
    with database_errors("database"), connect_reader(engine) as connection:
        size = read_head(connection).size
        data = read_entry_bytes(connection, size - 1) if size else None
        role, powers = _role(connection)
        sites = [Site.model_validate_json(value) for value in _values(connection, "site")]
        return Glance(
            size=size,
            last_time=None if data is None else parse_entry(data).time,
            site=sites[0] if sites else None,
            witnesses=tuple(Witness.model_validate_json(value) for value in _values(connection, "witness")),
            role=role,
            powers=powers,
        )


def _values(connection: Connection, kind: str) -> list[str]:
    """Of the current projections of this kind."""
    found = connection.execute(
        select(projections.c.value).where(projections.c.kind == kind, projections.c.until.is_(None))
    )
    return [json.dumps(json.loads(value)) for (value,) in found]


_POWERS = """
SELECT rolname, rolsuper, rolcreaterole, rolbypassrls,
    (SELECT relowner = pg_roles.oid FROM pg_class WHERE pg_class.oid = to_regclass('public.entries'))
FROM pg_roles WHERE rolname = current_user
"""


def _role(connection: Connection) -> tuple[str, tuple[str, ...]]:
    if connection.dialect.name == "sqlite":
        return "the file's owner", ()
    name, *has = connection.execute(text(_POWERS)).one()
    names = ("superuser", "createrole", "bypassrls", "owner of the tables")
    return str(name), tuple(power for power, given in zip(names, has, strict=True) if given)
