"""Passkeys: enrolled by two administrators with a proof of possession, they sign where they were enrolled, until
revoked."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.actions.registry import list_refusal_reasons
from appliance.domain.core import signatures
from appliance.domain.core.credentials import SessionStatement, UnitToken, encode_credential
from appliance.domain.core.names import add_seconds
from appliance.domain.core.signatures import accept_session, accept_token
from appliance.domain.governance.keys import KeyEnrolled, KeyRevoked, ReplaceKey, RevokeKey
from appliance.domain.governance.passkeys import PasskeyEnrolled, list_passkeys
from appliance.domain.releases.reviews import ReviewRecorded
from appliance.errors import BadInput, Conflict, Denied, NotAuthenticated, Tampered
from appliance.formats.core.fields import encode_base64url
from appliance.formats.signatures.dsse import Envelope, Signature, encode_envelope, parse_envelope, sign_envelope
from appliance.formats.signatures.keys import EcdsaSigner, Signer, generate_ed25519
from scripts.kit.authenticator import PLACE, RP_ID, Authenticator, new_passkey
from scripts.kit.log_builder import ORIGIN, LogBuilder, b64, policy_set, stage
from tests.domain.audit.test_verify import verify
from tests.domain.governance.test_keeping import against
from tests.kit.refusals import refuses

LOCAL = {"rp_id": "localhost", "origin": "http://localhost:8330"}


def reasons(site: LogBuilder, passkey: Authenticator, name: str = "rita", **fields: Any) -> str:
    """Return the refusal reasons of the passkey's enrolment."""
    order, _ = site.passkey_order(name, passkey, **fields)
    return " ".join(map(str, list_refusal_reasons(site.state, order, site.now)))


def signed(site: LogBuilder, passkey: Signer) -> None:
    """Approve as rita by the passkey."""
    site.ordered(ReviewRecorded(policy=site.in_force), site.review_order("rita", "privacy"), key=passkey)


# Enrolment.


def test_a_passkey_is_one_more_key_of_its_person() -> None:
    site = stage("staffed")
    before = site.state.principals.get("rita")
    first, second = site.enrol_passkey("rita"), site.enrol_passkey("rita", passkey="phone")
    assert [key.keyid for key in list_passkeys(site.state, "rita")] == [first.keyid, second.keyid]
    assert list_passkeys(site.state, "raul") == []
    row = site.state.keys.get(first.keyid)
    assert row is not None and row.scope == first.scope and row.passkey is not None and row.passkey.name == "blue"
    assert site.state.principals.get("rita") == before
    assert verify(site).verdict == "verified"


def test_a_passkey_needs_two_administrators() -> None:
    site = stage("staffed")
    order, documents = site.passkey_order("rita", new_passkey())
    with refuses(site, Denied, "administrators: expected a second one's countersignature"):
        site.ordered(PasskeyEnrolled(policy=site.in_force), order, documents=documents)
    with refuses(site, Denied, "anna signed this order and cannot countersign it."):
        site.fork().two(PasskeyEnrolled(policy=site.in_force), order, documents, second="anna")


def test_a_passkey_of_an_outsider_is_refused() -> None:
    site = stage("staffed")
    assert "nobody is not enrolled" in reasons(site, new_passkey(), "nobody")
    site.revoke("raul")
    assert "raul was revoked" in reasons(site, new_passkey(), "raul")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"rp_id": "127.0.0.1", "origins": ("https://127.0.0.1",)},
            "The passkey is for an address at which no browser can use it: passkey, rp id: expected a domain",
        ),
        ({"rp_id": "::1"}, "no IP address"),
        ({"origins": ("https://evil.example",)}, "origin: expected a host that is appliance.example or below it"),
        ({"origins": (f"{PLACE}/",)}, "origin: expected https://HOST"),
        ({"origins": (f"http://{RP_ID}",)}, "origin: expected https"),
        ({"origins": (f"https://b.{RP_ID}", f"https://a.{RP_ID}")}, "origins: expected them sorted"),
        ({"key": b64(generate_ed25519().spki)}, "The key is not that of a passkey, which is on the curve P-256."),
        ({"key": b64(b"none")}, "The order contains no public key"),
    ],
)
def test_what_no_browser_would_sign_with_is_refused(fields: dict[str, Any], words: str) -> None:
    assert words in reasons(stage("staffed"), new_passkey(), **fields)


