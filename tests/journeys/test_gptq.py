"""A base in GPTQ through the whole journey: imported, trained on in the sandbox, evaluated, released, served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.domain.planning.footprint import plan_memory
from appliance.domain.planning.plan import read_subject
from appliance.domain.runs.steps import parse_steps
from appliance.errors import BadInput
from scripts.kit.appliance import Appliance, found_site
from scripts.kit.ports import free_port
from scripts.kit.tiny_model import build_base, clauses, write_csv
from tests.kit.gptq import Packing, quantise_folder


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Appliance]:
    made = found_site(tmp_path / "h", free_port())
    yield made
    if made.service is not None:
        made.kill()


@pytest.mark.thorough
def test_an_adapter_on_a_gptq_base_is_trained_released_and_answers(site: Appliance, tmp_path: Path) -> None:
    plain = build_base(tmp_path / "plain")
    folder = quantise_folder(plain, tmp_path / "gptq", Packing(sym=False, desc_act=True, checkpoint_format="gptq_v2"))
    base = site.import_base(folder)
    assert base["status"] == "finished", base
    (facts,) = [entry["body"]["facts"] for entry in site.entries(type="base.imported")]
    assert (facts["quantisation"], facts["gptq"]["checkpoint_format"]) == ("gptq", "gptq_v2")
    assert site.import_dataset(write_csv(tmp_path / "rows.csv", clauses()).read_bytes())["status"] == "finished"
    with pytest.raises(BadInput, match=r"expected one of lora, .* since the base was imported in GPTQ, got qlora"):
        site.train_order()
    run = site.train(method="lora")
    assert run["adapter"] == "clauses@1", run
    steps = parse_steps(site.get("/v1/runs/r-000001/steps"), "steps")
    assert float(str(steps[-1].loss)) < float(str(steps[0].loss))
    order = site.train_order(method="lora")
    found = site.get("/v1/recipes/facts", base="tiny", dataset="clauses@1")
    planned = plan_memory(read_subject("tiny", "clauses@1", found["base_facts"], found["dataset_facts"]), order.recipe)
    assert 1 <= planned.training_peak / max(step.peak_bytes for step in steps) < 1.3
    site.approve()
    site.activate()
    first = site.chat("legal", "labels")
    assert first["choices"][0]["message"]["content"]
    assert site.chat("legal", "labels")["choices"] == first["choices"]
    assert site.verify()["verdict"] == "verified"


@pytest.mark.thorough
def test_awq_is_refused_by_name_and_says_what_to_bring(site: Appliance, tmp_path: Path) -> None:
    folder = quantise_folder(build_base(tmp_path / "plain"), tmp_path / "awq", Packing())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "awq"
    (folder / "config.json").write_text(json.dumps(config))
    found = site.import_base(folder)
    assert found["status"] == "failed"
    assert "got 'awq': bring the model's original bf16 or fp16 weights" in found["error"]["message"]
