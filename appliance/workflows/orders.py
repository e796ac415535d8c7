"""A person's signed order is checked, decided, recorded, and set in motion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from appliance.access.cedar import SitePolicies
from appliance.domain.custody import commitments_of
from appliance.domain.events import (
    AdapterExported,
    AdapterRevoked,
    BaseRevoked,
    DatasetRevoked,
    HoldLifted,
    HoldPlaced,
    ImportCancelled,
    ImportRequested,
    KeyEnrolled,
    KeyRevoked,
    LogKeyRotated,
    Ordered,
    OrderPending,
    OrderRefused,
    PolicyAdopted,
    PrincipalEnrolled,
    PrincipalRevoked,
    ReleaseActivated,
    ReleaseRolledBack,
    ReplayRequested,
    ResumeRequested,
    ReviewRecorded,
    RoleGranted,
    RunCancelled,
    RunRequested,
    TextErased,
    TokensRevoked,
)
from appliance.domain.exports import standing_of
from appliance.domain.invariants import reasons_against
from appliance.domain.names import encode_value
from appliance.domain.orders import (
    TWO_ADMINISTRATORS,
    Cancel,
    CancelImport,
    Endorse,
    Erase,
    ExportAdapter,
    ImportBase,
    Order,
    Resume,
    RotateLogKey,
    Train,
)
from appliance.domain.policy import parse_policy
from appliance.domain.signatures import Accepted, read_order
from appliance.domain.state import State
from appliance.domain.subjects import Signed
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotFound, Unavailable
from appliance.formats.canonical import encode_canonical
from appliance.formats.commitment import Disclosure, verify_disclosure
from appliance.store.ledger import Appended
from appliance.workflows import ingest, planning, replay, train
from appliance.workflows.context import Context
from appliance.workflows.halt import halt, halt_fallen
from appliance.workflows.record import append

_EVENTS: dict[str, type[Ordered]] = {
    "enroll": PrincipalEnrolled,
    "grant": RoleGranted,
    "revoke-principal": PrincipalRevoked,
    "adopt-policy": PolicyAdopted,
    "import-base": ImportRequested,
    "import-dataset": ImportRequested,
    "train": RunRequested,
    "cancel": RunCancelled,
    "cancel-import": ImportCancelled,
    "resume": ResumeRequested,
    "replay": ReplayRequested,
    "review": ReviewRecorded,
    "activate": ReleaseActivated,
    "roll-back": ReleaseRolledBack,
    "revoke-adapter": AdapterRevoked,
    "export-adapter": AdapterExported,
    "revoke-base": BaseRevoked,
    "revoke-dataset": DatasetRevoked,
    "replace-key": KeyEnrolled,
    "rotate-key": KeyEnrolled,
    "revoke-key": KeyRevoked,
    "revoke-tokens": TokensRevoked,
    "rotate-log-key": LogKeyRotated,
    "erase": TextErased,
    "place-hold": HoldPlaced,
    "lift-hold": HoldLifted,
}
_ATTACHMENTS = {
    "enroll": "possession",
    "replace-key": "possession",
    "rotate-key": "possession",
    "adopt-policy": "policy",
}
_CHANGES_WHAT_ANSWERS = (
    "revoke-principal",
    "revoke-key",
    "revoke-tokens",
    "adopt-policy",
    "review",
    "activate",
    "roll-back",
    "revoke-adapter",
    "revoke-base",
    "revoke-dataset",
)


@dataclass(frozen=True)
class Submission:
    """What came through the door: the envelope's bytes, texts behind its commitments, documents it binds."""

    envelope: bytes
    disclosures: tuple[Disclosure, ...]
    documents: Mapping[str, bytes]
    source: str


@dataclass(frozen=True)
class Submitted:
    appended: Appended
    digest: str
    result: dict[str, Any]


def submit(context: Context, submission: Submission) -> Submitted:
    """The order's whole story. Each refusal of an authentic order is an entry, and an inauthentic one is nobody's.

    What could not be decided now, since the machine or the database failed, is no refusal: the order can come again.
    """
    with context.order_lock:
        state = context.ledger.state
        accepted = read_order(state, submission.envelope, context.now(state))
        try:
            check_disclosures(accepted.order, submission.disclosures)
            _decide(context, accepted)
            _check_ready(context, accepted.order)
            appended, result = _record(context, accepted, submission)
        except Unavailable:
            raise
        except ApplianceError as error:
            _refuse(context, accepted, submission, error)
            raise
    _set_in_motion(context, accepted)
    return Submitted(appended, accepted.digest, result)


