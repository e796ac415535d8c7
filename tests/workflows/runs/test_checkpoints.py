"""Training checkpoints as a worker hands them over, and which are kept: all that is needed, and no more of the past."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.recipe.recipe import MOST_CHECKPOINTS
from appliance.domain.runs.cancellation import Cancel, RunCancelled
from appliance.domain.runs.training import RunFailed
from appliance.errors import ApplianceError, BadInput, NotFound, Tampered, TooLarge
from appliance.formats.core.digest import digest_bytes
from appliance.store.files.checkpoints import Checkpoints
from appliance.workflows.runs.checkpoints import REPLAYABLE_RUNS, kept, take_frame
from scripts.kit.log_builder import LogBuilder, stage


def run(site: LogBuilder, end: str) -> str:
    """A run with one checkpoint of its own, and how it ended."""
    name = site.request_run()
    site.add(site.started(name))
    site.add(site.checkpointed(name, 2, checkpoint=digest_bytes(name.encode())))
    if end == "failed":
        site.add(RunFailed(run=name, code="x", message=site.text("why")))
    if end == "cancelled":
        site.ordered(RunCancelled(policy=site.in_force), site.order(Cancel, "olga", run=name))
    return name


def kept_of(site: LogBuilder, names: list[str]) -> list[str]:
    found = kept(site.state)
    return [name for name in names if digest_bytes(name.encode()) in found]


def test_those_under_way_and_the_last_that_ended_are_kept() -> None:
    site = stage("imported")
    running = run(site, "")
    cancelled = run(site, "cancelled")
    failed = [run(site, "failed") for _ in range(REPLAYABLE_RUNS + 2)]
    assert kept_of(site, [running, cancelled, *failed]) == [running, *failed[2:]]
    site.resume(failed[0])
    assert kept_of(site, failed) == [failed[0], *failed[2:]], "what goes on is under way"


def test_those_of_a_replay_that_waits_are_kept() -> None:
    site = stage("imported")
    failed = [run(site, "failed") for _ in range(REPLAYABLE_RUNS + 1)]
    site.replay(failed[0])
    assert kept_of(site, failed) == failed


FRAME = {"frame": "checkpoint", "step": 2, "file": "state", "seconds": "1.5", "machine": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"file": "link"}, Tampered, "expected plain folders and a plain file"),
        ({"file": "twice"}, Tampered, "expected a plain file with one name"),
        ({"file": "../secret"}, Tampered, "expected a relative name below the folder"),
        ({"file": "holes"}, TooLarge, "expected at most 1000 bytes"),
        ({"file": None}, NotFound, "expected a file, got none"),
        ({"step": 0}, BadInput, "step: expected at least 1"),
        ({"step": "2"}, BadInput, "step: expected a whole number"),
        ({"seconds": 1.5}, BadInput, "seconds: expected text"),
        ({"machine": {"speed": 1.5}}, BadInput, "float"),
        ({"machine": None}, BadInput, "machine: expected an object"),
    ],
)
def test_what_a_worker_says_of_a_checkpoint_is_not_believed(
    tmp_path: Path, changes: dict[str, Any], error: type[ApplianceError], words: str
) -> None:
    """Nothing is recorded then: this ledger could not."""
    folder = tmp_path / "worker"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "state").write_bytes(b"state")
    (folder / "holes").touch()
    os.truncate(folder / "holes", 1 << 40)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "twice").hardlink_to(tmp_path / "secret")
    ledger = SimpleNamespace(state=stage("imported").state)
    context: Any = SimpleNamespace(checkpoints=Checkpoints(tmp_path / "home"), ledger=ledger)
    with pytest.raises(error, match=words):
        take_frame(context, "r-000001", folder, 1000, FRAME | changes)


def test_a_worker_fills_no_disk_with_checkpoints(tmp_path: Path) -> None:
    site = stage("imported")
    name = site.request_run()
    site.add(site.started(name))
    for step in range(1, MOST_CHECKPOINTS + 2):
        site.add(site.checkpointed(name, step))
    (tmp_path / "state").write_bytes(b"state")
    context: Any = SimpleNamespace(checkpoints=Checkpoints(tmp_path / "home"), ledger=SimpleNamespace(state=site.state))
    with pytest.raises(BadInput, match="expected at most 65 training checkpoints"):
        take_frame(context, name, tmp_path, 1000, FRAME | {"step": 100})
