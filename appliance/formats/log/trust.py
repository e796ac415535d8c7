"""The trust file: what an auditor keeps elsewhere, and what every verification starts from.

It names one log by its key and by its first entry, and the administrators at its beginning. Canonical JSON and a
newline.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.digest import parse_digest
from appliance.formats.core.fields import parse_constant, parse_identifier, parse_list, parse_object, parse_text, show
from appliance.formats.log.note import parse_vkey

VERSION = 1
_MEMBERS = frozenset({"administrators", "genesis", "logKey", "origin", "version"})


@dataclass(frozen=True, slots=True)
class Trust:
    """`log_key` is a vkey named as the origin; `genesis` the leaf hash of entry 0 as a digest; `administrators` are
    (principal, key id) pairs, no name and no key twice."""

    origin: str
    log_key: str
    genesis: str
    administrators: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        try:
            name = parse_vkey(self.log_key).name
        except BadInput as error:
            raise BadInput(
                f"the trust file's log key line was changed: its key id does not fit its key ({error.message}): "
                "use the trust file as `appliance init` printed it"
            ) from None
        if name != self.origin:
            raise BadInput(
                "the trust file's origin line or log key line was changed: "
                f"expected the key of {show(self.origin)}, got {show(name)}"
            )
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
    value = {
        "administrators": [{"keyid": keyid, "name": name} for name, keyid in trust.administrators],
        "genesis": trust.genesis,
        "logKey": trust.log_key,
        "origin": trust.origin,
        "version": VERSION,
    }
    return encode_canonical(value) + b"\n"


def parse_trust(data: bytes) -> Trust:
    if not data.endswith(b"\n"):
        raise BadInput("trust file, end: expected a newline, got none")
    value = parse_object(parse_canonical(data[:-1]), "trust file", _MEMBERS)
    parse_constant(value["version"], "trust file, version", VERSION)
    return Trust(
        origin=parse_text(value["origin"], "trust file, origin"),
        log_key=parse_text(value["logKey"], "trust file, logKey"),
        genesis=parse_text(value["genesis"], "trust file, genesis"),
        administrators=tuple(
            _parse_administrator(item) for item in parse_list(value["administrators"], "trust file, administrators")
        ),
    )


def _parse_administrator(value: object) -> tuple[str, str]:
    member = parse_object(value, "trust file, administrator", frozenset({"keyid", "name"}))
    name = parse_text(member["name"], "trust file, administrator")
    return name, parse_text(member["keyid"], f"trust file, key id of {show(name)}")
