"""People, waiting orders and the policy set, as they stand today."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from appliance.access.cases import parse_cases, test_cases
from appliance.domain.core.policy import parse_policy
from appliance.domain.core.records.people import PendingOrder
from appliance.domain.core.verb import NEWEST_RULES
from appliance.domain.governance.clock import ResetClock
from appliance.domain.governance.endorsement import waiting_orders
from appliance.domain.governance.rules import RulesRaised
from appliance.domain.rulebook.registry import ORDERS, reasons_against
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.fields import encode_base64
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import parse_envelope
from appliance.workflows.core.context import Context
from appliance.workflows.queries.log import disclosed


def principals(context: Context) -> list[dict[str, Any]]:
    people = context.ledger.state.principals.values()
    names = context.ledger.disclosures([p.printed_name for p in people if p.printed_name])
    return [
        {
            **person.model_dump(mode="json"),
            "printed_name": names[person.printed_name].text if person.printed_name in names else None,
        }
        for person in people
    ]


def pending_orders(context: Context) -> list[dict[str, Any]]:
    """Orders that wait for a second administrator, with everything that the second signs for."""
    return [_pending_order(context, pending) for pending in context.ledger.state.pending.values()]


def _pending_order(context: Context, pending: PendingOrder) -> dict[str, Any]:
    documents = context.ledger.documents_of(pending.index)
    envelope = documents.pop("order")
    return {
        **pending.model_dump(mode="json"),
        "against": _against(context, pending, envelope),
        "envelope": parse_canonical(envelope),
        "disclosures": disclosed(context, [envelope]),
        "documents": {role: encode_base64(data) for role, data in documents.items()},
    }


def _against(context: Context, pending: PendingOrder, envelope: bytes) -> list[str]:
    """Why an endorsement would be refused for every signer: the order has expired, or may not be carried out any more.
    Of one that sets the log's time nothing is said here, as it is judged by the host's clock."""
    state = context.ledger.state
    order, now = ORDERS.parse(parse_envelope(envelope).payload), context.now(state)
    if order.sets_time:
        return []
    if pending.expires_at <= now:
        return [f"order: expected one that stands at {now}, got one that expired at {pending.expires_at}"]
    return reasons_against(state, order, now)


def clock(context: Context) -> dict[str, Any]:
    """The last entry's time and the host's; and while the clock is behind, when nobody can open a session, the orders
    to reset it that wait. Else they are read in a session, as all others: they hold people's reasons."""
    state = context.ledger.state
    is_behind = context.ledger.clock.read_behind(state) is not None
    waiting = [one for one in state.pending.values() if is_behind and one.verb == ResetClock.verb]
    return {
        "last": state.last_time,
        "now": encode_time(context.clock()),
        "behind": is_behind,
        "waiting": [_pending_order(context, pending) for pending in waiting],
    }


def shown_orders(waiting: Iterable[PendingOrder]) -> list[dict[str, Any]]:
    """Which they are, without what they bind."""
    return [
        {"order": one.digest, "verb": one.verb, "signer": one.signer, "expires_at": one.expires_at} for one in waiting
    ]


def waiting_for(context: Context, administrator: str) -> list[dict[str, Any]]:
    """Orders of others that this administrator can endorse; none for other principals."""
    state = context.ledger.state
    return shown_orders(waiting_orders(state, context.now(state), administrator))


def policy(context: Context) -> dict[str, Any]:
    digest = context.ledger.state.site.policy
    document = context.ledger.document(digest)
    parsed = parse_policy(document)
    return {"digest": digest, "policy": parsed.model_dump(mode="json"), "document": encode_base64(document)}


def rules(context: Context) -> dict[str, int]:
    """The rules version in force, the entry that put it there, and the newest that this build knows."""
    raised = context.ledger.find(types=(RulesRaised.type,), newest=True, limit=1)
    version = context.ledger.state.site.rules
    return {"version": version, "newest": NEWEST_RULES, "entry": raised[0][0] if raised else 0}


def test_policy(document: bytes, cases: bytes) -> list[dict[str, Any]]:
    """The policy set's own cases, decided by it; nothing is adopted."""
    results = test_cases(parse_policy(document), parse_cases(cases))
    return [asdict(result) for result in results]
