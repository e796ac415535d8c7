"""Orders under the site's own policies: both orders of an endorsement, and a set that an earlier release adopted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import MISSING, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from appliance.access import cedar
from appliance.access.samples import PROBES
from appliance.domain.core.entry import Draft, Entry, parse_entry
from appliance.domain.core.names import NO_DIGEST, encode_value
from appliance.domain.core.order import Order
from appliance.domain.core.policy import Parameters, PolicySet
from appliance.domain.core.verb import NEWEST_RULES
from appliance.domain.governance.endorsement import Endorse
from appliance.domain.governance.people import RevokePrincipal
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.governance.rules import RaiseRules
from appliance.domain.retention.holds import LiftHold, PlaceHold
from appliance.domain.retention.texts import Erase
from appliance.domain.rulebook.registry import BOOKS, VERBS, make_book
from appliance.domain.runs.cancellation import Cancel
from appliance.domain.serving.tokens import RevokeTokens
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import Disclosure, disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import verify_inclusion
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.formats.log.trust import Trust
from appliance.formats.signatures.dsse import encode_envelope
from appliance.store.database.engine import migrate, open_engine
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.reading import LogReader
from appliance.workflows import orders
from appliance.workflows.core.context import Context
from appliance.workflows.core.effects import Effect, lease_of
from appliance.workflows.core.refused import RefusedOrders
from appliance.workflows.queries.verification_program import Moment, examine
from scripts.kit.log_builder import ORIGIN, LogBuilder, policy_digest
from tests.kit.small_log import START, Clock

SCHEMA = (Path(__file__).resolve().parents[2] / "policies" / "default" / "schema.cedarschema").read_text()
OLDER = re.sub(r'action "revoke-tokens" appliesTo \{[^}]*\};\n', "", SCHEMA)
"""That of a release which could not revoke tokens."""
O = TypeVar("O", bound=Order)  # noqa: E741
PERMIT = '@id("all") permit (principal, action, resource);\n'


def policy(cedar_text: str = PERMIT, schema: str = SCHEMA) -> PolicySet:
    return PolicySet(name="site", parameters=Parameters(), cedar=cedar_text, cedar_schema=schema)


class Desk:
    """What the service does with an order, over a ledger of its own; `site` has the keys of anna and ben, and signs."""

    def __init__(self, ledger: Ledger, clock: Clock, site: LogBuilder) -> None:
        needless = {field.name: None for field in fields(Context) if field.default_factory is field.default is MISSING}
        self.context = Context(**needless | {"ledger": ledger, "clock": clock})  # type: ignore[arg-type]
        self.ledger, self.clock, self.site = ledger, clock, site
        body = site.first
        ledger.append(Draft(type=body.type, documents={"policy": site.policy_document}, body=body))

    def order(self, model: type[O], by: str, **members: Any) -> O:
        self.site.now = encode_time(self.clock())
        return self.site.order(model, by, **members)

    def submit(self, order: Order, /, texts: Sequence[Disclosure] | None = None, **documents: bytes) -> str:
        """The order's identity, once it is recorded; without `texts` those that it commits to travel with it."""
        envelope = encode_envelope(self.site.sign(order))
        if texts is None:
            texts = [text for text in self.site.disclosures if text.commitment in order.model_dump().values()]
        return orders.submit(self.context, orders.Submission(envelope, tuple(texts), documents, "unix")).digest

    def refused(self, order: Order, /, **submitted: Any) -> str:
        """Why the order was refused, as its entry says; the log verifies with it."""
        with pytest.raises(ApplianceError):
            self.submit(order, **submitted)
        entry = self.last()
        assert (entry.type, entry.actor, entry.outcome) == ("order.refused", order.signer, "denied")
        assert self.verify() == ("verified", "replayed", [])
        return str(entry.body["reasons"][0])

    def propose_enrolment(self, name: str, role: str) -> str:
        self.site.now = encode_time(self.clock())
        order, documents = self.site.enrolment(name, (role,))
        return self.submit(order, **documents)

    def endorse(self, digest: str) -> str:
        return self.submit(self.order(Endorse, "ben", order=digest))

    def propose(self, new: PolicySet) -> str:
        return self.submit(self.order(AdoptPolicy, "anna", policy=policy_digest(new)), policy=encode_value(new))

    def adopt(self, new: PolicySet) -> None:
        self.endorse(self.propose(new))

    def last(self) -> Entry:
        return parse_entry(self.ledger.entry_bytes(self.ledger.state.size - 1))

    def verify(self) -> tuple[str, str, list[Any]]:
        first = parse_entry(self.ledger.entry_bytes(0))
        people = self.site.trust.administrators
        trust = Trust(ORIGIN, self.site.first.log_key, f"sha256:{first.leaf.hex()}", people)
        checkpoint, texts = self.ledger.signed_texts()
        now = encode_time(self.context.clock())
        moment = Moment(self.ledger.database_url, {}, self.ledger.seen, checkpoint, trust, now)
        with closing(LogReader(moment.database)) as log:
            report, local = examine(log, moment, texts)
        return report.verdict, report.site_policies, [*report.findings, *local]


