"""Interrupted training resumes to the same bytes, and an auditor can have any window of it trained again.

Each run is long enough to be killed in its middle; it must end in the bytes of the uninterrupted run `whole`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from appliance.domain.runs.control import Resume
from appliance.domain.runs.replays import TOLERANCE, ReplayRun
from appliance.formats.core.canonical import parse_canonical
from scripts.kit.appliance import Appliance, Refused
from scripts.kit.warm import find_workers
from tests.attacks.stopping import arm, await_death, await_held, await_that, die, disarm, held, hold, let_go
from tests.attacks.test_kill import check_whole, copy_of, count, end

LONG = {"epochs": 40, "batch_size": 8, "save_steps": 20, "dropout": "0.1"}
STEPS = (20, 40, 60, 80, 100, 120)
TRAIN = "appliance.worker.train"
CHECKPOINTED = "after:run.checkpointed"
"""The first training checkpoint is recorded, and the worker cannot go on to the end."""
pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def shared(golden: Appliance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    site = copy_of(golden, tmp_path_factory.mktemp("t"))
    assert site.train("whole", **LONG)["adapter"] == "whole@1"
    yield site
    end(site)


@pytest.fixture
def deployment(shared: Appliance) -> Appliance:
    disarm(shared)
    let_go(shared)
    if shared.service is None or shared.service.poll() is not None:
        shared.start()
    return shared


def run_named(site: Appliance, name: str) -> dict[str, Any]:
    return next(dict(run) for run in site.get("/v1/runs") if run["name"] == name)


def weights(site: Appliance, name: str) -> str:
    return str(run_named(site, name)["weights"])


def start(site: Appliance, name: str) -> str:
    return str(site.order(site.train_order(name, **LONG))["result"]["run"])


def bodies(site: Appliance, type_: str, run: str) -> list[dict[str, Any]]:
    return [entry["body"] for entry in site.entries(type=type_, subject=f"run:{run}")]


def kill_worker(site: Appliance) -> None:
    assert site.service is not None
    os.kill(find_workers(site.service.pid, TRAIN)[-1], signal.SIGKILL)


def spoil(site: Appliance, digest: str) -> None:
    path = site.home / "checkpoints" / digest.removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def digests(site: Appliance) -> dict[int, str]:
    """Return the values of the uninterrupted run by step."""
    run = run_named(site, "whole")["id"]
    return {one["step"]: one["digest"] for one in site.get(f"/v1/runs/{run}/checkpoints")}


def texts(site: Appliance, entry_type: str) -> str:
    """Return the message behind the commitment of the last entry of this type."""
    index = site.entries(type=entry_type)[-1]["index"]
    shown = site.get(f"/v1/ledger/{index}", "axel")["disclosures"]
    return str(shown[0]["text"])


# --- going on ---------------------------------------------------------------------------------------------------------


def test_every_checkpoint_is_recorded_and_kept_under_its_digest(deployment: Appliance) -> None:
    run = run_named(deployment, "whole")
    made = deployment.get(f"/v1/runs/{run['id']}/checkpoints")
    assert tuple(one["step"] for one in made) == STEPS
    assert run["step"] == STEPS[-1]
    kept = set(os.listdir(deployment.home / "checkpoints"))
    assert {one["digest"].removeprefix("sha256:") for one in made} <= kept
    assert made[0]["machine"].keys() >= {"device", "device_name", "threads", "torch"}


def test_a_killed_worker_is_followed_by_another_that_ends_in_the_same_bytes(deployment: Appliance) -> None:
    with held(deployment, CHECKPOINTED):
        run = start(deployment, "killed")
        await_held(deployment)
        kill_worker(deployment)
    assert deployment.wait_run(run)["adapter"] == "killed@1"
    (resumed,) = bodies(deployment, "run.resumed", run)
    made = {one["step"]: one["checkpoint"] for one in bodies(deployment, "run.checkpointed", run)}
    assert resumed["checkpoint"] == made[resumed["step"]]
    assert tuple(made) == STEPS
    assert weights(deployment, "killed") == weights(deployment, "whole")
    # ... and an auditor has it trained again over the place where it was cut off.
    assert replay(deployment, "killed", (0, STEPS[-1]))["verdict"] == "identical"
    check_whole(deployment)


@pytest.mark.parametrize("killed", ["worker", "service"])
def test_a_run_that_is_cut_off_before_its_first_checkpoint_begins_again(deployment: Appliance, killed: str) -> None:
    order = deployment.train_order(f"early-{killed}", **{**LONG, "save_steps": 120})
    with held(deployment, "before:step"):
        run = str(deployment.order(order)["result"]["run"])
        await_held(deployment)
        hold(deployment, "before:step")
        await_held(deployment)  # one step is recorded
        if killed == "worker":
            kill_worker(deployment)
        else:
            deployment.kill()
    if killed == "service":
        deployment.start()
    assert deployment.wait_run(run)["adapter"], bodies(deployment, "run.failed", run)
    assert (len(bodies(deployment, "run.started", run)), bodies(deployment, "run.resumed", run)) == (2, [])
    assert weights(deployment, f"early-{killed}") == weights(deployment, "whole")
    check_whole(deployment)


def test_after_three_resumes_it_failed_and_an_order_continues_to_the_same_bytes(deployment: Appliance) -> None:
    with held(deployment, CHECKPOINTED):
        run = start(deployment, "stubborn")
        for resumes in range(4):
            await_held(deployment)
            assert deployment.get(f"/v1/runs/{run}")["resumes"] == resumes
            kill_worker(deployment)
            hold(deployment, "after:run.resumed")
    assert deployment.wait_run(run)["status"] == "failed"
    assert bodies(deployment, "run.failed", run)[-1]["code"] == "worker-ended"
    with pytest.raises(Refused) as refused:
        deployment.order(Resume(run=run, **deployment.terms("axel")))
    assert refused.value.status == 403
    envelope = deployment.sign(Resume(run=run, **deployment.terms("olga")))
    for side in ("before", "after"):
        with suppress(httpx.TransportError):
            arm(deployment, f"{side}:resume.requested")
            deployment.send(envelope)
        await_death(deployment)
        deployment.start()
        assert count(deployment, "resume.requested") == (side == "after")
    ended = deployment.wait_run(run)
    assert ended["adapter"] == "stubborn@1", (ended, bodies(deployment, "run.failed", run), deployment.log()[-2000:])
    assert weights(deployment, "stubborn") == weights(deployment, "whole")
    check_whole(deployment)


@pytest.mark.family(keep=1)
@pytest.mark.parametrize("when", ["before:run.checkpointed", "within:run.checkpointed", "before:run.started"])
def test_a_service_that_dies_before_the_first_checkpoint_begins_anew(deployment: Appliance, when: str) -> None:
    """A checkpoint that is not in the ledger is not used, whatever is on the disk."""
    name = when.replace(":", "-").replace(".", "-")
    arm(deployment, when)
    run = start(deployment, name)
    await_death(deployment)
    deployment.start()
    assert deployment.wait_run(run)["status"] == "sealed"
    named = {one["checkpoint"] for entry in deployment.entries(type="run.checkpointed") for one in [entry["body"]]}
    assert {f"sha256:{name}" for name in os.listdir(deployment.home / "checkpoints")} <= named
    check_whole(deployment)


@pytest.mark.essential
@pytest.mark.family(keep=1)
@pytest.mark.parametrize("when", ["after:run.checkpointed", "before:run.finished", "after:run.finished"])
def test_a_service_that_dies_later_continues_at_its_next_start_to_the_same_bytes(
    deployment: Appliance, when: str
) -> None:
    name = when.replace(":", "-").replace(".", "-")
    arm(deployment, when)
    run = start(deployment, name)
    await_death(deployment)
    if when.startswith("after:run.checkpointed"):
        # ... and dies on both sides of the entry that says that it went on.
        for side in ("before", "after"):
            arm(deployment, f"{side}:run.resumed")
            deployment.start(wait=False)
            await_death(deployment)
    deployment.start()
    assert deployment.wait_run(run)["adapter"] == f"{name}@1"
    assert weights(deployment, name) == weights(deployment, "whole")
    assert len(bodies(deployment, "run.resumed", run)) == (2 if "checkpointed" in when else 1)
    check_whole(deployment)


def test_a_service_that_ends_leaves_its_run_to_the_next_start(deployment: Appliance) -> None:
    with held(deployment, CHECKPOINTED):
        run = start(deployment, "evening")
        await_held(deployment)
        terminate(deployment)
    deployment.stop()
    deployment.start()
    told = deployment.get(f"/v1/runs/{run}/progress", wait_s=5)["frames"]
    assert [frame["step"] for frame in told if frame["frame"] == "step"][:20] == list(range(1, 21)), "those before"
    ended = deployment.wait_run(run)
    assert ended["adapter"] == "evening@1", ended
    assert not bodies(deployment, "run.failed", run)
    assert weights(deployment, "evening") == weights(deployment, "whole")
    assert untimed(deployment, run) == untimed(deployment, run_named(deployment, "whole")["id"])


def terminate(site: Appliance) -> None:
    """Tell the service to end, and wait until it has begun to: its workers are ended."""
    assert site.service is not None
    site.service.send_signal(signal.SIGTERM)
    await_that(site, lambda: not find_workers(site.service.pid, TRAIN))


def untimed(site: Appliance, run: str) -> list[dict[str, Any]]:
    """Return a run's recorded steps without what differs from one time to the next."""
    lines = [parse_canonical(line) for line in site.get(f"/v1/runs/{run}/steps").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "peak_bytes")} for line in lines]


