"""A new passkey is read from its authenticator data, strictly: its id, its key, whether it can be copied."""

from __future__ import annotations

import hashlib

import pytest

from appliance.errors import BadInput
from appliance.formats.signatures.keys import EcdsaSigner
from appliance.formats.signatures.webauthn import parse_authenticator_data, parse_cose
from scripts.kit.authenticator import RP_ID, Authenticator


def test_a_new_passkey_says_its_id_its_key_and_whether_it_can_be_copied(p256: EcdsaSigner) -> None:
    made = Authenticator(p256)
    found = parse_authenticator_data(made.creation_data)
    assert (found.spki, found.credential_id, found.backup_eligible) == (p256.spki, made.credential_id, False)
    assert found.rp_id_hash == hashlib.sha256(RP_ID.encode()).digest()
    assert parse_authenticator_data(made.wrong(flags=0x0D).creation_data).backup_eligible


def test_extensions_are_passed_over_where_the_flags_name_them(p256: EcdsaSigner) -> None:
    made = Authenticator(p256, flags=0x85, after=b"\xa1kcredProtect\x03")
    assert parse_authenticator_data(made.creation_data).spki == p256.spki
    for wrong in (made.wrong(flags=0x05), made.wrong(after=b"")):
        with pytest.raises(BadInput, match="extensions that its flags name"):
            parse_authenticator_data(wrong.creation_data)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data[:-1], "bytes"),
        (lambda data: data + b"\0", "extensions"),
        (lambda data: data[:100], "bytes"),
        (lambda data: data + bytes(5_000), "bytes"),
        (lambda data: data[:32] + b"\x05" + data[33:], "expected attested credential data"),
        (lambda data: data[:32] + b"\x41" + data[33:], "expected user present and verified"),
        (lambda data: data[:32] + b"\x44" + data[33:], "expected user present and verified"),
        (lambda data: data[:53] + b"\0\0" + data[55:], "credential id of 1 to 1023 bytes, got 0"),
        (lambda data: data[:53] + b"\x04\0" + data[55:], "credential id of 1 to 1023 bytes, got 1024"),
        (lambda data: data[:53] + b"\0\x1f" + data[55:], "bytes"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "point on its curve"),
    ],
)
def test_other_bytes_are_no_new_passkey(change: object, match: str, p256: EcdsaSigner) -> None:
    assert callable(change)
    with pytest.raises(BadInput, match=match):
        parse_authenticator_data(change(Authenticator(p256).creation_data))


def test_only_es256_in_its_one_encoding_is_a_public_key(p256: EcdsaSigner) -> None:
    cose = Authenticator(p256).creation_data[-77:]
    assert parse_cose(cose) == p256.spki
    others = {
        "ES384": cose.replace(b"\x03\x26", b"\x03\x38\x22"),
        "another curve": cose.replace(b"\x20\x01", b"\x20\x02"),
        "another order": b"\xa5\x03\x26\x01\x02" + cose[5:],
        "a member more": b"\xa6" + cose[1:] + b"\x04\x80",
        "a y as a sign": cose[:-35] + b"\x22\xf5",
        "nothing": b"",
    }
    for name, other in others.items():
        with pytest.raises(BadInput, match="expected ES256 in COSE"):
            parse_cose(other)
        assert other != cose, name
