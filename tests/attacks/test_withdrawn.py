"""Bases and datasets are revoked while runs wait, train, are evaluated or are interrupted; and a key is revoked since
before a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from appliance.domain.core.order import Order
from appliance.domain.data.artifacts import RevokeBase, RevokeDataset
from appliance.domain.governance.keys import RevokeKey
from appliance.domain.runs.control import Resume
from appliance.domain.runs.replays import ReplayRun
from scripts.kit.appliance import Appliance, Refused
from scripts.kit.warm import find_workers
from tests.attacks.stopping import arm, await_death, await_held, await_that, held, hold
from tests.attacks.test_admission import artifact, flip_byte
from tests.attacks.test_kill import check_whole, copy_of, end
from tests.attacks.test_training import CHECKPOINTED, STEPS, TRAIN, await_replay, bodies, start, texts

pytestmark = pytest.mark.thorough


@pytest.fixture
def own(golden: Appliance, tmp_path: Path) -> Iterator[Appliance]:
    site = copy_of(golden, tmp_path)
    yield site
    end(site)


def revocation(site: Appliance, what: str) -> Order:
    if what == "base":
        return RevokeBase(base="tiny", digest=site.get("/v1/bases/tiny")["digest"], **site.terms("rita"))
    digest = site.get("/v1/datasets/clauses@1")["digest"]
    return RevokeDataset(dataset="clauses", version=1, digest=digest, **site.terms("anna"))


def workers_of(site: Appliance) -> list[int]:
    assert site.service is not None
    return [pid for module in (TRAIN, "appliance.worker.evaluate") for pid in find_workers(site.service.pid, module)]


def entries_of(site: Appliance, run: str) -> list[str]:
    return [entry["type"] for entry in site.entries(subject=f"run:{run}")]


def check_ended(site: Appliance, runs: tuple[str, ...], reason: str) -> None:
    """Each failed for this reason after the revocation, by its last entry."""
    [revoked] = [entry["index"] for entry in site.entries() if entry["type"] in ("base.revoked", "dataset.revoked")]
    for run in runs:
        assert [body["code"] for body in bodies(site, "run.failed", run)] == ["revoked"]
        after = [entry["type"] for entry in site.entries(subject=f"run:{run}") if entry["index"] > revoked]
        assert after == ["run.failed"]
    assert reason in texts(site, "run.failed")
    assert not workers_of(site)
    assert [adapter["name"] for adapter in site.get("/v1/adapters")] == ["clauses"]


@pytest.mark.parametrize("what", ["base", "dataset"])
def test_a_revocation_ends_the_run_that_trains_and_those_that_wait(own: Appliance, what: str) -> None:
    with held(own, CHECKPOINTED):
        first, second = start(own, "first"), start(own, "second")
        await_held(own)
        assert workers_of(own)
        own.order(revocation(own, what))
        await_that(own, lambda: not workers_of(own))
    assert own.get(f"/v1/runs/{first}")["step"] < STEPS[-1], "ended in its midst"
    for run in (first, second):
        assert own.wait_run(run)["status"] == "failed"
    reason = f"{'Base model tiny' if what == 'base' else 'Dataset clauses@1'} was revoked by entry"
    check_ended(own, (first, second), reason)
    assert entries_of(own, second) == ["run.requested", "run.failed"]
    with pytest.raises(Refused, match="was revoked by entry"):
        own.order(Resume(run=first, **own.terms("olga")))
    own.stop()
    own.start()
    assert [own.get(f"/v1/runs/{run}")["status"] for run in (first, second)] == ["failed", "failed"]
    check_ended(own, (first, second), reason)
    check_whole(own)


def test_a_revocation_ends_a_run_that_is_evaluated(own: Appliance) -> None:
    with held(own, "before:go"):
        run = str(own.order(own.train_order("evaluated"))["result"]["run"])
        await_held(own)
        hold(own, "before:go")  # trained, and the worker that evaluates waits for its task
        await_held(own)
        assert own.get(f"/v1/runs/{run}")["status"] == "trained"
        assert workers_of(own)
        own.order(revocation(own, "dataset"))
    assert own.wait_run(run)["status"] == "failed"
    check_ended(own, (run,), "Dataset clauses@1 was revoked by entry")
    check_whole(own)


def test_a_run_that_was_ready_to_be_sealed_is_not_once_its_data_is_revoked(own: Appliance) -> None:
    """The service dies with the adapter ready and nothing recorded; its next start resumes the run, and would seal
    it."""
    arm(own, "before:adapter.sealed")
    run = str(own.order(own.train_order("ready"))["result"]["run"])
    await_death(own)
    own.start()
    own.order(revocation(own, "dataset"))
    assert own.wait_run(run)["status"] == "failed"
    check_ended(own, (run,), "Dataset clauses@1 was revoked by entry")
    check_whole(own)


@pytest.mark.parametrize("when", ["after:run.started", CHECKPOINTED])
def test_a_start_takes_up_nothing_on_what_was_revoked_before_the_service_died(own: Appliance, when: str) -> None:
    """With a training checkpoint, or without one."""
    with held(own, when):
        run = start(own, "cut")
        await_held(own)
        envelope = own.sign(revocation(own, "dataset"))
        arm(own, "after:dataset.revoked")
        with suppress(httpx.TransportError):
            own.send(envelope)
        await_death(own)
    own.start()
    assert own.wait_run(run)["status"] == "failed"
    check_ended(own, (run,), "Dataset clauses@1 was revoked by entry")
    check_whole(own)


def test_a_base_that_is_found_changed_ends_the_run_that_trains_on_it(own: Appliance) -> None:
    with held(own, CHECKPOINTED):
        run = start(own, "on-sand")
        await_held(own)
        flip_byte(artifact(own, own.get("/v1/bases/tiny")["digest"]) / "model.safetensors")
        own.approve()
        own.activate()
        with pytest.raises(Refused):
            own.chat("legal", "labels")
    assert own.wait_run(run)["status"] == "failed"
    assert [body["code"] for body in bodies(own, "run.failed", run)] == ["quarantined"]
    assert "The files of base model tiny have changed on disk" in texts(own, "run.failed")
    assert not workers_of(own)


# --- replays ----------------------------------------------------------------------------------------------------------


def evaluate_again(site: Appliance, steps: int) -> str:
    """Replay the golden run up to `steps` as the auditor, and return the verdict."""
    order = ReplayRun(run="r-000001", from_step=0, to_step=steps, **site.terms("axel"))
    return str(await_replay(site, site.order(order)["order"])["verdict"])


@pytest.mark.parametrize("what", ["key", "dataset"])
def test_what_was_made_is_trained_again_whatever_was_taken_back_since(own: Appliance, what: str) -> None:
    """An operator hides nothing by revoking his own key from the order of his run on; its adapter would continue to
    serve. Nor does who revokes the data that it was made of."""
    steps = own.get("/v1/runs/r-000001")["step"]
    since = own.entries(type="run.requested", subject="run:r-000001")[0]["index"]
    order = revocation(own, "dataset")
    if what == "key":
        order = RevokeKey(principal="olga", keyid=own.keys["olga"].keyid, since=since, **own.terms("olga"))
    own.order(order)
    assert evaluate_again(own, steps) == "identical"
    assert own.verify()["verdict"] == "verified"
