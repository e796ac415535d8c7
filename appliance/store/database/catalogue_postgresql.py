# ruff: noqa: S608 - what is put into the statements are names of this file
"""PostgreSQL's catalogue as rows (what, definition): everything that is not the server's own (an oid from 16384 on),
and what other roles may do with it.

Of owners, only the appliance's is distinguished: `owner` is the owner of the table `entries`, whatever its name. The
server's own objects, which only a superuser can change, are left out.
"""

from __future__ import annotations

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

# Those of NOT NULL (18 has them as constraints) are with the columns.
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

# The owner's rights are left out, and so is who may use the schema, which gives no right to the tables.
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

# One for several databases of a server, and made by whichever was there first. That it may log in is the site's word.
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

# Beside the session's own settings, which come from the appliance: what runs code in it, or switches triggers off.
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
        # Those of tables and of arrays come with what they are of.
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
