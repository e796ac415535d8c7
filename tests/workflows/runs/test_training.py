"""A run's worker starts only for a valid order, with a valid base and dataset."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.api.runs import WorkError
from appliance.domain.actions.apply import apply
from appliance.domain.core.entry import Entry, EntryDraft, encode_entry, parse_entry
from appliance.domain.data.artifacts import BaseQuarantined
from appliance.domain.data.imports import ImportRequested
from appliance.domain.runs.conditions import MOST_RESUMES
from appliance.domain.runs.training import RunFailed, RunRequested
from appliance.errors import ApplianceError, Denied, NotAuthenticated, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.store.ledger.writer import propose
from appliance.workflows.core.jobs import ItemsInProgress
from appliance.workflows.core.progress import Progress
from appliance.workflows.core.retry import check_run_valid, stop_withdrawn_runs
from appliance.workflows.data.imports import checked_base
from appliance.workflows.integrity import quarantine_base
from appliance.workflows.lifecycle import recovery as recover
from appliance.workflows.queries.work import run_progress
from appliance.workflows.runs import train
from scripts.kit.log_builder import LogBuilder, manifest, stage
from tests.kit.one_process import one_process

RUN = "r-000001"


class Worker:
    """A worker that only records if it was killed."""

    killed = False

    def end(self) -> None:
        self.killed = True


def context_of(site: LogBuilder, *keys: str) -> Any:
    """With a living worker under each key; `recorded`: what was appended, under the rules."""
    recorded: list[Entry] = []

    def append_all(drafts: Sequence[EntryDraft], guard: None = None) -> list[Any]:
        for draft in drafts:
            entry = propose(draft, site.state, site.now)
            apply(site.state, entry, draft.documents)
            recorded.append(parse_entry(encode_entry(entry)))
        return [SimpleNamespace(entry=entry) for entry in recorded[-len(drafts) :]]

    def documents_of(index: int) -> dict[str, bytes]:
        bound = parse_entry(site.entries[index]).documents
        return {role: site.documents[digest] for role, digest in bound.items()}

    return SimpleNamespace(
        **one_process(),
        ledger=SimpleNamespace(state=site.state, append_all=append_all, documents_of=documents_of),
        appended=lambda *_: None,
        recheck_answers=lambda: None,
        artifacts=SimpleNamespace(check=lambda _: None, path=lambda digest: digest, quarantine=lambda _: None),
        progress=Progress(),
        workers={key: Worker() for key in keys},
        recorded=recorded,
    )


def failed_with(context: Any) -> list[tuple[str, str]]:
    return [(entry.body["run"], entry.body["code"]) for entry in context.recorded if entry.type == "run.failed"]


def running() -> LogBuilder:
    site = stage("imported")
    site.request_run()
    site.add(site.started(RUN))
    site.add(site.checkpointed(RUN))
    return site


def quarantine(site: LogBuilder) -> None:
    site.add(BaseQuarantined(base="smollm2", message=site.text("why")))


FALLS = [(LogBuilder.revoke_dataset, "revoked"), (LogBuilder.revoke_base, "revoked"), (quarantine, "quarantined")]


@pytest.mark.parametrize(("fall", "code"), FALLS)
def test_before_a_worker_starts_base_and_dataset_are_asked_for(fall: Callable[[LogBuilder], Any], code: str) -> None:
    site = running()
    context, run = context_of(site), site.state.runs.get(RUN)
    assert run is not None
    check_run_valid(context, run)
    fall(site)
    with pytest.raises(Denied) as refused:
        check_run_valid(context, run)
    assert refused.value.code == code
    places: Any = None
    with pytest.raises(Denied, match=f"run {RUN}: "):
        train._train_on(context, RUN, site.train_order(), places)


@pytest.mark.family(keep=5)
@pytest.mark.parametrize(("fall", "code"), FALLS)
@pytest.mark.parametrize(
    "error",
    [
        Unavailable("worker: expected a result, got its end", code="worker-ended"),
        Unavailable("worker 7: expected its sandbox probes first, got the end"),
        Denied("entry 40 (run.checkpointed)"),
        Unavailable("run, disk: expected it to work, got no such folder", code="disk"),
    ],
)
def test_a_run_whose_worker_was_ended_fails_with_the_reason(
    fall: Callable[[LogBuilder], Any], code: str, error: ApplianceError
) -> None:
    site = running()
    fall(site)
    context = context_of(site)
    train._fail(context, RUN, error)
    assert failed_with(context) == [(RUN, code)]
    failed = context.progress.read(RUN).error
    assert failed is not None and failed.code == code


@pytest.mark.parametrize("queued", [True, False])
@pytest.mark.parametrize("ends", [True, False])
def test_a_run_whose_start_the_end_of_the_service_interrupts_is_left_to_the_next_start(
    monkeypatch: pytest.MonkeyPatch, queued: bool, ends: bool
) -> None:
    site = stage("imported") if queued else running()
    if queued:
        site.request_run()
    context = context_of(site)
    context.items_in_progress, context.closing = ItemsInProgress(), threading.Event()

    def killed(*_: Any) -> str:
        if ends:
            context.closing.set()
        raise Unavailable("worker 7: expected its sandbox probes first, got the end")

    monkeypatch.setattr(train, "_train_and_seal", killed)
    for name in ("places.release", "checkpoints.sweep", "steps.sweep"):
        monkeypatch.setattr(f"appliance.workflows.runs.train.{name}", lambda *_: None)
    before = site.state.runs.get(RUN)
    train.execute_run(context, RUN)
    assert failed_with(context) == ([] if ends else [(RUN, "unavailable")])
    assert not ends or site.state.runs.get(RUN) == before


def test_a_run_that_was_resumed_as_often_as_it_may_is_recorded_as_interrupted_by_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its worker was killed by the end of the service, and not because memory ran out."""
    site = stage("imported")
    site.request_run()
    for _ in range(1 + MOST_RESUMES):
        site.add(site.started(RUN))
    context, run = context_of(site), site.state.runs.get(RUN)
    assert run is not None
    context.closing = threading.Event()

    def killed(*_: Any) -> str:
        context.closing.set()
        raise Unavailable("worker: expected a result, got its end by signal 9", code="worker-ended")

    monkeypatch.setattr(train, "_train_and_seal", killed)
    train._run_to_end(context, run)
    assert failed_with(context) == []
    (draft,) = recover._runs_left(site.state)
    assert isinstance(draft.body, RunFailed) and draft.body.code == "interrupted"


