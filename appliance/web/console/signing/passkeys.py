"""Passkeys of a person or unit: the enrolled ones, and the proof of a new one, which two administrators enrol."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.core.credentials import PasskeyPossession, encode_credential, parse_credential
from appliance.domain.core.signatures import key_ended, refuse_passkey_scope
from appliance.domain.governance.countersignature import list_countersigners
from appliance.domain.governance.passkeys import (
    PASSKEY_ADDRESS_INVALID,
    EnrolPasskey,
    list_passkeys,
    make_passkey_scope,
)
from appliance.errors import BadInput, Denied, Refusal, Rejected
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import (
    encode_base64,
    encode_base64url,
    parse_base64,
    parse_base64url,
    parse_identifier,
)
from appliance.formats.signatures.dsse import (
    Envelope,
    Signature,
    encode_envelope,
    verify_envelope,
)
from appliance.formats.signatures.webauthn import Assertion, PasskeyScope, encode_assertion, parse_authenticator_data
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.page import EVERYBODY, Page, PageValue, Query, Viewer
from appliance.web.console.signing.statements import (
    ASSERTION_FIELDS,
    Signing,
    make_signing,
    rp_id_of,
    statement_file,
)
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.people import list_waiting


class PasskeyRow(PageValue):
    """A passkey. `ended` says why it is no longer valid."""

    name: str
    keyid: str
    credential_id: str
    origins: tuple[str, ...]
    backup_eligible: bool
    entry: int
    ended: Refusal | None


class WaitingPasskey(PageValue):
    """A passkey whose enrolment one administrator ordered and that a second one has to countersign."""

    name: str
    keyid: str
    ordered_by: str
    until: str
    countersigners: tuple[str, ...]


class Passkeys(PageValue):
    """The page of the viewer's passkeys. `waiting` are those that a second administrator has to countersign."""

    passkeys: tuple[PasskeyRow, ...]
    waiting: tuple[WaitingPasskey, ...]


def passkeys(context: LedgerContext, viewer: Viewer, query: Query) -> Passkeys:
    """Return the viewer's passkeys."""
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
        for key in list_passkeys(state, viewer.name)
        if key.passkey is not None
    ]
    return Passkeys(passkeys=tuple(rows), waiting=tuple(_waiting(context, viewer)))


def _waiting(context: LedgerContext, viewer: Viewer) -> Iterator[WaitingPasskey]:
    """Yield the viewer's passkeys whose enrolment waits for a second administrator."""
    state = context.ledger.state
    for pending, order in list_waiting(context, EnrolPasskey):
        if order.principal == viewer.name:
            yield WaitingPasskey(
                name=order.passkey,
                keyid=order.keyid,
                ordered_by=order.signer,
                until=pending.expires_at,
                countersigners=list_countersigners(state, order),
            )


PAGE = Page("/passkeys", "Your passkeys", passkeys, seen_by=EVERYBODY, group="Orders", symbol="check")


