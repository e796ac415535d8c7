"""Orders that need a second administrator, and refused orders."""

from __future__ import annotations

from appliance.domain.core.action import Action, EventRule
from appliance.domain.core.case import Case, Changes, bound_texts
from appliance.domain.core.entry import Event, Ordered, RecordedRefusal
from appliance.domain.core.facts import ActionFacts, Entity, PrincipalEntity
from appliance.domain.core.names import Code, Digest, Time, add_seconds
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import PendingOrder, Principal
from appliance.domain.core.roles import Reasons, refuse_role, refuse_without_role
from appliance.domain.core.signatures import key_ended
from appliance.domain.core.state import State
from appliance.errors import Denied, RefusalCode, Rejected
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.fields import parse_list

RECOVER_ADMINISTRATOR = "recover-administrator"
"""Action of the recovery of an administrator, which waits before it can be countersigned."""
MOST_WAITING = 100
"""Largest number of one signer's orders that wait for a second administrator at a time."""


ORDER_NOT_PENDING = RefusalCode(
    "order-not-pending",
    "state",
    "No order with the digest {digest} waits for a second administrator.",
    "Sign the order again if it has expired or was withdrawn.",
)
SAME_ADMINISTRATOR = RefusalCode(
    "same-administrator",
    "rule",
    "{id} signed this order and cannot countersign it.",
    "Ask another administrator.",
)
PENDING_EXPIRED = RefusalCode(
    "pending-order-expired",
    "state",
    "The order expired at {expires_at}. It is {now}.",
    "Have it signed again.",
)
TOO_MANY_WAITING = RefusalCode(
    "too-many-pending-orders",
    "rule",
    "Orders of {id} that wait for a second administrator: {waiting}. One person can have {limit}.",
    "Have them countersigned, or wait until they expire.",
)


RECOVERY_TOO_EARLY = RefusalCode(
    "recovery-too-early",
    "rule",
    "A recovery can be countersigned from {since} on, so that administrators can stop it before.",
    "Countersign it after that time. If nobody expects the recovery, revoke the key that signed it.",
)


class Countersign(Order):
    """An order that countersigns a pending order, which it names by the digest of its PAE."""

    action = "countersign"
    order: Digest

    def subjects(self) -> Subjects:
        return ((f"order:{self.order}", self.order),)


class WithdrawOrder(Order):
    """An order of the person who signed a pending order that it ends without effect."""

    action = "withdraw-order"
    order: Digest

    def subjects(self) -> Subjects:
        return ((f"order:{self.order}", self.order),)


class OrderWithdrawn(Ordered):
    """The event of a pending order that its signer withdrew."""

    type = "order.withdrawn"


class OrderRefused(Event):
    """The event of a refused order.

    `refusals` are those of the rules and policies. They are empty if something beside the order was refused, such as a
    document; then `code` is the reason.

    `withheld` is a canonical array of those of the order's commitments whose texts are not stored beside the log.
    """

    type = "order.refused"
    records = "refusals"
    actor_kind = "signer"
    documents = ("order",)
    optional = ("withheld",)
    outcomes = ("denied",)
    order: Digest
    action: str
    code: Code
    refusals: tuple[RecordedRefusal, ...]

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}",)


class OrderPending(Ordered):
    """The event of an order that waits for a second administrator."""

    type = "order.pending"
    optional = ("possession", "possessions", "policy", "lost", "removed")
    outcomes = ("pending",)


