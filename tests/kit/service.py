"""The service's own people's API on a real socket, over a founded ledger of the test's own; only workers do no work.

What it answers can be bent by a test, so that the client is seen to refuse an answer that lies.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.lifespan.off import LifespanOff

from appliance.config.settings import Settings, load_settings
from appliance.errors import ApplianceError
from appliance.formats.core.digest import digest_bytes
from appliance.store.files import disk
from appliance.web.core.auth import CallerAuthenticator
from appliance.web.core.errors import people_body, refusal
from appliance.web.core.server import Listener, _server
from appliance.web.core.sockets import open_unix
from appliance.web.people.api import people_app
from appliance.workflows.core.context import Context
from appliance.workflows.core.jobs import Job, Jobs
from tests.kit.founded import FoundedSite, Template, context_of, template

Bend = Callable[[Any], Any]
CONSOLE = "https://console.example:8330"
"""Address that the service reports for its console."""


class HeldJobs(Jobs):
    """Jobs without a worker: `act` is called with the order or the run of each, or "" for the run that waits longest,
    and may append the entries of the result."""

    def __init__(self, name: str, act: Callable[[str], None]) -> None:
        super().__init__(name)
        self._act = act

    def put(self, job: Job, owner: str = "") -> None:
        _, *keys = job.args if isinstance(job, partial) else (None,)
        self._act(keys[0] if keys else "")


class Service:
    """`bend[path]` changes what a path answers; `seen` are the requests; `work` stands for the workers: it is called
    with the order of each import and replay, and of each run, that would begin."""

    def __init__(self, context: Context, settings: Settings, site: FoundedSite) -> None:
        self.context, self.settings, self.site = context, settings, site
        self.authenticator = CallerAuthenticator(context)
        self.bend: dict[str, Bend] = {}
        self.seen: list[tuple[str, str]] = []
        self.work: Callable[[str], None] = lambda key: None
        context.bases = HeldJobs("bases", lambda key: self.work(key))
        context.datasets = HeldJobs("datasets", lambda key: self.work(key))
        context.runs = HeldJobs("runs", lambda key: self.work(key))
        context.previews = HeldJobs("previews", lambda key: self.work(key))

    @property
    def uploads(self) -> dict[str, bytes]:
        """Complete uploads of all people, by digest."""
        paths = (self.settings.home / "uploads").glob("*/*")
        whole = [path.read_bytes() for path in paths if not path.name.startswith(disk.PARTIAL)]
        return {digest_bytes(data): data for data in whole}

    def forget_sessions(self) -> None:
        """As a service does of sessions that have ended."""
        self.context.sessions.sweep(lambda row: False)

    def spoil(self, adapter: str, path: str, data: bytes | None) -> None:
        """Other bytes in a file of the sealed folder, or none: as who owns the disk can do it."""
        row = self.context.ledger.state.adapters.get(adapter)
        assert row is not None
        file = self.context.artifacts.path(row.manifest) / path
        for place in (file.parent, file):
            place.chmod(0o700)
        if data is None:
            file.unlink()
        else:
            file.write_bytes(data)


def _bent(app: ASGIApp, service: Service) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        service.seen.append((scope["method"], scope["path"]))
        bend = service.bend.get(scope["path"])
        if bend is None:
            await app(scope, receive, send)
            return
        told: list[Message] = []

        async def keep(message: Message) -> None:
            told.append(message)

        await app(scope, receive, keep)
        await _respond(told, bend)(scope, receive, send)

    return answer


def _respond(told: list[Message], bend: Bend) -> Response:
    """Return the answer as the test wants it. A refusal stays as it is."""
    status, headers = told[0]["status"], dict(told[0]["headers"])
    body = b"".join(message.get("body", b"") for message in told[1:])
    kind = headers.get(b"content-type", b"").decode()
    if status >= 400:
        return Response(body, status, media_type=kind)
    try:
        bent = bend(json.loads(body) if kind == "application/json" else body)
    except ApplianceError as error:
        return refusal(people_body, error)
    return Response(bent, status, media_type=kind) if isinstance(bent, bytes) else JSONResponse(bent, status)


@contextmanager
def listening(app: ASGIApp, path: Path) -> Iterator[None]:
    """Serve one listener in the one loop of this process. The service's own end would wait for a tenth of a
    second, which is longer than most tests."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open_unix(path) as socket:
        server = _server(Listener(app, socket, guarded=False))
        server.lifespan = LifespanOff(server.config)

        async def end() -> None:
            for opened in server.servers:
                opened.close()
            for connection in list(server.server_state.connections):
                connection.shutdown()
            while under_way := list(server.server_state.tasks):  # their threads read the database of the home
                await asyncio.wait(under_way)

        asyncio.run_coroutine_threadsafe(server.startup([socket]), _loop()).result(60)
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(end(), _loop()).result(60)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="services", daemon=True).start()
    return loop


@contextmanager
def running(stage: str | Template, home: Path) -> Iterator[Service]:
    """Run a service at that stage of the journey, or over a copy of that home, in an empty home."""
    made = template(stage) if isinstance(stage, str) else stage
    made.copy(home)
    with context_of(home) as context:
        context.ledger.clock.accept_pause(context.ledger.state.last_time)
        service = Service(context, load_settings(home, {}), made.site(home, context.ledger))
        _RUNNING.append(service)
        try:
            with listening(_bent(_app(), service), service.settings.socket):
                yield service
        finally:
            _RUNNING.remove(service)


_RUNNING: list[Service] = []


class _OfTheRunning:
    """A part of the service that runs now: so the app, whose many routes take longer to build than most tests, is built
    once in a process."""

    def __init__(self, part: str) -> None:
        object.__setattr__(self, "_part", part)

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(_RUNNING[-1], self._part), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(getattr(_RUNNING[-1], self._part), name, value)


@cache
def _app() -> ASGIApp:
    context, authenticator = _OfTheRunning("context"), _OfTheRunning("authenticator")
    return people_app(cast(Context, context), cast(CallerAuthenticator, authenticator), CONSOLE)