def test_followers_of_a_failed_run_learn_of_its_end_with_the_reason() -> None:
    """Between the entry and the published reason a follower still waits."""
    site = running()
    context = context_of(site)
    context.items_in_progress, context.progress = ItemsInProgress(), Followed(context)
    assert context.items_in_progress.take(RUN)
    train._fail(context, RUN, Unavailable("worker: expected a result, got its end", code="worker-ended"))
    context.items_in_progress.leave(RUN)
    assert context.progress.seen_before == ("failed", False, None)
    seen = run_progress(context, RUN, 0)
    assert (seen.status, seen.ended, seen.detail) == ("failed", True, "worker: expected a result, got its end")


class Followed(Progress):
    """Progress whose follower looks just before the reason is published."""

    def __init__(self, context: Any) -> None:
        super().__init__()
        self.context = context
        self.seen_before: tuple[str, bool, str | None] | None = None

    def end(self, key: str, *, result: Any = None, error: WorkError | None = None) -> None:
        seen = run_progress(self.context, key, 0)
        self.seen_before = seen.status, seen.ended, seen.detail
        super().end(key, result=result, error=error)


def test_a_run_that_found_changed_bytes_fails_with_that() -> None:
    site = running()
    quarantine(site)
    context = context_of(site)
    train._fail(context, RUN, Tampered("artifact: expected these bytes, got others"))
    assert failed_with(context) == [(RUN, "tampered")]


def test_the_workers_of_the_runs_concerned_are_ended_and_no_others() -> None:
    """Whichever stage they are in; imports and replays have workers too."""
    site = running()
    requested = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order())
    body = site.dataset_imported(requested, dataset="clauses@2")
    site.add(body, documents={"manifest": manifest("clauses", 2, {"rows": b"rows"})})
    second = site.state.datasets.get("clauses@2")
    assert second is not None
    order = site.train_order("olga", {"dataset": "clauses@2"}, dataset_digest=second.digest)
    site.ordered(RunRequested(policy=site.in_force, run="r-000002"), order)
    keys = (RUN, f"{RUN}:evaluate", "r-000002", "replay-0123456789abcdef", digest_bytes(b"import"))
    context = context_of(site, *keys)
    stop_withdrawn_runs(context)
    assert not any(worker.killed for worker in context.workers.values())
    site.revoke_dataset()
    stop_withdrawn_runs(context)
    assert [worker.killed for worker in context.workers.values()] == [True, True, False, False, False]
    site.revoke_base()
    stop_withdrawn_runs(context)
    assert context.workers["r-000002"].killed


def test_a_base_that_goes_into_quarantine_ends_the_workers_on_it() -> None:
    site = running()
    context, base = context_of(site, RUN), site.state.bases.get("smollm2")
    assert base is not None
    quarantine_base(context, base, "expected these bytes, got others")
    assert context.workers[RUN].killed


def test_nothing_new_begins_on_a_revoked_base() -> None:
    """A calibration, an import of rows and a replay have their base from here."""
    site = running()
    context = context_of(site)
    checked_base(context, "smollm2")
    site.revoke_base()
    with pytest.raises(Denied, match=r"Base model smollm2 was revoked by entry 24\."):
        checked_base(context, "smollm2")


@pytest.mark.parametrize(
    ("fall", "code"), [*FALLS, (lambda site: None, "interrupted")], ids=["dataset", "base", "quarantine", "nothing"]
)
def test_a_start_says_why_a_run_does_not_go_on(fall: Callable[[LogBuilder], Any], code: str) -> None:
    """One that began again as often as it may does not; its reason is the fall, where there was one."""
    site = stage("imported")
    site.request_run()
    for _ in range(1 + MOST_RESUMES):
        site.add(site.started(RUN))
    fall(site)
    (draft,) = recover._runs_left(site.state)
    assert isinstance(draft.body, RunFailed)
    assert draft.body.code == code


def test_a_replay_reads_the_order_of_a_run_whose_key_was_taken_back_since_and_no_run_does() -> None:
    """Otherwise whoever ordered it could hide what it made, and its adapter would continue to serve."""
    site = stage("released")
    context, run = context_of(site), site.state.runs.get(RUN)
    assert run is not None
    order = train.train_order(context, run)
    site.revoke_key("olga", since=run.index, signer="olga")
    with pytest.raises(NotAuthenticated, match="expected a key that counts there"):
        train.train_order(context, run)
    assert train.train_order(context, run, replayed=True) == order


def test_a_replay_believes_no_order_that_its_signer_did_not_sign() -> None:
    site = stage("sealed")
    context, run = context_of(site), site.state.runs.get(RUN)
    assert run is not None
    bound = parse_entry(site.entries[run.index]).documents["order"]
    envelope = site.documents[bound]
    site.documents[bound] = envelope.replace(b'"sig":"', b'"sig":"AAAA')
    with pytest.raises(ApplianceError):
        train.train_order(context, run, replayed=True)
