"""A person opens a reading session; the minute's heartbeat; attempts that nobody answers for, as a count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from appliance.domain.core.credentials import SessionStatement, parse_credential
from appliance.domain.core.entry import Draft
from appliance.domain.governance.service import Heartbeat, ServiceStopped
from appliance.domain.governance.sessions import MAX_NAMED, AuthRefused, SessionOpened
from appliance.domain.serving.requests import RequestRefused
from appliance.formats.signatures.dsse import parse_envelope
from appliance.workflows.core.context import Context
from appliance.workflows.core.record import append, append_all, draft_of


def open_session(context: Context, envelope: bytes, source: str) -> str:
    """Records the session under its signer; the rules check signature, origin and lifetime."""
    signer = parse_credential(SessionStatement, parse_envelope(envelope).payload).signer
    append(context, SessionOpened(), actor=signer, source=source, documents={"session": envelope})
    return signer


@dataclass(frozen=True)
class Refusals:
    """What was refused since the last heartbeat and stands in no entry yet: strangers, since when, and units' requests
    by unit and code."""

    strangers: int = 0
    since: str = ""
    units: Mapping[tuple[str, str], int] = field(default_factory=dict)
    claimed: frozenset[tuple[str, str]] = frozenset()
    """(name, key id) that the strangers' signatures claimed."""


def beat(context: Context, refusals: Refusals) -> None:
    """One heartbeat, and the refusals counted since the last one: all of it, or nothing."""
    append_all(context, [*_drafts(context, refusals), draft_of(Heartbeat())])


def record_stop(context: Context, reason: str, refusals: Refusals) -> None:
    append_all(context, [*_drafts(context, refusals), draft_of(ServiceStopped(reason=reason))])


def _drafts(context: Context, refusals: Refusals) -> Iterator[Draft]:
    if refusals.strangers:
        state = context.ledger.state
        names = sorted({name for name, _ in refusals.claimed if name in state.principals})
        keys = sorted({keyid for _, keyid in refusals.claimed if keyid in state.keys})
        yield draft_of(
            AuthRefused(
                count=refusals.strangers,
                since=refusals.since,
                principals=tuple(names[:MAX_NAMED]),
                keys=tuple(keys[:MAX_NAMED]),
            )
        )
    for (unit, code), count in sorted(refusals.units.items()):
        yield draft_of(RequestRefused(unit=unit, code=code, message="refused at the door, and counted", count=count))
