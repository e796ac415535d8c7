"""Commands for recipes and for the records of runs: report, export, resume, checkpoints, replay, authorise, refuse."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, with_common_options, with_session_options, with_signing_options
from appliance.cli.support.groups import recipe, run
from appliance.cli.support.output import print_json, print_line, print_result, print_rows, say
from appliance.cli.support.progress import ProgressMeter
from appliance.cli.support.signing import order_action, print_receipt, show_proposal, sign_and_submit
from appliance.domain.evaluation.quality import list_measures, list_warnings, summarize_training
from appliance.errors import BadInput, Conflict, Tampered, Unavailable
from appliance.formats.core.text import show_bytes

if TYPE_CHECKING:
    from appliance.client.runs import RunSteps, WaitingRun
    from appliance.domain.recipe.recipe import ResolvedRecipe
    from appliance.domain.runs.replays import ReplayFinished
    from appliance.domain.runs.steps import StepRecord
    from appliance.domain.runs.training import RunFinished


@recipe.command(
    "new", example="appliance recipe new\nappliance recipe new --output recipe.yaml --base smollm2 --dataset clauses@1"
)
@click.option(
    "--output",
    "path",
    metavar="FILE",
    type=PATH,
    help="Write it to a new file instead of printing it.",
)
@click.option("--name", metavar="NAME", default="my-adapter", show_default=True, help="What the adapter is called.")
@click.option("--base", default="my-base", show_default=True, metavar="NAME", help="The base it is trained on.")
@click.option("--dataset", default="my-dataset@1", show_default=True, metavar="NAME@VERSION", help="What it learns.")
@with_common_options
def new(caller: Caller, path: Path | None, name: str, base: str, dataset: str) -> None:
    """Print or write a recipe with every key, its meaning, its range and its default."""
    from appliance.domain.recipe.parsing import parse_recipe, write_template

    given = {"name": name, "base": base, "dataset": dataset}
    parse_recipe(given)
    text = write_template(given)
    if path is not None:
        _write_new(path, text)
    if caller.json:
        print_json({"recipe": text, "file": None if path is None else str(path)})
    elif path is None:
        print_line(text.rstrip("\n"))
    else:
        say(f"next: appliance run plan {path}")


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Conflict(f"recipe, {path}: expected a name that is free, got an existing file") from None
    except OSError as error:
        raise Unavailable(f"recipe, {path}: expected it to be writable, got {error.strerror}") from None


SHOWN_SPIKES = 5
"""Maximum number of loss spikes that are listed."""
NO_LOSS = "not recorded: the run is private"


def facts_of(steps: Sequence[StepRecord], finished: RunFinished | None) -> list[tuple[str, object]]:
    """Return the facts of a run's steps, with units. The result is empty before the first step."""
    from appliance.domain.runs.steps import best_step

    if not steps:
        return []
    last, spikes = steps[-1], [step for step in steps if step.spike is not None]
    facts: list[tuple[str, object]] = [("steps done", f"{last.step} of {last.steps}{_ending_text(steps, finished)}")]
    losses = [float(step.loss) for step in steps if step.loss is not None]
    facts.append(("loss", f"{losses[-1]:.3f}, at first {losses[0]:.3f}" if losses else NO_LOSS))
    if last.margin is not None and last.accuracy is not None:
        facts.append(("margin", f"{float(last.margin):.3f} at last, {float(last.accuracy):.0%} of rows above 0"))
    if read := [(step.step, step.validation_loss) for step in steps if step.validation_loss is not None]:
        best = best_step(read)
        lowest = f"lowest {float(dict(read)[best]):.3f} after step {best}"
        facts.append(("validation loss", f"{float(read[-1][1]):.3f}, {lowest}"))
    seconds = float(last.seconds)
    if seconds:
        facts.append(("pace", f"{last.tokens / seconds:.0f} tokens a second over {seconds:.0f} s"))
    if peak := max(step.peak_bytes for step in steps):
        facts.append(("most memory", show_bytes(peak)))
    for step in spikes[:SHOWN_SPIKES]:
        rows = ", ".join(map(str, step.spike or ()))
        facts.append((f"spike at step {step.step}", f"loss {float(step.loss or 0):.3f}, rows {rows}"))
    if len(spikes) > SHOWN_SPIKES:
        facts.append(("more spikes", len(spikes) - SHOWN_SPIKES))
    return facts


def describe_metrics(metrics: Mapping[str, Any], steps: Sequence[StepRecord] = ()) -> list[tuple[str, object]]:
    """Return the measures on the held-out rows, and each warning. Before sealing, they come from the steps alone."""
    if "training" not in metrics:
        metrics = {**metrics, "training": summarize_training([step.loss for step in steps if step.loss is not None])}
    warnings = [("warning", text) for text in list_warnings(metrics)]
    return [*((f"held-out {name}", text) for name, text in list_measures(metrics)), *warnings]


