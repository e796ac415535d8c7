"""The reload of a running service at SIGHUP: of its certificate, and of the level of its log."""

from __future__ import annotations

import logging
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.config.settings import Settings, load_settings
from appliance.errors import ApplianceError
from appliance.store.files.disk import memory_file, read_file
from appliance.store.files.keyring import MAX_CERTIFICATE_BYTES
from appliance.web.core.logs import set_level
from appliance.web.core.sockets import load_certificate, read_private
from appliance.wiring.listening import Listeners, check_end
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.measures import measure_certificates

log = logging.getLogger("appliance")

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
    check_end(measure_certificates({settings.certificate: False}))
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
