"""A trust policy is C2SP's: the quorum is counted as it is written, and a file that says anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.errors import BadInput, Tampered
from appliance.formats.log.checkpoint import Checkpoint, cosign, encode_checkpoint, sign_checkpoint, witness_vkey_of
from appliance.formats.log.log_policy import (
    LogPolicy,
    PolicyLog,
    PolicyWitness,
    WitnessGroup,
    open_witnessed,
    parse_log_policy,
    satisfies,
)
from appliance.formats.log.note import Note, NoteSignature, add_signature, encode_note, parse_note, sign_note, vkey_of
from appliance.formats.signatures.keys import Ed25519Signer
from appliance.formats.signatures.ml_dsa import MlDsaSigner, generate_ml_dsa
from tests.formats.conftest import ORIGIN
from tests.kit.log_policies import encode_log_policy, quorum_policy

NAMES = ("X1", "X2", "X3", "Y1", "Y2", "Y3")


def signer(number: int) -> Ed25519Signer:
    return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


LOG, OLD_LOG = signer(100), signer(101)
WITNESSES = {name: signer(number) for number, name in enumerate(NAMES, 1)}
LOG_KEY = vkey_of(ORIGIN, LOG)
VKEYS = {name: witness_vkey_of(f"{name}.example", key) for name, key in WITNESSES.items()}


@pytest.fixture(scope="module")
def example(vectors: Callable[[str], Any]) -> bytes:
    """Return the specification's example, with keys in place of its words."""
    text = vectors("transparency")["policy"].replace("<log>", LOG_KEY)
    for name, vkey in VKEYS.items():
        text = text.replace(f"<{name}>", vkey)
    return text.encode()


def checkpoint(*names: str) -> bytes:
    note = parse_note(sign_checkpoint(Checkpoint(ORIGIN, 7, bytes(32)), LOG))
    for name in names:
        note = add_signature(note, cosign(note, f"{name}.example", WITNESSES[name], 1_764_000_000))
    return encode_note(note)


def test_the_specification_s_quorum_of_two_groups_is_counted(example: bytes) -> None:
    """At least two of the X witnesses and one of the Y witnesses: tried with every set of them."""
    policy = parse_log_policy(example)
    for count in range(len(NAMES) + 1):
        for names in combinations(NAMES, count):
            expected = sum(name[0] == "X" for name in names) >= 2 and any(name[0] == "Y" for name in names)
            assert satisfies(policy, names) is expected


def test_a_name_that_no_witness_has_counts_for_nothing(example: bytes) -> None:
    policy = parse_log_policy(example)
    assert not satisfies(policy, ["X-witnesses", "Y-witnesses", "X-and-Y", "none", "Z9"])


def test_a_policy_is_written_in_one_spelling(example: bytes) -> None:
    policy = parse_log_policy(example)
    written = encode_log_policy(policy)
    assert parse_log_policy(written) == policy
    assert encode_log_policy(parse_log_policy(written)) == written
    assert b"group Y-witnesses 1 Y1 Y2 Y3\n" in written
    assert written.endswith(b"quorum X-and-Y\n")


def test_comments_white_space_and_order_are_the_author_s() -> None:
    text = f"# our witnesses\n\n \twitness\tw1  {VKEYS['X1']} https://w1.example/ \n  # more\n" + (
        f"quorum w1\n\t\nlog {LOG_KEY} https://log.example/\nwitness w2 {VKEYS['X2']}\n"
    )
    witnesses = (PolicyWitness("w1", VKEYS["X1"], "https://w1.example/"), PolicyWitness("w2", VKEYS["X2"]))
    assert parse_log_policy(text.encode()) == LogPolicy(
        (PolicyLog(LOG_KEY, "https://log.example/"),), witnesses, (), "w1"
    )


