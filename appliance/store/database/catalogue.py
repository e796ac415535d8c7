"""Comparison of the database schema with the one that the migrations create.

An attacker could plant a trigger or table that copies texts before they are erased, or a view or rule that replaces a
table. `migrations/catalogue-*.json` holds the schema as the migrations create it; `scripts/catalogue` generates these
files, and a test compares them. Definitions are the database's own text, with every run of white space as one space.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache

from sqlalchemy import Connection, text

from appliance.build import find_folder
from appliance.errors import Tampered

# ruff: noqa: S608 - only names of this file are inserted into the statements


_OURS = "(SELECT relowner FROM pg_class WHERE oid = to_regclass('public.entries'))"
_OWNER = f"CASE WHEN {{0}} = {_OURS} THEN 'owner' ELSE {{0}}::regrole::text END"
_NOT_TEMPORARY = "n.nspname !~ '^pg_(toast|temp_|toast_temp_)'"
_NAME = "format('%I.%I', n.nspname, c.relname)"

_SCHEMAS = """
SELECT format('schema %I', nspname), '' FROM pg_namespace
WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND nspname !~ '^pg_(temp_|toast_temp_)'
"""

_RELATIONS = f"""
SELECT format('%s %s', CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
        WHEN 'i' THEN 'index' WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table' WHEN 'c' THEN 'composite type'
        WHEN 'p' THEN 'partitioned table' ELSE 'relation of kind ' || c.relkind::text END, {_NAME}),
    concat_ws(', ', {_OWNER.format("c.relowner")}, 'persistence ' || c.relpersistence::text,
        'replica identity ' || c.relreplident::text, CASE WHEN c.relrowsecurity THEN 'row security' END,
        CASE WHEN c.relforcerowsecurity THEN 'row security forced' END, CASE WHEN c.relispartition THEN 'partition' END,
        c.reloptions::text, (SELECT 'inherits ' || string_agg(inhparent::regclass::text, ' ') FROM pg_inherits
        WHERE inhrelid = c.oid), CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END,
        (SELECT pg_get_indexdef(c.oid) || CASE WHEN indisvalid THEN '' ELSE ', invalid' END
        FROM pg_index WHERE indexrelid = c.oid))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid >= 16384 AND {_NOT_TEMPORARY}
"""

_COLUMNS = f"""
SELECT format('column %s.%I', {_NAME}, a.attname),
    concat_ws(', ', a.attnum::text, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END,
        'default ' || pg_get_expr(d.adbin, d.adrelid), 'identity ' || nullif(a.attidentity::text, ''),
        'generated ' || nullif(a.attgenerated::text, ''), nullif(a.attcollation, t.typcollation)::regcollation::text)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE c.oid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f') AND {_NOT_TEMPORARY}
"""

# NOT NULL constraints, which PostgreSQL 18 lists here, are part of the columns above.
_CONSTRAINTS = f"""
SELECT format('constraint %I on %s', k.conname, {_NAME}),
    pg_get_constraintdef(k.oid) || CASE WHEN k.convalidated THEN '' ELSE ', not validated' END
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.oid >= 16384 AND k.contype <> 'n' AND {_NOT_TEMPORARY}
"""

_TRIGGERS = f"""
SELECT CASE WHEN t.tgisinternal
        THEN format('trigger of %I on %s, %s', k.conname, {_NAME}, t.tgfoid::regproc)
        ELSE format('trigger %I on %s', t.tgname, {_NAME}) END,
    CASE WHEN t.tgisinternal THEN '' ELSE pg_get_triggerdef(t.oid) || ', ' END || CASE t.tgenabled
        WHEN 'A' THEN 'enabled always' WHEN 'O' THEN 'enabled' WHEN 'D' THEN 'disabled' ELSE 'enabled as replica' END
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_constraint k ON k.oid = t.tgconstraint
"""

_RULES = f"""
SELECT format('rule %I on %s', r.rulename, {_NAME}), format('%s, enabled %s', pg_get_ruledef(r.oid), r.ev_enabled)
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.oid >= 16384 AND r.rulename <> '_RETURN'
"""

_FUNCTIONS = f"""
SELECT format('function %s(%s)', format('%I.%I', n.nspname, p.proname), pg_get_function_identity_arguments(p.oid)),
    concat_ws(', ', {_OWNER.format("p.proowner")},
        CASE WHEN p.prokind IN ('f', 'p') THEN pg_get_functiondef(p.oid) ELSE 'kind ' || p.prokind::text END)
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE p.oid >= 16384 AND n.nspname !~ '^pg_temp_'
"""

_POLICIES = f"""
SELECT format('row security policy %I on %s', o.polname, {_NAME}), concat_ws(', ', o.polcmd::text,
    pg_get_expr(o.polqual, o.polrelid), pg_get_expr(o.polwithcheck, o.polrelid))
