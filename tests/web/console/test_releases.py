"""What is released, what may be, and by whose word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.domain.core.decisions import Conditions
from tests.kit.console import Console, console


@pytest.fixture
def desk(home: Path, request: pytest.FixtureRequest) -> Iterator[Console]:
    with console(request.param, home) as made:
        yield made


@pytest.mark.parametrize("desk", ["sealed"], indirect=True)
def test_a_release_owner_sees_what_is_missing_and_when_it_is_not_any_more(desk: Console) -> None:
    desk.site.request_release()
    browser = desk.signed_in("otto")
    (one,) = browser.get("/candidates.json").json()["candidates"]
    assert one["unit"] == "legal" and one["tasks"] == []
    assert any(reason["text"].startswith("quorum: expected 2 standing approvals") for reason in one["missing"])
    assert {reason["rule"] for reason in one["missing"]} == {"parameter of the policy set in force"}
    desk.site.review("rita", "privacy")
    desk.site.review("raul", "model-risk")
    (one,) = browser.get("/candidates.json").json()["candidates"]
    assert one["missing"] == [] and "may be released" in browser.get("/candidates").text
    desk.site.activate()
    assert browser.get("/candidates.json").json()["candidates"][0]["tasks"] == ["labels"]
    assert browser.get("/candidates.json?unit=sales").json()["candidates"] == []


@pytest.mark.parametrize("desk", ["sealed"], indirect=True)
def test_a_release_says_its_conditions_and_how_far_they_are_used_up(desk: Console) -> None:
    site = desk.site
    limits = Conditions(not_before=None, not_after=None, tasks=("labels",), answers_a_day=1_000)
    site.review("rita", "privacy", decision="approve-with-conditions", conditions=limits)
    site.review("raul", "model-risk")
    site.activate()
    browser = desk.signed_in("legal")
    value = browser.get("/releases/legal/labels.json").json()
    assert (value["row"]["used_today"], value["row"]["most_a_day"]) == (0, 1_000)
    assert value["row"]["approved_by"] == ["rita", "raul"] and value["row"]["by"] == "otto"
    assert [one["answers_a_day"] for one in value["conditions"]] == [1_000]
    assert value["row"]["until"] == min(one["valid_until"] for one in value["approvals"])
    text = browser.get("/releases/legal/labels").text
    assert "at most 1,000 answers a day" in text and "of 1,000" in text


@pytest.mark.parametrize("desk", ["released"], indirect=True)
def test_a_release_that_answers_no_more_says_why_and_waits_for_its_owner_and_its_unit(desk: Console) -> None:
    desk.site.revoke("raul")
    for name in ("otto", "legal"):
        browser = desk.signed_in(name)
        value = browser.get("/releases/legal/labels.json").json()
        assert not value["row"]["answers"]
        assert any("quorum" in reason["text"] and reason["allows"] for reason in value["against"])
        (task,) = browser.get("/home.json").json()["tasks"]
        assert task["urgent"] and task["path"] == "/releases/legal/labels"
    assert desk.signed_in("audrey").get("/home.json").json()["tasks"] == []
