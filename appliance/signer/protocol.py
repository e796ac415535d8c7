"""The protocol of the signer's socket: a request and a response, each a frame (`appliance.formats.core.frame`).

The header of a request is `{"operation": NAME, …}`. The header of a response has the results, or `error` with the
class, code and message of an error. Long values are in the blob.
"""

from __future__ import annotations

from appliance import errors
from appliance.errors import ApplianceError, Unavailable
from appliance.formats.core.merkle import HASH_BYTES
from appliance.store.ledger.keys import SignerAhead

MAX_HEADER_BYTES = 1 << 19
MAX_BLOB_BYTES = 1 << 26
"""Most bytes of a blob: a backup's manifest with a quarter of a million objects."""
REQUEST_S = 10.0
"""Most seconds from the first byte of a request or response to its last."""

_CLASSES: dict[str, type[ApplianceError]] = {
    found.__name__: found
    for found in (
        *(errors.BadInput, errors.TooLarge, errors.Denied, errors.NotFound, errors.Conflict, errors.Tampered),
        *(errors.Unavailable, SignerAhead),
    )
}


def encode_error(error: ApplianceError) -> dict[str, object]:
    """Return the header of a response with an error."""
    name = type(error).__name__ if type(error).__name__ in _CLASSES else Unavailable.__name__
    return {"error": {"class": name, "code": error.code, "message": error.message}}


def parse_error(value: object) -> ApplianceError:
    """Return the error of a response."""
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        found = _CLASSES.get(value.get("class", ""))
        if found is not None:
            return found(value.get("message", ""), code=value.get("code"))
    return Unavailable("signer: expected a response, got an error without its class")


def split_hashes(blob: bytes) -> list[bytes]:
    """Return the hashes of a blob.

    Raises:
        BadInput: it does not consist of whole hashes.
    """
    if len(blob) % HASH_BYTES:
        raise errors.BadInput(f"signer, leaves: expected {HASH_BYTES} bytes each, got {len(blob)} bytes")
    return [blob[at : at + HASH_BYTES] for at in range(0, len(blob), HASH_BYTES)]
