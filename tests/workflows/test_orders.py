"""Orders under Cedar policies: both orders of a countersignature, and a set that an earlier release adopted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import MISSING, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from appliance.access import cedar
from appliance.access.requests import list_probes
from appliance.domain.actions.registry import ACTIONS, RULE_SETS, make_rule_set
from appliance.domain.core.action import NEWEST_RULES
from appliance.domain.core.entry import Entry, EntryDraft, parse_entry, record_refusals
from appliance.domain.core.names import NO_DIGEST, encode_value
from appliance.domain.core.order import Order, encode_order
from appliance.domain.core.policy import Parameters, PolicySet
from appliance.domain.governance import countersignature
from appliance.domain.governance.countersignature import Countersign, WithdrawOrder
from appliance.domain.governance.log_control import RaiseRules
from appliance.domain.governance.people import RevokePrincipal
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.retention import Erase, LiftHold, PlaceHold
from appliance.domain.runs.control import Cancel
from appliance.domain.serving.tokens import RevokeTokens
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotFound, RateLimited, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import Disclosure, disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import verify_inclusion
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.formats.log.trust import Trust
from appliance.formats.signatures.dsse import encode_envelope
from appliance.store.database.engine import migrate, open_engine
from appliance.store.ledger.keys import HeldLogKeys
from appliance.store.ledger.ledger import Ledger
from appliance.workflows import orders
from appliance.workflows.core.context import MOST_A_MINUTE, Context, PolicyTrials, RefusedOrders, SignerTurns
from appliance.workflows.core.record import Effect, lease_of
from appliance.workflows.queries.verification_program import Moment, examine
from scripts.kit.log_builder import ORIGIN, LogBuilder, policy_digest
from tests.kit.small_log import START, Clock

SCHEMA = (Path(__file__).resolve().parents[2] / "policies" / "default" / "schema.cedarschema").read_text()
OLDER = re.sub(r'action "revoke-tokens" appliesTo \{(?s:.*?)\n\};\n', "", SCHEMA)
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
        ledger.append(EntryDraft(type=body.type, documents={"policy": site.policy_document}, body=body))

    def order(self, model: type[O], by: str, **members: Any) -> O:
        self.site.now = encode_time(self.clock())
        return self.site.order(model, by, **members)

    def submit(self, order: Order, /, texts: Sequence[Disclosure] | None = None, **documents: bytes) -> str:
        """Submit an order, and return its identity. Without `texts`, those that it commits to are sent with it."""
        envelope = encode_envelope(self.site.sign(order))
        if texts is None:
            texts = [text for text in self.site.disclosures if text.commitment in order.model_dump().values()]
        return orders.submit(self.context, orders.Submission(envelope, tuple(texts), documents, "unix")).digest

    def refused(self, order: Order, /, **submitted: Any) -> str:
        """Return the client's first reason. The entry has the reasons of the rules, and never another message."""
        with pytest.raises(ApplianceError) as refused:
            self.submit(order, **submitted)
        error = refused.value
        entry = self.last()
        assert (entry.type, entry.actor, entry.outcome) == ("order.refused", order.signer, "denied")
        assert self.verify() == ("verified", "replayed", [])
        recorded = [one.model_dump() for one in record_refusals(error.refusals)]
        assert (entry.body["code"], entry.body["refusals"]) == (error.code, recorded)
        return str((*error.refusals, error.message)[0])

    def propose_enrolment(self, name: str, role: str) -> str:
        self.site.now = encode_time(self.clock())
        order, documents = self.site.enrolment(name, (role,))
        return self.submit(order, **documents)

    def countersign(self, digest: str) -> str:
        return self.submit(self.order(Countersign, "ben", order=digest))

    def propose(self, new: PolicySet) -> str:
        return self.submit(self.order(AdoptPolicy, "anna", policy=policy_digest(new)), policy=encode_value(new))

    def adopt(self, new: PolicySet) -> None:
        self.countersign(self.propose(new))

    def last(self) -> Entry:
        return parse_entry(self.ledger.entry_bytes(self.ledger.state.size - 1))

    def verify(self) -> tuple[str, str, list[Any]]:
        first = parse_entry(self.ledger.entry_bytes(0))
        people = self.site.trust.administrators
        trust = Trust(ORIGIN, self.site.first.log_key, f"sha256:{first.leaf.hex()}", people)
        checkpoint, texts = self.ledger.signed_texts()
        now = encode_time(self.context.clock())
        moment = Moment(self.ledger.database_url, {}, self.ledger.seen, checkpoint, trust, now)
        report, local = examine(moment, texts)
        return report.verdict, report.cedar_policies, [*report.findings, *local]


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
            ledger = Ledger(
                engine, origin=ORIGIN, log_key=log_key, keys=HeldLogKeys(site.log_signers.__getitem__), clock=clock
            )
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
        desk.ledger.append(EntryDraft(type="heartbeat", body={}))
    entry, data, note = submitted.appended
    checkpoint = open_checkpoint(note, desk.site.first.log_key)
    proof = orders.prove(desk.context, submitted)
    verify_inclusion(parse_entry(data).leaf, entry.index, checkpoint.size, proof, checkpoint.root)


