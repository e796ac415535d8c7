"""TLS with the site's own certificate: 1.2 at least, forward secrecy, nothing that is broken."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from appliance.errors import BadInput, Denied

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; 1.3 has only such."""
_MAX_BYTES = 65_536


def open_tls(chain: Path, key: Path, client_ca: Path | None, not_of: Path | None = None) -> ssl.SSLContext:
    """BadInput for files that do not fit together; Denied for a key that others can read. With `client_ca` a client
    that shows no certificate of it gets no answer at all; it is not the CA in `not_of`, whose hosts come in elsewhere.
    """
    read_private(key, "certificate key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.load_cert_chain(chain, key, password=_no_password)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(client_ca)
            if not_of is not None and client_ca.read_bytes() == not_of.read_bytes():
                raise BadInput(
                    f"certificate, {client_ca}: expected a CA other than that of the units' hosts, got the same one"
                )
    except OSError as error:  # an SSLError is one too
        what = client_ca if context.verify_mode is ssl.CERT_REQUIRED else f"{chain} and {key}"
        raise BadInput(f"certificate, {what}: expected PEM files that fit together, got: {error.args[-1]}") from None
    return context


def _no_password() -> str:
    raise BadInput("certificate, key: expected one without a passphrase in a file of mode 0600, got an encrypted one")


def read_private(path: Path, what: str) -> bytes:
    """A small file that the service's own account, or root, keeps for it alone."""
    try:
        with path.open("rb") as stream:
            status, data = os.fstat(stream.fileno()), stream.read(_MAX_BYTES)
    except OSError as error:
        raise BadInput(f"{what}, {path}: expected a file, got: {error.strerror}") from None
    if status.st_mode & 0o077 or status.st_uid not in (0, os.geteuid()):
        raise Denied(
            f"{what}, {path}: expected the service's own file, mode 0600 or 0400, "
            f"got mode {status.st_mode & 0o777:04o} of user id {status.st_uid}"
        )
    return data
