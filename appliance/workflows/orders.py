"""The way of a signed order: it is checked, decided, recorded and carried out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from appliance.domain.actions.apply import Signed
from appliance.domain.actions.registry import ACTIONS, ORDERS, find_action, list_refusal_reasons, refuse_signer
from appliance.domain.core.entry import Ordered, record_refusals
from appliance.domain.core.order import Order
from appliance.domain.core.records.people import PendingOrder
from appliance.domain.core.signatures import EXPIRED, AcceptedOrder, check_signer, open_envelope
from appliance.domain.core.state import State
from appliance.domain.governance.countersignature import Countersign, OrderPending, OrderRefused, refuse_excess_order
from appliance.domain.governance.keys import RevokeKey
from appliance.domain.governance.people import RevokePrincipal
from appliance.domain.retention import ArchiveLog, Erase
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotFound, Refusal, RefusalCode, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.checkpoint import claimed_size
from appliance.store.ledger.queue import AppendedEntry, Guard
from appliance.store.ledger.writer import check_disclosure
from appliance.workflows import governance, restoration, retention
from appliance.workflows.core.context import Context, LedgerContext
from appliance.workflows.core.jobs import DEFECT, contain_defects
from appliance.workflows.core.record import Effect, append, append_at_head, lease_of, require_size
from appliance.workflows.core.retry import stop_withdrawn_runs
from appliance.workflows.data import imports
from appliance.workflows.queries.people import refuse_settled
from appliance.workflows.runs import replay, train
from appliance.workflows.serving import previews

log = logging.getLogger("appliance")

UNDECIDED = RefusalCode(
    "defect",
    "machine",
    "The service could not decide this order because of a defect in the service. The order did not take effect.",
    "Ask the machine's administrator to read the service's log.",
)

_ATTEMPTS = 5
"""Most decisions of an order while other processes append entries in between."""
_NOTHING = Effect(Order)
_EFFECTS = {
    effect.order.action: effect
    for effect in (
        *imports.EFFECTS,
        *train.EFFECTS,
        *replay.EFFECTS,
        *previews.EFFECTS,
        *governance.EFFECTS,
        *restoration.EFFECTS,
        *retention.EFFECTS,
    )
}


@dataclass(frozen=True)
class Submission:
    """A submitted order: the envelope's bytes, the texts of its commitments, and the documents that it binds."""

    envelope: bytes
    disclosures: tuple[Disclosure, ...]
    documents: Mapping[str, bytes]
    source: str
    refuse: Callable[[Order], tuple[Refusal, ...]] = lambda order: ()
    """Function that returns the reasons of the receiving listener against the order. Such a refusal is recorded like
    others.
    """


@dataclass(frozen=True)
class SubmittedOrder:
    """An accepted order: its entry and its digest."""

    appended: AppendedEntry
    digest: str


def submit(context: Context, submission: Submission) -> SubmittedOrder:
    """Decide an order, record it and start its work.

    The first refusal of an authentic order is an entry, even if the service cannot decide it because of a defect. An
    order that is not authentic, repeated or late is only counted, since anybody who has its bytes can send it any
    number of times. So are a signer's refused orders beyond a limit in a minute. A failure of the machine or of the
    database is not a refusal: the order can be submitted again.

    The signature is verified before the order is parsed, and both before the lock is taken, so that only clients with
    a valid key wait for it. The disk is read for the order before the lock is taken, too, so that no other order waits
    for that.

    Raises:
        ApplianceError: The order is refused or cannot be recorded.
    """
    context.refresh()
    envelope, key = open_envelope(context.ledger.state, submission.envelope)
    with context.signer_turns.take(key.principal):
        state = context.ledger.state
        accepted = ORDERS.read_opened(state, envelope, key, context.now(state))
        restoration.check_waiting(context, accepted.order)
        return _submit_accepted(context, accepted, submission)


