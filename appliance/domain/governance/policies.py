"""The policy set: how another is adopted."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Endorsed
from appliance.domain.core.names import Digest, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.policy import Parameters, PolicySet, own_witnesses, parse_policy
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.signatures import against_scope
from appliance.domain.core.state import State
from appliance.domain.core.verb import Attachment, Verb
from appliance.errors import Denied
from appliance.formats.core.digest import digest_bytes


class AdoptPolicy(Order):
    verb = "adopt-policy"
    policy: Digest

    def subjects(self) -> Subjects:
        return ((f"policy:{self.policy}", self.policy),)


class PolicyAdopted(Endorsed):
    type = "policy.adopted"
    documents = ("order", "policy")


def may_adopt_policy(state: State, order: AdoptPolicy, signer: Principal, now: Time) -> Reasons:
    return needs(signer, "administrator")


def check_witnesses(log_keys: list[str], policy: PolicySet) -> None:
    if reasons := own_witnesses(log_keys, policy.parameters):
        raise Denied("policy set", reasons=tuple(reasons))


def find_signers(state: State, parameters: Parameters, now: Time) -> list[Principal]:
    """The administrators who have a key that may sign under these parameters, which need not be those in force."""
    able = {
        key.principal
        for key in state.keys.values()
        if key.stands(now) and (key.scope is None or not against_scope(parameters, key.scope))
    }
    return [person for person in state.principals.values() if person.has("administrator") and person.name in able]


def too_few_signers(state: State, signers: Sequence[Principal]) -> Reasons:
    """Why these could not adopt another set."""
    least = 1 if state.site.single_administrator else 2
    if len(signers) >= least:
        return []
    names = ", ".join(person.name for person in signers) or "none"
    expected = f"expected {least} whose key may sign under this set (passkeys_synced, passkeys_on_localhost)"
    return [f"administrators' keys: {expected}, got {names}"]


def check_policy(case: Case, order: AdoptPolicy, data: bytes) -> None:
    """The document is the set that the order names, and no witness of it is the log itself."""
    case.require(digest_bytes(data) == order.policy, "policy", order.policy, digest_bytes(data))
    check_witnesses([key.vkey for key in case.state.site.log_keys], parse_policy(data))


def adopted(case: Case) -> Changes:
    policy = parse_policy(case.documents["policy"])
    digest = digest_bytes(case.documents["policy"])
    site = case.state.site.model_copy(update={"policy": digest, "parameters": policy.parameters})
    return [(case.state.sites, "site", site)]


VERBS = (
    Verb(
        AdoptPolicy,
        may=may_adopt_policy,
        signers=("administrator",),
        meaning="From now on every decision is made under this policy set.",
        event=PolicyAdopted,
        apply=adopted,
        two_administrators=True,
        attachment=Attachment("policy", check_policy),
        changes_answers=True,
    ),
)
