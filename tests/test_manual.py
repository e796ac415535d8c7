"""The manual: it builds without a broken link, asks nothing of other hosts, needs no inline code, and reads well."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, normpath
from urllib.parse import unquote, urlsplit

import pytest
from markdown import Markdown
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from appliance.addresses import PREFIX, address_of, address_of_error, address_of_refusal
from appliance.build import build_version
from appliance.cli.main import COMMANDS
from appliance.domain.actions.registry import ACTIONS
from appliance.web.console.core.render import SECTIONS
from appliance.web.console.signing.forms import fields_of
from scripts.manual import hooks, readability
from scripts.manual.markdown import slugify
from scripts.references.error_codes import CODES
from scripts.references.pages import load_refusal_codes

ROOT = Path(__file__).resolve().parents[1]
LOADS = {("link", "href"), ("script", "src"), ("img", "src"), ("form", "action"), ("iframe", "src"), ("object", "data")}
"""Tags and attributes by which a page makes a browser request something by itself."""


class Reading(HTMLParser):
    """A page's tags, anchors, and texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.anchors: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.tags.append((tag, found))
        self.anchors += [found["id"]] if "id" in found else []

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("script", "style") and data.strip():
            self.inline.append(data)

    def targets(self) -> Iterator[tuple[str, str, str]]:
        for tag, found in self.tags:
            for name in ("href", "src", "action", "data"):
                if name in found:
                    yield tag, name, found[name]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the manual as scripts/docs does, in a process without a network."""
    folder = tmp_path_factory.mktemp("manual") / "site"
    build = [sys.executable, "-c", WITHOUT_A_NETWORK, "--output", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


WITHOUT_A_NETWORK = """
import socket, sys
def refuse(*arguments, **named): raise OSError("the build asked for the network")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
from scripts.manual.build import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Reading]:
    return {
        path.relative_to(site).as_posix(): Reading(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")
    }


@pytest.mark.essential
def test_every_page_of_the_source_is_in_the_manual(pages: dict[str, Reading]) -> None:
    names = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    names += hooks.PAGES.values()
    expected = {name if name == "index.md" else re.sub(r"(/index)?\.md$", "/index.md", name) for name in names}
    assert {name.replace(".html", ".md") for name in pages} == expected


def test_no_page_has_inline_code_or_style(pages: dict[str, Reading]) -> None:
    """The content security policy of the console would refuse it."""
    for name, page in pages.items():
        assert page.inline == [], name
        attributes = {attribute for _, found in page.tags for attribute in found}
        assert [one for one in attributes if one == "style" or one.startswith("on")] == [], name
        assert all("src" in found for tag, found in page.tags if tag == "script"), name
        assert not any(tag == "style" or "javascript:" in value for tag, _, value in page.targets()), name


def test_no_page_makes_a_browser_ask_another_host(site: Path, pages: dict[str, Reading]) -> None:
    for name, page in pages.items():
        foreign = [target for tag, attribute, target in page.targets() if (tag, attribute) in LOADS]
        assert [target for target in foreign if urlsplit(target).scheme or target.startswith("//")] == [], name
        assert not any(found.get("http-equiv") or "ping" in found for _, found in page.tags), name
    for path in [*site.rglob("*.css"), *site.rglob("*.js")]:
        assert re.findall(r"(?:https?:)?//[a-z]+\.[a-z]+|@import|url\(", path.read_text(encoding="utf-8")) == [], path


def test_every_link_leads_to_a_page_and_an_anchor(site: Path, pages: dict[str, Reading]) -> None:
    broken = []
    for name, page in pages.items():
        for _, _, target in page.targets():
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            place = normpath(f"{dirname(name) or '.'}/{unquote(parts.path)}") if parts.path else name
            place = normpath(f"{place}/index.html") if (site / place).is_dir() else place
            if not (site / place).is_file() or (parts.fragment and unquote(parts.fragment) not in pages[place].anchors):
                broken.append(f"{name}: {target}")
    assert broken == []


def test_every_link_names_a_file_since_pages_are_also_opened_without_the_console(
    site: Path, pages: dict[str, Reading]
) -> None:
    """Errors and --help name a page as file://…/index.html, and a browser lists a folder instead of its page."""
    for name, page in pages.items():
        places = [urlsplit(target) for _, _, target in page.targets()]
        paths = [parts.path for parts in places if parts.path and not parts.scheme]
        assert [path for path in paths if not (site / dirname(name) / unquote(path)).is_file()] == [], name


def test_only_links_to_folders_are_changed() -> None:
    for link, expected in (
        ('<a href="../x/">', '<a href="../x/index.html">'),
        ('<a class="q" href="x/y/#z">', '<a class="q" href="x/y/index.html#z">'),
        ('<a href=".">', '<a href="./index.html">'),
        ('<a href="../..">', '<a href="../../index.html">'),
        ('<a href="#z">', '<a href="#z">'),
        ('<a href="../x.html">', '<a href="../x.html">'),
        ('<a href="https://example.org/x/">', '<a href="https://example.org/x/">'),
        ('<a href="/v1/x/">', '<a href="/v1/x/">'),
        ('&lt;a href="../x/"&gt;', '&lt;a href="../x/"&gt;'),
    ):
        assert hooks.on_post_page(link) == expected


def is_there(address: str, pages: dict[str, Reading]) -> bool:
    """Return True if the manual has the page and the anchor of an address at the console."""
    path, _, anchor = address.removeprefix(PREFIX).partition("#")
    page = pages.get(f"{path}index.html")
    return address.startswith(PREFIX) and page is not None and (not anchor or anchor in page.anchors)


def test_an_anchor_is_on_a_page_once(pages: dict[str, Reading]) -> None:
    for name, page in pages.items():
        assert [anchor for anchor, count in Counter(page.anchors).items() if count > 1] == [], name


def test_every_error_code_and_refusal_has_an_anchor(pages: dict[str, Reading]) -> None:
    addresses = [address_of_error(code) for code in CODES]
    addresses += [address_of_refusal(code.name) for code in load_refusal_codes()]
    assert [address for address in addresses if not is_there(address, pages)] == []
    assert not is_there(address_of_error("no-such-code"), pages)


def test_every_command_names_a_section(pages: dict[str, Reading]) -> None:
    places = {name: entry.manual for name, entry in COMMANDS.items()}
    assert [name for name, place in places.items() if not is_there(address_of(place), pages)] == []


def test_every_page_of_the_console_has_a_section(pages: dict[str, Reading]) -> None:
    folder = ROOT / "appliance" / "web" / "console"
    templates = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.html")
        if '{% extends "core/layout.html" %}' in path.read_text(encoding="utf-8")
    }
    assert set(SECTIONS) == templates
    assert [name for name, place in SECTIONS.items() if not is_there(address_of(place), pages)] == []


