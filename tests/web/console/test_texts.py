"""Texts that users can set do not run as code in pages and tables."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from appliance.domain.governance.people import PrincipalEnrolled
from appliance.web.console.core.desk import write_csv
from appliance.web.console.core.page import CsvTable
from appliance.web.console.core.render import STATIC, Assets, make_environment, words
from appliance.web.console.pages import PAGES
from tests.kit.console import Console, console

HOSTILE = "<img src=x onerror=alert(1)>\"'`--><script>alert(2)</script>{{7*7}}"
PLAIN = "&lt;img src=x onerror=alert(1)&gt;"


@pytest.fixture
def desk(home: Path) -> Iterator[Console]:
    with console("sealed", home) as made:
        yield made


@pytest.mark.thorough
def test_a_request_a_meaning_and_a_finding_are_shown_as_text(desk: Console) -> None:
    site = desk.site
    site.request_release(intended_use=site.text(HOSTILE), limits=site.text(HOSTILE))
    site.review("rita", "privacy", meaning=site.text(HOSTILE))
    site.find("rita", finding=site.text(HOSTILE), remedy=site.text(HOSTILE))
    browser = desk.signed_in("audrey")
    for tab in ("summary", "history", "findings"):
        text = browser.get(f"/adapters/clauses@1?tab={tab}").text
        assert PLAIN in text and "<img" not in text and "<script>alert" not in text and "{{7*7}}" in text
    size = desk.context.ledger.state.size
    for index in range(size - 4, size):
        assert "<img" not in browser.get(f"/log/{index}").text


def test_a_printed_name_is_shown_as_text(desk: Console) -> None:
    site = desk.site
    order, documents = site.enrolment("mallory", ("operator",), printed_name=site.text(HOSTILE))
    site.two(PrincipalEnrolled(policy=site.in_force), order, documents)
    browser = desk.signed_in("audrey")
    for path in ("/people", "/people/mallory"):
        text = browser.get(path).text
        assert PLAIN in text and "<img" not in text


@pytest.mark.parametrize(
    "path", ["/log?actor=", "/log?subject=", "/log?unit=", "/past?at=", "/effective-access?at=", "/"]
)
def test_what_stands_in_an_address_is_shown_as_text(desk: Console, path: str) -> None:
    answer = desk.signed_in("audrey").get(path + quote(HOSTILE, safe=""))
    assert "<img" not in answer.text and "<script>alert" not in answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


def test_a_file_of_the_sealed_folder_is_shown_as_text(desk: Console) -> None:
    """As labels and rows of a dataset are, which come from files."""
    environment = make_environment(Assets())
    template = environment.from_string("{{ value | json }} {{ value | words }} {{ link('/log', subject=HOSTILE) }}")
    shown = template.render(value={HOSTILE: [HOSTILE]}, HOSTILE=HOSTILE)
    assert "<img" not in shown and "<script" not in shown and '"' not in shown.replace("&#34;", "")
    assert HOSTILE in words({HOSTILE: 1})


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        " =1",
        "\N{NO-BREAK SPACE}=1",
        "\N{FULLWIDTH EQUALS SIGN}1",
        "\N{FULLWIDTH COMMERCIAL AT}SUM(A1)",
        '=HYPERLINK("http://evil.example","x")',
        "=cmd|' /C calc'!A0",
    ],
)
def test_no_text_is_a_formula_in_a_spreadsheet(text: str) -> None:
    rows = list(csv.reader(io.StringIO(write_csv(CsvTable(("a", "b"), [[text, (text, "x")]])), newline="")))
    assert rows[1][0] == f"'{text}" and rows[1][1] == f"'{text} x"


def test_numbers_and_nothing_stay_what_they_are_in_csv() -> None:
    table = CsvTable(("a", "b", "c", "d"), [[-1, 2.5, None, True]])
    assert write_csv(table) == "a,b,c,d\r\n-1,2.5,,True\r\n"


@pytest.mark.thorough
def test_a_template_that_lacks_a_value_is_an_error() -> None:
    environment = make_environment(Assets())
    with pytest.raises(Exception, match="no attribute"):
        environment.from_string("{{ value.nothing }}").render(value={})
    for page in PAGES:
        environment.get_template(page.template)


def test_vendored_files_are_those_that_were_published() -> None:
    listed: set[str] = set()
    for package in json.loads((STATIC / "vendored.json").read_text()):
        assert package["integrity"].startswith("sha512-") and package["licence"] in ("0BSD", "MIT")
        for name, file in package["files"].items():
            assert f"sha256:{hashlib.sha256((STATIC / name).read_bytes()).hexdigest()}" == file["digest"], name
            listed.add(name)
    scripts = {"live.js", "curves.js", "invitations.js", "signing.js", "upload.js"}
    own = {"symbols.svg", "icon.svg", "proof.html", "vendored.json"} | scripts
    found = {str(path.relative_to(STATIC)) for path in STATIC.rglob("*") if path.is_file()}
    assert found == listed | own


def test_the_accessibility_rules_are_those_that_were_published() -> None:
    """axe-core 4.14.1 (MPL-2.0), dist file axe.min.js; only tests use it."""
    data = (Path(__file__).parent / "vendor" / "axe.min.js").read_bytes()
    assert hashlib.sha256(data).hexdigest() == "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the page's script")
def test_what_is_signed_is_shown_with_every_character_that_has_no_shape_written_out() -> None:
    """No text of another person turns its direction round, or hides a part of itself, above a signature."""
    shown = {
        "no \u202elairt a\u202c": r"no \u{202e}lairt a\u{202c}",
        "a\u200bb\u2066c\x1bd\u2028e\nf": r"a\u{200b}b\u{2066}c\u{001b}d\u{2028}e\u{000a}f",
        "Zürich, 東京: 5 %, العربية": "Zürich, 東京: 5 %, العربية",
        "\U000e0041": r"\u{e0041}",
        "approve\u3164\ufe0f\u034f": r"approve\u{3164}\u{fe0f}\u{034f}",
    }
    program = f"""import {{ plain }} from {json.dumps((STATIC / "signing.js").as_uri())};
    console.log(JSON.stringify({json.dumps(list(shown))}.map(plain)));"""
    done = subprocess.run(
        ["node", "--input-type=module", "-e", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == list(shown.values())
    script = (STATIC / "signing.js").read_text()
    shown_as = r'said.textContent = text.split("\n").map(plain).join("\n");'
    assert shown_as in script and script.count(".textContent = text;") == 1, "a problem's"


HIDDEN = "a\u202eb\u2066c\u200bd\u2028e\x1bf\ufeffg\u3164\ufe0f"
WRITTEN = r"a\u{202e}b\u{2066}c\u{200b}d\u{2028}e\u{001b}f\u{feff}g\u{3164}\u{fe0f}"


def test_no_text_turns_its_direction_round_or_hides_a_part_of_itself(desk: Console) -> None:
    """A page writes out what has no shape of its own, as the signing page does; a form sends back what it was given."""
    site = desk.site
    order, documents = site.enrolment("mallory", ("operator",), printed_name=site.text(HIDDEN))
    site.two(PrincipalEnrolled(policy=site.in_force), order, documents)
    site.request_release(intended_use=site.text(HIDDEN), limits=site.text(HIDDEN))
    browser = desk.signed_in("audrey")
    for path in ("/people", "/people/mallory", "/adapters/clauses@1"):
        text = browser.get(path).text
        assert WRITTEN in text and not set(HIDDEN) & set(text) - set("abcdefg"), path
    assert any(row["printed_name"] == HIDDEN for row in browser.get("/people.json").json()["rows"])
    environment = make_environment(Assets())
    assert environment.from_string("{{ x | exact }}").render(x=HIDDEN + "<") == HIDDEN + "&lt;"
    assert environment.from_string("{{ x }}").render(x="Zoë, 日本,\nعربي\t✓") == "Zoë, 日本,\nعربي\t✓"
