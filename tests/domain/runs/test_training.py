"""Checkpoints, resumes and replays: a run resumes only from a checkpoint of the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.domain.core.names import NO_DIGEST
from appliance.domain.core.records.runs import Run
from appliance.domain.data.artifacts import BaseQuarantined
from appliance.domain.runs.conditions import MOST_RESUMES
from appliance.domain.runs.control import Cancel, RunCancelled
from appliance.domain.runs.replays import TOLERANCE, ReplayFailed, compare_replay
from appliance.domain.runs.training import RunFailed, RunRequested, Train
from appliance.errors import Denied
from scripts.kit.log_builder import MACHINE, SANDBOX_PROBES, LogBuilder, stage
from tests.domain.audit.test_verify import verify
from tests.kit.refusals import refuses

RUN = "r-000001"
OTHER = MACHINE | {"threads": 1}


@pytest.fixture
def running() -> LogBuilder:
    """Return a run that has a training checkpoint after step 2."""
    site = stage("imported")
    site.request_run()
    site.add(site.started(RUN))
    site.add(site.checkpointed(RUN))
    return site


def run_of(site: LogBuilder) -> Run:
    run = site.state.runs.get(RUN)
    assert run is not None
    return run


def fail(site: LogBuilder) -> None:
    site.add(RunFailed(run=RUN, code="worker-ended", message=site.text("why")))


def test_a_checkpoint_is_of_a_running_run_and_steps_go_forward(running: LogBuilder) -> None:
    assert run_of(running).step == 2
    for step in (1, 2):
        with refuses(running, Denied, "step: expected one after 2"):
            running.add(running.checkpointed(RUN, step))
    running.add(running.checkpointed(RUN, 5))
    assert run_of(running).step == 5
    running.add(running.finished(RUN, steps=5))
    with refuses(running, Denied, "expected one that is running, got trained"):
        running.add(running.checkpointed(RUN, 6))


def test_a_run_continues_from_its_last_checkpoint_and_no_other(running: LogBuilder) -> None:
    running.add(running.checkpointed(RUN, 5))
    for step, fields in ((2, {}), (4, {}), (5, {"checkpoint": NO_DIGEST})):
        with refuses(running, Denied, "checkpoint: expected (5,"):
            running.add(running.resumed(RUN, step, **fields))
    running.add(running.resumed(RUN, 5))
    assert (run_of(running).status, run_of(running).resumes) == ("running", 1)


def test_a_run_without_a_checkpoint_is_not_resumed() -> None:
    site = stage("imported")
    site.request_run()
    site.add(site.started(RUN))
    with refuses(site, Denied, "checkpoint: expected None"):
        site.add(site.resumed(RUN))
    fail(site)
    with refuses(site, Denied, "Run r-000001 has no training checkpoint from which it can be resumed."):
        site.resume(RUN)


def test_nothing_continues_in_a_sandbox_that_a_probe_escaped(running: LogBuilder) -> None:
    with refuses(running, Denied, "through: tcp"):
        running.add(running.resumed(RUN, sandbox_probes=SANDBOX_PROBES | {"tcp": "open"}))
    with refuses(running, Denied, "layers: expected"):
        running.add(running.resumed(RUN, layers={"seccomp": False}, accepted_missing=("seccomp",)))


def test_a_run_continues_by_itself_only_so_often_and_an_order_counts_anew(running: LogBuilder) -> None:
    for _ in range(MOST_RESUMES):
        running.add(running.resumed(RUN))
    with refuses(running, Denied, "resumes: expected at most 3, got 4"):
        running.add(running.resumed(RUN))
    fail(running)
    running.resume(RUN)
    assert run_of(running).status == "queued"
    with refuses(running, Denied, "run: expected run.resumed, for one that has a training checkpoint"):
        running.add(running.started(RUN))
    running.add(running.resumed(RUN))
    assert run_of(running).resumes == 0


def test_a_trained_run_may_go_on_from_its_end(running: LogBuilder) -> None:
    """The service ended while the run was evaluated: its last checkpoint is the whole of it."""
    running.add(running.finished(RUN))
    running.add(running.resumed(RUN))
    assert run_of(running).status == "running"


@pytest.mark.parametrize(
    ("rows", "changes", "planned", "words"),
    [
        (8, {}, 2, ""),
        (8, {}, 1, "planned_steps: expected 2, got 1"),
        (9, {}, 2, "planned_steps: expected 3, got 2"),
        (8, {"epochs": 3}, 2, "planned_steps: expected 6, got 2"),
        (None, {}, 2, ""),
        (12, {"validation": "0.1", "eval_steps": 8}, 2, ""),
        (4, {"validation": "0.1", "eval_steps": 8}, 2, "planned_steps: expected at most 1, got 2"),
    ],
)
def test_a_run_has_the_steps_of_its_recipe(rows: int | None, changes: dict[str, Any], planned: int, words: str) -> None:
    """Otherwise a service could train less than was ordered. A dataset of older logs does not count its rows."""
    site = stage("staffed")
    site.import_base()
    site.import_dataset(facts={"rows": 20} | ({} if rows is None else {"train_rows": rows}))
    site.request_run(recipe=changes)
    site.add(site.started(RUN))
    site.add(site.checkpointed(RUN, planned))
    readings = ((planned, "1.0"),) if changes.get("eval_steps") else ()
    ending: dict[str, Any] = {"steps": planned, "validation": readings}
    if words:
        with refuses(site, Denied, words):
            site.add(site.finished(RUN, **ending))
    else:
        site.add(site.finished(RUN, **ending))
        assert verify(site).verdict == "verified"


READINGS = ((2, "3.0"), (4, "2.0"), (6, "2.5"), (8, "2.0"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"planned_steps": 8}, ""),
        ({"weights_step": 8}, "weights_step: expected 4, got 8"),
        ({"planned_steps": 7}, "validation: expected losses after the steps"),
        ({"validation": READINGS[:3]}, "validation: expected losses after the steps (2, 4, 6, 8)"),
        ({"validation": ()}, "validation: expected losses"),
        ({"validation": (*READINGS[:3], (8, "1.9")), "weights_step": 8}, "steps: expected 20, or validation losses"),
        ({"validation": ((2, "1.0"), *READINGS[1:]), "weights_step": 2}, "steps: expected an earlier end"),
    ],
)
def test_a_run_ends_early_only_where_its_validation_losses_say_so(fields: dict[str, Any], words: str) -> None:
    """Every verifier decides it again; which weights are sealed follows from the same losses."""
    site = stage("imported")
    changes = {"early_stopping": 2, "validation": "0.1", "eval_steps": 2}
    order = site.train_order("olga", changes)
    site.ordered(RunRequested(policy=site.in_force, run=RUN), order)
    site.add(site.started(RUN))
    site.add(site.checkpointed(RUN, 8))
    ending = {"steps": 8, "planned_steps": 20, "weights_step": 4, "validation": READINGS} | fields
    if words:
        with refuses(site, Denied, words):
            site.add(site.finished(RUN, **ending))
    else:
        site.add(site.finished(RUN, **ending))
        assert run_of(site).status == "trained"
        assert verify(site).verdict == "verified"


def test_without_early_stopping_a_run_goes_to_its_planned_end(running: LogBuilder) -> None:
    with refuses(running, Denied, "steps: expected 3, or validation losses that stop it, got 2"):
        running.add(running.finished(RUN, planned_steps=3))
    with refuses(running, Denied, "weights_step: expected 2, got 1"):
        running.add(running.finished(RUN, weights_step=1))
    with refuses(running, Denied, "validation: expected losses after the steps ()"):
        running.add(running.finished(RUN, validation=((2, "1.0"),)))


def test_an_adapter_is_sealed_with_the_steps_that_its_run_ended_with(running: LogBuilder) -> None:
    running.add(running.finished(RUN))
    body, documents = running.sealing(RUN, files={"steps.jsonl": b"others"})
    with refuses(running, Denied, "steps: expected sha256:"):
        running.add(body, documents=documents)


def test_a_failed_run_is_resumed_by_who_ordered_it_or_an_administrator(running: LogBuilder) -> None:
    with refuses(running, Denied, "Run r-000001 is running. Only a failed run can be resumed."):
        running.resume(RUN)
    fail(running)
    for name in ("ines", "rita", "otto", "audrey"):
        with refuses(running, Denied, "This action needs ", ". This action needs"):
            running.resume(RUN, name)
    for name in ("olga", "anna"):
        site = running.fork()
        site.resume(RUN, name)
        assert run_of(site).status == "queued"
    running.revoke("olga")
    running.resume(RUN, "anna")
    with refuses(stage("imported"), Denied, "There is no run r-000009."):
        stage("imported").resume("r-000009")


def test_a_base_in_quarantine_trains_nothing_again(running: LogBuilder) -> None:
    running.add(BaseQuarantined(base="smollm2", message=running.text("why")))
    fail(running)
    for act in (running.resume, running.replay):
        with refuses(running, Denied, "The files of base model smollm2 have changed on disk, so that entry 24 put"):
            act(RUN)


def quarantine(site: LogBuilder) -> None:
    site.add(BaseQuarantined(base="smollm2", message=site.text("why")))


def seal(site: LogBuilder) -> None:
    site.seal(RUN)


FALLS = [
    (LogBuilder.revoke_dataset, "was revoked by entry", "revoked"),
    (LogBuilder.revoke_base, "Base model smollm2 was revoked by entry", "revoked"),
    (quarantine, "have changed on disk, so that entry", "quarantined"),
]
ACTS: dict[str, tuple[Callable[[LogBuilder], Any], Callable[[LogBuilder], Any]]] = {
    "started": (lambda s: s.request_run(), lambda s: s.add(s.started(RUN))),
    "resumed after an order": (lambda s: (to_checkpoint(s), fail(s), s.resume(RUN)), lambda s: s.add(s.resumed(RUN))),
    "resumed by itself": (lambda s: to_checkpoint(s), lambda s: s.add(s.resumed(RUN))),
    "checkpointed": (lambda s: to_checkpoint(s), lambda s: s.add(s.checkpointed(RUN, 3))),
    "finished": (lambda s: to_checkpoint(s), lambda s: s.add(s.finished(RUN))),
    "resumed from its end": (lambda s: s.train(), lambda s: s.add(s.resumed(RUN))),
    "sealed": (lambda s: s.train(), seal),
}
"""What is done of a run, and how it came so far."""


def to_checkpoint(site: LogBuilder) -> None:
    site.request_run()
    site.add(site.started(RUN))
    site.add(site.checkpointed(RUN))


@pytest.mark.family(keep=8)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(("fall", "words", "code"), FALLS, ids=["dataset", "base", "quarantine"])
def test_once_base_or_dataset_has_fallen_a_run_has_no_entry_but_its_end(
    fall: Callable[[LogBuilder], Any], words: str, code: str, act: str
) -> None:
    """Wherever it was: nothing is trained on what was revoked, and nothing that was becomes an adapter."""
    before, then = ACTS[act]
    site = stage("imported")
    before(site)
    then(site.fork())
    fall(site)
    with refuses(site, Denied, words, code=code):
        then(site)
    cancelled = site.fork()
    cancelled.ordered(RunCancelled(policy=site.in_force), cancelled.order(Cancel, "olga", run=RUN))
    fail(site)
    for ended in (site, cancelled):
        assert verify(ended).verdict == "verified"
    if run_of(site).step:
        with refuses(site, Denied, words):
            site.resume(RUN)


def test_what_was_made_of_a_revoked_dataset_is_still_replayed_and_on_a_revoked_base_it_is_not() -> None:
    """The first proves what was made, and what it trains is thrown away."""
    site = stage("sealed")
    other = site.fork()
    site.revoke_dataset()
    site.add(site.replayed(site.replay(RUN)))
    assert next(iter(site.state.replays.values())).verdict == "identical"
    assert verify(site).verdict == "verified"
    other.revoke_base()
    with refuses(other, Denied, "Base model smollm2 was revoked by entry 26."):
        other.replay(RUN)


def test_a_run_is_replayed_whose_maker_has_taken_back_his_own_signature() -> None:
    site = stage("released")
    site.revoke_key("olga", since=run_of(site).index, signer="olga")
    site.add(site.replayed(site.replay(RUN)))
    assert next(iter(site.state.replays.values())).verdict == "identical"
    assert verify(site).verdict == "verified"


def test_no_run_ends_without_the_checkpoint_of_its_last_step(running: LogBuilder) -> None:
    """Otherwise what was sealed could not be replayed to its end."""
    for steps in (1, 3):
        with refuses(running, Denied, "steps: expected 2, of its last training checkpoint"):
            running.add(running.finished(RUN, steps=steps))


def test_a_log_with_all_of_this_is_verified_and_folds_to_the_same_state() -> None:
    site = stage("replayed")
    report = verify(site)
    assert (report.verdict, report.counts.entries) == ("verified", len(site.entries))
    assert [replay.status for replay in site.state.replays.values()] == ["finished", "failed"]


# Replays.


def test_a_window_is_replayed_by_an_auditor_alone(running: LogBuilder) -> None:
    for name in ("olga", "anna", "rita", "legal"):
        with refuses(running, Denied, "This action needs auditor"):
            running.replay(RUN, signer=name)
    running.replay(RUN)
    (replay,) = running.state.replays.values()
    assert (replay.run, replay.signer, replay.status, replay.verdict) == (RUN, "audrey", "requested", None)


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ((0, 3), "Run r-000001 has no training checkpoint of step 3."),
        ((1, 2), "Run r-000001 has no training checkpoint of step 1."),
        ((2, 2), "A replay goes forward. The order names the steps 2 to 2."),
        ((5, 2), "A replay goes forward. The order names the steps 5 to 2."),
    ],
)
def test_a_window_begins_and_ends_where_a_checkpoint_was_recorded(
    running: LogBuilder, window: tuple[int, int], words: str
) -> None:
    with refuses(running, Denied, words):
        running.replay(RUN, *window)


def test_a_replay_of_no_run_is_refused() -> None:
    site = stage("imported")
    with refuses(site, Denied, "There is no run r-000009."):
        site.replay("r-000009")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"expected": NO_DIGEST, "got": NO_DIGEST}, "expected: expected sha256:"),
        ({"got": NO_DIGEST}, "verdict: expected different, got identical"),
        ({"verdict": "within-tolerance"}, "verdict: expected identical"),
        ({"verdict": "different"}, "verdict: expected identical"),
        ({"got": NO_DIGEST, "verdict": "within-tolerance"}, "verdict: expected different"),
        ({"to_step": 3}, "steps: expected (0, 2), got (0, 3)"),
        ({"run": "r-000002"}, "run: expected r-000001"),
        ({"sandbox_probes": {}}, "sandbox_probes: expected the worker's probes"),
        ({"order": NO_DIGEST}, "expected one under way, got none"),
    ],
)
def test_a_verdict_is_what_the_digests_say(fields: dict[str, Any], words: str) -> None:
    site = stage("sealed")
    requested = site.replay(RUN)
    with refuses(site, Denied, words):
        site.add(site.replayed(requested, **fields))


def test_a_replay_ends_once() -> None:
    site = stage("sealed")
    requested = site.replay(RUN)
    failed = ReplayFailed(
        order=requested.subjects[0].removeprefix("order:"), run=RUN, code="x", message=site.text("why")
    )
    other = site.fork()
    other.add(failed)
    site.add(site.replayed(requested))
    assert next(iter(site.state.replays.values())).verdict == "identical"
    for again in (site, other):
        with refuses(again, Denied, "expected one under way, got f"):
            again.add(again.replayed(requested))
        with refuses(again, Denied, "expected one under way, got f"):
            again.add(failed)


@pytest.mark.parametrize(
    ("machine", "difference", "verdict"),
    [
        (OTHER, TOLERANCE, "within-tolerance"),
        (OTHER, "0.020000000001", "different"),
        (OTHER, None, "different"),
        (MACHINE, "0.000000000001", "different"),
    ],
)
def test_a_tolerance_is_only_for_another_kind_of_hardware(
    machine: dict[str, Any], difference: str | None, verdict: Any
) -> None:
    assert compare_replay("a", "b", recorded=MACHINE, machine=machine, largest_difference=difference) == verdict
    assert compare_replay("a", "a", recorded=MACHINE, machine=machine, largest_difference=difference) == "identical"
    site = stage("sealed")
    fields = {"got": NO_DIGEST, "machine": machine, "largest_difference": difference}
    site.add(site.replayed(site.replay(RUN), verdict=verdict, **fields))


def test_a_recipe_that_would_write_too_many_checkpoints_is_refused_whoever_signed_it() -> None:
    site = stage("imported")
    dataset = site.state.datasets.get("clauses@1")
    assert dataset is not None
    site.state.datasets.set("clauses@1", dataset.model_copy(update={"facts": {"train_rows": 1000}}))
    order = site.train_order("olga", {"save_steps": 1})
    with refuses(site, Denied, "save_steps: expected at least 4, for at most 64 training checkpoints"):
        site.ordered(RunRequested(policy=site.in_force, run=RUN), order)
    assert isinstance(order, Train)
