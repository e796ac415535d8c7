"""The appliance's own formats give the recorded bytes: whoever changes one makes a new version, with new vectors."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from appliance.formats.artifacts.manifest import Guarantee, Manifest, ManifestFile, encode_manifest, parse_manifest
from appliance.formats.artifacts.rows import row_digest, row_key, rows_root
from appliance.formats.core.commitment import disclose, encode_disclosure, parse_disclosure, verify_disclosure
from appliance.formats.core.fields import encode_base64url, parse_base64url
from appliance.formats.core.frame import read_frame, write_frame
from appliance.formats.core.keystream import Keystream, commit_secret
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from appliance.formats.log.note import vkey_of
from appliance.formats.log.trust import Trust, encode_trust, parse_trust
from appliance.formats.signatures.authenticator_data import parse_authenticator_data
from appliance.formats.signatures.bundle import verify_model
from appliance.formats.signatures.dsse import encode_envelope, parse_envelope, sign_envelope, verify_envelope
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer, encode_key_file, parse_key_file
from appliance.formats.signatures.relying_party import PasskeyScope
from appliance.formats.signatures.statement import Statement, encode_statement, parse_statement

ORIGIN = "appliance.example/log"
DIGEST = f"sha256:{'ab' * 32}"
STATEMENT = Statement((("adapter:clauses@1", DIGEST),), "urn:appliance:order:review:v1", {"unit": "legal"})


@pytest.fixture
def recorded(vectors: Callable[[str], Any]) -> Any:
    return vectors("appliance")


@pytest.mark.parametrize("kind", ["ed25519", "p256", "p384"])
def test_public_keys_and_their_ids(kind: str, recorded: Any, request: pytest.FixtureRequest) -> None:
    signer = request.getfixturevalue(kind)
    assert {"spki": base64.b64encode(signer.spki).decode(), "keyid": signer.keyid} == recorded["keys"][kind]


def test_a_key_file(recorded: Any, ed25519: Ed25519Signer) -> None:
    data = encode_key_file(ed25519.private, b"passphrase", salt=bytes(32), nonce=bytes(12))
    assert data.decode() == recorded["key_file"]
    assert parse_key_file(data, b"passphrase").keyid == ed25519.keyid


def test_a_statement_and_an_envelope(recorded: Any, ed25519: Ed25519Signer) -> None:
    payload = encode_statement(STATEMENT)
    assert payload.decode() == recorded["statement"]
    assert parse_statement(payload) == STATEMENT
    envelope = sign_envelope(payload, ed25519)
    assert encode_envelope(envelope).decode() == recorded["envelope"]
    assert envelope.pae_digest == recorded["pae_digest"]


def test_a_passkey_s_envelope_still_holds(recorded: Any, p256: EcdsaSigner) -> None:
    envelope = parse_envelope(recorded["passkey_envelope"].encode())
    known = recorded["passkey"]
    scope = PasskeyScope(known["rp_id"], tuple(known["origins"]), known["backup_eligible"])
    verify_envelope(envelope, p256.spki, scope)
    assert envelope.pae_digest == recorded["pae_digest"]


def test_a_new_passkey(recorded: Any, p256: EcdsaSigner) -> None:
    known = recorded["passkey"]
    made = parse_authenticator_data(parse_base64url(known["creation"], "creation"))
    assert (made.spki, made.backup_eligible) == (p256.spki, known["backup_eligible"])
    assert encode_base64url(made.credential_id) == known["credential_id"]
    assert made.rp_id_hash == hashlib.sha256(known["rp_id"].encode()).digest()


def test_a_manifest(recorded: Any) -> None:
    files = (
        ManifestFile("adapter_config.json", 12, DIGEST),
        ManifestFile("adapter_model.safetensors", 9_800_000, f"sha256:{'cd' * 32}"),
    )
    manifest = Manifest("clauses", 1, files)
    assert encode_manifest(manifest).decode() == recorded["manifest"]
    assert manifest.digest == recorded["manifest_digest"]
    assert parse_manifest(recorded["manifest"].encode()) == manifest


def test_the_manifest_of_a_private_adapter(recorded: Any) -> None:
    plain = parse_manifest(recorded["manifest"].encode())
    private = replace(plain, privacy=Guarantee(epsilon="2.999954", delta="0.0001"))
    assert encode_manifest(private).decode() == recorded["private_manifest"]
    assert parse_manifest(recorded["private_manifest"].encode()) == private


def test_the_random_bytes_of_a_private_run(recorded: Any) -> None:
    """The bytes are openssl's, of a key that was made by HMAC alone."""
    known = recorded["private_training"]
    secret = bytes.fromhex(known["secret"])
    assert Keystream(secret, "appliance/private-training/v1/rows/1").take(32).hex() == known["rows_1"]
    stream = Keystream(secret, "appliance/private-training/v1/rows/1")
    assert (stream.take(5) + stream.take(27)).hex() == known["rows_1"]
    assert commit_secret(secret, "appliance/private-training/v1/secret/r-000001") == known["bound"]


def test_a_disclosure(recorded: Any) -> None:
    disclosure = disclose("Alice Müller", bytes(range(32)))
    assert encode_disclosure(disclosure).decode() == recorded["disclosure"]
    verify_disclosure(parse_disclosure(recorded["disclosure"].encode()))


def test_rows(recorded: Any) -> None:
    key, rows = bytes(range(32)), recorded["rows"]
    digests = [row_digest(key, index, text.encode()) for index, text in enumerate(rows["texts"])]
    assert [row_key(key, index).hex() for index in range(3)] == rows["keys"]
    assert [digest.hex() for digest in digests] == rows["digests"]
    assert rows_root(digests).hex() == rows["root"]


def test_a_log_checkpoint(recorded: Any, ed25519: Ed25519Signer) -> None:
    checkpoint = Checkpoint(ORIGIN, 7, bytes(range(32)))
    assert vkey_of(ORIGIN, ed25519) == recorded["vkey"]
    assert sign_checkpoint(checkpoint, ed25519).decode() == recorded["checkpoint"]
    assert open_checkpoint(recorded["checkpoint"].encode(), recorded["vkey"]) == checkpoint


def test_a_trust_file(recorded: Any, other_ed25519: Ed25519Signer) -> None:
    trust = Trust(ORIGIN, recorded["vkey"], DIGEST, (("alice", other_ed25519.keyid),))
    assert encode_trust(trust).decode() == recorded["trust"]
    assert parse_trust(recorded["trust"].encode()) == trust


def test_a_frame(recorded: Any) -> None:
    stream = io.BytesIO()
    write_frame(stream, {"frame": "step", "loss": 0.5}, b"blob")
    assert stream.getvalue().hex() == recorded["frame"]
    stream.seek(0)
    assert read_frame(stream, 1 << 10, 1 << 10) == ({"frame": "step", "loss": 0.5}, b"blob")


def test_a_model_signature_still_holds(recorded: Any, p256: EcdsaSigner) -> None:
    verify_model(recorded["bundle"].encode(), p256.spki, recorded["bundle_files"])
