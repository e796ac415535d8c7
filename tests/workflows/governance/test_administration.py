"""A policy set is adopted only where administrators can still sign under it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.names import encode_value
from appliance.domain.core.policy import Parameters, PolicySet
from appliance.domain.governance.policies import AdoptPolicy
from appliance.errors import BadInput, Denied
from appliance.formats.core.digest import digest_bytes
from appliance.workflows import governance
from appliance.workflows.core.context import PolicyTrials
from scripts.kit.authenticator import new_passkey
from scripts.kit.log_builder import LogBuilder, policy_set, stage

SCHEMA = (Path(__file__).resolve().parents[3] / "policies" / "default" / "schema.cedarschema").read_text()
SYNCED = {"flags": 0x0D}


def document(**parameters: bool) -> bytes:
    permit = '@id("all") permit (principal, action, resource);'
    return encode_value(PolicySet(name="site", parameters=Parameters(**parameters), cedar=permit, cedar_schema=SCHEMA))


def over(site: LogBuilder) -> Any:
    state = SimpleNamespace(state=site.state)
    return SimpleNamespace(ledger=state, now=lambda state: state.last_time, policy_trials=PolicyTrials())


def check(context: Any, data: bytes) -> None:
    governance._check_policy(context, AdoptPolicy.model_construct(policy=digest_bytes(data)), data)


def with_passkeys(*names: str) -> LogBuilder:
    """Return a site whose administrators have only a passkey that can be copied."""
    site = stage("staffed", policy_set(passkeys_synced=True))
    for name in names:
        passkey = site.enrol_passkey(name, new_passkey(**SYNCED))
        site.revoke_key(name, signer=name)
        site.keys[name] = passkey
    return site


def test_a_set_under_which_too_few_administrators_have_a_key_is_refused() -> None:
    site = with_passkeys("anna")
    context = over(site)
    with pytest.raises(Denied, match="that administrators can replace") as refused:
        check(context, document())
    (refusal,) = refused.value.refusals
    assert refusal.code == "administrators-cannot-sign" and refusal.values == {"needed": 2, "able": ("ben",)}
    check(context, document(passkeys_synced=True))


def test_an_administrator_with_another_key_besides_counts() -> None:
    site = stage("staffed", policy_set(passkeys_synced=True))
    site.enrol_passkey("anna", new_passkey(**SYNCED))
    check(over(site), document())


def test_another_document_than_the_ordered_one_is_refused_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(governance.CedarPolicies, "for_adoption", lambda _: pytest.fail("it was tried"))
    order = AdoptPolicy.model_construct(policy=digest_bytes(b"another"))
    with pytest.raises(BadInput, match="document policy: expected sha256:"):
        governance._check_policy(over(stage("staffed")), order, document())
