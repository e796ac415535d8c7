"""Differences between two sealed versions: in the fields of their runs' orders, and in the code that trained them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from appliance.domain.core.names import split_version
from appliance.domain.core.order import Order
from appliance.domain.evaluation.gates import parse_gates
from appliance.domain.evaluation.quality import list_scores
from appliance.domain.evaluation.rules import GATES_FILE
from appliance.domain.queries.review.values import Change, PageBase, SignedContent, TrainingData, VersionChanges
from appliance.domain.runs.training import Train
from appliance.errors import BadInput
from appliance.formats.artifacts.manifest import PrivacyGuarantee

RECIPE_FILE, METRICS_FILE, ORIGIN_FILE = "recipe.json", "metrics.json", "base.json"


@dataclass(frozen=True)
class SealedVersion:
    """A sealed adapter whose bytes, signature and provenance were checked.

    `files`: by path, those of its manifest that were read. `train`: the order of the run, requested by `run_entry`.
    `base_entry`: the entry that imported the base. `privacy`: the guarantee of its manifest.
    """

    name: str
    files: Mapping[str, bytes]
    train: Train
    run_entry: int
    base_entry: int
    privacy: PrivacyGuarantee | None
    training_data: TrainingData
    base: PageBase
    signed_content: SignedContent


ERASED = "a text that was erased, or is withheld"
"""Text that replaces an erased or withheld text."""
_RECIPE_KEYS_ELSEWHERE = ("base", "dataset", "name")
"""Keys of a recipe that are shown with the data or the base, or are the same by definition."""
_PACKAGE, _APPLIANCE = "pkg:pypi/", "appliance@"


def compare_versions(ours: SealedVersion, theirs: SealedVersion, units: tuple[str, ...], entry: int) -> VersionChanges:
    """Return the differences from the version that is active for these units since a release entry."""
    return VersionChanges(
        units=units,
        since=theirs.name,
        entry=entry,
        measures=tuple(_list_measures(theirs, ours)),
        data=tuple(_list_differences(_describe_data(theirs), _describe_data(ours)))
        + tuple(_list_label_changes(theirs, ours))
        + tuple(_list_label_shifts(theirs, ours)),
        recipe=tuple(_list_differences(_describe_recipe(theirs), _describe_recipe(ours))),
        base=tuple(_list_differences(_describe_base(theirs), _describe_base(ours))),
        instruction=tuple(_list_differences(_describe_instruction(theirs), _describe_instruction(ours))),
        evaluation=tuple(_list_differences(_describe_evaluation(theirs), _describe_evaluation(ours))),
        run=tuple(_list_differences(_describe_run(theirs), _describe_run(ours))),
        code=tuple(_list_differences(_describe_code(theirs), _describe_code(ours))),
    )


def _list_differences(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> Iterable[Change]:
    """Yield the values that differ, in the order of the later version. Values of the earlier one alone come last."""
    for what in dict.fromkeys([*now, *before]):
        if before.get(what) != now.get(what):
            yield Change(what=what, before=before.get(what), now=now.get(what))


def _list_measures(before: SealedVersion, now: SealedVersion) -> Iterable[Change]:
    """Yield the measures that differ. Where the datasets differ, so do the held-out rows, and each name says so."""
    theirs, ours = (list_scores(read_object(version.name, version.files, METRICS_FILE)) for version in (before, now))
    same_rows = before.training_data.dataset_digest == now.training_data.dataset_digest
    for one in _list_differences(theirs, ours):
        yield one if same_rows else one.model_copy(update={"what": f"{one.what}, on other rows"})


def _describe_data(version: SealedVersion) -> dict[str, str | None]:
    data = version.training_data
    return {
        "dataset": data.dataset,
        "digest": data.dataset_digest,
        **{name.replace("_", " "): str(count) for name, count in data.rows.items()},
        "owner": ERASED if data.owner is None else data.owner,
        "licence": data.licence,
        "classification": data.classification,
        "imported by": data.imported_by,
    }


LEAST_SHIFT = Fraction(1, 5)
"""Smallest relative change of a label's share of the training rows that the page shows."""
LEAST_ROWS = 5
"""Smallest number of rows by which such a label must differ from its earlier share."""


