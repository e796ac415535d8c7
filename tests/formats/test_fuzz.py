"""Whatever bytes arrive, a parser gives a value that re-encodes to exactly these bytes, or one of our errors."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BadInput, Tampered
from appliance.formats.artifacts import manifest
from appliance.formats.core import canonical, commitment, digest, fields, frame, timestamp
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.fields import parse_base64, parse_base64url
from appliance.formats.log import backup, checkpoint, log_policy, note, proof, restoration, trust
from appliance.formats.log import proof as witness_request
from appliance.formats.signatures import dsse, keys, webauthn
from appliance.formats.signatures import webauthn as authenticator_data
from appliance.formats.signatures import webauthn as relying_party
from appliance.formats.signatures.bundle import verify_model
from tests.kit.log_policies import encode_log_policy, quorum_policy
from tests.kit.mutations import mutated, reshaped

OWN = json.loads((Path(__file__).resolve().parents[1] / "vectors/appliance.json").read_text(encoding="utf-8"))
P256 = parse_base64(OWN["keys"]["p256"]["spki"], "spki")
ED25519 = parse_base64(OWN["keys"]["ed25519"]["spki"], "spki")
ML_DSA = note.parse_vkey(OWN["ml_dsa"]["vkey"]).spki
EXAMPLES = settings(deadline=None, max_examples=150)


@dataclass(frozen=True)
class Format:
    parse: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    good: bytes


def _of_text(parse: Callable[[str], Any], encode: Callable[[Any], str], good: str) -> Format:
    """Return a format of str, which malformed UTF-8 never reaches."""

    def parse_bytes(data: bytes) -> Any:
        try:
            return parse(data.decode("utf-8"))
        except UnicodeDecodeError:
            raise BadInput("not text") from None

    return Format(parse_bytes, lambda value: encode(value).encode(), good.encode())


PUBLIC = json.loads((Path(__file__).resolve().parents[1] / "vectors/transparency.json").read_text(encoding="utf-8"))
REQUEST = PUBLIC["litewitness"]["accepted"][2]
WITNESS_VKEY = PUBLIC["witnessed"]["witnesses"][0]
PROOF = f"{proof.HEADER}\nextra AAA=\nindex 3\n{'A' * 43}=\n\n{PUBLIC['witnessed']['note']}".encode()
POLICY = encode_log_policy(quorum_policy([PUBLIC["witnessed"]["log"]], PUBLIC["witnessed"]["witnesses"], 2))


def _written(data: bytes) -> bytes:
    """People write policies too, so their parser takes more than one spelling: only the written one is looked at."""
    if encode_log_policy(log_policy.parse_log_policy(data)) != data:
        raise BadInput("another spelling")
    return data


def _read_passkey(data: bytes) -> tuple[authenticator_data.NewCredential, bytes]:
    """Beside the bytes: of the authenticator's number and extensions nothing is kept to encode it from."""
    return authenticator_data.parse_authenticator_data(data), data