Found = Callable[[PolicySet | bytes], Desk]


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Found]:
    """Founds an appliance under this policy set, as whatever release adopted it would have."""
    with ExitStack() as stack:

        def make(first: PolicySet | bytes) -> Desk:
            site, clock = LogBuilder(policy=first), Clock()
            engine = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
            migrate(engine)
            log_key = site.first.log_key
            ledger = Ledger(engine, origin=ORIGIN, log_key=log_key, signers=site.log_signers.__getitem__, clock=clock)
            return Desk(stack.enter_context(closing(ledger)), clock, site)

        yield make


# What the sender gets.


def test_the_proof_of_an_orders_entry_is_for_the_checkpoint_beside_it_however_long_the_log_is_meanwhile(
    found: Found,
) -> None:
    desk = found(policy())
    desk.site.now = encode_time(desk.clock())
    order, documents = desk.site.enrolment("mallory", ("operator",))
    envelope = encode_envelope(desk.site.sign(order))
    texts = tuple(text for text in desk.site.disclosures if text.commitment in order.model_dump().values())
    submitted = orders.submit(desk.context, orders.Submission(envelope, texts, documents, "unix"))
    for _ in range(5):  # by other processes, for example
        desk.ledger.append(Draft(type="heartbeat", body={}))
    entry, data, note = submitted.appended
    checkpoint = open_checkpoint(note, desk.site.first.log_key)
    proof = orders.prove(desk.context, submitted)
    verify_inclusion(parse_entry(data).leaf, entry.index, checkpoint.size, proof, checkpoint.root)


# An endorsement, and what it endorses.

NO_MALLORY = (
    '@id("no-mallory") forbid (principal == Principal::"anna", action == Action::"enroll", resource) '
    'when { resource.name == "mallory" };\n'
)


def test_what_is_endorsed_is_decided_under_the_set_in_force_then(found: Found) -> None:
    """Ordered while it was allowed, forbidden meanwhile: the second signature does not bring it about."""
    desk = found(policy())
    pending = desk.propose_enrolment("mallory", "operator")
    desk.adopt(policy(PERMIT + NO_MALLORY))
    with pytest.raises(Denied) as denied:
        desk.endorse(pending)
    assert denied.value.reasons == ("site policy no-mallory: forbids enroll by anna",)
    refused = desk.last()
    assert (refused.type, refused.actor, refused.outcome) == ("order.refused", "ben", "denied")
    assert refused.body["reasons"] == list(denied.value.reasons)
    assert "mallory" not in desk.ledger.state.principals
    assert desk.verify() == ("verified", "replayed", [])


def test_an_order_whose_endorsement_was_denied_still_waits(found: Found) -> None:
    desk = found(policy())
    pending = desk.propose_enrolment("mallory", "operator")
    desk.adopt(policy(PERMIT + NO_MALLORY))
    with pytest.raises(Denied):
        desk.endorse(pending)
    assert pending in desk.ledger.state.pending
    desk.adopt(policy(PERMIT))
    desk.endorse(pending)
    assert desk.last().type == "principal.enrolled"
    assert desk.verify() == ("verified", "replayed", [])


def test_each_order_of_an_endorsement_has_its_own_signer(found: Found) -> None:
    """What forbids the second administrator to enroll, and the first to endorse, forbids neither what they did."""
    forbid = '@id("{}") forbid (principal == Principal::"{}", action == Action::"{}", resource);\n'
    desk = found(policy(PERMIT + forbid.format("a", "ben", "enroll") + forbid.format("b", "anna", "endorse")))
    desk.endorse(desk.propose_enrolment("mallory", "operator"))
    assert desk.last().type == "principal.enrolled"


# Every refusal of an authentic order is an entry.


def test_an_order_whose_text_was_erased_is_refused_by_an_entry_without_it(found: Found) -> None:
    desk = found(policy())
    reason = desk.site.text("Anna's own words.")
    desk.submit(desk.order(PlaceHold, "anna", subject="principal:ben", reason=reason))
    desk.endorse(desk.submit(desk.order(LiftHold, "anna", subject="principal:ben")))
    desk.endorse(desk.submit(desk.order(Erase, "anna", commitment=reason)))
    assert desk.last().type == "text.erased"
    again = desk.refused(desk.order(PlaceHold, "anna", subject="principal:anna", reason=reason))
    assert "expected one that was not erased" in again
    assert desk.ledger.disclosures([reason]) == {}
    assert desk.refused(desk.order(Erase, "anna", commitment=reason))


