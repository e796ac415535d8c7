"""HTML from values: every text is escaped here, so that no name, label or finding can be markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from appliance.formats.core.visible import is_visible


class Markup(str):
    """Text that is HTML already. Only this module and the figures make it."""

    __slots__ = ()


Content = str | Markup | int | None


def text(value: Content) -> Markup:
    """A text as HTML. What cannot be seen, or turns the direction of writing, is shown as its escape."""
    if isinstance(value, Markup):
        return value
    shown = "-" if value is None else str(value)
    plain = "".join(c if is_visible(c) or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in shown)
    return Markup(html.escape(plain, quote=True))


def tag(name: str, *content: Content, **attributes: str) -> Markup:
    """`<name class="…">content</name>`; `class_` is `class`. Names of tags and attributes come from this package."""
    told = "".join(f' {key.rstrip("_")}="{text(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{told}>{''.join(map(text, content))}</{name}>")


def join(parts: Iterable[Content]) -> Markup:
    return Markup("".join(map(text, parts)))


def lines(value: str) -> Markup:
    """A text of several lines, as it was written."""
    return tag("span", value, class_="lines")


def facts(rows: Iterable[tuple[str, Content]]) -> Markup:
    """A list of terms; nothing where there are none."""
    found = [join((tag("dt", label), tag("dd", value))) for label, value in rows]
    return tag("dl", *found) if found else Markup("")


def table(headers: Sequence[str], rows: Sequence[Sequence[Content]], *, marked: Sequence[bool] = ()) -> Markup:
    """`marked`: the rows that stand out."""
    if not rows:
        return Markup("")
    head = tag("tr", *(tag("th", header, scope="col") for header in headers))
    body = [
        tag("tr", *(tag("td", cell) for cell in row), **({"class_": "marked"} if marked and marked[number] else {}))
        for number, row in enumerate(rows)
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="wide")


def section(heading: str, *content: Content) -> Markup:
    """Nothing where all its content is empty."""
    inner = join(content)
    return tag("section", tag("h2", heading), inner) if inner else Markup("")
