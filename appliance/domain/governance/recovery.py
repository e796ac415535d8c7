"""Recovery keys: keys kept in a safe. They enrol a new administrator if too few administrators have their keys."""

from __future__ import annotations

from appliance.domain.core.action import Action
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Countersigned
from appliance.domain.core.example import NEW_KEY
from appliance.domain.core.facts import ActionFacts, PrincipalEntity
from appliance.domain.core.names import Commitment, Time
from appliance.domain.core.order import entered
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.governance.countersignature import RECOVER_ADMINISTRATOR
from appliance.domain.governance.keys import POSSESSION, NewKey, complete_key, refuse_new_key
from appliance.domain.governance.people import make_enrolment_changes, refuse_newcomer
from appliance.errors import RefusalCode

RECOVERY_NEEDS_TWO = RefusalCode(
    "recovery-needs-two",
    "rule",
    "A recovery needs a second signature. This site was founded with a single administrator, whose orders have none.",
    "Found a new site with two administrators.",
)


class RecoverAdministrator(NewKey):
    """An order, signed by a recovery key, to enrol a new administrator."""

    action = RECOVER_ADMINISTRATOR
    printed_name: Commitment = entered("the full name, as other people read it")


class AdministratorRecovered(Countersigned):
    """The event of the enrolment of an administrator by a recovery."""

    type = "administrator.recovered"
    documents = ("order", "possession")


def authorise_recover(state: State, order: RecoverAdministrator, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a recovery."""
    reasons = refuse_newcomer(state, order.principal, ("administrator",)) + refuse_new_key(state, order)
    return [*reasons, RECOVERY_NEEDS_TWO()] if state.site.single_administrator else reasons


def apply_recovery(case: Case) -> Changes:
    """Apply the enrolment of the administrator."""
    order = case.order(RecoverAdministrator)
    roles = ("administrator",)
    return make_enrolment_changes(case, order.principal, order.printed_name, roles, order.key, order.keyid)


def _describe_newcomer(state: State, order: RecoverAdministrator, signer: Principal) -> PrincipalEntity:
    return PrincipalEntity(id=order.principal, name=order.principal, roles=())


ACTIONS = (
    Action(
        RecoverAdministrator,
        title="Recover with a recovery key",
        complete=complete_key,
        authorise=authorise_recover,
        signers=("recovery",),
        meaning="This key becomes that of a new administrator, once an administrator or another recovery key has "
        "countersigned. That is possible after half of the policy's order_lifetime_s. Compare the short code first.",
        event=AdministratorRecovered,
        apply=apply_recovery,
        two_administrators=True,
        attachment=POSSESSION,
        facts=ActionFacts(PrincipalEntity, _describe_newcomer),
        example_values={"signer": "vault", **NEW_KEY, "principal": "nina"},
    ),
)
