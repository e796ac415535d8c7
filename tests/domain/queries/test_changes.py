"""Differences between two sealed versions of an adapter."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from appliance.domain.queries.review.changes import METRICS_FILE, _list_measures
from appliance.domain.queries.review.values import Change


def _version(accuracy: str, dataset_digest: str) -> Any:
    files = {METRICS_FILE: json.dumps({"adapter": {"accuracy": accuracy}, "base": {"accuracy": "0.1"}}).encode()}
    return SimpleNamespace(name="clauses@1", files=files, training_data=SimpleNamespace(dataset_digest=dataset_digest))


def test_measures_of_both_versions_are_compared_and_other_held_out_rows_are_named() -> None:
    before, same, other = _version("0.400000", "a"), _version("0.466667", "a"), _version("0.466667", "b")
    assert list(_list_measures(before, same)) == [Change(what="accuracy", before="0.400", now="0.467")]
    assert [one.what for one in _list_measures(before, other)] == ["accuracy, on other rows"]
    assert list(_list_measures(before, before)) == []
