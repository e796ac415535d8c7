"""The command behind `scripts/simulate`."""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from scripts.simulating.model import Costs, Outcome, Site, simulate

HOSTS = (1, 3, 10, 30, 100, 300, 1_000)
HEAD = (
    "hosts",
    "appends",
    "entries/s",
    "ledger",
    "a host's core",
    "notices",
    "last token p50",
    "last token p99",
    "unloaded p99",
    "bottleneck",
)


def main() -> None:
    given = _parser().parse_args()
    sites = [
        Site(hosts, given.requests, given.workers, appender)
        for appender in ([True] if given.appender else [False, True])
        for hosts in (given.hosts or HOSTS)
    ]
    try:
        costs = Costs(core_wait_s=given.core_wait / 1000)
        outcomes = [simulate(site, costs, given.seed, given.revocations) for site in sites]
    except ValueError as error:
        print(f"simulate: {error}", file=sys.stderr)
        sys.exit(2)
    if given.json:
        print(json.dumps([_value(one) for one in outcomes], indent=1))
        return
    rows = [HEAD, *(_row(one) for one in outcomes)]
    if given.markdown:
        rows.insert(1, ("---",) * len(HEAD))
        print("\n".join(f"| {' | '.join(row)} |" for row in rows))
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    print("\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows))


def _value(one: Outcome) -> dict[str, object]:
    found = {"last_token_s": one.last_token, "unloaded_s": one.unloaded}
    shown = {name: {f"p{q}": float(np.percentile(s, q)) for q in (50, 99)} for name, s in found.items() if s.size}
    return {
        **vars(one.site),
        "entries": one.site.entries,
        "ledger": one.busy,
        "folding": one.folding,
        "notices": one.waking,
        "bottleneck": one.bottleneck,
        **shown,
    }


def _row(one: Outcome) -> tuple[str, ...]:
    def at(times: np.ndarray, percent: int) -> str:
        return f"{1000 * np.percentile(times, percent):,.0f} ms" if times.size else "cannot"

    return (
        f"{one.site.hosts:,}",
        "one appender" if one.site.appender else "each host",
        f"{one.site.entries:,.0f}",
        f"{one.busy:.0%}",
        f"{one.folding:.0%}",
        f"{one.waking:.0%}",
        at(one.last_token, 50),
        at(one.last_token, 99),
        at(one.unloaded, 99),
        one.bottleneck,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate", description="How long a revocation takes over many hosts."
    )
    parser.add_argument(
        "--hosts", type=int, action="append", metavar="N", help="may be given several times; 1 to 1,000"
    )
    parser.add_argument("--requests", type=float, default=1.0, metavar="N", help="a second at each host (1)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="engines at each host (1)")
    parser.add_argument(
        "--core-wait",
        type=float,
        default=0.0,
        metavar="MS",
        help="how long a process waits for a core before each act, on average: other programs keep the hosts busy (0)",
    )
    parser.add_argument("--appender", action="store_true", help="one process appends for all hosts; unless given, both")
    parser.add_argument("--revocations", type=int, default=1_000, metavar="N", help="how many are simulated (1000)")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    return parser


if __name__ == "__main__":
    main()