def _list_label_shifts(before: SealedVersion, now: SealedVersion) -> Iterable[Change]:
    """Yield the labels whose share of the training rows has changed, with the counts of both versions."""
    theirs, ours = (_count_labels(version) for version in (before, now))
    for label in sorted(theirs.keys() & ours.keys()):
        expected = Fraction(theirs[label] * sum(ours.values()), max(1, sum(theirs.values())))
        shift = abs(ours[label] - expected)
        if shift >= LEAST_ROWS and shift >= LEAST_SHIFT * expected:
            what = f"training rows of label {label}, {round(expected)} expected"
            yield Change(what=what, before=str(theirs[label]), now=str(ours[label]))


def _count_labels(version: SealedVersion) -> dict[str, int]:
    data = version.training_data
    return dict(zip(data.labels, data.label_rows, strict=True)) if data.label_rows else {}


def _list_label_changes(before: SealedVersion, now: SealedVersion) -> Iterable[Change]:
    theirs, ours = (set(version.training_data.labels) for version in (before, now))
    if ours - theirs:
        yield Change(what="labels added", before=None, now=", ".join(sorted(ours - theirs)))
    if theirs - ours:
        yield Change(what="labels removed", before=", ".join(sorted(theirs - ours)), now=None)


def _describe_recipe(version: SealedVersion) -> dict[str, str | None]:
    members = version.signed_content.recipe
    return {name: show(value) for name, value in sorted(members.items()) if name not in _RECIPE_KEYS_ELSEWHERE}


def _describe_base(version: SealedVersion) -> dict[str, str | None]:
    """Return the facts of the base. Its quantisation and compute dtype are shown with the recipe."""
    members = version.base.facts
    labels = {"base": "base", "digest": "digest", "tokenizer": "tokenizer", "chat_template": "chat template"}
    facts = {label: show(members[name]) for name, label in labels.items() if name in members}
    return {**facts, "licence": version.base.licence}


def _describe_instruction(version: SealedVersion) -> dict[str, str | None]:
    data = version.training_data
    return {
        "dataset kind": data.dataset_kind,
        "instruction": ERASED if data.instruction is None else data.instruction or None,
    }


def _describe_evaluation(version: SealedVersion) -> dict[str, str | None]:
    """Return the gates with their rules, and each set of rows that the run's order names for them."""
    values: dict[str, str | None] = {}
    if (data := version.files.get(GATES_FILE)) is not None:
        gates = parse_gates(data, f"adapter {version.name}, {GATES_FILE}")
        settings = gates.model_dump(mode="json", exclude={"version", "name", "gates"})
        values |= {"gates file": gates.name, **{name: show(value) for name, value in settings.items()}}
        values |= {f"gate {gate.name}": gate.describe_role() for gate in gates.gates}
    values["gates digest"] = version.train.gates
    for bound in version.train.sets:
        values[f"validation set {split_version(bound.validation_set)[0]}"] = f"{bound.validation_set} ({bound.digest})"
    return values | {f"set {local_set.set}": local_set.digest for local_set in version.train.local_sets}


_FIELDS_ELSEWHERE = {*Order.model_fields, "recipe", "base_digest", "dataset_digest", "gates", "sets", "local_sets"}


_LABELS = {"on": "trains on"}


def _describe_run(version: SealedVersion) -> dict[str, str | None]:
    """Return who ordered the run, and the fields of the order that belong to no other topic."""
    values = version.train.model_dump(mode="json", exclude=_FIELDS_ELSEWHERE)
    return {"ordered by": version.train.signer, **{_LABELS.get(name, name): show(one) for name, one in values.items()}}


def _describe_code(version: SealedVersion) -> dict[str, str | None]:
    """Return the versions and digests of the appliance and of its packages."""
    versions: dict[str, str | None] = {}
    for name, digest in version.signed_content.materials.items():
        if name.startswith(_APPLIANCE):
            versions["appliance"] = f"{name.removeprefix(_APPLIANCE)} ({digest})"
        elif name.startswith(_PACKAGE):
            package, _, number = name.removeprefix(_PACKAGE).partition("@")
            versions[package] = f"{number} ({digest})"
    return versions


def read_object(adapter: str, files: Mapping[str, bytes], path: str) -> dict[str, Any]:
    """Return a JSON object among the files of a sealed folder, empty if there is no such file."""
    data = files.get(path)
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"adapter {adapter}, {path}: expected JSON, got: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise BadInput(f"adapter {adapter}, {path}: expected a JSON object, got {type(value).__name__}")
    return value


def show(value: Any) -> str | None:
    """Return a value of a JSON object as text for people, None for null."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