def test_a_key_a_name_and_a_credential_id_are_taken_for_ever() -> None:
    site = stage("staffed")
    first = site.enrol_passkey("rita")
    site.ordered(KeyRevoked(policy=site.in_force), site.order(RevokeKey, "rita", **of("rita", first), since=None))
    found = reasons(site, first)
    assert f"The key {first.keyid} was enrolled before" in found
    assert f"This passkey was enrolled before, with the key {first.keyid}" in found
    assert "rita has had a passkey with the name blue" in found
    taken = encode_base64url(first.credential_id)
    assert "This passkey was enrolled before" in reasons(site, new_passkey(), "raul", credential_id=taken)
    assert reasons(site, new_passkey(), "raul") == ""


def test_a_passkey_of_a_unit_opens_sessions_and_signs_no_token() -> None:
    """Its programs hold the key file: a token that a browser made would leave with a page."""
    site = stage("staffed")
    passkey = site.enrol_passkey("legal")
    times = {"issued_at": site.now, "expires_at": add_seconds(site.now, 60)}
    header = {"origin": ORIGIN, "signer": "legal", "nonce": "0" * 32, **times}
    session = encode_credential(SessionStatement(**header))
    opened = encode_envelope(sign_envelope(session, passkey))
    assert accept_session(site.state, opened, site.now)[1].name == "legal"
    token = encode_credential(UnitToken(**header))
    assert accept_token(site.state, sign_envelope(token, site.keys["legal"]), site.now)[1].name == "legal"
    with pytest.raises(NotAuthenticated, match="expected one signed by its key file, got one by a passkey"):
        accept_token(site.state, sign_envelope(token, passkey), site.now)


def of(name: str, passkey: Authenticator) -> dict[str, Any]:
    return {"principal": name, "keyid": passkey.keyid}


@pytest.mark.parametrize("text", ["", "AB", "A=", "+/+/", "A" * 1_368])
def test_a_credential_id_is_base64url_of_few_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="credential_id"):
        stage("staffed").passkey_order("rita", new_passkey(), credential_id=text)


def test_a_key_that_can_be_copied_and_localhost_need_a_policy_that_says_so() -> None:
    site = stage("staffed")
    synced, local = new_passkey(flags=0x0D), new_passkey(**LOCAL)
    assert "Policy (passkeys_synced)" in reasons(site, synced)
    assert "This passkey is for localhost. Policy (passkeys_on_localhost)" in reasons(site, local)
    site.adopt(policy_set(passkeys_synced=True))
    assert reasons(site, synced) == ""
    assert "passkeys_on_localhost" in reasons(site, local)
    site.adopt(policy_set(passkeys_on_localhost=True))
    assert reasons(site, local) == ""
    site.enrol_passkey("rita", local)


# The proof of possession.


@pytest.mark.parametrize(
    ("member", "other"),
    [
        ("passkey", "red"),
        ("credential_id", "AAAA"),
        ("rp_id", f"x.{RP_ID}"),
        ("origins", (f"{PLACE}:8443",)),
        ("backup_eligible", True),
    ],
)
def test_the_order_says_what_the_passkey_signed_of_itself(member: str, other: Any) -> None:
    site = stage("staffed", policy_set(passkeys_synced=True))
    passkey = new_passkey()
    order, documents = site.passkey_order("rita", passkey)
    changed = {member: other}
    if member == "rp_id":
        changed["origins"] = (f"https://x.{RP_ID}",)
    with refuses(site, BadInput, f"proof of possession of rita, {member}: expected"):
        site.pend(order.model_copy(update=changed), documents)


def test_the_proof_is_the_passkeys_own_for_this_person_and_log() -> None:
    site = stage("staffed")
    passkey = new_passkey()
    order, documents = site.passkey_order("rita", passkey)
    _, others = site.passkey_order("raul", passkey)
    with refuses(site, BadInput, "proof of possession of rita, signer: expected rita, got raul"):
        site.pend(order, others)
    plain = site.possession("rita", passkey.key)
    with refuses(site, BadInput, "expected predicateType urn:appliance:statement:passkey:v1"):
        site.pend(order, {"possession": encode_envelope(plain)})
    assert documents


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"flags": 0x01}, "expected user present and verified"),
        ({"flags": 0x0D}, "expected a key that cannot be copied, as enrolled"),
        ({"origin": f"{PLACE}:8443"}, f"origin: expected {PLACE}, got"),
        ({"rp_id": "other.example"}, "rpIdHash"),
        ({"client": {"crossOrigin": True}}, "crossOrigin"),
    ],
)
def test_the_proof_is_checked_as_every_assertion(wrong: dict[str, Any], words: str) -> None:
    site = stage("staffed")
    passkey = new_passkey()
    said = {"rp_id": RP_ID, "origins": (PLACE,), "backup_eligible": False}
    order, documents = site.passkey_order("rita", passkey.wrong(**wrong), **said)
    with refuses(site, Tampered, words):
        site.pend(order, documents)