def test_nothing_is_trained_on_a_checkpoint_whose_bytes_are_others(own: Appliance) -> None:
    """By itself or by an order. The same recipe makes the same bytes, so that its digest is that of `whole`."""
    digest = digests(own)[20]
    arm(own, "after:run.checkpointed")
    run = start(own, "spoiled")
    await_death(own)
    spoil(own, digest)
    own.start()
    assert own.wait_run(run)["status"] == "failed"
    assert bodies(own, "run.failed", run)[-1]["code"] == "tampered"
    assert f"training checkpoint {digest}: expected these bytes" in texts(own, "run.failed")
    own.order(Resume(run=run, **own.terms("anna")))
    assert own.wait_run(run)["status"] == "failed"
    assert not bodies(own, "run.resumed", run)
    assert any(digest in text for text in own.verify()["local_findings"])


# --- replays ----------------------------------------------------------------------------------------------------------


def replay_order(site: Appliance, name: str, window: tuple[int, int], who: str = "axel") -> ReplayRun:
    run = run_named(site, name)["id"]
    return ReplayRun(run=run, from_step=window[0], to_step=window[1], **site.terms(who))


def await_replay(site: Appliance, order: str) -> dict[str, Any]:
    while (found := site.get(f"/v1/replays/{order}", "axel", wait_s=5))["status"] == "requested":
        continue
    return dict(found)


