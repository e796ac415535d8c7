"""The command behind `scripts/soak`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from appliance.domain.evaluation.quality import VLLM
from scripts.kit.postgres import find_binaries, run_server
from scripts.soaking.deployment import BUILTIN
from scripts.soaking.run import Plan, run


def main() -> None:
    parser = _parser()
    given = parser.parse_args()
    broken, gateways = 0, given.gateways or len(given.engine)
    engines = tuple(given.engine[number % len(given.engine)] for number in range(gateways))
    if gateways > 1 and given.database != ["postgresql"]:
        parser.error("--gateways: expected --database postgresql, which several processes need")
    if given.keep:
        given.keep.mkdir()
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
        for number, database in enumerate(given.database):
            requests, seed = given.requests // len(given.database), given.seed + number
            plan = Plan(
                requests,
                seed,
                given.minutes * 60,
                units=given.units,
                clients=given.clients,
                cards=given.changes,
                calm_s=given.calm,
                engines=engines,
            )
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
    parser.add_argument(
        "--units", type=int, default=8, metavar="N", help="(default: %(default)s; vLLM loads 8 at most)"
    )
    parser.add_argument("--clients", type=int, default=3, metavar="N", help="of each unit (default: %(default)s)")
    parser.add_argument("--changes", type=int, default=0, metavar="N", help="and faults (default: one for 60 requests)")
    parser.add_argument(
        "--engine",
        nargs="+",
        choices=[BUILTIN, VLLM],
        default=[BUILTIN],
        help="of each gateway in turn (default: %(default)s)",
    )
    parser.add_argument(
        "--gateways",
        type=int,
        metavar="N",
        help="processes that answer, beside one that takes the orders; 1: all in one (default: one for each engine)",
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
