"""The memory check before a run: the machine's memory at the order, the free memory at the start."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.state import State
from appliance.domain.planning.shape import MachineCalibration
from appliance.errors import BadInput, Conflict, Denied
from appliance.store.files.run_files import CalibrationStore
from appliance.workflows.runs import planning
from tests.domain.planning.test_plan import resolved
from tests.kit.founded import BASE_FACTS, DATASET_FACTS
from tests.kit.one_process import one_process

MEASURED = {"lengths": [32, 192], "rows": 8, "answer": 4, "load_s": 2.0, "peak_bytes": 1, "memory_bytes": 10**10}


def context(folder: Path, **people: Any) -> Any:
    state: Any = State()
    state.bases.put("smollm2", SimpleNamespace(facts=BASE_FACTS))
    state.datasets.put("clauses@1", SimpleNamespace(facts=DATASET_FACTS))
    for name, person in people.items():
        state.principals.put(name, person)
    return SimpleNamespace(
        **one_process(),
        ledger=SimpleNamespace(state=state),
        logs=folder,
        reserve=None,
        host="a machine",
        device="cpu",
        bfloat16=True,
        calibrations=CalibrationStore(folder),
    )


def calibration(seconds: list[float], host: str = "a machine") -> MachineCalibration:
    from appliance.domain.planning.pace import read_calibration
    from tests.domain.planning.test_plan import SHAPE

    found = {**MEASURED, "seconds": seconds, "machine": {"device": "cpu"}}
    return read_calibration(SHAPE, resolved(), found, host=host, time="2026-11-24T12:00:00.000Z")


def test_a_run_is_held_against_all_memory_when_ordered_and_against_what_is_free_when_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = context(tmp_path)
    monkeypatch.setattr(planning, "host_memory", lambda *, now: 10**9 if now else 10**10)
    planning.check_order(site, resolved())
    with pytest.raises(Conflict, match="memory: expected at most 1 GB, which this machine has") as raised:
        planning.check_start(site, resolved())
    assert raised.value.code == "does-not-fit"


def test_only_an_operator_has_the_machine_measured(tmp_path: Path) -> None:
    for people in ({}, {"rita": SimpleNamespace(has=lambda role: role == "auditor")}):
        with pytest.raises(Denied, match="expected an operator, got rita"):
            planning.order_calibration(context(tmp_path, **people), "rita", resolved())


def test_two_lengths_give_a_pace_and_equal_times_give_none(tmp_path: Path) -> None:
    made = calibration([1.0, 4.0])
    assert made.operations_a_second > 1e10 and 0 <= made.pack_s < 1.0
    with pytest.raises(BadInput, match="expected a longer batch to take longer"):
        calibration([1.0, 1.0])


def test_the_last_calibration_of_a_machine_is_kept_and_a_broken_file_counts_as_none(tmp_path: Path) -> None:
    kept = CalibrationStore(tmp_path)
    for made in (calibration([1.0, 4.0]), calibration([1.0, 4.0], "another"), calibration([1.0, 9.0])):
        kept.keep(made)
    assert [one.host for one in kept.read()] == ["another", "a machine"]
    assert kept.read()[1] == calibration([1.0, 9.0])
    assert [one.host for one in planning.describe_machine(context(tmp_path)).calibrations] == ["a machine"]
    (tmp_path / "calibrations.json").write_bytes(b"{")
    assert kept.read() == ()
    (tmp_path / "calibrations.json").unlink()
    os.mkfifo(tmp_path / "calibrations.json")
    assert kept.read() == (), "nobody waits for the other end of a pipe"