def passkey_routes(desk: Desk) -> list[Route]:
    """Return the routes of new passkeys and their proofs."""

    def show_help(request: Request) -> Response:
        return desk.render("signing/help.html", shell=desk.shell(request), path="/help/passkeys", url=desk.site.url)

    def begin(request: Request) -> Response:
        """Return the page on which the authenticator creates a passkey."""
        viewer = desk.viewer(request)
        PAGE.check(viewer)
        return desk.render_page(
            request,
            viewer,
            "signing/new_passkey.html",
            page=PAGE,
            path=PAGE.path,
            refusal_reasons=refuse_address(desk.context, desk.site.url),
            script_data=describe_creation(desk, viewer.name),
            url=desk.site.url,
        )

    def prove(request: Request, fields: Mapping[str, str]) -> Response:
        """Return the page on which the new passkey signs a statement of its scope."""
        viewer = desk.viewer(request)
        PAGE.check(viewer)
        statement = make_statement(desk, viewer.name, fields)
        return desk.render_page(
            request,
            viewer,
            "signing/prove_passkey.html",
            page=PAGE,
            path=PAGE.path,
            signing=make_proving(desk, statement),
            keyid=statement.keyid,
            name=statement.passkey,
            empty=ASSERTION_FIELDS,
        )

    def save(request: Request, fields: Mapping[str, str]) -> Response:
        """Return the proof as a file, after its check. The service does not store it."""
        viewer = desk.viewer(request)
        statement, envelope = read_proof(fields)
        if statement.signer != viewer.name:
            raise Denied(f"proof of a passkey: expected one of {viewer.name}, got one of {statement.signer}")
        verify_envelope(envelope, parse_base64(statement.key, "key"), make_passkey_scope(statement))
        headers = desk.named(f"{viewer.name}-{statement.passkey}.proof")
        return Response(encode_envelope(envelope) + b"\n", media_type="application/json", headers=headers)

    return [
        Route("/help/passkeys", show_help),
        Route("/passkeys/new", begin),
        Route("/passkeys/new", desk.posted(prove), methods=["POST"]),
        Route("/passkeys/proof", desk.posted(save), methods=["POST"]),
    ]


def refuse_address(context: LedgerContext, url: str) -> tuple[Refusal, ...]:
    """Return why no passkey can be created for this address. Whether it can be copied is known only afterwards."""
    try:
        scope = PasskeyScope(rp_id_of(url), (url,), backup_eligible=False)
    except BadInput as error:
        return (PASSKEY_ADDRESS_INVALID(detail=Rejected(error.message)),)
    return tuple(refuse_passkey_scope(context.ledger.state.parameters, scope))


def describe_creation(desk: Desk, name: str) -> str:
    """Return JSON for the script that creates a passkey of this name: its host, and the passkeys that the name has."""
    keys = list_passkeys(desk.context.ledger.state, name)
    known = [key.passkey.credential_id for key in keys if key.passkey is not None]
    return json.dumps({"rpId": rp_id_of(desk.site.url), "signer": name, "known": known})


def make_statement(desk: Desk, name: str, fields: Mapping[str, str]) -> PasskeyPossession:
    """Return the statement that a new passkey signs, from the form that created it.

    Raises:
        BadInput: The passkey is for another address.
        Denied: The policy does not allow the passkey.
    """
    made = parse_authenticator_data(parse_base64url(fields.get("data", ""), "new passkey, authenticator data"))
    rp_id, state = rp_id_of(desk.site.url), desk.context.ledger.state
    if made.rp_id_hash != hashlib.sha256(rp_id.encode()).digest():
        raise BadInput(f"new passkey, rp id: expected {rp_id}, got one of another address")
    statement = PasskeyPossession(
        origin=state.site.origin,
        signer=name,
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
    if reasons := refuse_passkey_scope(state.parameters, make_passkey_scope(statement)):
        raise Denied("new passkey", refusals=reasons)
    return statement


def make_proving(desk: Desk, statement: PasskeyPossession) -> Signing:
    """Return a new passkey's statement for the script, which only this passkey may sign."""
    file, allowed = statement_file(encode_credential(statement)), (statement.credential_id,)
    return make_signing(file, "statement:passkey", statement.signer, desk.site.url, allowed, PasskeyPossession)


def read_proof(fields: Mapping[str, str]) -> tuple[PasskeyPossession, Envelope]:
    """Return a new passkey's statement and its envelope, from the form. The signature is not verified here."""
    payload = parse_base64(_member(fields.get("file", ""), "statement"), "proof of a passkey, statement")
    statement = parse_credential(PasskeyPossession, payload)
    parts = [parse_base64url(fields.get(name, ""), f"assertion, {name}") for name in ASSERTION_FIELDS[1:]]
    sig = encode_assertion(Assertion(*parts))
    return statement, Envelope(payload, Signature(statement.keyid, sig))


def _member(text: str, name: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadInput("form, file: expected what the page was given, got another text")
    return value.get(name)
