"""When the certificates of a PEM file end."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cryptography import x509

from appliance.errors import BadInput
from appliance.store.files.disk import disk_errors


def read_end(path: Path) -> datetime:
    """The first end of any certificate in the file."""
    with disk_errors(f"certificate, {path}"):
        data = path.read_bytes()
    try:
        return min(one.not_valid_after_utc for one in x509.load_pem_x509_certificates(data))
    except ValueError as error:
        raise BadInput(f"certificate, {path}: expected PEM, got: {error}") from None