def warnings_in(metric_facts: Sequence[tuple[str, object]]) -> list[object]:
    """Return the warnings alone."""
    return [text for name, text in metric_facts if name == "warning"]


def _ending_text(steps: Sequence[StepRecord], finished: RunFinished | None) -> str:
    """Return why a run ended at its last step, and which weights were sealed."""
    if finished is None:
        return ""
    early = "; stopped early, its validation loss no longer fell" if steps[-1].step < steps[-1].steps else ""
    best = finished.weights_step
    return early + (f"; the weights after step {best} are the ones sealed" if best != steps[-1].step else "")


def _title(record: RunSteps, recipe: ResolvedRecipe) -> str:
    return f"{record.run}: {recipe.name}, {recipe.method} on {recipe.base}, {recipe.dataset}"


def _report_text(record: RunSteps, recipe: ResolvedRecipe, metrics: Mapping[str, Any]) -> str:
    """Return report.md: facts, plot, recipe, and how to check the steps against the ledger."""
    lines = [f"# {_title(record, recipe)}", ""]
    facts = [*facts_of(record.steps, record.body), *describe_metrics(metrics, record.steps)]
    lines += [f"- {name}: {value}" for name, value in facts]
    lines += ["", "![Loss, learning rate, gradient norm, pace and memory by step](training.svg)", ""]
    if record.finished is None or record.body is None:
        lines += ["The run has not finished: no entry of the ledger confirms these steps yet.", ""]
    else:
        index, digest = record.finished.entry.index, record.body.record
        lines += [
            f"`steps.jsonl` is what entry {index} of the ledger binds: `sha256sum steps.jsonl` gives",
            f"`{digest.removeprefix('sha256:')}`, which is `record` in `appliance ledger show {index}`.",
            "",
        ]
    lines += ["| recipe | |", "| --- | --- |"]
    values = recipe.model_dump(mode="json")
    shown = {key: ", ".join(value) if isinstance(value, list) else value for key, value in values.items()}
    rows = [f"| {key.replace('_', ' ')} | {'–' if value is None else value} |" for key, value in shown.items()]
    return "\n".join([*lines, *rows]) + "\n"


@run.command("report", example="appliance run report r-000001 --folder r-000001-report")
@click.argument("name", metavar="RUN")
@click.option("--folder", required=True, metavar="FOLDER", type=PATH, help="A new folder.")
@with_session_options
def report(caller: Caller, name: str, folder: Path) -> None:
    """Write a run's report: its steps, checked against the ledger, with plots (PNG and SVG)."""
    from appliance.client.runs import metrics_of, ordered_recipe, read_run_steps, write_report

    connection = caller.reading()
    record = read_run_steps(connection, caller.anchor, name)
    recipe = ordered_recipe(connection, caller.anchor, name)
    write_report(record, _title(record, recipe), _report_text(record, recipe, metrics_of(connection, name)), folder)
    _print_written(caller, record, folder)


@run.command("export", example="appliance run export r-000001 --to wandb --folder tracked")
@click.argument("name", metavar="RUN")
@click.option("--to", "kind", required=True, type=click.Choice(["wandb"]), help="The tracker to export to.")
@click.option("--folder", required=True, metavar="FOLDER", type=PATH, help="A new folder.")
@click.option("--python", default=sys.executable, metavar="FILE", help="A Python interpreter with wandb installed.")
@with_session_options
def export(caller: Caller, name: str, kind: str, folder: Path, python: str) -> None:
    """Write a finished run as a Weights & Biases offline run, to be synced to the site's own server.

    It is made on this machine from the record, after the run. Workers have no tracker, and nothing is sent.
    """
    from appliance.client.runs import export_wandb, ordered_recipe, read_run_steps

    connection = caller.reading()
    record = read_run_steps(connection, caller.anchor, name)
    recipe = ordered_recipe(connection, caller.anchor, name)
    export_wandb(record, f"{name} {recipe.name}", recipe, folder, python)
    _print_written(caller, record, folder)
    say(f"next: wandb sync {folder}/wandb/offline-run-*")


def _print_written(caller: Caller, record: RunSteps, folder: Path) -> None:
    entry = None if record.finished is None else record.finished.entry.index
    bound = "no entry yet: the run has not finished" if entry is None else f"entry {entry}, proved"
    print_result(
        caller.json,
        {"run": record.run, "folder": str(folder), "steps": len(record.steps), "entry": entry},
        [("written to", folder), ("steps", len(record.steps)), ("bound by", bound)],
    )


def parse_run(name: str) -> str:
    """Return the run's id.

    Raises: BadInput if it is not one.
    """
    if not name.startswith("r-"):
        raise BadInput(f"run: expected a name such as r-000001, got {name}; list them with: appliance run list")
    return name


