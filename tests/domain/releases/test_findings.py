"""A finding that blocks stops every release until who found it, or another reviewer of the field, closes it."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.errors import Denied
from scripts.kit.log_builder import LogBuilder, stage
from tests.kit.judged_release import adapter_of, reasons


def found(name: str = "serving", **fields: Any) -> tuple[LogBuilder, int]:
    site = stage(name)
    return site, site.find(**fields).index


def test_a_finding_that_blocks_stops_a_release_that_answers() -> None:
    site, index = found()
    assert reasons(site) == [
        f"finding {index} (high issue, privacy): expected it closed, got one that blocks and is open; its owner is olga"
    ]
    with pytest.raises(Denied, match=f"finding {index}"):
        site.add(site.request(7))


def test_nothing_is_activated_or_admitted_while_it_is_open() -> None:
    site, index = found("approved")
    with pytest.raises(Denied, match=f"finding {index}"):
        site.activate()
    site.close(index)
    site.activate()
    site.find()
    with pytest.raises(Denied, match="got one that blocks"):
        site.add(site.admitted())


def test_a_finding_that_does_not_block_stops_nothing() -> None:
    for kind in ("issue", "limitation"):
        site, _ = found(kind=kind, blocks=False)
        assert reasons(site) == []
        assert not any("finding" in reason for reason in reasons(site, add_seconds(site.now, 400_000)))


def test_an_exception_blocks_from_its_due_date_on_while_it_is_open() -> None:
    site, index = found(kind="exception", blocks=False, due=add_seconds(stage("serving").now, 600))
    due = adapter_of(site).findings[0].due
    assert reasons(site) == []
    assert reasons(site, add_seconds(due, -1)) == []
    assert any(f"finding {index}" in reason for reason in reasons(site, due))
    site.close(index)
    assert not any("finding" in reason for reason in reasons(site, due))


def granted(site: LogBuilder, name: str, role: str) -> None:
    site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal=name, role=role))


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ("raul", "role: expected raul to be reviewer:privacy"),
        ("otto", "role: expected otto"),
        ("anna", "role: expected anna"),
        ("audrey", "role: expected audrey"),
        ("olga", "did not order the run, got olga"),
        ("ines", "did not import the dataset, got ines"),
    ],
)
def test_a_finding_is_not_closed_by(who: str, why: str) -> None:
    site, index = found()
    if who in ("olga", "ines"):
        granted(site, who, "reviewer:privacy")
    with pytest.raises(Denied, match=why):
        site.close(index, who)
    assert reasons(site) != []


def test_another_reviewer_of_the_field_closes_it() -> None:
    site, index = found()
    site.enroll("rolf", "reviewer:privacy")
    site.close(index, "rolf")
    assert reasons(site) == []
    assert adapter_of(site).findings[0].closed_by == "rolf"


def test_a_delegate_closes_no_finding() -> None:
    site, index = found()
    site.enroll("dana", "reviewer:legal-risk")
    site.delegate("dana")
    with pytest.raises(Denied, match="role: expected dana to be reviewer:privacy"):
        site.close(index, "dana")


def test_a_closing_under_a_key_that_does_not_count_closes_nothing() -> None:
    site, index = found()
    closing = site.close(index)
    assert reasons(site) == []
    site.enroll("rolf", "reviewer:privacy")
    site.review("rolf", "privacy")
    site.revoke_key("rita", since=closing.index)
    assert any(f"finding {index}" in reason for reason in reasons(site))
    site.close(index, "rolf")
    assert not any("finding" in reason for reason in reasons(site))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a field that is not the signer's": ({"field": "model-risk"}, "role: expected rita"),
    "an owner who is not enrolled": ({"owner": "nobody"}, "owner: principal: expected a standing one, got nobody"),
    "a due date that has passed": ({"due": "2020-01-01T00:00:00.000Z"}, "due: expected a time after"),
    "other bytes": ({"manifest": "sha256:" + "1" * 64}, "expected the manifest"),
    "no reviewer": ({"by": "otto"}, "role: expected otto"),
}


@pytest.mark.parametrize(("fields", "why"), WRONG.values(), ids=WRONG)
def test_a_finding_is_refused_with(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(Denied, match=why):
        found(**fields)


def test_a_finding_is_closed_once_and_by_its_own_number() -> None:
    site, index = found()
    with pytest.raises(Denied, match=rf"that is open \({index}\), got 3"):
        site.close(3)
    site.close(index)
    with pytest.raises(Denied, match="expected an open one, got one closed by entry"):
        site.close(index)


def test_a_finding_of_one_version_is_none_of_another() -> None:
    site = stage("sealed")
    run = site.train()
    site.seal(run, 2)
    site.find(version=2)
    assert adapter_of(site, 1).findings == () and len(adapter_of(site, 2).findings) == 1
