"""The tables of docs/formats that are written from the code: the orders, the entries, and the values of their fields.

A page has each of them between two comments, `<!-- NAME: … -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import BaseModel, StringConstraints

from appliance.domain.actions.registry import ACTIONS, EVENTS, list_events
from appliance.domain.core.action import Action
from appliance.domain.core.entry import Event
from appliance.domain.core.names import (
    Base64,
    Code,
    Commitment,
    Decimal,
    Digest,
    Identifier,
    Role,
    RunId,
    Time,
    Token,
    VersionedName,
)
from appliance.domain.core.order import Order
from appliance.domain.governance.countersignature import OrderRefused
from appliance.domain.queries.ocsf import ACTIVITIES, CLASS_NAMES, KINDS, SEVERITIES, OcsfKind
from scripts.references.tables import code, table


def render_orders() -> str:
    """Return the table of the subjects and fields of each order."""
    headers = ("action", "subjects", "also about", "fields of its own")
    return table(headers, map(_order_row, ACTIONS.values()))


def _order_row(action: Action) -> tuple[str, ...]:
    example, names = action.example, [name for name, _ in action.example.subjects()]
    subjects = [
        f"`{_show_subject(name, example)}` = {_name_digest(digest, example)}" for name, digest in example.subjects()
    ]
    also = [_show_subject(name, example) for name in example.about() if name not in names]
    members = code(name for name in action.order.model_fields if name not in Order.model_fields)
    return f"`{action.name}`", ", ".join(subjects), code(also), members


def _show_subject(subject: str, order: Order) -> str:
    """Return the form of a subject, such as `adapter:NAME@N`."""
    kind, colon, name = subject.partition(":")
    if subject in order.__dict__.values():
        return "SUBJECT"
    forms = (
        (r"r-\d+", "ID"),
        (r"\d+", "SIZE"),
        (r".*@\d+", "NAME@N"),
        (r"sha256:.*", "DIGEST"),
        (r"hmac-.*", "COMMITMENT"),
    )
    return kind + colon + next((form for pattern, form in forms if re.fullmatch(pattern, name)), "NAME" if name else "")


def _name_digest(digest: str, order: Order) -> str:
    """Return the field that has a subject's digest, or `predicate`."""
    found = [name for name, value in _walk(order) if value == digest]
    return f"`{found[0]}`" if found else "predicate"


def _walk(value: BaseModel) -> Iterator[tuple[str, Any]]:
    for name, item in value:
        yield name, item
        for inner in item if isinstance(item, tuple) else ():
            if isinstance(inner, BaseModel):
                yield from _walk(inner)


def render_order_members() -> str:
    """Return the table of the values of the fields of orders."""
    models = {name: action.order for name, action in ACTIONS.items()}
    return _render_members(models, Order)


def render_entries() -> str:
    """Return the table of the types of entries."""
    headers = ("type", "actor", "outcome", "body", "documents", "order")
    return table(headers, map(_entry_row, EVENTS.values()))


def _entry_row(event: type[Event]) -> tuple[str, ...]:
    orders = code(name for name, action in ACTIONS.items() if event in list_events(action))
    documents = [*(f"`{role}`" for role in event.documents), *(f"[`{role}`]" for role in event.optional)]
    outcomes, members = ", ".join(event.outcomes), code(event.model_fields)
    return (
        f"`{event.type}`",
        event.actor_kind,
        outcomes,
        members,
        ", ".join(documents),
        "any" if event is OrderRefused else orders,
    )


def render_entry_members() -> str:
    """Return the table of the values of the fields of bodies."""
    return _render_members(EVENTS, Event)


def _render_members(models: Mapping[str, type[BaseModel]], common: type[BaseModel]) -> str:
    """Return a row for each field; where its values differ by model, a row for each of them."""
    values: dict[str, dict[str, list[str]]] = {}
    for name, model in models.items():
        hints = get_type_hints(model, include_extras=True)
        for member in sorted(model.model_fields.keys() - common.model_fields.keys()):
            field = model.model_fields[member]
            words = _describe(hints[member], field.metadata)
            values.setdefault(member, {}).setdefault(words, []).append(name)
    rows = []
    for member, found in sorted(values.items()):
        for words, names in found.items():
            rows.append((f"`{member}`" if len(found) == 1 else f"`{member}` of {code(names)}", words))
    return table(("field", "value"), rows)