def check_disclosures(order: Order, disclosures: tuple[Disclosure, ...]) -> None:
    """Exactly the texts that the order commits to, each under its own salt."""
    bound = sorted(value for value in order.model_dump().values() if str(value).startswith("hmac-sha256:"))
    given = sorted(disclosure.commitment for disclosure in disclosures)
    if bound != given:
        raise BadInput(f"order {order.verb}, disclosures: expected one for each of {bound}, got {given}")
    for disclosure in disclosures:
        _check_disclosure(disclosure)


def _check_disclosure(disclosure: Disclosure) -> None:
    verify_disclosure(disclosure)
    if "\0" in disclosure.text:  # which no database keeps
        raise BadInput("disclosure, text: expected no NUL, got one")


def _decide(context: Context, accepted: Accepted) -> None:
    """The invariants, and the site's own policies, which may only tighten: every reason at once."""
    state = context.ledger.state
    _check_allowed(context, (accepted.order,), state, context.now(state))


def _check_allowed(context: Context, asked: Sequence[Order], state: State, now: str) -> None:
    """The order, and behind it the one that it endorses: the policy set may be another than when that was allowed."""
    order = asked[0]
    # Of an endorsed order the rules ask the invariants again themselves.
    reasons = tuple(reasons_against(state, order, now))
    for one in asked:
        principal = state.principals.get(one.signer)
        if principal is not None:
            reasons += context.site_policies().decide(principal, one, state, now)
    if reasons:
        raise Denied(f"order {order.verb} by {order.signer}", reasons=reasons)


def _check_ready(context: Context, order: Order) -> None:
    """What the order needs on disk lies there, before anything is recorded."""
    if order.verb in ("import-base", "import-dataset"):
        ingest.check_uploaded(context, order)
    if isinstance(order, ImportBase) and order.format == "safetensors":
        ingest.read_source_manifest(context, order)
    if isinstance(order, Train):
        planning.check_order(context, order.recipe)
    if isinstance(order, RotateLogKey):
        origin = context.ledger.state.site.origin
        if order.log_key not in context.keyring.log_signers(origin):
            raise Conflict(f"log key: expected one that this appliance has made, got {order.log_key}")


def next_log_key(context: Context, principal: str) -> str:
    """The vkey of the key that the log can rotate to, made here where none waits; only an order makes it sign."""
    state = context.ledger.state
    person = state.principals.get(principal)
    if person is None or not person.has("administrator"):
        raise Denied(f"log key: expected an administrator, got {principal}")
    with context.order_lock:
        return context.keyring.next_log_key(state.site.origin, [key.vkey for key in state.site.log_keys])


def _record(context: Context, accepted: Accepted, submission: Submission) -> tuple[Appended, dict[str, Any]]:
    state, order = context.ledger.state, accepted.order
    documents: dict[str, bytes] = {"order": submission.envelope}
    orders: tuple[Signed, ...] = ((accepted.digest, order),)
    verb, final = order.verb, order
    attachments = dict(submission.documents)
    if isinstance(order, Endorse):
        first, documents = _endorsed(context, state, order, documents)
        orders += ((order.order, first.order),)
        verb, final = first.order.verb, first.order
        _check_ready(context, final)
    elif isinstance(order, ExportAdapter):
        documents["standing"] = encode_value(standing_of(state, order, accepted.keyid))
    elif verb in _ATTACHMENTS:
        documents[_ATTACHMENTS[verb]] = _attachment(context, verb, attachments)
    if attachments:
        raise BadInput(f"order {order.verb}, documents: expected no others, got {sorted(attachments)}")
    body = _event(state, order, verb)
    appended = append(
        context,
        body,
        actor=order.signer,
        source=submission.source,
        documents=documents,
        orders=orders,
        disclosures=submission.disclosures,
        erased=(final.commitment,) if isinstance(final, Erase) and isinstance(body, TextErased) else (),
        # Once more over the state and at the time of the entry itself, which is where an auditor asks them again.
        guard=lambda then, now: _check_allowed(context, [one for _, one in orders], then, now),
    )
    return appended, {"order": accepted.digest} | ({"run": body.run} if isinstance(body, RunRequested) else {})


