"""A person opens a reading session; the minute's heartbeat; attempts that nobody answers for, as a count."""

from __future__ import annotations

from appliance.domain.credentials import Session, parse_credential
from appliance.domain.events import AuthRefused, Heartbeat, ServiceStopped, SessionOpened
from appliance.formats.dsse import parse_envelope
from appliance.workflows.context import Context
from appliance.workflows.record import append


def open_session(context: Context, envelope: bytes, source: str) -> str:
    """Records the session under its signer; the rules check signature, origin and lifetime."""
    signer = parse_credential(Session, parse_envelope(envelope).payload).signer
    append(context, SessionOpened(), actor=signer, source=source, documents={"session": envelope})
    return signer


def beat(context: Context, refused: int, since: str) -> None:
    """One heartbeat, and the refusals counted since the last one."""
    if refused:
        append(context, AuthRefused(count=refused, since=since))
    append(context, Heartbeat())


def record_stop(context: Context, reason: str) -> None:
    append(context, ServiceStopped(reason=reason))
