"""Application of entries to the state. All checks precede all changes.

The service runs `apply` before it writes an entry, and the verifier runs it over the whole log; both get the same
result. Errors name the entry, the rule, what was expected and what was found. After an error the state is unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import Field, TypeAdapter, ValidationError, create_model

from appliance.domain.actions.registry import (
    ACTIONS,
    EVENTS,
    ORDERS,
    find_action,
    find_rule_set,
    list_events,
    list_refusal_reasons,
)
from appliance.domain.core.case import Case, Changes, Texts, bound_texts, check_unerased
from appliance.domain.core.entry import (
    MAX_ENTRY_BYTES,
    Countersigned,
    Entry,
    Event,
    Failed,
    Ordered,
    entry_of,
    parse_entry,
)
from appliance.domain.core.names import Time, explain
from appliance.domain.core.order import Order, encode_order
from appliance.domain.core.signatures import AcceptedOrder
from appliance.domain.core.state import State
from appliance.domain.governance.countersignature import Countersign
from appliance.errors import BadInput, Conflict, Denied, Tampered
from appliance.formats.core.digest import digest_bytes

Signed = tuple[str, Order]
"""An order's PAE digest and the order."""


def subjects_of(body: Event, orders: tuple[Signed, ...] = ()) -> tuple[str, ...]:
    """Return the subjects of an entry: the orders, each with what it is about, then those that the body names.

    Each subject occurs once.
    """
    if not orders:
        return body.named()
    subjects: dict[str, None] = {}
    for digest, order in orders:
        subjects[f"order:{digest}"] = None
        subjects.update(dict.fromkeys(order.about()))
    subjects.update(dict.fromkeys(body.named()))
    return tuple(subjects)


_JSON = TypeAdapter(dict[str, Any])
_ATTACHED = frozenset(action.attachment.role for action in ACTIONS.values() if action.attachment is not None)


def apply(state: State, entry: Entry, documents: Mapping[str, bytes]) -> None:
    """Check an entry against the state and apply it. The state changes only if no error is raised.

    Raises: Conflict if the entry does not follow the last one; Tampered if a document differs from the bound one;
    BadInput, NotAuthenticated, Denied or Conflict if its rule refuses it.
    """
    check_sequence(state, entry)
    body = parse_body(entry)
    check_documents(entry, body, documents)
    check_claims(entry, body)
    case = Case(state=state, entry=entry, body=body, documents=documents, reader=ORDERS)
    changes: Changes = []
    if isinstance(body, Ordered):
        case, changes = _take_order(case, body)
    rule = find_rule_set(state).rules.get(entry.type)
    if rule is None:
        raise Denied(f"{case.place}: type: expected one of rules version {state.site.rules}, got a later one's")
    rule_changes = rule(case)
    # Texts are bound before the rule's changes, so that a text is erased even if the countersignature's reason is it.
    changes += [*_list_texts(case), *rule_changes]
    check_subjects(case)
    for table, key, value in changes:
        table.put(key, value)
    state.size = entry.index + 1
    state.last_time = entry.time
    state.last_leaf = entry.link


def _take_order(case: Case, body: Ordered) -> tuple[Case, Changes]:
    """Return the case with the order that the entry carries out, and the changes that record the order.

    The order must be authentic, new, countersigned if it needs that, of a kind that this type of entry results from,
    allowed by all invariants, and accompanied by the document that it binds.
    """
    state, entry = case.state, case.entry
    accepted = ORDERS.accept(state, case.documents["order"], entry.time)
    case = case._replace(signed=accepted)
    _check_order_entry(case, body)
    changes: Changes = [(state.orders, accepted.digest, entry.index)]
    order = accepted.order
    if isinstance(body, Countersigned) and isinstance(order, Countersign):
        changes.append((state.pending, order.order, None))
        order = _read_countersigned(case, order)
    elif isinstance(body, Countersigned):
        needs_one_signature = not find_action(state, order).needs_second(state, order)
        case.require(needs_one_signature, "administrators", "a second one's countersignature", "one order")
        case.require("countersigned" not in case.documents, "countersigned", "no document", "one")
    action = find_action(case.state, order)
    if type(body) not in list_events(action):
        expected = ", ".join(name for name, other in ACTIONS.items() if type(body) in list_events(other))
        raise Denied(f"{case.place}: order: expected {expected}, got {action.name}")
    _check_allowed(case, order)
    _check_attachment(case, order)
    return case._replace(ordered=order), changes


