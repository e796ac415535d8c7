"""Signed statements that are no orders: proof of possession, the opening of a session, a unit's token.

They share the order's envelope (DSSE over an in-toto statement) and its encoding, under `urn:appliance:statement:`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeVar

from pydantic import AfterValidator, Field, StringConstraints

from appliance.domain.core.names import Base64, Digest, Identifier, Nonce, Time, Value, encode_value, parse_value
from appliance.errors import BadInput, NotAuthenticated
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64url, parse_base64url, show
from appliance.formats.signatures.dsse import Envelope, encode_envelope, parse_envelope
from appliance.formats.signatures.statement import Statement, encode_statement, parse_statement

PREFIX = "urn:appliance:statement:"


def _check_credential_id(text: str) -> str:
    try:
        parse_base64url(text, "credential id")
    except BadInput as error:
        raise ValueError(error.message) from None
    return text


CredentialId = Annotated[str, StringConstraints(min_length=1, max_length=1_364), AfterValidator(_check_credential_id)]
"""What an authenticator calls a passkey: at most 1,023 bytes, as base64url in its one spelling."""
Origin = Annotated[str, StringConstraints(min_length=1, max_length=300)]


class Credential(Value):
    kind: ClassVar[str]

    origin: str = Field(max_length=255)
    signer: Identifier
    nonce: Nonce
    issued_at: Time


class Possession(Credential):
    """Signed by a key that is to be enrolled, so that nobody can enrol another person's key."""

    kind = "possession"
    key: Base64
    keyid: Digest


class PasskeyPossession(Possession):
    """Signed by a passkey that is to be enrolled: its owner names where it signs, and the administrators see it."""

    kind = "passkey"
    passkey: Identifier = Field(description="the owner's own name for it")
    credential_id: CredentialId
    rp_id: str = Field(max_length=253)
    origins: tuple[Origin, ...] = Field(min_length=1, max_length=8)
    backup_eligible: bool


class SessionStatement(Credential):
    """Answers the service's challenge (the nonce); opens a reading session."""

    kind = "session"
    expires_at: Time


class UnitToken(Credential):
    """A unit's API key: signed by the unit's key, for this log's origin, at most an hour long."""

    kind = "token"
    expires_at: Time


class TokenRequest(Credential):
    """Answers the service's challenge (the nonce): an application of the unit `signer` asks for a token, by its key."""

    kind = "token-request"
    application: Identifier
    expires_at: Time


C = TypeVar("C", bound=Credential)


def encode_credential(credential: Credential) -> bytes:
    subject = ((f"principal:{credential.signer}", digest_bytes(encode_value(credential))),)
    return encode_statement(Statement(subject, f"{PREFIX}{credential.kind}:v1", credential.model_dump(mode="json")))


def parse_credential(model: type[C], payload: bytes) -> C:
    """The credential of a statement's bytes; BadInput when it is of another kind or not exactly encoded."""
    statement = parse_statement(payload)
    expected = f"{PREFIX}{model.kind}:v1"
    if statement.predicate_type != expected:
        raise BadInput(f"statement: expected predicateType {expected}, got {statement.predicate_type[:120]!r}")
    credential = parse_value(model, encode_canonical(statement.predicate), model.kind)
    if encode_credential(credential) != payload:
        got = show(statement.subjects)
        raise BadInput(f"{model.kind} statement: expected its signer and digest as the subject, got {got}")
    return credential


def encode_token(envelope: Envelope) -> str:
    """An envelope as one word that fits an Authorization header."""
    return encode_base64url(encode_envelope(envelope))


ISSUED = "at_"
"""How a token begins that the service gave to an application: 32 random bytes follow, which say nothing."""


def parse_token(text: str) -> Envelope:
    """The envelope of a token in its one spelling; NotAuthenticated for whatever is none: a token is a credential."""
    try:
        return parse_envelope(parse_base64url(text, "token"))
    except BadInput:
        raise NotAuthenticated(
            "token: expected a signed unit token (appliance token issue), got text that is not one"
        ) from None
