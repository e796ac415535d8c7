"""The console in this process, over a founded ledger of the test's own: a browser's requests in, answers out."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from urllib.parse import urlencode

import httpx
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from uvicorn.lifespan.off import LifespanOff

from appliance.domain.core.entry import Entry
from appliance.web.console.app import console_app
from appliance.web.console.core.events import RecentEntries
from appliance.web.core.auth import CallerAuthenticator
from appliance.web.core.server import Listener, _server
from appliance.web.core.sockets import listen, open_tcp
from appliance.web.operations.limits import UnitLimits
from appliance.workflows.core.context import Context
from tests.kit.answering import Answers
from tests.kit.founded import FoundedSite, Template, context_of, template
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

    def fill(self, action: str, fields: dict[str, str]) -> httpx.Response:
        """Return the page to which a filled form of an order leads."""
        answer = self.post(f"/sign/{action}", {"csrf": self.csrf, **fields})
        return self.get(answer.headers["location"]) if answer.status_code == 303 else answer

    def filled(self, path: str) -> dict[str, str]:
        """Return the values of the form at this address, by field."""
        name, mark, query = path.partition("?")
        answer = self.get(f"{name}.json{mark}{query}")
        assert answer.status_code == 200, answer.text
        return {one["name"]: one["value"] for one in answer.json()["fields"]}

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
    authenticator: CallerAuthenticator
    changes: RecentEntries
    app: ASGIApp
    answers: Answers
    url: str = URL

    def note(self, kind: str, *subjects: str) -> None:
        """Report an entry of this type to the open pages, as the service's own appends do."""
        self.changes.note(Entry.model_construct(type=kind, actor="service", subjects=subjects))

    def browser(self) -> Browser:
        """One without a session."""
        return Browser(self.app, self.url)

    def token(self, name: str, seconds: int = 600) -> str:
        """Open a program's session, as the command line does, and return its token."""
        envelope = sign_session(self.authenticator, name, self.site.keys[name], seconds)
        return self.authenticator.open_session(envelope, "unix:0")[0]

    def link(self, name: str) -> str:
        """Return the path of a one-time link."""
        return f"/sign-in/{self.authenticator.link(f'Bearer {self.token(name)}')}"

    def signed_in(self, name: str) -> Browser:
        browser = self.browser()
        answer = browser.post(self.link(name))
        assert answer.status_code == 303, answer.text
        return browser


@contextmanager
def console(stage: str | Template, home: Path, url: str = URL, limits: UnitLimits | None = None) -> Iterator[Console]:
    """Open a console over a log at that stage of the journey, or of that template, in an empty home."""
    made = template(stage) if isinstance(stage, str) else stage
    made.copy(home)
    with context_of(home) as context:
        authenticator, changes = CallerAuthenticator(context), RecentEntries()
        context.appended.connect(lambda entry, body: changes.note(entry))
        answers = Answers(context, limits)
        answers.serving.refused.connect(authenticator.count)
        app = console_app(context, authenticator, url, changes, answers.asks, answers.pages)
        yield Console(context, made.site(home, context.ledger), authenticator, changes, app, answers, url)


@contextmanager
def listening(desk: Console, port: int, app: ASGIApp | None = None, tls: SSLContext | None = None) -> Iterator[None]:
    """Serve the console, or another app of the service, on a real socket with the service's own server."""
    sockets = listen(open_tcp(("127.0.0.1", port), "console"), "console")
    server = _server(Listener(desk.app if app is None else app, sockets, tls))
    server.lifespan = LifespanOff(server.config)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="console", daemon=True)
    thread.start()

    async def end() -> None:
        for opened in server.servers:
            opened.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        while under_way := list(server.server_state.tasks):  # their threads read the database of the home
            await asyncio.wait(under_way)

    asyncio.run_coroutine_threadsafe(server.startup([sockets]), loop).result(60)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
        sockets.close()