def test_names_are_bytes() -> None:
    """A kelvin sign is no K, and bytes that are no UTF-8 are a name like any other."""
    kelvin, broken = "\u212a".encode(), b"\xff\x80"
    lines = b"witness K %b\nwitness %b %b\nwitness %b %b\ngroup g all K %b %b\nquorum g\n"
    keys = [VKEYS[name].encode() for name in NAMES[:3]]
    data = lines % (keys[0], kelvin, keys[1], broken, keys[2], kelvin, broken)
    policy = parse_log_policy(data)
    assert len(policy.witnesses) == 3
    assert encode_log_policy(policy) == data.replace(b"all", b"3")


def test_none_asks_for_no_witness() -> None:
    policy = parse_log_policy(b"quorum none\n")
    assert policy == LogPolicy()
    assert satisfies(policy, [])


W1, W2 = f"witness w1 {VKEYS['X1']}\n", f"witness w2 {VKEYS['X2']}\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        W1,
        f"{W1}quorum w1",
        f"{W1}quorum w1\nquorum w1\n",
        f"quorum w1\n{W1}",
        f"{W1}quorum w2\n",
        f"{W1}{W1}quorum w1\n",
        f"{W1}witness w2 {VKEYS['X1']}\nquorum w1\n",
        f"{W1}witness w2 {witness_vkey_of('other', WITNESSES['X1'])}\nquorum w1\n",
        f"{W1}witness w1 {VKEYS['X2']}\nquorum w1\n",
        f"{W1}group w1 any w1\nquorum w1\n",
        f"witness none {VKEYS['X1']}\nquorum none\n",
        f"{W1}group none any w1\nquorum none\n",
        f"{W1}group g any none\nquorum g\n",
        f"{W1}group g any\nquorum g\n",
        f"{W1}group g 0 w1\nquorum g\n",
        f"{W1}group g 2 w1\nquorum g\n",
        f"{W1}group g -1 w1\nquorum g\n",
        f"{W1}group g 01 w1\nquorum g\n",
        f"{W1}group g some w1\nquorum g\n",
        f"{W1}group g any w1 w1\nquorum g\n",
        f"{W1}group g any w1\ngroup h any w1 g\nquorum h\n",
        f"{W1}group g any g w1\nquorum g\n",
        f"{W1}group g any w1 w2\n{W2}quorum g\n",
        f"{W1}quorum w1 # a comment behind a line is none\n",
        f"{W1}quorum\n",
        f"witness w1 {LOG_KEY}\nquorum w1\n",
        f"log {VKEYS['X1']}\nquorum none\n",
        f"log {LOG_KEY}\nlog {LOG_KEY}\nquorum none\n",
        f"log {LOG_KEY}\nlog {vkey_of('other', LOG)}\nquorum none\n",
        f"log {LOG_KEY} url more\nquorum none\n",
        "log\nquorum none\n",
        "Quorum none\n",
        "quorum none\r\n",
        "quorum none\n\x00\n",
        "quorum none\n# \x7f\n",
        "quorum\u00a0none\n",
    ],
)
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_log_policy(text.encode())


def test_a_policy_of_words_with_spaces_cannot_be_made() -> None:
    for url in ("", "a b", "a\n"):
        with pytest.raises(BadInput, match="white space"):
            LogPolicy((PolicyLog(LOG_KEY, url),))
    with pytest.raises(BadInput, match="white space"):
        LogPolicy((), (PolicyWitness("w 1", VKEYS["X1"]),))
    with pytest.raises(BadInput, match="threshold"):
        LogPolicy((), (PolicyWitness("w", VKEYS["X1"]),), (WitnessGroup("g", 2, ("w",)),), "g")


def test_k_of_n_witnesses() -> None:
    policy = quorum_policy([LOG_KEY], [VKEYS["X1"], VKEYS["X2"], VKEYS["X3"]], 2)
    assert [satisfies(policy, names) for names in ([], ["X1.example"], ["X1.example", "X3.example"])] == [
        False,
        False,
        True,
    ]
    assert quorum_policy([LOG_KEY], [VKEYS["X1"]], 0).quorum == "none"
    for witnesses, quorum in (([], 1), ([VKEYS["X1"]], 2), ([VKEYS["X1"]], -1), ([VKEYS["X1"], VKEYS["X1"]], 1)):
        with pytest.raises(BadInput):
            quorum_policy([LOG_KEY], witnesses, quorum)


