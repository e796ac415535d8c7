"""A refusal says which kind of rule refused and what would allow the action: for every reason and every code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import appliance
from appliance.cli import main
from appliance.errors import Denied, Unavailable
from appliance.web.console.core.rules import _ROWS, find_rule
from appliance.web.console.core.why import explain, explain_reasons
from scripts.references.error_codes import BRANCHES, CODES

ROOT = Path(appliance.__file__).parent
OF_REASONS = re.compile(r"Reasons|str \| None|list\[str\]|tuple\[str, \.\.\.\]")
"""What functions return that give reasons; others of this kind say nothing that begins as a reason does."""
FOLDERS = ("domain", "access")
NO_REASONS = (
    *(
        "domain/audit/",
        "domain/core/names.py",
        "domain/core/words.py",
        "domain/evaluation/gates.py",
        "domain/planning/",
    ),
    *("domain/data/tasks.py", "domain/evaluation/verdict.py", "domain/evaluation/statistics/"),
)
"""Files whose texts refuse bytes or words that a person gave, before any rule is asked."""
BEGINS = {
    "set_stands": "validation set exam@1",
    "unfit_sets": "validation set exam@1",
    "blocked": "finding 3 (severe bias, privacy)",
    "_tiered": "exposure",
    "stale": "review 26",
    "_until": "printed name",
    "application_ended": "application of legal",
    "revocable": "dataset clauses@1",
}
"""What begins a reason that a function puts together."""


def _texts(function: ast.FunctionDef) -> Iterator[str]:
    """Every text of the function that is a whole one, with `x` for what it puts in."""
    parts = {id(part) for node in ast.walk(function) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(function):
        if isinstance(node, ast.JoinedStr):
            values = [str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values]
            text = "".join(values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        else:
            continue
        if text.startswith("\0: expected"):
            text = BEGINS[function.name] + text[1:]
        if re.match(r"[a-z][^:]*: (expected|forbids)", text):
            yield text.replace("\0", "x")


def reasons() -> Iterator[tuple[str, str]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if place.startswith(NO_REASONS):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and OF_REASONS.search(
                    ast.unparse(node.returns or ast.Constant(0))
                ):
                    yield from ((f"{place}:{node.name}", text) for text in _texts(node))


def test_every_reason_that_a_rule_gives_says_what_would_allow_it() -> None:
    found = list(reasons())
    assert len(found) > 150, "the test looks at the wrong folder"
    missing = [f"{place}: {text}" for place, text in found if find_rule(text) is None]
    assert missing == [], "add a row to appliance/web/console/core/rules.py"


def test_every_row_is_reached_by_the_reason_that_it_is_meant_for() -> None:
    """A row that an earlier one hides explains nothing."""
    texts = [text for _, text in reasons()]
    hidden = [
        begins
        for place, (begins, *_) in enumerate(_ROWS)
        if any(re.match(begins, text) for text in texts)
        and all(any(re.match(row[0], text) for row in _ROWS[:place]) for text in texts if re.match(begins, text))
    ]
    assert hidden == []


@pytest.mark.parametrize(
    ("reason", "kind", "words"),
    [
        ("verdict of a@1: expected one that passed, got one that did not: gate exact", "parameter", "exception"),
        ("verdict of a@1: expected one by gates that policy requires (x), got none", "parameter", "--gates"),
        ("quorum: expected 2 standing approvals of a@1 for legal, got 1", "parameter", "More reviewers"),
        ("review 26: expected an approval, got a rejection by rita", "state", "withdraw"),
        ("condition of 26: expected no answer before 2026-01-01, got one", "condition", "Meet the condition"),
        ("site policy no-night: forbids train by olga", "policy of the site", "policy show"),
        (
            "separation of duties: expected a reviewer who did not order the run, got olga",
            "invariant",
            "another person",
        ),
    ],
)
def test_a_reason_is_told_by_its_kind(reason: str, kind: str, words: str) -> None:
    (told,) = explain_reasons((reason,))
    assert told.rule.startswith(kind) and words in told.allows


def test_a_reason_of_no_rule_is_explained_by_the_code_beside_it() -> None:
    (told,) = explain_reasons(("refused before it was read, and counted",), "rate-limit")
    assert "used up" in told.rule and "Retry-After" in told.allows


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_refusal_of_every_code_says_what_to_do(code: str) -> None:
    branch = (*CODES[code].branches, Unavailable)[0]
    told = explain(branch("something: expected one, got another", code=code))
    assert told.allows and told.meaning and told.allows.endswith(".") and "`" not in told.allows


def test_every_class_of_error_is_explained_by_its_own_code() -> None:
    assert {branch.code for branch in BRANCHES.values()} <= CODES.keys()
    refused = explain(Denied("order review by rita", reasons=("quorum: expected 2, got 1",)))
    assert refused.allows == "" and refused.reasons[0].allows, "the reasons say it"


def test_every_command_that_is_advised_is_one() -> None:
    told = [allows for *_, allows in _ROWS] + [explain(Denied("x", code=code)).allows for code in CODES]
    commands = [found for text in told for found in re.findall(r"appliance((?: [a-z][a-z-]+)+)", text)]
    assert len(commands) > 15
    for words in commands:
        assert _command(words.split()) is not None, words


def _command(words: list[str]) -> click.Command | None:
    """The command that these words begin with; what follows it is prose."""
    at: click.Command = main.cli
    for word in words:
        found = at.get_command(click.Context(at), word) if isinstance(at, click.Group) else at
        if found is None:
            return None
        at = found
    return None if isinstance(at, click.Group) else at
