"""py_webauthn, an independent implementation, takes and refuses the assertions and new passkeys that ours does."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from appliance.errors import BadInput, Tampered
from appliance.formats.core.fields import encode_base64url
from appliance.formats.signatures.keys import EcdsaSigner
from appliance.formats.signatures.webauthn import (
    challenge_of,
    parse_assertion,
    parse_authenticator_data,
    verify_assertion,
)
from scripts.kit.authenticator import PLACE, RP_ID, Authenticator

webauthn = pytest.importorskip("webauthn")

PAE = b"DSSEv1 a PAE"
EMPTY_CBOR = b"\xa0"


def cose_of(passkey: Authenticator) -> bytes:
    """Return the public key in COSE: the end of the authenticator's creation data."""
    return passkey.wrong(after=b"", flags=0x05).creation_data[-77:]


def judge_public(passkey: Authenticator, sig: bytes) -> bool:
    one = parse_assertion(sig)
    response = {
        "authenticatorData": encode_base64url(one.authenticator_data),
        "clientDataJSON": encode_base64url(one.client_data_json),
        "signature": encode_base64url(one.signature),
    }
    name = encode_base64url(passkey.credential_id)
    try:
        webauthn.verify_authentication_response(
            credential=json.dumps({"id": name, "rawId": name, "type": "public-key", "response": response}),
            expected_challenge=challenge_of(PAE),
            expected_rp_id=RP_ID,
            expected_origin=[PLACE],
            credential_public_key=cose_of(passkey),
            credential_current_sign_count=0,
            require_user_verification=True,
        )
    except webauthn.helpers.exceptions.WebAuthnException:
        return False
    return True


def judge_ours(passkey: Authenticator, sig: bytes, enrolled: Authenticator) -> bool:
    try:
        verify_assertion(passkey.spki, PAE, sig, enrolled.scope)
    except Tampered:
        return False
    return True


@pytest.mark.parametrize(
    ("parts", "holds"),
    [
        ({}, True),
        ({"counter": 9}, True),
        ({"flags": 0x85, "after": EMPTY_CBOR}, True),
        ({"client": {"added": 1}}, True),
        ({"client": {"type": "webauthn.create"}}, False),
        ({"client": {"challenge": "AAAA"}}, False),
        ({"client": {"origin": "https://evil.example"}}, False),
        ({"client": {"origin": f"{PLACE}:8443"}}, False),
        ({"rp_id": "other.example"}, False),
        ({"flags": 0x01}, False),
        ({"flags": 0x04}, False),
    ],
)
def test_both_judge_an_assertion_alike(parts: dict[str, Any], holds: bool, p256: EcdsaSigner) -> None:
    passkey = Authenticator(p256, **parts)
    sig = passkey.sign(PAE)
    assert (judge_public(passkey, sig), judge_ours(passkey, sig, Authenticator(p256))) == (holds, holds)


def test_both_refuse_a_signature_by_another(p256: EcdsaSigner, other_p256: EcdsaSigner) -> None:
    passkey, other = Authenticator(p256), Authenticator(other_p256)
    assert not judge_public(passkey, other.sign(PAE))
    assert not judge_ours(passkey, other.sign(PAE), passkey)


@pytest.mark.parametrize("parts", [{}, {"flags": 0x0D}, {"flags": 0x85, "after": b"\xa1kcredProtect\x02"}])
def test_both_read_the_same_key_and_id_of_a_new_passkey(parts: dict[str, Any], p256: EcdsaSigner) -> None:
    passkey = Authenticator(p256, **parts)
    theirs = webauthn.helpers.parse_authenticator_data(passkey.creation_data)
    ours = parse_authenticator_data(passkey.creation_data)
    assert theirs.attested_credential_data is not None
    assert theirs.attested_credential_data.credential_id == ours.credential_id
    assert theirs.attested_credential_data.credential_public_key == cose_of(passkey)
    assert (theirs.rp_id_hash, theirs.flags.be) == (ours.rp_id_hash, ours.backup_eligible)
    key = webauthn.helpers.decode_credential_public_key(cose_of(passkey))
    assert key.x + key.y == ours.spki[-64:]
    assert hashlib.sha256(RP_ID.encode()).digest() == ours.rp_id_hash


def test_ours_reads_a_key_in_one_encoding_alone(p256: EcdsaSigner) -> None:
    """The other also takes a map in another order, which no authenticator may write (CTAP2's canonical CBOR)."""
    good = cose_of(Authenticator(p256))
    reordered = b"\xa5\x03\x26\x01\x02" + good[5:]
    assert webauthn.helpers.decode_credential_public_key(reordered).x == p256.spki[-64:-32]
    with pytest.raises(BadInput):
        parse_authenticator_data(Authenticator(p256).creation_data[:-77] + reordered)
