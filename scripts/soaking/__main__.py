"""The command behind `scripts/soak`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from scripts.kit.postgres import find_binaries, run_server
from scripts.soaking.run import Plan, run


def main() -> None:
    given = _parser().parse_args()
    broken = 0
    if given.keep:
        given.keep.mkdir()
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
        for number, database in enumerate(given.database):
            requests, seed = given.requests // len(given.database), given.seed + number
            plan = Plan(requests, seed, given.minutes * 60, calm_s=given.calm)
            place = (given.keep or Path(name)) / database
            place.mkdir()
            if database == "postgresql":
                with run_server(find_binaries()) as server:
                    result = run(place, plan, server)
            else:
                result = run(place, plan, None)
            print("\n".join(result.lines()), flush=True)
            broken += len(result.violations)
    sys.exit(1 if broken else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description="Eight units ask all at once while everything around their adapters fails."
    )
    parser.add_argument("--requests", type=int, default=100_000, metavar="N", help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of what is asked and what is changed")
    parser.add_argument("--minutes", type=float, default=60, help="of asking, for each database, at most")
    parser.add_argument(
        "--calm",
        type=float,
        default=30,
        metavar="S",
        help="seconds of asking without, and beside, a unit that asks for the worst of everything; 0: there is none",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave homes, logs and exports in this new folder")
    parser.add_argument(
        "--database",
        nargs="+",
        choices=["sqlite", "postgresql"],
        default=["sqlite", "postgresql"],
        help="SQLite has its disk filled up, PostgreSQL is stopped; half of the requests each",
    )
    return parser


if __name__ == "__main__":
    main()
