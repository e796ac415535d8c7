"""Limits on the characters, depth and length of Cedar text, checked before Cedar's parser reads it.

People compare a text before they sign it. So it has visible characters, spaces, tabs and line feeds only, and a string
ends in its line. Otherwise a person and Cedar could read different policies: a comment ends at a line feed for Cedar,
and at other characters for other programs.

Cedar's parser recurses for each bracket, and later code recurses for each operator. Text that is nested deeply enough
overflows the stack and ends the process without an exception. Cedar's JSON, which the check for lock-outs reads and
writes, ends at a depth of 58 operators. Validation takes quadratic time in the number of `has` in a chain. One pass
over the tokens, without recursion, bounds every path through the tree that the parser would build.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile

from appliance.errors import BadInput, TooLarge
from appliance.formats.core.text import is_visible

MAX_BRACKETS = 32
"""Largest depth of nested brackets."""
MAX_DEPTH = 50
"""Largest number of operators on a path through the syntax tree."""
MAX_STRING = 4_096
"""Largest length of a string or name."""
MAX_DECLARED = 1_000
"""Largest number of declarations in a schema."""
MAX_EXPANDED = 20_000
"""Largest number of tokens in a schema, also after its type names are replaced by the types."""

# Like Cedar's own lexer: a string may contain line ends.
_TOKEN = re.compile(r'//[^\n]*|"(?:\\.|[^"\\])*"|[A-Za-z_][A-Za-z_0-9]*|[0-9]+|&&|\|\||==|!=|<=|>=|::|\S')
_OPENS, _CLOSES = frozenset("([{"), frozenset(")]}")
_JOINS = frozenset(("&&", "||", "if"))
_SEPARATORS = frozenset((",", ";"))
_OPERATORS = frozenset((".", "+", "-", "*", "!", "<", ">", "<=", ">=", "==", "!=", "in", "has", "like", "is"))


def check_bounds(name: str, cedar: str, schema: str) -> None:
    """Check that the text of this policy set is within the limits.

    Raises:
        TooLarge: it is not, so Cedar must not read it.
        BadInput: it has characters that are not visible, or a string over several lines.
    """
    _check_characters(cedar, f"policy set {name}, policies")
    _check_characters(schema, f"policy set {name}, schema")
    _check_policies(cedar, f"policy set {name}, policies")
    _check_schema(schema, f"policy set {name}, schema")


def _check_characters(text: str, what: str) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        plain = line.replace("\t", " ")
        if not is_visible(plain):
            got = next(character for character in plain if not is_visible(character))
            expected = "expected visible characters, spaces, tabs and line feeds"
            raise BadInput(f"{what}, line {number}: {expected}, got U+{ord(got):04X}; remove it")


@dataclass(slots=True)
class _Nesting:
    """The text between two brackets, for the depth of its syntax tree.

    `joins` counts `&&`, `||` and `if`, which separate terms. The depth is the number of joins plus the operators of
    the deepest term, with the brackets inside that term.
    """

    joins: int = 0
    operators: int = 0
    within: int = 0
    """Depth of the deepest brackets in the current term."""
    term: int = 0
    deepest: int = 0

    def take(self, token: str) -> None:
        """Count a token that is not a bracket."""
        if token in _OPERATORS:
            self.operators += 1
        elif token in _JOINS:
            self.end_term()
            self.joins += 1
        elif token in ("then", "else"):
            self.end_term()
        elif token in _SEPARATORS:
            self.end_part()

    def end_term(self) -> None:
        """End a term at a join, keeping the depth of the deepest term."""
        self.term = max(self.term, self.operators + self.within)
        self.operators = self.within = 0

    def end_part(self) -> None:
        """End a part at a comma or a semicolon. The depth of the next part starts from zero."""
        self.end_term()
        self.deepest = max(self.deepest, self.joins + self.term)
        self.joins = self.term = 0


def _check_policies(text: str, what: str) -> None:
    levels = [_Nesting()]
    for line, token in _list_tokens(text, what):
        if token in _OPENS:
            levels[-1].operators += 1  # so that a chain of indices or calls counts
            levels.append(_Nesting())
        elif token in _CLOSES and len(levels) > 1:
            closed = levels.pop()
            closed.end_part()
            levels[-1].within = max(levels[-1].within, closed.deepest)
        else:
            levels[-1].take(token)
        current = levels[-1]
        _check_limit(len(levels) - 1, MAX_BRACKETS, what, line, "brackets inside each other")
        _check_limit(
            current.joins + max(current.term, current.operators + current.within),
            MAX_DEPTH,
            what,
            line,
            "operators in a row",
        )


def _check_schema(text: str, what: str) -> None:
    depth, declared, line = 0, 0, 1
    tokens: list[str] = []
    for line, token in _list_tokens(text, what):
        tokens.append(token)
        depth += (token in _OPENS or token == "<") - (depth > 0 and (token in _CLOSES or token == ">"))
        declared += token == ";" or (token == "," and depth <= 1)
        _check_limit(depth, MAX_BRACKETS, what, line, "brackets inside each other")
        _check_limit(declared, MAX_DECLARED, what, line, "declarations")
        _check_limit(len(tokens), MAX_EXPANDED, what, line, "words")
    _check_limit(
        _count_expanded(tokens), MAX_EXPANDED, what, line, "words once the names of its types are replaced by the types"
    )


def _count_expanded(tokens: list[str]) -> int:
    """Return the number of tokens after each type name is replaced by its definition, or a number above the limit.

    Cedar replaces names in the same way. It refuses types that refer to themselves.
    """
    types: dict[str, list[str]] = {}
    for position, token in enumerate(tokens):
        if token == "type" and tokens[position + 2 : position + 3] == ["="]:
            definition = types.setdefault(tokens[position + 1], [])
            definition += takewhile(lambda token: token != ";", islice(tokens, position + 3, None))
    sizes: dict[str, int] = {}
    for _ in types:  # at most as often as the longest chain of names has links
        before, sizes = sizes, {name: _sum_sizes(definition, sizes) for name, definition in types.items()}
        if before == sizes or max(sizes.values()) > MAX_EXPANDED:
            break
    return _sum_sizes(tokens, sizes)


def _sum_sizes(tokens: list[str], sizes: dict[str, int]) -> int:
    return sum(sizes.get(token, 1) for token in tokens)


def _list_tokens(text: str, what: str) -> Iterator[tuple[int, str]]:
    """Yield each token with its line, without comments."""
    line, last = 1, 0
    for match in _TOKEN.finditer(text):
        line += text.count("\n", last, match.start())
        last = match.start()
        if not match[0].startswith("//"):
            if "\n" in match[0]:
                expected = "expected strings that end in their line"
                raise BadInput(f"{what}, line {line}: {expected}, got one over several lines; write \\n instead")
            # Matching a string against a pattern takes time in the product of their lengths.
            _check_limit(len(match[0]), MAX_STRING, what, line, "characters in a string or name")
            yield line, match[0]


def _check_limit(got: int, most: int, what: str, line: int, unit: str) -> None:
    if got > most:
        raise TooLarge(f"{what}, line {line}: expected at most {most} {unit}, got {got}; shorten it, or split it")
