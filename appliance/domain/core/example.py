"""The example site, on which each action declares an order as its example.

`actions/example.py` has the state of the site, under which the rules accept these orders.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from appliance.domain.core.names import Commitment, Time, add_seconds
from appliance.formats.core.digest import digest_bytes

M = TypeVar("M")

NOW = "2026-01-15T09:30:00.000Z"
"""The time of the example orders, in office hours."""
TOMORROW = add_seconds(NOW, 86_400)


def example_digest(what: str) -> str:
    """Return a digest for a thing on the example site."""
    return digest_bytes(what.encode())


def example_commitment(what: str) -> str:
    """Return a commitment for a text on the example site."""
    return f"hmac-{example_digest(what)}"


NEW_KEY = {
    "key": "MCowBQYDK2VwAyEARCmTBlAEqh5MSPTdAVgZTAI0m8xmTNluQA6iaZGKjVE=",
    "keyid": "sha256:937db5c14b34233c3b60fe64faf8d174015315304a883de3552de065a0383784",
}
"""The fields by which an order names an Ed25519 key that the log lacks."""
_VALUES: dict[str, Any] = {
    "origin": "bank.example/log",
    "nonce": "0" * 32,
    "issued_at": NOW,
    "expires_at": add_seconds(NOW, 600),
    "time": NOW,
    "principal": "rita",
    "review_function": "privacy",
    "unit": "legal",
    "served_model": "labels",
    "ordered_by": "olga",
    "owner": "olga",
    "imported_by": "ines",
    "dataset_by": "ines",
    "base": "smollm2",
    "base_digest": example_digest("smollm2"),
    "dataset_digest": example_digest("clauses"),
    "classification": "internal",
    "licence": "Apache-2.0",
    "run": "r-000001",
    "adapter": "clauses",
    "manifest": example_digest("clauses@1"),
}
"""Values of the example site by the name of a field."""


def make_example(model: type[M], /, **values: Any) -> M:
    """Return an order or a row of the example site with these values. Every other field that has no default is filled.

    It gets the site's usual value, null where it may be null, or a value of its type.
    """
    for name, hint in get_type_hints(model, include_extras=True).items():
        if name not in values and _is_required(model, name):
            values[name] = _make_value(name, hint)
    return model(**values)


def _is_required(model: type[Any], name: str) -> bool:
    if issubclass(model, BaseModel):
        return name in model.model_fields and model.model_fields[name].is_required()
    return any(field.name == name and field.default is MISSING for field in fields(model))


def _make_value(name: str, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType) and type(None) in arguments:
        return None
    if hint == Commitment:
        return example_commitment(name)
    if origin is Literal:
        return arguments[0]
    if name in _VALUES:
        return _VALUES[name]
    if hint == Time:
        return TOMORROW
    if origin in (tuple, dict):
        return origin()
    return {bool: False, int: 1}.get(hint, example_digest(name))
