"""Extensions of the manual's Markdown: GitHub's anchors, shallow lists, and fences inside lists."""

from __future__ import annotations

import re
import textwrap
from html import escape
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[a-z]*)[^\n`]*\n(?P<body>.*?)^(?P=indent)``` *$", re.MULTILINE | re.DOTALL
)


_INDENT = re.compile(r"^ {2,}(?=\S)")


def slugify(title: str, separator: str) -> str:
    """Return the anchor of a heading as GitHub makes it, so that a link works there and in the manual."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", separator)


class Fences(Preprocessor):
    """Code between two lines of three backticks, also inside the item of a list."""

    def run(self, lines: list[str]) -> list[str]:
        """Replace each block of code by a place in the stash."""
        return _FENCE.sub(self._store, "\n".join(lines)).split("\n")

    def _store(self, fence: re.Match[str]) -> str:
        language = f' class="language-{fence["language"]}"' if fence["language"] else ""
        body = escape(textwrap.dedent(fence["body"]), quote=False)
        place = self.md.htmlStash.store(f'<pre tabindex="0"><code{language}>{body}</code></pre>')
        return f"\n{fence['indent']}{place}\n"


class Indents(Preprocessor):
    """Indents of two or more spaces as multiples of four, which Python-Markdown needs for what belongs to an item."""

    def run(self, lines: list[str]) -> list[str]:
        """Widen each indent to the next multiple of four."""
        return [_INDENT.sub(lambda indent: " " * (-(-len(indent[0]) // 4) * 4), line) for line in lines]


class ManualExtension(Extension):
    """Fences, and lists whose inner lines are indented by two or more spaces."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the fences before all that reads their content as text, and then the indents."""
        md.preprocessors.register(Fences(md), "fences", 26)
        md.preprocessors.register(Indents(md), "indents", 25)


def makeExtension(**options: Any) -> Extension:
    """Return the extension, as Python-Markdown loads it."""
    return ManualExtension(**options)
