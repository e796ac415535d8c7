"""Before administrators sign: what the service must hold, or must be able to do, for their orders to take effect."""

from __future__ import annotations

from appliance.access.cedar import SitePolicies
from appliance.domain.core.policy import parse_policy
from appliance.domain.core.verb import NEWEST_RULES
from appliance.domain.governance.log_keys import RotateLogKey
from appliance.domain.governance.policies import AdoptPolicy, find_signers, too_few_signers
from appliance.domain.governance.rules import RaiseRules
from appliance.errors import Conflict, Denied
from appliance.workflows.core.context import Context
from appliance.workflows.core.effects import Effect


def next_log_key(context: Context, principal: str) -> str:
    """The vkey of the key that the log can rotate to, made here where none waits; only an order makes it sign."""
    state = context.ledger.state
    person = state.principals.get(principal)
    if person is None or not person.has("administrator"):
        raise Denied(f"log key: expected an administrator, got {principal}")
    with context.order_lock:
        return context.keyring.next_log_key(state.site.origin, [key.vkey for key in state.site.log_keys])


def _check_made(context: Context, order: RotateLogKey) -> None:
    if order.log_key not in context.keyring.log_signers(context.ledger.state.site.origin):
        raise Conflict(f"log key: expected one that this appliance has made, got {order.log_key}")


def _check_policy(context: Context, data: bytes) -> None:
    """A set that is Cedar, that can decide every verb, and under which another can be adopted, by administrators whose
    keys it lets sign: otherwise it would be the last."""
    state = context.ledger.state
    policy, now = parse_policy(data), context.now(state)
    site = SitePolicies.for_adoption(policy)
    signers = find_signers(state, policy.parameters, now)
    reasons = tuple(too_few_signers(state, signers)) or site.locked_out(signers, state.site.single_administrator, now)
    if reasons:
        raise Denied("policy set: expected one that administrators can replace", reasons=reasons)


def _check_rules_known(context: Context, order: RaiseRules) -> None:
    """A version that this build does not know would be the last entry that it can judge."""
    if order.rules > NEWEST_RULES:
        raise Conflict(f"rules: expected a version that this build knows, {NEWEST_RULES} at most, got {order.rules}")


EFFECTS = (
    Effect(RotateLogKey, ready=_check_made),
    Effect(AdoptPolicy, attached=_check_policy),
    Effect(RaiseRules, ready=_check_rules_known),
)
