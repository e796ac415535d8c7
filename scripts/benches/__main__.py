"""The command behind `scripts/bench`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from scripts.benches import (
    audit,
    cluster,
    console,
    console_people,
    hosts,
    ledger,
    methods,
    models,
    preferring,
    private,
    revocation,
    serving,
    training,
    verdicts,
)
from scripts.benches import plan as plans
from scripts.benches.measure import Row, describe_machine, markdown_table, plain_table, write_json


def main() -> None:
    if sys.argv[1:2] == ["methods"]:
        methods.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["audit"]:
        audit.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["private"]:
        private.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["plan"]:
        plans.main(sys.argv[2:])
        return
    given = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="appliance-bench-", dir=given.folder) as name:
        folder = Path(name)
        machine = describe_machine(folder)
        rows = []
        for one in _measure(folder, given):
            rows.append(one)
            if given.json:
                # A bench that ends before its last row has written the others.
                write_json(given.json, rows)
            print(f"bench: {plain_table([one]).splitlines()[1]}", file=sys.stderr, flush=True)
    table = markdown_table if given.markdown else plain_table
    bullet = "- " if given.markdown else ""
    print("\n".join([*(f"{bullet}{line}" for line in machine), "", table(rows)]))


def _measure(folder: Path, given: argparse.Namespace) -> Iterator[Row]:
    if given.name in ("train", "dpo"):
        make = training.quick if given.quick else training.full
        planned = make(models.MODELS[given.model], given.data, given.device)
        planned = replace(planned, rounds=given.rounds or planned.rounds)
        if given.name == "dpo":
            return preferring.measure(folder, planned, quick=given.quick)
        return training.measure(folder, planned)
    if given.name == "serve":
        make_serving = serving.quick if given.quick else serving.full
        alone = {"service": serving.measure_service, "streams": serving.measure_streams}
        measure = next((found for name, found in alone.items() if getattr(given, name)), serving.measure)
        return measure(folder, make_serving(models.MODELS[given.model], given.device, given.llama_server))
    if given.name == "console" and given.people is not None:
        tokens, rounds = (24, 1) if given.quick else (192, 5)
        people = console_people.Plan(models.MODELS[given.model], given.people, given.rounds or rounds, tokens)
        return console_people.measure(folder, people)
    if given.name == "console":
        pages = console.QUICK if given.quick else console.FULL
        pages = replace(pages, entries=given.entries or pages.entries, runs=given.runs or pages.runs)
        return console.measure(folder, replace(pages, rounds=given.rounds or pages.rounds))
    if given.name == "hosts":
        return hosts.measure(hosts.QUICK if given.quick else hosts.FULL)
    if given.name == "revocation":
        return revocation.measure(folder, revocation.QUICK if given.quick else revocation.FULL)
    if given.name == "verdicts":
        return verdicts.measure(verdicts.QUICK if given.quick else verdicts.FULL, given.rounds or 3)
    if given.name == "slurm":
        model = None if given.quick else models.MODELS[given.model]
        return cluster.measure(folder, given.rounds or (1 if given.quick else 5), model)
    plan = ledger.QUICK if given.quick else ledger.FULL
    if given.largest is not None and not given.quick:
        plan = replace(plan, largest=given.largest)
    return ledger.growth(folder, plan) if given.growth else ledger.measure(folder, plan)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure; medians of rounds that take turns.")
    parser.add_argument(
        "name",
        choices=[
            "console",
            "dpo",
            "hosts",
            "ledger",
            "methods",
            "plan",
            "revocation",
            "serve",
            "slurm",
            "train",
            "verdicts",
        ],
        help="what to measure; methods and plan have options of their own",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, in two minutes")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows as JSON")
    parser.add_argument(
        "--folder", metavar="DIR", type=Path, help="whose disk is measured (default: where temp files lie)"
    )
    parser.add_argument("--largest", metavar="N", type=int, help="largest log of the growth (1,000,000; 0 for none)")
    parser.add_argument("--entries", metavar="N", type=int, help="console: entries of the log (1,000,000)")
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
