"""What differs between two sealed versions: data, recipe, base, what is taught, code. Only what differs is said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from appliance.domain.releases.page.material import ORIGIN_FILE, RECIPE_FILE, Released, SealedVersion
from appliance.domain.releases.page.value import Change, Changes
from appliance.errors import BadInput

ERASED = "a text that was erased, or is withheld"
_ELSEWHERE = ("base", "dataset", "name")
"""Keys of a recipe that are said with the data or the base, or are the same by definition."""
_PACKAGE, _APPLIANCE = "pkg:pypi/", "appliance@"


def compare_versions(ours: SealedVersion, released: Released) -> Changes:
    theirs = released.version
    return Changes(
        units=released.units,
        since=theirs.name,
        entry=released.entry,
        data=tuple(_differ(_data(theirs), _data(ours))) + tuple(_labels(theirs, ours)),
        recipe=tuple(_differ(_recipe(theirs), _recipe(ours))),
        base=tuple(_differ(_base(theirs), _base(ours))),
        teaching=tuple(_differ(_teaching(theirs), _teaching(ours))),
        code=tuple(_differ(_code(theirs), _code(ours))),
    )


def _differ(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> Iterable[Change]:
    """In the order of the later one; what only the earlier one has comes last."""
    for what in dict.fromkeys([*now, *before]):
        if before.get(what) != now.get(what):
            yield Change(what=what, before=before.get(what), now=now.get(what))


def _data(version: SealedVersion) -> dict[str, str | None]:
    dataset = version.dataset
    rows = {name.replace("_", " "): str(count) for name, count in dataset.rows.items()}
    owner = ERASED if dataset.owner is None else dataset.owner
    return {
        "dataset": dataset.name,
        **rows,
        "owner": owner,
        "licence": dataset.licence,
        "classification": dataset.classification,
        "imported by": dataset.imported_by,
    }


def _labels(before: SealedVersion, now: SealedVersion) -> Iterable[Change]:
    theirs, ours = (set(version.dataset.teaching.about.labels) for version in (before, now))
    if ours - theirs:
        yield Change(what="labels added", before=None, now=", ".join(sorted(ours - theirs)))
    if theirs - ours:
        yield Change(what="labels removed", before=", ".join(sorted(theirs - ours)), now=None)


def _recipe(version: SealedVersion) -> dict[str, str | None]:
    members = read_object(version, RECIPE_FILE)
    return {name: show(value) for name, value in sorted(members.items()) if name not in _ELSEWHERE}


def _base(version: SealedVersion) -> dict[str, str | None]:
    """The quantisation and the compute dtype are said with the recipe."""
    members = read_object(version, ORIGIN_FILE)
    named = {"base": "base", "digest": "digest", "tokenizer": "tokenizer", "chat_template": "chat template"}
    found = {label: show(members[name]) for name, label in named.items() if name in members}
    return {**found, "licence": version.base_licence}


def _teaching(version: SealedVersion) -> dict[str, str | None]:
    teaching = version.dataset.teaching
    instruction = ERASED if teaching.instruction is None else teaching.instruction or None
    return {"task": teaching.about.task, "instruction": instruction}


def _code(version: SealedVersion) -> dict[str, str | None]:
    """The appliance and its packages by version; where only the files differ, by their digest too."""
    found: dict[str, str | None] = {}
    for name, digest in version.materials:
        if name.startswith(_APPLIANCE):
            found["appliance"] = f"{name.removeprefix(_APPLIANCE)} ({digest})"
        elif name.startswith(_PACKAGE):
            package, _, number = name.removeprefix(_PACKAGE).partition("@")
            found[package] = f"{number} ({digest})"
    return found


def read_object(version: SealedVersion, path: str) -> dict[str, Any]:
    """A JSON object of the sealed folder; empty where the folder has no such file."""
    data = version.files.get(path)
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"adapter {version.name}, {path}: expected JSON, got: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise BadInput(f"adapter {version.name}, {path}: expected a JSON object, got {type(value).__name__}")
    return value


def show(value: Any) -> str | None:
    """A member of a JSON object as people read it; None for null."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