FROM pg_policy o JOIN pg_class c ON c.oid = o.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
"""

# The owner's rights and USAGE on the schema are omitted; USAGE gives no right to the tables.
_GRANTS = f"""
SELECT format('grant on %s to %s', what, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END),
    string_agg(DISTINCT privilege_type || CASE WHEN is_grantable THEN ' with grant option' ELSE '' END, ', ')
FROM (
    SELECT {_NAME} AS what, c.relowner AS owner, acl.*
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) acl WHERE c.oid >= 16384
    UNION ALL
    SELECT format('column %s.%I', {_NAME}, a.attname), c.relowner, acl.* FROM pg_attribute a
    JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(a.attacl) acl
    WHERE c.oid >= 16384
    UNION ALL
    SELECT format('schema %I', n.nspname), n.nspowner, acl.* FROM pg_namespace n, aclexplode(n.nspacl) acl
    WHERE n.nspname = 'public' AND acl.privilege_type <> 'USAGE'
) granted
WHERE grantee <> owner AND grantee IS DISTINCT FROM {_OURS}
GROUP BY what, grantee
"""

# Databases of one server share this role, which the first of them creates. Whether it may log in is up to the site.
_ROLE = """
SELECT 'role appliance_app', concat_ws(', ', CASE WHEN rolsuper THEN 'superuser' END,
    CASE WHEN rolcreaterole THEN 'may create roles' END, CASE WHEN rolcreatedb THEN 'may create databases' END,
    CASE WHEN rolreplication THEN 'may replicate' END, CASE WHEN rolbypassrls THEN 'bypasses row security' END,
    CASE WHEN has_database_privilege(r.oid, current_database(), 'CREATE') AND r.oid <> d.datdba
        THEN 'may create schemas' END,
    (SELECT 'member of ' || string_agg(m.roleid::regrole::text, ' ' ORDER BY m.roleid::regrole::text)
        FROM pg_auth_members m WHERE m.member = r.oid))
FROM pg_roles r, pg_database d WHERE r.rolname = 'appliance_app' AND d.datname = current_database()
"""

# Settings that run code in a session or disable triggers. The service itself sets all other settings per session.
_SETTINGS = """
SELECT format('setting %s of %s', split_part(given, '=', 1), CASE WHEN s.setrole = 0 THEN 'the database'
    ELSE 'role ' || s.setrole::regrole::text END), given
