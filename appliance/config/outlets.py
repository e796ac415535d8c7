"""Where the service sends what is no answer: notices and traces."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from appliance.config.parsing import is_loopback, parse_listen, parse_some_minutes
from appliance.config.values import Mail, Notices
from appliance.errors import BadInput

_COLLECTOR = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[A-Za-z0-9.-]+)(?::[1-9][0-9]{0,4})?")
_ADDRESS = re.compile(r"[A-Za-z0-9._+{}-]{1,64}@[A-Za-z0-9.{}-]{1,190}")


def read_notices(values: Mapping[str, str]) -> Notices | None:
    """Off unless a program or a mail server is named."""
    command, server = values.get("notice_command"), parse_listen(values["notice_smtp"])
    every_s = parse_some_minutes(values["notice_minutes"], "notice_minutes")
    mail = None
    if server is not None:
        if not is_loopback(server[0]) and values.get("plaintext") != "accepted":
            expected = 'a server on loopback, or plaintext = "accepted", since names of people are in a notice'
            raise BadInput(f"settings, notice_smtp: expected {expected}, got {server[0]}")
        mail = Mail(server, *(_address(values, name) for name in ("notice_from", "notice_to")))
        if mail.to.count("{person}") != 1 or "{person}" in mail.sender:
            raise BadInput(
                f"settings, notice_to: expected an address with {{person}} once, such as {{person}}@bank.example, "
                f"got {mail.to!r:.80}"
            )
    if command is None:
        return None if mail is None else Notices(None, mail, every_s)
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise BadInput(f"settings, notice_command: expected a program and its words, got {error}") from None
    if not words or not Path(words[0]).is_absolute():
        raise BadInput(f"settings, notice_command: expected the whole path of a program, got {command!r:.80}")
    return Notices(words, mail, every_s)


def _address(values: Mapping[str, str], name: str) -> str:
    text = values.get(name)
    if text is None or not _ADDRESS.fullmatch(text):
        raise BadInput(f"settings, {name}: expected an address beside notice_smtp, got {text!r:.80}")
    return text


def read_traces(value: str) -> str | None:
    """Names of units and adapters cross a network under TLS alone."""
    if value == "off":
        return None
    found = _COLLECTOR.fullmatch(value.removesuffix("/"))
    if found is None or (found[1] == "http" and not is_loopback(found[2].strip("[]"))):
        expected = "https://HOST:PORT without a path, or http://127.0.0.1:4318 on this machine"
        raise BadInput(f"settings, traces: expected {expected}, or off, got {value!r}")
    return found[0]
