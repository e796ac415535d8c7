"""A commitment binds a text without saying it; a disclosure opens one commitment and no other."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest

from appliance.errors import BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import (
    Disclosure,
    commit,
    disclose,
    disclosure_value,
    encode_disclosure,
    parse_commitment,
    parse_disclosure,
    parse_disclosure_value,
    verify_disclosure,
)

SALT = bytes(range(32))
NAME = "Alice Müller"


def test_a_commitment_is_the_hmac_of_the_utf_8_text_under_the_salt() -> None:
    assert commit(NAME, SALT) == f"hmac-sha256:{hmac.digest(SALT, NAME.encode(), 'sha256').hex()}"
    # The same in RFC 2104's own terms.
    inner, outer = (bytes(b ^ pad for b in SALT.ljust(64, b"\0")) for pad in (0x36, 0x5C))
    by_hand = hashlib.sha256(outer + hashlib.sha256(inner + NAME.encode()).digest()).hexdigest()
    assert commit(NAME, SALT) == f"hmac-sha256:{by_hand}"


def test_a_disclosure_comes_back_and_opens_its_commitment() -> None:
    disclosure = disclose(NAME, SALT)
    assert parse_disclosure(encode_disclosure(disclosure)) == disclosure
    assert parse_disclosure_value(disclosure_value(disclosure)) == disclosure
    verify_disclosure(disclosure)


def test_another_text_or_salt_does_not_open_it_and_is_not_repeated_in_the_message() -> None:
    good = disclose(NAME, SALT)
    for salt, text in ((SALT, "Mallory"), (SALT[::-1], NAME), (SALT, NAME + " "), (SALT, "Alice Mu\u0308ller")):
        with pytest.raises(Tampered) as caught:
            verify_disclosure(Disclosure(good.commitment, salt, text))
        assert text not in caught.value.message


def test_text_and_salt_do_not_print() -> None:
    assert repr(disclose(NAME, SALT)) == f"Disclosure(commitment='{commit(NAME, SALT)}')"


def test_equal_texts_under_other_salts_look_unrelated() -> None:
    assert commit(NAME, SALT) != commit(NAME, bytes(32))


@pytest.mark.parametrize("salt", [b"", SALT[:16], SALT + b"\0"])
def test_a_salt_has_32_bytes(salt: bytes) -> None:
    with pytest.raises(BadInput, match="salt"):
        commit(NAME, salt)


def test_a_lone_surrogate_is_no_text() -> None:
    with pytest.raises(BadInput):
        commit("\ud800", SALT)


@pytest.mark.parametrize("text", ["", "hmac-sha256:", f"hmac-sha256:{'AB' * 32}", f"sha256:{'ab' * 32}", 5, None])
def test_other_spellings_of_a_commitment_are_refused(text: Any) -> None:
    with pytest.raises(BadInput):
        parse_commitment(text)


def test_other_members_are_refused() -> None:
    good = json.loads(encode_disclosure(disclose(NAME, SALT)))
    variants: list[Any] = [
        [],
        good | {"extra": 1},
        good | {"salt": ""},
        good | {"salt": good["salt"].rstrip("=")},
        good | {"text": None},
        good | {"commitment": "x"},
        {name: value for name, value in good.items() if name != "text"},
    ]
    for variant in variants:
        with pytest.raises(BadInput):
            parse_disclosure(encode_canonical(variant))
