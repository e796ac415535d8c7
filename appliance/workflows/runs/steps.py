"""The recorded steps of a run, and the secrets of private runs.

Steps are written as the worker reports them, published to followers, and bound by an entry when the run ends.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from appliance.domain.core.names import write_canonical
from appliance.domain.core.records.runs import Run
from appliance.domain.core.state import State
from appliance.domain.runs.conditions import UNDER_WAY
from appliance.domain.runs.steps import STEPS_FILE, StepRecord, parse_steps, record_step
from appliance.errors import NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.sealed import SECRET_BYTES, commit_secret
from appliance.store.files import disk
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.run_files import StepStore
from appliance.workflows.core.context import Frame, LedgerContext, RunContext

FAILED_RUNS = 8
"""Number of the last failed runs whose steps are kept. A sealed adapter has its steps in its folder."""


class Recorder:
    """The record of the steps of one worker that starts after `step`.

    Steps beyond `step` from an earlier worker are trained and published again.
    """

    def __init__(self, steps: StepStore, run: str, step: int, *, private: bool = False) -> None:
        self._steps, self._run, self._private = steps, run, private
        self._losses = [record.loss for record in parse_steps(steps.begin(run, step), f"steps of {run}")]

    def take(self, frame: Frame) -> Frame:
        """Record a step and return the frame for followers. A checkpoint's steps are durable before it is recorded."""
        if frame.get("frame") == "checkpoint":
            self._steps.sync(self._run)
        if frame.get("frame") != "step":
            return frame
        record = record_step(frame, self._losses, private=self._private)
        self._steps.append(self._run, write_canonical(record) + b"\n")
        self._losses.append(record.loss)
        return step_frame(record)

    def close(self, folder: Path) -> str:
        """Write the steps beside the weights, replacing any such file of the worker, and return their digest."""
        self._steps.sync(self._run)
        data = self._steps.read(self._run)
        with disk.disk_errors(f"steps of {self._run}"):
            disk.write_file(folder / STEPS_FILE, data)
        return digest_bytes(data)


def step_frame(record: StepRecord) -> Frame:
    """Return a recorded step as the frame that followers get."""
    return {"frame": "step", **record.model_dump(mode="json", exclude={"rows"})}


def read(state: State, artifacts: Artifacts, steps: StepStore, run: str) -> bytes:
    """Return a run's steps so far, in whole lines. The steps of a sealed run come from the adapter's folder.

    Raises:
        NotFound: The run is unknown.
    """
    state.runs.require(run)
    for adapter in state.adapters.values():
        if adapter.run == run:
            return artifacts.read(adapter.manifest, STEPS_FILE)
    data = steps.read(run)
    return data[: data.rfind(b"\n") + 1]


def earlier_frames(state: State, artifacts: Artifacts, steps: StepStore, key: str) -> list[dict[str, Any]]:
    """Return the frames from before the service started: the run's steps, or none if the key names no run."""
    if key not in state.runs:
        return []
    return [step_frame(record) for record in parse_steps(read(state, artifacts, steps, key))]


def sweep(context: RunContext) -> None:
    """Remove the steps of runs that are sealed or cancelled, and of runs that failed long ago."""
    context.steps.sweep(lambda: _wanted(context.ledger.state))


def _wanted(state: State) -> frozenset[str]:
    runs = list(state.runs.values())
    failed = [run.id for run in runs if run.status == "failed"]
    under_way = [run.id for run in runs if run.status in UNDER_WAY]
    return frozenset(under_way + failed[-FAILED_RUNS:])


def begin_secret(context: LedgerContext, run: Run) -> bytes:
    """Return a new secret for a run's noise, stored before the entry that binds it.

    If a start was interrupted between the two, the stored secret is returned again.
    """
    name = _secret_name_of(run)
    with suppress(NotFound):
        return context.keyring.read_secret(name)
    secret = secrets.token_bytes(SECRET_BYTES)
    context.keyring.keep_secret(name, secret)
    return secret


def read_secret(context: LedgerContext, run: Run) -> bytes:
    """Return the secret that `run.started` binds.

    Raises:
        NotFound: It was destroyed.
        Tampered: The keyring has another secret in its place.
    """
    try:
        secret = context.keyring.read_secret(_secret_name_of(run))
    except NotFound:
        raise NotFound(
            f"run {run.id}: expected the secret of its noise in the keyring, got none: it is destroyed when its "
            "retention ends (training_checkpoint_retention_s); without it nothing of the run is trained again"
        ) from None
    if (got := bind(run, secret)) != run.secret:
        raise Tampered(f"run {run.id}: expected the secret that run.started binds, {run.secret}, got {got}")
    return secret


def bind(run: Run, secret: bytes) -> str:
    """Return the digest of the secret that is in the log."""
    return commit_secret(secret, f"appliance/private-training/v1/secret/{run.id}")


def private_members(context: LedgerContext, run: Run, secret: bytes) -> dict[str, Any]:
    """Return the fields of a private run's task: the secret, and the number of training rows for its epsilon."""
    dataset = context.ledger.state.datasets.require(run.dataset)
    return {"secret": secret.hex(), "rows": dataset.facts["train_rows"]}


def destroy_secret(context: LedgerContext, run: Run) -> None:
    """Destroy the run's secret, if there is one."""
    context.keyring.destroy_secret(_secret_name_of(run))


def _secret_name_of(run: Run) -> str:
    return f"noise-{run.id}"
