"""README.md and SECURITY.md agree with the policy set that `appliance init` adopts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.domain.core.policy import Parameters
from scripts.kit.appliance import ROOT

DEFAULT = Parameters.model_validate_json((ROOT / "policies" / "default" / "parameters.json").read_bytes())

SECURITY_CLAIMS: dict[str, Callable[[Parameters], bool]] = {
    "two approvals by reviewers with different review functions": (
        lambda policy: policy.reviewers == policy.distinct_functions == 2 and not policy.required_functions
    ),
    "`approver_may_activate` is false": lambda policy: policy.approver_may_activate is False,
    "8 hours at most": lambda policy: policy.break_glass_lifetime_s == 8 * 3600,
    "`failed_verdict` is `stops`": lambda policy: policy.failed_verdict == "stops",
    "passkeys that can be copied, and those of localhost, are refused": (
        lambda policy: not policy.passkeys_synced and not policy.passkeys_on_localhost
    ),
    "`text_retention_s` is 0": lambda policy: policy.text_retention_s == 0,
    "`retention` is empty": lambda policy: not policy.retention,
    "`identity_provider` is null": lambda policy: policy.identity_provider is None,
    "`accepted_missing_layers` is empty": lambda policy: not policy.accepted_missing_layers,
    "`units_read` is `own`": lambda policy: policy.units_read == "own",
}
"""The words after `*Policy*:` in SECURITY.md, with the values of the parameters that they claim."""

OTHER_CLAIMS: dict[tuple[str, str], Callable[[Parameters], bool]] = {
    ("README.md", "By default two reviewers must approve; the site's policy can change the number."): (
        lambda policy: policy.reviewers == 2
    ),
    ("README.md", "can release it together, for 8 hours at most by default."): (
        lambda policy: policy.break_glass_lifetime_s == 8 * 3600
    ),
    ("README.md", "or by default what you approved"): lambda policy: policy.approver_may_activate is False,
    ("README.md", "read another unit's requests, unless policy sets `units_read: all`"): (
        lambda policy: policy.units_read == "own"
    ),
    ("SECURITY.md", "By default no witness is configured."): (
        lambda policy: not policy.witnesses and policy.witness_quorum == 0
    ),
    ("SECURITY.md", "By default these are off**: witnesses, required gates for a release, required release requests"): (
        lambda policy: not policy.witnesses and not policy.required_gates and not policy.requests_required
    ),
}
"""Sentences that rest on a parameter, with the values that they claim."""


def read_words(name: str) -> str:
    """Return the page's text in one line."""
    return re.sub(r"\s+", " ", Path(ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("claim", SECURITY_CLAIMS)
def test_a_promise_that_policy_changes_names_the_value_of_the_default_set(claim: str) -> None:
    assert f"*Policy*: {claim}" in read_words("SECURITY.md")
    assert SECURITY_CLAIMS[claim](DEFAULT)


def test_every_promise_that_policy_changes_is_compared() -> None:
    named = re.findall(r"\*Policy\*: ([^*]+)", read_words("SECURITY.md"))
    assert [text for text in named if not text.startswith(tuple(SECURITY_CLAIMS))] == []
    assert len(named) == len(SECURITY_CLAIMS)


@pytest.mark.parametrize(("page", "claim"), OTHER_CLAIMS)
def test_a_sentence_that_rests_on_a_parameter_agrees_with_the_default_set(page: str, claim: str) -> None:
    assert claim in read_words(page)
    assert OTHER_CLAIMS[page, claim](DEFAULT)


def test_the_security_page_is_short_and_the_first_page_fits() -> None:
    assert len((ROOT / "SECURITY.md").read_text(encoding="utf-8").split()) <= 3_000
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
