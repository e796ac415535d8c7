"""The rules of power: the first entry, principals, roles, policy, sessions, and the service's own life."""

from __future__ import annotations

import base64

from appliance.domain.case import Case, Puts
from appliance.domain.custody import bound_texts, check_unerased, commitments_of, own_witnesses
from appliance.domain.events import (
    AuthRefused,
    Heartbeat,
    Initialized,
    OrderRefused,
    ServiceStarted,
    ServiceStopped,
)
from appliance.domain.names import SERVICE
from appliance.domain.orders import (
    TWO_ADMINISTRATORS,
    AdoptPolicy,
    Endorse,
    Enroll,
    Grant,
    NewKey,
    Order,
    RevokePrincipal,
)
from appliance.domain.policy import PolicySet, parse_policy
from appliance.domain.records import Key, LogKey, PendingOrder, Principal, Site
from appliance.domain.signatures import accept_session, check_possession, read_order
from appliance.errors import BadInput, Denied
from appliance.formats.canonical import parse_canonical
from appliance.formats.digest import digest_bytes
from appliance.formats.fields import parse_list
from appliance.formats.keys import keyid_of, parse_spki
from appliance.formats.note import parse_vkey


def initialized(case: Case) -> Puts:
    """The log's first entry: its keys, its administrators, its first policy set."""
    body = case.of(Initialized)
    names = [person.name for person in body.administrators]
    keyids = [person.keyid for person in body.administrators]
    case.require(len(set(names)) == len(names), "administrators", "different names", names)
    case.require(len(set(keyids)) == len(keyids), "administrators", "different keys", keyids)
    case.require(SERVICE not in names, "administrators", "other names than the appliance's own actor", names)
    case.require(
        body.single_administrator == (len(names) == 1), "administrators", "two, or one declared as single", len(names)
    )
    log_name = parse_vkey(body.log_key).name
    case.require(log_name == body.origin, "log key", f"the key of {body.origin}", log_name)
    parse_spki(base64.b64decode(body.adapter_key))
    policy = parse_policy(case.documents["policy"])
    _check_witnesses([body.log_key], policy)
    site = Site(
        origin=body.origin,
        log_keys=(LogKey(vkey=body.log_key, since=0),),
        adapter_key=body.adapter_key,
        single_administrator=body.single_administrator,
        policy=policy.digest,
        parameters=policy.parameters,
    )
    puts: Puts = [(case.state.sites, "site", site)]
    for person in body.administrators:
        case.require(keyid_of(base64.b64decode(person.key)) == person.keyid, "key", person.keyid, "another key")
        puts += _person(case, person.name, None, ("administrator",), person.key, person.keyid)
    return puts


def _person(case: Case, name: str, printed_name: str | None, roles: tuple[str, ...], spki: str, keyid: str) -> Puts:
    index = case.entry.index
    return [
        (
            case.state.principals,
            name,
            Principal(name=name, printed_name=printed_name, roles=roles, keyid=keyid, enrolled=index),
        ),
        (case.state.keys, keyid, new_key(case, name, spki, keyid)),
    ]


def new_key(case: Case, name: str, spki: str, keyid: str) -> Key:
    entry = case.entry
    return Key(keyid=keyid, spki=spki, principal=name, enrolled=entry.index, enrolled_at=entry.time)


def order_pending(case: Case) -> Puts:
    """An order for a change of power, allowed as far as one administrator can."""
    accepted = case.accepted
    order = accepted.order
    case.require(order.verb in TWO_ADMINISTRATORS, "verb", f"one of {', '.join(TWO_ADMINISTRATORS)}", order.verb)
    case.require(not case.state.site.single_administrator, "administrators", "two", "a single one, who needs no second")
    case.allowed(type(order))
    check_attachments(case, order)
    pending = PendingOrder(
        digest=accepted.digest,
        verb=order.verb,
        signer=order.signer,
        index=case.entry.index,
        expires_at=order.expires_at,
    )
    return [(case.state.pending, accepted.digest, pending)]


def check_attachments(case: Case, order: Order) -> None:
    """What the order binds by digest lies beside it, and is what it must be."""
    expected = "possession" if isinstance(order, NewKey) else "policy" if isinstance(order, AdoptPolicy) else None
    got = sorted(set(case.documents) & {"possession", "policy"})
    if got != ([] if expected is None else [expected]):
        raise BadInput(f"entry {case.entry.index}: documents beside the order: expected {expected}, got {got}")
    if isinstance(order, NewKey):
        check_possession(case.state, order, case.documents["possession"])
    if isinstance(order, AdoptPolicy):
        data = case.documents["policy"]
        case.require(digest_bytes(data) == order.policy, "policy", order.policy, digest_bytes(data))
        _check_witnesses([key.vkey for key in case.state.site.log_keys], parse_policy(data))


def _check_witnesses(log_keys: list[str], policy: PolicySet) -> None:
    if reasons := own_witnesses(log_keys, policy.parameters):
        raise Denied("policy set", reasons=tuple(reasons))


