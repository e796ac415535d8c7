"""Operators: they bring in base models and datasets, and train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.audit.uses import used_by
from appliance.cli.data.imports import finish_import, print_receipt, tell_facts
from appliance.cli.data.revoking import revoke_base, revoke_dataset
from appliance.cli.data.rows import (
    check,
    check_before_import,
    describes_rows,
    describes_terms,
    read_columns,
    read_sources,
    send,
)
from appliance.cli.runs.authorisations import authorise, refuse
from appliance.cli.runs.gates import judged_facts, judged_value
from appliance.cli.runs.plans import GATES, list_costs, plan, promise
from appliance.cli.runs.records import export, facts_of, judge, report, warnings_in
from appliance.cli.runs.replays import checkpoints, replay, resume
from appliance.cli.runs.sweeps import sweep as go_on_sweep
from appliance.cli.runs.sweeps import train_sweep
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, reads, signs
from appliance.cli.support.following import Display
from appliance.cli.support.output import plain, print_facts, print_json, print_table, say
from appliance.cli.support.reviews import GONE
from appliance.cli.support.signing import sign_all, sign_and_submit
from appliance.errors import BadInput, Conflict

if TYPE_CHECKING:
    from appliance.client.runs import Ended

_PATH = click.Path(path_type=Path)


@group("base", example="appliance base list")
def base() -> None:
    """Base models: import, list, revoke."""


@base.command("import", example="appliance base import SmolLM2.gguf --name smollm2 --licence Apache-2.0")
@click.argument("path", type=_PATH)
@click.option("--name", metavar="NAME", required=True, help="A name for the base; it cannot be changed.")
@click.option("--licence", required=True, metavar="SPDX", help="The licence's SPDX identifier, such as Apache-2.0.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the import has ended.")
@signs
@click.pass_obj
def import_base(caller: Caller, path: Path, name: str, licence: str, wait: bool) -> None:
    """Import a base model: a folder of safetensors, or one .gguf file.

    Every byte is hashed here before it is sent. Pickles, remote code, links and files that no base needs are refused.
    """
    from appliance.client.imports import check_base, propose_base
    from appliance.client.support.uploads import read_base

    check_base(caller.reading(), caller.signer, name, licence)
    source = read_base(path, name)
    _ = caller.unlock("to sign the import")
    send(caller, source)
    proposal = propose_base(caller.about, caller.signer, name, licence, source)
    finish_import(caller, sign_and_submit(caller, proposal), wait)


@base.command("list", example="appliance base list --json")
@reads
@click.pass_obj
def list_bases(caller: Caller) -> None:
    """Every imported base, its digest and its licence."""
    rows = caller.reading().get("/v1/bases")
    if caller.json:
        print_json(rows)
        return
    columns = ("name", "licence", "imported_by", "index", "digest")
    print_table(("base", "licence", "imported by", "entry", "digest"), [[row[c] for c in columns] for row in rows])


@group("dataset", example="appliance dataset list")
def dataset() -> None:
    """Datasets: check, import, list, show, revoke."""


@dataset.command(
    "import",
    example=(
        "appliance dataset import clauses.csv --name clauses --base smollm2 \\\n"
        "    --instruction 'Name the kind of clause.' --owner 'Legal' --licence CC0-1.0 --classification internal"
    ),
)
@click.argument("path", type=_PATH)
@click.option("--name", metavar="NAME", required=True, help="A name for the dataset; each import adds a version.")
@click.option(
    "--base", "base_name", required=True, metavar="NAME", help="The base whose chat template renders the rows."
)
@describes_rows
@describes_terms
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the import has ended.")
@signs
@click.pass_obj
def import_dataset(
    caller: Caller,
    /,
    path: Path,
    held_out_file: Path | None,
    kind: str | None,
    base_name: str,
    wait: bool,
    columns: tuple[str, ...],
    **given: Any,
) -> None:
    """Import rows from a file, split with a fixed seed and rendered for a base.

    The parts of a row follow from its task: text and label; instruction, input and output; prompt and text
    (completion); text and summary; context, question and answer; messages (chat); prompt, chosen and rejected
    (preference). Every byte is hashed here before it is sent. Before you sign, the rows are checked as `dataset check`
    does, and every row that does not fit is named by its line.
    """
    from appliance.client.checks import Teaching
    from appliance.client.imports import DatasetTerms, check_dataset, propose_dataset

    terms = DatasetTerms(base=base_name, columns=read_columns(columns), **given)
    digest = check_dataset(caller.reading(), caller.anchor, caller.signer, terms)
    sources = read_sources(path, held_out_file, kind)
    _ = caller.unlock("to sign the import")
    for source in sources:
        send(caller, source)
    said = {member.name for member in fields(Teaching)} & {member.name for member in fields(DatasetTerms)}
    teaching = Teaching(**{name: getattr(terms, name) for name in said})
    check_before_import(caller, teaching, sources, path)
    proposal = propose_dataset(caller.about, caller.signer, terms, sources[0], digest, *sources[1:])
    finish_import(caller, sign_and_submit(caller, proposal), wait)


@dataset.command("list", example="appliance dataset list")
@reads
@click.pass_obj
def list_datasets(caller: Caller) -> None:
    """Every imported dataset and version, with its rows, licence and classification."""
    rows = caller.reading().get("/v1/datasets")
    if caller.json:
        print_json(rows)
        return
    print_table(
        ("dataset", "task", "rows", "base", "licence", "classification", "imported by", "entry"),
        [
            (
                f"{r['name']}@{r['version']}",
                r["facts"].get("task"),
                r["facts"].get("rows"),
                r["base"],
                r["licence"],
                r["classification"],
                r["imported_by"],
                r["index"],
            )
            for r in rows
        ],
        least=("entry", "imported by", "base", "task"),
    )


@dataset.command("show", example="appliance dataset show clauses@1")
@click.argument("name")
@reads
@click.pass_obj
def show_dataset(caller: Caller, name: str) -> None:
    """One dataset: its owner, digests, the root over its rows, what the import measured, and each label's rows."""
    from appliance.client.checks import tell_label
    from appliance.client.releases.evidence import dataset_owner

    door = caller.reading()
    row = door.get(f"/v1/datasets/{name}")
    owner, labels = dataset_owner(door, caller.anchor, row), door.get(f"/v1/datasets/{name}/labels")
    if caller.json:
        print_json({**row, "owner": owner, "labels": labels})
        return
    facts = tell_facts(row.pop("facts"))
    print_facts(
        [
            ("owner", GONE if owner is None else owner),
            *((key.replace("_", " "), value) for key, value in row.items()),
            *facts,
            *((f"label {label}", tell_label(sides)) for label, sides in labels.items()),
        ]
    )


