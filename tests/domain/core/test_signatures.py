"""The acceptance of orders, credentials and proofs of possession: whose signature is valid, and when."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from appliance.domain.actions.registry import ACTIONS, ORDERS
from appliance.domain.core.credentials import UnitToken, encode_credential, encode_token, parse_token
from appliance.domain.core.names import add_seconds
from appliance.domain.core.order import MAX_VALUES, Order, encode_order
from appliance.domain.core.signatures import accept_session, accept_token
from appliance.domain.governance.countersignature import OrderPending
from appliance.domain.governance.people import MOST_PEOPLE, EnrolSeveral, Grant
from appliance.domain.releases.reviews import ReviewRecorded
from appliance.errors import BadInput, Conflict, Denied, NotAuthenticated, Tampered
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.signatures.dsse import Envelope, Signature, encode_envelope, sign_envelope
from appliance.formats.signatures.keys import EcdsaSigner, generate_ed25519
from scripts.kit.log_builder import ORIGIN, LogBuilder, stage
from tests.kit.refusals import refuses

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def review(site: LogBuilder, order: Order, envelope: Envelope | None = None, **rest: Any) -> None:
    signed = envelope or site.sign(order)
    site.add(
        ReviewRecorded(policy=site.in_force),
        documents={"order": encode_envelope(signed)},
        signed=((signed.pae_digest, order),),
        **rest,
    )


def test_an_order_signed_with_anothers_key_is_refused() -> None:
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    with refuses(site, NotAuthenticated, "signature by rita: expected a key enrolled for this principal"):
        review(site, order, site.sign(order, site.keys["raul"]))


def test_an_order_signed_with_a_key_of_nobody_is_refused() -> None:
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    with refuses(site, NotAuthenticated, "signature: expected a key enrolled for this principal"):
        review(site, order, site.sign(order, generate_ed25519()))


def test_the_signature_of_an_order_is_verified_before_its_payload_is_parsed() -> None:
    """A payload whose every value is wrong costs the most time to refuse."""
    site = stage("sealed")
    payload = b"no order"
    by_nobody, by_rita = sign_envelope(payload, generate_ed25519()), sign_envelope(payload, site.keys["rita"])
    forged = Envelope(payload, Signature(site.keys["rita"].keyid, by_nobody.signature.sig))
    for envelope, words in (
        (by_nobody, "expected a key enrolled for this principal"),
        (forged, "expected a valid one"),
    ):
        for read in (ORDERS.read, ORDERS.accept):
            with pytest.raises(NotAuthenticated, match=words):
                read(site.state, encode_envelope(envelope), site.now)
        with pytest.raises(NotAuthenticated, match=words):
            ORDERS.read_logged(site.state, encode_envelope(envelope), site.state.size)
        with pytest.raises(NotAuthenticated, match=words):
            ORDERS.read_recorded(site.state, encode_envelope(envelope))
    with pytest.raises(BadInput, match="canonical JSON"):
        ORDERS.read(site.state, encode_envelope(by_rita), site.now)


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_an_order_with_too_many_values_is_refused_before_its_fields_are_validated(
    action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validate(*_: object) -> None:
        raise AssertionError("the fields were validated")

    monkeypatch.setattr("appliance.domain.core.order.parse_value", validate)
    order = ACTIONS[action].example
    statement = parse_canonical(encode_order(order))
    statement["predicate"]["more"] = [1] * MAX_VALUES
    with pytest.raises(BadInput, match="order: expected at most 2000 values"):
        ORDERS.parse(encode_canonical(statement))


def test_the_largest_orders_have_few_enough_values() -> None:
    """An import with every label, and an enrolment of as many people with as many roles as there can be."""
    dataset = ACTIONS["import-dataset"].example.model_copy(
        update={"labels": tuple(f"label, {number}" for number in range(1_000))}
    )
    several = ACTIONS["enrol-several"].example
    assert isinstance(several, EnrolSeveral)
    roles = tuple(f"reviewer:area-{number}" for number in range(8))
    people = tuple(
        several.people[0].model_copy(
            update={"principal": f"person-{number}", "keyid": f"sha256:{number:064x}", "roles": roles}
        )
        for number in range(MOST_PEOPLE)
    )
    for order in (dataset, several.model_copy(update={"people": people})):
        assert ORDERS.parse(encode_order(order)) == order


def test_an_order_by_nobody_is_refused_in_the_same_words() -> None:
    """An outsider does not learn who exists."""
    site = stage("sealed")
    order = site.review_order("nobody", "privacy")
    with refuses(site, NotAuthenticated, "signature by nobody: expected a key enrolled for this principal"):
        review(site, order, site.sign(order, site.keys["rita"]))


def test_a_flipped_bit_in_the_signature_is_found() -> None:
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    good = site.sign(order)
    for place in (0, 31, 32, 63):
        sig = bytearray(good.signature.sig)
        sig[place] ^= 1
        forged = Envelope(good.payload, Signature(good.signature.keyid, bytes(sig)))
        with refuses(site, NotAuthenticated, "signature by rita", "expected a valid one"):
            review(site, order, forged)


def test_a_signature_over_other_bytes_is_found() -> None:
    """The reviewer signed a rejection; somebody made an approval of it."""
    site = stage("sealed")
    rejection = site.review_order("rita", "privacy", decision="reject")
    approval = rejection.model_copy(update={"decision": "approve"})
    signed = site.sign(rejection)
    forged = Envelope(encode_order(approval), signed.signature)
    with refuses(site, NotAuthenticated, "expected a valid one"):
        review(site, approval, forged)


def test_an_order_for_another_log_is_refused() -> None:
    site = stage("sealed")
    order = site.review_order("rita", "privacy", origin="other.example/log")
    with refuses(site, NotAuthenticated, f"expected one for the log {ORIGIN}, got other.example/log"):
        review(site, order)


def test_a_key_enrolled_later_signs_nothing_before() -> None:
    """The order is refused now, and accepted once the key is enrolled."""
    site = stage("sealed")
    site.keys["zoe"] = generate_ed25519()
    early = site.review_order("zoe", "privacy")
    with refuses(site, NotAuthenticated, "expected a key enrolled"):
        review(site, early)
    site.enrol("zoe", "reviewer:privacy")
    review(site, early)


def test_a_revoked_persons_order_is_refused() -> None:
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    site.revoke("rita")
    with refuses(site, NotAuthenticated, "signature by rita: The key", "is no longer valid"):
        review(site, order)


def test_a_revoked_person_opens_no_session_and_holds_no_token() -> None:
    site = stage("staffed")
    session, token = encode_envelope(site.session("audrey")), unit_token(site, "legal")
    accept_session(site.state, session, site.now)
    accept_token(site.state, token, site.now)
    site.revoke("audrey")
    site.revoke("legal")
    with pytest.raises(NotAuthenticated, match="is no longer valid"):
        accept_session(site.state, session, site.now)
    with pytest.raises(NotAuthenticated, match="is no longer valid"):
        accept_token(site.state, token, site.now)


@pytest.mark.parametrize("table", ["keys", "principals"])
def test_a_revoked_key_and_a_revoked_person_sign_nothing_each_by_itself(table: str) -> None:
    """A log revokes both at once; a database in wrong hands might not."""
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    rows, row = getattr(site.state, table), site.keys["rita"].keyid if table == "keys" else "rita"
    rows.put(row, rows.get(row).model_copy(update={"revoked": 1}))
    with refuses(site, NotAuthenticated, "signature by rita: The key"):
        review(site, order)


# Replay.


def test_an_order_is_accepted_once() -> None:
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    review(site, order)
    with refuses(site, Conflict, "expected a new one, got one accepted as entry"):
        review(site, order)


def test_the_other_valid_signature_of_an_ecdsa_order_is_a_replay_too() -> None:
    site = stage("sealed")
    site.keys["eve"] = EcdsaSigner(generate_private_key(SECP256R1()))
    site.enrol("eve", "reviewer:security")
    order = site.review_order("eve", "security")
    signed = site.sign(order)
    r, s = decode_dss_signature(signed.signature.sig)
    twin = Envelope(signed.payload, Signature(signed.signature.keyid, encode_dss_signature(r, P256_ORDER - s)))
    assert ORDERS.read(site.state, encode_envelope(twin), site.now).order == order, "the twin's signature holds"
    review(site, order, signed)
    with refuses(site, Conflict, "expected a new one"):
        review(site, order, twin)


def test_an_order_that_was_pending_is_not_accepted_again() -> None:
    site = stage("staffed")
    order = site.order(Grant, "anna", principal="olga", role="reviewer:safety")
    envelope = site.pend(order)
    with refuses(site, Conflict, "expected a new one"):
        site.add(
            OrderPending(policy=site.in_force),
            documents={"order": encode_envelope(envelope)},
            signed=((envelope.pae_digest, order),),
        )


# Lifetime.


@pytest.mark.parametrize(
    ("issued_s", "expires_s", "words", "code"),
    [
        (-700, 0, "It expired at", "expired"),
        (-700, -100, "It expired at", "expired"),
        (61, 600, ". The service's clock shows", "not-yet-valid"),
        (0, 172_801, "It is valid from", "too-long"),
        (-3000, 170_000, "It is valid from", "too-long"),
    ],
)
def test_an_order_stands_in_its_time_only(issued_s: int, expires_s: int, words: str, code: str) -> None:
    site = stage("sealed")
    site.now = add_seconds(site.now, 3_600)  # since its key was enrolled
    times = {"issued_at": add_seconds(site.now, issued_s), "expires_at": add_seconds(site.now, expires_s)}
    with refuses(site, Denied, words, code=code):
        review(site, site.review_order("rita", "privacy", **times))


@pytest.mark.parametrize(("issued_s", "expires_s"), [(60, 600), (0, 172_800), (-3_599, 169_201)])
def test_an_order_at_the_edge_of_its_time_stands(issued_s: int, expires_s: int) -> None:
    site = stage("sealed")
    site.now = add_seconds(site.now, 3_600)  # since its key was enrolled
    times = {"issued_at": add_seconds(site.now, issued_s), "expires_at": add_seconds(site.now, expires_s)}
    review(site, site.review_order("rita", "privacy", **times))


def test_an_order_of_the_end_of_time_is_refused_by_name() -> None:
    site = stage("sealed")
    times = {"issued_at": site.now, "expires_at": "9999-12-31T23:59:59.999Z"}
    with refuses(site, Denied, "It is valid from", code="too-long"):
        review(site, site.review_order("rita", "privacy", **times))


# What an envelope says.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"predicateType": "urn:appliance:order:review:v2"}, "predicateType"),
        (lambda s: s | {"predicateType": "urn:appliance:order:approve:v1"}, "predicateType"),
        (lambda s: s | {"predicateType": "urn:appliance:statement:review:v1"}, "predicateType"),
        (lambda s: s | {"predicate": s["predicate"] | {"more": 1}}, "more"),
        (lambda s: s | {"predicate": s["predicate"] | {"nonce": "short"}}, "nonce"),
        (lambda s: s | {"subject": [{"name": "adapter:clauses@2", "digest": s["subject"][0]["digest"]}]}, "subjects"),
        (lambda s: s | {"subject": s["subject"] + [{"name": "x", "digest": s["subject"][0]["digest"]}]}, "subjects"),
    ],
)
def test_a_statement_that_is_not_exactly_an_order_is_refused(change: Any, words: str) -> None:
    """Signed by the right person all the same."""
    site = stage("sealed")
    order = site.review_order("rita", "privacy")
    payload = encode_canonical(change(parse_canonical(encode_order(order))))
    with refuses(site, BadInput, words):
        review(site, order, sign_envelope(payload, site.keys["rita"]))


def test_a_session_statement_is_no_order_and_an_order_no_session() -> None:
    site = stage("sealed")
    with refuses(site, BadInput, "predicateType"):
        review(site, site.review_order("rita", "privacy"), site.session("rita"))
    order = site.sign(site.review_order("rita", "privacy"))
    with pytest.raises(BadInput, match="predicateType"):
        accept_session(site.state, encode_envelope(order), site.now)


# Proof of possession.


@pytest.mark.parametrize("field", ["origin", "signer", "key", "keyid"])
def test_a_proof_of_possession_is_for_this_name_key_and_log(field: str) -> None:
    site = stage("initialized")
    mine, other = generate_ed25519(), generate_ed25519()
    site.keys["olga"] = mine
    wrong = {
        "origin": "other.example/log",
        "signer": "oleg",
        "key": base64.b64encode(other.spki).decode(),
        "keyid": other.keyid,
    }
    proof = site.possession("olga", mine, **{field: wrong[field]})
    order, _ = site.enrolment("olga", ("operator",), possession=proof.pae_digest)
    with refuses(site, BadInput, "proof of possession of olga: expected"):
        site.pend(order, {"possession": encode_envelope(proof)})


def test_a_proof_of_possession_that_the_order_does_not_bind_is_refused() -> None:
    site = stage("initialized")
    order, _ = site.enrolment("olga", ("operator",))
    again = site.possession("olga", site.keys["olga"], nonce="1" * 32)
    with refuses(site, BadInput, "proof of possession of olga"):
        site.pend(order, {"possession": encode_envelope(again)})


def test_nobody_enrols_a_key_that_somebody_else_holds() -> None:
    """The administrator knows the public key alone, and signs the proof with a key of her own."""
    site = stage("initialized")
    victim, mallory = generate_ed25519(), generate_ed25519()
    site.keys["olga"] = victim
    statement = site.possession("olga", victim)
    by_mallory = sign_envelope(statement.payload, mallory)
    order, _ = site.enrolment("olga", ("operator",), possession=by_mallory.pae_digest)
    with refuses(site, BadInput, "expected a signature by", "got one by"):
        site.pend(order, {"possession": encode_envelope(by_mallory)})
    claimed = Envelope(by_mallory.payload, Signature(victim.keyid, by_mallory.signature.sig))
    with refuses(site, Tampered, "expected a valid one"):
        site.pend(order, {"possession": encode_envelope(claimed)})


# Sessions and tokens.


def unit_token(site: LogBuilder, unit: str, **fields: Any) -> Envelope:
    defaults: dict[str, Any] = {
        "origin": ORIGIN,
        "signer": unit,
        "nonce": "0" * 32,
        "issued_at": site.now,
        "expires_at": add_seconds(site.now, 3600),
    }
    return sign_envelope(encode_credential(UnitToken(**defaults | fields)), site.keys[unit])


def test_a_units_token_stands_for_an_hour() -> None:
    site = stage("staffed")
    envelope = unit_token(site, "legal")
    token, unit = accept_token(site.state, parse_token(encode_token(envelope)), site.now)
    assert (token.signer, unit.name) == ("legal", "legal")
    with pytest.raises(NotAuthenticated, match="expired"):
        accept_token(site.state, envelope, add_seconds(site.now, 3600))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"origin": "other.example/log"}, "expected one for the log"),
        ({"expires_at": "2026-01-15T10:30:20.000Z"}, "Policy allows 3600 seconds"),
        ({"issued_at": "2026-01-15T09:32:00.000Z", "expires_at": "2026-01-15T09:40:00.000Z"}, "issued at"),
        ({"signer": "sales"}, "expected a key enrolled for this principal"),
    ],
)
def test_a_token_of_another_log_time_or_unit_is_refused(fields: dict[str, str], words: str) -> None:
    site = stage("staffed")
    site.now = "2026-01-15T09:30:10.000Z"
    defaults: dict[str, Any] = {
        "origin": ORIGIN,
        "signer": "legal",
        "nonce": "0" * 32,
        "issued_at": site.now,
        "expires_at": add_seconds(site.now, 3600),
    }
    envelope = sign_envelope(encode_credential(UnitToken(**defaults | fields)), site.keys["legal"])
    with pytest.raises(NotAuthenticated, match=words):
        accept_token(site.state, envelope, site.now)


def test_a_person_who_is_no_unit_has_no_token() -> None:
    site = stage("staffed")
    with pytest.raises(NotAuthenticated, match="expected a principal with the role unit"):
        accept_token(site.state, unit_token(site, "olga"), site.now)


def test_a_session_lasts_as_long_as_policy_allows() -> None:
    site = stage("staffed")
    long = site.session("audrey", expires_at=add_seconds(site.now, 901))
    with pytest.raises(NotAuthenticated, match="Policy allows 900 seconds"):
        accept_session(site.state, encode_envelope(long), site.now)


def test_a_session_is_no_token() -> None:
    site = stage("staffed")
    with pytest.raises(BadInput, match="predicateType"):
        accept_token(site.state, site.session("legal"), site.now)


@pytest.mark.parametrize("text", ["", "x", "bm90IGpzb24", "{}", "ä", "e30="])
def test_a_token_of_other_text_is_not_authenticated(text: str) -> None:
    with pytest.raises(NotAuthenticated, match="expected a signed unit token"):
        parse_token(text)