def _submit_accepted(context: Context, accepted: AcceptedOrder, submission: Submission) -> SubmittedOrder:
    """Decide an authentic order, record it and start its work.

    The decision before the lock computes what is slow, such as the epsilon of a private recipe. The decision under the
    lock finds these results cached.
    """
    _check_first(context, accepted)
    if not _is_first_revocation(context.ledger.state, accepted.order):
        context.signer_rate.check(accepted.order.signer)
    _try_attached(context, accepted.order, submission)
    with _prepare(context, accepted) as unready, context.order_lock:
        context.refresh()
        state = context.ledger.state
        check_signer(state, accepted, context.now(state))
        _check_first(context, accepted)
        with _hold_lease(context, accepted):
            try:
                with _refuse_defects(accepted.order):
                    check_disclosures(accepted.order, submission.disclosures)
                    appended = _decide_and_record(context, accepted, submission, unready)
            except Unavailable:
                raise
            except ApplianceError as error:
                _refuse_once(context, accepted, submission, error)
                raise
        context.signer_rate.add(accepted.order.signer)
    _start_work(context, accepted)
    return SubmittedOrder(appended, accepted.digest)


def _is_first_revocation(state: State, order: Order) -> bool:
    """Return True if the order revokes a person, or a key that was not revoked before.

    There are few such orders, and the holder of a stolen key must not delay its revocation.
    """
    if isinstance(order, RevokeKey):
        key = state.keys.get(order.keyid)
        return key is not None and key.revoked is None
    return isinstance(order, RevokePrincipal)


def prove(context: LedgerContext, submitted: SubmittedOrder) -> list[bytes]:
    """Return the inclusion proof of the order's entry under the checkpoint of its append: hashes from the leaf
    upwards.
    """
    appended = submitted.appended
    return context.ledger.inclusion_proof(appended.entry.index, claimed_size(appended.checkpoint))


def _check_first(context: LedgerContext, accepted: AcceptedOrder) -> None:
    """Refuse an order that was accepted before or has expired. It makes no entry, since its signer may not have sent
    it.
    """
    state, order = context.ledger.state, accepted.order
    error: ApplianceError | None = None
    if accepted.digest in state.orders:
        seen = state.orders.get(accepted.digest)
        error = Conflict(f"order {accepted.digest}: expected a new one, got one accepted as entry {seen}", entry=seen)
    elif order.expires_at <= (now := encode_time(context.clock())) and not _sets_time(context, order):
        # Only the clock counts here. While it is behind the log, the append itself refuses the order.
        error = Denied(f"order {order.action}", refusals=(EXPIRED(expires=order.expires_at, now=now),), code="expired")
    if error is not None:
        error.claimed = (order.signer, accepted.keyid)
        raise error


@contextmanager
def _refuse_defects(order: Order) -> Iterator[None]:
    """Turn a defect of the service into a refusal of the order."""
    try:
        with contain_defects(f"order {order.action}"):
            yield
    except ApplianceError as error:
        if error.code != DEFECT:
            raise
        raise Denied(f"order {order.action} by {order.signer}", refusals=(UNDECIDED(),), code=DEFECT) from error


@contextmanager
def _hold_lease(context: LedgerContext, accepted: AcceptedOrder) -> Iterator[None]:
    """Hold the lease of the order's work around its entry, if this process does the work.

    A process that finds the entry without the lease closes the work as interrupted. No process holds the lease before,
    since an accepted order does not come here again.

    Raises:
        Unavailable: Another process holds the lease, or this process has lost its name.
    """
    if not _find_effect(accepted.order).local:
        yield
        return
    lease = lease_of(accepted.digest)
    if not context.processes.acquire_lease(lease):
        raise Unavailable(
            f"order {accepted.digest}: expected a lease for this process, got none: another process has this order, "
            "or this process lost its name; submit it again"
        )
    try:
        yield
    except ApplianceError as error:
        if error.code != "commit-unknown":
            with suppress(Unavailable):
                context.processes.release_lease(lease)
        raise


def _refuse_once(
    context: LedgerContext, accepted: AcceptedOrder, submission: Submission, error: ApplianceError
) -> None:
    """Record the refusal, unless the same order has an entry or its signer's refusals have used up their entries.

    Another process may have accepted the order meanwhile. Refusals without an entry are counted.
    """
    refused = context.refused_orders
    has_entry = accepted.digest in refused or accepted.digest in context.ledger.state.orders
    if has_entry or refused.is_over_rate(accepted.order.signer):
        error.claimed = (accepted.order.signer, accepted.keyid)
        return
    try:
        _refuse(context, accepted, submission, error)
    except Unavailable:
        # While the clock is behind, no refusal can be recorded. The administrators get the reason as an error.
        if not _sets_time(context, accepted.order):
            raise
        log.warning("order %s was refused and is no entry: %s", accepted.digest, error.code)
    else:
        refused.add(accepted.digest, accepted.order.signer)


