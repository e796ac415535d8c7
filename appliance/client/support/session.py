"""A reading session: opened by signing the service's challenge, its token kept 0600 until it expires.

Everything a person orders is signed by itself; the session only lets a person read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.client.support.door import Door
from appliance.client.support.files import read_private, replace_private
from appliance.errors import ApplianceError, NotAuthenticated, Unavailable
from appliance.formats.core.fields import encode_base64
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import Envelope
from appliance.formats.signatures.keys import Signer

MARGIN_S = 20
"""A token that ends within so many seconds is not used any more."""

_MAX_CACHE_BYTES = 16_384


@dataclass(frozen=True)
class Opened:
    """What the service granted."""

    token: str
    principal: str
    roles: tuple[str, ...]
    expires_at: str

    def stands(self, now: str) -> bool:
        return self.expires_at > now


@dataclass(frozen=True)
class Ended:
    """How a session was ended. `ends_at`: the service could not be told, and lets it end by itself then."""

    was_open: bool
    ends_at: str | None = None


class SavedSession:
    """The token of one person at one door. `unlock` gives the person's key, and asks for the passphrase if it must.
    `agent` signs the statement instead where one holds the key; None where it does not."""

    def __init__(
        self,
        door: Door,
        name: str,
        unlock: Callable[[], Signer],
        agent: Callable[[bytes], Envelope | None] = lambda _: None,
    ) -> None:
        self.door = door
        self.name = name
        self._unlock = unlock
        self._agent = agent
        self._opened: Opened | None = None

    @property
    def granted(self) -> Opened | None:
        """The session that this command has used; None while it has used none."""
        return self._opened

    def token(self, *, renew: bool) -> str:
        return self.opened(renew=renew).token

    def opened(self, *, renew: bool = False) -> Opened:
        """The session that stands: in memory, in the cache, or opened now with the unlocked key."""
        limit = _now(MARGIN_S)
        if not renew:
            self._opened = self._opened or _load(self._cache)
            if self._opened is not None and self._opened.stands(limit):
                return self._opened
        self._opened = _open(self.door, self.name, self._sign)
        replace_private(self._cache, json.dumps(asdict(self._opened)).encode("utf-8"), "session")
        return self._opened

    def open_another(self) -> Opened:
        """One more, which is neither kept here nor used by this command."""
        return _open(self.door, self.name, self._sign)

    def _sign(self, payload: bytes) -> Envelope:
        from appliance.formats.signatures.dsse import sign_envelope

        return self._agent(payload) or sign_envelope(payload, self._unlock())

    def end(self) -> Ended:
        """Forgets the token, and ends the session at the service where one answers; no service is started for it."""
        kept = _load(self._cache)
        self._opened = None
        try:
            self._cache.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"session, {self._cache}: expected to remove it, got {error.strerror}") from None
        if kept is None or not kept.stands(_now(0)):
            return Ended(was_open=False)
        try:
            self.door.end_session(kept.token)
        except NotAuthenticated:
            return Ended(was_open=False)
        except Unavailable:
            return Ended(was_open=True, ends_at=kept.expires_at)
        return Ended(was_open=True)

    @property
    def _cache(self) -> Path:
        place = hashlib.sha256(str(self.door.where).encode("utf-8")).hexdigest()[:16]
        return state_folder() / "sessions" / f"{place}-{self.name}.json"


def state_folder() -> Path:
    """Where this person's own state lies: never in the service's data folder, which another account may own."""
    named = os.environ.get("XDG_STATE_HOME", "")
    base = Path(named) if named.startswith("/") else Path.home() / ".local" / "state"
    return base / "appliance"


def _open(door: Door, name: str, sign: Callable[[bytes], Envelope]) -> Opened:
    from appliance.domain.core.credentials import SessionStatement as Statement
    from appliance.domain.core.credentials import encode_credential
    from appliance.domain.core.names import add_seconds

    about = door.about
    challenge = door.post("/v1/sessions/challenge", {}, reading=False)
    issued = _now(0)
    statement = Statement(
        origin=about.origin,
        signer=name,
        nonce=challenge["nonce"],
        issued_at=issued,
        expires_at=add_seconds(issued, int(about.parameters["session_lifetime_s"])),
    )
    envelope = sign(encode_credential(statement))
    try:
        answer = door.post("/v1/sessions", {"envelope": envelope_value(envelope)}, reading=False)
    except NotAuthenticated as error:
        raise NotAuthenticated(
            f"{error.message}; compare the key ids of: appliance key show FILE, and: appliance principal list"
        ) from None
    try:
        return Opened(answer["token"], answer["principal"], tuple(answer["roles"]), answer["expires_at"])
    except (KeyError, TypeError) as error:
        raise Unavailable(f"service, session: expected a token, got an answer without {error.args[0]}") from None


def envelope_value(envelope: Envelope) -> dict[str, object]:
    """An envelope as the JSON object that the API takes."""
    signature = envelope.signature
    return {
        "payload": encode_base64(envelope.payload),
        "payloadType": envelope.payload_type,
        "signatures": [{"keyid": signature.keyid, "sig": encode_base64(signature.sig)}],
    }


def _load(path: Path) -> Opened | None:
    """A cached session; whatever is not exactly one, or could be read by others, counts as none."""
    try:
        value = json.loads(read_private(path, "session", _MAX_CACHE_BYTES))
        return Opened(str(value["token"]), str(value["principal"]), tuple(value["roles"]), str(value["expires_at"]))
    except (ApplianceError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _now(lead_s: int) -> str:
    return encode_time(datetime.fromtimestamp(datetime.now(UTC).timestamp() + lead_s, UTC))
