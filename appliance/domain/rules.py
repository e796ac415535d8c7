"""The one place where an entry becomes state: everything is checked, then everything changes.

The service runs `apply` before it writes an entry, the verifier runs it over the whole history, and both get the same
answer. What it raises names the entry, the rule, what was expected and what was got; state is then as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from appliance.domain import governance, keeping, making, serving, training
from appliance.domain.case import Case, Puts
from appliance.domain.custody import Texts, bound_texts
from appliance.domain.entry import Entry
from appliance.domain.events import EVENTS, Event, Ordered
from appliance.domain.names import explain
from appliance.domain.signatures import Accepted, accept_order, read_order
from appliance.domain.state import State
from appliance.domain.subjects import Signed, subjects_of
from appliance.errors import BadInput, Conflict, Denied, Tampered
from appliance.formats.digest import digest_bytes

Rule = Callable[[Case], Puts]

_ORDERED = frozenset(name for name, model in EVENTS.items() if issubclass(model, Ordered))
_JSON = TypeAdapter(dict[str, Any])

RULES: dict[str, Rule] = {**governance.RULES, **making.RULES, **training.RULES, **serving.RULES, **keeping.RULES}


def apply(state: State, entry: Entry, documents: Mapping[str, bytes]) -> None:
    """Checks one entry against the state and folds it in.

    Raises Conflict when it does not follow the entry before, Tampered when a document is not the one it binds, and
    BadInput, NotAuthenticated, Denied or Conflict as its rule finds; state changes only when nothing was raised.
    """
    check_sequence(state, entry)
    body = parse_body(entry)
    check_documents(entry, body, documents)
    check_claims(entry, body)
    case = Case(state=state, entry=entry, body=body, documents=documents)
    puts: Puts = []
    if entry.type in _ORDERED:
        case = case.with_order(accept_order(state, documents["order"], entry.time))
        check_order_entry(case)
        puts.append((state.orders, case.accepted.digest, entry.index))
    changed = RULES[entry.type](case)
    # What the entry binds before what it does: an erasure wins over an endorsement whose reason is that very text.
    puts += [*_texts(case), *changed]
    check_subjects(case)
    for table, key, value in puts:
        table.put(key, value)
    state.size = entry.index + 1
    state.last_time = entry.time
    state.last_leaf = entry.link


def _texts(case: Case) -> Texts:
    """The texts that the entry binds: those of its order, and the message of its body."""
    message = case.body.__dict__.get("message", "")
    if case.order is None:
        failed = case.state.imports.get(case.body.__dict__.get("order", "")) if message else None
        about = () if failed is None else (failed.subject,)
        return bound_texts(case.state, case.entry, None, message, about) if message else []
    return bound_texts(case.state, case.entry, case.order.order, message)


def check_sequence(state: State, entry: Entry) -> None:
    """The entry follows the last one: next index, its hash, no earlier time; the first is the initialisation."""
    if entry.index != state.size:
        raise Conflict(f"entry {entry.index}: index: expected {state.size}, got {entry.index}")
    if entry.prev != state.last_leaf:
        raise Tampered(f"entry {entry.index}: prev: expected {state.last_leaf}, got {entry.prev}", code="chain")
    if entry.time < state.last_time:
        raise Tampered(f"entry {entry.index}: time: expected at least {state.last_time}, got {entry.time}", code="time")
    if (entry.index == 0) != (entry.type == "appliance.initialized"):
        raise Denied(f"entry {entry.index}: type: expected appliance.initialized first and once, got {entry.type}")


def parse_body(entry: Entry) -> Event:
    """The typed body; BadInput for a type that this version does not know."""
    body: object = entry.body
    model = EVENTS.get(entry.type)
    if type(body) is model:
        return body  # `typed` has read it so
    if model is None:
        raise BadInput(f"entry {entry.index}: type: expected one of {len(EVENTS)} known types, got {entry.type[:64]!r}")
    try:
        # As JSON, where an array is a tuple. No field has a default, so that every one of them is written out.
        return model.model_validate_json(_JSON.dump_json(entry.body))
    except ValidationError as error:
        raise BadInput(f"entry {entry.index} ({entry.type}): {explain(error)}") from None


def check_documents(entry: Entry, body: Event, documents: Mapping[str, bytes]) -> None:
    """Every required document is bound, none that the type does not know, and the bytes are those bound."""
    if not entry.documents and not body.documents:
        return
    required, bound = set(body.documents), entry.documents.keys()
    if not required <= bound <= required.union(body.optional):
        raise BadInput(
            f"entry {entry.index} ({entry.type}): documents: expected {sorted(required)}, got {sorted(bound)}"
        )
    for role, digest in entry.documents.items():
        data = documents.get(role)
        if data is None:
            raise Tampered(f"entry {entry.index}: document {role}: expected {digest}, got none", code="document")
        if digest_bytes(data) != digest:
            raise Tampered(
                f"entry {entry.index}: document {role}: expected {digest}, got {digest_bytes(data)}", code="document"
            )


def check_claims(entry: Entry, body: Event) -> None:
    """Outcome and actor are those that this type of entry can have."""
    if entry.outcome not in body.outcomes:
        raise Denied(f"entry {entry.index} ({entry.type}): outcome: expected {body.outcomes}, got {entry.outcome}")
    actor = body.actor
    if actor is not None and entry.actor != actor:
        raise Denied(f"entry {entry.index} ({entry.type}): actor: expected {actor}, got {entry.actor}")


def check_subjects(case: Case) -> None:
    """An entry is filed under everything it is about and under nothing else, so that no search misses it."""
    orders: tuple[Signed, ...] = () if case.order is None else (_signed(case.order),)
    if "endorsed" in case.documents:
        orders += (_signed(read_order(case.state, case.documents["endorsed"], case.entry.time)),)
    expected = subjects_of(case.body, orders)
    if case.entry.subjects != expected:
        raise Denied(f"entry {case.entry.index}: subjects: expected {expected}, got {case.entry.subjects}")


def _signed(accepted: Accepted) -> Signed:
    return accepted.digest, accepted.order


def check_order_entry(case: Case) -> None:
    """The entry says of its order what the order says of itself, and names the policy in force."""
    entry, accepted = case.entry, case.accepted
    if entry.actor != accepted.order.signer:
        raise Denied(f"entry {entry.index}: actor: expected the signer {accepted.order.signer}, got {entry.actor}")
    policy = case.ordered.policy
    if policy != case.state.site.policy:
        raise Denied(f"entry {entry.index}: policy: expected {case.state.site.policy}, got {policy}")
