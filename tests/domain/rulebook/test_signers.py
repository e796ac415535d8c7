"""Who may sign a verb: what its row says for readers is what its invariant decides."""

from __future__ import annotations

import pytest

from appliance.domain.core.records.people import Principal
from appliance.domain.rulebook.registry import VERBS
from scripts.references.pages import RELATIONS, ROLES, orders
from tests.access.test_cedar import ORDERED, SITE

HELD = {"reviewer:FIELD": "reviewer:privacy", "release-owner:UNIT": "release-owner:legal"}
"""Of roles with a place: that of the things that the orders are about."""
RELATED = {
    "rotate-key": "rita",
    "revoke-key": "rita",
    "cancel": "olga",
    "cancel-import": "ines",
    "revoke-tokens": "legal",
    "withdraw-request": "olga",
}
"""Who the relation of the verb's row is, in the orders here."""
REASONS = ("role: expected ", "principal: expected the signer", "unit: expected the signer's own name ")


def refused(verb: str, name: str, role: str) -> bool:
    """Whether the invariant says that this person, with this one role, is not who may sign."""
    order = ORDERED[verb].model_copy(update={"signer": name})
    signer = Principal(name=name, printed_name=None, roles=(role,), keyid="", enrolled=0)
    reasons = VERBS[verb].may(SITE.state, order, signer, SITE.now)
    return any(reason.startswith(REASONS) for reason in reasons)


@pytest.mark.parametrize("verb", sorted(VERBS))
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_sign_what_the_row_says_and_no_more(verb: str, role: str) -> None:
    assert refused(verb, "stranger", HELD.get(role, role)) is not orders(role, VERBS[verb])


@pytest.mark.parametrize(("verb", "name"), RELATED.items())
def test_a_relation_of_the_row_may_sign_without_the_role(verb: str, name: str) -> None:
    assert any(signer in RELATIONS for signer in VERBS[verb].signers)
    assert not refused(verb, name, "operator")


def test_who_ordered_a_run_resumes_it_as_an_operator() -> None:
    assert not refused("resume", "olga", "operator")
    assert refused("resume", "olga", "auditor")
