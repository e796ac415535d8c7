"""Measure how well pages read: Flesch reading ease, and sentences that are too long.

Code, tables and headings are left out. Reading ease is Flesch (1948): 206.835 - 1.015 words per sentence - 84.6
syllables per word.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyphen

FOLDERS = ("start", "concepts", "tutorials")
"""Parts of the manual that are measured."""

LEAST_EASE = 50.0
"""Least reading ease of a page."""

MOST_WORDS = 30
"""Most words of a sentence."""

_CODE_BLOCK = re.compile(r"^( *)```.*?^\1``` *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_INLINE_CODE = re.compile(r"``.+?``|`[^`\n]*`")
_CODE_PLACE = "\x02"
_LIST_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?:])[\"')*]*\s+(?=[\"'(*]*[A-Z0-9`\x02])")
_VOWELS = re.compile(r"[aeiouy]+")
_MUTE_END = re.compile(r"(?:(?<=[^aeiouy])|(?<=u))(?:(?<![^aeiouy]l)e|(?<![td])ed|(?<![scxz])(?<!sh)(?<!ch)(?<!g)es)$")
_WORD = re.compile(r"[^\W\d_][\w'\u2019-]*")


@dataclass(frozen=True)
class Readability:
    """The measures of one text. `long_sentences` are those over the limit."""

    words: int
    sentences: int
    syllables: int
    long_sentences: tuple[str, ...]

    @property
    def ease(self) -> float:
        """Return the Flesch reading ease. A text without words has the highest one."""
        if not self.words:
            return 206.835
        return 206.835 - 1.015 * self.words / self.sentences - 84.6 * self.syllables / self.words


def measure(text: str) -> Readability:
    """Return the measures of a page in Markdown."""
    sentences = [found for block in list_blocks(text) for found in split_sentences(block)]
    words = [_WORD.findall(sentence) for sentence in sentences]
    return Readability(
        words=sum(map(len, words)),
        sentences=len(sentences),
        syllables=sum(count_syllables(word) for found in words for word in found),
        long_sentences=tuple(
            sentence for sentence, found in zip(sentences, words, strict=True) if len(found) > MOST_WORDS
        ),
    )


def list_blocks(text: str) -> Iterator[str]:
    """Yield the paragraphs and items of lists, without code, tables, headings and the targets of links.

    A name in code counts as no word, because its form is not the author's choice.
    """
    block: list[str] = []
    prose = _INLINE_CODE.sub(_CODE_PLACE, _LINK.sub(r"\1", _CODE_BLOCK.sub("", text)))
    for line in [*prose.split("\n"), ""]:
        is_left_out = not line.strip() or line.lstrip().startswith(("#", "|", "<!--"))
        if block and (is_left_out or _LIST_ITEM.match(line)):
            yield " ".join(block)
            block = []
        if not is_left_out:
            block.append(_LIST_ITEM.sub("", line).strip())


def split_sentences(block: str) -> list[str]:
    """Return the sentences of a paragraph that have words. A colon before a capital letter ends one, too."""
    return [part for part in _SENTENCE_END.split(block) if _WORD.search(part)]


def count_syllables(word: str) -> int:
    """Return the number of syllables of a word; the parts of a compound are counted one by one.

    It is the larger of two counts: places of hyphenation (pyphen), which miss some, and groups of vowels without those
    that are mute at the end. So a page is never shown to be easier than it is by either count.
    """
    return sum(_count_syllables(part) for part in re.split(r"[-'\u2019]", word.lower()) if part)


def _count_syllables(part: str) -> int:
    vowels = len(_VOWELS.findall(_MUTE_END.sub("", part)))
    return max(1, vowels, len(_hyphenation().positions(part)) + 1)


@cache
def _hyphenation() -> pyphen.Pyphen:
    # A first syllable can be one letter.
    return pyphen.Pyphen(lang="en_US", left=1, right=2)


def list_pages(docs: Path) -> list[Path]:
    """Return the pages that are measured."""
    return [docs / "index.md", *(page for name in FOLDERS for page in sorted((docs / name).glob("*.md")))]


def report_pages(docs: Path) -> int:
    """Print the measures of each page, and return the exit code: 0 if all reach the limits, otherwise 1."""
    failed = 0
    for page in list_pages(docs):
        found = measure(page.read_text(encoding="utf-8"))
        is_hard = found.ease < LEAST_EASE
        failed += is_hard or bool(found.long_sentences)
        name = page.relative_to(docs)
        print(f"{found.ease:5.1f}  {name}{f': expected at least {LEAST_EASE:.0f}' if is_hard else ''}")
        for sentence in found.long_sentences:
            print(f"       {name}: expected at most {MOST_WORDS} words in a sentence, got: {sentence}")
    if failed:
        print(f"docs: pages that are hard to read: {failed}", file=sys.stderr)
    return 1 if failed else 0