def _read_countersigned(case: Case, countersign: Countersign) -> Order:
    """Return the first administrator's order, which the countersignature names by its digest."""
    _check_allowed(case, countersign)
    if "countersigned" not in case.documents:
        raise BadInput(
            f"entry {case.entry.index}: document countersigned: expected the order {countersign.order}, got none"
        )
    first = ORDERS.read(case.state, case.documents["countersigned"], case.entry.time)
    case.require(first.digest == countersign.order, "countersigned", countersign.order, first.digest)
    check_unerased(case.state, case.entry, first.order.commitments().values())
    return first.order


def _check_allowed(case: Case, order: Order) -> None:
    reasons = list_refusal_reasons(case.state, order, case.entry.time)
    if reasons:
        raise Denied(f"order {order.action} by {order.signer}", refusals=reasons)


def _check_attachment(case: Case, order: Order) -> None:
    """Check that the document that the order binds is present and valid, and that there is no other."""
    attachment = find_action(case.state, order).attachment_of(order)
    expected = [] if attachment is None else [attachment.role]
    got = sorted(_ATTACHED.intersection(case.documents))
    if got != expected:
        raise BadInput(f"entry {case.entry.index}: documents beside the order: expected {expected}, got {got}")
    if attachment is not None:
        attachment.check(case, order, case.documents[attachment.role])


def _list_texts(case: Case) -> Texts:
    """Return the rows of the texts that the entry binds: those of its order, and the cause of a failure."""
    if case.signed is not None:
        return bound_texts(case.state, case.entry, case.signed.order)
    if not isinstance(case.body, Failed):
        return []
    # A failed import's entry does not name the subject of the import.
    failed_import = case.state.imports.get(case.body.__dict__.get("order", ""))
    about = () if failed_import is None else (failed_import.subject,)
    return bound_texts(case.state, case.entry, None, case.body.message, about)


def check_sequence(state: State, entry: Entry) -> None:
    """Check that the entry follows the last one, and that the first entry is the initialisation.

    It must have the next index and the last entry's hash, and a time that is not earlier, except for a reset of the
    clock.

    Raises: Conflict for another index; Tampered for another hash or an earlier time; Denied for another first entry.
    """
    if entry.index != state.size:
        raise Conflict(f"entry {entry.index}: index: expected {state.size}, got {entry.index}")
    if entry.prev != state.last_leaf:
        raise Tampered(f"entry {entry.index}: prev: expected {state.last_leaf}, got {entry.prev}", code="chain")
    if entry.time < state.last_time and not sets_time(entry.type):
        raise Tampered(
            f"entry {entry.index}: time: expected at least {state.last_time}, got {entry.time}",
            code="entry-out-of-order",
        )
    if (entry.index == 0) != (entry.type == "appliance.initialized"):
        raise Denied(f"entry {entry.index}: type: expected appliance.initialized first and once, got {entry.type}")


def sets_time(kind: str) -> bool:
    """Return True if entries of this type may have an earlier time than the previous one.

    Their rule decides if an entry does.
    """
    model = EVENTS.get(kind)
    return model is not None and model.sets_time


def parse_body(entry: Entry) -> Event:
    """Return the typed body.

    Raises: BadInput for a malformed body, and for a type that this version does not support.
    """
    body: object = entry.body
    model = EVENTS.get(entry.type)
    if type(body) is model:
        return body  # `parse_typed` or `make_typed` has made it
    if model is None:
        raise BadInput(f"entry {entry.index}: type: expected one of {len(EVENTS)} known types, got {entry.type[:64]!r}")
    try:
        # Validated as JSON, in which an array is a tuple. Fields have no defaults, so that all are written.
        return model.model_validate_json(_JSON.dump_json(entry.body))
    except ValidationError as error:
        raise BadInput(f"entry {entry.index} ({entry.type}): {explain(error)}") from None


def check_documents(entry: Entry, body: Event, documents: Mapping[str, bytes]) -> None:
    """Check that all required documents are bound, that no others are, and that the bytes are the bound ones.

    Raises: BadInput for another set of documents; Tampered for missing or other bytes.
    """
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
            raise Tampered(
                f"entry {entry.index}: document {role}: expected {digest}, got none", code="document-invalid"
            )
        if digest_bytes(data) != digest:
            raise Tampered(
                f"entry {entry.index}: document {role}: expected {digest}, got {digest_bytes(data)}",
                code="document-invalid",
            )


