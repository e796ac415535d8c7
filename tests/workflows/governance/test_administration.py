"""A policy set is adopted only where administrators can still sign under it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.names import encode_value
from appliance.domain.core.policy import Parameters, PolicySet
from appliance.errors import Denied
from appliance.web.console.core.rules import find_rule
from appliance.workflows.governance import administration
from scripts.kit.authenticator import new_passkey
from scripts.kit.log_builder import LogBuilder, policy_set, stage

SCHEMA = (Path(__file__).resolve().parents[3] / "policies" / "default" / "schema.cedarschema").read_text()
SYNCED = {"flags": 0x0D}


def document(**parameters: bool) -> bytes:
    permit = '@id("all") permit (principal, action, resource);'
    return encode_value(PolicySet(name="site", parameters=Parameters(**parameters), cedar=permit, cedar_schema=SCHEMA))


def over(site: LogBuilder) -> Any:
    return SimpleNamespace(ledger=SimpleNamespace(state=site.state), now=lambda state: state.last_time)


def with_passkeys(*names: str) -> LogBuilder:
    """These administrators have a passkey that can be copied, and no other key."""
    site = stage("staffed", policy_set(passkeys_synced=True))
    for name in names:
        passkey = site.enroll_passkey(name, new_passkey(**SYNCED))
        site.revoke_key(name, signer=name)
        site.keys[name] = passkey
    return site


def test_a_set_under_which_too_few_administrators_have_a_key_is_refused() -> None:
    site = with_passkeys("anna")
    context = over(site)
    with pytest.raises(Denied, match="that administrators can replace") as refused:
        administration._check_policy(context, document())
    (reason,) = refused.value.reasons
    assert reason.startswith("administrators' keys: expected 2 whose key may sign under this set")
    assert reason.endswith("got ben")
    rule = find_rule(reason)
    assert rule is not None and "passkeys" in str(rule)
    administration._check_policy(context, document(passkeys_synced=True))


def test_an_administrator_with_another_key_besides_counts() -> None:
    site = stage("staffed", policy_set(passkeys_synced=True))
    site.enroll_passkey("anna", new_passkey(**SYNCED))
    administration._check_policy(over(site), document())
