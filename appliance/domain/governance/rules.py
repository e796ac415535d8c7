"""The rules version: put in force by two administrators at an upgrade, never by a start. It only rises."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Endorsed
from appliance.domain.core.names import Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb


class RaiseRules(Order):
    """From its entry on, entries are judged by this version of the rules."""

    verb = "raise-rules"
    rules: int = Field(ge=2, le=1_000_000)

    def subjects(self) -> Subjects:
        return self._self("rules")


class RulesRaised(Endorsed):
    type = "rules.raised"


def may_raise_rules(state: State, order: RaiseRules, signer: Principal, now: Time) -> Reasons:
    """Whether a build knows the version is not asked here: an older build refuses the log's next entry."""
    reasons = needs(signer, "administrator")
    if order.rules <= state.site.rules:
        reasons.append(f"rules: expected a later version than {state.site.rules}, got {order.rules}")
    return reasons


def rules_raised(case: Case) -> Changes:
    site = case.state.site.model_copy(update={"rules": case.order(RaiseRules).rules})
    return [(case.state.sites, "site", site)]


VERBS = (
    Verb(
        RaiseRules,
        may=may_raise_rules,
        signers=("administrator",),
        meaning="From now on entries are judged by this version of the rules. This cannot be taken back. Earlier "
        "entries keep their verdict.",
        event=RulesRaised,
        apply=rules_raised,
        two_administrators=True,
        changes_answers=True,
    ),
)
