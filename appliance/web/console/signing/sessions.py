"""The page of open sessions, sign-in with a passkey or a link of the command line, and sign-out.

People see and end their own sessions; administrators see and end all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from appliance.domain.core.credentials import SessionStatement, encode_credential, parse_credential
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import add_seconds
from appliance.errors import ApplianceError, BadInput, NotAuthenticated
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import parse_base64, parse_identifier
from appliance.formats.signatures.dsse import PAYLOAD_TYPE, encode_envelope, pae
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.page import EVERYBODY, ListPage, Page, PageValue, Query, Viewer, columns
from appliance.web.console.core.render import seconds_since
from appliance.web.console.core.security import source_of
from appliance.web.console.signing.identities import make_provider_address
from appliance.web.console.signing.statements import make_signing, read_envelope, statement_file
from appliance.web.core.auth import Session
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.governance import close_session, open_sessions

_MOST = 500
"""Maximum number of sessions on the page. A session lasts some minutes."""


class SessionLine(PageValue):
    """An open session: the entry and time of its opening, its source, and the key that signed it.

    `passkey` is the name of the key, if it is a passkey.
    """

    entry: int
    principal: str
    opened_at: str
    source: str
    keyid: str
    passkey: str | None
    expires_at: str


def sessions(context: LedgerContext, viewer: Viewer, query: Query) -> ListPage[SessionLine]:
    """Return the open sessions that the viewer may see."""
    state, rows = context.ledger.state, open_sessions(context, viewer.name)[:_MOST]
    lines = []
    for row in rows:
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
    return ListPage[SessionLine](rows=tuple(lines))


PAGE = Page("/sessions", "Open sessions", sessions, columns(), seen_by=EVERYBODY, group="Orders", symbol="leave")


def session_routes(desk: Desk) -> list[Route]:
    """Return the routes that end a session, and that tell a page about its own."""

    async def end(request: Request) -> Response:
        fields = await desk.form(request)
        return await run_in_threadpool(_end, request, fields.get("entry", ""))

    def _end(request: Request, entry: str) -> Response:
        viewer = desk.viewer(request)
        if not entry.isascii() or not entry.isdecimal() or len(entry) > 12:
            raise BadInput(f"session, entry: expected the number of an entry, got {entry!r:.40}")
        close_session(desk.context, viewer.name, int(entry), source_of(request))
        return RedirectResponse("/sessions", 303)

    return [Route("/sessions", end, methods=["POST"]), Route("/session.json", lambda request: _tell(desk, request))]


def _tell(desk: Desk, request: Request) -> Response:
    """Return whose session the browser has, the token of its forms, and the seconds for which it lasts."""
    viewer = desk.viewer(request)
    left_s = seconds_since(desk.context.now(desk.context.ledger.state), viewer.until)
    return JSONResponse({"viewer": viewer.name, "csrf": viewer.csrf, "left_s": left_s})


def passkey_sign_in_routes(desk: Desk) -> list[Route]:
    """Return the routes of sign-in with a passkey."""
    page = _SignIn(desk)
    return [Route(_PASSKEY, page.show), Route(_PASSKEY, page.take, methods=["POST"])]


_PASSKEY = "/sign-in/passkey.json"
"""Address of signing in with a passkey: what is to be signed, and the signature."""


class _SignIn:
    """Sign-in with a passkey by the script of a page.

    What is to be signed is the same for every name, so that it does not disclose who is enrolled.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def show(self, request: Request) -> Response:
        desk = self._desk
        state = desk.context.ledger.state
        now = desk.context.now(state)
        statement = SessionStatement(
            origin=state.site.origin,
            signer=parse_identifier(request.query_params.get("name", ""), "name"),
            nonce=desk.authenticator.challenge(),
            issued_at=now,
            expires_at=add_seconds(now, state.parameters.session_lifetime_s),
        )
        file = statement_file(encode_credential(statement))
        made = make_signing(file, "statement:session", statement.signer, desk.site.url, (), SessionStatement)
        return JSONResponse({"file": made.file, "script_data": made.script_data, "identity": self._provider(statement)})

    def _provider(self, statement: SessionStatement) -> str | None:
        """Return the address for an ID token that fits the statement, or None if policy requires none of anybody."""
        provider = self._desk.context.ledger.state.parameters.identity_provider
        if provider is None:
            return None
        nonce = digest_bytes(pae(PAYLOAD_TYPE, encode_credential(statement)))
        return make_provider_address(provider, self._desk.site.url, nonce)

    async def take(self, request: Request) -> Response:
        fields = await self._desk.form(request, in_session=False)
        return await run_in_threadpool(self._open, request, fields)

    def _open(self, request: Request, fields: Mapping[str, str]) -> Response:
        desk = self._desk
        try:
            payload = parse_base64(json.loads(fields.get("file", "")).get("statement"), "session, statement")
        except (ValueError, AttributeError, RecursionError):
            raise BadInput("form, file: expected what the page was given, got another text") from None
        statement = parse_credential(SessionStatement, payload)
        envelope = read_envelope(payload, fields, desk.context.ledger.state, statement.signer)
        data, identity_token = encode_envelope(envelope), fields.get("identity_token")
        token, _ = desk.authenticator.open_session(data, source_of(request), identity_token)
        cookie, session = desk.authenticator.admit(desk.authenticator.link(f"Bearer {token}"))
        return admit(desk, request, cookie, session, JSONResponse({"viewer": session.principal}))


