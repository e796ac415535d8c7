"""A recorded review in words, as the service tells it: what was decided, and what it counts for now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GONE = "its text was erased, or the service withholds it"


def state_of(review: Mapping[str, Any]) -> str:
    """`standing`, `superseded by entry 14`, `lapsed at ...`, `key distrusted` and the like."""
    if review["state"] == "superseded":
        return f"superseded by entry {review['superseded_by']}"
    if review["state"] == "lapsed":
        return f"lapsed at {review['valid_until']}"
    return str(review["state"]).replace("-", " ")


def until_of(review: Mapping[str, Any]) -> str:
    """Until when, where it has a date."""
    return "" if review["valid_until"] is None else f" until {review['valid_until']}"


def decision_of(review: Mapping[str, Any]) -> str:
    """One cell of a table."""
    return f"{review['decision']} for {review['unit']}, {review['field']}: {state_of(review)}"
