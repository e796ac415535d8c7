"""The addresses that are listened at, their certificates, and what answers there."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp

from appliance.config.values import Settings
from appliance.errors import BadInput
from appliance.runners.hook import check_hook
from appliance.web.core.server import Door
from appliance.web.core.sockets import listen, open_tcp
from appliance.web.core.tls import open_tls, read_private
from appliance.web.operations.health import LEAST_TOKEN, Readiness, operations_app
from appliance.web.operations.metrics import Metrics
from appliance.workflows.core.context import Context


@dataclass(frozen=True)
class Listeners:
    """What the doors to a network stand on, as far as they are asked for."""

    tls: ssl.SSLContext | None
    units: socket.socket | None
    people_tls: ssl.SSLContext | None
    people: socket.socket | None
    """For people without an account on this machine."""
    console_tls: ssl.SSLContext | None
    console: socket.socket | None
    operations: socket.socket | None
    token: bytes


@contextmanager
def open_listeners(settings: Settings) -> Iterator[Listeners]:
    """Before the ledger is read: a port that is taken, or a certificate or a program that does not fit, is told at
    once."""
    if settings.notices is not None and settings.notices.command is not None:
        check_hook(settings.notices.command)
    tls, people_tls, console_tls = tls_of_units(settings), tls_of_people(settings), tls_of_console(settings)
    people, console, operations = settings.people, settings.console, settings.operations
    token = b"" if operations is None else _read_operations_token(operations.token)
    with ExitStack() as opened:
        units = None if settings.listen is None else opened.enter_context(open_tcp(settings.listen))
        desks = None if people is None else opened.enter_context(open_tcp(people.listen, "people's port"))
        pages = None if console is None else opened.enter_context(open_tcp(console.listen, "console"))
        numbers = None if operations is None else opened.enter_context(open_tcp(operations.listen, "operations"))
        yield Listeners(tls, units, people_tls, desks, console_tls, pages, numbers, token)


def _read_operations_token(path: Path) -> bytes:
    token = read_private(path, "operations token").strip()
    if len(token) < LEAST_TOKEN:
        raise BadInput(f"operations token: expected {LEAST_TOKEN} characters at least, got {len(token)}")
    return token


def open_doors(
    listeners: Listeners,
    context: Context,
    units: ASGIApp,
    people: ASGIApp,
    console: ASGIApp | None,
    metrics: Metrics,
) -> list[Door]:
    """Those that stand open to a network."""
    doors = []
    if listeners.units is not None:
        doors.append(Door(units, listen(listeners.units), listeners.tls))
    if listeners.people is not None:
        doors.append(Door(people, listen(listeners.people, "people's port"), listeners.people_tls))
    if listeners.console is not None and console is not None:
        doors.append(Door(console, listen(listeners.console, "console"), listeners.console_tls))
    if listeners.operations is not None:
        app = operations_app(Readiness(context), metrics, listeners.token)
        doors.append(Door(app, listen(listeners.operations, "operations"), listeners.tls))
    return doors


@contextmanager
def open_people_socket(
    settings: Settings, open_door: Callable[[], AbstractContextManager[socket.socket]], app: ASGIApp
) -> Iterator[list[Door]]:
    """The people's socket, where people come to this process."""
    if "people" not in settings.roles:
        yield []
        return
    with open_door() as opened:
        yield [Door(app, opened, guarded=False)]


def tls_of_units(settings: Settings) -> ssl.SSLContext | None:
    files = settings.certificate
    return None if files is None else open_tls(files.chain, files.key, files.client_ca)


def tls_of_people(settings: Settings) -> ssl.SSLContext | None:
    files, people = settings.certificate, settings.people
    if files is None or people is None:
        return None
    return open_tls(files.chain, files.key, people.client_ca, not_of=files.client_ca)


def tls_of_console(settings: Settings) -> ssl.SSLContext | None:
    files, console = settings.certificate, settings.console
    if files is None or console is None:
        return None
    return open_tls(files.chain, files.key, console.client_ca, not_of=files.client_ca)
