"""The entries about the appliance itself: its life, people, keys, sessions, policies, texts and witnesses."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.event import Endorsed, Event, Ordered
from appliance.domain.names import Base64, Canonical, Digest, Identifier, Time


class Administrator(Canonical):
    name: Identifier
    key: Base64
    keyid: Digest


class Initialized(Event):
    type = "appliance.initialized"
    documents = ("policy",)
    origin: str = Field(pattern=r"^[a-z0-9][a-z0-9./-]{0,200}$")
    log_key: str = Field(max_length=400)
    adapter_key: Base64
    administrators: tuple[Administrator, ...] = Field(min_length=1, max_length=8)
    single_administrator: bool


class ServiceStarted(Event):
    type = "service.started"
    version: str
    code: Digest
    layers: dict[str, bool]


class ServiceStopped(Event):
    type = "service.stopped"
    reason: str


class Heartbeat(Event):
    type = "heartbeat"


class SessionOpened(Event):
    type = "session.opened"
    documents = ("session",)

    @property
    def actor(self) -> str | None:
        return None


class AuthRefused(Event):
    """Unauthenticated attempts, counted, so that a flood is one entry a minute."""

    type = "auth.refused"
    outcomes = ("denied",)
    count: int = Field(ge=1)
    since: Time


class OrderRefused(Event):
    """`withheld`: a canonical array of those of the order's commitments whose texts do not travel beside the log."""

    type = "order.refused"
    documents = ("order",)
    optional = ("withheld",)
    outcomes = ("denied",)
    order: Digest
    verb: str
    reasons: tuple[str, ...] = Field(min_length=1)

    @property
    def actor(self) -> str | None:
        return None

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}",)


class OrderPending(Ordered):
    type = "order.pending"
    optional = ("possession", "policy")
    outcomes = ("pending",)


class PrincipalEnrolled(Endorsed):
    type = "principal.enrolled"
    documents = ("order", "possession")


class RoleGranted(Endorsed):
    type = "principal.granted"


class PrincipalRevoked(Ordered):
    type = "principal.revoked"


class KeyEnrolled(Endorsed):
    """`order` is the person's own `rotate-key`, or endorses the `replace-key` in `endorsed`."""

    type = "key.enrolled"
    documents = ("order", "possession")


class KeyRevoked(Ordered):
    type = "key.revoked"


class TokensRevoked(Ordered):
    type = "tokens.revoked"


class LogKeyRotated(Endorsed):
    """From here on the log's checkpoints are signed by the key that the order names."""

    type = "log-key.rotated"


class TextErased(Endorsed):
    """With this entry the text behind the order's commitment was removed."""

    type = "text.erased"


class HoldPlaced(Ordered):
    type = "hold.placed"


class HoldLifted(Endorsed):
    type = "hold.lifted"


class CheckpointCosigned(Event):
    """A witness saw the log grow to `size`; `note` is the checkpoint with its line, `proof` (RFC 6962, base64) that the
    log up to this entry begins with what it saw."""

    type = "checkpoint.cosigned"
    documents = ("note",)
    witness: str = Field(max_length=200)
    size: int = Field(ge=1)
    time: Time
    proof: tuple[Base64, ...] = Field(max_length=63)

    def about(self) -> tuple[str, ...]:
        return (f"witness:{self.witness}",)


class PolicyAdopted(Endorsed):
    type = "policy.adopted"
    documents = ("order", "policy")
