"""The pages of docs/reference are what the code says, and no error code is left out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.cli import main
from appliance.cli.runs import gates
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.policy import Parameters, Tier
from appliance.domain.recipe.recipe import Recipe
from appliance.web.console.core import why
from scripts.references import policy
from scripts.references.commands import find_leaves, render_commands
from scripts.references.error_codes import BRANCHES, CODES, GENERAL, SECTIONS, find_codes
from scripts.references.pages import (
    EXIT_CODES,
    PAGES,
    RELATIONS,
    ROLES,
    render_actions,
    render_console_codes,
    render_recipe,
)

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_says(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name](), "expected what scripts/reference writes"


def test_the_console_explains_every_error_code_with_the_words_of_the_table() -> None:
    file = Path(why.__file__).with_name("codes.json")
    assert file.read_text(encoding="utf-8") == render_console_codes(), "expected what scripts/reference writes"
    assert why.CODES.keys() == CODES.keys()


def test_no_page_is_written_by_hand() -> None:
    assert {path.name for path in FOLDER.iterdir()} == PAGES.keys()


@pytest.mark.thorough
def test_every_error_code_of_the_code_is_described_and_no_other() -> None:
    found = {one.code: one.place for one in find_codes()}
    assert {code: place for code, place in found.items() if code not in CODES} == {}
    assert CODES.keys() - found.keys() == set()
    assert sum(map(len, SECTIONS.values())) == len(CODES), "a code stands in one section"


@pytest.mark.thorough
def test_an_error_code_is_described_with_every_class_that_carries_it() -> None:
    for one in find_codes():
        if one.branch is not None:
            assert BRANCHES[one.branch] in CODES[one.code].branches, f"{one.place}: {one.code} of {one.branch}"


def test_the_code_of_each_class_is_in_the_general_section() -> None:
    assert {code.branches[0]: name for name, code in GENERAL.items()} == {
        branch: branch.code for branch in BRANCHES.values()
    }


SAMPLE = """
LATER = "from-a-constant"
def f(x, error):
    raise Denied("no", code="plain")
    raise Conflict("no", code="one" if x else "other")
    raise Conflict("no", code=LATER)
    raise Conflict("no", code=error.code)
    rows = [("a", "of-a-row", 1)]
    rows += [("b", "of-another", 2)]
    for _, code, _ in rows:
        raise RateLimited("no", code=code)
    return {"code": "in-a-frame"}, _fail(2, "of-main", "message")
class Own(Denied):
    code = "own"
"""


def test_a_code_is_found_however_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(SAMPLE)
    (tmp_path / "user.py").write_text('raise Denied("no", code=LATER)\n')
    found = find_codes(tmp_path)
    assert {one.code for one in found} == {
        "plain", "one", "other", "from-a-constant", "of-a-row", "of-another", "in-a-frame", "of-main", "own",
    }  # fmt: skip
    assert ("from-a-constant", "user.py:1") in {(one.code, one.place) for one in found}
    assert {one.branch for one in found if one.code == "one"} == {"Conflict"}


def test_every_exit_code_is_described() -> None:
    codes = {branch.exit_code for branch in BRANCHES.values()} | {
        0,
        main.INTERRUPTED,
        main.BROKEN_PIPE,
        gates.FAILED,
        gates.NOT_EVALUATED,
    }
    assert {code for code, _, _ in EXIT_CODES} == codes


def test_every_signer_is_a_role_or_a_relation() -> None:
    assert {signer for action in ACTIONS.values() for signer in action.signers} <= ROLES.keys() | RELATIONS.keys()


def test_every_parameter_of_a_policy_set_is_in_one_group_and_says_its_effect() -> None:
    names = [name for group in policy.GROUPS.values() for name in group]
    assert sorted(names) == sorted(Parameters.model_fields)
    for model in (Parameters, Tier):
        for name, field in model.model_fields.items():
            assert (field.description or "").endswith("."), name
    shipped = Parameters.model_validate_json(policy.SHIPPED.read_text(encoding="utf-8"))
    differing = [name for name, value in Parameters() if getattr(shipped, name) != value]
    assert differing == ["failed_verdict"], "the page says in words which parameters differ"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("a_s", 86_400, "86,400 (1 day)"), ("a_s", 90, "90 (90 seconds)"), ("a_s", 7_200, "7,200 (2 hours)"),
        ("a_s", 0, "0"), ("a", True, "`true`"), ("a", [], "none"), ("tiers", [{"name": "low"}], "`low`"),
    ],
)  # fmt: skip
def test_a_parameter_is_shown_as_it_is_typed(name: str, value: object, shown: str) -> None:
    assert policy.show_value(name, value) == shown


def test_every_command_has_a_section() -> None:
    page = render_commands()
    paths = [context.command_path for name in main.COMMANDS for _, context in find_leaves(name)]
    assert len(paths) > 100 and len(set(paths)) == len(paths)
    assert all(f"\n### {path}\n" in page for path in paths)


def test_every_action_and_every_recipe_key_has_a_row() -> None:
    actions, keys = render_actions(), render_recipe()
    assert all(f"\n| `{name}` |" in actions for name in ACTIONS)
    assert all(f"\n| `{name}` |" in keys for name in Recipe.model_fields)
