"""Entries of imports: the results of the worker's probes, and the manifest."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.order import encode_order
from appliance.domain.data.imports import ImportRequested
from appliance.errors import BadInput, Denied
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from scripts.kit.log_builder import LogBuilder, manifest, stage


def test_columns_are_named_for_parts_of_the_rows_only() -> None:
    """They are in the log in plain text, and an order with other keys is malformed, so it makes no entry."""
    site = stage("staffed")
    order = site.dataset_order(columns={"text": "body", "cluster": "customer"})
    assert ORDERS.parse(encode_order(order)) == order
    for part in ("summary", "a sentence of a customer"):
        with pytest.raises(ValidationError, match="expected one of text, label, cluster, slice for classification"):
            site.dataset_order(columns={part: "body"})
        statement = parse_canonical(encode_order(order))
        statement["predicate"]["columns"][part] = "body"
        with pytest.raises(BadInput, match="expected one of text, label, cluster, slice for classification"):
            ORDERS.parse(encode_canonical(statement))


def base(site: LogBuilder, document: bytes, **fields: Any) -> None:
    requested = site.request_import("other", "ines")
    site.add(site.base_imported(requested, "other", **fields), documents={"manifest": document})


def dataset(site: LogBuilder, document: bytes, **fields: Any) -> None:
    requested = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order())
    site.add(site.dataset_imported(requested, dataset="clauses@2", **fields), documents={"manifest": document})


@pytest.mark.parametrize(("bring", "own"), [(base, ("other", 1)), (dataset, ("clauses", 2))])
def test_probes_were_refused_and_the_manifest_is_of_what_was_imported(bring: Any, own: tuple[str, int]) -> None:
    files = {"rows": b"others"}
    for probes, words in (
        ({}, "sandbox_probes: expected the worker's probes, got none"),
        ({"network": "open"}, "through: network"),
    ):
        site = stage("imported").fork()
        with pytest.raises(Denied, match=words):
            bring(site, manifest(*own, files), sandbox_probes=probes)
    for name, version in ((own[0], 7), ("another", own[1])):
        site = stage("imported").fork()
        with pytest.raises(Denied, match=f"manifest: expected {own[0]}@{own[1]}, got {name}@{version}"):
            bring(site, manifest(name, version, files))
    bring(stage("imported").fork(), manifest(*own, files))
