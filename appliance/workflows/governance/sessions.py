"""A person opens a reading session; the minute's heartbeat; attempts without a valid key, as a count."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from appliance.domain.core.credentials import SessionStatement, parse_credential
from appliance.domain.core.entry import Draft
from appliance.domain.core.signatures import accept_session, key_ended
from appliance.domain.core.state import State
from appliance.domain.governance.service import Heartbeat, ServiceStopped
from appliance.domain.governance.sessions import MAX_NAMED, AuthRefused, SessionClosed, SessionOpened
from appliance.domain.serving.requests import RequestRefused
from appliance.errors import Denied, NotAuthenticated, NotFound
from appliance.formats.signatures.dsse import encode_envelope, parse_envelope
from appliance.store.database.sessions import SessionRow
from appliance.workflows.core.context import Context
from appliance.workflows.core.record import append, append_all, draft_of
from appliance.workflows.governance.callers import Caller

Kind = Literal["program", "link", "browser"]
"""Who holds a session's token. Each kind is stored under a name of its own: a browser's cookie opens nothing for a
program, and a program's token nothing in a browser. A link's opens nothing itself: a browser gets another for it."""

MOST_OPEN = 64
"""Sessions of one person at a time."""
NO_SESSION = "session: expected a standing one, got none; a reading command with your key opens one"


def open_session(context: Context, envelope: bytes, source: str) -> tuple[str, str]:
    """Records the session under its signer; the rules check signature, origin and lifetime. Returns the signer, and the
    session's secret token, which is not stored."""
    parsed = parse_envelope(envelope)
    statement = parse_credential(SessionStatement, parsed.payload)
    _check_room(context, statement.signer)
    opened = append(context, SessionOpened(), actor=statement.signer, source=source, documents={"session": envelope})
    token = secrets.token_urlsafe(32)
    row = SessionRow(statement.signer, parsed.signature.keyid, statement.expires_at, opened.entry.index)
    context.sessions.add(_stored(token, "program"), row)
    return statement.signer, token


def _check_room(context: Context, principal: str) -> None:
    """Denied where so many are open, here and at other processes."""
    state = context.ledger.state
    now = context.now(state)
    if (got := sum(_stands(state, row, now) for row in context.sessions.of(principal))) >= MOST_OPEN:
        expected = f"expected fewer than {MOST_OPEN} open ones of {principal}"
        raise Denied(f"session: {expected}, got {got}", code="too-many-sessions")


def hand_over(context: Context, token: str) -> tuple[str, str]:
    """Takes a program's session from it, for a browser: one entry opens one session, no matter who holds it. Returns
    the code that a browser comes with, and whose session it is."""
    code = secrets.token_urlsafe(32)
    return code, _move(context, (token, "program"), (code, "link")).principal


def admit_browser(context: Context, code: str) -> str:
    """The cookie's secret, which is not stored. NotAuthenticated where the session has ended meanwhile."""
    token = secrets.token_urlsafe(32)
    _move(context, (code, "link"), (token, "browser"))
    return token


def _move(context: Context, held: tuple[str, Kind], to: tuple[str, Kind]) -> SessionRow:
    _find(context, *held)
    row = context.sessions.move(_stored(*held), _stored(*to))
    if row is None:
        raise NotAuthenticated(NO_SESSION)
    return row


def find_session(context: Context, token: str, kind: Kind = "program") -> tuple[str, str]:
    """Whose session this opens, and until when; NotAuthenticated where it has ended."""
    row = _find(context, token, kind)
    return row.principal, row.expires_at


def find_caller(context: Context, cookie: str) -> Caller:
    """The unit that asks for an answer from a browser: what its key signed to open the session counts as its token
    does. NotAuthenticated where that has ended, was revoked like a token, or is not what the session's row says."""
    row, state = _find(context, cookie, "browser"), context.ledger.state
    envelope = parse_envelope(context.ledger.documents_of(row.entry).get("session", b""))
    statement, _ = accept_session(state, encode_envelope(envelope), context.now(state))
    # Who can write to the database makes rows, but no key's signature.
    if (statement.signer, envelope.signature.keyid, statement.expires_at) != (row.principal, row.keyid, row.expires_at):
        raise NotAuthenticated(NO_SESSION)
    caller = Caller(row.principal, envelope.pae_digest, statement.issued_at, row.keyid)
    if against := caller.against(state):
        raise NotAuthenticated(against, code="revoked")
    return caller


