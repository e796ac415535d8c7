"""Training runs: facts for their recipes, their progress, replays and calibrations.

The functions at the end derive the effects that the gates of an order to train can show, from the facts of its recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from appliance.domain.core.lookup import TrainingFacts
from appliance.domain.core.names import Value, explain, versioned
from appliance.domain.core.records import data, runs
from appliance.domain.evaluation.detectable import DetectableEffect, list_detectable
from appliance.domain.evaluation.gates import HELD_OUT, GatesFile
from appliance.domain.evaluation.rules import count_items
from appliance.domain.planning.shape import Machine, MachineCalibration
from appliance.domain.recipe.recipe import ResolutionFacts, ResolvedRecipe
from appliance.domain.runs.training import check_local_sets, check_validation_sets
from appliance.errors import Unavailable

R = TypeVar("R")


class ValidationSet(data.ValidationSet):
    """The newest valid version of a validation set, and the number of runs that were evaluated on it before."""

    evaluated_before: int


class LocalSet(data.LocalSet):
    """A local set. `items` is None if only the set's files define how many there are."""

    items: int | None
    evaluated_before: int


class RecipeFacts(Value):
    """The facts with which a client resolves and plans a recipe itself.

    `evaluated_before` is the number of runs that were evaluated on the held-out rows of the dataset. `runs_on` is the
    site's place of training.
    """

    base_digest: str
    dataset_digest: str
    facts: ResolutionFacts
    base_facts: dict[str, Any]
    dataset_facts: dict[str, Any]
    evaluated_before: int
    local_sets: tuple[LocalSet, ...]
    validation_sets: tuple[ValidationSet, ...]
    machine: Machine
    runs_on: str

    @property
    def for_orders(self) -> TrainingFacts:
        """Return the facts that an order to train is completed with."""
        newest = {row.name: versioned(row.name, row.version) for row in self.validation_sets}
        local = {row.set: row.digest for row in self.local_sets}
        return TrainingFacts(self.facts.model_dump(), self.runs_on, newest, local)


class WorkError(Value):
    """The error of work that failed; `commitment` is that of its text, if the log has the text."""

    code: str
    message: str
    commitment: str | None = None


class RunProgress(Value):
    """The frames of a run from a number on. `next` is the number of the next frame, `detail` the error's message."""

    status: str
    frames: tuple[dict[str, Any], ...]
    next: int
    ended: bool
    detail: str | None
    adapter: str | None


Number = str | float
"""A number of a worker, mostly a decimal fraction as text."""


class Frame(BaseModel):
    """The fields of a worker's frame that clients show. Others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    frame: str = ""
    seq: int = 0
    state: str = ""
    step: int = 0
    steps: int = 0
    loss: Number | None = None
    validation_loss: Number | None = None
    margin: Number | None = None
    spike: tuple[int, ...] | None = None
    tokens: int = 0
    seconds: Number = 0.0
    done: int = 0
    total: int = 0
    set: str = ""
    sandbox_probes: dict[str, str] = {}
    layers: dict[str, bool] = {}


def parse_frame(value: dict[str, Any]) -> Frame:
    """Parse a frame, whose fields a worker determined.

    Raises: Unavailable if a field has another type.
    """
    try:
        return Frame.model_validate(value)
    except ValidationError as error:
        raise Unavailable(f"service, frame: {explain(error)}") from None


class ReplayStatus(runs.Replay):
    """A replay. `progress` has the last frame."""

    error: WorkError | None
    progress: tuple[dict[str, Any], ...]

    @property
    def ended(self) -> bool:
        """Return True if the replay is over."""
        return self.status != "requested"


class WorkStarted(Value):
    """The key under which the result of the work is read."""

    key: str


class WorkStatus(Value, Generic[R]):
    """The state of work that only the person who started it can read.

    `result` is None before its end, and if it failed.
    """

    result: R | None
    error: WorkError | None
    ended: bool


class CalibrationRequest(Value):
    """A resolved recipe with which to measure the machine."""

    recipe: ResolvedRecipe


class CalibrationStatus(WorkStatus[MachineCalibration]):
    """The state of a calibration."""


def choose_sets(facts: RecipeFacts, gates: GatesFile | None) -> list[ValidationSet]:
    """Return the newest valid version, for the recipe's base, of each validation set that the gates name.

    `facts` are the service's.

    Raises: NotFound if there is none.
    """
    known = {row.name: row for row in facts.validation_sets}
    if gates is None:
        return []
    check_validation_sets(gates, known)
    return [known[name] for name in gates.validation_sets]


def choose_local_sets(facts: RecipeFacts, gates: GatesFile | None) -> list[LocalSet]:
    """Return the local sets that the gates name, as the service describes them.

    Raises: NotFound for an unknown name; Tampered if the service has other texts of a set that comes with the
    appliance.
    """
    known = {row.set: row for row in facts.local_sets}
    if gates is None:
        return []
    check_local_sets(gates, {name: row.digest for name, row in known.items()})
    return [known[name] for name in gates.local_sets]


def list_effects(gates: GatesFile, facts: RecipeFacts) -> list[DetectableEffect]:
    """Return the detectable effect of each gate on its set.

    `facts` are the service's, of recipe, dataset and validation sets.
    """
    sizes = {HELD_OUT: count_items(facts.dataset_facts) or 0}
    before = {HELD_OUT: facts.evaluated_before}
    for row in choose_sets(facts, gates):
        sizes[row.name], before[row.name] = count_items(row.facts, "rows") or 0, row.evaluated_before
    for local in choose_local_sets(facts, gates):
        # The number of rows of a task is known only from its own files.
        sizes[local.set] = _largest_minimum(gates, local.set) if local.items is None else local.items
        before[local.set] = local.evaluated_before
    return list_detectable(gates, sizes, before)


def _largest_minimum(gates: GatesFile, name: str) -> int:
    """Return the largest minimum of items that a gate on this set requires."""
    return max(gate.least_items for gate in gates.gates if gate.set == name)


def describe_effects(
    gates: GatesFile, effects: list[DetectableEffect], facts: RecipeFacts
) -> Iterator[tuple[str, str]]:
    """Yield what the person who orders a run must know of its gates, as (label, text)."""
    yield "evaluated before", f"{_count_runs(facts.evaluated_before)} on the held-out rows of this dataset"
    for row in choose_sets(facts, gates):
        marks = "".join(f", {mark}" for mark in ("blind", "final") if getattr(row, mark))
        text = (
            f"{count_items(row.facts, 'rows')} rows{marks}; evaluated on it before: {_count_runs(row.evaluated_before)}"
        )
        yield f"set {row.name}@{row.version}", text
    for local in choose_local_sets(facts, gates):
        rows = "as many rows as its files have" if local.items is None else f"{local.items} rows"
        before = _count_runs(local.evaluated_before)
        text = f"{rows}, {local.digest[:19]}; evaluated on it before: {before} on this dataset"
        yield f"set {local.set}", text
    for effect in effects:
        yield f"gate {effect.gate}", effect.sentence


def _count_runs(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"
