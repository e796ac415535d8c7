"""The command that compares installed libraries with a file of published advisories (OSV), without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.build import build_version
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, with_common_options
from appliance.cli.support.groups import advisories
from appliance.cli.support.output import print_facts, print_json, print_table, say
from appliance.errors import Unavailable

if TYPE_CHECKING:
    from appliance.cli.support.advisories import Match

CLEAR, AFFECTED, STALE = 0, 3, 7
"""Exit codes: no advisory affects this build; at least one may; none does, but the file is too old, or has fewer
advisories than an earlier one."""
DAYS = 14
"""Days after which a file of advisories is called stale, unless `--days` says otherwise."""
_FUTURE_DAYS = 2
_DAY_S = 86_400


@advisories.command("check", example="appliance advisories check /media/usb/PyPI.zip --days 30")
@click.argument("file", metavar="FILE", type=PATH)
@click.option(
    "--days",
    type=click.IntRange(1, 3_650),
    default=DAYS,
    show_default=True,
    metavar="N",
    help="Age after which FILE is stale.",
)
@with_common_options
def check(caller: Caller, file: Path, days: int) -> None:
    """Print each advisory in FILE that affects a library of this installation.

    FILE is an export of OSV records, such as PyPI/all.zip of osv.dev, which you carry to this machine. Its date is that
    of its newest record. The exit code is 0 if no advisory affects this installation, 3 if at least one may, and 7 if
    none does but advisories are missing: FILE is stale, or has fewer than a file that you checked before.
    """
    from appliance.cli.support.advisories import (
        compare,
        count_path,
        list_installed,
        read_largest_count,
        store_largest_count,
    )

    installed = list_installed()
    found = compare(file, installed)
    age_s = (datetime.now(UTC) - found.newest).total_seconds()
    stale = not -_FUTURE_DAYS * _DAY_S < age_s <= days * _DAY_S
    newest, age_days = found.newest.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), int(age_s // _DAY_S)
    most = read_largest_count()
    fewer = most is not None and found.advisories < most
    facts = {
        "build": build_version(),
        "libraries": len(installed),
        "advisories": found.advisories,
        "largest_before": most,
        "fewer": fewer,
        "newest": newest,
        "age_days": age_days,
        "stale": stale,
        "affected": len(found.matches),
    }
    if caller.json:
        print_json({**facts, "matches": [asdict(match) for match in found.matches]})
    else:
        print_facts((name.replace("_", " "), value) for name, value in facts.items() if value is not None)
        _print_matches(found.matches)
    if stale and age_days < 0:
        say(
            f"STALE: the newest advisory is dated {newest}, which is in the future of this machine's clock. "
            "Correct the clock or bring another export: the file's age is unknown."
        )
    elif stale:
        say(
            f"STALE: the newest advisory is dated {newest}, {age_days} days ago. At most {days} days "
            "are expected. Bring a newer export: this result misses later advisories."
        )
    if fewer:
        say(
            f"FEWER: an earlier file had {most:,} advisories, and this one has {found.advisories:,}. Bring a whole "
            f"export: this result misses advisories. If it is whole, remove {count_path()} and repeat the check."
        )
    else:
        try:
            store_largest_count(found.advisories)
        except Unavailable as error:
            say(f"note: the number of advisories is not stored for the next check: {error.message}")
    if found.matches:
        raise click.exceptions.Exit(AFFECTED)
    raise click.exceptions.Exit(STALE if stale or fewer else CLEAR)


def _print_matches(matches: Sequence[Match]) -> None:
    if not matches:
        return
    rows = [
        (
            match.package,
            match.version,
            ", ".join((match.advisory, *match.aliases)),
            ", ".join(match.fixed) or "-",
            match.summary if match.comparable else f"compare by hand: {match.summary}",
        )
        for match in matches
    ]
    print_table(("package", "installed", "advisory", "fixed in", "summary"), rows, wraps=True)
