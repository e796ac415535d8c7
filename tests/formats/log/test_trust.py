"""A trust file names one log, its first entry and its administrators, in one spelling."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.log.note import vkey_of
from appliance.formats.log.trust import Trust, encode_trust, parse_trust
from appliance.formats.signatures.keys import Ed25519Signer
from appliance.formats.signatures.ml_dsa import MlDsaSigner

ORIGIN = "appliance.example/log"
GENESIS = f"sha256:{'ab' * 32}"


@pytest.fixture
def trust(ed25519: Ed25519Signer, other_ed25519: Ed25519Signer) -> Trust:
    administrators = (("bob", ed25519.keyid), ("alice", other_ed25519.keyid))
    return Trust(ORIGIN, vkey_of(ORIGIN, ed25519), GENESIS, administrators)


def test_a_trust_file_comes_back_and_ends_in_a_newline(trust: Trust) -> None:
    data = encode_trust(trust)
    assert data.endswith(b"}\n")
    assert parse_trust(data) == trust
    for other in (data[:-1], data + b"\n", data[:-1] + b" \n", b""):
        with pytest.raises(BadInput):
            parse_trust(other)


def test_a_trust_file_that_contradicts_itself_cannot_be_built(trust: Trust, ed25519: Ed25519Signer) -> None:
    key = ed25519.keyid
    others: list[tuple[Any, ...]] = [
        ("appliance.example/other", trust.log_key, GENESIS, trust.administrators),
        (ORIGIN, trust.log_key[:-1], GENESIS, trust.administrators),
        (ORIGIN, trust.log_key, "ab" * 32, trust.administrators),
        (ORIGIN, trust.log_key, GENESIS, ()),
        (ORIGIN, trust.log_key, GENESIS, (("alice", key), ("bob", key))),
        (ORIGIN, trust.log_key, GENESIS, (("alice", key), ("alice", GENESIS))),
        (ORIGIN, trust.log_key, GENESIS, (("Alice", key),)),
        (ORIGIN, trust.log_key, GENESIS, (("alice", "key"),)),
    ]
    for arguments in others:
        with pytest.raises(BadInput):
            Trust(*arguments)


def test_other_members_are_refused(trust: Trust) -> None:
    good = json.loads(encode_trust(trust))
    person = good["administrators"][0]
    variants: list[Any] = [
        [],
        good | {"version": 2},
        good | {"version": "1"},
        good | {"version": True},
        good | {"extra": 1},
        good | {"origin": 1},
        good | {"logKey": None},
        good | {"genesis": 1},
        good | {"administrators": person},
        good | {"administrators": [person | {"role": "administrator"}]},
        good | {"administrators": [{"name": "alice"}]},
        good | {"administrators": [person | {"name": 1}]},
    ]
    for variant in variants:
        with pytest.raises(BadInput):
            parse_trust(encode_canonical(variant) + b"\n")


def test_a_trust_file_can_name_a_second_key_of_ml_dsa(ed25519: Ed25519Signer, ml_dsa_key: MlDsaSigner) -> None:
    vkey, second = vkey_of(ORIGIN, ed25519), vkey_of(ORIGIN, ml_dsa_key)
    people = (("alice", ed25519.keyid),)
    trust = Trust(ORIGIN, vkey, f"sha256:{'ab' * 32}", people, second)
    data = encode_trust(trust)
    assert parse_trust(data) == trust
    assert trust.log_keys == (second, vkey)
    assert f'"postQuantumLogKey":"{second}"'.encode() in data
    assert Trust(ORIGIN, vkey, f"sha256:{'ab' * 32}", people).log_keys == (vkey,)
    for changed in (vkey, vkey_of("appliance.example/other", ml_dsa_key), "nonsense"):
        with pytest.raises(BadInput):
            Trust(ORIGIN, vkey, f"sha256:{'ab' * 32}", people, changed)
    with pytest.raises(BadInput, match="ML-DSA-65 as postQuantumLogKey only"):
        Trust(ORIGIN, second, f"sha256:{'ab' * 32}", people)
    with pytest.raises(BadInput):
        parse_trust(data.replace(b'"postQuantumLogKey":"', b'"postQuantumLogKey":5,"x":"'))
