"""Runs: their orders, plans, progress, records and replays.

Recipes are resolved here, so that the signed order contains every value.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from appliance.api.runs import (
    CalibrationRequest,
    CalibrationStatus,
    Frame,
    RecipeFacts,
    ReplayStatus,
    RunProgress,
    WorkError,
    WorkStarted,
    parse_frame,
)
from appliance.client.support.connection import Connection
from appliance.client.support.files import create_folder, read_file
from appliance.client.support.log import Anchor, ProvenEntry, find_entries, find_events, read_entry, read_event
from appliance.client.support.service_process import run_report_program
from appliance.domain.actions.proposals import Proposal
from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.records.runs import Run
from appliance.domain.planning.plan import Plan, make_plan, read_subject
from appliance.domain.planning.shape import MachineCalibration
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import Recipe, ResolvedRecipe
from appliance.domain.recipe.sweep import SWEPT
from appliance.domain.releases.adapters import AdapterSealed
from appliance.domain.runs.replays import ReplayFailed, ReplayFinished
from appliance.domain.runs.steps import STEPS_FILE, StepRecord, parse_steps
from appliance.domain.runs.training import RunFailed, RunFinished, RunRequested, Train
from appliance.errors import BadInput, Conflict, NotFound, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import parse_envelope

WAIT_S = 20
"""Seconds for which one request for a result waits at the service."""
FINAL = ("sealed", "failed", "cancelled", "refused")
"""States in which a run has ended."""
_MAX_RECIPE_BYTES = 65_536
_MOST_LEVELS = 20
"""Largest number of nested brackets. PyYAML's time for a token grows with their number."""

Frames = Callable[[str, list[Frame]], None]
"""A function that gets the run's status and the new frames."""


@dataclass(frozen=True)
class RunEnd:
    """The end of a run."""

    run: str
    status: str
    adapter: str | None
    detail: str | None


class _Loader(yaml.SafeLoader):
    """A loader of plain YAML without tags, aliases and duplicate keys, so that values are read as they are written."""

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level == _MOST_LEVELS:
            line = self.line + 1
            raise BadInput(f"recipe, line {line}: expected at most {_MOST_LEVELS} nested brackets, got more")
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = 1 if parent is None else parent.start_mark.line + 1
            raise BadInput(f"recipe, from line {line} on: expected each value itself, got an alias of one")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        value = super().construct_mapping(node, deep)
        if len(value) < len(node.value):
            counts = Counter(self.construct_object(key) for key, _ in node.value)
            twice, line = counts.most_common(1)[0][0], node.start_mark.line + 1
            raise BadInput(f"recipe, key {twice!r}: expected it once, got it twice in the mapping at line {line}")
        return value


def load_written(path: Path) -> dict[str, Any]:
    """Return the content of a recipe's YAML file.

    Raises: BadInput, which names the file and the malformed line.
    """
    data = read_file(path, "recipe", _MAX_RECIPE_BYTES)
    try:
        value = yaml.load(data, _Loader)  # noqa: S506 a SafeLoader, stricter
    except RecursionError:
        raise BadInput(f"recipe, {path}: expected YAML of a few levels, got hundreds") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise BadInput(f"recipe, {path}{place}: expected YAML, got {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:  # the latter for a date that does not exist
        raise BadInput(f"recipe, {path}: expected YAML, got {' '.join(str(error).split())}") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}") from None
    if not isinstance(value, dict):
        got = "a list" if isinstance(value, list) else "an empty file" if value is None else "other text"
        raise BadInput(f"recipe, {path}: expected lines of `name: value`, got {got}; begin with: appliance recipe new")
    return value


def load_recipe(path: Path) -> Recipe:
    """Return the recipe of a YAML file.

    Raises: BadInput, which names the file and the malformed line or value.
    """
    value = load_written(path)
    lists = [key for key in SWEPT if isinstance(value.get(key), list)]
    if lists:
        raise BadInput(
            f"{path}: recipe, {', '.join(lists)}: expected one value, got a list; a recipe with lists is a sweep: "
            f"appliance run start {path} --sweep --folder FOLDER"
        )
    try:
        return parse_recipe(value)
    except BadInput as error:
        raise error.within(str(path)) from None


@dataclass(frozen=True)
class WaitingRun:
    """A run that waits for a second person.

    `digest` identifies the signed order, which is in `entry` of the log.
    """

    ordered: Proposal
    entry: int
    digest: str


