"""The appliance's own formats give the recorded bytes: whoever changes one makes a new version, with new vectors."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from appliance.errors import Tampered
from appliance.formats.artifacts.manifest import (
    Manifest,
    ManifestFile,
    PrivacyGuarantee,
    encode_manifest,
    parse_manifest,
)
from appliance.formats.artifacts.rows import row_digest, row_key, rows_root
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import disclose, encode_disclosure, parse_disclosure, verify_disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64url, parse_base64url
from appliance.formats.core.frame import read_frame, write_frame
from appliance.formats.core.merkle import consistency_proof, hash_leaf, inclusion_proof, root_of
from appliance.formats.core.sealed import Keystream, commit_secret
from appliance.formats.log.backup import (
    Backup,
    BackupFile,
    FolderMode,
    Index,
    KeyringPair,
    StoredObject,
    encode_index,
    open_backup,
    parse_index,
    sign_backup,
)
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from appliance.formats.log.note import vkey_of
from appliance.formats.log.proof import Proof, encode_proof
from appliance.formats.log.restoration import (
    COUNTERSIGN_TYPE,
    ENTRY_TYPE,
    ORDER_TYPE,
    RestorationFile,
    StepBackFile,
    encode_restoration,
    encode_step_back,
    parse_restoration,
    parse_step_back,
    verify_restoration,
    verify_step_back,
)
from appliance.formats.log.trust import Trust, encode_trust, parse_trust
from appliance.formats.signatures.bundle import verify_model
from appliance.formats.signatures.dsse import (
    Statement,
    encode_envelope,
    encode_statement,
    parse_envelope,
    parse_statement,
    sign_envelope,
    verify_envelope,
)
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer, encode_key_file, parse_key_file
from appliance.formats.signatures.ml_dsa import MlDsaSigner
from appliance.formats.signatures.webauthn import PasskeyScope, parse_authenticator_data

ORIGIN = "appliance.example/log"
TIME = "2026-11-24T15:15:35.123Z"
DIGEST = f"sha256:{'ab' * 32}"
STATEMENT = Statement((("adapter:clauses@1", DIGEST),), "urn:appliance:order:review:v1", {"unit": "legal"})

RECIPIENTS = [f"age1{letter * 58}" for letter in "qpz"]
OBJECTS = tuple(StoredObject(f"{letter * 64}-{letter * 16}", f"sha256:{letter * 64}", 1 << 20) for letter in "abc")
INDEX = Index(
    (BackupFile("artifacts/ab/manifest.json", 0o444, OBJECTS[0].name, DIGEST, 100),),
    (FolderMode("artifacts/ab", 0o555),),
)


def make_backup(recorded: Any) -> Backup:
    """Return the manifest of the recorded backup, over the recorded checkpoint."""
    return Backup(
        name="20261124T151535Z",
        time="2026-11-24T15:15:35.123Z",
        checkpoint=recorded["checkpoint"],
        log_key=recorded["vkey"],
        database="sqlite",
        revision="initial",
        build="0.1.0.dev1+g01234567",
        compatibility=1,
        erasure=5,
        recipients=(RECIPIENTS[0],),
        index=OBJECTS[1].name,
        keyring=(KeyringPair(OBJECTS[2].name, RECIPIENTS[1], RECIPIENTS[2]),),
        objects=OBJECTS,
    )


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
    private = replace(plain, privacy=PrivacyGuarantee(epsilon="2.999954", delta="0.0001"))
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


def test_a_log_checkpoint_of_two_algorithms(recorded: Any, ed25519: Ed25519Signer, ml_dsa_key: MlDsaSigner) -> None:
    known, checkpoint = recorded["ml_dsa"], Checkpoint(ORIGIN, 7, bytes(range(32)))
    assert vkey_of(ORIGIN, ml_dsa_key) == known["vkey"]
    assert ml_dsa_key.keyid == known["keyid"]
    assert open_checkpoint(known["checkpoint"].encode(), known["vkey"], recorded["vkey"]) == checkpoint
    own = sign_checkpoint(checkpoint, ml_dsa_key, ed25519).decode()
    assert len(own) == len(known["checkpoint"])
    assert own.splitlines()[-1] == known["checkpoint"].splitlines()[-1]


def test_a_model_signature_by_ml_dsa_still_holds(recorded: Any, ml_dsa_key: MlDsaSigner) -> None:
    verify_model(recorded["ml_dsa"]["bundle"].encode(), ml_dsa_key.spki, recorded["bundle_files"])


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


def test_a_backup_and_its_index(recorded: Any, ed25519: Ed25519Signer) -> None:
    backup = make_backup(recorded)
    assert sign_backup(backup, ed25519).decode() == recorded["backup"]
    assert open_backup(recorded["backup"].encode(), [recorded["vkey"]]) == backup
    assert encode_index(INDEX).decode() == recorded["backup_index"]
    assert parse_index(recorded["backup_index"].encode()) == INDEX


def make_restoration(recorded: Any, log: Ed25519Signer, ben: Ed25519Signer) -> RestorationFile:
    """Return the file of a log of three entries that keeps the first and gives up a log of five."""
    kept, pending = (hash_leaf(data) for data in (b"first", b"pending"))
    lost = sign_checkpoint(Checkpoint(ORIGIN, 5, b"\x05" * 32), log)
    common = {"expires_at": "2026-11-24T15:25:35.123Z", "issued_at": TIME, "nonce": "0" * 32, "origin": ORIGIN}
    said = {**common, "kept_root": f"sha256:{root_of([kept]).hex()}", "kept_size": 1, "lost": digest_bytes(lost)}
    said |= {"lost_root": f"sha256:{'05' * 32}", "lost_size": 5, "reason": None, "signer": "anna"}
    first = sign_envelope(encode_statement(Statement((("log", DIGEST),), ORDER_TYPE, said)), log)
    named = {**common, "order": first.pae_digest, "reason": None, "signer": "ben"}
    subject = ((f"order:{first.pae_digest}", first.pae_digest),)
    second = sign_envelope(encode_statement(Statement(subject, COUNTERSIGN_TYPE, named)), ben)
    documents = {"countersigned": encode_envelope(first), "lost": lost, "order": encode_envelope(second)}
    bound = {role: digest_bytes(data) for role, data in documents.items()}
    entry = encode_canonical({"documents": bound, "index": 2, "type": ENTRY_TYPE})
    leaves = [kept, pending, hash_leaf(entry)]

    def node(level: int, index: int) -> bytes:
        return root_of(leaves[index << level : (index + 1) << level])

    head = sign_checkpoint(Checkpoint(ORIGIN, 3, root_of(leaves)), log)
    return RestorationFile(
        entry=entry,
        proof=encode_proof(Proof(2, tuple(inclusion_proof(2, 3, node)), head)),
        order=documents["order"],
        countersigned=documents["countersigned"],
        lost=lost,
        keys=(log.spki, ben.spki),
        consistency=tuple(consistency_proof(1, 3, node)),
    )


def test_a_restoration(recorded: Any, ed25519: Ed25519Signer, other_ed25519: Ed25519Signer) -> None:
    made = make_restoration(recorded, ed25519, other_ed25519)
    assert encode_restoration(made).decode() == recorded["restoration"]
    assert parse_restoration(recorded["restoration"].encode()) == made
    found = verify_restoration(made, [recorded["vkey"]], [ed25519.keyid, other_ed25519.keyid])
    assert (found.index, found.signers, found.step.kept.size, found.step.lost.size) == (2, ("anna", "ben"), 1, 5)


def test_a_step_back(recorded: Any, ed25519: Ed25519Signer, other_ed25519: Ed25519Signer) -> None:
    orders, leaf = make_restoration(recorded, ed25519, other_ed25519), hash_leaf(b"first")
    made = StepBackFile(
        order=orders.order,
        countersigned=orders.countersigned,
        lost=orders.lost,
        keys=orders.keys,
        kept=sign_checkpoint(Checkpoint(ORIGIN, 1, root_of([leaf])), ed25519),
        edge=(leaf,),
    )
    assert encode_step_back(made).decode() == recorded["step_back"]
    assert parse_step_back(recorded["step_back"].encode()) == made
    found = verify_step_back(made, [recorded["vkey"]], [ed25519.keyid, other_ed25519.keyid])
    assert (found.signers, found.edge.size, found.step.lost.size) == (("anna", "ben"), 1, 5)


def test_a_backup_that_another_key_signed(recorded: Any, other_ed25519: Ed25519Signer) -> None:
    forged = sign_backup(make_backup(recorded), other_ed25519)
    with pytest.raises(Tampered, match="expected a signature by a log key"):
        open_backup(forged, [recorded["vkey"]])
    with pytest.raises(Tampered, match="expected a signature by a log key"):
        open_backup(forged, [recorded["vkey"], vkey_of(ORIGIN, other_ed25519)])
