"""The pages of releases and candidates."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.domain.core.decisions import Conditions
from appliance.domain.governance.people import Grant, RoleGranted
from appliance.workflows.operations.status import status
from tests.kit.console import Console, console


@pytest.fixture
def desk(home: Path, request: pytest.FixtureRequest) -> Iterator[Console]:
    with console(request.param, home) as made:
        yield made


@pytest.mark.parametrize("desk", ["sealed"], indirect=True)
def test_a_release_owner_sees_what_is_missing_and_when_it_is_not_any_more(desk: Console) -> None:
    desk.site.request_release()
    browser = desk.signed_in("otto")
    (one,) = browser.get("/candidates.json").json()["rows"]
    assert one["unit"] == "legal" and one["served_models"] == []
    assert "approvals-missing" in [reason["code"] for reason in one["missing"]]
    assert {reason["kind"] for reason in one["missing"]} == {"policy"}
    page = browser.get("/candidates").text
    assert '<span class="chip is-good">tier low</span>' in page and "People decide with its help (assist)." in page
    desk.site.review("rita", "privacy")
    desk.site.review("raul", "model-risk")
    (one,) = browser.get("/candidates.json").json()["rows"]
    assert one["missing"] == [] and "may be released" in browser.get("/candidates").text
    grant = desk.site.order(Grant, "anna", principal="rita", role="release-owner:legal")
    desk.site.two(RoleGranted(policy=desk.site.in_force), grant)
    (one,) = desk.signed_in("rita").get("/candidates.json").json()["rows"]
    assert [reason["code"] for reason in one["missing"]] == ["activator-approved"]
    (waiting,) = status(desk.context, "anna").releases
    assert waiting.owners == ("otto",)
    desk.site.activate()
    assert browser.get("/candidates.json").json()["rows"][0]["served_models"] == ["labels"]
    assert browser.get("/candidates.json?unit=sales").json()["rows"] == []


@pytest.mark.parametrize("desk", ["sealed"], indirect=True)
def test_a_page_of_candidates_has_all_units_of_its_adapters(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.web.console.core.page.PAGE_ROWS", 1)
    for unit in ("legal", "sales"):
        desk.site.request_release(unit=unit)
    value = desk.signed_in("audrey").get("/candidates.json").json()
    assert ([one["unit"] for one in value["rows"]], value["next"]) == (["legal", "sales"], None)


@pytest.mark.parametrize("desk", ["sealed"], indirect=True)
def test_a_release_says_its_conditions_and_how_far_they_are_used_up(desk: Console) -> None:
    site = desk.site
    limits = Conditions(not_before=None, not_after=None, served_models=("labels",), answers_a_day=1_000)
    site.review("rita", "privacy", decision="approve-with-conditions", conditions=limits)
    site.review("raul", "model-risk")
    site.activate()
    browser = desk.signed_in("legal")
    value = browser.get("/releases/legal/labels.json").json()
    assert (value["row"]["used_today"], value["row"]["most_a_day"]) == (0, 1_000)
    assert value["row"]["approved_by"] == ["rita", "raul"] and value["row"]["by"] == "otto"
    assert [one["terms"]["answers_a_day"] for one in value["conditions"]] == [1_000]
    assert value["row"]["until"] == min(one["valid_until"] for one in value["approvals"])
    text = browser.get("/releases/legal/labels").text
    assert "at most 1,000 responses a day" in text and "of 1,000" in text


@pytest.mark.parametrize("desk", ["released"], indirect=True)
def test_a_release_that_answers_no_more_says_why_and_waits_for_its_owner_and_its_unit(desk: Console) -> None:
    desk.site.revoke("raul")
    for name in ("otto", "legal"):
        browser = desk.signed_in(name)
        value = browser.get("/releases/legal/labels.json").json()
        assert not value["row"]["serves"]
        assert "approvals-missing" in [reason["code"] for reason in value["blockers"]]
        text = browser.get("/releases/legal/labels").text
        assert "the reasons are below" in text and "loaded at the next request" not in text
        (item,) = browser.get("/home.json").json()["tasks"]
        assert item["urgent"] and item["path"] == "/releases/legal/labels"
    assert desk.signed_in("audrey").get("/home.json").json()["tasks"] == []


@pytest.mark.parametrize("desk", ["released"], indirect=True)
def test_a_release_owner_reads_on_the_page_how_to_export_it(desk: Console) -> None:
    command = "appliance release export legal labels --folder FOLDER"
    assert command in desk.signed_in("otto").get("/releases/legal/labels").text
    assert command not in desk.signed_in("legal").get("/releases/legal/labels").text
    emergency = "/sign/break-glass?given=unit%3Alegal&given=served_model%3Alabels"
    assert desk.signed_in("otto").filled(emergency)["served_model"] == "labels"
    assert html.escape(emergency) in desk.signed_in("otto").get("/releases/legal/labels").text
    assert "break-glass" not in desk.signed_in("rita").get("/releases/legal/labels").text
    assert "loaded at the next request" in desk.signed_in("otto").get("/releases/legal/labels").text


@pytest.mark.parametrize("desk", ["released"], indirect=True)
def test_a_rollback_begins_with_the_version_before_as_it_was_active(desk: Console) -> None:
    """clauses@1 was active without the dataset's instruction; clauses@2 is active with it."""
    site = desk.site
    (release,) = site.state.releases.values()
    before = release.current.adds_instruction
    site.seal(site.train({"epochs": 2}), 2)
    browser = desk.signed_in("otto")
    assert "Roll back" not in browser.get("/releases/legal/labels").text
    site.review("rita", "privacy", 2)
    site.review("raul", "model-risk", 2)
    site.activate(version=2, adds_instruction=not before)
    page = html.unescape(browser.get("/releases/legal/labels").text)
    assert "Roll back to clauses@1" in page and page.count("Roll back to it") == 1
    link = "/sign/rollback?given=unit%3Alegal&given=served_model%3Alabels"
    assert f"{link}&given=adapter%3Aclauses%401" in page
    filled = browser.filled(link)
    assert (filled["adapter"], filled["adds_instruction"] == "yes") == ("clauses@1", before)
    form = browser.get(link).text
    assert ">clauses@1</option>" in form and ">clauses@2</option>" not in form


@pytest.mark.parametrize("desk", ["sealed"], indirect=True)
def test_the_list_of_candidates_says_what_serves_what_was_refused_and_which_conditions_bind(desk: Console) -> None:
    site, browser = desk.site, desk.signed_in("otto")
    limits = Conditions(not_before=None, not_after=None, served_models=(), answers_a_day=3)
    site.review("rita", "privacy", decision="approve-with-conditions", conditions=limits)
    site.review("raul", "model-risk")
    page = browser.get("/candidates").text
    assert "may be released" in page and "Its use is limited: at most 3 responses a day" in page
    site.activate()
    assert "serves now" in browser.get("/candidates").text
    site.review("raul", "model-risk", decision="reject")
    assert '<span class="chip is-bad">rejected</span>' in browser.get("/candidates").text


@pytest.mark.parametrize("desk", ["released"], indirect=True)
def test_an_approval_that_ends_before_it_has_to_be_renewed_says_only_when_it_ends(desk: Console) -> None:
    browser = desk.signed_in("otto")
    assert all(one["again_by"] is None for one in browser.get("/releases/legal/labels.json").json()["approvals"])
    assert "to be renewed by" not in browser.get("/releases/legal/labels").text