base.add_command(revoke_base)
dataset.add_command(check)
dataset.add_command(revoke_dataset)
dataset.add_command(used_by)


@group("run", example="appliance run start recipe.yaml --follow")
def run() -> None:
    """Training runs: plan, start, sweep, authorise, follow, list, cancel, resume, report, export, replay."""


@run.command(
    "start", example="appliance run start recipe.yaml --follow\nappliance run start first.yaml second.yaml --yes"
)
@click.argument("recipes", nargs=-1, required=True, type=_PATH)
@click.option("--follow/--no-follow", default=False, help="Wait until the last run has ended.")
@click.option(
    "--sweep/--no-sweep",
    default=False,
    help="Train every combination of the recipe's lists, stop those that fall behind, and write a table and a plot.",
)
@click.option(
    "--folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="With --sweep: the new folder for its table and plot.",
)
@GATES
@click.option("--tier", metavar="TIER", help="The tier of materiality that the adapters are meant for, such as high.")
@click.option(
    "--on", type=click.Choice(["here", "slurm"]), help="Where to train; without it the setting runs_on decides."
)
@click.option(
    "--nodes",
    metavar="N",
    type=click.IntRange(1, 64),
    default=1,
    help="With --on slurm: how many nodes share out the processes.",
)
@signs
@click.pass_obj
def start(
    caller: Caller,
    recipes: tuple[Path, ...],
    follow: bool,
    sweep: bool,
    folder: Path | None,
    gates: str | None,
    tier: str | None,
    on: str | None,
    nodes: int,
) -> None:
    """Order one training run for each recipe; they queue and train one after another.

    Every value that a recipe leaves to the appliance (auto) is resolved here, shown, and part of what you sign. So is
    the gate set that decides on the adapter, before anybody knows its results. Where the tier asks for it, runs wait
    until a second person has authorised them.
    """
    from appliance.client.evaluation.gates import choose_gates
    from appliance.client.planning import plan_run
    from appliance.client.runs import load_recipe, propose_run

    if sweep != (folder is not None):
        raise BadInput("run start: expected --sweep and --folder together, got one of them")
    if folder is not None:
        if len(recipes) != 1:
            raise BadInput(f"run start: expected one recipe with --sweep, got {len(recipes)}")
        train_sweep(caller, recipes[0], folder, gates, tier, on, nodes)
        return
    loaded = [(str(path), load_recipe(path)) for path in recipes]
    door = caller.reading()
    proposals, planned = [], list[str]()
    for what, recipe in loaded:
        chosen = choose_gates(door, gates, recipe.purpose)
        proposals.append(
            propose_run(door, caller.anchor, caller.signer, recipe, what, chosen, tier, on=on, nodes=nodes)
        )
        planned += list_costs(plan_run(door, recipe, what), promise(door, chosen, recipe).lines)
    runs = [str(receipt.result["run"]) for receipt in sign_all(caller, proposals, planned)]
    waiting = [name for name in runs if door.get(f"/v1/runs/{name}")["status"] == "waiting"]
    say(*(f"{name} waits for a second person, who types: appliance run authorise {name}" for name in waiting))
    if not follow:
        if caller.json:
            print_json([{"run": name, "status": "waiting" if name in waiting else "queued"} for name in runs])
        else:
            print_table(("run", "recipe"), zip(runs, recipes, strict=True))
        say(f"next: appliance run show {runs[0]} --follow")
        return
    _report(caller, [_follow(caller, name) for name in runs])