PASSKEY_SCOPE = relying_party.PasskeyScope("appliance.example", ("https://appliance.example",), False)
PASSKEY_ENVELOPE = dsse.parse_envelope(OWN["passkey_envelope"].encode())
PASSKEY_SIG = PASSKEY_ENVELOPE.signature.sig
BACKUP_STATEMENT = dsse.parse_envelope(OWN["backup"].encode()).payload
FORMATS = {
    "canonical": Format(canonical.parse_canonical, canonical.encode_canonical, OWN["statement"].encode()),
    "envelope": Format(dsse.parse_envelope, dsse.encode_envelope, OWN["envelope"].encode()),
    "statement": Format(dsse.parse_statement, dsse.encode_statement, OWN["statement"].encode()),
    "manifest": Format(manifest.parse_manifest, manifest.encode_manifest, OWN["manifest"].encode()),
    "disclosure": Format(commitment.parse_disclosure, commitment.encode_disclosure, OWN["disclosure"].encode()),
    "trust": Format(trust.parse_trust, trust.encode_trust, OWN["trust"].encode()),
    "step_back": Format(restoration.parse_step_back, restoration.encode_step_back, OWN["step_back"].encode()),
    "restoration": Format(restoration.parse_restoration, restoration.encode_restoration, OWN["restoration"].encode()),
    "backup": Format(backup.parse_backup_statement, backup.encode_backup, BACKUP_STATEMENT),
    "backup index": Format(backup.parse_index, backup.encode_index, OWN["backup_index"].encode()),
    "note with ml-dsa": Format(note.parse_note, note.encode_note, OWN["ml_dsa"]["checkpoint"].encode()),
    "note": Format(note.parse_note, note.encode_note, OWN["checkpoint"].encode()),
    "assertion": Format(webauthn.parse_assertion, webauthn.encode_assertion, PASSKEY_SIG),
    "new passkey": Format(_read_passkey, lambda value: value[1], parse_base64url(OWN["passkey"]["creation"], "data")),
    "rp id": _of_text(relying_party.parse_rp_id, str, "appliance.example"),
    "origin": _of_text(
        lambda text: relying_party.parse_origin(text, "appliance.example"), str, "https://appliance.example:8330"
    ),
    "spki": Format(lambda data: (keys.parse_spki(data), data), lambda value: value[1], P256),
    "checkpoint": _of_text(
        checkpoint.parse_checkpoint, checkpoint.encode_checkpoint, note.parse_note(OWN["checkpoint"].encode()).text
    ),
    "vkey": _of_text(note.parse_vkey, lambda key: note.vkey_of(key.name, key.spki), OWN["vkey"]),
    "vkey of ml-dsa": _of_text(note.parse_vkey, lambda key: note.vkey_of(key.name, key.spki), OWN["ml_dsa"]["vkey"]),
    "witness vkey": _of_text(checkpoint.parse_witness_vkey, lambda key: key.vkey, WITNESS_VKEY),
    "proof": Format(proof.parse_proof, proof.encode_proof, PROOF),
    "witness request": Format(witness_request.parse_request, witness_request.encode_request, REQUEST.encode()),
    "written policy": Format(lambda data: log_policy.parse_log_policy(_written(data)), encode_log_policy, POLICY),
    "commitment": _of_text(commitment.parse_commitment, str, json.loads(OWN["disclosure"])["commitment"]),
    "path": _of_text(lambda text: manifest.parse_path(text, "path"), str, "a/b-c_d.json"),
    "identifier": _of_text(lambda text: fields.parse_identifier(text, "name"), str, "clauses-2"),
    "decimal": _of_text(lambda text: fields.parse_decimal(text, "size"), str, "20852163"),
    "base64": _of_text(lambda text: parse_base64(text, "data"), fields.encode_base64, "AAECAwQ="),
    "base64url": _of_text(lambda text: fields.parse_base64url(text, "data"), fields.encode_base64url, "-_8"),
    "time": _of_text(timestamp.parse_time, timestamp.encode_time, "2026-11-24T15:15:35.123Z"),
    "digest": _of_text(digest.parse_digest, lambda text: text, OWN["pae_digest"]),
}


def holds(fmt: Format, data: bytes) -> None:
    try:
        value = fmt.parse(data)
    except BadInput:
        return
    assert fmt.encode(value) == data


@pytest.mark.parametrize("name", FORMATS)
def test_the_good_example_is_good(name: str) -> None:
    fmt = FORMATS[name]
    assert fmt.encode(fmt.parse(fmt.good)) == fmt.good


@pytest.mark.family(keep=8)
@pytest.mark.parametrize("name", FORMATS)
def test_any_bytes(name: str) -> None:
    @EXAMPLES
    @given(st.binary(max_size=200))
    def run(data: bytes) -> None:
        holds(FORMATS[name], data)

    run()


@pytest.mark.family(keep=8)
@pytest.mark.parametrize("name", FORMATS)
def test_nearly_good_bytes(name: str) -> None:
    @EXAMPLES
    @given(mutated(FORMATS[name].good))
    def run(data: bytes) -> None:
        holds(FORMATS[name], data)

    run()


