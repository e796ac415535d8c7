"""Docstrings begin with a verb or a plain noun, so that a reader who sees one alone understands it."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "appliance"

BANNED = frozenset(
    [
        "What",
        "Whether",
        "Where",
        "How",
        "Who",
        "Whose",
        "Whom",
        "Why",
        "Which",
        "When",
        "Of",
        "By",
        "That",
        "Those",
        "Nothing",
    ]
)
"""First words of a noun clause or of a continued sentence."""


def docstrings(tree: ast.AST) -> Iterator[tuple[str, int, str]]:
    """Yield (name, line, text) of each docstring, those behind attributes and constants included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield getattr(node, "name", "module"), node.body[0].lineno, text
        body = getattr(node, "body", None)
        for before, after in itertools.pairwise(body) if isinstance(body, list) else ():
            if (
                isinstance(before, ast.Assign | ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                target = before.targets[0] if isinstance(before, ast.Assign) else before.target
                yield ast.unparse(target), after.lineno, after.value.value


def first_word(text: str) -> str:
    found = re.match(r"\w+|\.\.\.", text.strip('"` \n'))
    return found.group() if found else ""


def find_clauses(source: str) -> list[str]:
    """List the docstrings that begin as a clause."""
    return [
        f"line {line}, {name}: {text.strip().splitlines()[0][:80]}"
        for name, line, text in docstrings(ast.parse(source))
        if first_word(text) in BANNED or text.strip().startswith("...")
    ]


@pytest.mark.parametrize("folder", sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()))
def test_no_docstring_of_a_package_begins_as_a_clause(folder: str) -> None:
    paths = sorted((PACKAGE / folder).rglob("*.py"))
    assert paths
    assert [f"{path.relative_to(ROOT)}, {text}" for path in paths for text in find_clauses(path.read_text())] == []


def test_no_docstring_of_a_program_begins_as_a_clause() -> None:
    paths = sorted(PACKAGE.glob("*.py"))
    assert [f"{path.relative_to(ROOT)}, {text}" for path in paths for text in find_clauses(path.read_text())] == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"""What it does."""', 1),
        ('def f():\n    """Whether it holds."""', 1),
        ('class A:\n    x: int = 1\n    """Of the run, the steps."""', 1),
        ('X = 1\n"""...and the rest."""', 1),
        ('def f():\n    """Return the steps of a run."""', 0),
        ('X = 1\n"""Seconds between two heartbeats."""', 0),
    ],
)
def test_a_clause_is_found(source: str, count: int) -> None:
    assert len(find_clauses(source)) == count


RETIRED = {
    "endorse": "countersign",
    "endorsement": "countersignature",
    "enroll": "enrol",
    "could-load": "effective-access",
    "roll-back": "rollback",
    "site policies": "Cedar policies",
    "site policy": "Cedar policy",
    "rulebook": "action registry",
    "walls": "sandbox",
    "wall-open": "sandbox-escape",
    "wall-missing": "sandbox-unavailable",
    "decoys": "escape targets",
    "leash": "parent-death pipe",
    "used-up": "quota-exceeded",
    "too-many": "rate-limited",
    "--on here": "--on local",
    "checkpoint_every": "save_steps",
    "validate_every": "eval_steps",
    "rate_ratio": "loraplus_lr_ratio",
    "gate set": "gates file",
    "gate sets": "gates files",
    "judged_before": "evaluated_before",
    "luck": "correction for earlier runs",
    "probe-differs": "fingerprint-differs",
    "probe.json": "logit_fingerprint.json",
    "fold.snapshot": "state.snapshot",
    "Who could load what": "Effective access",
    "could_authorise": "authorisers",
    "set in force": "valid set",
    "policy in force": "valid policy",
    "stranger": "outsider or attacker",
    "strangers": "outsiders or attackers",
}
"""Words that are no longer used, with the term that replaced each."""
PAGES = [
    *sorted(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "adr"),
    *sorted(path for path in (ROOT / "policies").rglob("*.md")),
]


def find_retired(text: str) -> list[str]:
    """List the retired words in a text, each with the term to use."""
    return [
        f"{word}: use {term}"
        for word, term in RETIRED.items()
        if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_has_a_retired_word(path: Path) -> None:
    assert find_retired(path.read_text(encoding="utf-8")) == []


@pytest.mark.thorough
def test_no_text_of_the_code_has_a_retired_word() -> None:
    """Read messages, help texts, names of commands and docstrings: every string of the package and its templates."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += [f"{path.relative_to(ROOT)}, line {node.lineno}: {one}" for one in find_retired(node.value)]
    for path in sorted((*PACKAGE.rglob("*.html"), *PACKAGE.rglob("*.json"))):
        if "shipped" not in path.parts:
            found += [f"{path.relative_to(ROOT)}: {one}" for one in find_retired(path.read_text(encoding="utf-8"))]
    assert found == []


def test_a_retired_word_is_found_as_a_word_alone() -> None:
    assert find_retired("Another administrator has to endorse it.") == ["endorse: use countersign"]
    assert find_retired("Firewalls, and enrolled people.") == []


def test_the_glossary_has_at_most_sixty_terms_of_at_most_two_sentences() -> None:
    rows = [
        line.split("|")[1:3]
        for line in (ROOT / "docs" / "concepts" / "glossary.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith(("| term", "| ---"))
    ]
    assert 40 <= len(rows) <= 60
    assert [term for term, meaning in rows if len(meaning) > 200 or meaning.count(". ") > 1] == []


def find_double_names(sources: dict[str, str]) -> list[str]:
    """List the class names that two modules define, unless one class derives from the other."""
    found: dict[str, list[tuple[str, bool]]] = {}
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                is_derived = node.name in (ast.unparse(base).split(".")[-1] for base in node.bases)
                found.setdefault(node.name, []).append((module, is_derived))
    return [
        f"{name}: {', '.join(module for module, _ in places)}"
        for name, places in sorted(found.items())
        if sum(not is_derived for _, is_derived in places) > 1
    ]


@pytest.mark.thorough
def test_no_two_classes_of_one_name_mean_different_things() -> None:
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    assert find_double_names(sources) == []


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ("class Row: ...", ["Row: a, b"]),
        ("class Other:\n    class Row: ...", ["Row: a, b"]),
        ("class Row(Value): ...", ["Row: a, b"]),
        ("class Row(records.Row): ...", []),
        ("class TableRow: ...", []),
    ],
)
def test_a_double_name_is_found(other: str, names: list[str]) -> None:
    assert find_double_names({"a": "class Row: ...", "b": other}) == names
