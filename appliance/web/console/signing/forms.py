"""Order forms. Their fields follow from the order's model, so that a new action needs no form of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import groupby
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from appliance.domain.actions.proposals import HEADER
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.actions.showing import label_of
from appliance.domain.core.decisions import Conditions
from appliance.domain.core.lookup import OrderInput
from appliance.domain.core.names import encode_value, list_problems
from appliance.domain.core.order import Order
from appliance.domain.data.imports import ImportRows
from appliance.domain.evaluation.gates import parse_gate_file
from appliance.domain.governance.countersignature import Countersign, list_waiting_orders
from appliance.domain.governance.invitations import EnrolWithPasskey
from appliance.domain.governance.policies import AdoptPolicy, assemble_policy
from appliance.domain.recipe.recipe import Recipe
from appliance.errors import ApplianceError, BadInput, NotFound
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.fields import parse_identifier
from appliance.formats.core.timestamp import parse_end, parse_moment
from appliance.web.console.core.page import PageValue
from appliance.web.console.signing.choices import SOURCES, Choice, ChoiceQuery, list_choices

Kind = Literal[
    "line", "name", "text", "number", "time", "past", "yes", "choice", "words", "lines", "document", "file", "secret"
]

_COMMITMENT = "^hmac-sha256"
"""Beginning of the pattern of commitments."""
HELD_OUT_FILE = "held_out_file"
"""Field for a file of held-out rows."""
OTHER = ".other"
"""Suffix of the field for a value that is not in the list of the field before it."""
SHORT_CODE = "short_code"
"""Field for the short code that a person reads out. It is compared, and is not part of the order."""
_FILES = {"parameters": "parameters.json", "cedar": "policies.cedar", "schema": "schema.cedarschema"}
"""File of each part of a policy set."""
_PART_HINTS = {
    "parameters": "times are in seconds; the manual has the meaning and the range of each, under Policy parameters",
    "cedar": "rules that refuse more than the appliance itself does",
    "schema": "it comes with the appliance; leave it as it is",
}
"""Hint of each part."""
_PART_NAMES = {"parameters": "numbers", "cedar": "Cedar policies", "schema": "what these can see"}
"""Name of each part of a policy set on the page."""
CONDITIONS_PART = "Conditions"
_RECIPE_PART = "More values of the recipe, each with a default"
_MORE_TEXTS = "More of these"


class Field(PageValue):
    """A field of a form.

    `part` is the title of the folded part in which it is; `needed` says for what a field that can be empty is required.
    """

    name: str
    label: str
    kind: Kind
    choices: tuple[Choice, ...] = ()
    optional: bool = False
    needed: str = ""
    hint: str = ""
    value: str = ""
    part: str = ""
    is_open: bool = False
    """True if another value than those of the list can be given."""
    other: str = ""
    """The other value."""
    problem: str = ""
    is_changed: bool = False
    """True if the value is another than the one with which an empty form begins."""
    has_default: bool = False
    """True if an empty form begins with a value, so that its list has no empty choice."""

    @property
    def chosen(self) -> tuple[str, ...]:
        """The values of a field that can have several."""
        return tuple(self.value.replace(",", " ").split())

    @property
    def groups(self) -> tuple[tuple[str, tuple[Choice, ...]], ...]:
        """The choices by the heading under which they are shown."""
        return tuple((name, tuple(found)) for name, found in groupby(self.choices, key=lambda one: one.group))


def parts_of(fields: tuple[Field, ...]) -> tuple[tuple[str, tuple[Field, ...]], ...]:
    """Return the fields by their folded part, in sequence. Fields that are always shown have the part ""."""
    return tuple((title, tuple(found)) for title, found in groupby(fields, key=lambda one: one.part))


_POLICY = (
    Field(name="policy.name", label="name of the set", kind="line"),
    *(
        Field(name=f"policy.{part}", label=f"{_PART_NAMES[part]}, {file}", kind="text", hint=_PART_HINTS[part])
        for part, file in _FILES.items()
    ),
)


_CODES: dict[type[Order], Field] = {
    EnrolWithPasskey: Field(
        name=SHORT_CODE,
        label="short code",
        kind="line",
        hint="as the person reads it out to you, in person or by a number that you know",
    ),
    Countersign: Field(
        name=SHORT_CODE,
        label="short code",
        kind="line",
        optional=True,
        needed="if the order enrols a person with a passkey",
        hint="as the person reads it out to you yourself, in person or by a number that you know",
    ),
}
"""Field for the short code, by the order whose signer compares it."""


def model_of(action: str) -> type[Order]:
    """Return the order's model of an action.

    Raises: NotFound for an action without a form.
    """
    if action not in ACTIONS or not ACTIONS[action].has_form:
        raise NotFound(f"order: expected an action that a form can ask for, got {action!r:.60}; use the command line")
    return ACTIONS[action].order


def fields_of(action: str) -> tuple[Field, ...]:
    """Return the fields of an action's form, in the order of the model."""
    model = model_of(action)
    schema = _properties(model)
    found: list[Field] = []
    for name, member in schema.items():
        if name not in HEADER and name != "reason" and not member.get("derived"):
            found += _fields(name, member)
    if model is AdoptPolicy:
        found = list(_POLICY)
    if model in _CODES:
        found.append(_CODES[model])
    found.append(_field("reason", schema["reason"]))
    return tuple(found)