@run.command("resume", example="appliance run resume r-000002")
@click.argument("name", metavar="RUN")
@with_signing_options
def resume(caller: Caller, name: str) -> None:
    """Continue a failed run from its last training checkpoint. The person who ordered it or an administrator may do so.

    The adapter is the same, bit for bit, as if the run had not stopped.
    """
    print_receipt(caller, sign_and_submit(caller, caller.propose("resume", {"run": parse_run(name)})))
    say(f"next: appliance run show {name} --follow")


@run.command("checkpoints", example="appliance run checkpoints r-000001")
@click.argument("name", metavar="RUN")
@with_session_options
def checkpoints(caller: Caller, name: str) -> None:
    """List a run's recorded training checkpoints, between which it can be replayed."""
    from appliance.domain.core.records.runs import TrainingCheckpoint

    print_rows(
        caller.json,
        caller.reading().get(f"/v1/runs/{parse_run(name)}/checkpoints", list[TrainingCheckpoint]),
        ("step", "entry", "seconds", "digest"),
        lambda row: (row.step, row.index, row.seconds, row.digest),
    )


@run.command("replay", example="appliance run replay r-000001 --from 0 --to 40")
@click.argument("name", metavar="RUN")
@click.option(
    "--from",
    "first",
    metavar="STEP",
    type=click.IntRange(0),
    required=True,
    help="A recorded step; 0 is the beginning.",
)
@click.option("--to", "last", metavar="STEP", type=click.IntRange(1), required=True, help="A later recorded step.")
@click.option("--wait/--no-wait", default=True, help="Wait until there is a verdict.")
@with_signing_options
def replay(caller: Caller, name: str, first: int, last: int, wait: bool) -> None:
    """Train a range of a run's steps again and compare the result with the log. For auditors.

    The verdict is identical, within-tolerance (only on another kind of hardware) or different. It becomes an entry.
    """
    from appliance.api.runs import ReplayStatus, parse_frame
    from appliance.client.runs import wait_for_replay

    values = {"run": parse_run(name), "from_step": first, "to_step": last}
    receipt = sign_and_submit(caller, caller.propose("replay", values))
    if not wait:
        print_result(caller.json, receipt, [("order", receipt.order)])
        return
    caller.continuation = (
        f"the replay continues; look for its verdict with: appliance ledger log --subject order:{receipt.order}"
    )
    meter = ProgressMeter("trains", last - first, "steps")

    def show_steps(state: ReplayStatus) -> None:
        for frame in map(parse_frame, state.progress):
            if frame.frame == "step":
                meter.set(frame.step - first)

    _print_verdict(caller, *wait_for_replay(caller.reading(), caller.anchor, receipt.order, show_steps))


def _print_verdict(caller: Caller, index: int, body: ReplayFinished) -> None:
    shown = ("verdict", "run", "from_step", "to_step", "expected", "got", "largest_difference")
    facts = [("entry", index), *((name.replace("_", " "), getattr(body, name)) for name in shown)]
    print_result(caller.json, {"entry": index, **body.model_dump()}, facts)
    if body.verdict == "different":
        raise Tampered(
            f"{body.run}, step {body.to_step}: expected {body.expected}, got {body.got}", code="replay-differs"
        )


@run.command("authorise", example="appliance run authorise r-000003")
@click.argument("name", metavar="RUN")
@with_signing_options
def authorise(caller: Caller, name: str) -> None:
    """Authorise a run that waits for a second person, a reviewer or administrator.

    They must not have ordered it or imported its dataset.

    Before you sign, you see the order to train as its signer signed it.
    """
    waiting = _read_waiting_run(caller, name)
    values, facts = {"run": name, "order": waiting.digest}, [("authorised", name)]
    order_action(caller, "authorise-run", values, facts, show_subject=lambda: _show_run(waiting))
    say(f"next: appliance run show {name} --follow")


@run.command("refuse", example="appliance run refuse r-000003 --reason 'The rows hold names.'")
@click.argument("name", metavar="RUN")
@click.option("--reason", required=True, metavar="TEXT", help="Why; can be erased later.")
@with_signing_options
def refuse(caller: Caller, name: str, reason: str) -> None:
    """Refuse a run that waits for a second person. It never begins."""
    waiting = _read_waiting_run(caller, name)
    values, facts = {"run": name, "order": waiting.digest}, [("refused", name)]
    order_action(caller, "refuse-run", values, facts, texts={"reason": reason}, show_subject=lambda: _show_run(waiting))


def _read_waiting_run(caller: Caller, name: str) -> WaitingRun:
    from appliance.client.runs import read_waiting_run

    return read_waiting_run(caller.reading(), caller.anchor, parse_run(name))


def _show_run(waiting: WaitingRun) -> None:
    show_proposal(waiting.ordered, f"The order of {waiting.ordered.order.signer}, entry {waiting.entry} of the log:")
