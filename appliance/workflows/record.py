"""How a workflow writes to the ledger: an event becomes a draft, filed under everything it is about."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from appliance.domain.entry import Draft, Outcome
from appliance.domain.events import Event
from appliance.domain.subjects import Signed, subjects_of
from appliance.formats.commitment import Disclosure, disclose
from appliance.store.ledger import Appended, Guard
from appliance.workflows.context import Context

MAX_MESSAGE = 2_000


def append(
    context: Context,
    body: Event,
    *,
    actor: str = "service",
    source: str = "service",
    outcome: Outcome | None = None,
    documents: Mapping[str, bytes] | None = None,
    orders: tuple[Signed, ...] = (),
    disclosures: tuple[Disclosure, ...] = (),
    erased: tuple[str, ...] = (),
    guard: Guard | None = None,
) -> Appended:
    """One durable entry; what the rules refuse is raised and nothing is written."""
    draft = Draft(
        type=body.type,
        actor=body.actor or actor,
        source=source,
        subjects=subjects_of(body, orders),
        outcome=outcome or body.outcomes[0],
        documents=dict(documents or {}),
        body=body,
        disclosures=disclosures,
        erased=erased,
    )
    appended = context.ledger.append(draft, guard=guard)
    context.appended(appended.entry, body)
    return appended


def conceal(text: str) -> Disclosure:
    """Free text behind a fresh salt: the entry holds the commitment, the text can be erased."""
    return disclose(text[:MAX_MESSAGE], secrets.token_bytes(32))
