"""The policy set: how another is adopted."""

from __future__ import annotations

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Endorsed
from appliance.domain.core.names import Digest, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.policy import PolicySet, own_witnesses, parse_policy
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, needs
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