def test_an_order_with_other_texts_than_its_own_is_refused_by_an_entry(found: Found) -> None:
    desk = found(policy())
    own, other = desk.site.text("The reason."), disclose("Another.", bytes(32))
    given = next(text for text in desk.site.disclosures if text.commitment == own)
    order = partial(desk.order, PlaceHold, "anna", subject="principal:ben", reason=own)
    for texts in ([], [other], [given, other], [Disclosure(own, given.salt, "A forged reason.")]):
        desk.refused(order(), texts=texts)
    nul = disclose("a\0b", bytes(32))
    desk.refused(desk.order(PlaceHold, "anna", subject="principal:ben", reason=nul.commitment), texts=[nul])
    desk.submit(order())
    assert desk.ledger.disclosures([own, other.commitment]) == {own: given}


@pytest.mark.parametrize(
    ("documents", "reason"),
    [
        ({}, "order adopt-policy, documents: expected policy, got none"),
        ({"policy": b"{}"}, "policy set: "),
        ({"policy": encode_value(policy(PERMIT + "// another"))}, "policy: expected sha256:"),
        ({"policy": encode_value(policy()), "recipe": b"{}"}, "documents: expected no others"),
        ({"policy": bytes(5 << 20)}, "policy set: "),
    ],
)
def test_an_order_with_other_documents_than_its_own_is_refused_by_an_entry(
    found: Found, documents: dict[str, bytes], reason: str
) -> None:
    desk = found(policy())
    assert reason in desk.refused(desk.order(AdoptPolicy, "anna", policy=policy_digest(policy())), **documents)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "permit (principal, action, resource) when { " + "(" * 1_500 + "true" + ")" * 1_500 + " };",
            "brackets inside",
        ),
        ('@id("x") nonsense', "expected Cedar policies"),
        (
            PERMIT + '@id("f") forbid (principal, action, resource) when { context.now > datetime("2027-01-01") };',
            "some time",
        ),
    ],
)
def test_a_policy_set_that_is_not_taken_is_refused_by_an_entry(found: Found, text: str, reason: str) -> None:
    desk, new = found(policy()), policy(text)
    order = desk.order(AdoptPolicy, "anna", policy=policy_digest(new))
    assert reason in desk.refused(order, policy=encode_value(new))


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"issued_at": "2099-01-01T00:00:00.000Z", "expires_at": "2099-01-01T01:00:00.000Z"}, "issued by"),
        ({"expires_at": "2099-01-01T00:00:00.000Z"}, "expected a lifetime"),
    ],
)
def test_an_order_of_another_time_is_refused_by_an_entry(found: Found, terms: dict[str, str], reason: str) -> None:
    desk = found(policy())
    order = desk.order(PlaceHold, "anna", subject="principal:ben").model_copy(update=terms)
    assert reason in desk.refused(order)


class Counting(NamedTuple):
    """A desk where leases are needed: `owned` as the database has them."""

    desk: Desk
    owned: set[str]


