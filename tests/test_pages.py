"""The pages' form: lines that fit an editor, cells that can be scanned, links and tests that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md")
    for path in ROOT.glob(pattern)
)
ROLES = ("administrators", "auditors", "operators", "release-owners", "reviewers", "units", "validators")
AUDIENCES = (*(f"docs/guides/{role}.md" for role in ROLES), "docs/operations/service.md")
COLUMNS = 100
CELL = 200
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\n]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without code blocks and tables."""
    code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code and not line.lstrip().startswith("|"):
            yield number, line


def long_lines(text: str) -> list[int]:
    """Return the numbers of lines of prose that are too long, without links' targets, which cannot be broken."""
    return [number for number, line in prose(text) if len(LINK.sub(_without_target, line)) > COLUMNS]


def _without_target(link: re.Match[str]) -> str:
    return link.group(0).replace(link["target"], "")


def long_cells(text: str) -> list[str]:
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [cell for row in rows for cell in row.strip("|").split("|") if len(cell.strip()) > CELL]


def headings(text: str) -> set[str]:
    """Headings as GitHub names them in links."""
    titles = [line.lstrip("#").strip().lower() for _, line in prose(text) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in (link["target"] for _, line in prose(_joined(page)) for link in LINK.finditer(_without_code(line))):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (heading and heading not in headings(file.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


def _without_code(line: str) -> str:
    return re.sub(r"`[^`]*`", "", line)


def _joined(page: Path) -> str:
    """Return the page with wrapped texts of links joined."""
    return re.sub(r"(\[[^\]\n]*)\n\s*([^\]\n]*\]\()", r"\1 \2", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_prose_has_at_most_a_hundred_columns(page: Path) -> None:
    assert long_lines(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", *AUDIENCES])
def test_a_cell_is_a_phrase(name: str) -> None:
    assert long_cells((ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_test_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/.-]+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("role", ROLES)
def test_the_first_screen_leads_each_audience_to_its_page(role: str) -> None:
    screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    assert f"(docs/guides/{role}.md)" in "\n".join(screen)


def test_every_page_has_a_place_in_the_manual() -> None:
    """The decisions are listed on a page of their own."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = {name_of(page).removeprefix("docs/") for page in PAGES if name_of(page).startswith("docs/")}
    missing = {page for page in pages if not page.startswith("adr/0")} - set(re.findall(r"[\w/-]+\.md", nav))
    assert missing == set(), "expected each of them in the nav of mkdocs.yml"


# The checks themselves.


def test_only_prose_is_measured() -> None:
    wide = "x " * 60
    text = f"{wide}\n| {wide} |\n```\n{wide}\n```\n[a]({'x' * 120})\n- {wide}\n"
    assert long_lines(text) == [1, 7]


def test_a_long_cell_is_found() -> None:
    assert long_cells(f"| a | {'b' * 201} |\n| {'c' * 200} |\n") == [f" {'b' * 201} "]


def test_a_link_to_nothing_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `title`, here\n[a](#a-title-here) [b](#b) [c\nd](no.md) [e](page.md) https://x.example\n")
    assert broken_links(page) == ["#b", "no.md"]


def test_every_audience_s_page_has_a_picture_of_the_console_and_none_is_left_over() -> None:
    """scripts/screenshots --docs writes them."""
    shown = {
        name: re.findall(r"\]\((?:docs/|../)pictures/([a-z-]+)\.png\)", (ROOT / name).read_text(encoding="utf-8"))
        for name in ("README.md", *AUDIENCES)
    }
    assert all(shown.values()) and len(shown["README.md"]) == 3
    there = {path.stem for path in (ROOT / "docs" / "pictures").iterdir()}
    assert {picture for pictures in shown.values() for picture in pictures} == there
    listed = (ROOT / "scripts" / "screenshots.py").read_text(encoding="utf-8").split("DOCS = (")[1].split("\n)")[0]
    assert set(re.findall(r'"[a-z]+", "([a-z-]+)", "/', listed)) == there
