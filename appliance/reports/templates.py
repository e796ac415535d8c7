"""The environment of all HTML templates, and the review page as a document made with them.

Every value is escaped, and a missing one is an error. The document is for screens and paper. It has no scripts and no
external files; its plots are written beside it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from appliance.domain.queries.review.values import ReviewPage
from appliance.formats.core.text import IGNORABLE, is_visible
from appliance.reports.review.blocks import CalibrationPlot, Matrix
from appliance.reports.review.sections import make_sections, make_verification

FOLDER = Path(__file__).resolve().parent
"""Folder of the templates that the console and reports share."""
STYLE = FOLDER / "pages.css"
"""The style of the console's pages and of reports."""


def make_environment(folders: Iterable[Path] = ()) -> Environment:
    """Return an environment with the shared templates and those of more folders."""
    environment = Environment(
        loader=FileSystemLoader([*folders, FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        finalize=_finalize,
    )
    environment.filters["when"] = when
    return environment


def plain(text: str) -> str:
    """Return a text with invisible and direction-changing characters written as escapes.

    Line ends and tabs stay. Without this, a character could reverse or hide a part of the text. The signing page's
    script does the same.
    """
    if is_visible(text.replace("\n", "").replace("\t", "")):
        return text
    return "".join(_escape_hidden(c) for c in text)


def _escape_hidden(character: str) -> str:
    hidden = unicodedata.category(character)[0] == "C" or character in "\u2028\u2029" or IGNORABLE.match(character)
    return f"\\u{{{ord(character):04x}}}" if hidden and character not in "\n\t" else character


def _finalize(value: object) -> object:
    """Return what a template writes for a value. Texts marked as safe have been escaped before."""
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def when(time: str) -> str:
    """Return a time for reading: 2026-11-24T10:30:00.000Z as 2026-11-24 10:30:00."""
    return f"{time[:10]} {time[11:19]}"


HTML, VALUES = "review.html", "page.json"


def write_report(page: ReviewPage, log: str, folder: Path) -> None:
    """Write the page, its values and its plots into a folder. `log` is the log against which the page was proved."""
    known = {one.entry for one in page.entries}

    def find_address(kind: str, text: object) -> str:
        """Return the address of an entry or a part in this document, or an empty text."""
        if kind == "entry":
            return f"#entry-{text}" if int(str(text)) in known else ""
        return f"#{text}" if kind == "part" else ""

    environment, style = make_environment(), STYLE.read_text(encoding="utf-8")
    environment.globals.update(address=find_address, marks_reported=True)
    sections = [*make_sections(page), make_verification(log)]
    sections.sort(key=lambda one: one.part == "entries")
    parts = [(part, list(found)) for part, found in groupby(sections, key=lambda one: one.part)]
    template = environment.get_template("review/report.html")
    text = template.render(adapter=page.adapter, log=log, parts=parts, style=style)
    (folder / HTML).write_text(text, encoding="utf-8")
    draw = environment.get_template("review/sections.html").module.plot  # type: ignore[attr-defined]
    for plot in (one for section in sections for one in section.blocks if isinstance(one, CalibrationPlot | Matrix)):
        svg = str(draw(plot)).replace(">", f"><style>{style}</style>", 1)
        (folder / f"{plot.name}.svg").write_text(svg, encoding="utf-8")
    values = json.dumps(page.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / VALUES).write_text(f"{values}\n", encoding="utf-8")