# A countersignature, and what it countersigns.

NO_MALLORY = (
    '@id("no-mallory") forbid (principal == Principal::"anna", action == Action::"enrol", resource) '
    'when { resource.name == "mallory" };\n'
)


@pytest.mark.thorough
def test_what_is_countersigned_is_decided_under_the_set_in_force_then(found: Found) -> None:
    """Ordered while it was allowed, forbidden meanwhile: the second signature does not bring it about."""
    desk = found(policy())
    pending = desk.propose_enrolment("mallory", "operator")
    desk.adopt(policy(PERMIT + NO_MALLORY))
    with pytest.raises(Denied) as denied:
        desk.countersign(pending)
    assert [str(one.subject) for one in denied.value.refusals] == ["cedar-policy:no-mallory"]
    refused = desk.last()
    assert (refused.type, refused.actor, refused.outcome) == ("order.refused", "ben", "denied")
    assert refused.body["refusals"][0]["code"] == denied.value.refusals[0].code == "policy-forbids"
    assert "mallory" not in desk.ledger.state.principals
    assert desk.verify() == ("verified", "replayed", [])


@pytest.mark.thorough
def test_an_order_whose_countersignature_was_denied_still_waits(found: Found) -> None:
    desk = found(policy())
    pending = desk.propose_enrolment("mallory", "operator")
    desk.adopt(policy(PERMIT + NO_MALLORY))
    with pytest.raises(Denied):
        desk.countersign(pending)
    assert pending in desk.ledger.state.pending
    desk.adopt(policy(PERMIT))
    desk.countersign(pending)
    assert desk.last().type == "principal.enrolled"
    assert desk.verify() == ("verified", "replayed", [])


