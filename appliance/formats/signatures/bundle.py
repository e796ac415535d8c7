"""OpenSSF Model Signing v1.0: a folder's signature, which the public `model_signing verify key` accepts.

That command accepts ECDSA keys. A second bundle of the same format can have a signature by ML-DSA-65, since a bundle
holds one signature.

It is a Sigstore bundle v0.3 with one DSSE envelope over an in-toto statement of predicateType
https://model_signing/signature/v1.0. `verify_model` accepts exactly the bytes that `sign_model` writes: it rebuilds the
bundle from the files found and compares it whole, so that no option in the signature (such as `ignore_paths`) is
trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from appliance.errors import BadInput, Tampered
from appliance.formats.artifacts.manifest import check_paths, parse_path
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.digest import raw_digest
from appliance.formats.core.fields import as_tampered, parse_object, show
from appliance.formats.signatures.dsse import (
    Envelope,
    Statement,
    encode_envelope,
    encode_statement,
    parse_envelope,
    parse_statement,
    sign_envelope,
    verify_envelope,
)
from appliance.formats.signatures.keys import Signer, encode_spki_pem, is_ecdsa
from appliance.formats.signatures.ml_dsa import is_ml_dsa

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_MEMBERS = frozenset({"dsseEnvelope", "mediaType", "verificationMaterial"})


def sign_model(files: Mapping[str, str], model_name: str, signer: Signer) -> bytes:
    """Sign a folder's files (path to digest) and return the bundle; `model_name` is the name of the folder.

    Raises:
        BadInput: the key is Ed25519, or the files are not valid.
    """
    _check_kind(signer.spki)
    statement = _statement_of(files, model_name)
    return _encode_bundle(sign_envelope(encode_statement(statement), signer), signer.spki)


def verify_model(data: bytes, spki: bytes, files: Mapping[str, str]) -> None:
    """Check that the bundle is this key's signature over exactly these files (path to digest).

    Raises:
        Tampered: the signature is invalid, or the files differ from those that were signed.
        BadInput: the key is Ed25519.
        Unavailable: the key is ML-DSA-65, which this Python cannot compute.
    """
    _check_kind(spki)
    with as_tampered():
        bundle = parse_object(parse_canonical(data), "model signature", _MEMBERS)
        envelope = parse_envelope(encode_canonical(bundle["dsseEnvelope"]))
        if data != _encode_bundle(envelope, spki):
            raise Tampered("model signature, bundle: expected exactly this key's bundle v0.3, got one that differs")
        verify_envelope(envelope, spki)
        statement = parse_statement(envelope.payload)
        model_name, _ = statement.subjects[0]
        # Compare bytes, since 0 equals False in Python.
        if envelope.payload != encode_statement(_statement_of(files, model_name)):
            raise Tampered(f"model signature, statement: expected the files found, {_difference(statement, files)}")


def _statement_of(files: Mapping[str, str], model_name: str) -> Statement:
    """Build the v1.0 statement; the subject is SHA-256 over the raw digests, ordered by the components of the paths."""
    if not files:
        raise BadInput("model signature, files: expected at least one, got none")
    paths = sorted((parse_path(path, "model signature, path") for path in files), key=lambda path: path.split("/"))
    check_paths(paths, "model signature")
    total = hashlib.sha256(b"".join(raw_digest(files[path]) for path in paths)).hexdigest()
    resources = [{"algorithm": "sha256", "digest": raw_digest(files[path]).hex(), "name": path} for path in paths]
    return Statement(
        subjects=((model_name, f"sha256:{total}"),),
        predicate_type=PREDICATE_TYPE,
        predicate={
            "resources": resources,
            "serialization": {"allow_symlinks": False, "hash_type": "sha256", "method": "files"},
        },
    )


def _encode_bundle(envelope: Envelope, spki: bytes) -> bytes:
    return encode_canonical(
        {
            "dsseEnvelope": parse_canonical(encode_envelope(envelope)),
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": hashlib.sha256(encode_spki_pem(spki)).hexdigest()},
                "tlogEntries": [],
            },
        }
    )


def _check_kind(spki: bytes) -> None:
    if not is_ml_dsa(spki) and not is_ecdsa(spki):
        raise BadInput("model signature, key: expected ECDSA P-256 or P-384, or ML-DSA-65, got Ed25519")


def _difference(statement: Statement, files: Mapping[str, str]) -> str:
    """Describe the first file that differs from the signed one, for the message."""
    resources = statement.predicate.get("resources")
    if not isinstance(resources, list) or not all(isinstance(item, dict) for item in resources):
        return "got no list of resources"
    signed = {str(item.get("name")): f"sha256:{item.get('digest')}" for item in resources}
    for path in sorted(signed.keys() | files.keys()):
        if signed.get(path) != files.get(path):
            return f"{show(path)} as {files.get(path, 'absent')}, got {show(signed.get(path, 'absent'))}"
    return "got the same files with other fields beside them"
