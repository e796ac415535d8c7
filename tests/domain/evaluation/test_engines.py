"""An adapter is loaded on another engine than the appliance's own only if it was judged there, and close enough."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.evaluation.engines import describe_engine, judged_engines
from appliance.errors import Denied
from scripts.kit.log_builder import LogBuilder, stage
from tests.kit.refusals import refuses

FOUND = {
    "accuracy": "0.900000",
    "form": "nf4-double as bfloat16",
    "loss": "0.310000",
    "probe_off": "0.020000",
    "probe_within": "0.100000",
    "rows": 11,
    "version": "0.32.0",
}


@pytest.mark.parametrize(
    ("found", "judged"),
    [
        (FOUND, ("vllm",)),
        (FOUND | {"probe_off": "0.100000"}, ("vllm",)),
        (FOUND | {"probe_off": "0.100001"}, ()),
        (FOUND | {"probe_off": "-0.1"}, ()),
        (FOUND | {"probe_off": "NaN"}, ()),
        (FOUND | {"probe_off": 0.02}, ()),
        (FOUND | {"probe_within": "2"}, ()),
        ({"refused": "not-servable"}, ()),
        ("vllm", ()),
    ],
)
def test_only_a_probe_within_its_tolerance_counts_as_judged(found: Any, judged: tuple[str, ...]) -> None:
    assert judged_engines({"engines": {"vllm": found}}) == judged
    assert judged_engines({}) == ()


def test_a_reviewer_reads_version_form_figures_and_tolerance() -> None:
    assert describe_engine("vllm", FOUND) == (
        "vllm 0.32.0, nf4-double as bfloat16: accuracy 0.900000, loss 0.310000 on 11 held-out rows; its probe is off "
        "by 0.020000 of the largest logit, 0.100000 is allowed"
    )
    assert describe_engine("vllm", {"refused": "rank"}) == "vllm cannot load this adapter (rank)"


def _released(metrics: dict[str, Any] | None) -> LogBuilder:
    """A released adapter, with what was found of it on other engines."""
    site = stage("released")
    if metrics is not None:
        adapter = site.state.adapters.get("clauses@1")
        assert adapter is not None
        site.state.adapters.put("clauses@1", adapter.model_copy(update={"engines": judged_engines(metrics)}))
    return site


def test_an_adapter_that_was_not_judged_on_an_engine_is_not_loaded_there() -> None:
    site = _released(None)
    admitted = site.add(site.admitted())
    with refuses(site, Denied, "expected one that was judged on vllm"):
        site.add(site.loaded(admitted.index, engine="vllm", probe="close"))


def test_its_load_and_its_answers_name_the_engine() -> None:
    site = _released({"engines": {"vllm": FOUND}})
    admitted = site.add(site.admitted())
    for fields, words in (
        ({"engine": "vllm", "probe": "identical"}, "probe: expected close, got identical"),
        ({"engine": None, "probe": "close"}, "probe: expected identical, got close"),
    ):
        with refuses(site, Denied, words):
            site.add(site.loaded(admitted.index, **fields))
    site.add(site.loaded(admitted.index, engine="vllm", probe="close"))
    site.add(site.request(1))
    with refuses(site, Denied, "engine: expected vllm, got None"):
        site.add(site.answered(1))
    site.add(site.answered(1, engine="vllm"))