def _decide_and_record(
    context: Context, accepted: AcceptedOrder, submission: Submission, unready: ApplianceError | None
) -> AppendedEntry:
    """Decide the order and record it. Repeat if another process appended an entry in between.

    Such an entry may change the decision or take the number that the order's entry was to have.
    """
    for left in reversed(range(_ATTEMPTS)):
        before = context.ledger.replayed_from_others
        try:
            _decide(context, accepted.order)
            _refuse_for(accepted.order, submission.refuse(accepted.order))
            if unready is not None:
                raise unready
            return _record(context, accepted, submission)
        except Unavailable:
            raise
        except ApplianceError:
            context.refresh()
            if not left or context.ledger.replayed_from_others == before:
                raise
    raise AssertionError("unreachable")


def check(context: LedgerContext, principal: str, payload: bytes) -> tuple[Refusal, ...]:
    """Return every reason against an order that its signer has not signed yet. Nothing is recorded or promised."""
    with context.signer_turns.take(principal):
        order, state = ORDERS.parse(payload), context.ledger.state
        if order.signer != principal:
            got = f"got one signed by {order.signer}"
            raise Denied(f"order {order.action}: expected an order signed by {principal}, {got}")
        return _find_reasons(context, order, state, find_decision_time(context, state, order))


def check_disclosures(order: Order, disclosures: tuple[Disclosure, ...]) -> None:
    """Check that the texts are exactly those that the order commits to, each under its own salt.

    Raises:
        BadInput: They are not.
    """
    bound = sorted(order.commitments().values())
    given = sorted(disclosure.commitment for disclosure in disclosures)
    if bound != given:
        raise BadInput(f"order {order.action}, disclosures: expected one for each of {bound}, got {given}")
    for disclosure in disclosures:
        check_disclosure(disclosure)


def _decide(context: LedgerContext, order: Order) -> None:
    """Decide the order by the invariants and the site's policies, which can only be stricter.

    Raises:
        Denied: With every reason at once.
    """
    state = context.ledger.state
    reasons = _find_reasons(context, order, state, find_decision_time(context, state, order))
    if reasons and isinstance(order, Countersign) and order.order not in state.pending:
        signer = state.principals.get(order.signer)
        if signer is not None and signer.has("administrator"):
            refuse_settled(context, order.order)
    _refuse_for(order, reasons)


def _find_reasons(context: LedgerContext, order: Order, state: State, now: str) -> tuple[Refusal, ...]:
    if refused := refuse_signer(state, order):
        return tuple(refused)
    reasons = list_refusal_reasons(state, order, now)
    if not reasons and _has_to_wait(state, order, order):
        reasons = refuse_excess_order(state, order, now)
    return (*reasons, *_find_policy_reasons(context, (order,), state, now))


def find_decision_time(context: LedgerContext, state: State, order: Order) -> str:
    """Return the time at which the order is decided, which is the expected time of its entry.

    For an order that sets the log's time back, it is earlier than the last entry.
    """
    waits = not isinstance(order, Countersign) and not state.site.single_administrator
    return context.now(state) if waits or not _sets_time(context, order) else encode_time(context.clock())


def _sets_time(context: LedgerContext, order: Order) -> bool:
    """Return True if the order sets the log's time back, or countersigns such an order."""
    pending = _find_countersigned(context.ledger.state, order)
    return order.sets_time if pending is None else ACTIONS[pending.action].order.sets_time


def _find_policy_reasons(
    context: LedgerContext, orders: Sequence[Order], state: State, now: str
) -> tuple[Refusal, ...]:
    """Return the reasons of the site's policies against the order and the order that it countersigns.

    The policy set may have changed since the first order was allowed.
    """
    reasons: tuple[Refusal, ...] = ()
    for one in orders:
        principal = state.principals.get(one.signer)
        if principal is not None:
            reasons += context.cedar_policies().decide(principal, one, state, now)
    return reasons


def _refuse_for(order: Order, reasons: Sequence[Refusal]) -> None:
    if reasons:
        raise Denied(f"order {order.action} by {order.signer}", refusals=reasons)


