"""What the service calls a link is an address, before a browser's command gets it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from appliance.client.support.browsers import Link, open_link
from appliance.errors import Unavailable

CODE = "/sign-in/" + "a" * 43


def opened(answer: object) -> Link:
    door: Any = SimpleNamespace(bearer=None, post=lambda path, body: answer)
    session: Any = SimpleNamespace(open_another=lambda: SimpleNamespace(token="t"))
    return open_link(door, session)


@pytest.mark.parametrize("place", ["http://localhost:8330", "https://desk.example", "https://10.0.0.1:8330"])
def test_an_address_of_a_console_is_opened(place: str) -> None:
    assert opened({"url": place + CODE, "seconds": 60}) == Link(place + CODE, 60)


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
        opened({"url": url, "seconds": 60})


@pytest.mark.parametrize("answer", [None, [], {}, {"url": 1}, {"url": "http://localhost" + CODE, "seconds": "x"}])
def test_an_answer_without_a_link_is_named(answer: object) -> None:
    with pytest.raises(Unavailable, match="expected a link"):
        opened(answer)
