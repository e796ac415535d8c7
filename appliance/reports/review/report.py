"""Writes a review page as a folder: `python -m appliance.reports.review.report FOLDER < page.json`.

A program of its own, started by the client: its libraries are large, and a process that holds a key does without them.
It reads the page's JSON and what was checked, and writes review.html, page.json, and each plot as SVG and PNG.
MPLCONFIGDIR names where matplotlib keeps its list of this machine's fonts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance.domain.releases.page.value import ReviewPage
from appliance.reports.review.document import Document
from appliance.reports.review.figures import draw_page, encode_figure, inline

HTML, VALUES = "review.html", "page.json"


def write(page: ReviewPage, checked: dict[str, str], folder: Path) -> None:
    figures = {}
    for name, (told, figure) in draw_page(page).items():
        svg = encode_figure(figure, "svg")
        (folder / f"{name}.svg").write_bytes(svg)
        (folder / f"{name}.png").write_bytes(encode_figure(figure, "png"))
        figures[name] = inline(svg, told)
    (folder / HTML).write_text(Document(page, figures, checked).render(), encoding="utf-8")
    values = json.dumps(page.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / VALUES).write_text(f"{values}\n", encoding="utf-8")


def main(words: Sequence[str]) -> int:
    given = json.load(sys.stdin)
    page = ReviewPage.model_validate_json(json.dumps(given["page"]))
    write(page, given["checked"], Path(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