def test_a_policy_set_is_tried_once_and_without_the_lock_of_orders(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, held = found(policy()), []
    whole = cedar.CedarPolicies.for_adoption

    def record(new: PolicySet) -> cedar.CedarPolicies:
        held.append(desk.context.order_lock._is_owned())  # type: ignore[attr-defined]
        return whole(new)

    monkeypatch.setattr(cedar.CedarPolicies, "for_adoption", record)
    desk.adopt(policy(PERMIT + "// Another."))
    assert held == [False]
    new = policy(PERMIT + PERMIT)
    order = desk.order(AdoptPolicy, "anna", policy=policy_digest(new))
    assert "expected an @id of its own" in desk.refused(order, policy=encode_value(new))
    assert held == [False, False]


def test_what_an_order_needs_is_looked_for_without_the_lock_of_orders(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = found(policy())
    held: list[tuple[str, bool]] = []

    def look(context: Context, order: Order, digest: str) -> None:
        held.append((order.action, context.order_lock._is_owned()))  # type: ignore[attr-defined]
        if len(held) == 1:
            raise NotFound("file: expected one, got none")

    for model in (PlaceHold, LiftHold):
        monkeypatch.setitem(orders._EFFECTS, model.action, Effect(model, ready=look))
    order = desk.order(PlaceHold, "anna", subject="principal:ben")
    assert desk.refused(order) == "file: expected one, got none"
    desk.submit(order)
    pending = desk.submit(desk.order(LiftHold, "anna", subject="principal:ben"))
    desk.countersign(pending)
    assert desk.last().type == "hold.lifted"
    assert held == [("place-hold", False)] * 2 + [("lift-hold", False)] * 2
    assert "olga" in desk.refused(desk.order(PlaceHold, "anna", subject="principal:olga"))
    assert len(held) == 4, "the rules are asked first"


def test_an_administrator_has_one_policy_set_tried_at_a_time(found: Found) -> None:
    desk, new = found(policy()), policy(PERMIT + "// Another.")
    order = desk.order(AdoptPolicy, "anna", policy=policy_digest(new))
    with desk.context.policy_trials.run_for("anna"), pytest.raises(RateLimited):
        desk.submit(order, policy=encode_value(new))
    assert desk.last().type == "appliance.initialized"
    desk.submit(order, policy=encode_value(new))


def test_one_waiting_order_too_many_is_refused_by_an_entry(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(countersignature, "MAX_WAITING_ORDERS", 1)
    desk = found(policy())
    waiting = desk.propose_enrolment("olga", "operator")
    order, documents = desk.site.enrolment("otto", ("operator",))
    reason = "Orders of anna that wait for a second administrator: 1. One person can have"
    assert orders.check(desk.context, "anna", encode_order(order))[0].sentence.startswith(reason)
    assert desk.refused(order, **documents).startswith(reason)
    desk.countersign(waiting)
    desk.submit(order, **documents)


def test_each_order_of_an_countersignature_has_its_own_signer(found: Found) -> None:
    """What forbids the second administrator to enrol, and the first to countersign, forbids neither what they did."""
    forbid = '@id("{}") forbid (principal == Principal::"{}", action == Action::"{}", resource);\n'
    desk = found(policy(PERMIT + forbid.format("a", "ben", "enrol") + forbid.format("b", "anna", "countersign")))
    desk.countersign(desk.propose_enrolment("mallory", "operator"))
    assert desk.last().type == "principal.enrolled"


# Every refusal of an authentic order is an entry.


def test_an_order_whose_text_was_erased_is_refused_by_an_entry_without_it(found: Found) -> None:
    desk = found(policy())
    reason = desk.site.text("Anna's own words.")
    desk.submit(desk.order(PlaceHold, "anna", subject="principal:ben", reason=reason))
    desk.countersign(desk.submit(desk.order(LiftHold, "anna", subject="principal:ben")))
    desk.countersign(desk.submit(desk.order(Erase, "anna", commitment=reason)))
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
        ({"policy": b"{}"}, "policy: expected sha256:"),
        ({"policy": encode_value(policy(PERMIT + "// another"))}, "policy: expected sha256:"),
        ({"policy": encode_value(policy()), "recipe": b"{}"}, "documents: expected no others"),
        ({"policy": bytes(5 << 20)}, "policy: expected sha256:"),
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
        (PERMIT + "// a comment for Cedar\u2028and a line for others\n", "line 2: expected visible characters"),
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
        (
            {"issued_at": "2099-01-01T00:00:00.000Z", "expires_at": "2099-01-01T01:00:00.000Z"},
            ". The service's clock shows",
        ),
        ({"expires_at": "2099-01-01T00:00:00.000Z"}, "It is valid from"),
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
    """Count the work on holds, which is local and not begun."""
    counting = Counting(found(policy()), set())
    monkeypatch.setitem(orders._EFFECTS, PlaceHold.action, Effect(PlaceHold, local=True))
    processes = counting.desk.context.processes
    monkeypatch.setattr(processes, "acquire_lease", lambda lease: counting.owned.add(lease) is None)
    monkeypatch.setattr(processes, "release_lease", counting.owned.discard)
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
        (expired, Denied, r"It expired at .*\. It is .*\."),
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


@pytest.mark.thorough
def test_an_order_that_waits_ends_if_its_signer_withdraws_it_and_only_then(found: Found) -> None:
    desk = found(policy())
    grant = desk.order(PlaceHold, "anna", subject="principal:ben")
    desk.submit(grant)
    order = desk.order(LiftHold, "anna", subject="principal:ben")
    desk.submit(order)
    (pending,) = desk.ledger.state.pending.values()
    for name in ("ben", "anna"):
        withdrawal = desk.order(WithdrawOrder, name, order=pending.digest)
        if name == "ben":
            desk.refused(withdrawal)
            assert pending.digest in desk.ledger.state.pending
        else:
            desk.submit(withdrawal)
    assert (desk.last().type, desk.last().actor) == ("order.withdrawn", "anna")
    assert pending.digest not in desk.ledger.state.pending
    desk.refused(desk.order(Countersign, "ben", order=pending.digest))
    with pytest.raises(ApplianceError):
        desk.submit(order)  # the same order is not taken again
    desk.refused(desk.order(WithdrawOrder, "anna", order=pending.digest))
    assert len(desk.ledger.state.holds) == 1
    assert desk.verify() == ("verified", "replayed", [])


def test_only_so_many_refused_orders_are_remembered() -> None:
    refused = RefusedOrders(2)
    for digest in "abc":
        refused.add(digest, "ben")
    assert [digest in refused for digest in "abc"] == [False, True, True]


def test_a_signers_refused_orders_beyond_the_limit_of_a_minute_are_only_counted(found: Found) -> None:
    desk = found(policy())
    now = 0.0
    desk.context.refused_orders = RefusedOrders(clock=lambda: now)

    def refuse() -> ApplianceError:
        with pytest.raises(Denied) as refused:
            desk.submit(desk.order(LiftHold, "ben", subject="principal:anna"))
        assert refused.value.refusals
        return refused.value

    before = desk.ledger.state.size
    errors = [refuse() for _ in range(MOST_A_MINUTE + 5)]
    assert desk.ledger.state.size == before + MOST_A_MINUTE
    assert [error.claimed is not None for error in errors] == [False] * MOST_A_MINUTE + [True] * 5
    with pytest.raises(Denied):
        desk.submit(desk.order(LiftHold, "anna", subject="principal:anna"))
    assert desk.ledger.state.size == before + MOST_A_MINUTE + 1, "another signer's refusal is an entry"
    now = 60.0
    assert refuse().claimed is None
    assert desk.verify() == ("verified", "replayed", [])


def test_two_orders_of_one_signer_are_decided_at_once_and_others_wait() -> None:
    turns = SignerTurns()
    with ThreadPoolExecutor(1) as pool, turns.take("ben"), turns.take("ben"):

        def take_third() -> None:
            with turns.take("ben"):
                pass

        third = pool.submit(take_third)
        with turns.take("anna"):
            assert not third.done()
        with pytest.raises(TimeoutError):
            third.result(timeout=0.05)
    assert third.exception() is None


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
    monkeypatch.setattr(leased.desk.context.processes, "acquire_lease", lambda lease: False)
    size = leased.desk.ledger.state.size
    with pytest.raises(Unavailable, match="expected a lease for this process, got none"):
        leased.desk.submit(leased.desk.order(PlaceHold, "anna", subject="principal:ben"))
    assert leased.desk.ledger.state.size == size


def test_an_order_about_what_is_not_there_is_refused_by_an_entry(found: Found) -> None:
    desk = found(policy())
    assert desk.refused(desk.order(Countersign, "ben", order=NO_DIGEST))
    assert desk.refused(desk.order(Cancel, "ben", run="r-000009"))
    desk.submit(desk.order(PlaceHold, "anna", subject="principal:ben"))
    assert "placed a legal hold on ben" in desk.refused(desk.order(PlaceHold, "anna", subject="principal:ben"))


def test_rules_that_this_build_does_not_know_are_refused_before_anything_is_recorded(found: Found) -> None:
    desk = found(policy())
    size = desk.ledger.state.size
    reason = desk.refused(desk.order(RaiseRules, "anna", rules=NEWEST_RULES + 1))
    assert f"expected a version that this build knows, {NEWEST_RULES} at most" in reason
    assert (desk.ledger.state.size, len(desk.ledger.state.pending)) == (size + 1, 0)


def test_an_order_becomes_what_the_rules_in_force_make_of_it_not_the_newest(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = replace(ACTIONS["lift-hold"], two_administrators=False)
    rows = (*(row for row in ACTIONS.values() if row.name != "lift-hold"), alone)
    monkeypatch.setitem(RULE_SETS, NEWEST_RULES, make_rule_set(NEWEST_RULES, rows))
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


@pytest.mark.parametrize("defect", [ValueError("a bound"), RecursionError(), KeyError("x"), AssertionError()])
def test_an_order_that_a_defect_keeps_from_being_decided_is_refused_by_an_entry(
    found: Found, monkeypatch: pytest.MonkeyPatch, defect: Exception
) -> None:
    desk = found(policy())
    order = desk.order(PlaceHold, "anna", subject="principal:ben")

    def fail(*_: object) -> None:
        raise defect

    with monkeypatch.context() as broken:
        broken.setattr(orders, "_find_reasons", fail)
        with pytest.raises(Denied, match="because of a defect in the service") as refused:
            desk.submit(order)
    assert (refused.value.status, refused.value.code) == (403, "defect")
    assert (desk.last().type, desk.last().actor) == ("order.refused", "anna")
    assert desk.verify() == ("verified", "replayed", [])
    desk.submit(order)


def refuse_to_append(*_: Any, **__: Any) -> None:
    raise Unavailable("ledger: expected a disk with room, got a full one")


# A set that an earlier release adopted.


def test_a_set_whose_schema_lacks_an_action_refuses_that_action_alone(found: Found) -> None:
    desk = found(policy(schema=OLDER))
    desk.countersign(desk.propose_enrolment("legal", "unit"))
    assert desk.last().type == "principal.enrolled"
    revocation = {"unit": "legal", "token": None, "issued_before": encode_time(START), "application": None}
    with pytest.raises(Denied) as denied:
        desk.submit(desk.order(RevokeTokens, "anna", **revocation))
    assert [one.code for one in denied.value.refusals] == ["policy-without-action"]
    assert [one["code"] for one in desk.last().body["refusals"]] == ["policy-without-action"]
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
    r'action "erase" appliesTo \{(?s:.*?)\n\};\n',
    r"\n  roles: Set<String>,(?=\n\})",
    r"\n    roles: Set<String>,(?=\n  \})",
):
    EARLIER_SCHEMA, _count = re.subn(_later, "", EARLIER_SCHEMA)
    assert _count == 1


def earlier_document() -> bytes:
    """Return a set of a build without witnesses, roles as text, and texts that can be erased."""
    value = policy(PERMIT + NO_MALLORY, EARLIER_SCHEMA).model_dump(mode="json")
    for name in ("witnesses", "witness_quorum", "witness_lifetime_s"):
        del value["parameters"][name]
    return encode_canonical(value)


@pytest.mark.thorough
def test_a_document_of_an_earlier_build_is_in_force_decides_is_verified_and_can_be_replaced(found: Found) -> None:
    document = earlier_document()
    desk = found(document)
    site = desk.ledger.state.site
    assert (site.policy, site.parameters) == (digest_bytes(document), Parameters())
    desk.countersign(desk.propose_enrolment("olga", "operator"))
    with pytest.raises(Denied, match=r"Cedar policy no-mallory forbids anna the action enrol\."):
        desk.propose_enrolment("mallory", "operator")
    person = desk.ledger.state.principals.get("olga")
    assert person is not None and person.printed_name is not None
    with pytest.raises(Denied, match="has no action erase"):
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
    desk.countersign(desk.submit(order, policy=document))
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


def test_a_set_that_lacks_an_action_is_not_adopted(found: Found) -> None:
    desk = found(policy())
    with pytest.raises(BadInput, match="action revoke-tokens: expected it to take a sample request"):
        desk.propose(policy(schema=OLDER))


@pytest.mark.thorough
def test_a_set_that_was_ordered_under_an_earlier_release_is_not_adopted_under_this_one(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = found(policy())
    with monkeypatch.context() as earlier:
        known = tuple(request for request in list_probes() if request.action != "revoke-tokens")
        earlier.setattr(cedar, "list_probes", lambda: known)
        pending = desk.propose(policy(schema=OLDER))
    desk.context.policy_trials = PolicyTrials()  # as in a service that has started
    with pytest.raises(BadInput, match="action revoke-tokens: expected it to take a sample request"):
        desk.countersign(pending)
    assert desk.ledger.state.site.policy == policy_digest(policy())