@pytest.fixture
def leased(found: Found, monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Holds are local work here, which is not begun."""
    counting = Counting(found(policy()), set())
    monkeypatch.setitem(orders._EFFECTS, PlaceHold.verb, Effect(PlaceHold, local=True))
    processes = counting.desk.context.processes
    monkeypatch.setattr(processes, "own", lambda lease: counting.owned.add(lease) is None)
    monkeypatch.setattr(processes, "disown", counting.owned.discard)
    return counting


def test_the_bytes_of_an_old_order_fill_no_log(found: Found) -> None:
    """Whoever has them needs neither a session nor a key: accepted, expired or refused, they are counted."""
    desk = found(policy())
    accepted = desk.order(PlaceHold, "anna", subject="principal:ben")
    old = {"issued_at": "2020-01-01T00:00:00.000Z", "expires_at": "2020-01-01T01:00:00.000Z"}
    expired = desk.order(PlaceHold, "anna", subject="principal:anna").model_copy(update=old)
    refused = desk.order(Cancel, "ben", run="r-000009")
    desk.submit(accepted)
    desk.refused(refused)
    size = desk.ledger.state.size
    for order, kind, told in (
        (accepted, Conflict, "accepted as entry"),
        (expired, Denied, "sign a new one"),
        (refused, ApplianceError, "r-000009"),
    ):
        for _ in range(3):
            with pytest.raises(kind, match=told) as raised:
                desk.submit(order)
            assert raised.value.claimed == (order.signer, desk.site.keys[order.signer].keyid)
    assert desk.ledger.state.size == size


def test_an_order_that_was_refused_is_taken_once_what_it_needs_is_there(found: Found) -> None:
    desk = found(policy())
    order = desk.order(LiftHold, "anna", subject="principal:ben")
    desk.refused(order)
    desk.submit(desk.order(PlaceHold, "anna", subject="principal:ben"))
    desk.submit(order)
    assert desk.last().type == "order.pending"


def test_only_so_many_refused_orders_are_remembered() -> None:
    refused = RefusedOrders(2)
    for digest in "abc":
        refused.add(digest)
    assert [digest in refused for digest in "abc"] == [False, True, True]


def test_a_replay_leaves_the_lease_of_live_work_alone(leased: Counting) -> None:
    order = leased.desk.order(PlaceHold, "anna", subject="principal:ben")
    digest = leased.desk.submit(order)
    with pytest.raises(Conflict, match="accepted as entry"):
        leased.desk.submit(order)
    assert leased.owned == {lease_of(digest)}


@pytest.mark.parametrize(("code", "kept"), [("unavailable", False), ("commit-unknown", True)])
def test_a_lease_is_kept_only_where_its_entry_may_stand(
    leased: Counting, monkeypatch: pytest.MonkeyPatch, code: str, kept: bool
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise Unavailable("ledger: expected an answer, got none", code=code)

    monkeypatch.setattr(orders, "append", fail)
    with pytest.raises(Unavailable):
        leased.desk.submit(leased.desk.order(PlaceHold, "anna", subject="principal:ben"))
    assert bool(leased.owned) == kept


def test_without_the_lease_nothing_is_recorded(leased: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leased.desk.context.processes, "own", lambda lease: False)
    size = leased.desk.ledger.state.size
    with pytest.raises(Unavailable, match="expected a lease for this process, got none"):
        leased.desk.submit(leased.desk.order(PlaceHold, "anna", subject="principal:ben"))
    assert leased.desk.ledger.state.size == size


def test_an_order_about_what_is_not_there_is_refused_by_an_entry(found: Found) -> None:
    desk = found(policy())
    assert desk.refused(desk.order(Endorse, "ben", order=NO_DIGEST))
    assert desk.refused(desk.order(Cancel, "ben", run="r-000009"))
    desk.submit(desk.order(PlaceHold, "anna", subject="principal:ben"))
    assert "expected none on principal:ben" in desk.refused(desk.order(PlaceHold, "anna", subject="principal:ben"))


def test_rules_that_this_build_does_not_know_are_refused_before_anything_is_recorded(found: Found) -> None:
    desk = found(policy())
    size = desk.ledger.state.size
    reason = desk.refused(desk.order(RaiseRules, "anna", rules=NEWEST_RULES + 1))
    assert f"expected a version that this build knows, {NEWEST_RULES} at most" in reason
    assert (desk.ledger.state.size, len(desk.ledger.state.pending)) == (size + 1, 0)


def test_an_order_becomes_what_the_rules_in_force_make_of_it_not_the_newest(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = replace(VERBS["lift-hold"], two_administrators=False)
    rows = (*(row for row in VERBS.values() if row.name != "lift-hold"), alone)
    monkeypatch.setitem(BOOKS, NEWEST_RULES, make_book(NEWEST_RULES, rows))
    desk = found(policy())
    desk.submit(desk.order(PlaceHold, "anna", subject="principal:ben"))
    desk.submit(desk.order(LiftHold, "anna", subject="principal:ben"))
    assert desk.last().type == "hold.lifted"


def test_what_cannot_be_recorded_now_is_no_refusal(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = found(policy())
    size, order = desk.ledger.state.size, desk.order(PlaceHold, "anna", subject="principal:ben")
    with monkeypatch.context() as full, pytest.raises(Unavailable):
        full.setattr(orders, "append", refuse_to_append)
        desk.submit(order)
    assert desk.ledger.state.size == size
    desk.submit(order)


def refuse_to_append(*_: Any, **__: Any) -> None:
    raise Unavailable("ledger: expected a disk with room, got a full one")


# A set that an earlier release adopted.


def test_a_set_whose_schema_lacks_a_verb_refuses_that_verb_alone(found: Found) -> None:
    desk = found(policy(schema=OLDER))
    desk.endorse(desk.propose_enrolment("legal", "unit"))
    assert desk.last().type == "principal.enrolled"
    revocation = {"unit": "legal", "token": None, "issued_before": encode_time(START), "application": None}
    with pytest.raises(Denied) as denied:
        desk.submit(desk.order(RevokeTokens, "anna", **revocation))
    (reason,) = denied.value.reasons
    assert reason == (
        "site policies site, revoke-tokens by anna: "
        "expected a schema with the action revoke-tokens, got none: adopt a set whose schema has it"
    )
    assert (desk.last().type, desk.last().body["reasons"]) == ("order.refused", [reason])
    assert desk.verify() == ("verified", "replayed", [])


def test_a_set_of_an_earlier_release_can_be_replaced_and_its_log_verifies(found: Found) -> None:
    desk = found(policy(schema=OLDER))
    desk.adopt(policy())
    assert desk.ledger.state.site.policy == policy_digest(policy())
    desk.submit(desk.order(RevokePrincipal, "anna", principal="ben"))
    assert desk.verify() == ("verified", "replayed", [])


EARLIER_SCHEMA = OLDER
for _later in (
    r"entity Text = \{[^}]*\};\n",
    r'action "erase" appliesTo \{[^}]*\};\n',
    r"\n  roles: Set<String>,(?=\n\})",
    r", roles: Set<String>(?= \})",
):
    EARLIER_SCHEMA, _count = re.subn(_later, "", EARLIER_SCHEMA)
    assert _count == 1


def earlier_document() -> bytes:
    """A set as a build wrote it that knew no witnesses, no roles as text, and no texts that can be erased."""
    value = policy(PERMIT + NO_MALLORY, EARLIER_SCHEMA).model_dump(mode="json")
    for name in ("witnesses", "witness_quorum", "witness_lifetime_s"):
        del value["parameters"][name]
    return encode_canonical(value)


def test_a_document_of_an_earlier_build_is_in_force_decides_is_verified_and_can_be_replaced(found: Found) -> None:
    document = earlier_document()
    desk = found(document)
    site = desk.ledger.state.site
    assert (site.policy, site.parameters) == (digest_bytes(document), Parameters())
    desk.endorse(desk.propose_enrolment("olga", "operator"))
    with pytest.raises(Denied, match="site policy no-mallory: forbids enroll by anna"):
        desk.propose_enrolment("mallory", "operator")
    person = desk.ledger.state.principals.get("olga")
    assert person is not None and person.printed_name is not None
    with pytest.raises(Denied, match="expected a schema with the action erase, got none: adopt a set"):
        desk.submit(desk.order(Erase, "anna", commitment=person.printed_name))
    assert desk.verify() == ("verified", "replayed", [])
    desk.adopt(policy())
    assert desk.ledger.state.site.policy == policy_digest(policy())
    assert desk.verify() == ("verified", "replayed", [])


def test_a_document_that_lacks_a_parameter_is_adopted_as_it_is(found: Found) -> None:
    value = policy().model_dump(mode="json")
    del value["parameters"]["witness_quorum"]
    document = encode_canonical(value)
    desk = found(policy())
    order = desk.order(AdoptPolicy, "anna", policy=digest_bytes(document))
    desk.endorse(desk.submit(order, policy=document))
    assert desk.ledger.state.site.policy == digest_bytes(document)
    assert desk.ledger.document(digest_bytes(document)) == document
    assert desk.verify() == ("verified", "replayed", [])


def test_a_document_of_a_later_build_is_refused_by_name(found: Found) -> None:
    value = policy().model_dump(mode="json")
    value["parameters"]["quorum_s"] = 1
    document = encode_canonical(value)
    desk = found(policy())
    order = desk.order(AdoptPolicy, "anna", policy=digest_bytes(document))
    with pytest.raises(BadInput, match=r"got parameters\.quorum_s: the set is of a later build"):
        desk.submit(order, policy=document)
    assert desk.ledger.state.site.policy == policy_digest(policy())


def test_a_set_that_lacks_a_verb_is_not_adopted(found: Found) -> None:
    desk = found(policy())
    with pytest.raises(BadInput, match="action revoke-tokens: expected it to take a sample request"):
        desk.propose(policy(schema=OLDER))


def test_a_set_that_was_ordered_under_an_earlier_release_is_not_adopted_under_this_one(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = found(policy())
    with monkeypatch.context() as earlier:
        known = tuple(request for request in PROBES if request.verb != "revoke-tokens")
        earlier.setattr(cedar, "PROBES", known)
        pending = desk.propose(policy(schema=OLDER))
    with pytest.raises(BadInput, match="action revoke-tokens: expected it to take a sample request"):
        desk.endorse(pending)
    assert desk.ledger.state.site.policy == policy_digest(policy())