FROM pg_db_role_setting s, unnest(s.setconfig) given
WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
AND s.setrole IN (0, to_regrole('appliance_app'), to_regrole(quote_ident(current_user)))
AND split_part(given, '=', 1) IN ('session_replication_role', 'session_preload_libraries', 'local_preload_libraries')
"""

_COPIES = """
SELECT format('event trigger %I', evtname), format('on %s, %s, enabled %s', evtevent, evtfoid::regproc, evtenabled)
FROM pg_event_trigger
UNION ALL
SELECT format('publication %I', pubname), CASE WHEN puballtables THEN 'all tables' ELSE 'some tables' END
FROM pg_publication
UNION ALL
SELECT format('subscription %I', subname), '' FROM pg_subscription
WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
UNION ALL
SELECT format('replication slot %I', slot_name), plugin::text FROM pg_replication_slots
WHERE database = current_database()
UNION ALL
SELECT format('large object %s', oid), '' FROM pg_largeobject_metadata
"""

_OTHERS = " UNION ALL ".join(
    f"SELECT i.type || ' ' || i.identity, '' "
    f"FROM {catalogue} o, pg_identify_object('{catalogue}'::regclass, o.oid, 0) i "
    f"WHERE o.oid >= 16384{condition}"
    for catalogue, condition in {
        # Types of tables and arrays are part of their tables and element types.
        "pg_type": " AND o.typtype <> 'c' AND o.typcategory <> 'A'",
        **dict.fromkeys(
            (
                "pg_am", "pg_cast", "pg_collation", "pg_conversion", "pg_default_acl", "pg_extension",
                "pg_foreign_data_wrapper", "pg_foreign_server", "pg_language", "pg_opclass", "pg_operator",
                "pg_opfamily", "pg_statistic_ext", "pg_transform", "pg_ts_config", "pg_ts_dict", "pg_ts_parser",
                "pg_ts_template",
            ),
            "",
        ),
    }.items()
)  # fmt: skip

QUERIES = (
    _SCHEMAS, _RELATIONS, _COLUMNS, _CONSTRAINTS, _TRIGGERS, _RULES, _FUNCTIONS, _POLICIES, _GRANTS, _ROLE, _SETTINGS,
    _COPIES, _OTHERS,
)  # fmt: skip


Catalogue = dict[str, str]
"""Definitions by object (its kind and name)."""

FOLDER = find_folder("migrations")
_MAX_SHOWN = 400
"""Maximum characters of a definition in a message, since anybody may have written it."""


def read_catalogue(connection: Connection) -> Catalogue:
    """Return the current catalogue of the database."""
    found: dict[str, list[str]] = {}
    for what, definition in _read(connection):
        found.setdefault(_collapse_space(what), []).append(_collapse_space(definition))
    # Join definitions of one name, which SQLite's writable_schema allows, so that duplicates are detected.
    return {what: "; ".join(sorted(definitions)) for what, definitions in sorted(found.items())}


def _read(connection: Connection) -> Iterator[tuple[str, str]]:
    if connection.dialect.name == "sqlite":
        for kind, name, table, sql in connection.execute(text("SELECT type, name, tbl_name, sql FROM sqlite_master")):
            yield f"{kind} {name}" if name == table else f"{kind} {name} on {table}", sql or ""
        return
    for query in QUERIES:
        for what, definition in connection.execute(text(query)):
            yield what, definition or ""


def _collapse_space(value: object) -> str:
    return " ".join(str(value).split())


@cache
def expected_catalogue(dialect: str) -> Catalogue:
    """Return the catalogue that the migrations create."""
    found: Catalogue = json.loads((FOLDER / f"catalogue-{dialect}.json").read_text(encoding="utf-8"))
    return found


def check_catalogue(connection: Connection) -> list[str]:
    """Return one finding for each object that is missing, changed or unexpected."""
    expected, got = expected_catalogue(connection.dialect.name), read_catalogue(connection)
    return [
        _finding(what, expected.get(what), got.get(what))
        for what in sorted(expected.keys() | got.keys())
        if expected.get(what) != got.get(what)
    ]


def _finding(what: str, expected: str | None, got: str | None) -> str:
    if expected is None:
        return (
            f"{what}: expected none, got {_shorten(got)}; drop it, once it is known who made it and what it has copied"
        )
    if expected and got and expected.startswith("CREATE TABLE") and got.startswith("CREATE TABLE"):
        before, now = _list_parts(expected), _list_parts(got)
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        return f"{what}: expected its columns as migrations/ makes them, got others: {_shorten(', '.join(changed))}"
    return f"{what}: expected {_shorten(expected)}, got {_shorten(got)}; restore it as migrations/ makes it"


def _list_parts(definition: str) -> dict[str, str]:
    """Return the columns and constraints of a table by their first word, and its other words."""
    head, _, rest = definition.partition("(")
    inside, _, tail = rest.rpartition(")")
    parts, depth = [""], 0
    for character in inside:
        depth += (character == "(") - (character == ")")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    found = {"the table's own words": f"{head}{tail}"}
    for part in map(str.strip, parts):
        name = part.partition(" ")[0].strip('"')
        found[name] = f"{found.get(name, '')} {part}"
    return found


def _shorten(definition: str | None) -> str:
    if not definition:
        return "none" if definition is None else "one"
    return definition if len(definition) <= _MAX_SHOWN else f"{definition[:_MAX_SHOWN]}…"


def require_catalogue(connection: Connection) -> None:
    """Check that the database schema is exactly what the migrations create.

    Raises:
        Tampered: it differs; the message lists every finding.
    """
    if findings := check_catalogue(connection):
        raise Tampered(
            f"database, schema: expected what the migrations make, got {len(findings)} differences: "
            f"{' | '.join(findings)}. docs/operations/service.md (When it does not start) says what to do",
            code="schema",
        )