def test_it_names_no_version_of_this_build_or_of_a_tool(site: Path) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.html"))
    assert build_version() not in text and "mkdocs-" not in text and 'name="generator"' not in text


def test_it_has_only_files_that_the_service_sends(site: Path) -> None:
    kinds = {path.suffix for path in site.rglob("*") if path.is_file()}
    assert kinds == {".html", ".css", ".js", ".json", ".svg", ".png"}


def test_a_broken_link_or_anchor_ends_the_build(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# One\n\n[a](two.md) [b](#three) [c](index.md#one)\n")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    text = re.sub(r"(?s)\nhooks:.*?(?=\nmarkdown_extensions)", "", text).partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(text.replace("scripts/manual/theme", str(ROOT / "scripts/manual/theme")))
    with pytest.raises(Abort), caplog.at_level("WARNING", "mkdocs"):
        build(load_config(str(tmp_path / "mkdocs.yml")))
    assert "two.md" in caplog.text and "#three" in caplog.text and "#one" not in caplog.text


@pytest.mark.parametrize("folder", ["adr", "formats"])
def test_an_overview_lists_every_page_of_its_folder(folder: str) -> None:
    index = (ROOT / "docs" / folder / "index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs" / folder).glob("*.md")} - {"index.md"}
    assert set(re.findall(r"\]\(([^)/]+\.md)\)", index)) == pages


