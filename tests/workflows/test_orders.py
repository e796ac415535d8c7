"""Orders under the site's own policies: both orders of an endorsement, and a set that an earlier release adopted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import pytest

from appliance.access import cedar
from appliance.access.samples import SAMPLES
from appliance.domain import orders as o
from appliance.domain.entry import Draft, Entry, parse_entry
from appliance.domain.names import encode_value
from appliance.domain.policy import Parameters, PolicySet
from appliance.errors import BadInput, Denied
from appliance.formats.canonical import parse_canonical
from appliance.formats.dsse import encode_envelope
from appliance.formats.timestamp import encode_time
from appliance.formats.trust import Trust, encode_trust
from appliance.store.engine import migrate, open_engine
from appliance.store.ledger import Ledger
from appliance.workflows import audit, orders
from appliance.workflows.context import Context
from tests.domain.builder import ORIGIN, Site
from tests.store.site import START, Clock

SCHEMA = (Path(__file__).resolve().parents[2] / "policies" / "default" / "schema.cedarschema").read_text()
OLDER = re.sub(r'action "revoke-tokens" appliesTo \{[^}]*\};\n', "", SCHEMA)
"""That of a release which could not revoke tokens."""
O = TypeVar("O", bound=o.Order)  # noqa: E741
PERMIT = '@id("all") permit (principal, action, resource);\n'


def policy(cedar_text: str = PERMIT, schema: str = SCHEMA) -> PolicySet:
    return PolicySet(name="site", parameters=Parameters(), cedar=cedar_text, cedar_schema=schema)


class Desk:
    """What the service does with an order, over a ledger of its own; `site` has the keys of anna and ben, and signs."""

    def __init__(self, ledger: Ledger, clock: Clock, site: Site) -> None:
        needless = {field.name: None for field in fields(Context) if field.default_factory is field.default is MISSING}
        self.context = Context(**needless | {"ledger": ledger, "clock": clock})  # type: ignore[arg-type]
        self.ledger, self.clock, self.site = ledger, clock, site
        body = site.first
        ledger.append(Draft(type=body.type, documents={"policy": encode_value(site.policy)}, body=body))

    def order(self, model: type[O], by: str, **members: Any) -> O:
        self.site.now = encode_time(self.clock())
        return self.site.order(model, by, **members)

    def submit(self, order: o.Order, **documents: bytes) -> str:
        """The order's identity, once it is recorded."""
        envelope = encode_envelope(self.site.sign(order))
        texts = [text for text in self.site.disclosures if text.commitment in order.model_dump().values()]
        return orders.submit(self.context, orders.Submission(envelope, tuple(texts), documents, "unix")).digest

    def propose_enrolment(self, name: str, role: str) -> str:
        self.site.now = encode_time(self.clock())
        order, documents = self.site.enrolment(name, (role,))
        return self.submit(order, **documents)

    def endorse(self, digest: str) -> str:
        return self.submit(self.order(o.Endorse, "ben", order=digest))

    def propose(self, new: PolicySet) -> str:
        return self.submit(self.order(o.AdoptPolicy, "anna", policy=new.digest), policy=encode_value(new))

    def adopt(self, new: PolicySet) -> None:
        self.endorse(self.propose(new))

    def last(self) -> Entry:
        return parse_entry(self.ledger.entry_bytes(self.ledger.state.size - 1))

    def verify(self) -> tuple[str, str, list[Any]]:
        first = parse_entry(self.ledger.entry_bytes(0))
        people = self.site.trust.administrators
        trust = Trust(ORIGIN, self.site.first.log_key, f"sha256:{first.leaf.hex()}", people)
        report = audit.verify(self.context, parse_canonical(encode_trust(trust)[:-1]))
        return report["verdict"], report["site_policies"], report["findings"] + report["local_findings"]


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Callable[[PolicySet], Desk]]:
    """Founds an appliance under this policy set, as whatever release adopted it would have."""
    with ExitStack() as stack:

        def make(first: PolicySet) -> Desk:
            site, clock = Site(policy=first), Clock()
            engine = open_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
            migrate(engine)
            log_key = site.first.log_key
            ledger = Ledger(engine, origin=ORIGIN, log_key=log_key, signers=site.log_signers.__getitem__, clock=clock)
            return Desk(stack.enter_context(closing(ledger)), clock, site)

        yield make


# An endorsement, and what it endorses.

NO_MALLORY = (
    '@id("no-mallory") forbid (principal == Principal::"anna", action == Action::"enroll", resource) '
    'when { resource.name == "mallory" };\n'
)


def test_what_is_endorsed_is_decided_under_the_set_in_force_then(found: Callable[[PolicySet], Desk]) -> None:
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


def test_an_order_whose_endorsement_was_denied_still_waits(found: Callable[[PolicySet], Desk]) -> None:
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


def test_each_order_of_an_endorsement_has_its_own_signer(found: Callable[[PolicySet], Desk]) -> None:
    """What forbids the second administrator to enroll, and the first to endorse, forbids neither what they did."""
    forbid = '@id("{}") forbid (principal == Principal::"{}", action == Action::"{}", resource);\n'
    desk = found(policy(PERMIT + forbid.format("a", "ben", "enroll") + forbid.format("b", "anna", "endorse")))
    desk.endorse(desk.propose_enrolment("mallory", "operator"))
    assert desk.last().type == "principal.enrolled"


# A set that an earlier release adopted.


def test_a_set_whose_schema_lacks_a_verb_refuses_that_verb_alone(found: Callable[[PolicySet], Desk]) -> None:
    desk = found(policy(schema=OLDER))
    desk.endorse(desk.propose_enrolment("legal", "unit"))
    assert desk.last().type == "principal.enrolled"
    revocation = {"unit": "legal", "token": None, "issued_before": encode_time(START)}
    with pytest.raises(Denied) as denied:
        desk.submit(desk.order(o.RevokeTokens, "anna", **revocation))
    (reason,) = denied.value.reasons
    assert reason == (
        "site policies site, revoke-tokens by anna: "
        "expected a schema with the action revoke-tokens, got none: adopt a set whose schema has it"
    )
    assert (desk.last().type, desk.last().body["reasons"]) == ("order.refused", [reason])
    assert desk.verify() == ("verified", "replayed", [])


def test_a_set_of_an_earlier_release_can_be_replaced_and_its_log_verifies(found: Callable[[PolicySet], Desk]) -> None:
    desk = found(policy(schema=OLDER))
    desk.adopt(policy())
    assert desk.ledger.state.site.policy == policy().digest
    desk.submit(desk.order(o.RevokePrincipal, "anna", principal="ben"))
    assert desk.verify() == ("verified", "replayed", [])


def test_a_set_that_lacks_a_verb_is_not_adopted(found: Callable[[PolicySet], Desk]) -> None:
    desk = found(policy())
    with pytest.raises(BadInput, match="action revoke-tokens: expected it to take a sample request"):
        desk.propose(policy(schema=OLDER))


def test_a_set_that_was_ordered_under_an_earlier_release_is_not_adopted_under_this_one(
    found: Callable[[PolicySet], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = found(policy())
    with monkeypatch.context() as earlier:
        known = {verb: request for verb, request in SAMPLES.items() if verb != "revoke-tokens"}
        earlier.setattr(cedar, "SAMPLES", known)
        pending = desk.propose(policy(schema=OLDER))
    with pytest.raises(BadInput, match="action revoke-tokens: expected it to take a sample request"):
        desk.endorse(pending)
    assert desk.ledger.state.site.policy == policy().digest
