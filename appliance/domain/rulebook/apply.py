"""The one place where an entry becomes state: everything is checked, then everything changes.

The service runs `apply` before it writes an entry, the verifier runs it over the whole history, and both get the same
answer. What it raises names the entry, the rule, what was expected and what was got; state is then as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Entry
from appliance.domain.core.event import Endorsed, Event, Failed, Ordered
from appliance.domain.core.names import explain
from appliance.domain.core.order import Order
from appliance.domain.core.signatures import Accepted
from appliance.domain.core.state import State
from appliance.domain.core.texts import Texts, bound_texts, check_unerased
from appliance.domain.governance.endorsement import Endorse
from appliance.domain.rulebook.registry import EVENTS, ORDERS, VERBS, book_of, events_of, reasons_against, verb_of
from appliance.domain.rulebook.subjects import Signed, subjects_of
from appliance.errors import BadInput, Conflict, Denied, Tampered
from appliance.formats.core.digest import digest_bytes

_JSON = TypeAdapter(dict[str, Any])
_ATTACHED = frozenset(verb.attachment.role for verb in VERBS.values() if verb.attachment is not None)


def apply(state: State, entry: Entry, documents: Mapping[str, bytes]) -> None:
    """Checks one entry against the state and folds it in.

    Raises Conflict when it does not follow the entry before, Tampered when a document is not the one it binds, and
    BadInput, NotAuthenticated, Denied or Conflict as its rule finds; state changes only when nothing was raised.
    """
    check_sequence(state, entry)
    body = parse_body(entry)
    check_documents(entry, body, documents)
    check_claims(entry, body)
    case = Case(state=state, entry=entry, body=body, documents=documents, reader=ORDERS)
    changes: Changes = []
    if isinstance(body, Ordered):
        case, changes = _take_order(case, body)
    rule = book_of(state).rules.get(entry.type)
    if rule is None:
        raise Denied(f"{case.place}: type: expected one of rules version {state.site.rules}, got a later one's")
    changed = rule(case)
    # What the entry binds before what it does: an erasure wins over an endorsement whose reason is that very text.
    changes += [*_texts(case), *changed]
    check_subjects(case)
    for table, key, value in changes:
        table.put(key, value)
    state.size = entry.index + 1
    state.last_time = entry.time
    state.last_leaf = entry.link


def _take_order(case: Case, body: Ordered) -> tuple[Case, Changes]:
    """The case with the order that the entry carries out: authentic, new, endorsed where that is needed, one that this
    type of entry comes of, with no invariant against it, and with the document beside it that it binds."""
    state, entry = case.state, case.entry
    accepted = ORDERS.accept(state, case.documents["order"], entry.time)
    case = case._replace(signed=accepted)
    _check_order_entry(case, body)
    changes: Changes = [(state.orders, accepted.digest, entry.index)]
    order = accepted.order
    if isinstance(body, Endorsed) and isinstance(order, Endorse):
        changes.append((state.pending, order.order, None))
        order = _endorsed(case, order)
    elif isinstance(body, Endorsed):
        alone = not verb_of(case.state, order).two_administrators or state.site.single_administrator
        case.require(alone, "administrators", "a second one's endorsement", "one order")
        case.require("endorsed" not in case.documents, "endorsed", "no document", "one")
    verb = verb_of(case.state, order)
    if type(body) not in events_of(verb):
        expected = ", ".join(name for name, other in VERBS.items() if type(body) in events_of(other))
        raise Denied(f"{case.place}: order: expected {expected}, got {verb.name}")
    _check_allowed(case, order)
    _check_attachment(case, order)
    return case._replace(ordered=order), changes


def _endorsed(case: Case, endorse: Endorse) -> Order:
    """The first administrator's order, which the second one's signature names by its digest."""
    _check_allowed(case, endorse)
    if "endorsed" not in case.documents:
        raise BadInput(f"entry {case.entry.index}: document endorsed: expected the order {endorse.order}, got none")
    first = ORDERS.read(case.state, case.documents["endorsed"], case.entry.time)
    case.require(first.digest == endorse.order, "endorsed", endorse.order, first.digest)
    check_unerased(case.state, case.entry, first.order.commitments().values())
    return first.order


def _check_allowed(case: Case, order: Order) -> None:
    reasons = reasons_against(case.state, order, case.entry.time)
    if reasons:
        raise Denied(f"order {order.verb} by {order.signer}", reasons=tuple(reasons))


def _check_attachment(case: Case, order: Order) -> None:
    """What the order binds by digest lies beside it, and is what it must be."""
    attachment = verb_of(case.state, order).attachment_of(order)
    expected = [] if attachment is None else [attachment.role]
    got = sorted(_ATTACHED.intersection(case.documents))
    if got != expected:
        raise BadInput(f"entry {case.entry.index}: documents beside the order: expected {expected}, got {got}")
    if attachment is not None:
        attachment.check(case, order, case.documents[attachment.role])


def _texts(case: Case) -> Texts:
    """The texts that the entry binds: those of its order, and why something failed."""
    if case.signed is not None:
        return bound_texts(case.state, case.entry, case.signed.order)
    if not isinstance(case.body, Failed):
        return []
    # What failed may be an import, whose own entry does not name its subject.
    failed = case.state.imports.get(case.body.__dict__.get("order", ""))
    about = () if failed is None else (failed.subject,)
    return bound_texts(case.state, case.entry, None, case.body.message, about)


def check_sequence(state: State, entry: Entry) -> None:
    """The entry follows the last one: next index, its hash, no earlier time but where it sets the clock back; the first
    is the initialisation."""
    if entry.index != state.size:
        raise Conflict(f"entry {entry.index}: index: expected {state.size}, got {entry.index}")
    if entry.prev != state.last_leaf:
        raise Tampered(f"entry {entry.index}: prev: expected {state.last_leaf}, got {entry.prev}", code="chain")
    if entry.time < state.last_time and not sets_time(entry.type):
        raise Tampered(f"entry {entry.index}: time: expected at least {state.last_time}, got {entry.time}", code="time")
    if (entry.index == 0) != (entry.type == "appliance.initialized"):
        raise Denied(f"entry {entry.index}: type: expected appliance.initialized first and once, got {entry.type}")


def sets_time(kind: str) -> bool:
    """Whether entries of this type may have an earlier time than the one before; their rule asks whether they do."""
    model = EVENTS.get(kind)
    return model is not None and model.sets_time


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
    orders: tuple[Signed, ...] = () if case.signed is None else (_signed(case.signed),)
    if "endorsed" in case.documents:
        orders += (_signed(ORDERS.read(case.state, case.documents["endorsed"], case.entry.time)),)
    expected = subjects_of(case.body, orders)
    if case.entry.subjects != expected:
        raise Denied(f"entry {case.entry.index}: subjects: expected {expected}, got {case.entry.subjects}")


def _signed(accepted: Accepted) -> Signed:
    return accepted.digest, accepted.order


def _check_order_entry(case: Case, body: Ordered) -> None:
    """The entry says of its order what the order says of itself, and names the policy in force."""
    entry, signer = case.entry, case.accepted.order.signer
    if entry.actor != signer:
        raise Denied(f"entry {entry.index}: actor: expected the signer {signer}, got {entry.actor}")
    if body.policy != case.state.site.policy:
        raise Denied(f"entry {entry.index}: policy: expected {case.state.site.policy}, got {body.policy}")
