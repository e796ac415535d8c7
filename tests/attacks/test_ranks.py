"""A run of two processes through the service: its record, a rank that dies, the resume, and a replay."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from appliance.domain.runs.control import Resume
from appliance.errors import BadInput
from scripts.kit.appliance import Appliance
from scripts.kit.warm import find_workers
from tests.attacks.stopping import await_held, held
from tests.attacks.test_kill import check_whole, copy_of, end
from tests.attacks.test_training import CHECKPOINTED, TRAIN, bodies, replay, run_named, texts, weights

LONG = {"epochs": 40, "batch_size": 8, "save_steps": 20, "dropout": "0.1", "processes": 2}
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) % 2 != 0, reason="two processes share an even number of threads"),
]


@pytest.fixture(scope="module")
def site(golden: Appliance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """With an uninterrupted run of two processes."""
    site = copy_of(golden, tmp_path_factory.mktemp("ranks"))
    assert site.train("whole", **LONG)["adapter"] == "whole@1"
    yield site
    end(site)


def test_a_run_of_two_processes_has_the_sandbox_of_one(site: Appliance) -> None:
    """What is recorded of its sandbox is what is recorded of a usual worker's."""
    assert site.train("usual")["adapter"] == "usual@1"
    (two,), (one,) = (bodies(site, "run.started", run_named(site, name)["id"]) for name in ("whole", "usual"))
    assert two | {"run": one["run"]} == one
    assert all(two["layers"].values()) and set(two["sandbox_probes"].values()) == {"refused"}


def test_a_rank_that_dies_fails_the_run_which_continues_to_the_same_bytes(site: Appliance) -> None:
    assert site.service is not None
    with held(site, CHECKPOINTED):
        run = str(site.order(site.train_order("cut", **LONG))["result"]["run"])
        await_held(site)
        found = find_workers(site.service.pid, TRAIN)
        os.kill(found[-1], signal.SIGKILL)
    assert site.wait_run(run)["status"] == "failed"
    assert bodies(site, "run.failed", run)[-1]["code"] == "rank-ended"
    assert "rank 1: expected it to train to the last step, got its end by signal 9" in texts(site, "run.failed")
    site.order(Resume(run=run, **site.terms("olga")))
    assert site.wait_run(run)["adapter"] == "cut@1"
    assert weights(site, "cut") == weights(site, "whole")
    check_whole(site)


def test_a_window_of_two_processes_trained_again_is_identical(site: Appliance) -> None:
    assert replay(site, "whole", (20, 40))["verdict"] == "identical"


def test_an_order_for_more_processes_than_threads_is_refused(site: Appliance) -> None:
    threads = len(os.sched_getaffinity(0))
    with pytest.raises(BadInput, match=f"divisor of this machine's {threads} threads, got {2 * threads}"):
        site.train_order("many", processes=2 * threads)
