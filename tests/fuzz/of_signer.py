"""The requests of the service to the signer, and the errors in its responses."""

from __future__ import annotations

import atexit
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from appliance.domain.releases.adapters import SLSA_PROVENANCE
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64
from appliance.formats.core.merkle import Frontier, hash_leaf
from appliance.formats.log.backup import encode_backup, parse_backup
from appliance.formats.log.seal import LogSeal, encode_seal
from appliance.formats.signatures.dsse import Statement, encode_statement
from tests.fuzz.inputs import Form
from tests.fuzz.seeds import HASH, OWN
from tests.fuzz.target import Target, add, of_text, of_value, read_object

LEAF = hash_leaf(b"first")
EDGE = Frontier.EMPTY.extend([LEAF])[0]
OPERATIONS: dict[str, Form | None] = {
    "sign-checkpoint": "bytes",
    "log": None,
    "last-signed": None,
    "keys": None,
    "adapter-key": None,
    "create-log-key": None,
    "create-adapter-key": None,
    "sign-snapshot": None,
    "sign-backup": "json",
    "sign-adapter": "json",
}
"""Operations of the signer, with the form of the blob if they read one."""


class Signing(NamedTuple):
    """A signer that has signed a log of one entry, and good requests."""

    operations: Any
    requests: dict[str, tuple[dict[str, Any], bytes]]


@cache
def _signing() -> Signing:
    from tests.kit.signing import make_signer
    from tests.kit.small_log import ORIGIN

    folder = tempfile.TemporaryDirectory(prefix="ap-fuzz-")
    atexit.register(folder.cleanup)
    operations = make_signer(Path(folder.name, "signer"))
    (key,) = operations.list_log_keys(ORIGIN)
    checkpoint = operations.sign_checkpoint(ORIGIN, 0, [LEAF], EDGE.root(), [key])
    backup = replace(parse_backup(OWN["backup"].encode()), checkpoint=checkpoint.decode(), log_key=key)
    digest = digest_bytes(HASH)
    requests: dict[str, tuple[dict[str, Any], bytes]] = {
        "sign-checkpoint": ({"origin": ORIGIN, "before": 0, "root": encode_base64(EDGE.root()), "keys": [key]}, LEAF),
        "last-signed": ({"origin": ORIGIN}, b""),
        "keys": ({"origin": ORIGIN}, b""),
        "adapter-key": ({"post_quantum": False}, b""),
        "create-log-key": ({"origin": ORIGIN, "used": [key], "post_quantum": False}, b""),
        "sign-snapshot": ({"seal": encode_seal(LogSeal(ORIGIN, key, 1, EDGE.root(), digest, digest))}, b""),
        "sign-backup": ({}, encode_backup(backup)),
        "sign-adapter": (
            {"post_quantum": False},
            encode_statement(Statement((("clauses", digest),), SLSA_PROVENANCE, {"a": 1})),
        ),
    }
    return Signing(operations, requests)


def _respond(operation: str, header: dict[str, Any], blob: bytes) -> object:
    """Have the signer respond; raise the error that the response has."""
    from appliance.signer.protocol import parse_error
    from appliance.signer.server import respond

    response, data = respond(_signing().operations, {**header, "operation": operation}, blob)
    if "error" in response:
        raise parse_error(response["error"])
    return response, data


def _to_header(operation: str, data: bytes) -> object:
    return _respond(operation, read_object(data), _good(operation)[1])


def _to_blob(operation: str, data: bytes) -> object:
    return _respond(operation, _good(operation)[0], data)


def _good(operation: str) -> tuple[dict[str, Any], bytes]:
    return _signing().requests.get(operation, ({}, b""))


def _headers(operation: str) -> Iterator[bytes]:
    yield json.dumps(_good(operation)[0]).encode()


def _blobs(operation: str) -> Iterator[bytes]:
    yield _good(operation)[1]


def _add_signer() -> None:
    from appliance.signer.protocol import parse_error
    from appliance.signer.token import parse_token_uri

    of_value(parse_error, [{"class": "BadInput", "code": "a", "message": "b"}])
    of_text(parse_token_uri, ["pkcs11:token=appliance?module-path=/usr/lib/softhsm/libsofthsm2.so"])
    for name, form in OPERATIONS.items():
        add(f"signer.server.respond {name}", Target(partial(_to_header, name), partial(_headers, name), "json"))
        if form is not None:
            blob = Target(partial(_to_blob, name), partial(_blobs, name), form)
            add(f"signer.server.respond {name} blob", blob)


_add_signer()