def _find_countersigned(state: State, order: Order) -> PendingOrder | None:
    return state.pending.get(order.order) if isinstance(order, Countersign) else None


def _find_effect(order: Order) -> Effect:
    return _EFFECTS.get(order.action, _NOTHING)


@contextmanager
def _prepare(context: Context, accepted: AcceptedOrder) -> Iterator[ApplianceError | None]:
    """Check that the service has what the order needs, and keep the order's uploads while it is decided.

    Yields:
        The error to raise once the order is decided, or None.
    """
    unready: ApplianceError | None = None
    try:
        try:
            with _refuse_defects(accepted.order):
                _check_ready(context, accepted)
        except ApplianceError as error:
            unready = error
        yield unready
    finally:
        if accepted.digest not in context.ledger.state.orders:
            context.uploads.forget(accepted.digest)


def _check_ready(context: Context, accepted: AcceptedOrder) -> None:
    """Check that the service has what the order, or the order that it countersigns, needs.

    The rules are asked first, so that only a person who may sign the order causes this work.
    """
    order, state = accepted.order, context.ledger.state
    pending = _find_countersigned(state, order)
    ready = _EFFECTS.get(order.action if pending is None else pending.action, _NOTHING).ready
    if ready is None:
        return
    now = find_decision_time(context, state, order)
    _refuse_for(order, refuse_signer(state, order) or list_refusal_reasons(state, order, now))
    if pending is not None:
        accepted = ORDERS.read(state, context.ledger.documents_of(pending.index)["order"], context.now(state))
    ready(context, accepted.order, accepted.digest)


def _try_attached(context: Context, order: Order, submission: Submission) -> None:
    """Check the document beside the order before the lock is taken, since that can take seconds.

    Errors are ignored: the check under the lock uses the cached outcome and raises them.

    Raises:
        RateLimited: Another check for this signer is running.
    """
    state = context.ledger.state
    if list_refusal_reasons(state, order, context.now(state)):
        return
    pending = _find_countersigned(state, order)
    if _EFFECTS.get(order.action if pending is None else pending.action, _NOTHING).attached is None:
        return
    with context.policy_trials.run_for(order.signer), suppress(Exception):
        documents = submission.documents if pending is None else context.ledger.documents_of(pending.index)
        final = order if pending is None else ORDERS.read(state, documents["order"], context.now(state)).order
        _check_attached(context, final, documents)


def _check_attached(context: Context, order: Order, documents: Mapping[str, bytes]) -> None:
    """Check that the document beside the order can take effect, both when it is submitted and when it is
    countersigned.

    In between, the build or the administrators may have changed.
    """
    attachment, attached = find_action(context.ledger.state, order).attachment_of(order), _find_effect(order).attached
    if attachment is not None and attached is not None:
        attached(context, order, documents[attachment.role])


def _record(context: Context, accepted: AcceptedOrder, submission: Submission) -> AppendedEntry:
    state, order = context.ledger.state, accepted.order
    documents: dict[str, bytes] = {"order": submission.envelope}
    orders: tuple[Signed, ...] = ((accepted.digest, order),)
    final = order
    attachments = dict(submission.documents)
    if isinstance(order, Countersign):
        first, documents = _read_countersigned(context, state, order, documents)
        orders += ((order.order, first.order),)
        final = first.order
    else:
        documents |= _collect_documents(context, state, accepted, attachments)
    if attachments:
        raise BadInput(f"order {order.action}, documents: expected no others, got {sorted(attachments)}")
    fields = None if _has_to_wait(state, order, final) else _find_effect(final).fields

    def check_policies(then: State, now: str) -> None:
        # The policies decide again over the state and time of the entry. The rules decide the invariants there.
        _refuse_for(order, _find_policy_reasons(context, [one for _, one in orders], then, now))

    def add(members: Mapping[str, object], guard: Guard) -> AppendedEntry:
        body = _event(state, order, final, members)
        erased = () if isinstance(body, OrderPending) else _list_erased(state, final, documents)
        return append(
            context,
            body,
            actor=order.signer,
            source=submission.source,
            documents=documents,
            orders=orders,
            disclosures=submission.disclosures,
            erased=erased,
            guard=guard,
        )

    def add_at(size: int) -> AppendedEntry:
        assert fields is not None

        def check(then: State, now: str) -> None:
            require_size(then, size)
            check_policies(then, now)

        return add(fields(context, final, size), check)

    return add({}, check_policies) if fields is None else append_at_head(context, f"order {final.action}", add_at)


