"""The service's link is checked to be an address before a browser's command receives it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from appliance.api.people import ConsoleLink
from appliance.client.support.browsers import open_link
from appliance.errors import Unavailable

CODE = "/sign-in/" + "a" * 43


def opened(url: str) -> ConsoleLink:
    link = ConsoleLink(url=url, seconds=60)
    connection: Any = SimpleNamespace(bearer=None, post=lambda path, model, body: link)
    session: Any = SimpleNamespace(open_another=lambda: SimpleNamespace(token="t"))
    return open_link(connection, session)


@pytest.mark.parametrize("place", ["http://localhost:8330", "https://desk.example", "https://10.0.0.1:8330"])
def test_an_address_of_a_console_is_opened(place: str) -> None:
    assert opened(place + CODE).url == place + CODE


@pytest.mark.parametrize(
    "url",
    [
        "--utility-cmd-prefix=sh -c id",
        "-P",
        f"file:///etc/passwd#{CODE}",
        f"javascript:alert(1)//{CODE}",
        f"smb://evil.example{CODE}",
        f"http://localhost:8330{CODE}\n--x",
        f"http://localhost:8330{CODE} --x",
        f"http://anna@evil.example{CODE}",
        f"http://\u202elocalhost{CODE}",
        "http://localhost:8330/home",
        "",
    ],
)
def test_what_is_no_address_of_a_console_reaches_no_browser(url: str) -> None:
    """A service that was taken over would run a program on the machine of who signs in."""
    with pytest.raises(Unavailable, match="expected a link"):
        opened(url)
