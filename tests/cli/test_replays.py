"""Commands of training checkpoints: resume, checkpoints, replay; and a verdict as an exit code."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from appliance.domain.core.entry import Event, parse_entry
from appliance.domain.core.names import NO_DIGEST
from appliance.domain.runs.replays import ReplayFailed, ReplayFinished
from appliance.domain.runs.training import RunFailed
from tests.cli.conftest import Desk

COMMITMENT = "hmac-sha256:" + "0" * 64
Bend = Callable[[ReplayFinished], Event]


def failed(code: str) -> Bend:
    return lambda body: ReplayFailed(order=body.order, run=body.run, code=code, message=COMMITMENT)


def different(body: ReplayFinished) -> Event:
    return body.model_copy(update={"got": NO_DIGEST, "verdict": "different"})


def evaluate(desk: Desk, bend: Bend = lambda body: body) -> None:
    """Finish each ordered replay at once, with this verdict."""

    def replayed(order: str) -> None:
        row = desk.site.state.replays.get(order)
        if row is not None:
            requested = parse_entry(desk.site.entries[row.index])
            desk.site.add(bend(desk.site.replayed(requested, row.run)))
            desk.service.context.progress.end(order)

    desk.service.work = replayed


def test_a_failed_run_is_resumed_and_a_window_of_it_is_replayed(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("trained")
    evaluate(desk)
    desk.site.add(RunFailed(run="r-000001", code="worker-ended", message=desk.site.text("it was killed")))
    refused = desk.as_("olga", "run", "replay", "r-000001", "--from", "0", "--to", "100", "--yes")
    assert (refused.code, "olga is operator. This action needs auditor" in refused.err) == (3, True)
    told = desk.as_("olga", "run", "resume", "r-000001", "--yes")
    assert told.code == 0, told.err
    assert "The run continues from its last training checkpoint" in told.err
    assert "queued" in desk.as_("olga", "run", "list").out
    listed = desk.as_("audrey", "run", "checkpoints", "r-000001")
    assert listed.out.split()[4:6] == ["100", str(desk.site.state.training_checkpoints.values()[0].index)]
    told = desk.as_("audrey", "run", "replay", "r-000001", "--from", "0", "--to", "100", "--yes", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["verdict"] == "identical"


def test_a_window_whose_beginning_was_swept_is_refused_before_it_is_recorded(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    site = desk.site
    run = site.request_run()
    site.add(site.started(run))
    for step in (2, 4):
        site.add(site.checkpointed(run, step))
    site.add(RunFailed(run=run, code="worker-ended", message=site.text("it was killed")))
    told = desk.as_("audrey", "run", "replay", run, "--from", "2", "--to", "4", "--yes")
    assert told.code == 4
    assert "its retention has ended" in told.err and "begins at 0" in told.err
    assert site.state.replays.values() == ()


@pytest.mark.parametrize(
    ("bend", "code", "words"),
    [
        (different, 6, "r-000001, step 100: expected sha256:"),
        (failed("tampered"), 6, "no verdict: see the log"),
        (failed("worker-ended"), 7, "no verdict: see the log"),
    ],
)
def test_a_replay_that_is_not_identical_fails_the_command(
    open_desk: Callable[[str], Desk], bend: Bend, code: int, words: str
) -> None:
    desk = open_desk("trained")
    evaluate(desk, bend)
    told = desk.as_("audrey", "run", "replay", "r-000001", "--from", "0", "--to", "100", "--yes")
    assert (told.code, words in told.err) == (code, True), told.err
