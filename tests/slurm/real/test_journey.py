"""A run on a real Slurm, from the order to an approved adapter, through all that a cluster does to a job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.runs.conditions import UNDER_WAY
from appliance.domain.runs.control import Cancel
from appliance.domain.runs.replays import ReplayRun
from scripts.kit.appliance import Appliance
from scripts.kit.slurm import Slurm
from scripts.kit.waiting import wait_for
from tests.kit.holding import count_held, remove_hold, write_hold

pytestmark = [pytest.mark.outside, pytest.mark.timeout(900)]

LONG = {"epochs": 100, "batch_size": 8, "save_steps": 150, "dropout": "0.1"}
STEPS = 300
SHORT = {"epochs": 60, "batch_size": 8, "save_steps": 90, "dropout": "0.1"}
SHORT_STEPS = 180


def order(site: Appliance, name: str, nodes: int = 1, recipe: dict[str, Any] = LONG) -> str:
    made = site.train_order(name, **recipe, processes=nodes).model_copy(update={"on": "slurm", "nodes": nodes})
    return str(site.order(made)["result"]["run"])


def await_run(site: Appliance, run: str, what: str, fact: Callable[[], bool]) -> None:
    """Wait until the fact is true of a run that continues. A failed run ends the wait."""

    def is_shown() -> bool:
        found = site.get(f"/v1/runs/{run}")
        assert found["status"] in UNDER_WAY, found
        return fact()

    wait_for(is_shown, what)


def bodies(site: Appliance, type_: str, run: str) -> list[dict[str, Any]]:
    return [entry["body"] for entry in site.entries(type=type_, subject=f"run:{run}")]


def steps_of(site: Appliance, run: str) -> int:
    """Return the last step that the worker reported."""
    frames = site.get(f"/v1/runs/{run}/progress", after=0, wait_s=0)["frames"]
    return max((int(frame["step"]) for frame in frames if frame["frame"] == "step"), default=0)


def job_of(site: Appliance, run: str, type_: str = "run.started") -> dict[str, Any]:
    return dict(bodies(site, type_, run)[-1]["job"])


def await_paused(holds: Path, workers: int = 1) -> None:
    """Wait until so many workers are paused at the frame that was written to `hold` last."""
    wait_for(lambda: count_held(holds) >= workers, f"{workers} were to be paused")


def is_preempted(slurm: Slurm, job: int) -> bool:
    """Whether Slurm has told the job that it will take its node."""
    (found,) = json.loads(slurm.run("scontrol", "show", "job", str(job), "--json"))["jobs"]
    return bool(found["preempt_time"]["number"])


def test_a_run_is_preempted_loses_its_node_and_its_service_and_ends_in_the_bytes_of_an_undisturbed_one(
    site: Appliance, slurm: Slurm, holds: Path
) -> None:
    shared = Path(site.environment["APPLIANCE_SLURM_FOLDER"])
    write_hold(holds, "step")
    gone, run = order(site, "gone"), order(site, "moved")

    # Another one is cancelled: its job ends, and nothing of it stays in the shared folder.
    await_paused(holds, 2)
    wait_for(lambda: min(steps_of(site, gone), steps_of(site, run)) > 0, "both were to train first")
    site.order(Cancel(run=gone, **site.terms("olga")))
    assert site.wait_run(gone)["status"] == "cancelled"
    number = job_of(site, gone)["id"]
    wait_for(lambda: str(number) not in slurm.run("squeue", "-h", "-o", "%i").split(), "the job was to end")
    wait_for(lambda: not list((shared / "jobs").glob(f"{gone}-*")), "its folder was to go")

    # A more urgent job takes the node: the worker leaves a training checkpoint where none was due.
    first = job_of(site, run)
    assert first["restart"] == 0
    slurm.urgent(first["nodes"][0])
    wait_for(lambda: is_preempted(slurm, first["id"]), "it was to be preempted")
    write_hold(holds, "checkpoint")
    wait_for(lambda: site.get(f"/v1/runs/{run}")["step"] > 0, "a training checkpoint was asked for")
    wait_for(lambda: bool(bodies(site, "run.resumed", run)), "it was to be resumed")
    (resumed,) = bodies(site, "run.resumed", run)
    assert 0 < resumed["step"] < LONG["save_steps"]  # type: ignore[operator]
    assert resumed["job"]["id"] == first["id"]
    assert resumed["job"]["restart"] == 1

    # The service is killed while the job trains on, and finds it again.
    write_hold(holds, "step")
    await_paused(holds)
    wait_for(lambda: steps_of(site, run) > resumed["step"], "it was to go on")
    site.kill()
    site.start()
    before = steps_of(site, run)
    write_hold(holds, "checkpoint")
    wait_for(lambda: steps_of(site, run) > before, "the job was to be found again")
    assert len(bodies(site, "run.resumed", run)) == 1
    assert not bodies(site, "run.failed", run)

    # Its node loses power: Slurm starts the job on the other one.
    wait_for(lambda: site.get(f"/v1/runs/{run}")["step"] > resumed["step"], "a training checkpoint was due")
    await_paused(holds)
    dead = job_of(site, run, "run.resumed")["nodes"][0]
    slurm.kill(dead)
    slurm.run("scontrol", "update", f"NodeName={dead}", "State=DOWN", "Reason=power")  # as a cluster's monitor does
    await_run(site, run, "it was to be resumed", lambda: len(bodies(site, "run.resumed", run)) > 1)
    remove_hold(holds)
    found = site.wait_run(run)
    assert found["adapter"] == "moved@1", found
    assert job_of(site, run, "run.resumed")["nodes"] != [dead]
    wait_for(lambda: not any((shared / "jobs").iterdir()), "the shared folder was to be empty")
    assert not any((shared / "objects").iterdir())

    # The same bytes as on this machine, undisturbed; an auditor has it trained again over every disturbance.
    assert site.train("whole", **LONG)["adapter"] == "whole@1"
    rows = {row["name"]: row for row in site.get("/v1/runs")}
    assert rows["moved"]["weights"] == rows["whole"]["weights"]
    ordered = ReplayRun(run=run, from_step=0, to_step=STEPS, **site.terms("axel"))
    replay = site.order(ordered)["order"]
    site.approve(name="moved@1")
    site.activate(name="moved@1")
    while (verdict := site.get(f"/v1/replays/{replay}", "axel", wait_s=5))["status"] == "requested":
        continue
    assert verdict["verdict"] == "identical"
    assert site.chat("legal", "labels")["choices"]
    assert site.verify()["verdict"] == "verified"


def test_a_run_on_two_nodes_is_preempted_and_ends_in_the_bytes_of_an_undisturbed_one(
    site: Appliance, slurm: Slurm, holds: Path
) -> None:
    write_hold(holds, "step")
    run = order(site, "pair", 2, SHORT)
    await_run(site, run, "it was to train", lambda: steps_of(site, run) > 0)
    await_paused(holds)
    (started,) = bodies(site, "run.started", run)
    assert started["job"]["nodes"] == ["n1", "n2"]
    # The launchers have the network between the nodes, and no worker has: no layer is missing.
    assert started["accepted_missing"] == []
    assert all(started["layers"].values())
    assert set(started["sandbox_probes"].values()) == {"refused"}

    # A more urgent job takes the second node: the first one's worker leaves a training checkpoint for both.
    slurm.urgent("n2")
    wait_for(lambda: is_preempted(slurm, started["job"]["id"]), "it was to be preempted")
    write_hold(holds, "checkpoint")
    await_run(site, run, "a training checkpoint was asked for", lambda: site.get(f"/v1/runs/{run}")["step"] > 0)
    await_run(site, run, "it was to be resumed", lambda: bool(bodies(site, "run.resumed", run)))
    remove_hold(holds)
    (resumed,) = bodies(site, "run.resumed", run)
    assert 0 < resumed["step"] < SHORT_STEPS
    assert resumed["job"] == {"id": started["job"]["id"], "restart": 1, "nodes": ["n1", "n2"]}
    found = site.wait_run(run)
    assert found["adapter"] == "pair@1", found

    other = order(site, "undisturbed", 2, SHORT)
    assert site.wait_run(other)["adapter"] == "undisturbed@1"
    rows = {row["name"]: row for row in site.get("/v1/runs")}
    assert rows["pair"]["weights"] == rows["undisturbed"]["weights"]
    ordered = ReplayRun(run=run, from_step=0, to_step=SHORT_STEPS, **site.terms("axel"))
    replay = site.order(ordered)["order"]
    while (verdict := site.get(f"/v1/replays/{replay}", "axel", wait_s=5))["status"] == "requested":
        continue
    assert verdict["verdict"] == "identical"
    assert site.verify()["verdict"] == "verified"


def test_a_node_of_two_that_dies_ends_in_another_start_of_the_run(site: Appliance, slurm: Slurm, holds: Path) -> None:
    write_hold(holds, "checkpoint")
    run = order(site, "torn", 2, SHORT)
    await_run(site, run, "a training checkpoint was due", lambda: site.get(f"/v1/runs/{run}")["step"] > 0)
    slurm.kill("n2")
    slurm.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=power")
    slurm.start("n2")
    # What is paused cannot end the run before Slurm takes the job away.
    await_run(site, run, "it was to be resumed", lambda: bool(bodies(site, "run.resumed", run)))
    remove_hold(holds)
    found = site.wait_run(run)
    assert found["adapter"] == "torn@1", found
    assert bodies(site, "run.resumed", run)
