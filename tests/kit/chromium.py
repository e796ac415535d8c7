"""Chromium before a console of the test's own, with authenticators that its DevTools make."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.kit.ports import free_port
from tests.kit.console import Console, console, listening
from tests.kit.founded import Template

TIMEOUT_MS = 120_000
"""Milliseconds that an event may take on a machine that does other work, too."""
PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"


@contextmanager
def served(stage: str | Template, home: Path) -> Iterator[Console]:
    """Serve the console at that stage, on a real port."""
    port = free_port()
    with console(stage, home, f"http://localhost:{port}") as made, listening(made, port):
        yield made


@dataclass
class Tab:
    """A page of a browser, and what its console and network said."""

    page: Any
    devtools: Any
    errors: list[str]
    hosts: set[str]

    def authenticator(self, **options: Any) -> str:
        """Add a virtual authenticator, as a laptop has one. Return its id."""
        defaults = {
            "protocol": "ctap2",
            "transport": "internal",
            "hasResidentKey": True,
            "hasUserVerification": True,
            "isUserVerified": True,
            "automaticPresenceSimulation": True,
        }
        made = self.devtools.send("WebAuthn.addVirtualAuthenticator", {"options": defaults | options})
        return str(made["authenticatorId"])

    def set_verified(self, authenticator: str, *, verified: bool) -> None:
        """Whether the authenticator knows its user from now on."""
        self.devtools.send("WebAuthn.setUserVerified", {"authenticatorId": authenticator, "isUserVerified": verified})

    def module(self) -> str:
        """Return the address of the page's signing script."""
        return str(self.page.locator('script[type="module"]').get_attribute("src"))


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium, headless; skipped where it is not there."""
    playwright = pytest.importorskip("playwright.sync_api", reason="scripts/setup --browser installs it")
    if not Path(PROGRAM).exists():
        pytest.skip(f"expected Chromium at {PROGRAM}, such as Debian's package chromium")
    with playwright.sync_playwright() as started:
        # The tests' own pages alone are opened, and root has no sandbox of Chromium's.
        launched = started.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        try:
            yield launched
        finally:
            launched.close()


def open_tab(launched: Any, url: str, context: Any = None) -> Tab:
    """With a cookie jar of its own, unless it shares one's."""
    made = context or launched.new_context(base_url=url)
    page = made.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    devtools = made.new_cdp_session(page)
    devtools.send("WebAuthn.enable")
    tab = Tab(page, devtools, [], set())
    page.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: tab.errors.append(str(error)))
    page.on("request", lambda request: tab.hosts.add(request.url.split("/")[2]))
    return tab
