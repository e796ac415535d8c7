"""Values that several settings have in common; BadInput says which setting, what was expected and what it got."""

from __future__ import annotations

import ipaddress

from appliance.errors import BadInput


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_listen(text: str) -> tuple[str, int] | None:
    if text == "off":
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise BadInput(f"settings, listen: expected HOST:PORT or off, got {text!r}")
    return host.strip("[]"), int(port)


def parse_number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65_535):
        raise BadInput(f"settings, {name}: expected a whole number from 1 to 65535, got {text!r}")
    return int(text)


def parse_mib(text: str, name: str) -> int:
    """In bytes; 0 is none."""
    if not (text.isascii() and text.isdigit() and int(text) <= 1 << 20):
        raise BadInput(f"settings, {name}: expected a whole number of MiB from 0 to 1048576, got {text!r:.40}")
    return int(text) << 20


def parse_minutes(text: str, what: str) -> float | None:
    """In seconds."""
    return None if text == "off" else parse_some_minutes(text, what, " or off")


def parse_some_minutes(text: str, what: str, or_else: str = "") -> float:
    """In seconds."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 100_000:
        raise BadInput(f"settings, {what}: expected minutes above 0{or_else}, got {text!r}")
    return minutes * 60