@pytest.mark.thorough
@pytest.mark.family(keep=8)
@pytest.mark.parametrize(
    "name", [*("envelope", "statement", "manifest", "disclosure", "trust", "assertion", "backup", "backup index")]
)
def test_good_json_with_one_member_exchanged(name: str) -> None:
    fmt = FORMATS[name]
    end = b"\n" if fmt.good.endswith(b"\n") else b""

    @EXAMPLES
    @given(reshaped(json.loads(fmt.good)))
    def run(value: Any) -> None:
        holds(fmt, encode_canonical(value) + end)

    run()


@EXAMPLES
@given(mutated(POLICY))
def test_a_policy_in_any_spelling_says_what_its_written_form_says(data: bytes) -> None:
    with suppress(BadInput):
        policy = log_policy.parse_log_policy(data)
        assert log_policy.parse_log_policy(encode_log_policy(policy)) == policy


@pytest.mark.thorough
@EXAMPLES
@given(mutated(PUBLIC["witnessed"]["note"].encode()))
def test_a_mutated_witnessed_checkpoint_says_the_same_or_is_tampered(data: bytes) -> None:
    policy = log_policy.parse_log_policy(POLICY)
    good = log_policy.open_witnessed(PUBLIC["witnessed"]["note"].encode(), policy)
    with suppress(Tampered):
        assert log_policy.open_witnessed(data, policy).checkpoint == good.checkpoint


@EXAMPLES
@given(mutated(PROOF))
def test_a_mutated_proof_is_tampered(data: bytes) -> None:
    with pytest.raises(Tampered):
        proof.verify_proof(data, bytes(32), log_policy.parse_log_policy(POLICY))


@EXAMPLES
@given(st.binary(max_size=200) | mutated(b"\0\0\0\x02{}\0\0\0\0\0\0\0\x01x"))
def test_any_frame(data: bytes) -> None:
    with suppress(BadInput):
        frame.read_frame(io.BytesIO(data), max_blob=100)


@pytest.mark.thorough
@EXAMPLES
@given(mutated(OWN["key_file"].encode()))
def test_a_key_file_s_header(data: bytes) -> None:
    with suppress(BadInput):
        keys.parse_key_file_spki(data)


@pytest.mark.thorough
@EXAMPLES
@given(reshaped(json.loads(OWN["bundle"])))
def test_a_reshaped_model_signature_is_tampered(value: Any) -> None:
    data = encode_canonical(value)
    if data == OWN["bundle"].encode():
        return
    with pytest.raises(Tampered):
        verify_model(data, P256, OWN["bundle_files"])


@pytest.mark.thorough
@EXAMPLES
@given(mutated(OWN["bundle"].encode()))
def test_a_mutated_model_signature_is_tampered(data: bytes) -> None:
    if data == OWN["bundle"].encode():
        return
    with pytest.raises(Tampered):
        verify_model(data, P256, OWN["bundle_files"])


@EXAMPLES
@given(mutated(OWN["checkpoint"].encode()))
def test_a_mutated_signed_checkpoint_is_tampered(data: bytes) -> None:
    try:
        opened = checkpoint.open_checkpoint(data, OWN["vkey"])
    except Tampered:
        return
    # A second line by a key nobody knows changes nothing of what was signed.
    assert opened == checkpoint.open_checkpoint(OWN["checkpoint"].encode(), OWN["vkey"])


@EXAMPLES
@given(mutated(PASSKEY_SIG))
def test_a_mutated_assertion_is_tampered(data: bytes) -> None:
    if data == PASSKEY_SIG:
        return
    with pytest.raises(Tampered):
        webauthn.verify_assertion(P256, PASSKEY_ENVELOPE.pae, data, PASSKEY_SCOPE)


@EXAMPLES
@given(st.binary(max_size=120), st.binary(max_size=120), st.sampled_from([P256, ED25519, ML_DSA]))
def test_made_up_signatures_are_tampered(data: bytes, sig: bytes, spki: bytes) -> None:
    with pytest.raises(Tampered):
        keys.verify_signature(spki, data, sig)


@EXAMPLES
@given(mutated(keys.encode_spki_pem(P256)))
def test_a_pem_file_gives_a_key_or_bad_input(data: bytes) -> None:
    with suppress(BadInput):
        assert keys.encode_spki_pem(keys.load_spki_pem(data)).strip() == data.replace(b"\r\n", b"\n").strip()