def test_a_plain_signature_proves_no_passkey() -> None:
    site = stage("staffed")
    passkey = new_passkey()
    order, documents = site.passkey_order("rita", passkey)
    envelope = sign_envelope(parse_envelope(documents["possession"]).payload, passkey.key)
    with refuses(site, Tampered, "expected a passkey's assertion, got a plain signature"):
        site.pend(order, {"possession": encode_envelope(envelope)})


def test_a_passkey_is_enrolled_as_no_key_file() -> None:
    """The proof of an ordinary key is a plain signature."""
    site = stage("staffed")
    passkey = new_passkey()
    proof = site.possession("rita", passkey)
    fields = {"key": b64(passkey.spki), "keyid": passkey.keyid, "possession": proof.pae_digest}
    order, _, _ = site.new_key(ReplaceKey, "anna", "rita", **fields)
    with refuses(site, Tampered, "expected a plain signature, got a passkey's assertion"):
        site.pend(order, {"possession": encode_envelope(proof)})


# Signing.


def test_an_approval_by_a_passkey_counts_and_is_verified_offline() -> None:
    site = stage("sealed")
    passkey = site.enrol_passkey("rita")
    signed(site, passkey)
    site.review("raul", "model-risk")
    assert against(site) == []
    site.activate()
    site.load()
    assert verify(site).verdict == "verified"


def test_an_administrator_countersigns_with_a_passkey() -> None:
    site = stage("staffed")
    site.keys["ben"] = site.enrol_passkey("ben")
    site.enrol("eve", "auditor")
    assert "eve" in site.state.principals
    assert verify(site).verdict == "verified"


def test_a_passkey_opens_a_session() -> None:
    site = stage("staffed")
    site.keys["rita"] = site.enrol_passkey("rita")
    statement, person = accept_session(site.state, encode_envelope(site.session("rita")), site.now)
    assert statement.signer == person.name == "rita"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"origin": f"{PLACE}:8443"}, "origin"),
        ({"origin": f"https://console.{RP_ID}"}, "origin"),
        ({"rp_id": "other.example"}, "rpIdHash"),
        ({"flags": 0x01}, "expected user present and verified"),
        ({"flags": 0x04}, "expected user present and verified"),
        ({"flags": 0x0D}, "as enrolled"),
        ({"client": {"type": "webauthn.create"}}, "type"),
    ],
)
def test_an_assertion_that_says_otherwise_signs_nothing(wrong: dict[str, Any], words: str) -> None:
    site = stage("sealed")
    passkey = site.enrol_passkey("rita")
    with refuses(site, NotAuthenticated, words):
        signed(site, passkey.wrong(**wrong))


def test_an_assertion_for_another_statement_signs_nothing() -> None:
    site = stage("sealed")
    passkey = site.enrol_passkey("rita")
    order, other = site.review_order("rita", "privacy"), site.review_order("rita", "privacy", decision="reject")
    one, two = site.sign(order, passkey), site.sign(other, passkey)
    moved = Envelope(two.payload, one.signature)
    with refuses(site, NotAuthenticated, "challenge"):
        site.add(
            ReviewRecorded(policy=site.in_force),
            documents={"order": encode_envelope(moved)},
            signed=((moved.pae_digest, other),),
        )


def test_an_assertion_counts_once() -> None:
    site = stage("sealed")
    passkey = site.enrol_passkey("rita")
    order = site.review_order("rita", "privacy")
    site.ordered(ReviewRecorded(policy=site.in_force), order, key=passkey)
    with refuses(site, Conflict, "expected a new one, got one accepted as entry"):
        site.ordered(ReviewRecorded(policy=site.in_force), order, key=passkey)


