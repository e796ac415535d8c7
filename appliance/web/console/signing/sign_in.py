"""Sign-in by a passkey: it signs the statement that opens a session, as a key file does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.core.credentials import SessionStatement, encode_credential, parse_credential
from appliance.domain.core.names import add_seconds
from appliance.errors import BadInput
from appliance.formats.core.fields import parse_base64, parse_identifier
from appliance.formats.signatures.dsse import encode_envelope
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.security import source_of
from appliance.web.console.signing.statements import ASSERTION_FIELDS, make_signing, read_envelope, statement_file
from appliance.web.core.auth import Session

Admit = Callable[[Desk, Request, str, Session], Response]


def passkey_sign_in_routes(desk: Desk, admit: Admit) -> list[Route]:
    """`admit`: how a browser is let in, whatever opened its session."""
    one = _SignIn(desk, admit)
    return [Route("/sign-in/passkey", one.show), Route("/sign-in/passkey", one.take, methods=["POST"])]


class _SignIn:
    """The page is the same for every name, so that nobody learns who is enrolled, or has a passkey."""

    def __init__(self, desk: Desk, admit: Admit) -> None:
        self._desk, self._admit = desk, admit

    def show(self, request: Request) -> Response:
        desk = self._desk
        state = desk.context.ledger.state
        now = desk.context.now(state)
        statement = SessionStatement(
            origin=state.site.origin,
            signer=parse_identifier(request.query_params.get("name", ""), "name"),
            nonce=desk.door.challenge(),
            issued_at=now,
            expires_at=add_seconds(now, state.parameters.session_lifetime_s),
        )
        file = statement_file(encode_credential(statement))
        return desk.render(
            "signing/sign_in.html",
            shell=None,
            signing=make_signing(file, "statement:session", statement.signer, desk.site.url, (), SessionStatement),
            name=statement.signer,
            empty=ASSERTION_FIELDS,
        )

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
        token, _ = desk.door.open_session(encode_envelope(envelope), source_of(request))
        cookie, session = desk.door.admit(desk.door.link(f"Bearer {token}"))
        return self._admit(desk, request, cookie, session)
