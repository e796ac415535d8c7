"""A passkey's assertion signs an envelope when every check of WebAuthn level 3 that needs no server state holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.errors import BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.fields import encode_base64url
from appliance.formats.signatures.dsse import (
    PAYLOAD_TYPE,
    encode_envelope,
    pae,
    parse_envelope,
    sign_envelope,
    verify_envelope,
)
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer
from appliance.formats.signatures.webauthn import (
    MAX_AUTHENTICATOR_DATA_BYTES,
    MAX_CLIENT_DATA_BYTES,
    Assertion,
    PasskeyScope,
    challenge_of,
    parse_assertion,
    verify_assertion,
)
from scripts.kit.authenticator import PLACE, RP_ID, Authenticator

PAYLOAD = b"payload"
PAE = pae(PAYLOAD_TYPE, PAYLOAD)
SCOPE = PasskeyScope(RP_ID, (PLACE,), backup_eligible=False)
SYNCED = PasskeyScope(RP_ID, (PLACE,), backup_eligible=True)


def test_an_assertion_signs_an_envelope(p256: EcdsaSigner) -> None:
    envelope = sign_envelope(PAYLOAD, Authenticator(p256))
    assert parse_envelope(encode_envelope(envelope)) == envelope
    verify_envelope(envelope, p256.spki, SCOPE)


def test_an_assertion_counts_where_it_was_enrolled_alone(p256: EcdsaSigner) -> None:
    envelope = sign_envelope(PAYLOAD, Authenticator(p256))
    with pytest.raises(Tampered, match="expected a plain signature, got a passkey's assertion"):
        verify_envelope(envelope, p256.spki)
    with pytest.raises(Tampered, match="origin"):
        verify_envelope(envelope, p256.spki, PasskeyScope("other.example", ("https://other.example",), False))
    with pytest.raises(Tampered, match="origin"):
        verify_envelope(envelope, p256.spki, PasskeyScope(RP_ID, (f"{PLACE}:8443",), False))


def test_a_passkey_makes_no_plain_signature_that_counts(p256: EcdsaSigner) -> None:
    with pytest.raises(Tampered, match="expected a passkey's assertion, got a plain signature"):
        verify_envelope(sign_envelope(PAYLOAD, p256), p256.spki, SCOPE)


def test_the_identity_is_the_same_for_both_signature_kinds(p256: EcdsaSigner) -> None:
    assert sign_envelope(PAYLOAD, Authenticator(p256)).pae_digest == sign_envelope(PAYLOAD, p256).pae_digest


def test_an_assertion_holds_for_no_other_payload_or_key(p256: EcdsaSigner, other_p256: EcdsaSigner) -> None:
    sig = Authenticator(p256).sign(PAE)
    with pytest.raises(Tampered, match="challenge"):
        verify_assertion(p256.spki, pae(PAYLOAD_TYPE, b"Payload"), sig, SCOPE)
    with pytest.raises(Tampered, match="signature"):
        verify_assertion(other_p256.spki, PAE, sig, SCOPE)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"client": {"type": "webauthn.create"}}, "type"),
        ({"client": {"type": None}}, "type"),
        ({"client": {"challenge": None}}, "challenge"),
        ({"client": {"challenge": ""}}, "challenge"),
        ({"client": {"challenge": encode_base64url(challenge_of(PAE)) + "="}}, "challenge"),
        ({"client": {"crossOrigin": True}}, "crossOrigin"),
        ({"client": {"crossOrigin": 0}}, "crossOrigin"),
        ({"client": {"topOrigin": "https://evil.example"}}, "crossOrigin"),
        ({"client": {"origin": None}}, "origin"),
        ({"client": {"origin": f"http://{RP_ID}"}}, "origin"),
        ({"client": {"origin": "https://evil.example"}}, "origin"),
        ({"client": {"origin": f"https://evil{RP_ID}"}}, "origin"),
        ({"client": {"origin": f"https://console.{RP_ID}"}}, "origin"),
        ({"client": {"origin": f"{PLACE}.evil.example"}}, "origin"),
        ({"client": {"origin": f"{PLACE}/"}}, "origin"),
        ({"client": {"origin": f"{PLACE}:8443"}}, "origin"),
        ({"client": {"origin": f"{PLACE}:443"}}, "origin"),
        ({"client": {"origin": PLACE.upper()}}, "origin"),
        ({"client": {"origin": "null"}}, "origin"),
        ({"client": {"origin": 5}}, "origin"),
        ({"client": {"origin": [PLACE]}}, "origin"),
        ({"rp_id": "other.example"}, "rpIdHash"),
        ({"flags": 0x00}, "flags"),
        ({"flags": 0x01}, "flags"),
        ({"flags": 0x04}, "flags"),
        ({"flags": 0x0D}, "a key that cannot be copied, as enrolled"),
        ({"flags": 0x15}, "backup"),
        ({"flags": 0x45}, "attested"),
        ({"flags": 0x85}, "expected more than 37 bytes"),
        ({"after": b"x"}, "expected 37 bytes, got 38"),
        ({"flags": 0x85, "after": bytes(MAX_AUTHENTICATOR_DATA_BYTES)}, "authenticatorData"),
        ({"client": {"padding": "x" * MAX_CLIENT_DATA_BYTES}}, "clientDataJSON"),
    ],
)
def test_each_wrong_part_is_refused_even_when_signed(wrong: dict[str, Any], match: str, p256: EcdsaSigner) -> None:
    with pytest.raises((Tampered, BadInput), match=match):
        verify_assertion(p256.spki, PAE, Authenticator(p256, **wrong).sign(PAE), SCOPE)


@pytest.mark.parametrize(
    "right",
    [
        {"client": {"crossOrigin": None}},
        {"client": {"later": ["added", {"by": "browsers"}]}},
        {"flags": 0x85, "after": b"\xa0"},
        {"counter": 7},
    ],
)
def test_what_browsers_may_add_is_accepted(right: dict[str, Any], p256: EcdsaSigner) -> None:
    verify_assertion(p256.spki, PAE, Authenticator(p256, **right).sign(PAE), SCOPE)


@pytest.mark.parametrize("flags", [0x0D, 0x1D])
def test_a_key_that_can_be_copied_signs_as_one(flags: int, p256: EcdsaSigner) -> None:
    verify_assertion(p256.spki, PAE, Authenticator(p256, flags=flags).sign(PAE), SYNCED)
    with pytest.raises(Tampered, match="a key that can be copied, as enrolled"):
        verify_assertion(p256.spki, PAE, Authenticator(p256).sign(PAE), SYNCED)


def test_another_port_of_localhost_is_another_origin(p256: EcdsaSigner) -> None:
    scope = PasskeyScope("localhost", ("http://localhost:8330",), backup_eligible=False)
    local = Authenticator(p256, rp_id="localhost", origin="http://localhost:8330")
    verify_assertion(p256.spki, PAE, local.sign(PAE), scope)
    with pytest.raises(Tampered, match="origin: expected http://localhost:8330, got 'http://localhost:9999'"):
        verify_assertion(p256.spki, PAE, local.wrong(origin="http://localhost:9999").sign(PAE), scope)


def test_an_assertion_says_its_counter_which_no_check_rests_on(p256: EcdsaSigner) -> None:
    counted = Authenticator(p256, counter=4_294_967_295)
    assert verify_assertion(p256.spki, PAE, counted.sign(PAE), SCOPE).counter == 4_294_967_295
    assert verify_assertion(p256.spki, PAE, counted.wrong(counter=1).sign(PAE), SCOPE).counter == 1


def test_only_p256_signs_assertions(p256: EcdsaSigner, p384: EcdsaSigner, ed25519: Ed25519Signer) -> None:
    with pytest.raises(Tampered, match="P-256"):
        verify_assertion(p384.spki, PAE, Authenticator(p256).sign(PAE), SCOPE)
    with pytest.raises(Tampered, match="P-256"):
        verify_assertion(ed25519.spki, PAE, Authenticator(p256).sign(PAE), SCOPE)


def test_client_data_must_be_one_object_without_double_members(p256: EcdsaSigner) -> None:
    challenge = encode_base64url(challenge_of(PAE))
    twice = f'{{"type":"webauthn.get","challenge":"x","challenge":"{challenge}","origin":"{PLACE}"}}'
    number = f'{{"type":"webauthn.get","challenge":"{challenge}","origin":"{PLACE}","n":NaN}}'
    for client_data in (b"[]", b"\xff", b"[" * 4_000, b"{} {}", twice.encode(), number.encode()):
        with pytest.raises(Tampered, match="clientDataJSON"):
            verify_assertion(p256.spki, PAE, Authenticator(p256).assert_over(client_data), SCOPE)


def test_the_wrapping_has_one_spelling(p256: EcdsaSigner) -> None:
    good = json.loads(Authenticator(p256).sign(PAE))
    parse_assertion(encode_canonical(good))
    variants: list[Any] = [
        [],
        good | {"userHandle": ""},
        {name: value for name, value in good.items() if name != "signature"},
        good | {"signature": 5},
        good | {"signature": good["signature"] + "="},
        good | {"signature": "+/+/"},
        good | {"signature": "A"},
        good | {"signature": "AB"},
        good | {"authenticatorData": ""},
        good | {"clientDataJSON": ""},
        good | {"signature": encode_base64url(bytes(73))},
    ]
    for variant in variants:
        with pytest.raises(BadInput):
            parse_assertion(encode_canonical(variant))
        with pytest.raises(Tampered):
            verify_assertion(p256.spki, PAE, encode_canonical(variant), SCOPE)
    with pytest.raises(BadInput):
        parse_assertion(json.dumps(good).encode())


@pytest.mark.parametrize("part", ["authenticator_data", "client_data_json", "signature"])
def test_each_part_has_a_least_size(part: str) -> None:
    parts = {"authenticator_data": bytes(37), "client_data_json": b"{}", "signature": bytes(70)}
    with pytest.raises(BadInput, match="bytes, got 0"):
        Assertion(**parts | {part: b""})
