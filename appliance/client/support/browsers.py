"""A session of its own for a browser, handed over by a link."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.client.support.agent import make_folder, runtime_folder
from appliance.client.support.door import Door
from appliance.client.support.files import replace_private
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


def write_page(link: Link) -> Path:
    """A page that leads to the link, in a file of the person's own. The arguments of a browser's process can be read by
    every account of the machine."""
    make_folder(folder := runtime_folder())
    path = folder / "console.html"
    page = f'<!doctype html><meta http-equiv="refresh" content="0;url={link.url}"><a href="{link.url}">{link.url}</a>\n'
    replace_private(path, page.encode("utf-8"), "page for the browser")
    return path


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