def replay(site: Appliance, name: str, window: tuple[int, int]) -> dict[str, Any]:
    return await_replay(site, site.order(replay_order(site, name, window))["order"])


@pytest.mark.family(keep=1)
@pytest.mark.parametrize("window", [(0, 20), (60, 100)])
def test_a_window_trained_again_is_identical(deployment: Appliance, window: tuple[int, int]) -> None:
    assert replay(deployment, "whole", window)["verdict"] == "identical"
    body = deployment.entries(type="replay.finished")[-1]["body"]
    assert (body["from_step"], body["to_step"]) == window
    assert body["got"] == body["expected"]
    assert body["largest_difference"] == "0.0"
    check_whole(deployment)


def test_an_operator_evaluates_no_run(deployment: Appliance) -> None:
    with pytest.raises(Refused) as refused:
        deployment.order(replay_order(deployment, "whole", (0, 20), "olga"))
    assert refused.value.status == 403
    with pytest.raises(Refused) as refused:
        deployment.order(replay_order(deployment, "whole", (0, 21)))
    assert any("no training checkpoint of step 21" in str(reason) for reason in refused.value.reasons)


@pytest.mark.family(keep=1)
@pytest.mark.parametrize("type_", ["replay.requested", "replay.finished"])
def test_a_replay_that_was_cut_off_is_made_again(deployment: Appliance, type_: str) -> None:
    known = count(deployment, "replay.finished")
    for side in ("before", "after"):
        envelope = deployment.sign(replay_order(deployment, "whole", (0, 20)))
        arm(deployment, f"{side}:{type_}")
        with suppress(httpx.TransportError):
            deployment.send(envelope)
        await_death(deployment)
        deployment.start()
        if (side, type_) != ("before", "replay.requested"):
            replayed = await_replay(deployment, envelope.pae_digest)
            assert replayed["verdict"] == "identical", (replayed, deployment.log()[-2000:])
            known += 1
        assert count(deployment, "replay.finished") == known
    check_whole(deployment)


@pytest.mark.family(keep=1)
@pytest.mark.parametrize("step", [20, 40])
def test_a_tampered_checkpoint_is_found_before_anything_runs(own: Appliance, step: int) -> None:
    """Whichever end of the window it is."""
    made, logs = digests(own), sorted(Path(own.settings.logs).iterdir())
    spoil(own, made[step])
    for side in ("before", "after"):
        envelope = own.sign(replay_order(own, "whole", (20, 40)))
        die(own, f"{side}:replay.failed", lambda sent=envelope: own.send(sent))  # type: ignore[misc]
        assert await_replay(own, envelope.pae_digest)["status"] == "failed"
    assert made[step] in texts(own, "replay.failed")
    assert own.entries(type="replay.failed")[-1]["body"]["code"] == "tampered"
    assert sorted(Path(own.settings.logs).iterdir()) == logs, "a worker that is started has a log"


@pytest.mark.outside
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="there is no older instruction set")
def test_another_kind_of_machine_is_held_to_the_tolerance(own: Appliance) -> None:
    """Other bits, and a machine that is not the recorded one: a third worker measures how far they are apart."""
    own.train("fine", epochs=12, batch_size=8, save_steps=1, compute_dtype="float32")
    own.stop()
    own.launcher = (str(Path(__file__).with_name("elsewhere.py")),)
    own.start()
    for name, window, verdict in (("fine", (30, 31), "within-tolerance"), ("whole", (0, 20), "different")):
        assert replay(own, name, window)["verdict"] == verdict
        body = own.entries(type="replay.finished")[-1]["body"]
        assert body["got"] != body["expected"]
        assert float(body["largest_difference"]) > 0
        assert (float(body["largest_difference"]) <= float(TOLERANCE)) == (verdict == "within-tolerance")
    assert own.verify()["verdict"] == "verified"


@pytest.fixture
def own(deployment: Appliance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """Yield a copy of the deployment, for tests that damage it."""
    deployment.stop()
    site = copy_of(deployment, tmp_path_factory.mktemp("o"))
    deployment.start()
    yield site
    end(site)
