"""Commands for operators: bases, datasets and training runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.imports import (
    describe_facts,
    finish_import,
    import_rows,
    read_columns,
    send,
    with_row_options,
    with_split_options,
    with_terms_options,
)
from appliance.cli.runs.gates import list_verdict_facts, verdict_value
from appliance.cli.runs.plans import GATES, list_costs, list_detectable_effects, propose_run
from appliance.cli.runs.records import (
    describe_metrics,
    facts_of,
    parse_run,
    warnings_in,
)
from appliance.cli.runs.sweeps import train_sweep
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, with_session_options, with_signing_options
from appliance.cli.support.groups import base, dataset, run
from appliance.cli.support.output import plain, print_facts, print_json, print_result, print_rows, print_table, say
from appliance.cli.support.progress import Display
from appliance.cli.support.signing import GONE, print_receipt, sign_all, sign_and_submit
from appliance.errors import BadInput, Conflict

if TYPE_CHECKING:
    from appliance.client.runs import RunEnd


@base.command("import", example="appliance base import SmolLM2.gguf --name smollm2 --licence Apache-2.0")
@click.argument("path", type=PATH)
@click.option("--name", metavar="NAME", required=True, help="A name for the base; it cannot be changed.")
@click.option("--licence", required=True, metavar="SPDX", help="The licence's SPDX identifier, such as Apache-2.0.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the import has ended.")
@with_signing_options
def import_base(caller: Caller, path: Path, name: str, licence: str, wait: bool) -> None:
    """Import a base model: a folder of safetensors, or one .gguf file.

    Every byte is hashed on this machine before it is sent. Files that a base does not need are left out. Pickles, code
    and links are refused.
    """
    from appliance.client.support.files import read_base
    from appliance.client.support.orders import check
    from appliance.domain.core.names import NO_DIGEST
    from appliance.formats.artifacts.manifest import describe_ignored

    values = {"base": name, "licence": licence}
    # All known reasons against the import, before the files are hashed or sent.
    check(caller.reading(), caller.propose("import-base", {**values, "format": "gguf", "source": NO_DIGEST}))
    source = read_base(path, name)
    if source.ignored:
        say(f"left out: {describe_ignored(list(source.ignored))}")
    _ = caller.unlock("to sign the import")
    send(caller, source)
    proposal = caller.propose("import-base", {**values, "format": source.format, "source": source.digest})
    finish_import(caller, sign_and_submit(caller, proposal), wait)


@base.command("list", example="appliance base list --json")
@with_session_options
def list_bases(caller: Caller) -> None:
    """List every imported base, its digest and its licence."""
    from appliance.domain.core.records.data import Base

    print_rows(
        caller.json,
        caller.reading().get("/v1/bases", list[Base]),
        ("base", "licence", "imported by", "entry", "digest"),
        lambda row: (row.name, row.licence, row.imported_by, row.index, row.digest),
        empty="No base was imported. Import one with: appliance base import",
    )


@dataset.command(
    "import",
    example=(
        "appliance dataset import clauses.csv --name clauses --base smollm2 \\\n"
        "    --instruction 'Name the kind of clause.' --owner 'Legal' --licence CC0-1.0 --classification internal"
    ),
)
@click.argument("path", type=PATH)
@click.option("--name", metavar="NAME", required=True, help="A name for the dataset; each import adds a version.")
@click.option(
    "--base", "base_name", required=True, metavar="NAME", help="The base whose chat template renders the rows."
)
@with_row_options
@with_split_options
@with_terms_options
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the import has ended.")
@with_signing_options
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

    The parts of a row depend on its kind: text and label; instruction, input and output; prompt and text (completion);
    text and summary; context, question and answer; messages (chat); prompt, chosen and rejected (preference). Every
    byte is hashed on this machine before it is sent. Before you sign, the rows are checked as by `dataset check`, and
    every row that does not fit is named by its line.
    """
    from appliance.client.imports import DatasetTerms

    terms = DatasetTerms(base=base_name, columns=read_columns(columns), **given)
    import_rows(caller, terms, path, held_out_file, kind, wait=wait)


@dataset.command("list", example="appliance dataset list")
@with_session_options
def list_datasets(caller: Caller) -> None:
    """List every imported dataset and version, with its rows, licence and classification."""
    from appliance.domain.core.records.data import Dataset

    print_rows(
        caller.json,
        caller.reading().get("/v1/datasets", list[Dataset]),
        ("dataset", "dataset_kind", "rows", "base", "licence", "classification", "imported by", "entry"),
        lambda row: (
            f"{row.name}@{row.version}",
            row.facts.get("dataset_kind"),
            row.facts.get("rows"),
            row.base,
            row.licence,
            row.classification,
            row.imported_by,
            row.index,
        ),
        empty="No dataset was imported. Import one with: appliance dataset import",
        least=("entry", "imported by", "base", "dataset_kind"),
    )


