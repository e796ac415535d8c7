"""Whether the words of a search are known: a search for a name that was mistyped finds nothing, which would read as
"never happened"."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

from appliance.domain.core.names import SERVICE
from appliance.domain.core.state import State
from appliance.domain.core.words import unknown_word
from appliance.domain.rulebook.registry import EVENTS
from appliance.workflows.core.context import Context

_NAMES: dict[str, Callable[[State], Collection[str]]] = {
    "adapter": lambda state: [key for key, _ in state.adapters.items()],
    "base": lambda state: [key for key, _ in state.bases.items()],
    "dataset": lambda state: [key for key, _ in state.datasets.items()],
    "principal": lambda state: [key for key, _ in state.principals.items()],
    "run": lambda state: [key for key, _ in state.runs.items()],
    "task": lambda state: {release.task for release in state.releases.values()},
    "unit": lambda state: [person.name for person in state.principals.values() if "unit" in person.roles],
    "validation-set": lambda state: [key for key, _ in state.validation_sets.items()],
    "witness": lambda state: [witness.name for witness in state.witnesses.values()],
}
"""What the state holds of each kind of subject."""
_OTHERS = ("order", "policy", "request", "text")
"""Kinds of subjects that are known by the log's entries alone."""
_WORD = re.compile(r"[^a-z]+")
_ALONE = ("log-key", "rules")
"""Subjects that have no name."""


def unknown_types(types: Sequence[str]) -> Iterator[str]:
    for kind in types:
        if kind not in EVENTS:
            near = "" if "." in kind else _alike(kind)
            told = unknown_word("type", kind, EVENTS.keys() if not near else (), "a type of entry")
            yield told + near


def _alike(kind: str) -> str:
    """The types that share a word with one that is unknown."""
    words = {word for word in _WORD.split(kind) if len(word) > 2}
    alike = [known for known in sorted(EVENTS) if words & set(_WORD.split(known))]
    return f"; did you mean {', '.join(alike)}?" if alike else ""


def unknown_names(context: Context, actor: str | None, unit: str | None, subjects: Sequence[str]) -> Iterator[str]:
    """Asked where a search found nothing: each name that the state does not hold and under which no entry is filed."""
    state = context.ledger.state
    people = [*_NAMES["principal"](state), SERVICE]
    if actor is not None and actor not in people and not context.ledger.find(actor=actor, limit=1):
        yield unknown_word("actor", actor, people, "the name of a person, of a unit or service")
    units = _NAMES["unit"](state)
    if unit is not None and unit not in units and not context.ledger.find(unit=unit, limit=1):
        yield unknown_word("unit", unit, units, "an enrolled unit")
    for subject in subjects:
        if not context.ledger.find(subjects=[subject], limit=1):
            yield from _unknown_subject(state, subject)


def _unknown_subject(state: State, subject: str) -> Iterator[str]:
    kind, colon, name = subject.partition(":")
    if subject in _ALONE:
        return
    if not colon or kind not in (*_NAMES, *_OTHERS):
        kinds = ", ".join(sorted((*_NAMES, *_OTHERS)))
        yield f"subject: expected KIND:NAME with a kind of {kinds}, or {' or '.join(_ALONE)}, got {subject!r:.80}"
        return
    names = _NAMES[kind](state) if kind in _NAMES else ()
    if name not in names:
        yield unknown_word(f"subject, {kind}", name, names, "one that the log names")
