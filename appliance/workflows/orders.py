"""A person's signed order is checked, decided, recorded, and set in motion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from appliance.domain.core.event import Ordered
from appliance.domain.core.order import Order
from appliance.domain.core.signatures import Accepted
from appliance.domain.core.state import State
from appliance.domain.governance.endorsement import Endorse, OrderPending, OrderRefused
from appliance.domain.retention.texts import Erase
from appliance.domain.rulebook.registry import ORDERS, VERBS, reasons_against, verb_of
from appliance.domain.rulebook.subjects import Signed
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotFound, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import Disclosure, verify_disclosure
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.checkpoint import claimed_size
from appliance.store.ledger.queue import Appended
from appliance.workflows.core.context import Context
from appliance.workflows.core.effects import Effect, lease_of
from appliance.workflows.core.halt import halt_withdrawn
from appliance.workflows.core.record import append
from appliance.workflows.data import imports
from appliance.workflows.governance import administration
from appliance.workflows.runs import replay, train
from appliance.workflows.serving import looks

log = logging.getLogger("appliance")

_ATTEMPTS = 5
_NOTHING = Effect(Order)
_EFFECTS = {
    effect.order.verb: effect
    for effect in (*imports.EFFECTS, *train.EFFECTS, *replay.EFFECTS, *looks.EFFECTS, *administration.EFFECTS)
}


@dataclass(frozen=True)
class Submission:
    """What a client submitted: the envelope's bytes, the texts of its commitments, the documents it binds."""

    envelope: bytes
    disclosures: tuple[Disclosure, ...]
    documents: Mapping[str, bytes]
    source: str
    against: Callable[[Order], tuple[str, ...]] = lambda order: ()
    """What the door by which it came has against it; its refusal is an entry, as others are."""


@dataclass(frozen=True)
class Submitted:
    appended: Appended
    digest: str
    result: dict[str, Any]


def submit(context: Context, submission: Submission) -> Submitted:
    """Handles an order from its bytes to its entry. The first refusal of an authentic order is an entry. An inauthentic
    one, and one that comes again or too late, is only counted: whoever has its bytes can send it any number of times.

    What could not be decided now, since the machine or the database failed, is no refusal: the order can come again.
    """
    with context.order_lock:
        context.refresh()
        state = context.ledger.state
        accepted = ORDERS.read(state, submission.envelope, context.now(state))
        _check_first(context, accepted)
        with _leased(context, accepted):
            try:
                check_disclosures(accepted.order, submission.disclosures)
                appended, result = _decide_and_record(context, accepted, submission)
            except Unavailable:
                raise
            except ApplianceError as error:
                _refuse_once(context, accepted, submission, error)
                raise
    _start_work(context, accepted)
    return Submitted(appended, accepted.digest, result)


def prove(context: Context, submitted: Submitted) -> list[bytes]:
    """That its entry is in the log of the checkpoint that came with it: hashes from the leaf upwards."""
    appended = submitted.appended
    return context.ledger.inclusion_proof(appended.entry.index, claimed_size(appended.checkpoint))


def _check_first(context: Context, accepted: Accepted) -> None:
    """Refuses an order that was accepted or has expired, without an entry: its signer need not be who sent it."""
    state, order = context.ledger.state, accepted.order
    error: ApplianceError | None = None
    if accepted.digest in state.orders:
        seen = state.orders.get(accepted.digest)
        error = Conflict(f"order {accepted.digest}: expected a new one, got one accepted as entry {seen}")
    elif order.expires_at <= (now := encode_time(context.clock())) and not _sets_time(context, order):
        # By the clock alone: while it is behind the log, an order is told that nothing can be recorded.
        stands = f"expected one that stands at {now}, got one that expired at {order.expires_at}; sign a new one"
        error = Denied(f"order {order.verb}: {stands}", code="expired")
    if error is not None:
        error.claimed = (order.signer, accepted.keyid)
        raise error


@contextmanager
def _leased(context: Context, accepted: Accepted) -> Iterator[None]:
    """Around the entry, where this process does the work: whoever finds the entry without the lease closes the work as
    interrupted. No work has the lease yet, since an order that was accepted does not come here."""
    if not _effect(accepted.order).local:
        yield
        return
    lease = lease_of(accepted.digest)
    if not context.processes.own(lease):
        raise Unavailable(
            f"order {accepted.digest}: expected a lease for this process, got none: another process has this order, "
            "or this process lost its name; submit it again"
        )
    try:
        yield
    except ApplianceError as error:
        if error.code != "commit-unknown":
            with suppress(Unavailable):
                context.processes.disown(lease)
        raise


