"""What an import's entry says of its worker's walls, and whose manifest it brings."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.data.imports import ImportRequested
from appliance.errors import Denied
from scripts.kit.log_builder import LogBuilder, manifest, stage


def base(site: LogBuilder, document: bytes, **fields: Any) -> None:
    requested = site.request_import("other", "ines")
    site.add(site.base_imported(requested, "other", **fields), documents={"manifest": document})


def dataset(site: LogBuilder, document: bytes, **fields: Any) -> None:
    requested = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order())
    site.add(site.dataset_imported(requested, dataset="clauses@2", **fields), documents={"manifest": document})


@pytest.mark.parametrize(("bring", "own"), [(base, ("other", 1)), (dataset, ("clauses", 2))])
def test_walls_held_and_the_manifest_is_of_what_was_imported(bring: Any, own: tuple[str, int]) -> None:
    files = {"rows": b"others"}
    for walls, words in (
        ({}, "walls: expected the worker's probes, got none"),
        ({"network": "open"}, "through: network"),
    ):
        site = stage("imported").fork()
        with pytest.raises(Denied, match=words):
            bring(site, manifest(*own, files), walls=walls)
    for name, version in ((own[0], 7), ("another", own[1])):
        site = stage("imported").fork()
        with pytest.raises(Denied, match=f"manifest: expected {own[0]}@{own[1]}, got {name}@{version}"):
            bring(site, manifest(name, version, files))
    bring(stage("imported").fork(), manifest(*own, files))
