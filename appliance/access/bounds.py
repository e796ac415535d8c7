"""How deep and how long Cedar text may be, found before Cedar's parser sees it.

That parser calls itself for each bracket, and what walks its result for each operator: text that is nested deeply
enough exhausts the stack and ends the process, with no error to catch. One pass over the tokens, without recursion,
bounds every path through the tree that the parser would build. The bounds leave a thread of 2 MiB half its stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile

from appliance.domain.core.policy import PolicySet
from appliance.errors import TooLarge

MAX_BRACKETS = 32
MAX_DEPTH = 200
MAX_TERM = 64
MAX_STRING = 4_096
MAX_DECLARED = 500
MAX_EXPANDED = 20_000

# As Cedar's own lexer has them: a comment ends at a carriage return too, and a string may hold line ends.
_TOKEN = re.compile(r'//[^\n\r]*|"(?:\\.|[^"\\])*"|[A-Za-z_][A-Za-z_0-9]*|[0-9]+|&&|\|\||==|!=|<=|>=|::|\S')
_OPENS, _CLOSES = frozenset("([{"), frozenset(")]}")
_JOINS = frozenset(("&&", "||", "if"))
_PARTS = frozenset((",", ";"))
_OPERATORS = frozenset((".", "+", "-", "*", "!", "<", ">", "<=", ">=", "==", "!=", "in", "has", "like", "is"))


def check_bounds(policy: PolicySet) -> None:
    """TooLarge where Cedar must not be given the set's text."""
    _check_policies(policy.cedar, f"policy set {policy.name}, policies")
    _check_schema(policy.cedar_schema, f"policy set {policy.name}, schema")


@dataclass(slots=True)
class _Level:
    """The text between two brackets. A path goes through its joins, then through one of the terms between them."""

    joins: int = 0
    operators: int = 0
    within: int = 0
    """The deepest brackets of this term."""
    term: int = 0
    deepest: int = 0

    def take(self, token: str) -> None:
        if token in _OPERATORS:
            self.operators += 1
        elif token in _JOINS:
            self.end_term()
            self.joins += 1
        elif token in ("then", "else"):
            self.end_term()
        elif token in _PARTS:
            self.end_part()

    def end_term(self) -> None:
        self.term = max(self.term, self.operators + self.within)
        self.operators = self.within = 0

    def end_part(self) -> None:
        """At a comma or a semicolon: what follows is not deeper for what stood before."""
        self.end_term()
        self.deepest = max(self.deepest, self.joins + self.term)
        self.joins = self.term = 0


def _check_policies(text: str, what: str) -> None:
    levels = [_Level()]
    for line, token in _tokens(text, what):
        if token in _OPENS:
            levels[-1].operators += 1  # so that a chain of indices or calls counts
            levels.append(_Level())
        elif token in _CLOSES and len(levels) > 1:
            closed = levels.pop()
            closed.end_part()
            levels[-1].within = max(levels[-1].within, closed.deepest)
        else:
            levels[-1].take(token)
        here = levels[-1]
        _check(len(levels) - 1, MAX_BRACKETS, what, line, "brackets inside each other")
        _check(here.operators, MAX_TERM, what, line, "operators between two && or ||")
        _check(here.joins + max(here.term, here.operators + here.within), MAX_DEPTH, what, line, "operators in a row")


def _check_schema(text: str, what: str) -> None:
    depth, declared, line = 0, 0, 1
    tokens: list[str] = []
    for line, token in _tokens(text, what):
        tokens.append(token)
        depth += (token in _OPENS or token == "<") - (depth > 0 and (token in _CLOSES or token == ">"))
        declared += token == ";" or (token == "," and depth <= 1)
        _check(depth, MAX_BRACKETS, what, line, "brackets inside each other")
        _check(declared, MAX_DECLARED, what, line, "declarations")
        _check(len(tokens), MAX_EXPANDED, what, line, "words")
    _check(_expanded(tokens), MAX_EXPANDED, what, line, "words once the names of its types are replaced by the types")


def _expanded(tokens: list[str]) -> int:
    """How many tokens there are once the name of each type is replaced by what it stands for, as Cedar does; or some
    number over the bound. Types that name themselves are Cedar's to refuse."""
    types: dict[str, list[str]] = {}
    for place, token in enumerate(tokens):
        if token == "type" and tokens[place + 2 : place + 3] == ["="]:
            part = types.setdefault(tokens[place + 1], [])
            part += takewhile(lambda one: one != ";", islice(tokens, place + 3, None))
    sizes: dict[str, int] = {}
    for _ in types:  # As often as the longest chain of names has links.
        before, sizes = sizes, {name: _sum(part, sizes) for name, part in types.items()}
        if before == sizes or max(sizes.values()) > MAX_EXPANDED:
            break
    return _sum(tokens, sizes)


def _sum(tokens: list[str], sizes: dict[str, int]) -> int:
    return sum(sizes.get(token, 1) for token in tokens)


def _tokens(text: str, what: str) -> Iterator[tuple[int, str]]:
    """Each token with its line; no comments."""
    line, last = 1, 0
    for match in _TOKEN.finditer(text):
        line += text.count("\n", last, match.start())
        last = match.start()
        if not match[0].startswith("//"):
            # Comparing a string with a pattern takes the product of their lengths.
            _check(len(match[0]), MAX_STRING, what, line, "characters in a string or name")
            yield line, match[0]


def _check(got: int, most: int, what: str, line: int, unit: str) -> None:
    if got > most:
        raise TooLarge(f"{what}, line {line}: expected at most {most} {unit}, got {got}; shorten it, or split it")
