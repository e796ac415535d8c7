"""An adapter is loaded on another engine than the appliance's own only if it was evaluated there, and close enough."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.evaluation.quality import describe_engine, list_engines_evaluated
from appliance.errors import Denied
from scripts.kit.log_builder import LogBuilder, stage
from tests.kit.refusals import refuses

FOUND = {
    "accuracy": "0.900000",
    "form": "nf4-double as bfloat16",
    "loss": "0.310000",
    "logit_difference": "0.020000",
    "logit_tolerance": "0.100000",
    "rows": 11,
    "version": "0.32.0",
}


@pytest.mark.parametrize(
    ("found", "evaluated"),
    [
        (FOUND, ("vllm",)),
        (FOUND | {"logit_difference": "0.100000"}, ("vllm",)),
        (FOUND | {"logit_difference": "0.100001"}, ()),
        (FOUND | {"logit_difference": "-0.1"}, ()),
        (FOUND | {"logit_difference": "NaN"}, ()),
        (FOUND | {"logit_difference": 0.02}, ()),
        (FOUND | {"logit_tolerance": "2"}, ()),
        ({"refused": "not-servable"}, ()),
        ("vllm", ()),
    ],
)
def test_only_a_probe_within_its_tolerance_counts_as_evaluated(found: Any, evaluated: tuple[str, ...]) -> None:
    assert list_engines_evaluated({"engines": {"vllm": found}}) == evaluated
    assert list_engines_evaluated({}) == ()


def test_a_reviewer_reads_version_form_figures_and_tolerance() -> None:
    assert describe_engine("vllm", FOUND) == (
        "vllm 0.32.0, nf4-double as bfloat16: accuracy 0.900000, loss 0.310000 on 11 held-out rows; "
        "its logit fingerprint is off by 0.020000 of the largest logit, 0.100000 is allowed"
    )
    assert describe_engine("vllm", {"refused": "rank-too-large"}) == "vllm cannot load this adapter (rank-too-large)"


def _released(metrics: dict[str, Any] | None) -> LogBuilder:
    """Return a site with a released adapter and its measures on other engines."""
    site = stage("released")
    if metrics is not None:
        adapter = site.state.adapters.get("clauses@1")
        assert adapter is not None
        site.state.adapters.put("clauses@1", adapter.model_copy(update={"engines": list_engines_evaluated(metrics)}))
    return site


def test_an_adapter_that_was_not_evaluated_on_an_engine_is_not_loaded_there() -> None:
    site = _released(None)
    admitted = site.add(site.admitted())
    with refuses(site, Denied, "Adapter clauses@1 was not evaluated on the inference engine vllm."):
        site.add(site.loaded(admitted.index, engine="vllm", logit_fingerprint="close"))


def test_its_load_and_its_answers_name_the_engine() -> None:
    site = _released({"engines": {"vllm": FOUND}})
    admitted = site.add(site.admitted())
    for fields, words in (
        ({"engine": "vllm", "logit_fingerprint": "identical"}, "logit_fingerprint: expected close, got identical"),
        ({"engine": None, "logit_fingerprint": "close"}, "logit_fingerprint: expected identical, got close"),
    ):
        with refuses(site, Denied, words):
            site.add(site.loaded(admitted.index, **fields))
    site.add(site.loaded(admitted.index, engine="vllm", logit_fingerprint="close"))
    site.add(site.request(1))
    with refuses(site, Denied, "engine: expected vllm, got None"):
        site.add(site.answered(1))
    site.add(site.answered(1, engine="vllm"))
