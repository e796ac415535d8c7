"""A sweep through the service: runs that fall behind are cancelled during training and never evaluated."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.api.wire import parse_response
from appliance.client.sweeps import SweepRun, follow_sweep, list_rows
from appliance.domain.runs.control import Cancel
from scripts.kit.appliance import Appliance
from tests.attacks.test_kill import check_whole

pytestmark = pytest.mark.thorough
RECIPE = {"eval_steps": 5, "validation": 0.2}
EPOCHS_BY_RATE = {"0.01": 40, "0.0000001": 400}
"""The second run is far from its end when its first reading stops it."""


def test_a_run_that_learns_nothing_is_stopped_at_its_first_reading(site: Appliance) -> None:
    candidates = []
    for rate, epochs in EPOCHS_BY_RATE.items():
        order = site.train_order("chosen", learning_rate=rate, epochs=epochs, **RECIPE)
        order = order.model_copy(update={"sweep": "chosen-1"})
        run = site.order(order)["result"]["run"]
        candidates.append(SweepRun(run, {"learning_rate": rate}))

    def get(path: str, model: type[Any], **given: Any) -> Any:
        return parse_response(model, json.dumps(site.get(path, **given)).encode(), path)

    connection: Any = SimpleNamespace(get=get)

    def stop(behind: SweepRun) -> None:
        site.order(Cancel(run=behind.run, **site.terms("olga")))

    follow_sweep(connection, candidates, lambda run, status, frames: None, stop)
    first, second = candidates
    rows = list_rows(candidates)
    assert [(row.run, row.status) for row in rows] == [(first.run, "sealed"), (second.run, "cancelled")]
    assert second.readings[0][0] == 5 and float(second.readings[0][1]) > float(first.readings[0][1])
    assert rows[0].step == 5 * len(first.readings) > rows[1].step
    sealed = [entry["body"]["run"] for entry in site.entries(type="adapter.sealed")]
    assert first.run in sealed and second.run not in sealed
    check_whole(site)