def _list_erased(state: State, final: Order, documents: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the commitments whose texts the entry of an order erases."""
    if isinstance(final, ArchiveLog):
        return retention.list_removed_texts(state, documents["removed"])
    return (final.commitment,) if isinstance(final, Erase) else ()


def _event(state: State, order: Order, final: Order, fields: Mapping[str, object]) -> Ordered:
    """Return the event to record: the order is pending, or the order's own event with these fields of the ledger."""
    action, policy = find_action(state, final), state.site.policy
    if _has_to_wait(state, order, final):
        return OrderPending(policy=policy)
    if action.event is None:
        raise BadInput(
            f"order {order.action}: expected it to name an order other than a countersignature, got {final.action}"
        )
    members: dict[str, Any] = {} if action.body is None else dict(action.body(state))
    return action.event(policy=policy, **members, **fields)


def _has_to_wait(state: State, order: Order, final: Order) -> bool:
    """Return True if the order takes effect only once a second administrator has signed."""
    return not isinstance(order, Countersign) and find_action(state, final).needs_second(state, final)


def _collect_documents(
    context: Context, state: State, accepted: AcceptedOrder, attachments: dict[str, bytes]
) -> dict[str, bytes]:
    """Return the documents beside the order: the one that it binds, removed from `attachments`, and those of the
    service.
    """
    order, action = accepted.order, find_action(state, accepted.order)
    documents = {} if action.evidence is None else dict(action.evidence(state, accepted))
    attachment = action.attachment_of(order)
    if attachment is None:
        return documents
    role = attachment.role
    if role not in attachments:
        raise BadInput(f"order {action.name}, documents: expected {role}, got none")
    documents[role] = attachments.pop(role)
    _check_attached(context, order, documents)
    return documents


def _read_countersigned(
    context: Context, state: State, order: Countersign, documents: dict[str, bytes]
) -> tuple[AcceptedOrder, dict[str, bytes]]:
    pending = state.pending.get(order.order)
    if pending is None:
        raise NotFound(f"order {order.order}: expected one that waits for a second administrator, got none")
    stored = context.ledger.documents_of(pending.index)
    first = stored.pop("order")
    accepted = ORDERS.read(state, first, context.now(state))
    _check_attached(context, accepted.order, stored)
    return accepted, {**documents, "countersigned": first, **stored}


def _refuse(context: LedgerContext, accepted: AcceptedOrder, submission: Submission, error: ApplianceError) -> None:
    # Messages may quote a refused document or text, so only the client gets them.
    refusals = record_refusals(error.refusals)
    body = OrderRefused(order=accepted.digest, action=accepted.order.action, code=error.code, refusals=refusals)
    storable = _find_storable_disclosures(context.ledger.state, accepted.order, submission.disclosures)
    withheld = sorted(set(accepted.order.commitments().values()) - storable.keys())
    beside = {"withheld": encode_canonical(withheld)} if withheld else {}
    append(
        context,
        body,
        actor=accepted.order.signer,
        source=submission.source,
        documents={"order": submission.envelope, **beside},
        disclosures=tuple(storable.values()),
    )


def _find_storable_disclosures(
    state: State, order: Order, disclosures: tuple[Disclosure, ...]
) -> dict[str, Disclosure]:
    """Return the submitted texts that can be stored: each opens a commitment of the order and was not erased before."""
    given = {disclosure.commitment: disclosure for disclosure in disclosures}
    storable = {}
    for commitment in order.commitments().values():
        text = state.texts.get(commitment)
        if commitment in given and (text is None or text.erased is None):
            with suppress(ApplianceError):
                check_disclosure(given[commitment])
                storable[commitment] = given[commitment]
    return storable


def _start_work(context: Context, accepted: AcceptedOrder) -> None:
    """Start the work of a recorded order, and unload what may not be served any more."""
    start = _find_effect(accepted.order).start
    if start is not None:
        start(context, accepted.order, accepted.digest)
    if find_action(context.ledger.state, accepted.order).recheck_slots:
        try:
            context.recheck_answers()
        finally:
            stop_withdrawn_runs(context)
