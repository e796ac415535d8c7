"""The command behind `scripts/bench`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from scripts.benches import (
    audit,
    backups,
    cluster,
    console,
    console_people,
    hosts,
    installing,
    ledger,
    methods,
    models,
    preferring,
    private,
    revocation,
    serving,
    signatures,
    signer,
    training,
    verdicts,
)
from scripts.benches import plan as plans
from scripts.benches.measure import Row, describe_machine, markdown_table, plain_table, write_json

Measure = Callable[[Path, argparse.Namespace], Iterator[Row]]


def _measure_training(folder: Path, given: argparse.Namespace) -> Iterator[Row]:
    make = training.quick if given.quick else training.full
    planned = make(models.MODELS[given.model], given.data, given.device)
    return training.measure(folder, replace(planned, rounds=given.rounds or planned.rounds))


def _measure_preferences(folder: Path, given: argparse.Namespace) -> Iterator[Row]:
    make = training.quick if given.quick else training.full
    planned = make(models.MODELS[given.model], given.data, given.device)
    return preferring.measure(folder, replace(planned, rounds=given.rounds or planned.rounds), quick=given.quick)


def _measure_serving(folder: Path, given: argparse.Namespace) -> Iterator[Row]:
    make = serving.quick if given.quick else serving.full
    alone = {"service": serving.measure_service, "streams": serving.measure_streams}
    measure = next((found for name, found in alone.items() if getattr(given, name)), serving.measure)
    return measure(folder, make(models.MODELS[given.model], given.device, given.llama_server))


def _measure_console(folder: Path, given: argparse.Namespace) -> Iterator[Row]:
    if given.people is not None:
        tokens, rounds = (24, 1) if given.quick else (192, 5)
        people = console_people.Plan(models.MODELS[given.model], given.people, given.rounds or rounds, tokens)
        return console_people.measure(folder, people)
    pages = console.QUICK if given.quick else console.FULL
    pages = replace(pages, entries=given.entries or pages.entries, runs=given.runs or pages.runs)
    return console.measure(folder, replace(pages, rounds=given.rounds or pages.rounds))


def _measure_backups(folder: Path, given: argparse.Namespace) -> Iterator[Row]:
    entries, rounds, tokens = (50_000, 1, 48) if given.quick else (1_000_000, 3, 192)
    chosen = backups.Plan(models.MODELS[given.model], given.entries or entries, given.rounds or rounds, tokens)
    return backups.measure(folder, chosen)


def _measure_cluster(folder: Path, given: argparse.Namespace) -> Iterator[Row]:
    model = None if given.quick else models.MODELS[given.model]
    return cluster.measure(folder, given.rounds or (1 if given.quick else 5), model)


def _measure_ledger(folder: Path, given: argparse.Namespace) -> Iterator[Row]:
    plan = ledger.QUICK if given.quick else ledger.FULL
    if given.largest is not None and not given.quick:
        plan = replace(plan, largest=given.largest)
    return ledger.measure_growth(folder, plan) if given.growth else ledger.measure(folder, plan)


BENCHES: dict[str, Measure] = {
    "backups": _measure_backups,
    "console": _measure_console,
    "dpo": _measure_preferences,
    "hosts": lambda _, given: hosts.measure(hosts.QUICK if given.quick else hosts.FULL),
    "ledger": _measure_ledger,
    "revocation": lambda folder, given: revocation.measure(
        folder, revocation.QUICK if given.quick else revocation.FULL
    ),
    "serve": _measure_serving,
    "signatures": lambda _, given: signatures.measure(
        signatures.QUICK if given.quick else signatures.FULL, given.rounds or 3
    ),
    "signer": lambda folder, given: signer.measure(folder, 200 if given.quick else 2_000),
    "slurm": _measure_cluster,
    "train": _measure_training,
    "verdicts": lambda _, given: verdicts.measure(verdicts.QUICK if given.quick else verdicts.FULL, given.rounds or 3),
}
"""Benches that have these options. `PROGRAMS` have options of their own."""
PROGRAMS: dict[str, Callable[[list[str]], object]] = {
    "audit": audit.main,
    "install": installing.main,
    "methods": methods.main,
    "plan": plans.main,
    "private": private.main,
}


def main() -> None:
    if (program := PROGRAMS.get("".join(sys.argv[1:2]))) is not None:
        program(sys.argv[2:])
        return
    given = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="appliance-bench-", dir=given.folder) as name:
        folder = Path(name)
        machine = describe_machine(folder)
        rows = []
        for one in BENCHES[given.name](folder, given):
            rows.append(one)
            if given.json:
                # A bench that ends before its last row has written the others.
                write_json(given.json, rows)
            print(f"bench: {plain_table([one]).splitlines()[1]}", file=sys.stderr, flush=True)
    table = markdown_table if given.markdown else plain_table
    bullet = "- " if given.markdown else ""
    print("\n".join([*(f"{bullet}{line}" for line in machine), "", table(rows)]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure; medians of rounds that take turns.")
    parser.add_argument(
        "name",
        choices=sorted({*BENCHES, *PROGRAMS}),
        help=f"what to measure; {', '.join(PROGRAMS)} have options of their own",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, in two minutes")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows as JSON")
    parser.add_argument(
        "--folder", metavar="DIR", type=Path, help="whose disk is measured (default: where temp files lie)"
    )
    parser.add_argument("--largest", metavar="N", type=int, help="largest log of the growth (1,000,000; 0 for none)")
    parser.add_argument("--entries", metavar="N", type=int, help="backups, console: entries of the log (1,000,000)")
    parser.add_argument("--runs", metavar="N", type=int, help="console: runs and adapters (10,000)")
    parser.add_argument("--people", metavar="N", type=int, help="console: so many at it while 16 streams are answered")
    parser.add_argument("--growth", action="store_true", help="ledger: the growth alone")
    parser.add_argument("--service", action="store_true", help="serve: what the service around the engine costs, alone")
    parser.add_argument("--streams", action="store_true", help="serve: the streams beside every other server, alone")
    parser.add_argument("--data", metavar="DIR", type=Path, default=training.DATA, help="train: the public datasets")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=int,
        help="train: rounds beside the peers (default: 3; 1 with --quick); verdicts: rounds (3); console: of a page; "
        "slurm: jobs (5)",
    )
    parser.add_argument(
        "--model",
        choices=[*models.MODELS],
        default="smollm2",
        help="serve, train: SmolLM2, or a random Llama of 1.17 billion",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="serve, train: where to compute")
    parser.add_argument(
        "--llama-server", metavar="PATH", default="llama-server", help="serve: a peer on the CPU (default: as on PATH)"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser


if __name__ == "__main__":
    main()
