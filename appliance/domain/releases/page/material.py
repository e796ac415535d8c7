"""What a review page is made of: checked bytes of sealed folders, and rows of the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.domain.data.imports import RELEASED_ENDING
from appliance.domain.data.teaching import Teaching
from appliance.domain.evaluation.items import ITEMS_FILE
from appliance.domain.evaluation.judging import CALIBRATION_FILE, GATES_FILE, VERDICT_FILE
from appliance.domain.releases.page.value import Asked, Decided, Found, Run, TrainedBefore, Tried
from appliance.errors import Tampered
from appliance.formats.artifacts.manifest import Manifest
from appliance.formats.signatures.statement import Statement

RECIPE_FILE, METRICS_FILE, ORIGIN_FILE = "recipe.json", "metrics.json", "base.json"
COMPARED_FILES = (RECIPE_FILE, ORIGIN_FILE)
"""The files that another version is compared by."""
PAGE_FILES = (*COMPARED_FILES, METRICS_FILE, GATES_FILE, VERDICT_FILE, CALIBRATION_FILE, ITEMS_FILE)
"""The files of a sealed folder that the page is made of; the manifest lists those that are there."""


def is_page_file(path: str) -> bool:
    """Whether the page is made of this file: beside `PAGE_FILES`, the items of each set that the run was judged on."""
    items = path.startswith("items-") and path.endswith(".jsonl") and not path.endswith(f"{RELEASED_ENDING}.jsonl")
    return path in PAGE_FILES or items


@dataclass(frozen=True)
class DatasetFacts:
    """Of the dataset that a version was trained on. `digest`: of its manifest; `entry`: its import; `rows`: counts that
    the import found; `owner`: None where its text was erased, or is withheld."""

    name: str
    digest: str
    entry: int
    rows: Mapping[str, int]
    teaching: Teaching
    owner: str | None
    licence: str
    classification: str
    imported_by: str


@dataclass(frozen=True)
class SealedVersion:
    """A sealed adapter whose bytes, signature and provenance were checked.

    `entry`: its sealing. `files`: by path, those of its manifest that the page is made of, or `COMPARED_FILES` where it
    is only compared with. `materials`: (name, digest) of its provenance. `run_entry`: the request for its run.
    """

    name: str
    manifest: Manifest
    digest: str
    entry: int
    sealed_at: str
    run: str
    run_entry: int
    ordered_by: str
    order: str
    files: Mapping[str, bytes]
    materials: tuple[tuple[str, str], ...]
    dataset: DatasetFacts
    base_licence: str
    base_entry: int | None


@dataclass(frozen=True)
class Released:
    """The version that answers these units now, by the entry of its last release among them."""

    units: tuple[str, ...]
    entry: int
    version: SealedVersion


@dataclass(frozen=True)
class PageMaterial:
    """`answers`: UNIT/TASK of the releases that have this version answer. `released`: what other versions of it answer
    the units that are asked for. `judged_before`: runs that were judged on the same rows.
    `trained_before`: runs that were trained on the same ones. `tried`: how many were ordered."""

    version: SealedVersion
    revoked: int | None
    quarantined: int | None
    answers: tuple[str, ...]
    asked: tuple[Asked, ...]
    findings: tuple[Found, ...]
    decisions: tuple[Decided, ...]
    released: tuple[Released, ...]
    judged_before: tuple[Run, ...]
    trained_before: TrainedBefore
    tried: Tried


def count_rows(facts: Mapping[str, Any]) -> dict[str, int]:
    """The counts of rows among the facts that an import found."""
    names = ("train_rows", "held_out_rows")
    return {name: facts[name] for name in names if type(facts.get(name)) is int}


def materials_of(provenance: Statement) -> tuple[tuple[str, str], ...]:
    """(what, digest) of all that went in, by a provenance whose signature was checked."""
    try:
        found = provenance.predicate["buildDefinition"]["resolvedDependencies"]
        return tuple((str(item["name"]), f"sha256:{item['digest']['sha256']}") for item in found)
    except (KeyError, TypeError):
        raise Tampered("provenance: expected its resolved dependencies, got none") from None
