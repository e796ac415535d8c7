"""Training checkpoints: their handover by a worker, and which are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.recipe.recipe import MOST_CHECKPOINTS
from appliance.domain.releases.adapters import AdapterRevoked, RevokeAdapter
from appliance.domain.runs.conditions import RunCheckpointed
from appliance.domain.runs.control import Cancel, RunCancelled
from appliance.domain.runs.training import RunFailed
from appliance.errors import ApplianceError, BadInput, NotFound, Tampered, TooLarge
from appliance.formats.core.digest import digest_bytes
from appliance.store.files.run_files import Checkpoints
from appliance.workflows.core.context import Context
from appliance.workflows.runs import checkpoints
from appliance.workflows.runs.checkpoints import kept_digests, list_kept, list_needed_checkpoints, take_frame
from scripts.kit.log_builder import LogBuilder, stage
from tests.kit.one_process import one_process


def run(site: LogBuilder, end: str) -> str:
    """Add a run with one checkpoint that ended so."""
    name = site.request_run()
    site.add(site.started(name))
    site.add(site.checkpointed(name, 2, checkpoint=digest_bytes(name.encode())))
    if end == "failed":
        site.add(RunFailed(run=name, code="x", message=site.text("why")))
    if end == "cancelled":
        site.ordered(RunCancelled(policy=site.in_force), site.order(Cancel, "olga", run=name))
    return name


def context_of(site: LogBuilder, days: float = 0) -> Context:
    """Return the context of the log so many days after its last entry."""
    now = add_seconds(site.state.last_time, round(days * 86_400))
    ledger = SimpleNamespace(state=site.state, entry_bytes=lambda index: site.entries[index])
    context: Any = SimpleNamespace(**one_process(), ledger=ledger, now=lambda state: now)
    return context


def kept_of(site: LogBuilder, names: list[str], days: float = 0) -> list[str]:
    found = kept_digests(context_of(site, days))
    return [name for name in names if digest_bytes(name.encode()) in found]


def sealed() -> tuple[LogBuilder, str]:
    """Return a site and its run with a training checkpoint, whose adapter is sealed."""
    site = stage("imported")
    name = site.request_run()
    site.add(site.started(name))
    site.add(site.checkpointed(name, 2, checkpoint=digest_bytes(name.encode())))
    site.add(site.finished(name))
    site.seal(name)
    return site, name


def test_those_under_way_are_kept_and_of_a_cancelled_run_none() -> None:
    site = stage("imported")
    running, cancelled = run(site, ""), run(site, "cancelled")
    assert kept_of(site, [running, cancelled], days=400) == [running]


def test_those_of_a_failed_run_stay_for_the_days_of_policy_and_longer_once_it_continues() -> None:
    site = stage("imported")
    failed = run(site, "failed")
    assert kept_of(site, [failed], days=29) == [failed]
    assert kept_of(site, [failed], days=31) == []
    site.resume(failed)
    assert kept_of(site, [failed], days=31) == [failed], "what goes on is under way"


def test_they_stay_for_ever_while_the_adapter_is_neither_released_nor_rejected() -> None:
    site, name = sealed()
    assert kept_of(site, [name], days=4_000) == [name]
    site.review("rita", "privacy")
    assert kept_of(site, [name], days=4_000) == [name], "an approval is no release"
    assert list_kept(context_of(site))[name].why == "not decided"
    assert digest_bytes(name.encode()) in list_needed_checkpoints(site.state)


@pytest.mark.parametrize("decision", ["released", "rejected", "revoked"])
def test_they_go_when_the_adapter_is_decided_and_the_days_of_policy_are_over(decision: str) -> None:
    site, name = sealed()
    if decision == "released":
        site.review("rita", "privacy")
        site.review("raul", "model-risk")
        site.activate()
    elif decision == "rejected":
        site.review("rita", "privacy", decision="reject")
    else:
        site.ordered(AdapterRevoked(policy=site.in_force), site.order(RevokeAdapter, "anna", **site.on_adapter()))
    decided = site.state.last_time
    keeping = list_kept(context_of(site))[name]
    assert (keeping.why, keeping.until) == ("policy", add_seconds(decided, 30 * 86_400))
    assert kept_of(site, [name], days=29.9) == [name], "until then it can be replayed"
    assert kept_of(site, [name], days=30) == []
    assert digest_bytes(name.encode()) not in list_needed_checkpoints(site.state)


def test_policy_says_for_how_many_days() -> None:
    site, name = sealed()
    site.review("rita", "privacy", decision="reject")
    parameters = site.state.parameters.model_copy(update={"training_checkpoint_retention_s": 0})
    site.adopt(site.policy.model_copy(update={"parameters": parameters}))
    assert kept_of(site, [name]) == []


@pytest.mark.parametrize("subject", ["run:{run}", "adapter:clauses@1", "adapter:clauses"])
def test_a_legal_hold_wins_over_the_days_of_policy(subject: str) -> None:
    site, name = sealed()
    site.review("rita", "privacy", decision="reject")
    subject = subject.format(run=name)
    site.hold(subject)
    assert kept_of(site, [name], days=4_000) == [name]
    assert list_kept(context_of(site))[name].why == f"legal hold on {subject}"
    site.lift(subject)
    assert kept_of(site, [name], days=4_000) == []


def test_those_of_a_replay_that_waits_are_kept() -> None:
    site, name = sealed()
    site.review("rita", "privacy", decision="reject")
    site.replay(name)
    assert kept_of(site, [name], days=4_000) == [name]


def test_a_round_sweeps_in_the_queue_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, name = sealed()
    site.review("rita", "privacy", decision="reject")
    store = Checkpoints(tmp_path)
    (tmp_path / "state").write_bytes(name.encode())
    with (tmp_path / "state").open("rb") as source, store.keep(source.fileno()) as digest:
        pass
    context: Any = context_of(site, days=29)
    queued: list[Callable[[], None]] = []
    context.checkpoints, context.runs = store, SimpleNamespace(put=queued.append)
    rounds: list[Callable[[], object]] = []
    monkeypatch.setattr(checkpoints.retry, "start", lambda context, name, every_s, work: rounds.append(work))
    checkpoints.start(context)
    rounds[0]()
    queued.pop()()
    assert store.find(digest) is not None
    context.now = context_of(site, days=31).now
    rounds[0]()
    assert store.find(digest) is not None, "its turn has not come"
    queued.pop()()
    assert store.find(digest) is None


FRAME = {"frame": "checkpoint", "step": 2, "file": "state", "seconds": "1.5", "machine": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"file": "link"}, Tampered, "expected plain folders and a plain file"),
        ({"file": "twice"}, Tampered, "expected a regular file with one name"),
        ({"file": "../secret"}, Tampered, "expected a relative name below the folder"),
        ({"file": "holes"}, TooLarge, "expected at most 1000 bytes"),
        ({"file": None}, NotFound, "expected one, got none"),
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


def test_the_end_of_another_run_removes_nothing_that_is_being_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs on Slurm end and sweep in threads of their own."""
    site, folder = stage("imported"), tmp_path / "worker"
    name = site.request_run()
    site.add(site.started(name))
    folder.mkdir()
    (folder / "state").write_bytes(b"state")
    context: Any = context_of(site)
    context.checkpoints, context.progress = Checkpoints(tmp_path / "home"), SimpleNamespace(publish=lambda *_: None)
    context.refresh = lambda: False

    def append(context: Any, body: RunCheckpointed) -> None:
        checkpoints.sweep(context)
        site.add(site.checkpointed(name, 2, checkpoint=body.checkpoint))

    monkeypatch.setattr(checkpoints, "append_with_retry", append)
    take_frame(context, name, folder, 1000, FRAME)
    assert context.checkpoints.read(digest_bytes(b"state")) == b"state"


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
