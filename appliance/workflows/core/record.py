"""How a workflow writes to the ledger: an event becomes a draft, filed under everything it is about."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypedDict, Unpack

from appliance.domain.core.entry import Draft, Outcome
from appliance.domain.core.event import Event
from appliance.domain.rulebook.apply import parse_body
from appliance.domain.rulebook.subjects import Signed, subjects_of
from appliance.formats.core.commitment import Disclosure, disclose
from appliance.store.ledger.queue import Appended, Guard
from appliance.workflows.core.context import Context

MAX_MESSAGE = 2_000


class Said(TypedDict, total=False):
    """What an entry says beside its body, where it is not the usual."""

    actor: str
    source: str
    outcome: Outcome
    documents: Mapping[str, bytes]
    orders: tuple[Signed, ...]
    disclosures: tuple[Disclosure, ...]
    erased: tuple[str, ...]


def draft_of(body: Event, **said: Unpack[Said]) -> Draft:
    return Draft(
        type=body.type,
        actor=body.actor or said.get("actor", "service"),
        source=said.get("source", "service"),
        subjects=subjects_of(body, said.get("orders", ())),
        outcome=said.get("outcome", body.outcomes[0]),
        documents=said.get("documents", {}),
        body=body,
        disclosures=said.get("disclosures", ()),
        erased=said.get("erased", ()),
    )


def append(context: Context, body: Event, *, guard: Guard | None = None, **said: Unpack[Said]) -> Appended:
    """One durable entry; what the rules refuse is raised and nothing is written."""
    (appended,) = append_all(context, [draft_of(body, **said)], guard=guard)
    return appended


def append_all(context: Context, drafts: Sequence[Draft], *, guard: Guard | None = None) -> list[Appended]:
    """All of these in one durable commit, or none."""
    context.contact.check()
    if context.process is not None:
        drafts = [_named(draft, context.process) for draft in drafts]
    appended = context.ledger.append_all(drafts, guard=guard)
    for one in appended:
        context.appended(one.entry, parse_body(one.entry))
    return appended


def _named(draft: Draft, process: str) -> Draft:
    """What a process does by itself names it as the source."""
    return replace(draft, source=f"service:{process}") if draft.source == "service" else draft


def conceal(text: str) -> Disclosure:
    """Free text with a fresh salt: the entry has the commitment, the text can be erased.

    A worker chooses the names of its files, and who uploads those of a row's members: what is no Unicode, or a NUL,
    which no database takes, must not keep a failure from being recorded.
    """
    plain = text[:MAX_MESSAGE].replace("\0", "?").encode("utf-8", "replace").decode("utf-8")
    return disclose(plain, secrets.token_bytes(32))
