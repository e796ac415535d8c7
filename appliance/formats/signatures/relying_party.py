"""Where a passkey signs: the relying party's id and the exact origins, which its enrolment binds for ever."""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.errors import BadInput
from appliance.formats.core.fields import show

LOCALHOST = "localhost"
MAX_ORIGINS = 8
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# The last label begins with a letter: browsers read a host that ends in a number as an IP address.
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)*[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")
_ORIGIN = re.compile(r"(https?)://([a-z0-9.-]{1,253})(?::([1-9][0-9]{0,4}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_DOMAIN_CHARACTERS = 253


@dataclass(frozen=True, slots=True)
class PasskeyScope:
    """What an assertion must name to count. `origins` are as browsers write them: scheme, host, and the port where it
    is not the scheme's own; sorted, each once. `backup_eligible`: the key can be copied, such as to a cloud."""

    rp_id: str
    origins: tuple[str, ...]
    backup_eligible: bool

    def __post_init__(self) -> None:
        parse_rp_id(self.rp_id)
        if not 1 <= len(self.origins) <= MAX_ORIGINS:
            raise BadInput(f"passkey, origins: expected 1 to {MAX_ORIGINS}, got {len(self.origins)}")
        if list(self.origins) != sorted(set(self.origins)):
            raise BadInput(f"passkey, origins: expected them sorted, each once, got {show(list(self.origins))}")
        for origin in self.origins:
            parse_origin(origin, self.rp_id)

    @property
    def is_local(self) -> bool:
        """Whether every user of the machine can listen where this passkey signs."""
        return self.rp_id == LOCALHOST or self.rp_id.endswith(f".{LOCALHOST}")  # browsers resolve both to loopback


def parse_rp_id(text: str) -> str:
    """A domain in lower case, or `localhost`. Never an IP address: browsers take none."""
    if len(text) > _MAX_DOMAIN_CHARACTERS or _DOMAIN.fullmatch(text) is None:
        raise BadInput(f"passkey, rp id: expected a domain name in lower case, no IP address, got {show(text)}")
    return text


def parse_origin(text: str, rp_id: str) -> str:
    """An origin at which a browser uses passkeys of this relying party: its domain or one below it over https, or
    `localhost` over http."""
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise BadInput(
            f"passkey, origin: expected https://HOST or https://HOST:PORT, as the browser writes it, got {show(text)}"
        )
    scheme, host, port = match[1], match[2], match[3]
    if host != rp_id and not host.endswith(f".{rp_id}"):
        raise BadInput(f"passkey, origin: expected a host that is {rp_id} or below it, got {show(text)}")
    if _DOMAIN.fullmatch(host) is None:
        raise BadInput(f"passkey, origin: expected a domain name in lower case, no IP address, got {show(text)}")
    if scheme == "http" and host != LOCALHOST:
        raise BadInput(f"passkey, origin: expected https, since it is not {LOCALHOST}, got {show(text)}")
    if port is not None and (int(port) > 65_535 or int(port) == _DEFAULT_PORTS[scheme]):
        raise BadInput(
            f"passkey, origin: expected a port that {scheme} does not imply, 65535 at most, got {show(text)}"
        )
    return text