def _follow(caller: Caller, name: str) -> Ended:
    """Shows a run until it has ended. Leaving does not stop it."""
    from appliance.client.runs import follow

    display = Display(name)
    caller.go_on = f"{name} goes on; follow it again with: appliance run show {name} --follow"
    try:
        return follow(caller.reading(), name, display.take)
    finally:
        display.close()


def _report(caller: Caller, ended: Sequence[Ended]) -> None:
    """How the runs ended, what they came to and what that warns of; Conflict when one was not sealed."""
    from appliance.client.runs import metrics_of

    metrics = {one.run: metrics_of(caller.reading(), one.run) for one in ended}
    judged = {run: judge(found) for run, found in metrics.items()}
    if caller.json:
        print_json(
            [{**asdict(one), "metrics": metrics[one.run], "warnings": warnings_in(judged[one.run])} for one in ended]
        )
    else:
        print_table(("run", "status", "adapter"), [(one.run, one.status, one.adapter) for one in ended])
    say(*(f"{run}: {name}: {plain(text)}" for run, facts in judged.items() for name, text in facts))
    unsealed = [one for one in ended if one.status != "sealed"]
    for one in ended:
        if one.adapter is not None:
            say(*(f"{one.run}: {name}: {plain(text)}" for name, text in judged_facts(caller, one.run)[:1]))
            say(f"next: a reviewer types: appliance review show {one.adapter}")
            say(f"or ask for its release to a unit first: appliance release request {one.adapter} --help")
    if unsealed:
        told = "; ".join(
            f"{one.run}: expected it sealed, got {one.status}: {one.detail or 'see the log'}" for one in unsealed
        )
        raise Conflict(f"run {told}; read on with: appliance ledger log --subject run:{unsealed[0].run}", code="run")


@run.command("list", example="appliance run list")
@reads
@click.pass_obj
def list_runs(caller: Caller) -> None:
    """Every run, in the order in which they were ordered; one that waits, with its place in the queue."""
    rows = caller.reading().get("/v1/runs")
    waiting = sorted((row["queued"], row["id"]) for row in rows if row["status"] == "queued")
    places = {name: place for place, (_, name) in enumerate(waiting, start=1)}
    rows = [{**row, "place": places.get(row["id"])} for row in rows]
    if caller.json:
        print_json(rows)
        return
    columns = ("id", "status", "name", "base", "dataset", "ordered_by", "index")
    print_table(
        ("run", "status", "adapter name", "base", "dataset", "ordered by", "entry"),
        [
            [f"queued, {row['place']} of {len(places)}" if c == "status" and row["place"] else row[c] for c in columns]
            for row in rows
        ],
    )


@run.command("show", example="appliance run show r-000001 --follow")
@click.argument("name", metavar="RUN")
@click.option("--follow/--no-follow", default=False, help="Wait until the run has ended.")
@reads
@click.pass_obj
def show_run(caller: Caller, name: str, follow: bool) -> None:
    """One run: what it trains on, who ordered it, its progress."""
    from appliance.client.record import read_record
    from appliance.client.runs import failure_of, metrics_of

    door = caller.reading()
    if follow:
        caller.session.opened()  # the passphrase is asked for now, and only where no session is open
        _report(caller, [_follow(caller, name)])
        return
    row = door.get(f"/v1/runs/{name}")
    state = door.get(f"/v1/runs/{name}/progress")
    if row["status"] == "failed" and state["detail"] is None:
        state["detail"] = failure_of(door, caller.anchor, name)
    record, metrics = read_record(door, caller.anchor, name), metrics_of(door, name)
    judged = judge(metrics, record.steps)
    if caller.json:
        told = {"adapter": state["adapter"], "detail": state["detail"]}
        told |= {"verdict": judged_value(caller, name)}
        print_json({**row, **told, "metrics": metrics, "warnings": warnings_in(judged)})
        return
    ended = None if record.finished is None else record.finished.entry.body
    facts = [(key.replace("_", " "), value) for key, value in row.items()]
    shown = [("adapter", state["adapter"]), ("detail", state["detail"]), *facts_of(record.steps, ended)]
    print_facts([*facts, *shown, *judged, *judged_facts(caller, name)])


@run.command("cancel", example="appliance run cancel r-000002")
@click.argument("name", metavar="RUN")
@signs
@click.pass_obj
def cancel(caller: Caller, name: str) -> None:
    """Stop a run that waits or trains. The person who ordered it or an administrator may do so."""
    from appliance.client.runs import propose_cancel

    if not name.startswith("r-"):
        raise BadInput(f"run: expected a name such as r-000001, got {name}; list them with: appliance run list")
    caller.reading().get(f"/v1/runs/{name}")  # an unknown run is refused before anything is signed
    print_receipt(caller, sign_and_submit(caller, propose_cancel(caller.about, caller.signer, name)))


run.add_command(authorise)
run.add_command(refuse)
run.add_command(resume)
run.add_command(go_on_sweep)
run.add_command(checkpoints)
run.add_command(replay)
run.add_command(report)
run.add_command(export)
run.add_command(plan)