def _event(state: State, order: Order, verb: str) -> Ordered:
    """What is recorded: that the order waits for a second administrator, or that it stands."""
    policy = state.site.policy
    if verb in TWO_ADMINISTRATORS and not isinstance(order, Endorse) and not state.site.single_administrator:
        return OrderPending(policy=policy)
    if verb == "train":
        return RunRequested(policy=policy, run=f"r-{len(state.runs) + 1:06d}")
    return _EVENTS[verb](policy=policy)


def _attachment(context: Context, verb: str, attachments: dict[str, bytes]) -> bytes:
    """The document that the order binds; a policy set must also parse as Cedar before two people sign it."""
    role = _ATTACHMENTS[verb]
    data = attachments.pop(role, None)
    if data is None:
        raise BadInput(f"order {verb}, documents: expected {role}, got none")
    if role == "policy":
        _check_policy(context, data)
    return data


def _check_policy(context: Context, data: bytes) -> None:
    """A set that is Cedar, that can decide every verb, and under which another can be adopted: else it would be the
    last."""
    state = context.ledger.state
    people = [person for person in state.principals.values() if person.has("administrator")]
    site = SitePolicies.for_adoption(parse_policy(data))
    reasons = site.locked_out(people, state.site.single_administrator, context.now(state))
    if reasons:
        raise Denied("policy set: expected one that administrators can replace", reasons=reasons)


def _endorsed(
    context: Context, state: State, order: Endorse, documents: dict[str, bytes]
) -> tuple[Accepted, dict[str, bytes]]:
    pending = state.pending.get(order.order)
    if pending is None:
        raise NotFound(f"order {order.order}: expected one that waits for a second administrator, got none")
    stored = context.ledger.documents_of(pending.index)
    first = stored.pop("order")
    if "policy" in stored:  # the appliance may be of another release since, and its administrators others
        _check_policy(context, stored["policy"])
    return read_order(state, first, context.now(state)), {**documents, "endorsed": first, **stored}


def _refuse(context: Context, accepted: Accepted, submission: Submission, error: ApplianceError) -> None:
    reasons = error.reasons if isinstance(error, Denied) and error.reasons else (error.message,)
    body = OrderRefused(order=accepted.digest, verb=accepted.order.verb, reasons=tuple(r[:500] for r in reasons[:32]))
    kept = _kept(context.ledger.state, accepted.order, submission.disclosures)
    withheld = sorted(set(commitments_of(accepted.order)) - kept.keys())
    beside = {"withheld": encode_canonical(withheld)} if withheld else {}
    append(
        context,
        body,
        actor=accepted.order.signer,
        source=submission.source,
        documents={"order": submission.envelope, **beside},
        disclosures=tuple(kept.values()),
    )


def _kept(state: State, order: Order, disclosures: tuple[Disclosure, ...]) -> dict[str, Disclosure]:
    """What was handed in of the order's texts and can be kept: it opens its commitment, and was not erased before."""
    given = {disclosure.commitment: disclosure for disclosure in disclosures}
    kept = {}
    for commitment in commitments_of(order):
        text = state.texts.get(commitment)
        if commitment in given and (text is None or text.erased is None):
            with suppress(ApplianceError):
                _check_disclosure(given[commitment])
                kept[commitment] = given[commitment]
    return kept


def _set_in_motion(context: Context, accepted: Accepted) -> None:
    """What the recorded order asks for begins; nothing before the append was durable."""
    verb = accepted.order.verb
    if verb == "endorse":
        context.released()
    motions: dict[str, Callable[[], None]] = {
        "import-base": lambda: ingest.enqueue(context, accepted.digest, verb),
        "import-dataset": lambda: ingest.enqueue(context, accepted.digest, verb),
        "train": lambda: train.enqueue_ordered(context, accepted.digest),
        "replay": lambda: replay.enqueue(context, accepted.digest),
    }
    if verb in motions:
        motions[verb]()
    if isinstance(accepted.order, Cancel):
        halt(context, accepted.order.run)
    if isinstance(accepted.order, CancelImport):
        halt(context, accepted.order.order)
    if isinstance(accepted.order, Resume):
        train.resume_ordered(context, accepted.order.run)
    if verb in _CHANGES_WHAT_ANSWERS:
        try:
            context.released()
        finally:
            halt_fallen(context)
