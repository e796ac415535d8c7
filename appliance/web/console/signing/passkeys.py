"""A person's or a unit's passkeys: those enrolled, and a new one, whose proof two administrators enrol it with."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.core.credentials import PasskeyPossession, encode_credential, parse_credential
from appliance.domain.core.signatures import against_scope, key_ended
from appliance.domain.governance.passkeys import passkeys_of, scope_of
from appliance.errors import BadInput, Denied
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import (
    encode_base64,
    encode_base64url,
    parse_base64,
    parse_base64url,
    parse_identifier,
)
from appliance.formats.signatures.authenticator_data import parse_authenticator_data
from appliance.formats.signatures.dsse import PAYLOAD_TYPE, Envelope, Signature, encode_envelope, verify_envelope
from appliance.formats.signatures.relying_party import PasskeyScope
from appliance.formats.signatures.webauthn import Assertion, encode_assertion
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.page import EVERYBODY, Page, Query, Value, Viewer
from appliance.web.console.core.shell import make_shell
from appliance.web.console.signing.statements import ASSERTION_FIELDS, make_signing, rp_id_of, statement_file
from appliance.workflows.core.context import Context


class PasskeyRow(Value):
    """`ended`: why it signs nothing more."""

    name: str
    keyid: str
    credential_id: str
    origins: tuple[str, ...]
    backup_eligible: bool
    entry: int
    ended: str | None


class Passkeys(Value):
    passkeys: tuple[PasskeyRow, ...]


def passkeys(context: Context, viewer: Viewer, query: Query) -> Passkeys:
    state = context.ledger.state
    rows = [
        PasskeyRow(
            name=key.passkey.name,
            keyid=key.keyid,
            credential_id=key.passkey.credential_id,
            origins=key.passkey.origins,
            backup_eligible=key.passkey.backup_eligible,
            entry=key.enrolled,
            ended=key_ended(state, key, context.now(state)),
        )
        for key in passkeys_of(state, viewer.name)
        if key.passkey is not None
    ]
    return Passkeys(passkeys=tuple(rows))


PAGE = Page(
    "/passkeys", "Your passkeys", EVERYBODY, Query, passkeys, "signing/passkeys.html", group="Orders", symbol="check"
)


def passkey_routes(desk: Desk) -> list[Route]:
    return [
        Route("/passkeys/new", _New(desk).show),
        Route("/passkeys/new", _New(desk).take, methods=["POST"]),
        Route("/passkeys/proof", _Proof(desk).take, methods=["POST"]),
    ]


class _New:
    """The authenticator makes it; then it signs a statement of where it signs."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def show(self, request: Request) -> Response:
        desk = self._desk
        viewer = desk.viewer(request)
        PAGE.check(viewer)
        state, rp_id = desk.context.ledger.state, rp_id_of(desk.site.url)
        known = [key.passkey.credential_id for key in passkeys_of(state, viewer.name) if key.passkey is not None]
        against = against_place(desk.context, desk.site.url)
        return desk.render(
            "signing/new_passkey.html",
            page=PAGE,
            shell=make_shell(desk.context, viewer, desk.pages),
            path="/passkeys",
            against=against,
            told=json.dumps({"rpId": rp_id, "signer": viewer.name, "known": known}),
            url=desk.site.url,
        )

    async def take(self, request: Request) -> Response:
        fields = await self._desk.form(request)
        return await run_in_threadpool(self._prove, request, fields)

    def _prove(self, request: Request, fields: Mapping[str, str]) -> Response:
        desk = self._desk
        viewer = desk.viewer(request)
        PAGE.check(viewer)
        statement = _statement(desk, viewer, fields)
        reasons = against_scope(desk.context.ledger.state.parameters, scope_of(statement))
        if reasons:
            raise Denied("new passkey", reasons=tuple(reasons))
        file = statement_file(encode_credential(statement))
        allowed = (statement.credential_id,)
        return desk.render(
            "signing/prove_passkey.html",
            page=PAGE,
            shell=make_shell(desk.context, viewer, desk.pages),
            path="/passkeys",
            signing=make_signing(file, "statement:passkey", viewer.name, desk.site.url, allowed, PasskeyPossession),
            keyid=statement.keyid,
            name=statement.passkey,
            empty=ASSERTION_FIELDS,
        )


def against_place(context: Context, url: str) -> tuple[str, ...]:
    """Why no passkey can be made for this address; whether a passkey can be copied is seen when it is made."""
    try:
        scope = PasskeyScope(rp_id_of(url), (url,), backup_eligible=False)
    except BadInput as error:
        return (error.message,)
    return tuple(against_scope(context.ledger.state.parameters, scope))


def _statement(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> PasskeyPossession:
    made = parse_authenticator_data(parse_base64url(fields.get("data", ""), "new passkey, authenticator data"))
    rp_id, state = rp_id_of(desk.site.url), desk.context.ledger.state
    if made.rp_id_hash != hashlib.sha256(rp_id.encode()).digest():
        raise BadInput(f"new passkey, rp id: expected {rp_id}, got one of another address")
    return PasskeyPossession(
        origin=state.site.origin,
        signer=viewer.name,
        nonce=secrets.token_hex(16),
        issued_at=desk.context.now(state),
        key=encode_base64(made.spki),
        keyid=digest_bytes(made.spki),
        passkey=parse_identifier(fields.get("name", ""), "name of the passkey"),
        credential_id=encode_base64url(made.credential_id),
        rp_id=rp_id,
        origins=(desk.site.url,),
        backup_eligible=made.backup_eligible,
    )


class _Proof:
    """The proof as a file, once it holds: nothing is kept of it here."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def take(self, request: Request) -> Response:
        fields = await self._desk.form(request)
        return await run_in_threadpool(self._give, request, fields)

    def _give(self, request: Request, fields: Mapping[str, str]) -> Response:
        viewer = self._desk.viewer(request)
        payload = parse_base64(_member(fields.get("file", ""), "statement"), "proof of a passkey, statement")
        statement = parse_credential(PasskeyPossession, payload)
        if statement.signer != viewer.name:
            raise Denied(f"proof of a passkey: expected one of {viewer.name}, got one of {statement.signer}")
        parts = [parse_base64url(fields.get(name, ""), f"assertion, {name}") for name in ASSERTION_FIELDS[1:]]
        sig = encode_assertion(Assertion(*parts))
        envelope = Envelope(PAYLOAD_TYPE, payload, (Signature(statement.keyid, sig),))
        verify_envelope(envelope, parse_base64(statement.key, "key"), scope_of(statement))
        name = f"{viewer.name}-{statement.passkey}.proof"
        return Response(
            encode_envelope(envelope) + b"\n",
            media_type="application/json",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )


def _member(text: str, name: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadInput("form, file: expected what the page was given, got another text")
    return value.get(name)
