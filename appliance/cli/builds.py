"""Commands of an upgrade: whether processes of two builds can serve one log, and the database's tables."""

from __future__ import annotations

from pathlib import Path

import click

from appliance.build import COMPATIBILITY, build_version
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, with_common_options
from appliance.cli.support.groups import database, update_compatibility
from appliance.cli.support.output import print_json, print_result

ROLLING, RECREATE = 0, 3
"""Exit codes: hosts can be upgraded one by one; all processes have to be stopped first."""
_MAX_BYTES = 4_096


@update_compatibility.command("metadata", example="appliance update-compatibility metadata > compatibility.json")
@with_common_options
def metadata(caller: Caller) -> None:
    """Print this build's version and compatibility number as JSON, for `check` of another build."""
    print_json({"version": build_version(), "compatibility": COMPATIBILITY})


def parse_build_metadata(data: bytes) -> tuple[str, int]:
    """Parse the output of `metadata`. Return the version and the compatibility number."""
    from appliance.formats.core.canonical import parse_json
    from appliance.formats.core.fields import parse_count, parse_object, parse_text

    value = parse_object(parse_json(data, "compatibility"), "compatibility", frozenset({"version", "compatibility"}))
    version = parse_text(value["version"], "compatibility, version")
    return version, parse_count(value["compatibility"], "compatibility, compatibility")


@update_compatibility.command("check", example="appliance update-compatibility check compatibility.json")
@click.argument("file", metavar="FILE", type=PATH)
@with_common_options
def check(caller: Caller, file: Path) -> None:
    """Compare this build with another one, whose metadata is in FILE. A bundle has its own in compatibility.json.

    The exit code is 0 if hosts can be upgraded one by one (`rolling`), and 3 if all processes of the log have to be
    stopped before the first one of the other build is started (`recreate`).
    """
    from appliance.client.support.files import read_file

    version, compatibility = parse_build_metadata(read_file(file, "compatibility", _MAX_BYTES))
    verdict = "rolling" if compatibility == COMPATIBILITY else "recreate"
    own = f"{build_version()}, compatibility number {COMPATIBILITY}"
    facts = {
        "verdict": verdict,
        "this_build": own,
        "other_build": f"{version}, compatibility number {compatibility}",
    }
    print_result(caller.json, facts)
    raise click.exceptions.Exit(ROLLING if verdict == "rolling" else RECREATE)


@database.command("check", example="appliance database check --json")
@with_common_options
def check_database(caller: Caller) -> None:
    """Verify the schema, and replay the whole log by the rules of this build. Changes nothing.

    The service can run meanwhile. The exit code is 0 if this build can serve the log. It is 5 if the tables are of
    another revision, and 6 if this build refuses an entry.
    """
    from appliance import wiring

    found = wiring.check_database(caller.settings)
    facts = [
        ("revision", found.revision),
        ("log", f"{found.entries:,} entries, verified by the rules of {build_version()}"),
        *(("run", f"{run} continues at the next start") for run in found.continuing),
        *(("run", f"{run} would end at the next start") for run in found.ending),
    ]
    print_result(caller.json, found, facts)


@database.command("migrate", example="appliance database migrate\nappliance database migrate --to initial")
@click.option("--to", "revision", metavar="REVISION", help="An earlier revision, which an earlier build needs.")
@with_common_options
def migrate_database(caller: Caller, revision: str | None) -> None:
    """Migrate the tables to the revision of this build, or back to an earlier one, in one transaction.

    Entries are never removed. Refused while a service uses the database. After a migration forward the whole log is
    replayed, as `check` does; if an entry is refused, the exit code is 6 and the tables stay migrated.
    """
    from appliance import wiring

    before, after = wiring.migrate_database(caller.settings, revision)
    shown = after if before == after else f"{after}; it was {before}"
    print_result(caller.json, {"before": before, "after": after}, [("revision", shown)])
