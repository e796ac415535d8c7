"""People, pending orders, the policy set and the rules version, as they are now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TypeVar

from appliance.access.cases import parse_cases, test_cases
from appliance.api.people import Clock, PendingOrder, Policy, PolicyTestResult, PolicyTestResults, Rules, WaitingOrder
from appliance.domain.actions.registry import ACTIONS, ORDERS, list_refusal_reasons
from appliance.domain.core.action import NEWEST_RULES
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.order import Order
from appliance.domain.core.policy import parse_policy
from appliance.domain.core.records import people as records
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import refuse_without_role, require_enrolled
from appliance.domain.governance.countersignature import OrderWithdrawn, list_waiting_orders, refuse_ended_key
from appliance.domain.governance.log_control import ResetClock, RulesRaised
from appliance.domain.queries.unit_reading import UnitReader
from appliance.errors import Conflict, Denied, NotFound, Refusal
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import parse_envelope
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.log import disclosed

AnOrder = TypeVar("AnOrder", bound=Order)


def principals(context: LedgerContext, reader: UnitReader | None = None) -> list[Principal]:
    """Return every principal with the printed name instead of its commitment.

    Other units are left out for a unit's reader.
    """
    others = frozenset() if reader is None else reader.others
    people = [one for one in context.ledger.state.principals.values() if one.name not in others]
    names = context.ledger.disclosures([p.printed_name for p in people if p.printed_name])
    texts = {commitment: found.text for commitment, found in names.items()}
    return [person.model_copy(update={"printed_name": texts.get(person.printed_name or "")}) for person in people]


def pending_orders(context: LedgerContext) -> list[PendingOrder]:
    """Return the orders that wait for a second administrator, without the documents that they bind.

    `documents` has the digest of each document, by its role. `pending_order` returns the documents of one order.
    """
    return [_pending_row(context, one) for one in _list_unexpired(context)]


def _list_unexpired(context: LedgerContext) -> list[records.PendingOrder]:
    """Return the pending orders that have not expired. An order that sets the log's time expires by the host's time."""
    now, clock = context.now(context.ledger.state), encode_time(context.clock())
    waiting = context.ledger.state.pending.values()
    return [one for one in waiting if one.expires_at > (clock if _sets_time(one) else now)]


def list_waiting(context: LedgerContext, model: type[AnOrder]) -> Iterator[tuple[records.PendingOrder, AnOrder]]:
    """Yield the orders of an action that wait for a second administrator."""
    state = context.ledger.state
    for pending in list_waiting_orders(state, context.now(state)):
        if pending.action == model.action:
            order = ORDERS.parse(parse_envelope(context.ledger.documents_of(pending.index)["order"]).payload)
            if isinstance(order, model):
                yield pending, order


def pending_order(
    context: LedgerContext, digest: str
) -> tuple[records.PendingOrder, dict[str, bytes], tuple[Disclosure, ...]]:
    """Return a pending order, its documents with the order itself, and its texts.

    Raises:
        Conflict: The order has taken effect.
        NotFound: No order of this digest is pending.
    """
    pending = context.ledger.state.pending.get(digest)
    if pending is None:
        refuse_settled(context, digest)
        raise NotFound(f"order: expected one that waits for a second administrator, got {digest!r:.90}")
    documents = context.ledger.documents_of(pending.index)
    return pending, documents, disclosed(context, [documents["order"]])


def find_effect(context: LedgerContext, digest: str) -> int | None:
    """Return the entry by which an order took effect, or None."""
    found = context.ledger.find(subjects=[f"order:{digest}"], outcome="success", newest=True, limit=1)
    return None if not found or parse_entry(found[0][1]).type == OrderWithdrawn.type else found[0][0]


def find_withdrawal(context: LedgerContext, digest: str) -> int | None:
    """Return the entry by which an order was withdrawn, or None."""
    found = context.ledger.find(subjects=[f"order:{digest}"], types=(OrderWithdrawn.type,), newest=True, limit=1)
    return found[0][0] if found else None


def refuse_settled(context: LedgerContext, digest: str) -> None:
    """Raise Conflict with the entry by which an order took effect after it had waited for a second administrator."""
    index = find_effect(context, digest)
    if index is not None:
        message = f"order {digest}: expected one that waits for a second administrator, got one that took effect"
        raise Conflict(f"{message} as entry {index}", code="in-effect", entry=index)


def _sets_time(pending: records.PendingOrder) -> bool:
    return ACTIONS[pending.action].order.sets_time


def _pending_row(context: LedgerContext, pending: records.PendingOrder, *, with_texts: bool = True) -> PendingOrder:
    documents = parse_entry(context.ledger.entry_bytes(pending.index)).documents
    envelope = context.ledger.document(documents["order"])
    return PendingOrder(
        **dict(pending),
        blockers=tuple(_find_blockers(context, pending, envelope)),
        envelope=parse_envelope(envelope),
        disclosures=disclosed(context, [envelope]) if with_texts else (),
        documents={role: digest for role, digest in documents.items() if role != "order"},
    )


def _find_blockers(context: LedgerContext, pending: records.PendingOrder, envelope: bytes) -> list[Refusal]:
    """Return the reasons why the order cannot be carried out any more, independently of its second signer.

    The rules of an order that sets the log's time apply at the host's time, so only its key is checked.
    """
    state = context.ledger.state
    order, now = ORDERS.parse(parse_envelope(envelope).payload), context.now(state)
    reasons = [] if order.sets_time else list_refusal_reasons(state, order, now)
    return reasons or refuse_ended_key(state, pending, now)


def clock(context: LedgerContext) -> Clock:
    """Return the last entry's time, the host's time, and the pending orders to reset the clock while it is behind.

    While the clock is behind, nobody can open a session, so these orders are read without one and lack their texts.
    """
    state = context.ledger.state
    is_behind = context.ledger.clock.read_behind(state) is not None
    return Clock(
        last=state.last_time,
        now=encode_time(context.clock()),
        behind=is_behind,
        waiting=list_pending_rows(context, ResetClock.action) if is_behind else (),
    )


def list_pending_rows(context: LedgerContext, action: str) -> tuple[PendingOrder, ...]:
    """Return the pending orders of one action, without their texts, because they are read without a session."""
    waiting = (one for one in _list_unexpired(context) if one.action == action)
    return tuple(_pending_row(context, one, with_texts=False) for one in waiting)


def shown_orders(waiting: Iterable[records.PendingOrder]) -> tuple[WaitingOrder, ...]:
    """Return the orders in short form, without what they bind."""
    return tuple(
        WaitingOrder(order=one.digest, action=one.action, signer=one.signer, expires_at=one.expires_at)
        for one in waiting
    )


def waiting_for(context: LedgerContext, administrator: str) -> tuple[WaitingOrder, ...]:
    """Return the orders of others that this administrator can countersign. There are none for other principals."""
    state = context.ledger.state
    return shown_orders(list_waiting_orders(state, context.now(state), administrator))


def policy(context: LedgerContext) -> Policy:
    """Return the valid policy set."""
    digest = context.ledger.state.site.policy
    document = context.ledger.document(digest)
    return Policy(digest=digest, policy=parse_policy(document), document=document)


def rules(context: LedgerContext) -> Rules:
    """Return the current rules version."""
    raised = context.ledger.find(types=(RulesRaised.type,), newest=True, limit=1)
    version = context.ledger.state.site.rules
    return Rules(version=version, newest=NEWEST_RULES, entry=raised[0][0] if raised else 0)


def test_policy(context: LedgerContext, principal: str, document: bytes, cases: bytes) -> PolicyTestResults:
    """Decide a policy set's own test cases by the set, without adopting it.

    Raises:
        Denied: The principal is not an administrator. A test takes seconds of the processor.
        RateLimited: Another trial of this person is running.
    """
    person = context.ledger.state.principals.get(principal)
    refused = (
        require_enrolled(context.ledger.state, principal)
        if person is None
        else refuse_without_role(person, "administrator")
    )
    if refused:
        raise Denied("Testing a policy set is for administrators", refusals=refused)
    with context.policy_trials.run_for(principal):
        results = test_cases(parse_policy(document), parse_cases(cases))
    return PolicyTestResults(results=tuple(PolicyTestResult(**asdict(result)) for result in results))
