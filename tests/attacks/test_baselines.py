"""A baseline is sealed and measured for comparison, and cannot be released to a unit."""

from __future__ import annotations

import pytest

from scripts.kit.appliance import Appliance, Refused


@pytest.mark.thorough
def test_an_adapter_is_compared_with_full_fine_tuning_which_itself_is_never_released(site: Appliance) -> None:
    full = site.train("everything", method="full", purpose="baseline", rank="auto", alpha="auto")
    assert full["adapter"] == "everything@1", full
    for act in (lambda: site.review("rita", name="everything@1"), lambda: site.activate(name="everything@1")):
        with pytest.raises(Refused, match="was trained as a baseline and cannot be released"):
            act()
    run = site.get("/v1/runs")[-1]["id"]
    assert site.train("clauses", baseline=run)["adapter"] == "clauses@2"
    sealed = {entry["body"]["adapter"]: entry["body"]["metrics"] for entry in site.entries(type="adapter.sealed")}
    ours, theirs, compared = sealed["clauses@2"]["adapter"], sealed["everything@1"], sealed["clauses@2"]["baseline"]
    assert (compared["run"], compared["method"], compared["same_machine"]) == (run, "full", True)
    assert float(compared["kept_accuracy"]) == pytest.approx(
        float(ours["accuracy"]) / float(theirs["adapter"]["accuracy"]), abs=1e-6
    )
    assert theirs["adapter"]["rows"] == ours["rows"]
    assert float(compared["time"]) > 0
    assert float(compared["memory"]) > 0
    assert site.verify()["verdict"] == "verified"
