"""The usual words and the usual length of a decision, which a reviewer can replace by others.

It is a module of its own, since the help texts of commands need it without the libraries of the rules.
"""

from __future__ import annotations

VALID_DAYS = 90
"""Days for which an approval is valid, if its reviewer names no other date."""
_MEANINGS = {
    "approve": "I reviewed the adapter and its evidence, and approve it for {unit} as reviewer for {function}.",
    "approve-with-conditions": "I reviewed the adapter and its evidence, and approve it for {unit} as reviewer for "
    "{function} while the conditions hold.",
    "request-changes": "I reviewed the adapter and its evidence, and ask for changes before {unit} uses it, as "
    "reviewer for {function}.",
    "reject": "I reviewed the adapter and its evidence, and reject it for {unit} as reviewer for {function}.",
    "withdraw": "I take back my last decision on the adapter for {unit} as reviewer for {function}.",
}


def usual_meaning(decision: str, unit: str, function: str) -> str:
    """Return the sentence that is offered as the meaning of a decision (21 CFR 11.50)."""
    return _MEANINGS[decision].format(unit=unit, function=function)