def _refuse_once(context: Context, accepted: Accepted, submission: Submission, error: ApplianceError) -> None:
    """By an entry, unless the same order has one: another process may have accepted it meanwhile."""
    if accepted.digest in context.refused_orders or accepted.digest in context.ledger.state.orders:
        error.claimed = (accepted.order.signer, accepted.keyid)
        return
    try:
        _refuse(context, accepted, submission, error)
    except Unavailable:
        # Under a clock that is behind no refusal is an entry: the administrators get the reason as an error.
        if not _sets_time(context, accepted.order):
            raise
        log.warning("order %s was refused and is no entry: %s", accepted.digest, error.code)
    else:
        context.refused_orders.add(accepted.digest)


def _decide_and_record(context: Context, accepted: Accepted, submission: Submission) -> tuple[Appended, dict[str, Any]]:
    """Once more where another process appended between the decision and the entry: what was decided may be otherwise
    now, and a number that the entry was to have may be taken."""
    for left in reversed(range(_ATTEMPTS)):
        before = context.ledger.others
        try:
            _decide(context, accepted.order)
            _refuse_for(accepted.order, submission.against(accepted.order))
            _check_ready(context, accepted.order)
            return _record(context, accepted, submission)
        except Unavailable:
            raise
        except ApplianceError:
            context.refresh()
            if not left or context.ledger.others == before:
                raise
    raise AssertionError("unreachable")


def check(context: Context, principal: str, payload: bytes) -> tuple[str, ...]:
    """Every reason against an order that its signer has not signed yet; nothing is recorded, and nothing promised."""
    order, state = ORDERS.parse(payload), context.ledger.state
    if order.signer != principal:
        raise Denied(f"order {order.verb}: expected an order signed by {principal}, got one signed by {order.signer}")
    return _reasons(context, order, state, _decided_at(context, state, order))


def check_disclosures(order: Order, disclosures: tuple[Disclosure, ...]) -> None:
    """Exactly the texts that the order commits to, each under its own salt."""
    bound = sorted(order.commitments().values())
    given = sorted(disclosure.commitment for disclosure in disclosures)
    if bound != given:
        raise BadInput(f"order {order.verb}, disclosures: expected one for each of {bound}, got {given}")
    for disclosure in disclosures:
        _check_disclosure(disclosure)


def _check_disclosure(disclosure: Disclosure) -> None:
    verify_disclosure(disclosure)
    if "\0" in disclosure.text:  # which no database keeps
        raise BadInput("disclosure, text: expected no NUL, got one")


def _decide(context: Context, order: Order) -> None:
    """The invariants, and the site's own policies, which may only tighten: every reason at once."""
    state = context.ledger.state
    _refuse_for(order, _reasons(context, order, state, _decided_at(context, state, order)))


def _reasons(context: Context, order: Order, state: State, now: str) -> tuple[str, ...]:
    return (*reasons_against(state, order, now), *_policies_against(context, (order,), state, now))


def _decided_at(context: Context, state: State, order: Order) -> str:
    """The time of the entry that the order will become, as far as it is known: where that sets the log's time back, it
    is earlier than the last entry's."""
    waits = not isinstance(order, Endorse) and not state.site.single_administrator
    return context.now(state) if waits or not _sets_time(context, order) else encode_time(context.clock())


def _sets_time(context: Context, order: Order) -> bool:
    """Whether this is the order that sets the log's time back, or endorses it."""
    pending = context.ledger.state.pending.get(order.order) if isinstance(order, Endorse) else None
    return order.sets_time if pending is None else VERBS[pending.verb].order.sets_time


def _policies_against(context: Context, orders: Sequence[Order], state: State, now: str) -> tuple[str, ...]:
    """What the site's own policies say against the order and against the one that it endorses: the policy set may be
    another than when that was allowed."""
    reasons: tuple[str, ...] = ()
    for one in orders:
        principal = state.principals.get(one.signer)
        if principal is not None:
            reasons += context.site_policies().decide(principal, one, state, now)
    return reasons


def _refuse_for(order: Order, reasons: tuple[str, ...]) -> None:
    if reasons:
        raise Denied(f"order {order.verb} by {order.signer}", reasons=reasons)


def _effect(order: Order) -> Effect:
    return _EFFECTS.get(order.verb, _NOTHING)


def _check_ready(context: Context, order: Order) -> None:
    """What the order needs on disk lies there, before anything is recorded."""
    ready = _effect(order).ready
    if ready is not None:
        ready(context, order)


def _check_attached(context: Context, order: Order, documents: Mapping[str, bytes]) -> None:
    """The document beside the order can take effect: before it is signed, and again before it stands, when the
    appliance may be of another release and its administrators others."""
    attachment, attached = verb_of(context.ledger.state, order).attachment_of(order), _effect(order).attached
    if attachment is not None and attached is not None:
        attached(context, documents[attachment.role])


