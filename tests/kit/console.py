"""The console in this process, over a founded ledger of the test's own: a browser's requests in, answers out."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import httpx
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from uvicorn.lifespan.off import LifespanOff

from appliance.web.console.app import console_app
from appliance.web.console.core.events import Changes
from appliance.web.core.auth import Doorkeeper
from appliance.web.core.server import Door, _server
from appliance.web.core.sockets import listen, open_tcp
from appliance.web.operations.limits import Limits
from appliance.workflows.core.context import Context
from tests.kit.answering import Answers
from tests.kit.founded import FoundedSite, context_of, template
from tests.kit.signed_session import sign_session

URL = "http://localhost:8330"
FROM_HERE = {"Sec-Fetch-Site": "same-origin", "Origin": "null"}
"""What a browser says of a form that a page of the console sent, under `no-referrer`."""


@dataclass
class Browser:
    """One browser. `get` and `post` follow no redirect; its cookie is kept as a browser keeps it."""

    app: ASGIApp
    url: str = URL
    http: TestClient = field(init=False)

    def __post_init__(self) -> None:
        self.http = TestClient(self.app, base_url=self.url, raise_server_exceptions=False, follow_redirects=False)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(path, headers=headers)

    def post(self, path: str, fields: dict[str, str] | None = None, **headers: str) -> httpx.Response:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.http.post(path, content=urlencode(fields or {}), headers={**kind, **FROM_HERE, **headers})

    @property
    def secret(self) -> str:
        """Its session's cookie."""
        return self.http.cookies["appliance-8330"]

    def take(self, secret: str) -> None:
        """Another's cookie, or a made-up one."""
        self.http.cookies.set("appliance-8330", secret)

    @property
    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', self.get("/home").text)
        assert found is not None
        return found[1]


@dataclass
class Console:
    context: Context
    site: FoundedSite
    door: Doorkeeper
    changes: Changes
    app: ASGIApp
    answers: Answers
    url: str = URL

    def browser(self) -> Browser:
        """One without a session."""
        return Browser(self.app, self.url)

    def token(self, name: str, seconds: int = 600) -> str:
        """A program's session, as the command line opens it."""
        envelope = sign_session(self.door, name, self.site.keys[name], seconds)
        return self.door.open_session(envelope, "unix:0")[0]

    def link(self, name: str) -> str:
        """The path of a one-time link."""
        return f"/sign-in/{self.door.link(f'Bearer {self.token(name)}')}"

    def signed_in(self, name: str) -> Browser:
        browser = self.browser()
        answer = browser.post(self.link(name))
        assert answer.status_code == 303, answer.text
        return browser


@contextmanager
def console(stage: str, home: Path, url: str = URL, limits: Limits | None = None) -> Iterator[Console]:
    """A console over a log at that stage of the journey, in a home that is empty yet."""
    made = template(stage)
    made.copy(home)
    with context_of(home) as context:
        door, changes = Doorkeeper(context), Changes()
        context.appended = lambda entry, body: changes.note(entry.type)
        answers = Answers(context, limits)
        app = console_app(context, door, url, changes, answers.asks)
        yield Console(context, made.site(home, context.ledger), door, changes, app, answers, url)


@contextmanager
def listening(desk: Console, port: int) -> Iterator[None]:
    """The console on a real socket of this machine, by the service's own server."""
    sockets = listen(open_tcp(("127.0.0.1", port), "console"), "console")
    server = _server(Door(desk.app, sockets))
    server.lifespan = LifespanOff(server.config)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="console", daemon=True)
    thread.start()

    async def end() -> None:
        for opened in server.servers:
            opened.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()

    asyncio.run_coroutine_threadsafe(server.startup([sockets]), loop).result(10)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
        sockets.close()
