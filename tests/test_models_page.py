"""docs/guides/models.md names every architecture, with the tiny models that hold it against transformers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.ml.layers.architecture import ACTIVATIONS, ROPE_TYPES, TABLE
from scripts.kit.tiny_model import KINDS, LIBRARY_KINDS

PAGE = (Path(__file__).parents[1] / "docs" / "guides" / "models.md").read_text(encoding="utf-8")


def _rows(heading: str) -> dict[str, list[str]]:
    """Of the table under a heading: the tiny models of the last column, by the architecture of the first."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", section, re.MULTILINE)
    return {name: re.findall(r"`([^`]+)`", kinds) for name, kinds in found}


@pytest.mark.parametrize(
    ("heading", "kinds"), [("Architectures", KINDS), ("Through the library's modules", LIBRARY_KINDS)]
)
def test_the_page_names_the_tiny_models_of_each_architecture(
    heading: str, kinds: dict[str, tuple[str, dict[str, object]]]
) -> None:
    expected: dict[str, list[str]] = {}
    for kind, (name, _) in kinds.items():
        expected.setdefault(f"{name}ForCausalLM", []).append(kind)
    assert _rows(heading) == expected


def test_the_page_names_the_whole_table() -> None:
    assert list(_rows("Architectures")) == list(TABLE)
    for word in (*ROPE_TYPES, *ACTIVATIONS):
        assert f"`{word}`" in PAGE