def authorise_countersign(state: State, order: Countersign, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a countersignature."""
    pending = state.pending.get(order.order)
    if pending is None:
        return [ORDER_NOT_PENDING(digest=Rejected(order.order))]
    reasons = refuse_without_role(signer, *countersigner_roles(pending.action))
    if pending.signer == order.signer:
        reasons.append(SAME_ADMINISTRATOR(f"principal:{pending.signer}"))
    if pending.expires_at <= now:
        reasons.append(PENDING_EXPIRED(expires_at=pending.expires_at, now=now))
    if pending.action == RECOVER_ADMINISTRATOR and now < (since := find_recovery_start(state, pending)):
        reasons.append(RECOVERY_TOO_EARLY(since=since))
    return reasons


def authorise_withdraw_order(state: State, order: WithdrawOrder, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of the withdrawal of a pending order, which its own signer alone can withdraw."""
    pending = state.pending.get(order.order)
    if pending is not None and pending.signer == signer.name:
        return []
    if pending is None and signer.has("administrator"):
        return [ORDER_NOT_PENDING(digest=Rejected(order.order))]
    needed = ("who signed it",)  # also for an order that is unknown, since others may not learn which orders wait
    return [refuse_role(signer.name, signer.roles, needed, needed)]


def countersigner_roles(action: str) -> tuple[str, ...]:
    """Return the roles that can countersign an order of this action."""
    return ("administrator", "recovery") if action == RECOVER_ADMINISTRATOR else ("administrator",)


def find_recovery_start(state: State, pending: PendingOrder) -> Time:
    """Return the time from which on a recovery can be countersigned: after half of the longest lifetime of an order.

    It is counted from the order's entry, since the signer chooses the order's own time.
    """
    return add_seconds(pending.recorded_at, state.parameters.order_lifetime_s // 2)


def has_valid_key(state: State, name: str, now: Time) -> bool:
    """Return True if a key of this person or unit may sign something new."""
    return any(key.principal == name and key.is_valid(now) for key in state.keys.values())


def has_too_many_waiting(state: State, order: Order, now: Time) -> Reasons:
    """Return the refusal reason of one more pending order of this signer, if there is one.

    An order that sets the log's time is dated by the host's clock, so its signer's expired orders count, too.
    """
    own = [pending for pending in state.pending.values() if pending.signer == order.signer]
    waiting = sum(order.sets_time or pending.expires_at > now for pending in own)
    if waiting < MOST_WAITING:
        return []
    return [TOO_MANY_WAITING(f"principal:{order.signer}", waiting=waiting, limit=MOST_WAITING)]


def waiting_orders(state: State, now: Time, countersigner: str | None = None) -> list[PendingOrder]:
    """Return the orders that a second person can still sign; with `countersigner`, those that this one can.

    Orders whose key may not sign any more are left out.
    """
    unexpired = (pending for pending in state.pending.values() if pending.expires_at > now)
    waiting = [pending for pending in unexpired if not refuse_ended_key(state, pending, now)]
    if countersigner is None:
        return waiting
    person = state.principals.get(countersigner)
    if person is None or person.revoked is not None:
        return []
    return [one for one in waiting if one.signer != countersigner and _has_any(person, countersigner_roles(one.action))]


def refuse_ended_key(state: State, pending: PendingOrder, now: Time) -> Reasons:
    """Return the refusal reason of a pending order whose key has ended, such as a stolen one that was revoked."""
    key = state.keys.get(pending.keyid)
    ended = None if key is None else key_ended(state, key, now)
    return [] if ended is None else [ended]


def list_countersigners(state: State, order: Order) -> tuple[str, ...]:
    """Return the names of those who can countersign an order that waits."""
    roles = countersigner_roles(order.action)
    people = state.principals.values()
    return tuple(sorted(person.name for person in people if _has_any(person, roles) and person.name != order.signer))


def _has_any(person: Principal, roles: tuple[str, ...]) -> bool:
    return any(person.has(role) for role in roles)


def apply_pending_order(case: Case) -> Changes:
    """Record an order that one administrator signed and that needs a second, and drop those that have expired.

    An order that sets the log's time drops none: the orders that wait beside it are dated by the host's clock.
    """
    accepted, now = case.accepted, case.entry.time
    order = accepted.order
    case.require(
        not case.state.site.single_administrator,
        "administrators",
        "two",
        "a single one, who needs no second",
    )
    if reasons := has_too_many_waiting(case.state, order, now):
        raise Denied(f"order {order.action} by {order.signer}", refusals=reasons)
    expired = [] if order.sets_time else [other for other in case.state.pending.values() if other.expires_at <= now]
    pending = PendingOrder(
        digest=accepted.digest,
        action=order.action,
        signer=order.signer,
        keyid=accepted.keyid,
        index=case.entry.index,
        recorded_at=case.entry.time,
        expires_at=order.expires_at,
        about=order.about(),
    )
    return [
        *((case.state.pending, other.digest, None) for other in expired),
        (case.state.pending, accepted.digest, pending),
    ]


def apply_withdrawal(case: Case) -> Changes:
    """Drop the order that was pending. Its texts stay, as those of an order that expired."""
    return [(case.state.pending, case.order(WithdrawOrder).order, None)]


def apply_order_refusal(case: Case) -> Changes:
    """Apply a refusal. It contains an authentic order, so that the service cannot invent refusals."""
    body = case.of(OrderRefused)
    accepted = case.reader.read(case.state, case.documents["order"], case.entry.time)
    case.require(accepted.digest == body.order, "order", body.order, accepted.digest)
    case.require(accepted.order.action == body.action, "action", accepted.order.action, body.action)
    case.require(accepted.order.signer == case.entry.actor, "actor", accepted.order.signer, case.entry.actor)
    return list(bound_texts(case.state, case.entry, accepted.order, withheld=_list_withheld(case, accepted.order)))


def _list_withheld(case: Case, order: Order) -> list[str]:
    """Return the order's commitments whose texts the refusal does not bind.

    These texts were not submitted, or have been erased.
    """
    data = case.documents.get("withheld")
    if data is None:
        return []
    withheld, bound = parse_list(parse_canonical(data), "withheld"), set(order.commitments().values())
    expected = sorted(commitment for commitment in bound if commitment in withheld)
    case.require(withheld == expected != [], "withheld", f"some of {sorted(bound)}, sorted", withheld)
    return expected


class PendingOrderEntity(Entity):
    """An order that waits for a second administrator. Its id is the order's digest."""

    table = "pending"
    action: str
    signer: PrincipalEntity


ACTIONS = (
    Action(
        Countersign,
        title="Countersign an order",
        authorise=authorise_countersign,
        signers=("administrator", "recovery"),
        meaning="You countersign the other person's order: with your signature it takes effect.",
        recheck_slots=True,
        facts=ActionFacts(PendingOrderEntity, "order"),
        example_values={"signer": "ben"},
    ),
    Action(
        WithdrawOrder,
        title="Withdraw an order",
        authorise=authorise_withdraw_order,
        signers=("who signed it",),
        meaning="Your order waits no longer, and nobody can countersign it. The log keeps both orders.",
        event=OrderWithdrawn,
        apply=apply_withdrawal,
        facts=ActionFacts(PendingOrderEntity, "order"),
        example_values={"signer": "anna"},
    ),
)
EVENTS = (EventRule(OrderPending, apply_pending_order), EventRule(OrderRefused, apply_order_refusal))
