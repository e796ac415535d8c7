"""A blocking finding stops every release until its finder, or another reviewer of its function, closes it."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.domain.releases.verdicts import refuse_open_findings
from appliance.errors import Denied
from scripts.kit.log_builder import LogBuilder, stage
from tests.kit.evaluated_release import adapter_of, reasons


def found(name: str = "serving", **fields: Any) -> tuple[LogBuilder, int]:
    site = stage(name)
    return site, site.find(**fields).index


def test_a_finding_that_blocks_stops_a_release_that_answers() -> None:
    site, index = found()
    assert reasons(site) == [
        f"Finding {index} (high issue, privacy) blocks this release. Its owner olga must resolve it, and a reviewer of "
        "privacy must close it."
    ]
    with pytest.raises(Denied, match=f"Finding {index}"):
        site.add(site.request(7))


def test_nothing_is_activated_or_admitted_while_it_is_open() -> None:
    site, index = found("approved")
    with pytest.raises(Denied, match=f"Finding {index}"):
        site.activate()
    site.close(index)
    site.activate()
    site.find()
    with pytest.raises(Denied, match=r"Finding 31 \(high issue, privacy\) blocks this release\."):
        site.add(site.admitted())


def test_a_finding_that_does_not_block_stops_nothing() -> None:
    for kind in ("issue", "limitation"):
        site, _ = found(kind=kind, blocks=False)
        assert reasons(site) == []
        assert not any("inding" in str(reason) for reason in reasons(site, add_seconds(site.now, 400_000)))


def test_an_exception_blocks_from_its_due_date_on_while_it_is_open() -> None:
    site, index = found(kind="exception", blocks=False, due=add_seconds(stage("serving").now, 600))
    due = adapter_of(site).findings[0].due
    assert reasons(site) == []
    assert reasons(site, add_seconds(due, -1)) == []
    blocking = refuse_open_findings(site.state, adapter_of(site), due)
    assert [(one.code, one.subject) for one in blocking] == [("exception-due", f"finding:{index}")]
    assert str(blocking[0]) in reasons(site, due)
    site.close(index)
    assert not any("inding" in str(reason) for reason in reasons(site, due))


def granted(site: LogBuilder, name: str, role: str) -> None:
    site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal=name, role=role))


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ("raul", r"raul is reviewer:model-risk\. This action needs reviewer:privacy\."),
        ("otto", r".* is .*\. This action needs .*\."),
        ("anna", r"anna is administrator\. This action needs reviewer\."),
        ("audrey", r"audrey is auditor\. This action needs reviewer\."),
        ("olga", r"olga ordered the training run\. Nobody reviews what they made\."),
        ("ines", r"ines imported the training data\. Nobody reviews what they made\."),
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
    site.enrol("rolf", "reviewer:privacy")
    site.close(index, "rolf")
    assert reasons(site) == []
    assert adapter_of(site).findings[0].closed_by == "rolf"


def test_a_delegate_closes_no_finding() -> None:
    site, index = found()
    site.enrol("dana", "reviewer:legal-risk")
    site.delegate("dana")
    with pytest.raises(Denied, match=r"dana is reviewer:legal-risk\. This action needs reviewer:privacy\."):
        site.close(index, "dana")


def test_a_closing_under_a_key_that_does_not_count_closes_nothing() -> None:
    site, index = found()
    closing = site.close(index)
    assert reasons(site) == []
    site.enrol("rolf", "reviewer:privacy")
    site.review("rolf", "privacy")
    site.revoke_key("rita", since=closing.index)
    assert any(f"Finding {index}" in str(reason) for reason in reasons(site))
    site.close(index, "rolf")
    assert not any("inding" in str(reason) for reason in reasons(site))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a review function that is not the signer's": (
        {"review_function": "model-risk"},
        r"rita is reviewer:privacy\. This action needs reviewer:model-risk\.",
    ),
    "an owner who is not enrolled": ({"owner": "nobody"}, r"nobody is not enrolled or has been revoked\."),
    "a due date that has passed": ({"due": "2020-01-01T00:00:00.000Z"}, r"The due date .* is not after .*\."),
    "other bytes": (
        {"manifest": "sha256:" + "1" * 64},
        r"The order is for an adapter .* with the manifest .*\. The sealed adapter has the manifest .*\.",
    ),
    "no reviewer": ({"by": "otto"}, r".* is .*\. This action needs .*\."),
}


@pytest.mark.parametrize(("fields", "why"), WRONG.values(), ids=WRONG)
def test_a_finding_is_refused_with(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(Denied, match=why):
        found(**fields)


def test_a_finding_is_closed_once_and_by_its_own_number() -> None:
    site, index = found()
    with pytest.raises(Denied, match=rf"Entry 3 records no finding .* open findings: {index}"):
        site.close(3)
    site.close(index)
    with pytest.raises(Denied, match=r"Finding 34 was closed by entry 35\."):
        site.close(index)


def test_a_finding_of_one_version_is_none_of_another() -> None:
    site = stage("sealed")
    run = site.train()
    site.seal(run, 2)
    site.find(version=2)
    assert adapter_of(site, 1).findings == () and len(adapter_of(site, 2).findings) == 1
