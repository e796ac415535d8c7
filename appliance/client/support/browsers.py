"""A session of its own for a browser, handed over by a link."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from appliance.client.support.door import Door
from appliance.client.support.session import Opened, SavedSession
from appliance.errors import ApplianceError, Unavailable
from appliance.formats.core.fields import show

_ADDRESS = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9.-]{0,252}(:[0-9]{1,5})?/sign-in/[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class Link:
    """Where a browser takes over the session, once and within so many seconds."""

    url: str
    seconds: int


def open_link(door: Door, session: SavedSession) -> Link:
    """Opens a session that is not kept here, and hands it over; one that could not be handed over is ended."""
    opened = session.open_another()
    door.bearer = _Bearer(opened)
    try:
        answer = door.post("/v1/console/links", {})
    except ApplianceError:
        with suppress(ApplianceError):
            door.end_session(opened.token)
        raise
    return _parse_link(answer)


def _parse_link(answer: Any) -> Link:
    """Of a service that may be another's: what a browser's command is given is an address and no option, no file."""
    try:
        link = Link(str(answer["url"]), int(answer["seconds"]))
    except (KeyError, TypeError, ValueError):
        link = Link("", 0)
    if _ADDRESS.fullmatch(link.url) is None:
        raise Unavailable(f"service, console: expected a link, got {show(answer)}")
    return link


@dataclass(frozen=True)
class _Bearer:
    opened: Opened

    def token(self, *, renew: bool) -> str:
        return self.opened.token
