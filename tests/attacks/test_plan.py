"""The figures of a plan, compared with those that the record of the real run has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.domain.runs.steps import parse_steps
from scripts.kit.appliance import Appliance, Refused
from tests.attacks import cramped

pytestmark = pytest.mark.thorough

RECIPE = (
    "name: clauses\nbase: tiny\ndataset: clauses@1\nrank: 4\nalpha: 8\nepochs: 1\nlearning_rate: 0.01\n"
    "gradient_checkpointing: none\n"
)


def test_what_was_planned_is_what_the_run_took(
    shared: Appliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny base, so nearly all of it is the process itself: never under, and at most a quarter above."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    options = ["--as", "olga", *shared.write_key("olga", tmp_path)]
    words = ["run", "plan", str(tmp_path / "recipe.yaml"), "--json", "--home", str(shared.home), *options]
    assert main.run(words) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not plan["duration"]["measured"]
    assert main.run([*words, "--calibrate"]) == 0
    assert json.loads(capsys.readouterr().out)["duration"]["measured"]
    steps = parse_steps(shared.get("/v1/runs/r-000001/steps"), "steps")
    peak = max(step.peak_bytes for step in steps)
    planned = max(sum(plan["memory"][phase].values()) for phase in ("load", "train"))
    assert plan["steps"] == len(steps)
    assert 1 <= planned / peak < 1.25, f"planned {planned:,}, measured {peak:,}"
    assert plan["problems"] == []


def test_what_does_not_fit_is_refused_when_it_is_ordered_and_fails_before_its_worker_starts(
    spoil: Callable[[], Appliance],
) -> None:
    site = spoil()
    site.launcher = (cramped.__file__,)

    def shrink(**sizes: int) -> None:
        (site.home / cramped.MACHINE).write_text(json.dumps(sizes))

    shrink()
    site.start()
    runs = site.get("/v1/runs")
    for sizes, message in (
        ({"memory_bytes": 10**8}, "memory: expected at most 100 MB, which this machine has"),
        ({"disk_free_bytes": 10**5}, "disk: expected at most 100 kB, which are free"),
    ):
        shrink(**sizes)
        with pytest.raises(Refused, match=message) as refused:
            site.order(site.train_order("large"))
        assert (refused.value.status, refused.value.code) == (409, "does-not-fit")
    assert site.get("/v1/runs") == runs
    shrink(free_bytes=10**8)
    before = len(site.entries())
    assert site.train("late")["status"] == "failed"
    failed = site.entries(type="run.failed")[-1]
    assert failed["body"]["code"] == "does-not-fit"
    told = site.get(f"/v1/ledger/{failed['index']}", "axel")["disclosures"]
    assert told[0]["text"].startswith("plan, memory: expected at most 100 MB")
    made = [kind for kind in site.types()[before:] if kind.startswith(("run.", "adapter."))]
    assert made == ["run.requested", "run.failed"]
    assert not list((site.home / "artifacts").glob(".staging-*"))
    shrink()
    assert site.train("late")["status"] == "sealed", "once there is room"