def fill_fields(query: ChoiceQuery, given: Mapping[str, str], problems: Mapping[str, str]) -> tuple[Field, ...]:
    """Return the fields of a form with their lists, the given values, and the problem of each."""
    found = tuple(_fill(query, one, given, problems) for one in fields_of(query.action))
    if query.action == Countersign.action and not _enrols_with_passkey(query, given.get("order", "")):
        found = tuple(one for one in found if one.name != SHORT_CODE)
    return found


def _enrols_with_passkey(query: ChoiceQuery, order: str) -> bool:
    """Return True if this order enrols a person with a passkey, or if the order is not chosen and one of them does."""
    waiting = {one.digest: one.action for one in list_waiting_orders(query.state, query.now, query.viewer.name)}
    return EnrolWithPasskey.action in ({waiting[order]} if order in waiting else waiting.values())


def _fill(query: ChoiceQuery, one: Field, given: Mapping[str, str], problems: Mapping[str, str]) -> Field:
    boxes = [name.partition(":")[2] for name in given if name.startswith(f"{one.name}:")]
    value = " ".join((given.get(one.name, ""), *boxes)).lstrip(" ") if boxes else given.get(one.name, one.value)
    changes: dict[str, Any] = {"value": value, "problem": problems.get(one.name, "")}
    changes["has_default"] = bool(one.value)
    changes["is_changed"] = value != one.value or bool(given.get(one.name + OTHER))
    choices, is_open = list_choices(query, one.name) if one.kind in _LISTED else ((), False)
    if choices:
        changes |= {"choices": choices, "is_open": is_open, "other": given.get(one.name + OTHER, "")}
        if one.kind in ("line", "number"):
            changes["kind"] = "choice"
        if len(choices) == 1 and not one.optional and not value and one.name not in given and one.kind != "words":
            changes["value"] = choices[0].value
    elif one.name in _IMPORTED:
        changes["hint"] = f"{one.hint}. None was imported yet"
    return one.model_copy(update=changes)


_IMPORTED = ("base", "recipe.base", "recipe.dataset")
"""Fields that name something that is imported first."""
_LISTED = ("line", "number", "words", "document")
"""Kinds of fields that can have a list."""


def _fields(name: str, member: dict[str, Any]) -> list[Field]:
    """Return the form fields of one field of the order."""
    if name == "conditions":
        parts = [_field(f"conditions.{one}", part) for one, part in _properties(Conditions).items()]
        return [one.model_copy(update={"part": CONDITIONS_PART}) for one in parts]
    if name == "recipe":
        return [_recipe_field(one, part) for one, part in _properties(Recipe).items()]
    if member.get("kind") == "share or file":
        share = _field(name, {**member, "kind": "line"})
        hint = "instead of a share: a file of its own, in the same format"
        file = Field(name=HELD_OUT_FILE, label="held-out file", kind="file", optional=True, hint=hint, part=share.part)
        return [share, file]
    return _several_texts(name, member) if _commits_to_several(member) else [_field(name, member)]


