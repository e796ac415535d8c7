"""What a run recorded of its steps: as lines of `run show`, as a report with plots, as an export."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, reads
from appliance.cli.support.output import print_facts, print_json, say
from appliance.cli.support.progress import show_bytes
from appliance.domain.evaluation.quality import list_measures, list_warnings, summarize_training
from appliance.domain.runs.stopping import best_step

if TYPE_CHECKING:
    from appliance.client.record import Record
    from appliance.domain.runs.steps import StepRecord

SHOWN_SPIKES = 5
NO_LOSS = "not recorded: the run is private"


def facts_of(steps: Sequence[StepRecord], finished: dict[str, Any] | None) -> list[tuple[str, object]]:
    """What the steps come to, each fact with its unit; nothing before the first."""
    if not steps:
        return []
    last, spikes = steps[-1], [step for step in steps if step.spike is not None]
    facts: list[tuple[str, object]] = [("steps done", f"{last.step} of {last.steps}{_why(steps, finished)}")]
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


def judge(metrics: Mapping[str, Any], steps: Sequence[StepRecord] = ()) -> list[tuple[str, object]]:
    """The measures on the held-out rows, and each warning; before the sealing only what the steps say."""
    if "training" not in metrics:
        metrics = {**metrics, "training": summarize_training([step.loss for step in steps if step.loss is not None])}
    warnings = [("warning", text) for text in list_warnings(metrics)]
    return [*((f"held-out {name}", text) for name, text in list_measures(metrics)), *warnings]


def warnings_in(judged: Sequence[tuple[str, object]]) -> list[object]:
    """The warnings alone, for programs."""
    return [text for name, text in judged if name == "warning"]


def _why(steps: Sequence[StepRecord], finished: dict[str, Any] | None) -> str:
    """Why a run ended where it did, and which weights are sealed."""
    if finished is None:
        return ""
    early = "; stopped early, its validation loss no longer fell" if steps[-1].step < steps[-1].steps else ""
    best = finished["weights_step"]
    return early + (f"; the weights after step {best} are the ones sealed" if best != steps[-1].step else "")


def _title(record: Record, recipe: dict[str, Any]) -> str:
    return f"{record.run}: {recipe['name']}, {recipe['method']} on {recipe['base']}, {recipe['dataset']}"


def _text(record: Record, recipe: dict[str, Any], metrics: Mapping[str, Any]) -> str:
    """report.md: what happened, the picture, the recipe, and how to check the steps against the ledger."""
    body = None if record.finished is None else record.finished.entry.body
    lines = [f"# {_title(record, recipe)}", ""]
    facts = [*facts_of(record.steps, body), *judge(metrics, record.steps)]
    lines += [f"- {name}: {value}" for name, value in facts]
    lines += ["", "![Loss, learning rate, gradient norm, pace and memory by step](training.svg)", ""]
    if record.finished is None:
        lines += ["The run has not finished: no entry of the ledger confirms these steps yet.", ""]
    else:
        index, digest = record.finished.entry.index, record.finished.entry.body["record"]
        lines += [
            f"`steps.jsonl` is what entry {index} of the ledger binds: `sha256sum steps.jsonl` gives",
            f"`{digest.removeprefix('sha256:')}`, which is `record` in `appliance ledger show {index}`.",
            "",
        ]
    lines += ["| recipe | |", "| --- | --- |"]
    shown = {key: ", ".join(value) if isinstance(value, list) else value for key, value in recipe.items()}
    rows = [f"| {key.replace('_', ' ')} | {'–' if value is None else value} |" for key, value in shown.items()]
    return "\n".join([*lines, *rows]) + "\n"


@command("report", example="appliance run report r-000001 --folder r-000001-report")
@click.argument("name", metavar="RUN")
@click.option("--folder", required=True, metavar="FOLDER", type=click.Path(path_type=Path), help="A new folder.")
@reads
@click.pass_obj
def report(caller: Caller, name: str, folder: Path) -> None:
    """Write a run's report: its steps, checked against the ledger, and what they look like (PNG and SVG)."""
    from appliance.client.record import ordered_recipe, read_record, write_report
    from appliance.client.runs import metrics_of

    door = caller.reading()
    record = read_record(door, caller.anchor, name)
    recipe = ordered_recipe(door, caller.anchor, name)
    write_report(record, _title(record, recipe), _text(record, recipe, metrics_of(door, name)), folder)
    _print_written(caller, record, folder)


@command("export", example="appliance run export r-000001 --to wandb --folder tracked")
@click.argument("name", metavar="RUN")
@click.option("--to", "kind", required=True, type=click.Choice(["wandb"]), help="The tracker to export to.")
@click.option("--folder", required=True, metavar="FOLDER", type=click.Path(path_type=Path), help="A new folder.")
@click.option("--python", default=sys.executable, metavar="FILE", help="A Python interpreter with wandb installed.")
@reads
@click.pass_obj
def export(caller: Caller, name: str, kind: str, folder: Path, python: str) -> None:
    """Write a finished run as a Weights & Biases offline run, for a site with a server of its own to sync.

    It is made on this machine from the record, after the run. No worker has a tracker, and nothing is sent.
    """
    from appliance.client.record import export_wandb, ordered_recipe, read_record

    door = caller.reading()
    record = read_record(door, caller.anchor, name)
    recipe = ordered_recipe(door, caller.anchor, name)
    export_wandb(record, f"{name} {recipe['name']}", recipe, folder, python)
    _print_written(caller, record, folder)
    say(f"next: wandb sync {folder}/wandb/offline-run-*")


def _print_written(caller: Caller, record: Record, folder: Path) -> None:
    entry = None if record.finished is None else record.finished.entry.index
    if caller.json:
        print_json({"run": record.run, "folder": str(folder), "steps": len(record.steps), "entry": entry})
        return
    bound = "no entry yet: the run has not finished" if entry is None else f"entry {entry}, proved"
    print_facts([("written to", folder), ("steps", len(record.steps)), ("bound by", bound)])
