"""The listeners of the service: their addresses, certificates and applications, and the reload at SIGHUP."""

from __future__ import annotations

import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from starlette.types import ASGIApp

from appliance.config.settings import Address, Settings, load_settings
from appliance.domain.queries.alarms import find_alarms
from appliance.domain.queries.measures import Expiry, Measures
from appliance.errors import ApplianceError, BadInput
from appliance.formats.core.timestamp import encode_time
from appliance.sandbox.host import check_hook
from appliance.store.files.disk import memory_file, read_file
from appliance.store.files.keyring import MAX_CERTIFICATE_BYTES
from appliance.web.core.logs import set_level
from appliance.web.core.server import Listener, serve_in_thread
from appliance.web.core.sockets import listen, load_certificate, open_tcp, open_tls, read_private
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

log = logging.getLogger("appliance")


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
        _check_end(measure_certificates({settings.certificate: False}))
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


def _check_end(certificates: tuple[Expiry, ...]) -> None:
    """Check that the service's certificate has not ended, because clients would refuse the listeners."""
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


# --- the reload at SIGHUP ---------------------------------------------------------------------------------------------

_RELOADED = ("log_level",)
"""Settings that take effect without a restart."""


def hold_hangups() -> None:
    """Keep SIGHUP from ending the service and its workers, which inherit this, until somebody waits for it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # A blocked signal is kept for `sigwait`, although it is ignored.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def reload(settings: Settings, listeners: Listeners, context: LedgerContext) -> None:
    """Read certificate and log level again. If one of them is unsuitable, nothing changes.

    This runs in the thread of the listeners, so that no handshake sees half of a certificate's pair. Open connections
    keep the certificate with which they began.
    """
    try:
        found = load_settings(settings.home)
        _reload_certificate(settings, listeners, context)
    except ApplianceError as error:
        log.critical("ALARM: the reload was refused, and nothing changed: %s", error.message)
        return
    set_level(found.log_level)
    changed = [name for name in Settings.model_fields if getattr(found, name) != getattr(settings, name)]
    waiting = ", ".join(name for name in changed if name not in _RELOADED)
    log.warning("reloaded the certificate and the log level; settings that wait for a restart: %s", waiting or "none")


def _reload_certificate(settings: Settings, listeners: Listeners, context: LedgerContext) -> None:
    """Have the listeners use the certificate as it is on the disk now.

    The files are read once, and are tried in a context of their own first.

    Raises: ApplianceError if the certificate is unsuitable.
    """
    if settings.certificate is None or settings.certificate_key is None:
        return
    data = read_file(settings.certificate, MAX_CERTIFICATE_BYTES, "certificate")
    ends = measure_certificates(settings.certificates)
    _check_end(measure_certificates({settings.certificate: False}))
    secret = read_private(settings.certificate_key, "certificate key")
    with _in_memory(data) as chain, _in_memory(secret) as key:
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), chain, key)
        for tls in (listeners.tls, listeners.people_tls, listeners.console_tls):
            if tls is not None:
                load_certificate(tls, chain, key)
    context.certificates = ends


@contextmanager
def _in_memory(data: bytes) -> Iterator[Path]:
    """Give OpenSSL, which reads files only, a path to the bytes that is on no disk."""
    with memory_file(data, "certificate") as file:
        yield Path(f"/proc/self/fd/{file}")
