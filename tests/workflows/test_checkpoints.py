"""Which training checkpoints are kept: all that a run under way or a replay may need, and no more of the past."""

from __future__ import annotations

from appliance.domain import events as e
from appliance.domain import orders as o
from appliance.formats.digest import digest_bytes
from appliance.workflows.checkpoints import REPLAYABLE_RUNS, kept
from tests.domain.builder import Site, stage


def run(site: Site, end: str) -> str:
    """A run with one checkpoint of its own, and how it ended."""
    name = site.request_run()
    site.add(site.started(name))
    site.add(site.checkpointed(name, 2, checkpoint=digest_bytes(name.encode())))
    if end == "failed":
        site.add(e.RunFailed(run=name, code="x", message=site.text("why")))
    if end == "cancelled":
        site.ordered(e.RunCancelled(policy=site.in_force), site.order(o.Cancel, "olga", run=name))
    return name


def kept_of(site: Site, names: list[str]) -> list[str]:
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
