"""The steps of a run as its worker tells them: written down as they come, told to who follows, bound when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.domain.core.names import write_canonical
from appliance.domain.core.state import State
from appliance.domain.runs.conditions import UNDER_WAY
from appliance.domain.runs.steps import STEPS_FILE, StepRecord, parse_steps, record_step
from appliance.errors import NotFound
from appliance.formats.core.digest import digest_bytes
from appliance.store.files import disk
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.steps import Steps
from appliance.workflows.core.context import Context, Frame

FAILED_RUNS = 8
"""Of so many runs that failed last the steps are kept; a sealed adapter's lie in its folder."""


class Recorder:
    """Of one worker, which goes on after `step`: what an earlier one did beyond it is trained, and told, again."""

    def __init__(self, steps: Steps, run: str, step: int, *, private: bool = False) -> None:
        self._steps, self._run, self._private = steps, run, private
        self._losses = [record.loss for record in parse_steps(steps.begin(run, step), f"steps of {run}")]

    def take(self, frame: Frame) -> Frame:
        """The frame for those who follow. Before a training checkpoint is recorded, its steps are on disk for good."""
        if frame.get("frame") == "checkpoint":
            self._steps.sync(self._run)
        if frame.get("frame") != "step":
            return frame
        record = record_step(frame, self._losses, private=self._private)
        self._steps.append(self._run, write_canonical(record) + b"\n")
        self._losses.append(record.loss)
        return step_frame(record)

    def close(self, folder: Path) -> str:
        """Puts the steps beside the weights, in the place of whatever a worker put there; their digest."""
        self._steps.sync(self._run)
        data = self._steps.read(self._run)
        with disk.disk_errors(f"steps of {self._run}"):
            disk.write_file(folder / STEPS_FILE, data)
        return digest_bytes(data)


def step_frame(record: StepRecord) -> Frame:
    """A recorded step as the frame that followers get."""
    return {"frame": "step", **record.model_dump(mode="json", exclude={"rows"})}


def read(state: State, artifacts: Artifacts, steps: Steps, run: str) -> bytes:
    """A run's steps so far, whole lines; a sealed one's as its manifest lists them. NotFound for an unknown run."""
    if run not in state.runs:
        raise NotFound(f"run: expected a known one, got {run!r}")
    for adapter in state.adapters.values():
        if adapter.run == run:
            return artifacts.read(adapter.manifest, STEPS_FILE)
    data = steps.read(run)
    return data[: data.rfind(b"\n") + 1]


def earlier_frames(state: State, artifacts: Artifacts, steps: Steps, key: str) -> list[dict[str, Any]]:
    """What those who follow were told before the service started: the steps, none for what is no run."""
    if key not in state.runs:
        return []
    return [step_frame(record) for record in parse_steps(read(state, artifacts, steps, key))]


def sweep(context: Context) -> None:
    """Removes the steps of runs that are sealed or cancelled, and of those that failed long ago."""
    context.steps.sweep(lambda: _wanted(context.ledger.state))


def _wanted(state: State) -> frozenset[str]:
    runs = list(state.runs.values())
    failed = [run.id for run in runs if run.status == "failed"]
    going = [run.id for run in runs if run.status in UNDER_WAY]
    return frozenset(going + failed[-FAILED_RUNS:])
