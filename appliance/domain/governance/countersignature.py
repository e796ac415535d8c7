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
"""Action that recovers an administrator. Its orders wait for a time before they can be countersigned."""
MAX_WAITING_ORDERS = 100
"""Largest number of orders of one signer that can wait for a second administrator at the same time."""

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
    """An order to countersign a pending order.

    `order` is the digest of the pending order's DSSE pre-authentication encoding (PAE).
    """

    action = "countersign"
    order: Digest

    def subjects(self) -> Subjects:
        return ((f"order:{self.order}", self.order),)


class WithdrawOrder(Order):
    """An order by which a person withdraws a pending order that they signed. `order` is its digest."""

    action = "withdraw-order"
    order: Digest

    def subjects(self) -> Subjects:
        return ((f"order:{self.order}", self.order),)


class OrderWithdrawn(Ordered):
    """The event of a pending order that its signer withdrew."""

    type = "order.withdrawn"


class OrderRefused(Event):
    """The event of a refused order.

    `refusals` are the refusal reasons of rules and policies. They are empty if something else was refused, such as a
    document that was submitted with the order. Then `code` is the error code of that refusal.

    The document `withheld` is a canonical JSON array. It lists the order's commitments whose texts are not stored
    beside the log.
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
    reasons = refuse_without_role(signer, *list_countersigner_roles(pending.action))
    if pending.signer == order.signer:
        reasons.append(SAME_ADMINISTRATOR(f"principal:{pending.signer}"))
    if pending.expires_at <= now:
        reasons.append(PENDING_EXPIRED(expires_at=pending.expires_at, now=now))
    if pending.action == RECOVER_ADMINISTRATOR and now < (since := find_recovery_start(state, pending)):
        reasons.append(RECOVERY_TOO_EARLY(since=since))
    return reasons


def authorise_withdraw_order(state: State, order: WithdrawOrder, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of the withdrawal of a pending order. Only its signer can withdraw it."""
    pending = state.pending.get(order.order)
    if pending is not None and pending.signer == signer.name:
        return []
    if pending is None and signer.has("administrator"):
        return [ORDER_NOT_PENDING(digest=Rejected(order.order))]
    # Unknown orders get the same reason, so that other people cannot find out which orders are pending.
    needed = ("who signed it",)
    return [refuse_role(signer.name, signer.roles, needed, needed)]


def list_countersigner_roles(action: str) -> tuple[str, ...]:
    """Return the roles that can countersign an order of this action."""
    return ("administrator", "recovery") if action == RECOVER_ADMINISTRATOR else ("administrator",)


def find_recovery_start(state: State, pending: PendingOrder) -> Time:
    """Return the time from which on a recovery can be countersigned.

    It is half of the longest lifetime of an order after the time of the log entry that recorded the recovery. The time
    in the order itself is not used, because its signer chooses it.
    """
    return add_seconds(pending.recorded_at, state.parameters.order_lifetime_s // 2)


def has_valid_key(state: State, name: str, now: Time) -> bool:
    """Return True if this person or unit has a key that can sign new statements."""
    return any(key.principal == name and key.is_valid(now) for key in state.keys.values())


def refuse_excess_order(state: State, order: Order, now: Time) -> Reasons:
    """Return the refusal reason if the order's signer already has `MAX_WAITING_ORDERS` pending orders.

    Expired orders are not counted, unless this order sets the log's time: then `now` is the time of the host's clock,
    to which the expiry of the other orders cannot be compared.
    """
    own = [pending for pending in state.pending.values() if pending.signer == order.signer]
    waiting = sum(order.sets_time or pending.expires_at > now for pending in own)
    if waiting < MAX_WAITING_ORDERS:
        return []
    return [TOO_MANY_WAITING(f"principal:{order.signer}", waiting=waiting, limit=MAX_WAITING_ORDERS)]


def list_waiting_orders(state: State, now: Time, countersigner: str | None = None) -> list[PendingOrder]:
    """Return the pending orders that a second person can countersign, or those that `countersigner` can.

    Orders that have expired, or whose signing key is no longer valid, are left out.
    """
    unexpired = (pending for pending in state.pending.values() if pending.expires_at > now)
    waiting = [pending for pending in unexpired if not refuse_ended_key(state, pending, now)]
    if countersigner is None:
        return waiting
    person = state.principals.get(countersigner)
    if person is None or person.revoked is not None:
        return []
    return [
        pending
        for pending in waiting
        if pending.signer != countersigner and _has_any_role(person, list_countersigner_roles(pending.action))
    ]


def refuse_ended_key(state: State, pending: PendingOrder, now: Time) -> Reasons:
    """Return the refusal reason of a pending order whose signing key is no longer valid, such as a revoked one."""
    key = state.keys.get(pending.keyid)
    ended = None if key is None else key_ended(state, key, now)
    return [] if ended is None else [ended]


def list_countersigners(state: State, order: Order) -> tuple[str, ...]:
    """Return the names of the principals who can countersign an order, sorted."""
    roles = list_countersigner_roles(order.action)
    people = state.principals.values()
    return tuple(
        sorted(person.name for person in people if _has_any_role(person, roles) and person.name != order.signer)
    )


def _has_any_role(person: Principal, roles: tuple[str, ...]) -> bool:
    return any(person.has(role) for role in roles)


def apply_pending_order(case: Case) -> Changes:
    """Record an order that waits for a second administrator, and drop the pending orders that have expired.

    An order that sets the log's time drops none: its entry has the time of the host's clock, to which the expiry of
    the other orders cannot be compared.

    Raises: Denied if the site has a single administrator, or the signer has too many pending orders.
    """
    accepted, now = case.accepted, case.entry.time
    order = accepted.order
    case.require(
        not case.state.site.single_administrator,
        "administrators",
        "two",
        "a single one, who needs no second",
    )
    if reasons := refuse_excess_order(case.state, order, now):
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
    """Drop the pending order. The texts that belong to it stay, as those of an expired order do."""
    return [(case.state.pending, case.order(WithdrawOrder).order, None)]


def apply_order_refusal(case: Case) -> Changes:
    """Check that a refusal contains the signed order that it refuses, and bind the order's texts to the entry.

    So the service cannot invent refusals.
    """
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