def read_waiting_run(connection: Connection, anchor: Anchor, run: str) -> WaitingRun:
    """Return a run that waits for a second person, from the proved entry of its order.

    Raises: Tampered if the log has no such order.
    """
    index = connection.get(f"/v1/runs/{run}", Run).index
    proven, _ = read_event(connection, anchor, index, RunRequested, run=run)
    envelope = parse_envelope(proven.document("order"))
    order, documents = ORDERS.parse(envelope.payload), {}
    if not isinstance(order, Train):
        raise Tampered(f"run {run}: expected an order to train, got {order.action}")
    if order.gates is not None:
        documents["gates"] = proven.document("gates")
    return WaitingRun(Proposal(order, proven.disclosures, documents), proven.entry.index, envelope.pae_digest)


def failure_of(connection: Connection, anchor: Anchor, run: str) -> str | None:
    """Return the cause of a run's failure from its entry, or None if the text is not disclosed.

    The service discards the run's frames when the run ends.
    """
    for entry in find_entries(connection, type="run.failed", subject=f"run:{run}"):
        proven, failed = read_event(connection, anchor, entry.index, RunFailed, run=run)
        for found in proven.disclosures:
            if found.commitment == failed.message:
                return found.text
    return None


def sealed_metrics(connection: Connection) -> dict[str, Mapping[str, Any]]:
    """Return the metrics of every sealed adapter from the entries of the sealings."""
    return {sealed.adapter: sealed.metrics for sealed in find_events(connection, AdapterSealed)}


def metrics_of(connection: Connection, run: str) -> Mapping[str, Any]:
    """Return the metrics of the run's adapter; they are empty until it is sealed."""
    found = [sealed.metrics for sealed in find_events(connection, AdapterSealed, subject=f"run:{run}")]
    return found[-1] if found else {}


def follow(connection: Connection, run: str, on_progress: Frames) -> RunEnd:
    """Follow a run until it ends. A session that expires meanwhile is renewed."""
    after = 0
    while True:
        found = connection.get(f"/v1/runs/{run}/progress", RunProgress, after=after, wait_s=WAIT_S)
        on_progress(found.status, [parse_frame(frame) for frame in found.frames])
        after = found.next
        if found.status in FINAL and not found.frames:
            return RunEnd(run, found.status, found.adapter, found.detail)


def plan_run(connection: Connection, recipe: Recipe, what: str) -> Plan:
    """Return the plan of a run.

    Raises: BadInput, which names the file, here `what`, and the value that cannot be trained.
    """
    return plan_from(read_facts(connection, recipe), recipe, what)


def read_facts(connection: Connection, recipe: Recipe) -> RecipeFacts:
    """Return the service's facts of the recipe's base and dataset, its machine, and runs evaluated before."""
    return connection.get("/v1/recipes/facts", RecipeFacts, base=recipe.base, dataset=recipe.dataset)


def plan_from(found: RecipeFacts, recipe: Recipe, what: str) -> Plan:
    """Return the plan of a run from the service's facts.

    Raises: BadInput, as `plan_run` does.
    """
    try:
        subject = read_subject(recipe.base, recipe.dataset, found.base_facts, found.dataset_facts)
        return make_plan(recipe, found.facts, subject, found.machine)
    except BadInput as error:
        raise error.within(what) from None


def calibrate(connection: Connection, recipe: ResolvedRecipe) -> MachineCalibration:
    """Measure the service's machine by a few short steps of this recipe; return the result.

    Raises: Unavailable if that fails.
    """
    body = CalibrationRequest(recipe=recipe)
    key = connection.post("/v1/calibrations", WorkStarted, body).key
    while not (state := connection.get(f"/v1/calibrations/{key}", CalibrationStatus, wait_s=WAIT_S)).ended:
        continue
    if state.error is not None or state.result is None:
        error = state.error or WorkError(code="unavailable", message="expected a result, got none")
        raise Unavailable(f"calibration: {error.message}", code=error.code)
    return state.result


@dataclass(frozen=True)
class RunSteps:
    """The steps of a run.

    `finished` is the proved entry that binds the steps, or None while the run has not finished.
    """

    run: str
    data: bytes
    steps: tuple[StepRecord, ...]
    finished: ProvenEntry | None
    body: RunFinished | None = None
    """The body of that entry."""