@pytest.mark.parametrize("title", ["What `x` is, and why", "A – b", "Keys that change", "12 Rows"])
def test_an_anchor_is_the_one_of_the_source_s_host(title: str) -> None:
    from tests.test_pages import headings

    assert headings(f"# {title}\n") == {slugify(title, "-")}


def render(text: str) -> str:
    return Markdown(extensions=["sane_lists", "scripts.manual.markdown"]).convert(text)


def test_code_inside_a_list_stays_code_of_its_item() -> None:
    html = render("1. Do:\n\n   ```sh\n   a < b\n     c\n   ```\n\n2. Then.\n")
    assert re.search(r"<li>\s*<p>Do:</p>\s*<pre[^>]*><code class=\"language-sh\">a &lt; b\n  c\n</code></pre>", html)
    assert html.count("<ol>") == 1 and html.count("<li>") == 2


def test_an_inner_list_may_be_indented_by_two_spaces() -> None:
    assert re.sub(r"\s", "", render("- a\n  - b\n- c\n")) == "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"


# What pages say of the console.

CONSOLE = ROOT / "appliance" / "web" / "console"
NO_LABELS = {"legal", "More tools", "WebAuthn"}
"""Emphasised words of tutorials that are no labels of the console: a unit, and a browser's own tools."""


def words_of_the_console() -> str:
    """Everything that the console can show as a label, in small letters."""
    templates = [*CONSOLE.rglob("*.html"), *(ROOT / "appliance" / "reports").rglob("*.html")]
    files = [*templates, *CONSOLE.rglob("*.py"), *(CONSOLE / "static").glob("[a-z]*.js")]
    titles = [row.title for row in ACTIONS.values()]
    labels = [field.label for row in ACTIONS.values() if row.has_form for field in fields_of(row.name)]
    return "\n".join([*(path.read_text(encoding="utf-8") for path in files), *titles, *labels]).lower()


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_names_only_labels_that_the_console_has(page: Path) -> None:
    text = re.sub(r"(?s)```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"))
    labels = {" ".join(label.split()) for label in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", text)}
    known = words_of_the_console()
    assert {label for label in labels - NO_LABELS if label.lower() not in known} == set()


def test_every_link_from_the_program_leads_into_the_manual(pages: dict[str, Reading]) -> None:
    found = {}
    for path in [*(ROOT / "appliance").rglob("*.py"), *(ROOT / "appliance").rglob("*.html")]:
        for target, anchor in re.findall(r"[\"'](/docs/[\w/-]*)(?:#([\w-]+))?[\"']", path.read_text(encoding="utf-8")):
            found[f"{path.name}: {target}#{anchor}"] = (f"{target.removeprefix('/docs/')}index.html", anchor)
    assert found
    broken = [
        name
        for name, (page, anchor) in found.items()
        if page not in pages or (anchor and anchor not in pages[page].anchors)
    ]
    assert broken == []


# How pages read.


def test_the_pages_that_are_measured_read_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert readability.report_pages(ROOT / "docs") == 0, capsys.readouterr().out


def test_a_hard_page_and_a_long_sentence_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tutorials").mkdir()
    (tmp_path / "index.md").write_text(f"# Easy\n\n{'It is so. ' * 3}\n")
    (tmp_path / "tutorials" / "hard.md").write_text("Organisational accountability necessitates documentation.\n")
    (tmp_path / "tutorials" / "long.md").write_text(f"{'so ' * 31}.\n")
    assert readability.report_pages(tmp_path) == 1
    out = capsys.readouterr().out.splitlines()
    assert "index.md" in out[0] and "expected" not in out[0]
    assert "tutorials/hard.md: expected at least 50" in out[1]
    assert "tutorials/long.md: expected at most 30 words in a sentence, got: so so" in out[3]
