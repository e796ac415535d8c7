"""The context has all of its objects when it is built; afterwards only its state changes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
STATE = {
    "awaits_restoration",
    "stalled",
    "runs_here",
    "backups",
    "certificates",
    "database_measures",
    "logged_alarms",
}
"""Fields that say what the process does now, or that hold its last measurements."""


@pytest.mark.thorough
def test_nothing_is_assigned_to_a_context_that_was_built() -> None:
    found = {
        (path.name, target.attr)
        for path in (ROOT / "appliance").glob("**/*.py")
        if "core.context import" in (text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
        for one in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for target in (one.elts if isinstance(one, ast.Tuple) else [one])
        if isinstance(target, ast.Attribute) and ast.unparse(target.value).split(".")[-1].lstrip("_") == "context"
    }
    assert {name for _, name in found} == STATE, found
