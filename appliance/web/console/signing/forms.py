"""The form of an order: its fields follow from the order's own members, so that a new verb needs none of its own."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from appliance.domain.core.decisions import Conditions
from appliance.domain.core.names import encode_value, list_problems
from appliance.domain.core.order import Order
from appliance.domain.data.imports import ImportRows
from appliance.domain.governance.keys import NewKey
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.governance.policy_files import assemble_policy
from appliance.domain.recipe.recipe import Recipe
from appliance.domain.releases.adapters import OnAdapter
from appliance.domain.rulebook.proposals import HEADER
from appliance.domain.rulebook.registry import VERBS
from appliance.domain.rulebook.showing import label_of
from appliance.errors import BadInput, NotFound
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.fields import parse_identifier
from appliance.formats.core.typed_time import parse_end, parse_moment
from appliance.web.console.core.page import Value
from appliance.workflows.proposals import Draft

COMMAND_LINE = frozenset(
    {
        *("import-base", "export-adapter"),  # files of any size
        "enroll-several",  # a folder
        "enroll-application",  # signed by a unit, which has no session here
        *("rotate-log-key", "reset-clock"),  # the trust of the client itself changes
    }
)
"""Verbs that need more than a form."""

Kind = Literal["line", "text", "number", "time", "yes", "choice", "words", "lines", "document", "file"]

_DERIVED = frozenset(
    {
        *("version", "manifest", "digest", "base_digest", "dataset_digest", "request", "verdict", "tier"),
        *("sets", "local_sets", "sweep", "opened"),
    }
)
_LOOKED_UP = ("revoke-base", "revoke-dataset", "revoke-validation-set", "train")
_OF_PROOF = frozenset(
    {
        *("principal", "key", "keyid", "possession", "passkey", "credential_id", "rp_id", "origins"),
        "backup_eligible",
    }
)
_PAST = ("issued_before",)
HELD_OUT_FILE = "held_out_file"
_HINTS = {
    "adapter": "NAME@VERSION",
    "dataset": "NAME@VERSION",
    "validation_set": "NAME@VERSION",
    "valid_until": "a day, or 30d",
    "until": "a day, or 7d",
    "due": "a day, or 7d",
    "proof": "the whole text of the proof's file",
    "gates": "the whole text of a gate set's file; empty: none",
    "roles": "divided by spaces",
    "file": "200 MB at most; a larger one is imported on the command line",
    "held_out": "a share of the rows, such as 0.2",
    "held_out_file": "instead of a share: a file of its own, in the same format",
    "columns": "PART=COLUMN, one a line, such as text=body; empty: the file's columns have the parts' names",
    "labels": "one a line; empty: those that occur in the file",
    "instruction": "the system message of every row",
    "tasks": "divided by spaces",
    "subject": "adapter:NAME@VERSION, dataset:NAME …",
    "licence": "an SPDX identifier such as Apache-2.0, LicenseRef-NAME, or one that policy lists",
    "classification": "one that policy lists, such as internal",
    "meaning": "what you checked, and what your decision means; it is signed and others read it",
    "on_behalf_of": "who delegated this to you",
    "not_before": "a day; no answer before it",
    "not_after": "a day; no answer from then on",
    "answers_a_day": "requests admitted in one day of UTC",
    "on": "here: on the service's machine; slurm: on the site's cluster",
}


_FILES = {"parameters": "parameters.json", "cedar": "policies.cedar", "schema": "schema.cedarschema"}
_SAID = {"parameters": "numbers", "cedar": "site policies", "schema": "what these can see"}


class Field(Value):
    name: str
    label: str
    kind: Kind
    choices: tuple[str, ...] = ()
    optional: bool = False
    hint: str = ""
    value: str = ""
    suggestions: tuple[str, ...] = ()


_POLICY = (
    Field(name="policy.name", label="name of the set", kind="line"),
    *(Field(name=f"policy.{part}", label=f"{_SAID[part]}, {file}", kind="text") for part, file in _FILES.items()),
)


def model_of(verb: str) -> type[Order]:
    """NotFound for a verb that no form can ask for."""
    if verb not in VERBS or verb in COMMAND_LINE:
        raise NotFound(f"order: expected a verb that a form can ask for, got {verb!r:.60}; use the command line")
    return VERBS[verb].order


def fields_of(verb: str, given: Mapping[str, str]) -> tuple[Field, ...]:
    """In the order of the members; `given` fills some in."""
    model = model_of(verb)
    schema = model.model_json_schema()["properties"]
    found: list[Field] = []
    for name, member in schema.items():
        if name not in HEADER and name != "reason" and not _is_derived(model, name):
            found += _fields(model, name, member)
    if model is AdoptPolicy:
        found = list(_POLICY)
    if issubclass(model, NewKey):
        found.insert(0, Field(name="proof", label="proof", kind="document", hint=_HINTS["proof"]))
    found.append(_field("reason", schema["reason"]))
    return tuple(one.model_copy(update={"value": given.get(one.name, one.value)}) for one in found)


def _fields(model: type[Order], name: str, member: dict[str, Any]) -> list[Field]:
    """Those of one member."""
    if name == "conditions":
        return [_field(f"conditions.{one}", part) for one, part in _properties(Conditions).items()]
    if name == "recipe":
        return [_of_recipe(one, part) for one, part in _properties(Recipe).items()]
    if name == "gates":
        return [Field(name=name, label="gates", kind="document", optional=True, hint=_HINTS[name])]
    if issubclass(model, ImportRows) and name in _OF_ROWS:
        kind, optional, value = _OF_ROWS[name]
        of_file = Field(name=name, label=name, kind=kind, optional=optional, hint=_HINTS.get(name, ""), value=value)
        if name != "held_out":
            return [of_file]
        own = Field(name=HELD_OUT_FILE, label="held-out file", kind="file", optional=True, hint=_HINTS[HELD_OUT_FILE])
        return [of_file.model_copy(update={"label": "held out"}), own]
    found = _field(name, member)
    if issubclass(model, ImportRows) and name in _NEW_NAMES:
        return [found.model_copy(update={"hint": "a name; the appliance counts its versions"})]
    return [found]


_NEW_NAMES = ("dataset", "validation_set")
_OF_ROWS: dict[str, tuple[Kind, bool, str]] = {
    "file": ("file", False, ""),
    "columns": ("lines", True, ""),
    "labels": ("lines", True, ""),
    "instruction": ("text", True, ""),
    "seed": ("number", False, "1"),
    "held_out": ("line", False, "0.2"),
}
"""Of a file of rows: how each is asked for, whether it can be empty, and what it begins with."""


def _properties(model: type[Any]) -> dict[str, Any]:
    return dict(model.model_json_schema()["properties"])


def _is_derived(model: type[Order], name: str) -> bool:
    if issubclass(model, NewKey) and name in _OF_PROOF:
        return True
    if issubclass(model, ImportRows):
        return name == "base_digest"
    of_adapter = issubclass(model, OnAdapter) and name in _DERIVED
    return of_adapter or (model.verb in _LOOKED_UP and name in _DERIVED)


def _of_recipe(name: str, member: dict[str, Any]) -> Field:
    default = member.get("default")
    value = "" if default is None else str(default)
    return Field(
        name=f"recipe.{name}",
        label=label_of(name),
        kind="line",
        optional="default" in member,
        hint=str(member.get("description", "")),
        value=value,
    )


def _field(name: str, member: dict[str, Any]) -> Field:
    parts = member.get("anyOf", [member])
    real = next(part for part in parts if part.get("type") != "null")
    optional = any(part.get("type") == "null" for part in parts)
    kind, choices = _kind(real)
    last = name.rpartition(".")[2]
    return Field(
        name=name,
        label=f"condition: {label_of(last)}" if name.startswith("conditions.") else label_of(name),
        kind=kind,
        choices=choices,
        optional=optional
        or kind == "yes"
        or (kind in ("choice", "number") and "default" in member)
        or name.startswith("conditions."),
        hint=_HINTS.get(last, ""),
        value=str(member.get("default") or _FIRST.get(name, "")) if kind in ("choice", "number") else "",
    )


_FIRST = {"task": "classification", "format": "csv"}
"""What is chosen before a person chooses, of fields that have no default of their own."""


def _kind(member: dict[str, Any]) -> tuple[Kind, tuple[str, ...]]:
    pattern = str(member.get("pattern", ""))
    if "enum" in member:
        return "choice", tuple(member["enum"])
    if pattern.startswith("^hmac-sha256"):
        return "text", ()
    if pattern.startswith("^[0-9]{4}-"):
        return "time", ()
    kinds: dict[str, Kind] = {"boolean": "yes", "integer": "number", "array": "words"}
    return kinds.get(str(member.get("type")), "line"), ()


def read_draft(verb: str, form: Mapping[str, str], now: datetime) -> Draft:
    """What the fields say; BadInput names one that says nothing where it must, or cannot be read."""
    draft, known = Draft({}), fields_of(verb, {})
    if unknown := sorted(form.keys() - {one.name for one in known}):
        raise BadInput(f"form: expected the fields of {verb}, got {unknown[0]!r:.60} too")
    for one in known:
        text = form.get(one.name, "").strip() if one.kind != "text" else form.get(one.name, "")
        if not text and one.optional and one.kind == "number":
            text = one.value
        if not text and not one.optional and one.kind != "yes":
            raise BadInput(f"{one.label}: expected a value, got none")
        _take(draft, one, text, now)
    conditions = {name: draft.values.pop(f"conditions.{name}", None) for name in Conditions.model_fields}
    if any(name.name.startswith("conditions.") for name in known):
        draft.values["conditions"] = _conditions(conditions)
    if issubclass(model_of(verb), ImportRows):
        _rows(draft)
    if model_of(verb) is AdoptPolicy:
        draft.documents["policy"] = _policy(draft)
    recipe = {
        name: draft.values.pop(f"recipe.{name}") for name in Recipe.model_fields if f"recipe.{name}" in draft.values
    }
    if recipe:
        draft.values["recipe"] = {name: value for name, value in recipe.items() if value is not None}
    return draft


def _take(draft: Draft, one: Field, text: str, now: datetime) -> None:
    if one.kind == "document":
        if text:
            role = "possession" if one.name == "proof" else one.name
            draft.documents[role] = encode_canonical(parse_canonical(text.encode("utf-8")))
    elif one.kind == "text" and one.name != "commitment":
        if text:
            draft.texts[one.name] = text.replace("\r\n", "\n")
        else:
            draft.values[one.name] = None
    elif one.name.startswith("recipe."):
        draft.values[one.name] = _recipe_value(text)
    else:
        draft.values[one.name] = _value(one, text, now)


def _rows(draft: Draft) -> None:
    """Of a file of rows: its columns by part, no instruction as the empty text, and which rows are held out."""
    columns: dict[str, str] = {}
    for line in draft.values["columns"]:
        part, sign, name = (one.strip() for one in line.partition("="))
        if not (part and sign and name) or part in columns:
            raise BadInput(f"columns: expected PART=COLUMN on each line, each part once, got {line!r:.80}")
        columns[part] = name
    draft.values["columns"] = columns
    draft.texts["instruction"] = draft.texts.get("instruction", "")
    draft.values.pop("instruction", None)
    if held_out := draft.values.pop(HELD_OUT_FILE, None):
        draft.values["held_out"] = held_out


def _policy(draft: Draft) -> bytes:
    """The policy set of the form's files, as the command line makes it of a folder's."""
    files = {file: draft.texts.pop(f"policy.{part}").encode("utf-8") for part, file in _FILES.items()}
    return encode_value(assemble_policy(parse_identifier(draft.values.pop("policy.name"), "name of the set"), files))


def _value(one: Field, text: str, now: datetime) -> Any:
    if one.kind == "yes":
        return text == "yes"
    if one.kind == "words":
        return tuple(text.replace(",", " ").split())
    if one.kind == "lines":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    if not text:
        return None
    if one.kind == "number":
        if not text.isascii() or not text.isdecimal() or len(text) > 12:
            raise BadInput(f"{one.label}: expected a whole number, got {text!r:.40}")
        return int(text)
    if one.kind == "time":
        reads = parse_moment if one.name in _PAST else parse_end
        return reads(text, one.label, now)
    return text


def _recipe_value(text: str) -> Any:
    """As YAML would read it: a whole number, members in braces, a list divided by commas, or a word."""
    if not text:
        return None
    if text.startswith("{") and text.endswith("}"):
        members = (part.partition(":") for part in text[1:-1].split(","))
        return {name.strip(): value.strip() for name, _, value in members}
    if text.isascii() and text.isdecimal() and len(text) < 12:
        return int(text)
    return [part.strip() for part in text.split(",")] if "," in text else text


def _conditions(values: Mapping[str, Any]) -> Conditions | None:
    tasks = values["tasks"] or ()
    try:
        found = Conditions.model_validate({**values, "tasks": tasks})
    except ValidationError as error:
        raise BadInput(f"conditions: {'; '.join(list_problems(error))}") from None
    return None if found.say_nothing() else found
