"""Signed statements other than orders: proofs of possession, session openings, and tokens of units.

They share the order's envelope (DSSE over an in-toto statement) and its encoding, under `urn:appliance:statement:`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeVar

from pydantic import AfterValidator, Field, StringConstraints

from appliance.domain.core.names import Base64, Digest, Identifier, Nonce, Time, Value, encode_value, parse_value
from appliance.errors import BadInput, NotAuthenticated
from appliance.formats.core.canonical import check_values, encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64url, parse_base64url, show
from appliance.formats.signatures.dsse import (
    Envelope,
    Statement,
    encode_envelope,
    encode_statement,
    parse_envelope,
    parse_statement,
)

PREFIX = "urn:appliance:statement:"
MAX_VALUES = 100
"""Largest number of JSON values in a credential, which is parsed before its signature is verified."""


def _check_credential_id(text: str) -> str:
    try:
        parse_base64url(text, "credential id")
    except BadInput as error:
        raise ValueError(error.message) from None
    return text


CredentialId = Annotated[str, StringConstraints(min_length=1, max_length=1_364), AfterValidator(_check_credential_id)]
"""An authenticator's identifier of a passkey: at most 1,023 bytes, as canonical base64url."""
Origin = Annotated[str, StringConstraints(min_length=1, max_length=300)]
"""A web origin, such as https://appliance.bank.example."""


class Credential(Value):
    """A signed statement that is not an order. This base class has the fields that all kinds share."""

    kind: ClassVar[str]

    origin: str = Field(max_length=255)
    signer: Identifier
    nonce: Nonce
    issued_at: Time


class Possession(Credential):
    """A proof of possession, signed by the key that is to be enrolled.

    It prevents the enrolment of another person's key.
    """

    kind = "possession"
    key: Base64
    keyid: Digest


class PasskeyPossession(Possession):
    """A proof of possession, signed by the passkey that is to be enrolled.

    The owner names the origins at which it signs, which the administrators see.
    """

    kind = "passkey"
    passkey: Identifier = Field(description="the owner's own name for it")
    credential_id: CredentialId
    rp_id: str = Field(max_length=253)
    origins: tuple[Origin, ...] = Field(min_length=1, max_length=8)
    backup_eligible: bool


class SessionStatement(Credential):
    """A response to the service's challenge (the nonce) that opens a reading session."""

    kind = "session"
    expires_at: Time


class UnitToken(Credential):
    """A unit's API key, signed by the unit's key for this log's origin, valid for at most an hour."""

    kind = "token"
    expires_at: Time


class TokenRequest(Credential):
    """A response to the service's challenge (the nonce) by which an application of the unit `signer` requests a token.

    The application's key signs it.
    """

    kind = "token-request"
    application: Identifier
    expires_at: Time


C = TypeVar("C", bound=Credential)


def encode_credential(credential: Credential) -> bytes:
    """Return the payload to sign: an in-toto statement in canonical JSON."""
    subject = ((f"principal:{credential.signer}", digest_bytes(encode_value(credential))),)
    return encode_statement(Statement(subject, f"{PREFIX}{credential.kind}:v1", credential.model_dump(mode="json")))


def parse_credential(model: type[C], payload: bytes) -> C:
    """Parse a statement's bytes as a credential of this kind.

    Raises: BadInput if it has more than MAX_VALUES values, is of another kind or its encoding is not canonical.
    """
    check_values(payload, model.kind, MAX_VALUES)
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
    """Encode an envelope as one word that fits an Authorization header."""
    return encode_base64url(encode_envelope(envelope))


ISSUED = "at_"
"""Prefix of a token that the service issued to an application. 32 random bytes follow, which carry no information."""


def parse_token(text: str) -> Envelope:
    """Parse a token, which must be canonical base64url of an envelope.

    Raises: NotAuthenticated for anything else, since a token is a credential.
    """
    try:
        return parse_envelope(parse_base64url(text, "token"))
    except BadInput:
        raise NotAuthenticated(
            "token: expected a signed unit token (appliance token issue), got text that is not one"
        ) from None
