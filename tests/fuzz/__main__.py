"""The command line of `scripts/fuzz`."""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from tests.fuzz.judging import judge
from tests.fuzz.listeners import try_listeners
from tests.fuzz.parsers import Finding, list_new, try_parsers
from tests.fuzz.targets import TARGETS

FOLDER = Path(__file__).resolve().parents[2] / ".fuzz"
SHARE = 0.6
"""Share of the time that parsers have beside the listeners."""


def main() -> None:
    """Run what the options ask for, print what was found, and exit."""
    given = _parser().parse_args()
    names = [name for name in TARGETS if name.startswith(given.only)]
    if not names:
        sys.exit(f"fuzz, --only: expected the beginning of a parser's name, got {given.only!r}")
    if given.input is not None:
        sys.exit(_repeat(names, given.input.read_bytes()))
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    print(f"fuzz: seed {seed}, corpus and inputs of findings in {given.folder}", flush=True)
    seconds, both = given.minutes * 60, not (given.parsers or given.listeners or given.only)
    findings: list[Finding] = []
    if not given.listeners:
        tried = try_parsers(given.folder, seconds * SHARE if both else seconds, seed, names)
        findings += tried.findings
        calls, ways = sum(tried.calls.values()), sum(tried.ways.values())
        print(f"fuzz: {len(names)} parsers, {calls} inputs, {ways} paths through the code", flush=True)
    if both or given.listeners:
        asked = try_listeners(given.folder, seconds * (1 - SHARE) if both else seconds, seed)
        findings += asked.findings
        print(f"fuzz: {len(asked.requests)} listeners, requests: {json.dumps(asked.requests)}", flush=True)
    new = list(list_new(findings))
    for one in new:
        print(f"finding: {one.where}: {one.problem}\n         input: {one.input}")
    print(f"fuzz: {len(new)} findings")
    sys.exit(1 if new else 0)


def _repeat(names: list[str], data: bytes) -> int:
    """Try parsers with one input, and print what each did; return the exit code."""
    outcomes = {name: judge(TARGETS[name], data) for name in names}
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome.problem or outcome.way}")
    return int(any(outcome.problem for outcome in outcomes.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Try parsers and listeners with wild inputs.")
    parser.add_argument("--minutes", type=float, default=5, help="how long, by default 5")
    parser.add_argument("--seed", type=int, help="the seed of an earlier run, which tries nearly the same")
    parser.add_argument("--parsers", action="store_true", help="parsers alone")
    parser.add_argument("--listeners", action="store_true", help="listeners alone")
    parser.add_argument("--only", metavar="NAME", default="", help="parsers whose names begin so")
    parser.add_argument("--input", metavar="FILE", type=Path, help="try one input and say what each parser does")
    parser.add_argument("--folder", metavar="FOLDER", type=Path, default=FOLDER, help="keep the corpus here")
    return parser


if __name__ == "__main__":
    main()