@dataset.command("show", example="appliance dataset show clauses@1")
@click.argument("name")
@with_session_options
def show_dataset(caller: Caller, name: str) -> None:
    """Show one dataset: its owner, digests, the root over its rows, the import's facts, and each label's rows."""
    from appliance.api.data import SplitRows, describe_label
    from appliance.client.evidence import dataset_owner
    from appliance.domain.core.records.data import Dataset

    connection = caller.reading()
    row = connection.get(f"/v1/datasets/{name}", Dataset)
    owner = dataset_owner(connection, caller.anchor, row)
    labels = connection.get(f"/v1/datasets/{name}/labels", dict[str, SplitRows])
    print_result(
        caller.json,
        {**row.model_dump(), "owner": owner, "labels": labels},
        [
            ("owner", GONE if owner is None else owner),
            *((key.replace("_", " "), value) for key, value in row.model_dump(exclude={"facts"}).items()),
            *describe_facts(row.facts),
            *((f"label {label}", describe_label(sides)) for label, sides in labels.items()),
        ],
    )


@run.command(
    "start", example="appliance run start recipe.yaml --follow\nappliance run start first.yaml second.yaml --yes"
)
@click.argument("recipes", nargs=-1, required=True, type=PATH)
@click.option("--follow/--no-follow", default=False, help="Wait until the last run has ended.")
@click.option(
    "--sweep/--no-sweep",
    default=False,
    help="Train every combination of the recipe's lists, stop the worse ones early, and write a table and a plot.",
)
@click.option(
    "--folder",
    metavar="FOLDER",
    type=PATH,
    help="With --sweep: the new folder for its table and plot.",
)
@GATES
@click.option("--tier", metavar="TIER", help="The materiality tier that the adapters are for, such as high.")
@click.option("--on", type=click.Choice(["local", "slurm"]), help="Where to train. Default: the setting runs_on.")
@click.option(
    "--nodes",
    metavar="N",
    type=click.IntRange(1, 64),
    default=1,
    help="With --on slurm: number of nodes that run the processes.",
)
@with_signing_options
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
    """Order one training run for each recipe. They queue and train one after another.

    Every value that a recipe leaves to the appliance (auto) is resolved now, shown, and part of what you sign. So is
    the gates file that decides on the adapter, before anybody knows its results. If the tier requires it, runs wait
    until a second person has authorised them.
    """
    from appliance.client.gates import choose_gates
    from appliance.client.runs import load_recipe, plan_run

    if sweep != (folder is not None):
        raise BadInput("run start: expected --sweep and --folder together, got one of them")
    if folder is not None:
        if len(recipes) != 1:
            raise BadInput(f"run start: expected one recipe with --sweep, got {len(recipes)}")
        train_sweep(caller, recipes[0], folder, gates, tier, on, nodes)
        return
    from appliance.domain.core.records.runs import Run

    loaded = [(str(path), load_recipe(path)) for path in recipes]
    connection = caller.reading()
    proposals, planned = [], list[str]()
    for what, recipe in loaded:
        chosen = choose_gates(connection, gates, recipe.purpose)
        proposals.append(propose_run(caller, recipe, what, chosen, {"tier": tier, "on": on, "nodes": nodes}))
        planned += list_costs(
            plan_run(connection, recipe, what), list_detectable_effects(connection, chosen, recipe).lines
        )
    runs = [str(receipt.result["run"]) for receipt in sign_all(caller, proposals, planned)]
    waiting = [name for name in runs if connection.get(f"/v1/runs/{name}", Run).status == "waiting"]
    say(*(f"{name} waits for a second person, who types: appliance run authorise {name}" for name in waiting))
    if not follow:
        if caller.json:
            print_json([{"run": name, "status": "waiting" if name in waiting else "queued"} for name in runs])
        else:
            print_table(("run", "recipe"), zip(runs, recipes, strict=True))
        say(f"next: appliance run show {runs[0]} --follow")
        return
    _report(caller, [_follow(caller, name) for name in runs])


def _follow(caller: Caller, name: str) -> RunEnd:
    """Show a run until it has ended. Interrupting the command does not stop the run."""
    from appliance.client.runs import follow

    display = Display(name)
    caller.continuation = f"{name} continues; follow it again with: appliance run show {name} --follow"
    try:
        return follow(caller.reading(), name, display.take)
    finally:
        display.close()