def check_claims(entry: Entry, body: Event) -> None:
    """Raise Denied unless this type of entry can have the entry's outcome and actor."""
    if entry.outcome not in body.outcomes:
        raise Denied(f"entry {entry.index} ({entry.type}): outcome: expected {body.outcomes}, got {entry.outcome}")
    actor = body.actor
    if actor is not None and entry.actor != actor:
        raise Denied(f"entry {entry.index} ({entry.type}): actor: expected {actor}, got {entry.actor}")


def check_subjects(case: Case) -> None:
    """Raise Denied unless the entry is indexed under exactly the things that it is about.

    So searches by subject are complete.
    """
    orders: tuple[Signed, ...] = () if case.signed is None else (_signed(case.signed),)
    if "countersigned" in case.documents:
        orders += (_signed(ORDERS.read(case.state, case.documents["countersigned"], case.entry.time)),)
    expected = subjects_of(case.body, orders)
    if case.entry.subjects != expected:
        raise Denied(f"entry {case.entry.index}: subjects: expected {expected}, got {case.entry.subjects}")


def _signed(accepted: AcceptedOrder) -> Signed:
    return accepted.digest, accepted.order


def _check_order_entry(case: Case, body: Ordered) -> None:
    """Check that the entry's actor is the order's signer, and that it names the valid policy set."""
    entry, signer = case.entry, case.accepted.order.signer
    if entry.actor != signer:
        raise Denied(f"entry {entry.index}: actor: expected the signer {signer}, got {entry.actor}")
    if body.policy != case.state.site.policy:
        raise Denied(f"entry {entry.index}: policy: expected {case.state.site.policy}, got {body.policy}")


def _make_model(model: type[Event]) -> Any:
    fields: dict[str, Any] = {"body": (model, ...), "type": (Literal[model.type], ...)}
    return create_model(model.type, __base__=Entry, **fields)


_ANY: Any = Annotated[Union[tuple(map(_make_model, EVENTS.values()))], Field(discriminator="type")]  # noqa: UP007
_TYPED: TypeAdapter[Entry] = TypeAdapter(_ANY)


def make_typed(fields: Mapping[str, Any]) -> Entry:
    """Return the entry of these fields, whose `body` is of the class of its type.

    Raises: pydantic's ValidationError otherwise.
    """
    entry: Entry = _TYPED.validator.validate_python(fields)
    return entry


def parse_typed(data: bytes) -> Entry:
    """Parse an entry with a typed body. An entry with a malformed body gets an untyped one, as from `parse_entry`.

    Raises: BadInput or TooLarge, as `parse_entry` does.
    """
    try:
        entry = _TYPED.validator.validate_json(data)
    except ValidationError:
        return parse_entry(data)
    return parse_entry(data) if len(data) > MAX_ENTRY_BYTES else entry_of(entry, data)


def try_order(state: State, order: Order, now: Time) -> State:
    """Return a copy of the state to which the order was applied, as if it were the next entry and took effect at once.

    The order needs no signature and, even if it waits for a second administrator, no countersignature. It binds no
    documents.

    Raises: Denied if the rules refuse it; BadInput for an order without an event of its own, or one that binds a
    document.
    """
    reasons = list_refusal_reasons(state, order, now)
    if reasons:
        raise Denied(f"order {order.action} by {order.signer}", refusals=reasons)
    action = find_action(state, order)
    if action.event is None or action.apply is None or action.attachment_of(order) is not None:
        raise BadInput(f"order {order.action}: expected one with an event and without documents, got another")
    after, body = state.copy(), action.event(policy=state.site.policy)
    entry = make_typed(
        {
            "v": 1,
            "index": state.size,
            "time": now,
            "type": body.type,
            "actor": order.signer,
            "source": "trial",
            "subjects": order.about(),
            "outcome": body.outcomes[0],
            "prev": state.last_leaf,
            "documents": {},
            "body": body,
        }
    )
    accepted = AcceptedOrder(order, digest_bytes(encode_order(order)), _find_key(state, order.signer, now))
    case = Case(after, entry, body, {}, ORDERS, accepted, order)
    for table, key, value in action.apply(case):
        table.set(key, value)
    return after


def _find_key(state: State, signer: str, now: Time) -> str:
    """Return the id of the signer's newest valid key; "" if there is none."""
    valid = [key for key in state.keys.values() if key.principal == signer and key.is_valid(now)]
    return max(valid, key=lambda key: key.enrolled).keyid if valid else ""
