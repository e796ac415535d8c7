"""The addresses where the service listens, and what each asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from appliance.config.parsing import is_loopback, parse_listen
from appliance.config.values import Certificate, Console, Operations, People
from appliance.errors import BadInput

_URL = re.compile(r"(https?)://([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::([1-9][0-9]{0,4}))?")


def read_certificate(values: Mapping[str, str], place: Path) -> Certificate | None:
    chain, key, client_ca = (values.get(name) for name in ("certificate", "certificate_key", "client_ca"))
    if chain is None and key is None and client_ca is None:
        return None
    if chain is None or key is None:
        raise BadInput("settings, certificate: expected certificate and certificate_key, got one without the other")
    return Certificate(place / chain, place / key, None if client_ca is None else place / client_ca)


def read_people(values: Mapping[str, str], place: Path, certificate: Certificate | None) -> People | None:
    listen, ca = parse_listen(values["people"]), values.get("people_client_ca")
    if listen is None:
        return None
    if ca is None:
        return People(listen, None)
    if certificate is None:
        raise BadInput("settings, people_client_ca: expected certificate and certificate_key beside it, got neither")
    return People(listen, place / ca)


def read_console(values: Mapping[str, str], place: Path, certificate: Certificate | None) -> Console | None:
    """Passkeys take no IP address, so without TLS browsers use localhost, and under it the host's name."""
    listen, url, ca = parse_listen(values["console"]), values.get("console_url"), values.get("people_client_ca")
    if listen is None:
        return None
    scheme = "http" if certificate is None else "https"
    if url is None:
        if certificate is not None or not is_loopback(listen[0]):
            example = f"{scheme}://appliance.example:{listen[1]}"
            raise BadInput(f"settings, console: expected console_url beside it, such as {example}, got none")
        url = f"http://localhost:{listen[1]}"
    found = _URL.fullmatch(url)
    # Behind a proxy that ends TLS, browsers say https though the listener has no certificate.
    if found is None or (found[1] == "http" and (certificate is not None or not is_loopback(found[2]))):
        expected = "https://NAME:PORT in lower case without a path, or http://localhost:PORT without TLS"
        raise BadInput(f"settings, console_url: expected {expected}, got {url!r}")
    return Console(listen, url, None if ca is None or certificate is None else place / ca)


def read_operations(values: Mapping[str, str], place: Path) -> Operations | None:
    listen, token = parse_listen(values["operations"]), values.get("operations_token")
    if listen is None:
        return None
    if token is None:
        raise BadInput(
            "settings, operations: expected operations_token too, because the metrics need a token, got none"
        )
    return Operations(listen, place / token)


def check_plaintext(accepted: str | None, listen: tuple[str, int] | None, certificate: Certificate | None) -> None:
    """Tokens and prompts do not cross a network in the clear unless somebody wrote that they may."""
    if accepted not in (None, "accepted"):
        raise BadInput(f'settings, plaintext: expected "accepted" or nothing, got {accepted!r}')
    if listen is not None and certificate is None and accepted is None and not is_loopback(listen[0]):
        raise BadInput(
            f"settings, listen {listen[0]}: expected loopback, or certificate and certificate_key, "
            'or plaintext = "accepted", got an address on a network, without TLS'
        )
