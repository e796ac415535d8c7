"""A run's recorded steps, held against the ledger, and what is made of them: a report with plots, an export.

What draws and exports are programs of their own: they get files, no key, no session and no address.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.client.support.door import Door
from appliance.client.support.log import Anchor, Proven, find_entries, read_entry
from appliance.client.support.program import new_folder, run_report_program
from appliance.domain.rulebook.registry import ORDERS
from appliance.domain.runs.steps import STEPS_FILE, StepRecord, parse_steps
from appliance.domain.runs.training import Train
from appliance.errors import Conflict, NotFound, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import parse_envelope


@dataclass(frozen=True)
class Record:
    """`finished`: the proved entry that binds the steps; None while the run has not come to its end."""

    run: str
    data: bytes
    steps: tuple[StepRecord, ...]
    finished: Proven | None


def read_record(door: Door, anchor: Anchor, run: str) -> Record:
    """The steps so far; Tampered where the run has ended and they are not those that its end binds."""
    data = b"".join(door.stream(f"/v1/runs/{run}/steps"))
    ends = list(find_entries(door, type="run.finished", subject=f"run:{run}"))
    finished = read_entry(door, anchor, ends[-1].index) if ends else None
    if finished is not None and data:  # of a run that failed long ago none are kept
        index, body, got = finished.entry.index, finished.entry.body, digest_bytes(data)
        if body["run"] != run or body["record"] != got:
            raise Tampered(f"{STEPS_FILE} of {run}: expected {body['record']}, as entry {index} has it, got {got}")
    return Record(run, data, parse_steps(data, f"{STEPS_FILE} of {run}"), finished)


def ordered_recipe(door: Door, anchor: Anchor, run: str) -> dict[str, Any]:
    """The resolved recipe of the run's signed order, read from the proved entry that holds it."""
    for entry in find_entries(door, type="run.requested", subject=f"run:{run}"):
        order = ORDERS.parse(parse_envelope(read_entry(door, anchor, entry.index).document("order")).payload)
        if isinstance(order, Train):
            return order.recipe.model_dump(mode="json")
    raise NotFound(f"run: expected a known one, got {run}")


def write_report(record: Record, title: str, text: str, folder: Path) -> None:
    """A new folder: report.md, steps.jsonl, training.svg and training.png. Conflict where it is there already."""
    if not record.steps:
        raise Conflict(f"report of {record.run}: expected a step at least, got none")
    new_folder(folder, "report")
    (folder / STEPS_FILE).write_bytes(record.data)
    (folder / "report.md").write_text(text, encoding="utf-8")
    place = folder.absolute()
    run_report_program(sys.executable, "plot", [str(place / STEPS_FILE), str(place), title], b"")


def export_wandb(record: Record, name: str, config: dict[str, Any], folder: Path, python: str) -> None:
    """A Weights & Biases offline run in a new folder, written by that Python's wandb."""
    if record.finished is None or not record.steps:
        raise Conflict(f"export of {record.run}: expected a run that has finished, got one that has not")
    new_folder(folder, "export")
    body = record.finished.entry.body
    summary = {key: body[key] for key in ("steps", "planned_steps", "weights_step", "weights", "record")}
    final = {} if body["final_loss"] is None else {"final_loss": float(body["final_loss"])}
    value = {
        "id": record.run,
        "name": name,
        "config": config,
        "summary": summary | final | {"entry": record.finished.entry.index},
        "steps": [step.model_dump(mode="json") for step in record.steps],
    }
    try:
        run_report_program(python, "wandb_run", [str(folder.absolute())], json.dumps(value).encode())
    except Unavailable:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise
