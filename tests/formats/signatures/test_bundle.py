"""The model signature is OpenSSF Model Signing v1.0, and holds for exactly the files that were signed."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.errors import BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.bundle import sign_model, verify_model
from appliance.formats.signatures.dsse import (
    Statement,
    encode_envelope,
    encode_statement,
    parse_envelope,
    parse_statement,
    sign_envelope,
)
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer, encode_spki_pem
from appliance.formats.signatures.ml_dsa import MlDsaSigner, generate_ml_dsa

# `sub-x` and `sub/b.bin`: by characters `-` comes before `/`, by the path's steps it comes after.
FILES = {name: digest_bytes(name.encode()) for name in ("sub-x", "sub/b.bin", "a.json", "manifest.json")}


@pytest.fixture(scope="module")
def bundle(p256: EcdsaSigner) -> bytes:
    return sign_model(FILES, "clauses-1", p256)


def test_a_signature_holds_for_the_files_signed(bundle: bytes, p256: EcdsaSigner) -> None:
    verify_model(bundle, p256.spki, FILES)
    verify_model(bundle, p256.spki, dict(sorted(FILES.items())))


def test_p384_signs_too(p384: EcdsaSigner) -> None:
    verify_model(sign_model(FILES, "clauses-1", p384), p384.spki, FILES)


def test_the_bundle_has_the_layout_of_the_specification(bundle: bytes, p256: EcdsaSigner) -> None:
    value = json.loads(bundle)
    order = ["a.json", "manifest.json", "sub/b.bin", "sub-x"]
    assert value["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert value["verificationMaterial"] == {
        "publicKey": {"hint": hashlib.sha256(encode_spki_pem(p256.spki)).hexdigest()},
        "tlogEntries": [],
    }
    assert json.loads(base64.b64decode(value["dsseEnvelope"]["payload"])) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {
                "name": "clauses-1",
                "digest": {"sha256": hashlib.sha256(b"".join(bytes.fromhex(FILES[p][7:]) for p in order)).hexdigest()},
            }
        ],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": path, "algorithm": "sha256", "digest": FILES[path][7:]} for path in order],
        },
    }


def test_the_layout_is_the_public_tool_s(vectors: Callable[[str], Any]) -> None:
    """Beside what `model_signing sign key` wrote for the same files: the same members, but for its list of paths
    to ignore."""
    tool = vectors("model_signing")
    spki = base64.b64decode(tool["spki"])
    theirs = json.loads(tool["bundle"])
    statement = json.loads(base64.b64decode(theirs["dsseEnvelope"]["payload"]))
    ours = _statement_over(tool["files"], tool["name"])
    assert statement["predicate"]["serialization"].pop("ignore_paths")
    assert statement == ours
    assert theirs["verificationMaterial"]["publicKey"]["hint"] == hashlib.sha256(encode_spki_pem(spki)).hexdigest()
    with pytest.raises(Tampered):
        verify_model(tool["bundle"].encode(), spki, tool["files"])


def _statement_over(files: dict[str, str], name: str) -> dict[str, Any]:
    signer = EcdsaSigner(ec.derive_private_key(5, ec.SECP256R1()))
    bundle = json.loads(sign_model(files, name, signer))
    statement: dict[str, Any] = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return statement


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (FILES | {"a.json": digest_bytes(b"changed")}, "a.json"),
        (FILES | {"extra": digest_bytes(b"extra")}, "extra"),
        (FILES | {".git/hook": digest_bytes(b"extra")}, "hook"),
        ({path: digest for path, digest in FILES.items() if path != "sub-x"}, "sub-x"),
        ({path.replace("a.json", "b.json"): digest for path, digest in FILES.items()}, "json"),
        ({}, "at least one"),
    ],
)
def test_other_files_are_tampered(files: dict[str, str], match: str, bundle: bytes, p256: EcdsaSigner) -> None:
    with pytest.raises(Tampered, match=match):
        verify_model(bundle, p256.spki, files)


def test_another_key_is_tampered(bundle: bytes, other_p256: EcdsaSigner) -> None:
    with pytest.raises(Tampered):
        verify_model(bundle, other_p256.spki, FILES)


def test_no_byte_of_the_bundle_can_change(bundle: bytes, p256: EcdsaSigner) -> None:
    for place in range(len(bundle)):
        for other in (bundle[:place] + bytes([bundle[place] ^ 1]) + bundle[place + 1 :], bundle[:place]):
            with pytest.raises(Tampered):
                verify_model(other, p256.spki, FILES)


def _forge(bundle: bytes, signer: EcdsaSigner, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return the bundle with a changed statement under a good signature."""
    value = json.loads(bundle)
    envelope = parse_envelope(encode_canonical(value["dsseEnvelope"]))
    statement = parse_statement(envelope.payload)
    change(statement.predicate)
    signed = sign_envelope(encode_statement(statement), signer)
    return encode_canonical(value | {"dsseEnvelope": json.loads(encode_envelope(signed))})


@pytest.mark.parametrize(
    "change",
    [
        lambda predicate: predicate["serialization"].update(ignore_paths=["sub-x"]),
        lambda predicate: predicate["serialization"].update(allow_symlinks=True),
        lambda predicate: predicate["serialization"].update(allow_symlinks=0),
        lambda predicate: predicate["serialization"].update(method="shards"),
        lambda predicate: predicate["resources"].reverse(),
        lambda predicate: predicate["resources"].pop(),
        lambda predicate: predicate["resources"].append(predicate["resources"][0]),
        lambda predicate: predicate.update(resources=None),
        lambda predicate: predicate.update(resources=[1]),
        lambda predicate: predicate.update(more=1),
    ],
)
def test_what_a_signature_says_about_itself_is_not_believed(
    change: Callable[[dict[str, Any]], Any], bundle: bytes, p256: EcdsaSigner
) -> None:
    with pytest.raises(Tampered, match="statement"):
        verify_model(_forge(bundle, p256, change), p256.spki, FILES)


def test_another_statement_under_the_adapters_key_is_no_model_signature(bundle: bytes, p256: EcdsaSigner) -> None:
    value = json.loads(bundle)
    for subjects in ((("a", FILES["sub-x"]),), (("a", FILES["sub-x"]), ("b", FILES["sub-x"]))):
        signed = sign_envelope(encode_statement(Statement(subjects, "urn:other:statement", {})), p256)
        with pytest.raises(Tampered):
            verify_model(
                encode_canonical(value | {"dsseEnvelope": json.loads(encode_envelope(signed))}), p256.spki, FILES
            )


def test_members_beside_the_three_are_refused(bundle: bytes, p256: EcdsaSigner) -> None:
    value = json.loads(bundle)
    material = value["verificationMaterial"]
    variants: list[Any] = [
        [],
        value | {"extra": 1},
        value | {"mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.2"},
        value | {"verificationMaterial": material | {"tlogEntries": [{}]}},
        value | {"verificationMaterial": {"tlogEntries": []}},
        value | {"verificationMaterial": material | {"publicKey": {"hint": ""}}},
    ]
    for variant in variants:
        with pytest.raises(Tampered):
            verify_model(encode_canonical(variant), p256.spki, FILES)
    with pytest.raises(Tampered):
        verify_model(json.dumps(value).encode(), p256.spki, FILES)


def test_ed25519_does_not_sign_models(bundle: bytes, ed25519: Ed25519Signer) -> None:
    with pytest.raises(BadInput, match="ECDSA"):
        sign_model(FILES, "clauses-1", ed25519)
    with pytest.raises(BadInput, match="ECDSA"):
        verify_model(bundle, ed25519.spki, FILES)


def test_a_second_bundle_has_a_signature_by_ml_dsa(bundle: bytes, p256: EcdsaSigner, ml_dsa_key: MlDsaSigner) -> None:
    """Both bundles are over the same statement, and each opens under its own key only."""
    second = sign_model(FILES, "clauses-1", ml_dsa_key)
    verify_model(second, ml_dsa_key.spki, FILES)
    assert [json.loads(each)["dsseEnvelope"]["payload"] for each in (bundle, second)].count(
        json.loads(bundle)["dsseEnvelope"]["payload"]
    ) == 2
    changed = FILES | {"a.json": "sha256:" + "0" * 64}
    for data, spki, files in (
        (bundle, ml_dsa_key.spki, FILES),
        (second, p256.spki, FILES),
        (second, generate_ml_dsa().spki, FILES),
        (second, ml_dsa_key.spki, changed),
    ):
        with pytest.raises(Tampered):
            verify_model(data, spki, files)


def test_paths_that_a_file_system_takes_for_one_are_not_signed(p256: EcdsaSigner) -> None:
    for pair in (("a.json", "A.json"), ("sub", "sub/b.bin")):
        with pytest.raises(BadInput, match="path"):
            sign_model(dict.fromkeys(pair, FILES["a.json"]), "clauses-1", p256)


@pytest.mark.parametrize("path", ["/etc/passwd", "../a", ".git/x", "a b"])
def test_other_paths_are_not_signed(path: str, p256: EcdsaSigner) -> None:
    with pytest.raises(BadInput, match="path"):
        sign_model({path: FILES["a.json"]}, "clauses-1", p256)