_NAMED = (
    (Identifier, "identifier"),
    (VersionedName, "version"),
    (RunId, "run"),
    (Digest, "digest"),
    (Commitment, "commitment"),
    (Time, "time"),
    (Token, "word"),
    (Decimal, "decimal text"),
    (Base64, "base64"),
    (Code, "code"),
    (Role, "role"),
)
"""Types whose name a page explains."""


def _describe(hint: Any, constraints: Sequence[Any] = ()) -> str:
    """Return the values of a type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    for kind, word in _NAMED:
        if hint == kind:
            return word
    if origin is Annotated:
        return _describe(arguments[0], [*constraints, *_spread(arguments[1:])])
    if origin is Literal:
        return f"one of {code(arguments)}" if len(arguments) > 1 else code(arguments)
    if origin is tuple:
        return _describe_array(arguments, constraints)
    if origin is dict:
        return f"object of {_describe(arguments[1])}"
    if arguments:
        known = " or ".join(_describe(one, constraints) for one in arguments if one is not type(None))
        return f"{known}, or null" if type(None) in arguments else known
    return _describe_plain(hint, constraints)


def _describe_array(items: Sequence[Any], constraints: Sequence[Any]) -> str:
    if Ellipsis not in items:
        return f"array of {' and '.join(map(_describe, items))}"
    size = _describe_bounds(constraints, MinLen, MaxLen)
    return f"array of {size + ': ' if size else ''}{_describe(items[0])}"


def _describe_plain(hint: Any, constraints: Sequence[Any]) -> str:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return f"object of {code(hint.model_fields)}"
    if hint is int:
        return f"integer {_describe_bounds(constraints, Ge, Le)}".strip()
    if hint is not str:
        return "boolean" if hint is bool else "anything"
    pattern = next((one.pattern for one in constraints if getattr(one, "pattern", None)), None)
    size = _describe_bounds(constraints, MinLen, MaxLen)
    return f"`{pattern.strip('^$')}`" if pattern else f"text of {size} characters" if size else "text"


def _spread(constraints: Sequence[Any]) -> Iterator[Any]:
    """Yield the constraints of a type hint one by one."""
    for one in constraints:
        if isinstance(one, StringConstraints):
            yield one
            yield from [MinLen(one.min_length)] if one.min_length is not None else []
            yield from [MaxLen(one.max_length)] if one.max_length is not None else []
        else:
            yield from getattr(one, "metadata", None) or (one,)


def _describe_bounds(constraints: Sequence[Any], least: type, most: type) -> str:
    """Return the bounds of a number or a length, such as `1 to 24`."""
    found = {type(one): getattr(one, type(one).__name__.lower().replace("len", "_length"), None) for one in constraints}
    start, end = found.get(least), found.get(most)
    if end is None:
        return "" if start is None else f"from {start}"
    return f"at most {end:,}" if start is None else f"{start} to {end:,}"


def render_classes() -> str:
    """Return the table of the class and activity of each type of entries."""
    rows: dict[OcsfKind, list[str]] = {}
    for name, kind in KINDS.items():
        rows.setdefault(kind, []).append(name)
    headers = ("class", "activity", "severity", "types of entries")
    return table(
        headers,
        (
            (
                f"{CLASS_NAMES[kind.class_uid]} ({kind.class_uid})",
                f"{ACTIVITIES[kind.class_uid][kind.activity_id]} ({kind.activity_id})",
                f"{SEVERITIES[kind.severity_id]} ({kind.severity_id})",
                code(names),
            )
            for kind, names in sorted(rows.items())
        ),
    )


SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "order.md": {"orders": render_orders, "members": render_order_members},
    "feed.md": {"classes": render_classes},
    "ledger.md": {"entries": render_entries, "members": render_entry_members},
}
"""The tables of each page of docs/formats, by the name of the page and of the table."""


def fill(page: str, text: str) -> str:
    """Return the text of a page of docs/formats with the tables of the code."""
    for name, render in SECTIONS[page].items():
        start, end = f"<!-- {name}: written by scripts/reference -->\n", "\n<!-- end -->"
        before, found, rest = text.partition(start)
        if not found:
            raise ValueError(f"docs/formats/{page}: expected the line {start.strip()}, got none")
        text = f"{before}{start}\n{render()}\n{rest[rest.index(end) :]}"
    return text
