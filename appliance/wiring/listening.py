"""The listeners of the service: their addresses, certificates and applications."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from starlette.types import ASGIApp

from appliance.config.settings import Address, Settings
from appliance.domain.queries.alarms import find_alarms
from appliance.domain.queries.measures import Expiry, Measures
from appliance.errors import BadInput
from appliance.formats.core.timestamp import encode_time
from appliance.sandbox.host import check_hook
from appliance.web.core.server import Listener, serve_in_thread
from appliance.web.core.sockets import listen, open_tcp, open_tls, read_private
from appliance.web.operations.health import (
    LEAST_TOKEN,
    NotReady,
    OperationsTokens,
    Readiness,
    operations_app,
    read_feed,
)
from appliance.web.operations.metrics import Metrics
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.measures import measure_certificates


@dataclass(frozen=True)
class Listeners:
    """The bound sockets and TLS contexts of the configured network listeners."""

    tls: ssl.SSLContext | None
    units: socket.socket | None
    people_tls: ssl.SSLContext | None
    people: socket.socket | None
    """Socket for people without an account on this machine."""
    console_tls: ssl.SSLContext | None
    console: socket.socket | None
    operations: socket.socket | None
    tokens: OperationsTokens
    certificates: tuple[Expiry, ...]


@contextmanager
def open_listeners(settings: Settings) -> Iterator[Listeners]:
    """Bind the configured network sockets and load their certificates.

    This happens before the ledger is read, so that an error is reported at once.

    Raises:
        ApplianceError: A port is taken, or a certificate or the notification program is unsuitable.
    """
    if settings.notification_command is not None:
        check_hook(settings.notification_command)
    tls, people_tls, console_tls = tls_of_units(settings), tls_of_people(settings), tls_of_console(settings)
    certificates = measure_certificates(settings.certificates)
    if settings.certificate is not None:
        check_end(measure_certificates({settings.certificate: False}))
    tokens = OperationsTokens()
    if settings.operations is not None:
        metrics = _read_token(settings.operations_token, "operations token")
        tokens = OperationsTokens(metrics, _read_token(settings.feed_token, "feed token"))
    with ExitStack() as opened:

        def bind(address: Address, what: str, setting: str) -> socket.socket | None:
            return None if address is None else opened.enter_context(open_tcp(address, what, setting))

        yield Listeners(
            tls=tls,
            units=bind(settings.listen, "units' port", "listen"),
            people_tls=people_tls,
            people=bind(settings.people, "people's port", "people"),
            console_tls=console_tls,
            console=bind(settings.console, "console", "console"),
            operations=bind(settings.operations, "operations", "operations"),
            tokens=tokens,
            certificates=certificates,
        )


def check_end(certificates: tuple[Expiry, ...]) -> None:
    """Check that the service's certificate has not ended, because clients would refuse the listeners.

    Raises:
        BadInput: It has ended.
    """
    for alarm in find_alarms(Measures(now=encode_time(datetime.now(UTC)), certificates=certificates)):
        if alarm.severity == "critical":
            raise BadInput(f"{alarm.text} {alarm.action}")


def _read_token(path: Path | None, what: str) -> bytes | None:
    if path is None:
        return None
    token = read_private(path, what).strip()
    if len(token) < LEAST_TOKEN:
        raise BadInput(f"{what}: expected {LEAST_TOKEN} characters at least, got {len(token)}")
    return token


@contextmanager
def answer_probes(listeners: Listeners) -> Iterator[tuple[NotReady, Callable[[], None]]]:
    """Answer health probes at the operations listener while the service starts.

    The context gives the object that holds the answer, and a function that ends it.
    """
    starting = NotReady("starting")
    if listeners.operations is None:
        yield starting, lambda: None
        return
    probe_listener = Listener(starting.app(), listen(listeners.operations, "operations"), listeners.tls)
    with serve_in_thread(probe_listener) as end:
        yield starting, end


def list_network_listeners(
    listeners: Listeners,
    context: LedgerContext,
    units: ASGIApp,
    people: ASGIApp,
    console: ASGIApp | None,
    metrics: Metrics,
) -> list[Listener]:
    """Return the network listeners with their applications."""
    network_listeners = []
    if listeners.units is not None:
        network_listeners.append(Listener(units, listen(listeners.units), listeners.tls))
    if listeners.people is not None:
        network_listeners.append(Listener(people, listen(listeners.people, "people's port"), listeners.people_tls))
    if listeners.console is not None and console is not None:
        network_listeners.append(Listener(console, listen(listeners.console, "console"), listeners.console_tls))
    if listeners.operations is not None:
        app = operations_app(Readiness(context), metrics, partial(read_feed, context), listeners.tokens)
        stopping = NotReady("stopping").app()
        opened = listen(listeners.operations, "operations")
        network_listeners.append(Listener(app, opened, listeners.tls, stopping=stopping))
    return network_listeners


@contextmanager
def open_people_socket(
    settings: Settings, open_socket: Callable[[], AbstractContextManager[socket.socket]], app: ASGIApp
) -> Iterator[list[Listener]]:
    """Open the people's Unix socket, if this process has the role `people`."""
    if "people" not in settings.roles:
        yield []
        return
    with open_socket() as opened:
        yield [Listener(app, opened, guarded=False)]


def tls_of_units(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context of the units' and operations listeners, or None without a certificate."""
    return _open_tls(settings, settings.client_ca)


def tls_of_people(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context of the people's port, or None if it is not configured."""
    if settings.people is None:
        return None
    return _open_tls(settings, settings.people_client_ca, not_of=settings.client_ca)


def tls_of_console(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context of the console, or None if it is not configured."""
    if settings.console is None:
        return None
    return _open_tls(settings, settings.people_client_ca, not_of=settings.client_ca)


def _open_tls(settings: Settings, client_ca: Path | None, not_of: Path | None = None) -> ssl.SSLContext | None:
    if settings.certificate is None or settings.certificate_key is None:
        return None
    return open_tls(settings.certificate, settings.certificate_key, client_ca, not_of=not_of)