def _find(context: Context, token: str, kind: Kind) -> SessionRow:
    row = context.sessions.find(_stored(token, kind))
    if row is None:
        raise NotAuthenticated(NO_SESSION)
    _check(context, row)
    return row


def _stored(token: str, kind: Kind) -> str:
    return f"{kind}:{token}"


def _check(context: Context, row: SessionRow) -> None:
    state = context.ledger.state
    if row.expires_at <= context.now(state):
        raise NotAuthenticated(NO_SESSION)
    if (why := _ended_by(state, row, context.now(state))) is not None:
        raise NotAuthenticated(f"session: {why}")


def end_session(context: Context, token: str, source: str, kind: Kind = "program") -> None:
    """At the wish of who holds it. It ends also where the entry that says so cannot be appended; that error is raised
    after it has."""
    row = context.sessions.remove(_stored(token, kind))
    if row is not None:
        _record_end(context, row, row.principal, source)


def open_sessions(context: Context, asker: str) -> list[SessionRow]:
    """Those that open something now: of an administrator's asking everybody's, else the asker's own."""
    state = context.ledger.state
    now = context.now(state)
    return [row for row in context.sessions.all() if _stands(state, row, now) and _may_end(context, asker, row)]


def close_session(context: Context, asker: str, entry: int, source: str) -> SessionRow:
    """The asker's own, or by an administrator anybody's; NotFound where they may end none that this entry opened. It
    is over as `end_session` has it."""
    if not any(row.entry == entry for row in open_sessions(context, asker)):
        raise NotFound(f"session: expected an open one of {asker}, got none that entry {entry} opened")
    row = context.sessions.remove_opened_by(entry)
    if row is None:
        raise NotFound(f"session: expected one that entry {entry} opened, got one that has ended meanwhile")
    _record_end(context, row, asker, source)
    return row


def _may_end(context: Context, asker: str, row: SessionRow) -> bool:
    person = context.ledger.state.principals.get(asker)
    return row.principal == asker or (person is not None and person.revoked is None and person.has("administrator"))


def _record_end(context: Context, row: SessionRow, by: str, source: str) -> None:
    """Not of one that has run out."""
    if row.expires_at <= context.now(context.ledger.state):
        return
    append(context, SessionClosed(opened=row.entry, principal=row.principal), actor=by, source=source)


def sweep_sessions(context: Context) -> None:
    """Removes what has run out, and what was opened by a principal or a key that has ended."""
    state = context.ledger.state
    now = context.now(state)
    context.sessions.sweep(lambda row: _stands(state, row, now))


def _stands(state: State, row: SessionRow, now: str) -> bool:
    return row.expires_at > now and _ended_by(state, row, now) is None


def _ended_by(state: State, row: SessionRow, now: str) -> str | None:
    """Why it opens nothing any more, though its time has not run out."""
    principal, key = state.principals.get(row.principal), state.keys.get(row.keyid)
    if principal is None or principal.revoked is not None:
        return f"expected a standing principal, got {row.principal}, who was revoked"
    if key is None or key_ended(state, key, now) is not None:
        return f"expected one by a key that stands, got one by {row.keyid}, which has ended"
    if any(row.entry <= reset.index for reset in state.site.resets):
        return "expected one opened since the clock was reset, got an earlier one"
    return None


@dataclass(frozen=True)
class Refusals:
    """What was refused since the last heartbeat and is in no entry yet: strangers, since when, and units' requests
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
    append_all(context, [*_drafts(context, refusals), draft_of(ServiceStopped(reason=reason, process=context.process))])


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
        yield draft_of(
            RequestRefused(unit=unit, code=code, message="refused before it was read, and counted", count=count)
        )
