"""The service's part of local sets: their list, and the check that items are of exactly their rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.records.data import LocalSet
from appliance.domain.evaluation.items import ITEMS_FILE, encode_items
from appliance.domain.evaluation.shipped.sets import digest_set
from appliance.domain.evaluation.verdict import parse_verdict
from appliance.errors import Denied, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.store.files.local_sets import LocalSets
from appliance.workflows.evaluation import local_sets as subject
from appliance.workflows.evaluation.verdicts import evaluate_by_gates
from scripts.kit.log_builder import stage
from tests.domain.evaluation.test_local_sets import GATES, on_general
from tests.kit.one_process import one_process
from tests.workflows.evaluation.test_verdicts import ITEMS, context_of, trained

GENERAL = "items-general.jsonl"


def items_of(general: bytes) -> dict[str, bytes]:
    return {ITEMS_FILE: encode_items(ITEMS), GENERAL: general}


@pytest.mark.thorough
def test_items_of_a_set_that_comes_with_the_appliance_are_of_exactly_its_rows(tmp_path: Path) -> None:
    site = stage("imported").fork()
    run, context = trained(site, GATES), context_of(site, tmp_path)
    whole = on_general()
    found = evaluate_by_gates(context, run, items_of(encode_items(whole)), {"general": {"rows": 200}})
    assert parse_verdict(found.documents["verdict"]).results[1].outcome == "passed"
    assert found.files[GENERAL] == encode_items(whole)
    other = (*whole[1:], whole[0].model_copy(update={"row": "0" * 64}))
    for given in (whole[1:], other):
        with pytest.raises(Tampered, match=r"items-general\.jsonl of r-000001: expected the 200 rows of the set"):
            evaluate_by_gates(context, run, items_of(encode_items(given)), {})


def context(home: Path, packages: Path | None = None) -> Any:
    state = stage("imported").state
    return SimpleNamespace(**one_process(), ledger=SimpleNamespace(state=state), local_sets=LocalSets(home, packages))


def order(*bound: LocalSet) -> Any:
    return SimpleNamespace(local_sets=bound, recipe=SimpleNamespace(dataset="clauses@1"))


def test_what_a_run_can_be_evaluated_on_is_told_with_its_digest_and_its_size(tmp_path: Path) -> None:
    (tmp_path / "metrics/shout").mkdir(parents=True)
    (tmp_path / "metrics/shout/shout.py").write_bytes(b"")
    found = {one.set: one for one in subject.list_local(context(tmp_path), "clauses@1")}
    assert found.keys() == {"general", "refusal", "metric-shout"}
    assert (found["general"].digest, found["general"].items) == (digest_set("general"), 200)
    assert found["refusal"].items == 100 and found["general"].evaluated_before == 0


def test_an_order_whose_set_or_library_is_not_here_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(Denied, match=r"set harness-colours: expected sha256:.*, which the order binds, got none"):
        subject.check_local(context(tmp_path), order(LocalSet(set="harness-colours", digest=digest_bytes(b""))))
    (tmp_path / "harness/colours").mkdir(parents=True)
    (tmp_path / "harness/colours/colours.yaml").write_bytes(b"")
    (bound,) = LocalSets(tmp_path).list()
    with pytest.raises(Unavailable, match=r"lm_eval: expected this library .* \(no setting harness_packages\)"):
        subject.check_local(context(tmp_path), order(bound))
    (tmp_path / "packages/lm_eval").mkdir(parents=True)
    subject.check_local(context(tmp_path, tmp_path / "packages"), order(bound))
