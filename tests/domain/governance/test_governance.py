"""The rules of governance: the first entry, principals, roles, policy, refusals, sessions, service processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from appliance.domain.actions.apply import apply
from appliance.domain.actions.registry import list_refusal_reasons
from appliance.domain.core.entry import MAX_SUBJECTS, record_refusals
from appliance.domain.core.names import NO_DIGEST, add_seconds, encode_value
from appliance.domain.core.order import Order, encode_order
from appliance.domain.core.policy import LAYERS, Parameters, PolicySet, parse_policy
from appliance.domain.core.state import State
from appliance.domain.governance import countersignature
from appliance.domain.governance.countersignature import Countersign, OrderRefused
from appliance.domain.governance.keys import ReplaceKey, RotateKey
from appliance.domain.governance.people import (
    MOST_PEOPLE,
    Grant,
    PrincipalEnrolled,
    PrincipalsEnrolled,
    RevokePrincipal,
    RoleGranted,
    authorise_enrol_several,
    join_proofs,
    split_proofs,
)
from appliance.domain.governance.policies import AdoptPolicy, PolicyAdopted
from appliance.domain.governance.service import Administrator, Heartbeat, ServiceStarted, ServiceStopped
from appliance.domain.governance.sessions import CLOSABLE_S, AuthRefused, SessionClosed, SessionOpened
from appliance.domain.retention import HoldPlaced, PlaceHold
from appliance.errors import ApplianceError, BadInput, Denied, NotAuthenticated
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.note import vkey_of
from appliance.formats.signatures.dsse import encode_envelope
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import LogBuilder, b64, policy_digest, policy_set, stage
from tests.kit.curve import twins
from tests.kit.refusals import refuses

# The first entry.


def first(site: LogBuilder, documents: dict[str, bytes] | None = None, **fields: Any) -> None:
    """Apply a first entry to an empty state."""
    body = site.first.model_copy(update=fields)
    entry, bound = site.entry(
        body,
        documents=documents or {"policy": encode_value(site.policy)},
        index=0,
        prev=NO_DIGEST,
        time=site.now,
    )
    apply(State(), entry, bound)


def person(name: str, **fields: Any) -> Administrator:
    key = generate_ed25519()
    defaults: dict[str, Any] = {"name": name, "key": b64(key.spki), "keyid": key.keyid}
    return Administrator(**defaults | fields)


def test_the_first_entry_makes_administrators_and_puts_the_policy_in_force() -> None:
    site = LogBuilder()
    assert {p.name: p.roles for p in site.state.principals.values()} == {
        "anna": ("administrator",),
        "ben": ("administrator",),
    }
    assert site.state.site.policy == policy_digest(site.policy)
    assert not site.state.site.single_administrator


ANNA = person("anna")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"administrators": (person("anna"), person("anna"))}, "different names"),
        ({"administrators": (ANNA, ANNA.model_copy(update={"name": "ben"}))}, "different keys"),
        ({"administrators": (person("anna"),)}, "two, or one declared as single"),
        ({"single_administrator": True}, "two, or one declared as single"),
        ({"administrators": (person("anna"), person("ben", keyid=NO_DIGEST))}, "key: expected"),
        ({"administrators": (person("anna"), person("ben", key=b64(b"no key")))}, "public key"),
        ({"log_key": vkey_of("other.example/log", generate_ed25519())}, "log key: expected the key of"),
        ({"log_key": "no key"}, "vkey"),
        ({"adapter_key": b64(b"no key")}, "public key"),
    ],
)
def test_a_first_entry_that_does_not_hold_together_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ApplianceError, match=words):
        first(LogBuilder(), **fields)


def test_a_first_entry_with_a_broken_policy_is_refused() -> None:
    with pytest.raises(BadInput, match="policy set"):
        first(LogBuilder(), documents={"policy": b"{}"})


@pytest.mark.parametrize("key", ["A", "AA=", "====", "A A=", "é", ""])
def test_a_key_that_is_no_base64_is_refused_by_name(key: str) -> None:
    site = LogBuilder()
    body = site.first.model_dump(mode="json")
    body["administrators"][0]["key"] = key
    entry, bound = site.entry(
        site.first, documents={"policy": encode_value(site.policy)}, index=0, prev=NO_DIGEST, body=body
    )
    with pytest.raises(BadInput, match=r"administrators\.0\.key"):
        apply(State(), entry, bound)


# Enrolment.


def test_two_administrators_enrol_a_person() -> None:
    site = stage("initialized")
    site.enrol("olga", "operator")
    olga = site.state.principals.get("olga")
    assert olga is not None and olga.roles == ("operator",)
    assert len(site.state.pending) == 0


def test_one_administrator_alone_enrols_nobody() -> None:
    site = stage("initialized")
    order, documents = site.enrolment("rita", ("reviewer:privacy",))
    with refuses(site, Denied, "administrators: expected a second one's countersignature, got one order"):
        site.ordered(PrincipalEnrolled(policy=site.in_force), order, documents=documents)


def test_an_administrator_does_not_countersign_her_own_order() -> None:
    site = stage("initialized")
    order, documents = site.enrolment("rita", ("reviewer:privacy",))
    envelope = site.pend(order, documents)
    with refuses(site, Denied, "anna signed this order and cannot countersign it."):
        site.countersign(PrincipalEnrolled(policy=site.in_force), order, envelope, documents, second="anna")


def test_an_operator_countersigns_nothing() -> None:
    site = stage("staffed")
    order, documents = site.enrolment("eve", ("reviewer:privacy",))
    envelope = site.pend(order, documents)
    with refuses(site, Denied, "olga is operator. This action needs administrator or recovery."):
        site.countersign(PrincipalEnrolled(policy=site.in_force), order, envelope, documents, second="olga")


def test_an_operator_orders_no_enrolment() -> None:
    site = stage("staffed")
    order, documents = site.enrolment("eve", ("reviewer:privacy",), signer="olga")
    with refuses(site, Denied, "olga is operator. This action needs administrator."):
        site.pend(order, documents)


def test_an_countersignature_of_what_is_not_pending_is_refused() -> None:
    site = stage("initialized")
    order, documents = site.enrolment("olga", ("operator",))
    with refuses(site, Denied, "waits for a second administrator."):
        site.countersign(PrincipalEnrolled(policy=site.in_force), order, site.sign(order), documents)


def test_an_countersignature_counts_once() -> None:
    site = stage("initialized")
    order, documents = site.enrolment("olga", ("operator",))
    envelope = site.pend(order, documents)
    site.countersign(PrincipalEnrolled(policy=site.in_force), order, envelope, documents)
    with refuses(site, Denied, "waits for a second administrator."):
        site.countersign(PrincipalEnrolled(policy=site.in_force), order, envelope, documents)


def test_an_countersignature_of_one_order_does_not_carry_another() -> None:
    site = stage("initialized")
    good, documents = site.enrolment("olga", ("operator",))
    bad, others = site.enrolment("mallory", ("administrator",))
    pending = site.pend(good, documents)
    countersignature = site.order(Countersign, "ben", order=pending.pae_digest)
    signed, smuggled = site.sign(countersignature), site.sign(bad)
    with refuses(site, Denied, "countersigned: expected", pending.pae_digest):
        site.add(
            PrincipalEnrolled(policy=site.in_force),
            documents={"order": encode_envelope(signed), "countersigned": encode_envelope(smuggled), **others},
            signed=((signed.pae_digest, countersignature), (smuggled.pae_digest, bad)),
        )


def test_an_countersignature_without_the_countersigned_order_is_refused() -> None:
    site = stage("initialized")
    order, documents = site.enrolment("olga", ("operator",))
    pending = site.pend(order, documents)
    countersignature = site.order(Countersign, "ben", order=pending.pae_digest)
    with refuses(site, BadInput, "document countersigned: expected the order"):
        site.ordered(PrincipalEnrolled(policy=site.in_force), countersignature, documents=documents)


def test_an_order_that_has_expired_is_not_countersigned() -> None:
    site = stage("initialized")
    order, documents = site.enrolment("olga", ("operator",))
    envelope = site.pend(order, documents)
    site.now = order.expires_at
    with refuses(site, Denied, "The order expired at"):
        site.countersign(PrincipalEnrolled(policy=site.in_force), order, envelope, documents)


def test_an_order_of_an_administrator_who_was_revoked_since_is_not_countersigned() -> None:
    site = stage("initialized")
    site.enrol("cleo", "administrator")
    order, documents = site.enrolment("olga", ("operator",))
    envelope = site.pend(order, documents)
    site.revoke("anna", "ben")
    with refuses(site, NotAuthenticated, "signature by anna: The key"):
        site.countersign(PrincipalEnrolled(policy=site.in_force), order, envelope, documents)


def test_an_countersigned_grant_does_not_stand_as_an_enrolment() -> None:
    site = stage("staffed")
    order = site.order(Grant, "anna", principal="olga", role="reviewer:safety")
    envelope = site.pend(order)
    _, documents = site.enrolment("eve", ("operator",))
    with refuses(site, Denied, "order: expected enrol, got grant"):
        site.countersign(PrincipalEnrolled(policy=site.in_force), order, envelope, documents)


@pytest.mark.parametrize(
    ("name", "roles", "fields", "words"),
    [
        ("olga", ("operator",), {}, "The name olga belongs to an enrolled or revoked principal for ever."),
        (
            "eve",
            ("auditor", "operator"),
            {},
            "A principal with the role auditor can have no other role. The roles of eve would be",
        ),
        ("eve", ("administrator", "reviewer:privacy"), {}, "can have no other role. The roles of eve would be"),
        (
            "eve",
            ("unit", "operator"),
            {},
            "A principal with the role unit can have no other role. The roles of eve would be",
        ),
        ("eve", ("release-owner:nowhere",), {}, "is not an enrolled unit."),
        ("eve", ("release-owner:olga",), {}, "is not an enrolled unit."),
    ],
)
def test_an_enrolment_that_breaks_an_invariant_is_refused(
    name: str, roles: tuple[str, ...], fields: dict[str, Any], words: str
) -> None:
    site = stage("staffed")
    if name == "olga":
        site.keys.pop("olga")
    order, documents = site.enrolment(name, roles, **fields)
    with refuses(site, Denied, words):
        site.pend(order, documents)


def test_an_order_that_expired_is_dropped_when_the_next_one_waits() -> None:
    site = stage("staffed")
    first = site.pend(site.order(Grant, "anna", principal="olga", role="reviewer:safety"))
    site.now = add_seconds(site.now, site.state.parameters.order_lifetime_s + 1)
    second = site.pend(site.order(Grant, "anna", principal="olga", role="reviewer:safety"))
    assert first.pae_digest not in site.state.pending and second.pae_digest in site.state.pending


def test_a_signer_has_so_many_waiting_orders_and_others_have_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(countersignature, "MAX_WAITING_ORDERS", 2)
    site = stage("staffed")
    site.pend(site.order(Grant, "anna", principal="rita", role="reviewer:cost"))
    order = site.order(Grant, "anna", principal="olga", role="reviewer:safety")
    waiting = site.pend(order)
    third = site.order(Grant, "anna", principal="olga", role="reviewer:safety")
    with refuses(site, Denied, "Orders of anna that wait for a second administrator: 2. One person can have"):
        site.pend(third)
    site.pend(site.order(Grant, "ben", principal="olga", role="reviewer:safety"))
    site.countersign(RoleGranted(policy=site.in_force), order, waiting)
    site.pend(site.order(Grant, "anna", principal="olga", role="reviewer:cost"))


TWO: dict[str, tuple[str, ...]] = {"eve": ("auditor",), "mia": ("operator", "reviewer:cost")}


def test_several_are_enrolled_by_one_order_and_one_countersignature() -> None:
    site = stage("staffed")
    order, documents = site.enrolments(TWO)
    waiting = site.pend(order, documents)
    assert site.state.principals.get("eve") is None, "it waits"
    entry = site.countersign(PrincipalsEnrolled(policy=site.in_force), order, waiting, documents)
    for name, roles in TWO.items():
        person = site.state.principals.get(name)
        assert person is not None and (person.roles, person.enrolled) == (roles, entry.index)
        assert site.state.keys.get(site.keys[name].keyid) is not None
        assert f"principal:{name}" in entry.subjects
        assert site.state.texts.get(person.printed_name or "") is not None, "it can be held and erased"
    site.ordered(HoldPlaced(policy=site.in_force), site.order(PlaceHold, "eve", subject="principal:mia"))


@pytest.mark.parametrize(
    ("people", "words"),
    [
        (
            {"eve": ("auditor",), "olga": ("operator",)},
            ("The name olga belongs to an enrolled or revoked principal for ever.",),
        ),
        (
            {"eve": ("auditor", "operator"), "service": ("operator",)},
            (
                "A principal with the role auditor can have no other role. The roles of eve would be",
                "The name service is that of the service itself.",
            ),
        ),
        (
            {"law": ("unit",), "lou": ("release-owner:law",)},
            ("lou would be the release owner of law, which is not an enrolled unit.",),
        ),
    ],
)
def test_one_who_may_not_be_enrolled_keeps_all_of_them_out(
    people: dict[str, tuple[str, ...]], words: tuple[str, ...]
) -> None:
    site = stage("staffed")
    if "olga" in people:
        site.keys.pop("olga")
    order, documents = site.enrolments(people)
    with refuses(site, Denied, *words):
        site.pend(order, documents)


def test_a_key_is_once_in_an_order_of_several() -> None:
    site = stage("staffed")
    site.keys["eve"] = site.keys["mia"] = generate_ed25519()
    order, documents = site.enrolments(TWO)
    with refuses(site, Denied, "The order enrols the key of eve for two people."):
        site.pend(order, documents)


def test_the_reasons_name_each_person_and_the_log_records_no_name_that_it_does_not_know() -> None:
    site = stage("staffed")
    site.keys["eve"] = site.keys["lou"] = generate_ed25519()
    order, _ = site.enrolments({"eve": ("auditor", "operator"), "lou": ("release-owner:law",)})
    signer = site.state.principals.get("anna")
    assert signer is not None
    reasons = authorise_enrol_several(site.state, order, signer, site.now)
    assert [one.code for one in reasons] == ["role-exclusive", "owned-unit-unknown", "key-repeated", "key-repeated"]
    for one, name in zip(reasons, ("eve", "lou", "eve", "lou"), strict=True):
        assert name in one.sentence
        assert name not in str(record_refusals([one])) and "law" not in str(record_refusals([one]))


def test_a_name_is_once_in_an_order_of_several() -> None:
    order, _ = stage("staffed").enrolments(TWO)
    with pytest.raises(BadInput, match="expected each once"):
        encode_order(order.model_copy(update={"people": (order.people[0], order.people[0])}))


@pytest.mark.parametrize("change", ["swapped", "fewer", "another", "no array"])
def test_each_of_several_proved_the_own_key(change: str) -> None:
    site = stage("staffed")
    order, documents = site.enrolments(TWO)
    first, second = split_proofs(documents["possessions"])
    other = encode_envelope(site.possession("mia", generate_ed25519()))
    proofs = {"swapped": [second, first], "fewer": [first], "another": [first, other]}.get(change)
    changed = b"{}" if proofs is None else join_proofs(proofs)
    with refuses(site, Denied if change == "fewer" else BadInput, "possession"):
        site.pend(order, {"possessions": changed})


def test_an_order_of_several_needs_its_proofs_beside_it() -> None:
    site = stage("staffed")
    order, documents = site.enrolments(TWO)
    with refuses(site, BadInput, "documents beside the order: expected ['possessions'], got []"):
        site.pend(order)
    with refuses(site, BadInput, "documents beside the order: expected ['possessions'], got ['possession']"):
        site.pend(order, {"possession": split_proofs(documents["possessions"])[0]})


def test_as_many_as_an_entry_can_be_filed_under_are_enrolled_together() -> None:
    site = stage("staffed")
    order, documents = site.enrolments({f"p{number}": ("operator",) for number in range(MOST_PEOPLE)})
    entry = site.two(PrincipalsEnrolled(policy=site.in_force), order, documents)
    assert len(entry.subjects) <= MAX_SUBJECTS
    with pytest.raises(ValidationError):
        site.enrolments({f"q{number}": ("operator",) for number in range(MOST_PEOPLE + 1)})


def test_a_key_belongs_to_one_principal_for_ever() -> None:
    site = stage("staffed")
    site.revoke("olga")
    site.keys["oleg"] = site.keys["olga"]
    order, documents = site.enrolment("oleg", ("operator",))
    with refuses(site, Denied, "was enrolled before and belongs to its principal"):
        site.pend(order, documents)


def other_encodings() -> dict[str, bytes]:
    """Other texts for a key whose secret somebody has, and a key of a kind that is not known."""
    ed25519, p256 = generate_ed25519(), ec.derive_private_key(5, ec.SECP256R1()).public_key()
    rsa_key = rsa.generate_private_key(65537, 2048).public_key()
    found = {f"Ed25519 twin {n}": ed25519.spki[:12] + twin for n, twin in enumerate(twins(ed25519.spki[-32:]))}
    compressed = p256.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    found["P-256, compressed"] = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + compressed
    found["P-256, a byte more"] = p256.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) + b"\0"
    found["RSA"] = rsa_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return found


OTHERS = other_encodings()


@pytest.mark.parametrize("name", OTHERS)
def test_no_key_is_enrolled_that_is_another_of_the_same_secret(name: str) -> None:
    site, spki = stage("initialized"), OTHERS[name]
    fields: dict[str, Any] = {"key": b64(spki), "keyid": digest_bytes(spki)}
    for order in (
        site.enrolment("rita", ("reviewer:privacy",), **fields)[0],
        site.new_key(ReplaceKey, "anna", "ben", **fields)[0],
        site.new_key(RotateKey, "ben", "ben", old_until=site.now, **fields)[0],
    ):
        reasons = list_refusal_reasons(site.state, order, site.now)
        assert "key-malformed" in {reason.code for reason in reasons}, order.action


def test_a_name_is_never_given_again() -> None:
    site = stage("staffed")
    site.revoke("olga")
    site.keys["olga"] = generate_ed25519()
    order, documents = site.enrolment("olga", ("operator",))
    with refuses(site, Denied, "The name olga belongs to an enrolled or revoked principal for ever."):
        site.pend(order, documents)


@pytest.mark.parametrize("key", [b64(b"no public key"), b64(generate_ed25519().spki)], ids=["no key", "another key"])
def test_an_enrolment_names_the_key_by_its_own_id(key: str) -> None:
    site = stage("initialized")
    order, documents = site.enrolment("olga", ("operator",), key=key)
    with refuses(site, Denied, "The "):
        site.pend(order, documents)


@pytest.mark.parametrize("role", ["root", "reviewer", "reviewer:", "release-owner", "operator:x", "Reviewer:privacy"])
def test_a_role_that_does_not_exist_is_no_order(role: str) -> None:
    site = stage("initialized")
    with pytest.raises(ValueError, match="roles"):
        site.enrolment("olga", (role,))


def test_the_invariants_hold_again_when_the_second_signs() -> None:
    """Both enrolments are pending; the second of the two finds the name taken."""
    site = stage("initialized")
    one, ones = site.enrolment("olga", ("operator",))
    two, twos = site.enrolment("olga", ("reviewer:privacy",))
    first_, second = site.pend(one, ones), site.pend(two, twos)
    site.countersign(PrincipalEnrolled(policy=site.in_force), one, first_, ones)
    with refuses(
        site,
        Denied,
        "The name olga belongs to an enrolled or revoked principal for ever.",
        "was enrolled before and belongs to",
    ):
        site.countersign(PrincipalEnrolled(policy=site.in_force), two, second, twos)


# Pending orders.


def test_only_what_gives_power_waits_for_a_second() -> None:
    site = stage("staffed")
    with refuses(site, Denied, "order: expected enrol, enrol-several, grant, ", "got revoke-principal"):
        site.pend(site.order(RevokePrincipal, "anna", principal="olga"))


def test_what_an_order_binds_lies_beside_it_and_nothing_else() -> None:
    site = stage("staffed")
    enrol, documents = site.enrolment("eve", ("operator",))
    policy = encode_value(policy_set(reviewers=3))
    adopt = site.order(AdoptPolicy, "anna", policy=policy_digest(policy_set(reviewers=3)))
    grant = site.order(Grant, "anna", principal="olga", role="reviewer:safety")
    with refuses(site, BadInput, "documents beside the order: expected ['possession'], got []"):
        site.pend(enrol)
    with refuses(site, BadInput, "expected ['possession'], got ['policy']"):
        site.pend(enrol, {"policy": policy})
    with refuses(site, BadInput, "expected ['policy'], got []"):
        site.pend(adopt)
    with refuses(site, BadInput, "expected [], got ['possession']"):
        site.pend(grant, documents)


# A single administrator.


def test_a_single_administrator_needs_no_second_and_the_log_says_so() -> None:
    site = LogBuilder(single=True)
    order, documents = site.enrolment("olga", ("operator",))
    site.ordered(PrincipalEnrolled(policy=site.in_force), order, documents=documents)
    assert site.state.site.single_administrator
    assert "olga" in site.state.principals


def test_a_single_administrators_order_waits_for_nobody() -> None:
    site = LogBuilder(single=True)
    order, documents = site.enrolment("olga", ("operator",))
    with refuses(site, Denied, "administrators: expected two, got a single one"):
        site.pend(order, documents)


def test_a_single_administrators_order_carries_no_countersigned_one() -> None:
    site = LogBuilder(single=True)
    order, documents = site.enrolment("olga", ("operator",))
    envelope = site.sign(order)
    with refuses(site, Denied, "countersigned: expected no document, got one"):
        site.add(
            PrincipalEnrolled(policy=site.in_force),
            documents={"order": encode_envelope(envelope), "countersigned": encode_envelope(envelope), **documents},
            signed=((envelope.pae_digest, order),),
        )


# Grants and revocations.


def test_two_administrators_give_a_role() -> None:
    site = stage("staffed")
    order = site.order(Grant, "anna", principal="rita", role="reviewer:safety")
    site.two(RoleGranted(policy=site.in_force), order)
    rita = site.state.principals.get("rita")
    assert rita is not None and rita.roles == ("reviewer:privacy", "reviewer:safety")


@pytest.mark.parametrize(
    ("principal", "role", "words"),
    [
        ("nobody", "operator", "nobody is not enrolled or has been revoked."),
        ("rita", "reviewer:privacy", "rita has the role reviewer:privacy already."),
        ("rita", "administrator", "can have no other role. The roles of rita would be"),
        (
            "audrey",
            "operator",
            "A principal with the role auditor can have no other role. The roles of audrey would be",
        ),
        ("legal", "operator", "A principal with the role unit can have no other role. The roles of legal would be"),
        ("ben", "reviewer:privacy", "can have no other role. The roles of ben would be"),
        ("rita", "release-owner:rita", "is not an enrolled unit."),
    ],
)
def test_a_grant_that_breaks_an_invariant_is_refused(principal: str, role: str, words: str) -> None:
    site = stage("staffed")
    with refuses(site, Denied, words):
        site.pend(site.order(Grant, "anna", principal=principal, role=role))


@pytest.mark.parametrize("action", ["grant", "adopt-policy", "countersign"])
def test_power_is_given_by_administrators_only(action: str) -> None:
    site = stage("staffed")
    policy = policy_set(reviewers=3)
    if action == "grant":
        order: Order = site.order(Grant, "olga", principal="rita", role="reviewer:safety")
        with refuses(site, Denied, "olga is operator. This action needs administrator."):
            site.pend(order)
    elif action == "adopt-policy":
        order = site.order(AdoptPolicy, "olga", policy=policy_digest(policy))
        with refuses(site, Denied, "olga is operator. This action needs administrator."):
            site.pend(order, {"policy": encode_value(policy)})
    else:
        order = site.order(AdoptPolicy, "anna", policy=policy_digest(policy))
        document = {"policy": encode_value(policy)}
        pending = site.pend(order, document)
        with refuses(site, Denied, "rita is reviewer:privacy. This action needs administrator or recovery."):
            site.countersign(PolicyAdopted(policy=site.in_force), order, pending, document, second="rita")


def test_one_administrator_takes_away_alone() -> None:
    site = stage("staffed")
    entry = site.revoke("olga")
    olga, key = site.state.principals.get("olga"), site.state.keys.get(site.keys["olga"].keyid)
    assert olga is not None and olga.revoked == entry.index and not olga.has("operator")
    assert key is not None and key.revoked == entry.index


@pytest.mark.parametrize("name", ["nobody", "olga"])
def test_only_who_stands_is_revoked(name: str) -> None:
    site = stage("staffed")
    site.revoke("olga")
    with refuses(site, Denied, f"{name} "):
        site.revoke(name)


def test_a_reviewer_revokes_nobody() -> None:
    site = stage("staffed")
    with refuses(site, Denied, "rita is reviewer:privacy. This action needs administrator."):
        site.revoke("olga", "rita")


def test_a_revoked_person_gets_no_role() -> None:
    site = stage("staffed")
    site.revoke("olga")
    with refuses(site, Denied, "olga was revoked by entry 17."):
        site.pend(site.order(Grant, "anna", principal="olga", role="reviewer:safety"))


# Policy.


def test_two_administrators_adopt_a_policy_set_and_it_counts_from_the_next_entry_on() -> None:
    site = stage("approved")
    strict = policy_set(reviewers=3)
    entry = site.adopt(strict)
    assert entry.body["policy"] == policy_digest(site.policy), "the entry itself was decided under the old set"
    assert site.state.site.policy == policy_digest(strict)
    with refuses(site, Denied, "Adapter clauses@1 needs 3 valid approvals for legal and has 2."):
        site.activate()


def test_a_policy_that_the_order_does_not_bind_is_refused() -> None:
    site = stage("initialized")
    order = site.order(AdoptPolicy, "anna", policy=policy_digest(policy_set(reviewers=3)))
    with refuses(site, Denied, "policy: expected", order.policy):
        site.pend(order, {"policy": encode_value(policy_set(reviewers=1, distinct_functions=1))})


def test_what_the_second_signs_for_is_what_the_first_bound() -> None:
    """A service that swaps the document between the two signatures."""
    site = stage("initialized")
    good, bad = policy_set(reviewers=3), policy_set(reviewers=1, distinct_functions=1)
    order = site.order(AdoptPolicy, "anna", policy=policy_digest(good))
    pending = site.pend(order, {"policy": encode_value(good)})
    with refuses(site, Denied, "policy: expected", policy_digest(good), policy_digest(bad)):
        site.countersign(PolicyAdopted(policy=site.in_force), order, pending, {"policy": encode_value(bad)})
    enrol, _ = site.enrolment("olga", ("operator",))
    proof = site.possession("olga", site.keys["olga"])
    with refuses(site, BadInput, "proof of possession of olga"):
        other = site.possession("olga", site.keys["olga"], nonce="1" * 32)
        fork = site.fork()
        waiting = fork.pend(enrol, {"possession": encode_envelope(proof)})
        fork.countersign(
            PrincipalEnrolled(policy=site.in_force), enrol, waiting, {"possession": encode_envelope(other)}
        )


def test_what_is_no_policy_set_does_not_wait_for_a_second() -> None:
    site = stage("initialized")
    order = site.order(AdoptPolicy, "anna", policy=digest_bytes(b"{}"))
    with refuses(site, BadInput, "policy set"):
        site.pend(order, {"policy": b"{}"})


TIER: dict[str, Any] = Parameters().tiers[0].model_dump(mode="json")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"reviewers": 0}, "reviewers"),
        ({"reviewers": 1, "distinct_functions": 2}, "distinct_functions: expected at most reviewers"),
        ({"session_lifetime_s": 901}, "session_lifetime_s"),
        ({"token_lifetime_s": 3601}, "token_lifetime_s"),
        ({"approval_lifetime_s": 10**12}, "approval_lifetime_s"),
        ({"accepted_missing_layers": ["no-new-privs"]}, "accepted_missing_layers: expected some of"),
        ({"exposures": ["internal", "internal"]}, "exposures: expected each word once"),
        ({"purposes": []}, "purposes"),
        ({"tiers": []}, "tiers"),
        ({"tiers": [TIER | {"from_score": 2}]}, "tiers, from_score: expected 1 first and then rising numbers, got"),
        ({"tiers": [TIER, TIER | {"name": "high"}]}, "expected 1 first and then rising numbers, got"),
        ({"tiers": [TIER, TIER | {"from_score": 2}]}, "tiers: expected each name once, got low, low"),
        ({"tiers": [TIER | {"distinct_functions": 3}]}, "tier low, distinct_functions: expected at most reviewers"),
        ({"break_glass_lifetime_s": 259_201}, "break_glass_lifetime_s"),
        ({"quorum": 1}, "got parameters.quorum: the set is of a later build"),
    ],
)
def test_a_policy_beyond_its_bounds_is_no_policy(parameters: dict[str, Any], words: str) -> None:
    value = policy_set().model_dump(mode="json")
    value["parameters"] |= parameters
    with pytest.raises(BadInput, match=words):
        parse_policy(encode_canonical(value))


DEFAULTS = {
    "reviewers": 2,
    "distinct_functions": 2,
    "required_functions": (),
    "order_lifetime_s": 172_800,
    "approval_lifetime_s": 31_536_000,
    "session_lifetime_s": 900,
    "token_lifetime_s": 3_600,
    "clock_skew_s": 60,
    "accepted_missing_layers": (),
    "key_overlap_s": 2_592_000,
    "name_retention_s": 15_552_000,
    "text_retention_s": 0,
    "export_lifetime_s": 604_800,
    "witnesses": (),
    "witness_quorum": 0,
    "witness_lifetime_s": 604_800,
    "licences": (),
    "classifications": ("public", "internal", "confidential", "restricted"),
    "training_checkpoint_retention_s": 2_592_000,
    "requests_required": False,
    "exposures": ("internal", "customers", "public"),
    "purposes": ("draft", "assist", "decide"),
    "tiers": tuple(
        {
            "name": name,
            "from_score": score,
            "reviewers": reviewers,
            "distinct_functions": 2,
            "required_functions": (),
            "review_s": review_s,
            "reattest_s": reattest_s,
            "authorise_runs": False,
        }
        for name, score, reviewers, review_s, reattest_s in (
            ("low", 1, 2, 2_592_000, 31_536_000),
            ("medium", 3, 2, 2_592_000, 31_536_000),
            ("high", 6, 3, 1_209_600, 15_552_000),
        )
    ),
    "delegation_lifetime_s": 2_592_000,
    "break_glass_lifetime_s": 28_800,
    "required_gates": (),
    "failed_verdict": "shown",
    "most_sweep_runs": 16,
    "tries_a_day": 100,
    "slurm_accounts": (),
    "passkeys_synced": False,
    "passkeys_on_localhost": False,
    "identity_provider": None,
    "units_read": "own",
    "approver_may_activate": False,
    "retention": (),
}


def test_a_parameters_default_never_changes_since_a_log_may_hold_a_set_that_lacks_it() -> None:
    """A new parameter is a new row here; another value in a row would evaluate old entries anew."""
    assert Parameters().model_dump() == DEFAULTS


@pytest.mark.parametrize("lacking", [*Parameters.model_fields, "all"])
def test_a_set_that_lacks_a_parameter_has_its_default_and_the_digest_of_its_own_bytes(lacking: str) -> None:
    value = policy_set().model_dump(mode="json")
    value["parameters"] = {name: kept for name, kept in value["parameters"].items() if lacking not in (name, "all")}
    document = encode_canonical(value)
    site = LogBuilder(policy=document)
    assert (site.state.site.policy, site.state.site.parameters) == (digest_bytes(document), Parameters())
    site.enrol("olga", "operator")


def test_a_set_whose_tiers_lack_a_member_has_its_default_and_the_digest_of_its_own_bytes() -> None:
    value = policy_set().model_dump(mode="json")
    for tier in value["parameters"]["tiers"]:
        del tier["authorise_runs"]
    document = encode_canonical(value)
    site = LogBuilder(policy=document)
    assert (site.state.site.policy, site.state.site.parameters) == (digest_bytes(document), Parameters())
    value["parameters"]["tiers"][0]["later"] = True
    with pytest.raises(BadInput, match="later"):
        parse_policy(encode_canonical(value))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.replace(b'"version":1', b'"version": 1'), "policy set: canonical JSON, byte"),
        (lambda data: data.replace(b'"reviewers":2', b'"reviewers":2.0'), "expected an integer, got 2.0"),
        (lambda data: data.replace(b',"version":1', b""), "got none of version"),
        (lambda data: data.replace(b',"version":1', b',"version":1,"zones":[]'), "got zones: the set is of a later"),
        (lambda data: data.replace(b'"version":1', b'"version":2'), "version: expected 1, got 2"),
        (lambda data: data.replace(b'"version":1', b'"version":true'), "got a different encoding"),
        (lambda _: b"[]", "policy set: value"),
    ],
)
def test_what_is_no_canonical_set_of_this_version_is_refused(change: Callable[[bytes], bytes], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_policy(change(encode_value(policy_set())))
    assert words in caught.value.message


def test_every_layer_that_policy_may_do_without_has_a_name() -> None:
    assert Parameters(accepted_missing_layers=LAYERS).accepted_missing_layers == LAYERS
    assert parse_policy(encode_value(policy_set())) == policy_set()
    assert isinstance(policy_set(), PolicySet)


# Refusals, sessions, the service.


def refusal(site: LogBuilder, refused: Order, /, **fields: Any) -> OrderRefused:
    defaults: dict[str, Any] = {
        "order": site.sign(refused).pae_digest,
        "action": refused.action,
        "code": "denied",
        "refusals": (),
    }
    return OrderRefused(**defaults | fields)


def refuse(site: LogBuilder, order: Order, event: OrderRefused, **changes: Any) -> None:
    site.add(
        event,
        **{"documents": {"order": encode_envelope(site.sign(order))}, "actor": order.signer, **changes},
    )


def test_a_refusal_binds_the_order_and_changes_nothing() -> None:
    site = stage("staffed")
    order = site.order(RevokePrincipal, "olga", principal="rita")
    before = list(site.state.projections())
    refuse(site, order, refusal(site, order))
    assert list(site.state.projections()) == before


def test_nobodys_refusal_can_be_invented() -> None:
    site = stage("staffed")
    order = site.order(RevokePrincipal, "olga", principal="rita")
    with refuses(site, Denied, "order: expected", NO_DIGEST):
        refuse(site, order, refusal(site, order, order=NO_DIGEST))
    with refuses(site, Denied, "action: expected revoke-principal, got train"):
        refuse(site, order, refusal(site, order, action="train"))
    with refuses(site, Denied, "actor: expected olga, got rita"):
        refuse(site, order, refusal(site, order), actor="rita")
    forged = site.sign(order, generate_ed25519())
    with refuses(site, NotAuthenticated, "expected a key enrolled"):
        refuse(site, order, refusal(site, order), documents={"order": encode_envelope(forged)})


def test_a_refusal_withholds_commitments_of_its_order_and_no_others() -> None:
    site = stage("staffed")
    reason = site.text("Because.")
    order = site.order(RevokePrincipal, "olga", principal="rita", reason=reason)
    documents = {"order": encode_envelope(site.sign(order))}
    for withheld in ([], [reason, reason], ["x"], [f"hmac-{NO_DIGEST}"], [f"hmac-{NO_DIGEST}", reason], [1]):
        with refuses(site, Denied, "withheld: expected some of"):
            refuse(site, order, refusal(site, order), documents={**documents, "withheld": encode_canonical(withheld)})
    with refuses(site, BadInput, "withheld: expected an array"):
        refuse(site, order, refusal(site, order), documents={**documents, "withheld": b"{}"})
    refuse(site, order, refusal(site, order), documents={**documents, "withheld": encode_canonical([reason])})
    assert site.state.texts.get(reason) is None
    refuse(site, order, refusal(site, order))
    assert site.state.texts.get(reason) is not None


def test_a_session_is_recorded_for_who_signed_it() -> None:
    site = stage("staffed")
    document = {"session": encode_envelope(site.session("audrey"))}
    site.add(SessionOpened(identity=None), documents=document, actor="audrey")
    with refuses(site, Denied, "actor: expected audrey, got olga"):
        site.add(SessionOpened(identity=None), documents=document, actor="olga")
    site.now = add_seconds(site.now, 600)
    with refuses(site, NotAuthenticated, "expired"):
        site.add(SessionOpened(identity=None), documents=document, actor="audrey")


def test_a_new_service_holds_no_slot() -> None:
    site = stage("serving")
    assert len(site.state.slots) == 1
    site.add(ServiceStarted(version="0.1.0", code=NO_DIGEST, layers={}, process=None, epoch=None))
    assert len(site.state.slots) == 0
    with refuses(site, Denied, "slot: expected one admitted for legal/labels, got none"):
        site.add(site.request(3))


def test_the_services_own_entries_change_nothing_else() -> None:
    site = stage("serving")
    before = list(site.state.projections())
    site.add(Heartbeat())
    site.add(AuthRefused(count=3, since=site.now, principals=(), keys=()))
    assert list(site.state.projections()) == before
    site.add(ServiceStopped(reason="idle", process=None))
    assert len(site.state.slots) == 0
    kept = ("slot", "request")
    assert [row for row in before if row[0] not in kept] == [r for r in site.state.projections() if r[0] not in kept]
    assert all(request.is_cut_off for request in site.state.requests.values())


@pytest.mark.parametrize(
    ("principals", "keys"), [(("nobody",), ()), (("rita", "anna"), ()), (("anna", "anna"), ()), ((), (NO_DIGEST,))]
)
def test_refused_attempts_name_only_whom_the_log_knows(principals: tuple[str, ...], keys: tuple[str, ...]) -> None:
    site = stage("staffed")
    with refuses(site, Denied, "auth.refused"):
        site.add(AuthRefused(count=1, since=site.now, principals=principals, keys=keys))
    entry = site.add(AuthRefused(count=1, since=site.now, principals=("anna", "rita"), keys=(site.keys["rita"].keyid,)))
    assert entry.subjects == ("principal:anna", "principal:rita")


@pytest.mark.parametrize(
    ("actor", "opened", "whose", "what"),
    [
        ("olga", 0, "rita", "actor"),
        ("rita", 1, "rita", "opened"),
        ("rita", 10_000, "rita", "opened"),
        ("anna", 0, "anna", "opened"),
        ("anna", 0, "nobody", "principal"),
    ],
)
def test_a_session_is_ended_by_its_person_or_an_administrator(actor: str, opened: int, whose: str, what: str) -> None:
    site = stage("staffed")
    first, *others = [open_session(site, "rita") for _ in range(3)]
    with refuses(site, Denied, what):
        site.add(SessionClosed(opened=opened or first, principal=whose), actor=actor)
    for who, one in zip(("rita", "anna"), others, strict=True):
        assert site.add(SessionClosed(opened=one, principal="rita"), actor=who).subjects == ("principal:rita",)
        with refuses(site, Denied, "opened: expected the entry of an open session of rita"):
            site.add(SessionClosed(opened=one, principal="rita"), actor=who)
    site.revoke("rita")
    site.add(SessionClosed(opened=first, principal="rita"), actor="anna")


def test_a_session_that_ran_out_long_ago_is_forgotten() -> None:
    site = stage("staffed")
    began = site.now
    first = open_session(site, "rita")
    site.now = add_seconds(began, 600 + CLOSABLE_S - 1)
    open_session(site, "anna")
    assert opened(site, "rita") == [first]
    with refuses(site, Denied, "opened: expected the entry of an open session of rita"):
        site.add(SessionClosed(opened=first, principal="rita"), actor="rita")
    second = open_session(site, "rita")
    assert opened(site, "rita") == [second]
    site.add(SessionClosed(opened=second, principal="rita"), actor="rita")
    assert opened(site, "rita") == []


def opened(site: LogBuilder, who: str) -> list[int]:
    row = site.state.sessions.get(who)
    return [] if row is None else [one.entry for one in row.open]


def open_session(site: LogBuilder, who: str) -> int:
    session = encode_envelope(site.session(who))
    return site.add(SessionOpened(identity=None), documents={"session": session}, actor=who).index


def test_refused_attempts_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="count"):
        AuthRefused(count=0, since="2026-01-15T09:30:00.000Z", principals=(), keys=())