def _report(caller: Caller, ended: Sequence[RunEnd]) -> None:
    """Print how the runs ended, with their results and warnings.

    Raises: Conflict if one was not sealed.
    """
    from appliance.client.runs import metrics_of

    metrics = {one.run: metrics_of(caller.reading(), one.run) for one in ended}
    metric_facts = {run: describe_metrics(found) for run, found in metrics.items()}
    if caller.json:
        print_json(
            [
                {**asdict(one), "metrics": metrics[one.run], "warnings": warnings_in(metric_facts[one.run])}
                for one in ended
            ]
        )
    else:
        print_table(("run", "status", "adapter"), [(one.run, one.status, one.adapter) for one in ended])
    say(*(f"{run}: {name}: {plain(text)}" for run, facts in metric_facts.items() for name, text in facts))
    unsealed = [one for one in ended if one.status != "sealed"]
    for one in ended:
        if one.adapter is not None:
            say(*(f"{one.run}: {name}: {plain(text)}" for name, text in list_verdict_facts(caller, one.run)[:1]))
            say(f"next: a reviewer types: appliance review show {one.adapter}")
            say(f"or ask for its release to a unit first: appliance release request {one.adapter} --help")
    if unsealed:
        outcomes = "; ".join(
            f"{one.run}: expected it sealed, got {one.status}: {one.detail or 'see the log'}" for one in unsealed
        )
        raise Conflict(
            f"run {outcomes}; read on with: appliance ledger log --subject run:{unsealed[0].run}", code="run-not-sealed"
        )


@run.command("list", example="appliance run list")
@with_session_options
def list_runs(caller: Caller) -> None:
    """List every run, in the order in which they were ordered. A queued one is shown with its place in the queue."""
    from appliance.domain.core.records.runs import Run

    rows = caller.reading().get("/v1/runs", list[Run])
    waiting = sorted((row.queued, row.id) for row in rows if row.status == "queued")
    places = {name: place for place, (_, name) in enumerate(waiting, start=1)}
    if caller.json:
        print_json([{**row.model_dump(), "place": places.get(row.id)} for row in rows])
        return
    states = {name: f"queued, {place} of {len(places)}" for name, place in places.items()}
    print_table(
        ("run", "status", "adapter name", "base", "dataset", "ordered by", "entry"),
        [(r.id, states.get(r.id, r.status), r.name, r.base, r.dataset, r.ordered_by, r.index) for r in rows],
        empty="No run was ordered. Start one with: appliance run start",
    )


@run.command("show", example="appliance run show r-000001 --follow")
@click.argument("name", metavar="RUN")
@click.option("--follow/--no-follow", default=False, help="Wait until the run has ended.")
@with_session_options
def show_run(caller: Caller, name: str, follow: bool) -> None:
    """Show one run: its base and dataset, who ordered it, and its progress."""
    from appliance.api.runs import RunProgress
    from appliance.client.runs import failure_of, metrics_of, read_run_steps
    from appliance.domain.core.records.runs import Run

    connection = caller.reading()
    if follow:
        caller.session.opened()  # the passphrase is asked for now, and only where no session is open
        _report(caller, [_follow(caller, name)])
        return
    row, state = connection.get(f"/v1/runs/{name}", Run), connection.get(f"/v1/runs/{name}/progress", RunProgress)
    is_lost = row.status == "failed" and state.detail is None
    outcome = {
        "adapter": state.adapter,
        "detail": failure_of(connection, caller.anchor, name) if is_lost else state.detail,
    }
    record, metrics = read_run_steps(connection, caller.anchor, name), metrics_of(connection, name)
    metric_facts = describe_metrics(metrics, record.steps)
    if caller.json:
        evaluation = {"verdict": verdict_value(caller, name)}
        print_json(
            {**row.model_dump(), **outcome, **evaluation, "metrics": metrics, "warnings": warnings_in(metric_facts)}
        )
        return
    facts = [(key.replace("_", " "), value) for key, value in row.model_dump(mode="json").items()]
    shown = [*outcome.items(), *facts_of(record.steps, record.body)]
    print_facts([*facts, *shown, *metric_facts, *list_verdict_facts(caller, name)])


@run.command("cancel", example="appliance run cancel r-000002")
@click.argument("name", metavar="RUN")
@with_signing_options
def cancel(caller: Caller, name: str) -> None:
    """Cancel a run that waits or trains. The person who ordered it or an administrator may do so."""
    from appliance.domain.core.records.runs import Run

    parse_run(name)
    caller.reading().get(f"/v1/runs/{name}", Run)  # an unknown run is refused before anything is signed
    print_receipt(caller, sign_and_submit(caller, caller.propose("cancel", {"run": name})))
