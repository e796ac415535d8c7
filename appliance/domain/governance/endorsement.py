"""Orders that need a second administrator, and orders that were refused."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event, Ordered
from appliance.domain.core.names import Digest, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import PendingOrder, Principal
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.texts import bound_texts
from appliance.domain.core.verb import EventRule, Verb
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.fields import parse_list


class Endorse(Order):
    """The second signature: names the pending order by the digest of its PAE."""

    verb = "endorse"
    order: Digest

    def subjects(self) -> Subjects:
        return ((f"order:{self.order}", self.order),)


class OrderRefused(Event):
    """`withheld`: a canonical array of those of the order's commitments whose texts do not travel beside the log."""

    type = "order.refused"
    documents = ("order",)
    optional = ("withheld",)
    outcomes = ("denied",)
    order: Digest
    verb: str
    reasons: tuple[str, ...] = Field(min_length=1)

    @property
    def actor(self) -> str | None:
        return None

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}",)


class OrderPending(Ordered):
    type = "order.pending"
    optional = ("possession", "possessions", "policy")
    outcomes = ("pending",)


def may_endorse(state: State, order: Endorse, signer: Principal, now: Time) -> Reasons:
    reasons = needs(signer, "administrator")
    pending = state.pending.get(order.order)
    if pending is None:
        return [*reasons, f"order: expected one that waits for a second administrator, got {order.order}"]
    if pending.signer == order.signer:
        reasons.append(f"separation of duties: expected an administrator other than {pending.signer}, who ordered it")
    if pending.expires_at <= now:
        reasons.append(f"order: expected one that stands at {now}, got one that expired at {pending.expires_at}")
    return reasons


def waiting_orders(state: State, now: Time, endorser: str | None = None) -> list[PendingOrder]:
    """Orders that a second administrator can still sign; with `endorser`, those that this one can."""
    person = None if endorser is None else state.principals.get(endorser)
    if endorser is not None and (person is None or person.revoked is not None or not person.has("administrator")):
        return []
    return [one for one in state.pending.values() if one.expires_at > now and one.signer != endorser]


def order_pending(case: Case) -> Changes:
    """An order for a change of power, allowed as far as one administrator can."""
    accepted = case.accepted
    order = accepted.order
    case.require(
        not case.state.site.single_administrator,
        "administrators",
        "two",
        "a single one, who needs no second",
    )
    pending = PendingOrder(
        digest=accepted.digest,
        verb=order.verb,
        signer=order.signer,
        index=case.entry.index,
        expires_at=order.expires_at,
    )
    return [(case.state.pending, accepted.digest, pending)]


def refused(case: Case) -> Changes:
    """A refusal binds an authentic order, so that the service cannot invent refusals."""
    body = case.of(OrderRefused)
    accepted = case.reader.read(case.state, case.documents["order"], case.entry.time)
    case.require(accepted.digest == body.order, "order", body.order, accepted.digest)
    case.require(accepted.order.verb == body.verb, "verb", accepted.order.verb, body.verb)
    case.require(accepted.order.signer == case.entry.actor, "actor", accepted.order.signer, case.entry.actor)
    return list(bound_texts(case.state, case.entry, accepted.order, withheld=_withheld(case, accepted.order)))


def _withheld(case: Case, order: Order) -> list[str]:
    """The order's commitments whose texts the refusal does not bind: they were not handed in, or have been erased."""
    data = case.documents.get("withheld")
    if data is None:
        return []
    withheld, bound = parse_list(parse_canonical(data), "withheld"), set(order.commitments().values())
    expected = sorted(one for one in bound if one in withheld)
    case.require(withheld == expected != [], "withheld", f"some of {sorted(bound)}, sorted", withheld)
    return expected


VERBS = (
    Verb(
        Endorse,
        may=may_endorse,
        signers=("administrator",),
        meaning="You endorse the other administrator's order: with your signature it takes effect.",
        changes_answers=True,
    ),
)
EVENTS = (EventRule(OrderPending, order_pending), EventRule(OrderRefused, refused))
