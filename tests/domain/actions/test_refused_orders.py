"""Orders that name something unknown, empty or ended, each with the code of its refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from appliance.domain.actions.registry import list_refusal_reasons
from appliance.domain.core.decisions import Conditions
from appliance.domain.core.names import NO_DIGEST
from appliance.domain.core.order import Order
from appliance.domain.governance.keys import RevokeKey
from appliance.domain.releases.findings import CloseFinding
from appliance.domain.runs.control import Cancel
from scripts.kit.log_builder import LogBuilder, stage

EMPTY = Conditions(not_before=None, not_after=None, served_models=(), answers_a_day=None)


@pytest.mark.parametrize(
    ("code", "make"),
    [
        ("conditions-empty", lambda s: s.request_order(conditions=EMPTY)),
        ("delegate-is-signer", lambda s: s.delegation_order("rita", "rita")),
        (
            "finding-unknown",
            lambda s: s.order(CloseFinding, "rita", **s.on_adapter(1), entry=9_999, evidence=s.text("None.")),
        ),
        ("key-unknown", lambda s: s.order(RevokeKey, "anna", principal="rita", keyid=NO_DIGEST, since=None)),
        ("run-ended", lambda s: s.order(Cancel, "olga", run="r-000001", reason=None)),
    ],
)
def test_an_order_is_refused_with_its_code(code: str, make: Callable[[LogBuilder], Order]) -> None:
    site = stage("sealed").fork()
    assert code in [one.code for one in list_refusal_reasons(site.state, make(site), site.now)]
