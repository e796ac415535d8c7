"""Records of principals, their keys, tokens and sessions, and of orders that need a second administrator."""

from __future__ import annotations

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from appliance.domain.core.names import Time, Value
from appliance.formats.signatures.webauthn import PasskeyScope


class Passkey(Value):
    """The values that enrolment bound to a key in a person's authenticator. `name` is the person's own name for it."""

    name: str
    credential_id: str
    rp_id: str
    origins: tuple[str, ...]
    backup_eligible: bool

    @property
    def scope(self) -> PasskeyScope:
        return PasskeyScope(self.rp_id, self.origins, self.backup_eligible)


class Key(Value):
    """An enrolled key of a principal."""

    keyid: str
    spki: str
    principal: str
    enrolled: int
    enrolled_at: Time
    until: Time | None = None
    """Time until which a replaced key may sign new orders."""
    revoked: int | None = None
    distrusted: int | None = None
    """Index of the entry from which on its signatures are invalid, whenever it was revoked."""
    rotated_from: str | None = None
    """The key with which its owner rotated to it. If that key was already distrusted then, this one is distrusted, too.
    """
    passkey: Passkey | None = None
    """The passkey's values. Such a key signs only by assertions, and only at its origins."""

    @model_serializer(mode="wrap")
    def _encode(self, encode: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `rotated_from` and `passkey` if they are None."""
        value: dict[str, Any] = encode(self)
        absent = {name for name in ("rotated_from", "passkey") if getattr(self, name) is None}
        return {name: item for name, item in value.items() if name not in absent}

    @property
    def scope(self) -> PasskeyScope | None:
        """Return the origins at which a passkey's assertions are valid, or None for another key."""
        return None if self.passkey is None else self.passkey.scope

    @property
    def title(self) -> str:
        """The key in words: a key file, or a passkey with its name."""
        return "key file" if self.passkey is None else f"passkey {self.passkey.name}"

    def is_valid(self, now: Time) -> bool:
        """Return True if it may sign something new."""
        return self.revoked is None and (self.until is None or now < self.until)

    def counts(self, index: int) -> bool:
        """Return True if its signature in the entry of this index is still valid."""
        return self.enrolled < index and (self.distrusted is None or index < self.distrusted)


class Principal(Value):
    """An enrolled person or unit."""

    name: str
    printed_name: str | None
    roles: tuple[str, ...]
    keyid: str
    enrolled: int
    revoked: int | None = None
    revoked_at: Time | None = None
    tokens_since: Time | None = None
    """Time before which a unit's tokens are invalid."""

    def has(self, role: str) -> bool:
        """Return True if the principal is not revoked and has the role."""
        return self.revoked is None and role in self.roles


class Invitation(Value):
    """An invitation of a person who has no key. `secret` is the SHA-256 of the secret in its address.

    `accepted` is the entry of the person's passkey, and `keyid` that passkey's; both are None before. `withdrawn` is
    the entry that withdrew the invitation. It drops the passkey.
    """

    name: str
    printed_name: str
    roles: tuple[str, ...]
    secret: str
    until: Time
    invited_by: str
    index: int
    accepted: int | None = None
    keyid: str | None = None
    withdrawn: int | None = None

    @property
    def is_unused(self) -> bool:
        """True if the invitation was neither accepted nor withdrawn."""
        return self.accepted is None and self.withdrawn is None

    def is_open(self, now: Time) -> bool:
        """Return True if the address still works."""
        return self.is_unused and now < self.until

    def is_valid(self, now: Time) -> bool:
        """Return True if the address still works or its person has made a passkey."""
        return self.is_open(now) or self.accepted is not None


class RevokedToken(Value):
    """A unit's token that was revoked; `digest` is that of its PAE."""

    digest: str
    unit: str
    index: int


class Application(Value):
    """A unit's application.

    Its key only requests tokens for these served models. `enrolled_by` is the unit's key that enrolled it.
    """

    name: str
    unit: str
    served_models: tuple[str, ...]
    keyid: str
    spki: str
    enrolled: int
    enrolled_at: Time
    enrolled_by: str
    revoked: int | None = None


class IssuedTokenRecord(Value):
    """A token that was issued to an application, by the digest of its text.

    `request` is the digest of the signed request.
    """

    unit: str
    application: str
    request: str
    issued_at: Time
    expires_at: Time
    index: int


class Identity(Value):
    """The subject of an identity provider to which a person is bound, by the entry `index`."""

    principal: str
    issuer: str
    subject: str
    index: int


class OpenSession(Value):
    """A reading session that was not closed.

    `entry` is the entry that opened it. `binding` is the entry that bound the person to the subject of the session's ID
    token, or None if it needed no token.
    """

    entry: int
    expires_at: Time
    binding: int | None


class OpenSessions(Value):
    """The open sessions of a person, the oldest first; some have expired recently."""

    open: tuple[OpenSession, ...]


class PendingOrder(Value):
    """An order that waits for a second administrator. `keyid` is the key that signed it."""

    digest: str
    action: str
    signer: str
    keyid: str
    index: int
    recorded_at: Time
    expires_at: Time
    about: tuple[str, ...]
    """The subjects of the order, such as `principal:nina`."""


def application_key(unit: str, name: str) -> str:
    return f"{unit}/{name}"


def token_key(unit: str, digest: str) -> str:
    """Return the key of a token's row. It begins with the unit, so that a unit can revoke only its own tokens."""
    return f"{unit}/{digest}"
