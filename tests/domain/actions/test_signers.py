"""Signers of each action: a signer who may not sign gets one reason, which the order and the signer determine."""

from __future__ import annotations

import time

import pytest

from appliance.domain.actions.example import make_example_state
from appliance.domain.actions.registry import ACTIONS, list_refusal_reasons
from appliance.domain.core.entry import record_refusals
from appliance.domain.core.example import NOW
from appliance.domain.core.names import NO_DIGEST
from appliance.domain.core.records.people import Principal
from appliance.domain.recipe.privacy import ResolvedPrivacy
from appliance.domain.runs.training import Train
from appliance.errors import Refusal
from scripts.references.pages import RELATIONS, ROLES, orders

STATE = make_example_state()
HELD = {"reviewer:FUNCTION": "reviewer:privacy", "release-owner:UNIT": "release-owner:legal"}
"""The place of roles that have one: that of the things that the orders are about."""
RELATED = {
    "rotate-key": "rita",
    "revoke-key": "rita",
    "cancel": "olga",
    "cancel-import": "olga",
    "revoke-tokens": "legal",
    "withdraw-request": "olga",
    "withdraw-order": "anna",
}
"""The person to whom the relation of the action's row leads, in the orders here."""


def refused(action: str, name: str, role: str) -> bool:
    """Return True if the rules say that this person, with this one role, may not sign the order."""
    order = ACTIONS[action].example.model_copy(update={"signer": name})
    signer = Principal(name=name, printed_name=None, roles=(role,), keyid="", enrolled=0)
    reasons = ACTIONS[action].refuse_signer(order, signer) or ACTIONS[action].authorise(STATE, order, signer, NOW)
    return any(reason.code == "role-missing" for reason in reasons)


@pytest.mark.parametrize("action", sorted(ACTIONS))
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_sign_what_the_row_says_and_no_more(action: str, role: str) -> None:
    """A recovery key countersigns recoveries, and the pending order here is none."""
    if (role, action) == ("recovery", "countersign"):
        assert refused(action, "outsider", role)
        return
    assert refused(action, "outsider", HELD.get(role, role)) is not orders(role, ACTIONS[action])


@pytest.mark.parametrize(("action", "name"), RELATED.items())
def test_a_relation_of_the_row_may_sign_without_the_role(action: str, name: str) -> None:
    assert any(signer in RELATIONS for signer in ACTIONS[action].signers)
    assert not refused(action, name, "unit" if name == "legal" else "operator")


def test_who_ordered_a_run_resumes_it_as_an_operator() -> None:
    assert not refused("resume", "olga", "operator")
    assert refused("resume", "olga", "auditor")


UNRELATED = (("claims", "unit"), ("cleo", "release-owner:claims"))
"""A unit and a release owner of it, to whom no order here belongs."""
UNKNOWN = {
    "name": "nothing", "adapter": "nothing", "version": 9, "manifest": NO_DIGEST, "run": "r-000999", "base": "nothing",
    "dataset": "nothing", "entry": 9_999, "order": NO_DIGEST, "digest": NO_DIGEST, "request": NO_DIGEST,
    "keyid": NO_DIGEST, "token": NO_DIGEST, "commitment": NO_DIGEST,
}  # fmt: skip
"""Values that name things which are not in the log."""


def ask(action: str, name: str, role: str, **fields: object) -> list[Refusal]:
    state = make_example_state()
    state.principals.set(name, Principal(name=name, printed_name=None, roles=(role,), keyid="", enrolled=0))
    order = ACTIONS[action].example.model_copy(update={"signer": name, **fields})
    return list_refusal_reasons(state, order, NOW)


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_who_may_not_sign_gets_one_reason_and_learns_no_more_than_of_unknown_things(action: str) -> None:
    for name, role in UNRELATED:
        reasons = ask(action, name, role)
        assert len(reasons) == 1 and reasons[0].code == "role-missing", reasons
        named = {
            field: value for field, value in UNKNOWN.items() if field in type(ACTIONS[action].example).model_fields
        }
        assert ask(action, name, role, **named) == reasons


def test_a_delegate_without_a_delegation_gets_one_reason() -> None:
    reasons = ask("review", "cleo", "release-owner:claims", on_behalf_of="rita")
    assert len(reasons) == 1 and reasons[0].code == "delegation-missing"
    assert ask("review", "claims", "unit", on_behalf_of="rita")[0].code == "role-missing"


@pytest.mark.thorough
def test_a_unit_s_training_orders_cost_no_accounting() -> None:
    """Each order has another noise, so that no epsilon is cached. Each epsilon costs about 20 ms."""
    state, train = make_example_state(), ACTIONS["train"].example
    dataset = state.datasets.get("clauses@1")
    assert isinstance(train, Train) and dataset is not None
    state.datasets.set("clauses@1", dataset.model_copy(update={"facts": {**dataset.facts, "train_rows": 1000}}))

    def refuse(signer: str, number: int) -> list[Refusal]:
        privacy = ResolvedPrivacy(noise=f"1.{number:04}", clip="1.0", epsilon="1.000000", delta="0.00001")
        recipe = train.recipe.model_copy(update={"privacy": privacy})
        return list_refusal_reasons(state, train.model_copy(update={"signer": signer, "recipe": recipe}), NOW)

    assert any("privacy, epsilon: expected" in str(reason) for reason in refuse("olga", 0))
    began = time.process_time()
    assert all(len(refuse("legal", number)) == 1 for number in range(1, 101))
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_the_log_records_no_name_of_the_order_for_a_missing_role(action: str) -> None:
    """The order may name a unit, a person or a review function that the log does not know."""
    unknown = "not-known-to-the-log"
    members = ACTIONS[action].order.model_fields.keys() & {"unit", "principal", "review_function", "on_behalf_of"}
    reasons = ask(action, "outsider", "auditor", **dict.fromkeys(members, unknown))
    (role,) = [record for record in record_refusals(reasons) if record.code == "role-missing"] or [None]
    assert role is None or unknown not in str(role.values["needed"]), role