def test_a_checkpoint_with_its_quorum_is_opened(example: bytes) -> None:
    witnessed = open_witnessed(checkpoint("X1", "X3", "Y2"), parse_log_policy(example))
    assert witnessed.checkpoint == Checkpoint(ORIGIN, 7, bytes(32))
    assert witnessed.times_s == dict.fromkeys(("X1", "X3", "Y2"), 1_764_000_000)


def test_a_checkpoint_without_its_quorum_is_not(example: bytes) -> None:
    for names in ((), ("X1", "Y1"), ("X1", "X2", "X3")):
        with pytest.raises(Tampered, match="expected the quorum"):
            open_witnessed(checkpoint(*names), parse_log_policy(example))


def test_a_cosignature_of_a_known_witness_that_does_not_hold_spoils_the_note(example: bytes) -> None:
    note = parse_note(checkpoint("X1", "X2", "Y1", "Y2"))
    spoiled = NoteSignature(note.signatures[-1].name, note.signatures[-1].key_id, bytes(72))
    with pytest.raises(Tampered, match="time"):
        open_witnessed(encode_note(add_signature(note, spoiled)), parse_log_policy(example))


def test_another_log_s_checkpoint_is_refused(example: bytes) -> None:
    cosigned = parse_note(checkpoint("X1", "X2", "Y1"))
    with pytest.raises(Tampered, match="one of the policy's logs"):
        open_witnessed(encode_note(Note(cosigned.text, cosigned.signatures[1:])), parse_log_policy(example))
    with pytest.raises(Tampered):
        open_witnessed(b"no note", parse_log_policy(example))


def test_two_keys_of_one_log_may_sign_while_the_key_is_rotated() -> None:
    """The checkpoint opens under the old key, the new one or both; a line of a known key must be valid."""
    new, old = LOG_KEY, vkey_of(ORIGIN, OLD_LOG)
    text = encode_checkpoint(Checkpoint(ORIGIN, 7, bytes(32)))
    data = sign_note(text, ORIGIN, OLD_LOG, LOG)
    for keys in ([new], [old], [new, old]):
        assert open_witnessed(data, quorum_policy(keys, [], 0)).checkpoint.size == 7
    lines = parse_note(data).signatures
    spoiled = Note(text, (lines[0], NoteSignature(lines[1].name, lines[1].key_id, bytes(64))))
    assert open_witnessed(encode_note(spoiled), quorum_policy([old], [], 0)).checkpoint.size == 7
    for keys in ([new], [new, old]):
        with pytest.raises(Tampered):
            open_witnessed(encode_note(spoiled), quorum_policy(keys, [], 0))


def test_a_trust_file_s_second_key_must_sign_as_well(ed25519: Ed25519Signer, ml_dsa_key: MlDsaSigner) -> None:
    checkpoint = Checkpoint(ORIGIN, 7, bytes(32))
    vkey, second = vkey_of(ORIGIN, ed25519), vkey_of(ORIGIN, ml_dsa_key)
    policy = replace(quorum_policy([vkey], [], 0), second_keys=(second,))
    assert open_witnessed(sign_checkpoint(checkpoint, ml_dsa_key, ed25519), policy).checkpoint == checkpoint
    for data in (sign_checkpoint(checkpoint, ed25519), sign_checkpoint(checkpoint, generate_ml_dsa(), ed25519)):
        assert open_witnessed(data, quorum_policy([vkey], [], 0)).checkpoint == checkpoint
        with pytest.raises(Tampered, match="expected one by"):
            open_witnessed(data, policy)
