"""Principals, their keys and tokens, and orders that wait for a second administrator."""

from __future__ import annotations

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from appliance.domain.core.names import Time, Value
from appliance.formats.signatures.relying_party import PasskeyScope


class Passkey(Value):
    """What enrolment bound of a key that is in a person's authenticator. `name` is the person's own word for it."""

    name: str
    credential_id: str
    rp_id: str
    origins: tuple[str, ...]
    backup_eligible: bool

    @property
    def scope(self) -> PasskeyScope:
        return PasskeyScope(self.rp_id, self.origins, self.backup_eligible)


class Key(Value):
    keyid: str
    spki: str
    principal: str
    enrolled: int
    enrolled_at: Time
    until: Time | None = None
    """Replaced by another key: new orders are accepted until then."""
    revoked: int | None = None
    distrusted: int | None = None
    """What it signed in this entry or later does not count, whenever it was revoked."""
    rotated_from: str | None = None
    """The key by which its owner rotated to it: where that one did not count any more, nor does this one."""
    passkey: Passkey | None = None
    """Of a key in an authenticator: it signs by assertions alone, and only there."""

    @model_serializer(mode="wrap")
    def _encode(self, encode: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `rotated_from` and `passkey` where there is none."""
        value: dict[str, Any] = encode(self)
        absent = {name for name in ("rotated_from", "passkey") if getattr(self, name) is None}
        return {name: one for name, one in value.items() if name not in absent}

    @property
    def scope(self) -> PasskeyScope | None:
        """Of a passkey: where its assertions count."""
        return None if self.passkey is None else self.passkey.scope

    def stands(self, now: Time) -> bool:
        """Whether it may sign something new."""
        return self.revoked is None and (self.until is None or now < self.until)

    def counts(self, index: int) -> bool:
        """Whether what it signed in the entry of this index still counts."""
        return self.enrolled < index and (self.distrusted is None or index < self.distrusted)


class Principal(Value):
    name: str
    printed_name: str | None
    roles: tuple[str, ...]
    keyid: str
    enrolled: int
    revoked: int | None = None
    revoked_at: Time | None = None
    tokens_since: Time | None = None
    """Of a unit: its tokens that were issued before it do not count."""

    def has(self, role: str) -> bool:
        return self.revoked is None and role in self.roles


class RevokedToken(Value):
    """A unit's token that no longer counts; `digest` of its PAE."""

    digest: str
    unit: str
    index: int


class Application(Value):
    """A unit's application: its key asks for tokens of these tasks and does nothing else. `enrolled_by`: the unit's key
    that signed for it."""

    name: str
    unit: str
    tasks: tuple[str, ...]
    keyid: str
    spki: str
    enrolled: int
    enrolled_at: Time
    enrolled_by: str
    revoked: int | None = None


class IssuedToken(Value):
    """A token that an application was given, by the digest of its text; `request`: the digest of what it signed."""

    unit: str
    application: str
    request: str
    issued_at: Time
    expires_at: Time
    index: int


class OpenSession(Value):
    """A reading session that nobody has ended. `entry`: what opened it."""

    entry: int
    expires_at: Time


class OpenSessions(Value):
    """Those of a person, the oldest first; some ran out a short while ago."""

    open: tuple[OpenSession, ...]


class PendingOrder(Value):
    """An order that waits for a second administrator."""

    digest: str
    verb: str
    signer: str
    index: int
    expires_at: Time


def application_key(unit: str, name: str) -> str:
    return f"{unit}/{name}"


def token_key(unit: str, digest: str) -> str:
    """By unit first: what one revokes is none of another's."""
    return f"{unit}/{digest}"
