"""Refusal codes: each has a sentence, a kind and a remedy, and is recorded without rejected values."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import click
import pytest

import appliance
from appliance.cli import main
from appliance.domain.core.entry import RecordedRefusal, parse_refusals, read_refusal, record_refusals
from appliance.domain.governance.countersignature import TOO_MANY_WAITING
from appliance.domain.releases.reviews import DELEGATION_MISSING
from appliance.domain.releases.verdicts import FINDING_BLOCKS
from appliance.errors import KINDS, BadInput, RefusalCode, Rejected
from scripts.references.pages import load_refusal_codes

CODES = {code.name: code for code in load_refusal_codes()}
TESTS = Path(__file__).resolve().parents[2]
MACHINE_STATE = {code.name for code in CODES.values() if code.kind == "machine"}
"""Codes of states of the machine, which tests with real processes reach."""


def filled(code: RefusalCode) -> tuple[str, str]:
    """Return the sentence and the remedy with a word for each value."""
    refusal = code("kind:name", **dict.fromkeys(code.fields, "word"))
    return refusal.sentence, refusal.remedy


@pytest.mark.parametrize("name", sorted(CODES))
def test_a_code_has_a_sentence_a_kind_and_a_remedy(name: str) -> None:
    sentence, remedy = filled(CODES[name])
    assert CODES[name].kind in KINDS and re.fullmatch(r"[a-z][a-z0-9-]{0,63}", name)
    for text in (sentence, remedy):
        assert text.endswith(".") and "{" not in text, text
        assert not re.search(r"\bexpected\b|\bgot\b", text), "that form is for malformed values"


@pytest.mark.thorough
def test_a_name_is_declared_once() -> None:
    declared = [name for path in Path(appliance.__file__).parent.rglob("*.py") for name in _declared(path)]
    assert sorted(declared) == sorted(CODES)
    with pytest.raises(TypeError, match="a new name"):
        RefusalCode("finding-blocks", "state", "Twice.", "Never.")


def _declared(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "RefusalCode":
            yield ast.literal_eval(node.args[0])


def test_values_are_those_of_the_sentence() -> None:
    with pytest.raises(TypeError, match="expected the values"):
        FINDING_BLOCKS("finding:35", severity="high")


def test_a_refusal_says_what_is_wrong_and_then_what_to_do() -> None:
    refusal = FINDING_BLOCKS("finding:35", severity="high", finding_kind="issue", function="privacy", owner="olga")
    assert str(refusal) == (
        "Finding 35 (high issue, privacy) blocks this release. Its owner olga must resolve it, and a reviewer of "
        "privacy must close it."
    )


def test_an_entry_has_the_code_and_known_values_and_of_a_rejected_one_its_length() -> None:
    refusal = DELEGATION_MISSING("principal:dana", delegator=Rejected("somebody"), function=Rejected("privacy"))
    (recorded,) = record_refusals([refusal])
    assert recorded.model_dump() == {
        "code": "delegation-missing",
        "subject": "principal:dana",
        "values": {"delegator": "(text of 8 characters)", "function": "(text of 7 characters)"},
    }
    assert "somebody" in str(refusal) and "somebody" not in str(read_refusal(recorded))


def test_a_long_value_is_recorded_by_its_length_and_many_refusals_in_part() -> None:
    refusal = TOO_MANY_WAITING("principal:anna", waiting=100, limit="x" * 300)
    recorded = record_refusals([refusal] * 40)
    assert len(recorded) == 32
    assert recorded[0].values == {"limit": "(text of 300 characters)", "waiting": 100}


def test_the_api_sends_all_and_the_client_reads_it_again() -> None:
    refusal = TOO_MANY_WAITING("principal:anna", waiting=100, limit=100)
    assert parse_refusals([asdict(refusal)]) == (refusal,)
    with pytest.raises(BadInput, match="refusals"):
        parse_refusals([{"code": "x"}])


def test_a_code_of_a_later_build_is_shown_by_its_name() -> None:
    refusal = read_refusal(RecordedRefusal(code="of-later", subject="run:r-000001", values={"step": 3}))
    assert refusal.sentence == "of-later (run:r-000001)."


@cache
def _texts_of_tests() -> str:
    """Return every text of the tests."""
    files = [path for path in TESTS.rglob("*.py") if path != Path(__file__)]
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in files)
    found = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return "\n".join(re.sub(r"\\(.)", r"\1", value) for value in found if isinstance(value, str))


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(CODES.keys() - MACHINE_STATE))
def test_a_test_reaches_the_code(name: str) -> None:
    """Tests name it, or words of its sentence between two values."""
    parts = re.split(r"\{[^}]*\}", CODES[name].sentence)
    wanted = [part.strip(" .,()")[:24] for part in parts if len(part.strip(" .,()")) >= 10]
    texts = _texts_of_tests()
    assert name in texts or any(part in texts for part in wanted), CODES[name].sentence


def test_every_command_that_is_advised_exists() -> None:
    commands = [
        found for code in CODES.values() for found in re.findall(r"appliance((?: [a-z][a-z-]+)+)", filled(code)[1])
    ]
    assert len(commands) > 15
    for words in commands:
        assert _find_command(words.split()) is not None, words


def _find_command(words: list[str]) -> click.Command | None:
    """Return the command that these words begin with; what follows it is prose."""
    at: click.Command = main.cli
    for word in words:
        found = at.get_command(click.Context(at), word) if isinstance(at, click.Group) else at
        if found is None:
            return None
        at = found
    return None if isinstance(at, click.Group) else at
