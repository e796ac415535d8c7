"""What another policy set changes: in words, and as the text of its files."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from appliance.domain.core.names import Value
from appliance.domain.core.policy import PolicySet
from appliance.domain.governance.policy_files import PARAMETERS, POLICIES, SCHEMA

_ID = re.compile(r'^[ \t]*@id\("([^"\n]*)"\)', re.MULTILINE)


class PolicyChange(Value):
    """`what` differs: a parameter, a named part of one (such as a tier), a site policy, or the schema. None where one
    of the two sets has none."""

    what: str
    before: str | None
    now: str | None


def describe_changes(old: PolicySet, new: PolicySet) -> tuple[PolicyChange, ...]:
    """Each thing that differs, once."""
    before, now = old.parameters.model_dump(mode="json"), new.parameters.model_dump(mode="json")
    found: list[PolicyChange] = []
    for name in now:
        found += _of_parameter(name.replace("_", " "), before[name], now[name])
    ours, theirs = _policies(old.cedar), _policies(new.cedar)
    for name in dict.fromkeys((*ours, *theirs)):
        found += _changed(f"site policy {name}", ours.get(name), theirs.get(name))
    return (
        *found,
        *_changed("schema", _length(old.cedar_schema), _length(new.cedar_schema), old.cedar_schema == new.cedar_schema),
    )


def differences(old: PolicySet, new: PolicySet) -> list[str]:
    """As unified diffs: one over the parameters, one over the Cedar text, one over its schema."""
    lines: list[str] = []
    for what, before, after in (
        (PARAMETERS, _shown(old.parameters.model_dump()), _shown(new.parameters.model_dump())),
        (POLICIES, old.cedar, new.cedar),
        (SCHEMA, old.cedar_schema, new.cedar_schema),
    ):
        names = (f"{old.name}/{what} (in force)", f"{new.name}/{what}")
        lines += difflib.unified_diff(before.splitlines(), after.splitlines(), *names, lineterm="")
    return lines


def _of_parameter(label: str, before: Any, now: Any) -> list[PolicyChange]:
    if _is_named(before) and _is_named(now):
        ours, theirs = ({one["name"]: one for one in value} for value in (before, now))
        parts: list[PolicyChange] = []
        for name in dict.fromkeys((*ours, *theirs)):
            parts += _changed(f"{label}: {name}", _told(ours.get(name)), _told(theirs.get(name)))
        return parts
    return _changed(label, _told(before), _told(now), before == now)


def _is_named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value)


def _changed(what: str, before: str | None, now: str | None, same: bool | None = None) -> list[PolicyChange]:
    is_same = before == now if same is None else same
    return [] if is_same else [PolicyChange(what=what, before=before, now=now)]


def _told(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_told(item) or 'none'}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(str(_told(item)) for item in value) or "none"
    return str(value)


def _policies(cedar: str) -> dict[str, str]:
    """Each policy's text by its `@id`, which every policy of an adopted set has; what comes before the first is left
    to the text diff."""
    starts = list(_ID.finditer(cedar))
    ends = [found.start() for found in starts[1:]] + [len(cedar)]
    return {found[1]: _code(cedar[found.end() : end]) for found, end in zip(starts, ends, strict=True)}


def _code(text: str) -> str:
    """Without comment lines and the layout of lines: what Cedar reads."""
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line for line in lines if line and not line.startswith("//"))


def _length(schema: str) -> str:
    return f"{len(schema.splitlines())} lines"


def _shown(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, indent=2, sort_keys=True)
