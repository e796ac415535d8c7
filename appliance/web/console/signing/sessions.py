"""Open sessions: a person's own, and for an administrator everybody's; each can be ended."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from appliance.domain.core.entry import parse_entry
from appliance.errors import BadInput
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.page import EVERYBODY, Page, Query, Table, Value, Viewer
from appliance.web.console.core.security import source_of
from appliance.workflows.core.context import Context
from appliance.workflows.governance.sessions import close_session, open_sessions

_MOST = 500
"""Of all people's; a session lasts some minutes."""


class SessionLine(Value):
    """`entry` opened it, at `opened_at`, from `source`, by the key `keyid`, which is the passkey `passkey`."""

    entry: int
    principal: str
    opened_at: str
    source: str
    keyid: str
    passkey: str | None
    expires_at: str


class SessionsPage(Value):
    sessions: tuple[SessionLine, ...]


def sessions(context: Context, viewer: Viewer, query: Query) -> SessionsPage:
    state, found = context.ledger.state, open_sessions(context, viewer.name)[:_MOST]
    lines = []
    for row in found:
        entry, key = parse_entry(context.ledger.entry_bytes(row.entry)), state.keys.get(row.keyid)
        lines.append(
            SessionLine(
                entry=row.entry,
                principal=row.principal,
                opened_at=entry.time,
                source=entry.source,
                keyid=row.keyid,
                passkey=None if key is None or key.passkey is None else key.passkey.name,
                expires_at=row.expires_at,
            )
        )
    return SessionsPage(sessions=tuple(lines))


def _table(value: SessionsPage) -> Table:
    headers = tuple(SessionLine.model_fields)
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.sessions])


PAGE = Page(
    "/sessions",
    "Open sessions",
    EVERYBODY,
    Query,
    sessions,
    "signing/sessions.html",
    _table,
    group="Orders",
    symbol="leave",
)


def session_routes(desk: Desk) -> list[Route]:
    async def end(request: Request) -> Response:
        fields = await desk.form(request)
        return await run_in_threadpool(_end, request, fields.get("entry", ""))

    def _end(request: Request, entry: str) -> Response:
        viewer = desk.viewer(request)
        if not entry.isascii() or not entry.isdecimal() or len(entry) > 12:
            raise BadInput(f"session, entry: expected the number of an entry, got {entry!r:.40}")
        close_session(desk.context, viewer.name, int(entry), source_of(request))
        return RedirectResponse("/sessions", 303)

    return [Route("/sessions", end, methods=["POST"])]
