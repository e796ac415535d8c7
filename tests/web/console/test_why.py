"""Explanations of errors: for every code, what it means and what to do."""

from __future__ import annotations

import re

import pytest

from appliance.domain.releases.approval import TOO_FEW_APPROVALS
from appliance.errors import Denied, Unavailable
from appliance.web.console.core.why import _PAGES_OF_COMMANDS, explain, find_cause, find_pages
from appliance.web.console.pages import PAGES
from scripts.references.error_codes import BRANCHES, CODES
from tests.domain.core.test_refusals import _find_command


@pytest.mark.parametrize("code", sorted(CODES))
def test_an_error_of_every_code_says_what_to_do(code: str) -> None:
    branch = (*CODES[code].branches, Unavailable)[0]
    told = explain(branch("something: expected one, got another", code=code))
    assert told.allows and told.meaning and told.allows.endswith(".") and "`" not in told.allows


def test_every_class_of_error_is_explained_by_its_own_code() -> None:
    assert {branch.code for branch in BRANCHES.values()} <= CODES.keys()


def test_refusals_have_their_own_remedies() -> None:
    refusal = TOO_FEW_APPROVALS("adapter:a@1", needed=2, unit="legal", valid=1)
    refused = explain(Denied("order activate by otto", refusals=(refusal,)))
    assert refused.allows == "" and refused.refusals == (refusal,)
    assert refused.message == "order activate by otto"


def test_a_failure_without_refusals_is_explained_by_its_code() -> None:
    told = find_cause("refused before it was read, and counted", "rate-limit")
    assert "used up" in told.meaning and "Retry-After" in told.action


def test_every_command_that_is_advised_is_one() -> None:
    told = [explain(Denied("x", code=code)).allows for code in CODES]
    for text in told:
        for words in re.findall(r"appliance((?: [a-z][a-z-]+)+)", text):
            assert _find_command(words.split()) is not None, words


def test_a_remedy_that_names_a_command_leads_to_the_page_that_does_it() -> None:
    titles = {page.path: page.title for page in PAGES}
    for name, (title, path) in _PAGES_OF_COMMANDS.items():
        assert titles[path] == title and _find_command(name.split()) is not None, name
    assert find_pages("Choose one of: appliance adapter list.") == [("Adapters", "/adapters")]
    assert find_pages("Have it signed again.") == []
