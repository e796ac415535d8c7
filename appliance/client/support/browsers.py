"""A separate session for a browser, which takes it over by a link."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.api.people import ConsoleAddress, ConsoleLink, EmptyBody, OpenedSession
from appliance.client.support.agent import make_folder, runtime_folder
from appliance.client.support.connection import Connection
from appliance.client.support.files import replace_private
from appliance.client.support.session import SavedSession
from appliance.errors import ApplianceError, Unavailable
from appliance.formats.core.fields import show

_SITE = r"https?://[A-Za-z0-9][A-Za-z0-9.-]{0,252}(:[0-9]{1,5})?"
_ADDRESS = re.compile(rf"{_SITE}/sign-in/[A-Za-z0-9_-]{{43}}")


def find_console(connection: Connection) -> str:
    """Return the address of the console, as the service reports it."""
    url = connection.get("/v1/console", ConsoleAddress).url
    if re.fullmatch(_SITE, url) is None:
        raise Unavailable(f"service, console: expected an address, got {show(url)}")
    return url


def open_link(connection: Connection, session: SavedSession) -> ConsoleLink:
    """Open a session that this command does not save, and return its link.

    If there is no link, the session is ended.
    """
    opened = session.open_another()
    connection.bearer = _Bearer(opened)
    try:
        link = connection.post("/v1/console/links", ConsoleLink, EmptyBody())
    except ApplianceError:
        with suppress(ApplianceError):
            connection.end_session(opened.token)
        raise
    # The service may be forged, and the browser's command gets the link: an option or a file is not accepted.
    if _ADDRESS.fullmatch(link.url) is None:
        raise Unavailable(f"service, console: expected a link, got {show(link.url)}")
    return link


def write_page(link: ConsoleLink) -> Path:
    """Write a page that leads to the link, in a private file.

    The link is not passed to the browser as an argument, since every account of the machine can read arguments.
    """
    make_folder(folder := runtime_folder())
    path = folder / "console.html"
    page = f'<!doctype html><meta http-equiv="refresh" content="0;url={link.url}"><a href="{link.url}">{link.url}</a>\n'
    replace_private(path, page.encode("utf-8"), "page for the browser")
    return path


@dataclass(frozen=True)
class _Bearer:
    opened: OpenedSession

    def token(self, *, renew: bool) -> str:
        return self.opened.token