def endorsed(case: Case) -> tuple[Order, Puts]:
    """The order that two administrators signed, or the one order of a single administrator."""
    first = case.accepted.order
    if not isinstance(first, Endorse):
        case.require(case.state.site.single_administrator, "administrators", "a second one's endorsement", "one order")
        case.require("endorsed" not in case.documents, "endorsed", "no document", "one")
        return first, []
    endorse = case.allowed(Endorse)
    if "endorsed" not in case.documents:
        raise BadInput(f"entry {case.entry.index}: document endorsed: expected the order {endorse.order}, got none")
    accepted = read_order(case.state, case.documents["endorsed"], case.entry.time)
    case.require(accepted.digest == endorse.order, "endorsed", endorse.order, accepted.digest)
    check_unerased(case.state, case.entry, commitments_of(accepted.order))
    return accepted.order, [(case.state.pending, endorse.order, None)]


def enrolled(case: Case) -> Puts:
    order, puts = endorsed(case)
    enroll = case.allowed(Enroll, order)
    check_attachments(case, enroll)
    return puts + _person(case, enroll.principal, enroll.printed_name, enroll.roles, enroll.key, enroll.keyid)


def granted(case: Case) -> Puts:
    order, puts = endorsed(case)
    grant = case.allowed(Grant, order)
    principal = case.state.principals.get(grant.principal)
    if principal is None:
        raise Denied(f"entry {case.entry.index}: principal: expected a standing one, got {grant.principal}")
    changed = principal.model_copy(update={"roles": (*principal.roles, grant.role)})
    return [*puts, (case.state.principals, grant.principal, changed)]


def adopted(case: Case) -> Puts:
    order, puts = endorsed(case)
    adopt = case.allowed(AdoptPolicy, order)
    check_attachments(case, adopt)
    policy = parse_policy(case.documents["policy"])
    site = case.state.site.model_copy(update={"policy": policy.digest, "parameters": policy.parameters})
    return [*puts, (case.state.sites, "site", site)]


def revoked(case: Case) -> Puts:
    """Taking away needs one administrator; the name and the key stay taken for ever."""
    order = case.allowed(RevokePrincipal)
    state, index = case.state, case.entry.index
    principal = state.principals.get(order.principal)
    if principal is None:
        raise Denied(f"entry {index}: principal: expected a standing one, got {order.principal}")
    gone = principal.model_copy(update={"revoked": index, "revoked_at": case.entry.time})
    puts: Puts = [(state.principals, principal.name, gone)]
    for key in state.keys.values():
        if key.principal == principal.name and key.revoked is None:
            puts.append((state.keys, key.keyid, key.model_copy(update={"revoked": index})))
    return puts


def refused(case: Case) -> Puts:
    """A refusal binds an authentic order, so that nobody's refusals can be invented by the service."""
    body = case.of(OrderRefused)
    accepted = read_order(case.state, case.documents["order"], case.entry.time)
    case.require(accepted.digest == body.order, "order", body.order, accepted.digest)
    case.require(accepted.order.verb == body.verb, "verb", accepted.order.verb, body.verb)
    case.require(accepted.order.signer == case.entry.actor, "actor", accepted.order.signer, case.entry.actor)
    return list(bound_texts(case.state, case.entry, accepted.order, withheld=_withheld(case, accepted.order)))


def _withheld(case: Case, order: Order) -> list[str]:
    """The order's commitments whose texts the refusal does not bind: they were not handed in, or have been erased."""
    data = case.documents.get("withheld")
    if data is None:
        return []
    withheld, bound = parse_list(parse_canonical(data), "withheld"), set(commitments_of(order))
    expected = sorted(one for one in bound if one in withheld)
    case.require(withheld == expected != [], "withheld", f"some of {sorted(bound)}, sorted", withheld)
    return expected


def session_opened(case: Case) -> Puts:
    session, principal = accept_session(case.state, case.documents["session"], case.entry.time)
    case.require(case.entry.actor == principal.name == session.signer, "actor", session.signer, case.entry.actor)
    return []


def service_started(case: Case) -> Puts:
    """A new process holds no slot; requests and runs that a crash left open are closed by entries of their own."""
    case.of(ServiceStarted)
    return [(case.state.slots, key, None) for key, _ in case.state.slots.items()]


def service_stopped(case: Case) -> Puts:
    case.of(ServiceStopped)
    return []


def heartbeat(case: Case) -> Puts:
    case.of(Heartbeat)
    return []


def auth_refused(case: Case) -> Puts:
    case.of(AuthRefused)
    return []


RULES = {
    "appliance.initialized": initialized,
    "service.started": service_started,
    "service.stopped": service_stopped,
    "heartbeat": heartbeat,
    "session.opened": session_opened,
    "auth.refused": auth_refused,
    "order.refused": refused,
    "order.pending": order_pending,
    "principal.enrolled": enrolled,
    "principal.granted": granted,
    "principal.revoked": revoked,
    "policy.adopted": adopted,
}
