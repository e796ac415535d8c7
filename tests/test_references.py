"""The pages of docs/reference are what the code says, and no error code is left out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.cli import main
from appliance.cli.runs import gates
from appliance.domain.recipe.recipe import Recipe
from appliance.domain.rulebook.registry import VERBS
from appliance.web.console.core import why
from scripts.references.error_codes import BRANCHES, CODES, GENERAL, SECTIONS, find_codes
from scripts.references.pages import (
    EXIT_CODES,
    PAGES,
    RELATIONS,
    ROLES,
    render_console_codes,
    render_recipe,
    render_verbs,
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


def test_every_error_code_of_the_code_is_described_and_no_other() -> None:
    found = {one.code: one.place for one in find_codes()}
    assert {code: place for code, place in found.items() if code not in CODES} == {}
    assert CODES.keys() - found.keys() == set()
    assert sum(map(len, SECTIONS.values())) == len(CODES), "a code stands in one section"


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
        raise TooMany("no", code=code)
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
        gates.NOT_JUDGED,
    }
    assert {code for code, _, _ in EXIT_CODES} == codes


def test_every_signer_is_a_role_or_a_relation() -> None:
    assert {signer for verb in VERBS.values() for signer in verb.signers} <= ROLES.keys() | RELATIONS.keys()


def test_every_verb_and_every_recipe_key_has_a_row() -> None:
    verbs, keys = render_verbs(), render_recipe()
    assert all(f"\n| `{name}` |" in verbs for name in VERBS)
    assert all(f"\n| `{name}` |" in keys for name in Recipe.model_fields)