def read_run_steps(connection: Connection, anchor: Anchor, run: str) -> RunSteps:
    """Return the steps so far.

    Raises: Tampered if the run has finished and its entry binds other steps.
    """
    data = b"".join(connection.stream(f"/v1/runs/{run}/steps"))
    ends = list(find_entries(connection, type="run.finished", subject=f"run:{run}"))
    steps = parse_steps(data, f"{STEPS_FILE} of {run}")
    if not ends:
        return RunSteps(run, data, steps, None, None)
    index, got = ends[-1].index, digest_bytes(data)
    finished, body = read_event(connection, anchor, index, RunFinished, run=run)
    if data and body.record != got:  # steps of runs that failed long ago were deleted
        raise Tampered(f"{STEPS_FILE} of {run}: expected {body.record}, as entry {index} has it, got {got}")
    return RunSteps(run, data, steps, finished, body)


def ordered_recipe(connection: Connection, anchor: Anchor, run: str) -> ResolvedRecipe:
    """Return the resolved recipe of the run's signed order, read from the proved entry that contains it.

    Raises: NotFound for an unknown run.
    """
    for entry in find_entries(connection, type="run.requested", subject=f"run:{run}"):
        order = ORDERS.parse(parse_envelope(read_entry(connection, anchor, entry.index).document("order")).payload)
        if isinstance(order, Train):
            return order.recipe
    raise NotFound(f"run: expected the id of a recorded run, got {run}")


def write_report(record: RunSteps, title: str, text: str, folder: Path) -> None:
    """Write a new folder with report.md, steps.jsonl, training.svg and training.png.

    Raises: Conflict if the folder exists or the run has no steps; Unavailable if it cannot be written.
    """
    if not record.steps:
        raise Conflict(f"report of {record.run}: expected a step at least, got none")
    with create_folder(folder, "report") as part:
        (part / STEPS_FILE).write_bytes(record.data)
        (part / "report.md").write_text(text, encoding="utf-8")
        run_report_program(sys.executable, "plot", [str(part / STEPS_FILE), str(part), title], b"")


def export_wandb(record: RunSteps, name: str, recipe: ResolvedRecipe, folder: Path, python: str) -> None:
    """Write a Weights & Biases offline run to a new folder with that Python's wandb.

    Raises: Conflict if the folder exists or the run has not finished; Unavailable if it cannot be written.
    """
    body = record.body
    if record.finished is None or body is None or not record.steps:
        raise Conflict(f"export of {record.run}: expected a run that has finished, got one that has not")
    summary = body.model_dump(include={"steps", "planned_steps", "weights_step", "weights", "record"})
    final = {} if body.final_loss is None else {"final_loss": float(body.final_loss)}
    value = {
        "id": record.run,
        "name": name,
        "config": recipe.model_dump(mode="json"),
        "summary": summary | final | {"entry": record.finished.entry.index},
        "steps": [step.model_dump(mode="json") for step in record.steps],
    }
    with create_folder(folder, "export") as part:
        run_report_program(python, "wandb_run", [str(part)], json.dumps(value).encode())


def wait_for_replay(
    connection: Connection, anchor: Anchor, order: str, on_progress: Callable[[ReplayStatus], None]
) -> tuple[int, ReplayFinished]:
    """Return the proved entry with the verdict of a replay: its index and body.

    `on_progress` gets each earlier state of the replay.

    Raises: Tampered or Unavailable if the window could not be trained again.
    """
    while not (state := connection.get(f"/v1/replays/{order}", ReplayStatus, wait_s=WAIT_S)).ended:
        on_progress(state)
    for entry in find_entries(connection, type=("replay.finished", "replay.failed"), subject=f"order:{order}"):
        if entry.type == ReplayFinished.type:
            return entry.index, read_event(connection, anchor, entry.index, ReplayFinished, order=order)[1]
        raise _failure(*read_event(connection, anchor, entry.index, ReplayFailed, order=order))
    raise Conflict(f"replay {order}: expected its end in the log, got none")


def _failure(proven: ProvenEntry, body: ReplayFailed) -> Tampered | Unavailable:
    text = next((found.text for found in proven.disclosures if found.commitment == body.message), "see the log")
    branch = Tampered if body.code == "tampered" else Unavailable
    return branch(f"replay of {body.run}: no verdict: {text}", code=body.code)
