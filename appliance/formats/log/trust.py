"""The trust file, which an auditor keeps elsewhere and from which every verification starts.

It identifies one log by its key and its first entry, and lists its first administrators. The format is canonical JSON
and a newline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.digest import parse_digest
from appliance.formats.core.fields import parse_constant, parse_identifier, parse_list, parse_object, parse_text, show
from appliance.formats.log.note import is_post_quantum, parse_vkey

VERSION = 1
_MEMBERS = frozenset({"administrators", "genesis", "logKey", "origin", "version"})
_SECOND_KEY = frozenset({"postQuantumLogKey"})


@dataclass(frozen=True, slots=True)
class Trust:
    """The trust anchor of one log.

    `log_key` is a vkey whose name is the origin, and `genesis` is the leaf hash of entry 0 as a digest.
    `post_quantum_log_key` is a second vkey, of ML-DSA-65, if the log has one. `administrators` are (principal, key id)
    pairs; names and keys are unique.
    """

    origin: str
    log_key: str
    genesis: str
    administrators: tuple[tuple[str, str], ...]
    post_quantum_log_key: str | None = None

    @property
    def log_keys(self) -> tuple[str, ...]:
        """Return the vkeys that must sign a checkpoint; the one that is not ML-DSA-65 is the last."""
        second = self.post_quantum_log_key
        return (self.log_key,) if second is None else (second, self.log_key)

    def __post_init__(self) -> None:
        try:
            names = {parse_vkey(vkey).name for vkey in self.log_keys}
            kinds = [is_post_quantum(vkey) for vkey in self.log_keys]
        except BadInput as error:
            raise BadInput(
                f"the trust file's log key line was changed: its key id does not fit its key ({error.message}): "
                "use the trust file as `appliance init` printed it"
            ) from None
        if names != {self.origin}:
            raise BadInput(
                "the trust file's origin line or log key line was changed: "
                f"expected the key of {show(self.origin)}, got {show(*(names - {self.origin}))}"
            )
        if kinds != [True, False][-len(kinds) :]:
            raise BadInput("trust file, keys: expected one of ML-DSA-65 as postQuantumLogKey only, got another kind")
        parse_digest(self.genesis, "trust file, genesis")
        if not self.administrators:
            raise BadInput("trust file, administrators: expected at least one, got none")
        for principal, keyid in self.administrators:
            parse_identifier(principal, "trust file, administrator")
            parse_digest(keyid, f"trust file, key id of {principal}")
        for column in zip(*self.administrators, strict=True):
            if len(set(column)) != len(column):
                raise BadInput(f"trust file, administrators: expected each name and key once, got {show(column)}")


def encode_trust(trust: Trust) -> bytes:
    """Encode the trust file."""
    value: dict[str, Any] = {
        "administrators": [{"keyid": keyid, "name": name} for name, keyid in trust.administrators],
        "genesis": trust.genesis,
        "logKey": trust.log_key,
        "origin": trust.origin,
        "version": VERSION,
    }
    if trust.post_quantum_log_key is not None:
        value["postQuantumLogKey"] = trust.post_quantum_log_key
    return encode_canonical(value) + b"\n"


def parse_trust(data: bytes) -> Trust:
    """Parse a trust file."""
    if not data.endswith(b"\n"):
        raise BadInput("trust file, end: expected a newline, got none")
    found = parse_canonical(data[:-1])
    second = _SECOND_KEY & found.keys() if isinstance(found, dict) else _SECOND_KEY
    value = parse_object(found, "trust file", _MEMBERS | second)
    parse_constant(value["version"], "trust file, version", VERSION)
    return Trust(
        origin=parse_text(value["origin"], "trust file, origin"),
        log_key=parse_text(value["logKey"], "trust file, logKey"),
        genesis=parse_text(value["genesis"], "trust file, genesis"),
        administrators=tuple(
            _parse_administrator(item) for item in parse_list(value["administrators"], "trust file, administrators")
        ),
        post_quantum_log_key=parse_text(value["postQuantumLogKey"], "trust file, postQuantumLogKey")
        if second
        else None,
    )


def _parse_administrator(value: object) -> tuple[str, str]:
    member = parse_object(value, "trust file, administrator", frozenset({"keyid", "name"}))
    name = parse_text(member["name"], "trust file, administrator")
    return name, parse_text(member["keyid"], f"trust file, key id of {show(name)}")