def _commits_to_several(member: dict[str, Any]) -> bool:
    return str(member.get("items", {}).get("pattern", "")).startswith(_COMMITMENT)


def _several_texts(name: str, member: dict[str, Any]) -> list[Field]:
    """Return a text field for each commitment that the list can hold; the first one is required."""
    return [
        Field(
            name=f"{name}.{number}",
            label=f"{name.removesuffix('s')} {number}",
            kind="text",
            optional=number > 1,
            part=_MORE_TEXTS if number > 1 else "",
            hint=_hint(member) if number == 1 else "",
        )
        for number in range(1, int(member["maxItems"]) + 1)
    ]


def _properties(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of each field, with `label` if the model gives it one."""
    labels = {name: {"label": one.title} for name, one in model.model_fields.items() if one.title}
    return {name: part | labels.get(name, {}) for name, part in model.model_json_schema()["properties"].items()}


def _recipe_field(name: str, member: dict[str, Any]) -> Field:
    default = member.get("default")
    value = "" if default is None else str(default)
    options = _options(member)
    return Field(
        name=f"recipe.{name}",
        label=label_of(name),
        kind="choice" if options else "line",
        choices=tuple(Choice(value=one, label=one) for one in options),
        optional="default" in member,
        part=_RECIPE_PART if "default" in member else "",
        hint=str(member.get("description", "")),
        value=value,
    )


def _options(member: dict[str, Any]) -> tuple[str, ...]:
    """Return the words of a field that takes words of a list alone, and none for another field."""
    found: list[str] = []
    for part in member.get("anyOf", [member]):
        if "enum" not in part and "const" not in part:
            return ()
        found += part.get("enum", ()) or [part["const"]]
    return tuple(dict.fromkeys(found))


def _field(name: str, member: dict[str, Any]) -> Field:
    parts = member.get("anyOf", [member])
    real = next(part for part in parts if part.get("type") != "null")
    kind: Kind = member["kind"] if "kind" in member else _kind(real)
    is_condition, last = name.startswith("conditions."), name.rpartition(".")[2]
    optional = is_condition or bool(member.get("optional")) or any(part.get("type") == "null" for part in parts)
    first = member.get("default") or member.get("first") or ""
    return Field(
        name=name,
        label=member.get("label") or label_of(last),
        kind=kind,
        choices=tuple(Choice(value=one, label=one) for one in real.get("enum", ())) if kind == "choice" else (),
        optional=optional or kind in ("yes", "lines") or (kind in ("choice", "number") and "default" in member),
        needed=str(member.get("needed", "")),
        part=str(member.get("part", "")),
        hint=_hint(member),
        value=str(first) if kind in ("choice", "number", "yes", "line", "time") else "",
    )


def _hint(member: dict[str, Any]) -> str:
    return str(member.get("hint") or member.get("description", ""))


def _kind(member: dict[str, Any]) -> Kind:
    pattern = str(member.get("pattern", ""))
    if "enum" in member:
        return "choice"
    if pattern.startswith(_COMMITMENT):
        return "text"
    if pattern.startswith("^[0-9]{4}-"):
        return "time"
    kinds: dict[str, Kind] = {"boolean": "yes", "integer": "number", "array": "words"}
    return kinds.get(str(member.get("type")), "line")


def read_draft(action: str, form: Mapping[str, str], now: datetime) -> tuple[OrderInput, dict[str, str]]:
    """Return the draft that a form's fields describe, and the problem of each field that is missing or unreadable.

    Raises: BadInput for a field that the form does not have.
    """
    draft, known, problems = OrderInput(), fields_of(action), dict[str, str]()
    _check_known(action, form, known)
    for one in known:
        try:
            _take(draft, one, _text_of(one, form), now)
        except BadInput as error:
            problems[one.name] = _match_field(action, error.message)[1]
    if not problems:
        _complete(action, draft, problems)
    return draft, problems


def _complete(action: str, draft: OrderInput, problems: dict[str, str]) -> None:
    """Make the values that several fields of the form describe together, and note the problem of each."""
    model = model_of(action)
    for name, complete in _COMPLETIONS.items():
        if name == "columns" and not issubclass(model, ImportRows):
            continue
        if name == "policy.parameters" and model is not AdoptPolicy:
            continue
        try:
            complete(draft)
        except BadInput as error:
            found, words = _match_field(action, error.message)
            problems[found or name] = words


def _check_known(action: str, form: Mapping[str, str], known: tuple[Field, ...]) -> None:
    names = {*(one.name for one in known), *(f"{one.name}{OTHER}" for one in known if one.name in SOURCES)}
    boxes = {one.name for one in known if one.kind == "words"}
    unknown = sorted(name for name in form if name not in names and name.partition(":")[0] not in boxes)
    if unknown:
        raise BadInput(f"form: expected the fields of {action}, got {unknown[0]!r:.60} too")


def _text_of(one: Field, form: Mapping[str, str]) -> str:
    """Return what the form has for a field: its value, its marked boxes, or the other value that was typed.

    Raises: BadInput for a required field without one.
    """
    text, other = form.get(one.name, ""), form.get(one.name + OTHER, "")
    if one.kind == "words":
        boxes = (name.partition(":")[2] for name in form if name.startswith(f"{one.name}:"))
        text = " ".join((text, *boxes, other))
    elif one.kind == "document" and text.strip() and other.strip():
        raise BadInput(f"{one.label}: expected one of the list, or one of your own, got both")
    elif other.strip():
        text = other
    if one.kind != "text":
        text = text.strip()
    if not text and one.optional and one.kind == "number":
        text = one.value
    if not text.strip() and not one.optional and one.kind != "yes":
        raise BadInput(f"{one.label}: expected a value, got none")
    return text


def _take(draft: OrderInput, one: Field, text: str, now: datetime) -> None:
    if one.kind == "document":
        _take_document(draft, one.name, text)
    elif one.kind == "text":
        name, dot, number = one.name.rpartition(".")
        if text and dot and number.isdecimal():
            draft.several.setdefault(name, []).append(text.replace("\r\n", "\n"))
        elif text:
            draft.texts[one.name] = text.replace("\r\n", "\n")
        elif dot and number.isdecimal():
            return
        else:
            draft.values[one.name] = None
    elif one.name.startswith("recipe."):
        draft.values[one.name] = _recipe_value(one.name.removeprefix("recipe."), text)
    else:
        draft.values[one.name] = _value(one, text, now)


def _take_document(draft: OrderInput, name: str, text: str) -> None:
    """Take a document's text, or the digest of one that was chosen from the list."""
    if text.startswith("sha256:"):
        draft.values[name] = text
    elif text:
        draft.documents[name] = _DOCUMENTS[name](text.encode("utf-8"))


def _canonical_gates(data: bytes) -> bytes:
    """Return the bytes that an order binds for a gates file in any layout."""
    return encode_value(parse_gate_file(data, "gates"))


def _canonical_proof(data: bytes) -> bytes:
    return encode_canonical(parse_canonical(data))


_DOCUMENTS: dict[str, Callable[[bytes], bytes]] = {"gates": _canonical_gates, "possession": _canonical_proof}
"""Reader of a document by its role, which is the name of its field."""


def _complete_rows(draft: OrderInput) -> None:
    """Complete the draft of an import: columns by part, the empty text for no instruction, and the held-out rows."""
    columns: dict[str, str] = {}
    for line in draft.values["columns"]:
        part, sign, name = (one.strip() for one in line.partition("="))
        if not (part and sign and name) or part in columns:
            raise BadInput(
                f"columns: expected a line such as text=body for each part, each part once, got {line!r:.80}"
            )
        columns[part] = name
    draft.values["columns"] = columns
    draft.texts["instruction"] = draft.texts.get("instruction", "")
    draft.values.pop("instruction", None)
    if held_out := draft.values.pop(HELD_OUT_FILE, None):
        draft.values["held_out"] = held_out


def _assemble_policy(draft: OrderInput) -> bytes:
    """Return the policy set of the form's files, as the command line assembles it from a folder."""
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
    if one.kind in ("time", "past"):
        return (parse_moment if one.kind == "past" else parse_end)(text, one.label, now)
    return text


_LISTS = {name for name, member in _properties(Recipe).items() if "array" in str(member)}
"""Fields of a recipe that have a list."""


def _recipe_value(name: str, text: str) -> Any:
    """Return a recipe's value as YAML would: a whole number, fields in braces, a list with commas, or a word.

    A word other than `auto` is a list of one in a field that has a list.
    """
    if not text:
        return None
    if text.startswith("{") and text.endswith("}"):
        members = (part.partition(":") for part in text[1:-1].split(","))
        return {key.strip(): value.strip() for key, _, value in members}
    if text.isascii() and text.isdecimal() and len(text) < 12:
        return int(text)
    is_list = "," in text or (name in _LISTS and text != "auto")
    return [part.strip() for part in text.split(",")] if is_list else text


def _take_conditions(draft: OrderInput) -> None:
    names = [name for name in Conditions.model_fields if f"conditions.{name}" in draft.values]
    if not names:
        return
    values = {name: draft.values.pop(f"conditions.{name}") for name in names}
    try:
        found = Conditions.model_validate({**values, "served_models": values["served_models"] or ()})
    except ValidationError as error:
        raise BadInput(f"conditions: {'; '.join(list_problems(error))}") from None
    draft.values["conditions"] = None if found.say_nothing() else found


def _take_recipe(draft: OrderInput) -> None:
    names = [name for name in Recipe.model_fields if f"recipe.{name}" in draft.values]
    values = {name: draft.values.pop(f"recipe.{name}") for name in names}
    if names:
        draft.values["recipe"] = {name: value for name, value in values.items() if value is not None}


def _take_policy(draft: OrderInput) -> None:
    draft.documents["policy"] = _assemble_policy(draft)


_COMPLETIONS: dict[str, Callable[[OrderInput], None]] = {
    "conditions.not_before": _take_conditions,
    "columns": _complete_rows,
    "policy.parameters": _take_policy,
    "recipe.name": _take_recipe,
}
"""Functions that make one value of several fields, by the field that shows their problem."""


def assign_problems(action: str, error: ApplianceError) -> dict[str, str]:
    """Return the problems of an order that could not be made, by the field that each is about; "" for the whole form.

    A message names its field first, as in `adapter: expected …` or `order review: unit: expected …`. It then begins
    with the field's label.
    """
    found: dict[str, str] = {}
    for text in error.reasons or (error.summary,):
        name, words = _match_field(action, text.removeprefix(f"order {action}: "))
        found[name] = f"{found[name]}; {words}" if name in found else words
    return found


def _match_field(action: str, message: str) -> tuple[str, str]:
    """Return the name of the field with which a message begins, or "", and the message with the field's label."""
    words = re.sub("^(order|recipe), ", "", message)
    head, sign, rest = _split_head(words)
    inner, inner_sign, inner_rest = _split_head(rest)
    inner = f"{head}.{inner.strip().partition('.')[0]}"  # as in `conditions: served_models.0: expected …`
    fields = fields_of(action)
    for one in fields:
        if one.name == inner:
            return one.name, f"{one.label}{inner_sign}{inner_rest}"
    start = head.replace("_", " ").lower()
    for one in fields:
        names = {one.label.lower(), one.name.rpartition(".")[2].replace("_", " "), one.name.replace("_", " ")}
        if start in names or start.split(".")[0] in names:
            return one.name, f"{one.label}{sign}{rest}"
    return "", message


def _split_head(words: str) -> tuple[str, str, str]:
    """Return what a message names first, the colon or comma after it, and the rest."""
    found = re.search("[:,]", words)
    return (words, "", "") if found is None else (words[: found.start()], found[0], words[found.end() :])