def test_a_confirmation_that_is_no_assertion_signs_nothing() -> None:
    """Not a plain signature by the same secret, nor an assertion under a key file's name."""
    site = stage("sealed")
    passkey = site.enrol_passkey("rita")
    with refuses(site, NotAuthenticated, "expected a passkey's assertion, got a plain signature"):
        signed(site, passkey.key)
    order = site.review_order("rita", "privacy")
    envelope = site.sign(order, passkey)
    renamed = Envelope(envelope.payload, Signature(site.keys["rita"].keyid, b"{}"))
    with refuses(site, NotAuthenticated, "signature by rita"):
        site.add(
            ReviewRecorded(policy=site.in_force),
            documents={"order": encode_envelope(renamed)},
            signed=((renamed.pae_digest, order),),
        )


def test_an_ordinary_key_signs_no_assertion() -> None:
    site = stage("sealed")
    key = EcdsaSigner(new_passkey().key.private)
    proof = site.possession("rita", key)
    fields = {"key": b64(key.spki), "keyid": key.keyid, "possession": proof.pae_digest}
    order, _, _ = site.new_key(ReplaceKey, "anna", "rita", **fields)
    site.two(KeyEnrolled(policy=site.in_force), order, {"possession": encode_envelope(proof)})
    with refuses(site, NotAuthenticated, "expected a plain signature, got a passkey's assertion"):
        signed(site, Authenticator(key))


# What ends it.


def test_a_revoked_passkey_signs_nothing_more_and_what_it_signed_counts() -> None:
    site = stage("sealed")
    passkey = site.enrol_passkey("rita")
    signed(site, passkey)
    site.review("raul", "model-risk")
    order = site.order(RevokeKey, "rita", **of("rita", passkey), since=None)
    site.ordered(KeyRevoked(policy=site.in_force), order)
    with refuses(site, NotAuthenticated, "is no longer valid"):
        signed(site, passkey)
    assert against(site) == []
    site.review("rita", "privacy")


def test_what_a_stolen_passkey_signed_is_taken_back() -> None:
    site = stage("sealed")
    passkey = site.enrol_passkey("rita")
    since = site.state.size
    signed(site, passkey)
    site.review("raul", "model-risk")
    site.ordered(KeyRevoked(policy=site.in_force), site.order(RevokeKey, "anna", **of("rita", passkey), since=since))
    assert against(site) != []
    assert verify(site).verdict == "verified"


def test_a_rotation_ends_no_passkey_and_a_replacement_ends_all() -> None:
    site = stage("sealed")
    passkey = site.enrol_passkey("rita")
    site.rotate("rita", site.now)
    signed(site, passkey)
    site.replace("rita")
    with refuses(site, NotAuthenticated, "is no longer valid"):
        signed(site, passkey)


def test_a_policy_that_takes_its_kind_back_ends_its_power_and_not_its_past() -> None:
    site = stage("sealed", policy_set(passkeys_synced=True, passkeys_on_localhost=True))
    passkey = site.enrol_passkey("rita", new_passkey(flags=0x0D, **LOCAL))
    signed(site, passkey)
    site.review("raul", "model-risk")
    site.adopt(policy_set(passkeys_on_localhost=True))
    assert against(site) == []
    aside = site.fork()
    with refuses(aside, NotAuthenticated, "passkeys_synced"):
        signed(aside, passkey)
    site.adopt(policy_set(passkeys_synced=True))
    aside = site.fork()
    with refuses(aside, NotAuthenticated, "passkeys_on_localhost"):
        signed(aside, passkey)
    site.adopt(policy_set(passkeys_synced=True, passkeys_on_localhost=True))
    site.now = add_seconds(site.now, 1)
    signed(site, passkey)
    assert verify(site).verdict == "verified"


@pytest.mark.parametrize("wrong", [{"origin": f"{PLACE}:8443"}, {"flags": 0x01}, {"client": {"challenge": "AAAA"}}])
def test_a_log_with_an_assertion_that_does_not_hold_fails(
    wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a service would write it that did not check it; the verifier needs the log and nothing else."""
    site = stage("sealed")
    passkey = site.enrol_passkey("rita")
    with monkeypatch.context() as patch:
        patch.setattr(signatures, "verify_envelope", lambda *_: None)
        signed(site, passkey.wrong(**wrong))
    report = verify(site)
    assert report.verdict == "failed"
    assert [finding.index for finding in report.findings if "passkey signature" in finding.message] == [
        len(site.entries) - 1
    ]
