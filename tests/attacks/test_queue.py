"""Queued runs are trained in the order of the ledger, also if the service dies between two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.domain.runs.control import Cancel
from scripts.kit.appliance import Appliance
from tests.attacks.stopping import arm, await_death, held
from tests.attacks.test_kill import check_whole, copy_of, end

pytestmark = pytest.mark.thorough


@pytest.fixture
def own(golden: Appliance, tmp_path: Path) -> Iterator[Appliance]:
    site = copy_of(golden, tmp_path)
    yield site
    end(site)


def test_the_queue_survives_a_death_between_any_two(own: Appliance) -> None:
    arm(own, "after:adapter.sealed")
    with held(own, "after:run.started"):
        names = [own.order(own.train_order(name))["result"]["run"] for name in ("first", "second", "third", "fourth")]
        own.order(Cancel(run=names[2], **own.terms("olga")))
    await_death(own)
    arm(own, "before:run.started")
    own.start(wait=False)
    await_death(own)
    own.start()
    ended = {name: own.wait_run(name)["status"] for name in names}
    assert list(ended.values()) == ["sealed", "sealed", "cancelled", "sealed"]
    begun = [entry["body"]["run"] for entry in own.entries(type="run.started")]
    assert begun[-3:] == [names[0], names[1], names[3]], "each once, in the order of the log"
    check_whole(own)
