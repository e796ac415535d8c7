"""The page of open sessions, sign-in with a passkey or a link of the command line, and sign-out.

People see and end their own sessions; administrators see and end all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from appliance.domain.core.credentials import SessionStatement, encode_credential, parse_credential
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import add_seconds
from appliance.domain.queries.measures import seconds_between
from appliance.errors import ApplianceError, BadInput, NotAuthenticated
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import parse_base64, parse_identifier
from appliance.formats.signatures.dsse import PAYLOAD_TYPE, encode_envelope, pae
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.page import EVERYBODY, ListPage, Page, PageValue, Query, Viewer, columns
from appliance.web.console.signing.identities import make_provider_address
from appliance.web.console.signing.statements import make_signing, read_envelope, statement_file
from appliance.web.core.auth import Session
from appliance.web.core.receiving import source_of
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

    def end(request: Request, fields: Mapping[str, str]) -> Response:
        viewer, entry = desk.viewer(request), fields.get("entry", "")
        if not entry.isascii() or not entry.isdecimal() or len(entry) > 12:
            raise BadInput(f"session, entry: expected the number of an entry, got {entry!r:.40}")
        close_session(desk.context, viewer.name, int(entry), source_of(request.scope))
        return RedirectResponse("/sessions", 303)

    def tell(request: Request) -> Response:
        """Return whose session the browser has, the token of its forms, and the seconds for which it lasts."""
        viewer = desk.viewer(request)
        left_s = seconds_between(desk.context.now(desk.context.ledger.state), viewer.until)
        return JSONResponse({"viewer": viewer.name, "csrf": viewer.csrf, "left_s": left_s})

    return [Route("/sessions", desk.posted(end), methods=["POST"]), Route("/session.json", tell)]


_PASSKEY = "/sign-in/passkey.json"
"""Address of signing in with a passkey: what is to be signed, and the signature."""


def passkey_sign_in_routes(desk: Desk) -> list[Route]:
    """Return the routes of sign-in with a passkey, by the script of a page."""

    def show(request: Request) -> Response:
        """Return what is to be signed. It is the same for every name, and so does not disclose who is enrolled."""
        state = desk.context.ledger.state
        now = desk.context.now(state)
        statement = SessionStatement(
            origin=state.site.origin,
            signer=parse_identifier(request.query_params.get("name", ""), "name"),
            nonce=desk.authenticator.challenge(),
            issued_at=now,
            expires_at=add_seconds(now, state.parameters.session_lifetime_s),
        )
        payload = encode_credential(statement)
        file = statement_file(payload)
        made = make_signing(file, "statement:session", statement.signer, desk.site.url, (), SessionStatement)
        # An ID token with this nonce fits this statement only.
        provider, nonce = state.parameters.identity_provider, digest_bytes(pae(PAYLOAD_TYPE, payload))
        identity = None if provider is None else make_provider_address(provider, desk.site.url, nonce)
        return JSONResponse({"file": made.file, "script_data": made.script_data, "identity": identity})

    def open_session(request: Request, fields: Mapping[str, str]) -> Response:
        try:
            payload = parse_base64(json.loads(fields.get("file", "")).get("statement"), "session, statement")
        except (ValueError, AttributeError, RecursionError):
            raise BadInput("form, file: expected what the page was given, got another text") from None
        statement = parse_credential(SessionStatement, payload)
        envelope = read_envelope(payload, fields, desk.context.ledger.state, statement.signer)
        data, identity_token = encode_envelope(envelope), fields.get("identity_token")
        token, _ = desk.authenticator.open_session(data, source_of(request.scope), identity_token)
        cookie, session = desk.authenticator.admit(desk.authenticator.link(f"Bearer {token}"))
        return admit(desk, request, cookie, session, JSONResponse({"viewer": session.principal}))

    return [Route(_PASSKEY, show), Route(_PASSKEY, desk.posted(open_session, in_session=False), methods=["POST"])]


def sign_in_routes(desk: Desk) -> list[Route]:
    """Return the routes of sign-in and sign-out."""

    def show(request: Request) -> Response:
        if _is_signed_in(desk, request):
            return RedirectResponse("/home", 303)
        return desk.show_sign_in(request, target="/home")

    def show_link(request: Request) -> Response:
        """Return the page of a sign-in link.

        Opening it uses nothing up, so that programs that prefetch addresses sign nobody in.
        """
        code = request.path_params["code"]
        try:
            name = desk.authenticator.whose_link(code)
        except NotAuthenticated:
            # The person came back to the link that signed them in.
            if _is_signed_in(desk, request):
                return RedirectResponse("/home", 303)
            raise
        return desk.show_sign_in(request, target="/home", link=(code, name))

    def use_link(request: Request, fields: Mapping[str, str]) -> Response:
        cookie, session = desk.authenticator.admit(request.path_params["code"])
        return admit(desk, request, cookie, session, RedirectResponse("/home", 303))

    def sign_out(request: Request, fields: Mapping[str, str]) -> Response:
        desk.authenticator.sign_out(desk.site.read_cookie(request) or "", source_of(request.scope))
        answer = RedirectResponse("/sign-in", 303)
        for line in (desk.site.set_cookie("", 0), desk.site.set_name("")):
            answer.headers.append("Set-Cookie", line)
        return answer

    return [
        Route("/sign-in", show),
        Route("/sign-in/{code}", show_link),
        Route("/sign-in/{code}", desk.posted(use_link, in_session=False), methods=["POST"]),
        Route("/sign-out", desk.posted(sign_out), methods=["POST"]),
    ]


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
            desk.authenticator.sign_out(before, source_of(request.scope))
    left_s = seconds_between(desk.context.now(desk.context.ledger.state), session.expires_at)
    for line in (desk.site.set_cookie(cookie, max(round(left_s), 1)), desk.site.set_name(session.principal)):
        answer.headers.append("Set-Cookie", line)
    return answer