def _record(context: Context, accepted: Accepted, submission: Submission) -> tuple[Appended, dict[str, Any]]:
    state, order = context.ledger.state, accepted.order
    documents: dict[str, bytes] = {"order": submission.envelope}
    orders: tuple[Signed, ...] = ((accepted.digest, order),)
    final = order
    attachments = dict(submission.documents)
    if isinstance(order, Endorse):
        first, documents = _endorsed(context, state, order, documents)
        orders += ((order.order, first.order),)
        final = first.order
        _check_ready(context, final)
    else:
        documents |= _beside(context, state, accepted, attachments)
    if attachments:
        raise BadInput(f"order {order.verb}, documents: expected no others, got {sorted(attachments)}")
    body = _event(state, order, final)
    erased = (final.commitment,) if isinstance(final, Erase) and not isinstance(body, OrderPending) else ()
    appended = append(
        context,
        body,
        actor=order.signer,
        source=submission.source,
        documents=documents,
        orders=orders,
        disclosures=submission.disclosures,
        erased=erased,
        # Once more over the state and at the time of the entry itself; the rules ask the invariants there.
        guard=lambda then, now: _refuse_for(order, _policies_against(context, [one for _, one in orders], then, now)),
    )
    # The run that a training order has been given, for example.
    made = body.model_dump(mode="json", exclude={"policy"})
    return appended, {"order": accepted.digest} | made


def _event(state: State, order: Order, final: Order) -> Ordered:
    """What is recorded: that the order waits for a second administrator, or that it stands."""
    verb, policy = verb_of(state, final), state.site.policy
    if verb.two_administrators and not isinstance(order, Endorse) and not state.site.single_administrator:
        return OrderPending(policy=policy)
    if verb.event is None:
        raise BadInput(
            f"order {order.verb}: expected it to endorse an order other than an endorsement, got {final.verb}"
        )
    members: dict[str, Any] = {} if verb.body is None else dict(verb.body(state))
    return verb.event(policy=policy, **members)


def _beside(context: Context, state: State, accepted: Accepted, attachments: dict[str, bytes]) -> dict[str, bytes]:
    """The documents beside the order: the one that it binds, taken out of `attachments`, and what the service adds."""
    order, verb = accepted.order, verb_of(state, accepted.order)
    documents = {} if verb.evidence is None else dict(verb.evidence(state, accepted))
    attachment = verb.attachment_of(order)
    if attachment is None:
        return documents
    role = attachment.role
    if role not in attachments:
        raise BadInput(f"order {verb.name}, documents: expected {role}, got none")
    documents[role] = attachments.pop(role)
    _check_attached(context, order, documents)
    return documents


def _endorsed(
    context: Context, state: State, order: Endorse, documents: dict[str, bytes]
) -> tuple[Accepted, dict[str, bytes]]:
    pending = state.pending.get(order.order)
    if pending is None:
        raise NotFound(f"order {order.order}: expected one that waits for a second administrator, got none")
    stored = context.ledger.documents_of(pending.index)
    first = stored.pop("order")
    accepted = ORDERS.read(state, first, context.now(state))
    _check_attached(context, accepted.order, stored)
    return accepted, {**documents, "endorsed": first, **stored}


def _refuse(context: Context, accepted: Accepted, submission: Submission, error: ApplianceError) -> None:
    reasons = error.reasons if isinstance(error, Denied) and error.reasons else (error.message,)
    body = OrderRefused(order=accepted.digest, verb=accepted.order.verb, reasons=tuple(r[:500] for r in reasons[:32]))
    kept = _keepable_disclosures(context.ledger.state, accepted.order, submission.disclosures)
    withheld = sorted(set(accepted.order.commitments().values()) - kept.keys())
    beside = {"withheld": encode_canonical(withheld)} if withheld else {}
    append(
        context,
        body,
        actor=accepted.order.signer,
        source=submission.source,
        documents={"order": submission.envelope, **beside},
        disclosures=tuple(kept.values()),
    )


def _keepable_disclosures(state: State, order: Order, disclosures: tuple[Disclosure, ...]) -> dict[str, Disclosure]:
    """What was handed in of the order's texts and can be kept: it opens its commitment, and was not erased before."""
    given = {disclosure.commitment: disclosure for disclosure in disclosures}
    kept = {}
    for commitment in order.commitments().values():
        text = state.texts.get(commitment)
        if commitment in given and (text is None or text.erased is None):
            with suppress(ApplianceError):
                _check_disclosure(given[commitment])
                kept[commitment] = given[commitment]
    return kept


def _start_work(context: Context, accepted: Accepted) -> None:
    """What the recorded order asks for begins; nothing before the append was durable."""
    start = _effect(accepted.order).start
    if start is not None:
        start(context, accepted)
    if verb_of(context.ledger.state, accepted.order).changes_answers:
        try:
            context.recheck_answers()
        finally:
            halt_withdrawn(context)