def sign_in_routes(desk: Desk) -> list[Route]:
    """Return the routes of sign-in and sign-out."""
    return [
        Route("/sign-in", _Page(desk).show),
        Route("/sign-in/{code}", _Link(desk).show),
        Route("/sign-in/{code}", _Link(desk).take, methods=["POST"]),
        Route("/sign-out", _SignOut(desk).take, methods=["POST"]),
    ]


class _Page:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def show(self, request: Request) -> Response:
        if _is_signed_in(self._desk, request):
            return RedirectResponse("/home", 303)
        return self._desk.show_sign_in(request, target="/home")


class _Link(_Page):
    """The page of a sign-in link.

    Opening it uses nothing up, so that programs that prefetch addresses sign nobody in.
    """

    def show(self, request: Request) -> Response:
        code = request.path_params["code"]
        try:
            name = self._desk.authenticator.whose_link(code)
        except NotAuthenticated:
            # The person came back to the link that signed them in.
            if _is_signed_in(self._desk, request):
                return RedirectResponse("/home", 303)
            raise
        return self._desk.show_sign_in(request, target="/home", link=(code, name))

    async def take(self, request: Request) -> Response:
        await self._desk.form(request, in_session=False)
        cookie, session = await run_in_threadpool(self._desk.authenticator.admit, request.path_params["code"])
        return await run_in_threadpool(admit, self._desk, request, cookie, session, RedirectResponse("/home", 303))


class _SignOut(_Page):
    async def take(self, request: Request) -> Response:
        await self._desk.form(request)
        site = self._desk.site
        await run_in_threadpool(self._desk.authenticator.sign_out, site.read_cookie(request) or "", source_of(request))
        answer = RedirectResponse("/sign-in", 303)
        for line in (site.set_cookie("", 0), site.set_name("")):
            answer.headers.append("Set-Cookie", line)
        return answer


def _is_signed_in(desk: Desk, request: Request) -> bool:
    try:
        desk.viewer(request)
    except ApplianceError:
        return False
    return True


def admit(desk: Desk, request: Request, cookie: str, session: Session, answer: Response) -> Response:
    """Return the response with the session's cookie and its person's name. An earlier session of this browser ends."""
    with suppress(ApplianceError):
        if (before := desk.site.read_cookie(request)) is not None:
            desk.authenticator.sign_out(before, source_of(request))
    left_s = seconds_since(desk.context.now(desk.context.ledger.state), session.expires_at)
    for line in (desk.site.set_cookie(cookie, max(round(left_s), 1)), desk.site.set_name(session.principal)):
        answer.headers.append("Set-Cookie", line)
    return answer
