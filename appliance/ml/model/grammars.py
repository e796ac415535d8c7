"""Grammars over a model's tokens that restrict its output to a JSON schema or to tool calls. No torch.

After each token llguidance (https://github.com/guidance-ai/llguidance) computes the allowed next tokens. It is written
in Rust, opens no file or connection, and counts its work. A schema that exceeds LIMITS is refused; if that is found
only later, it ends its own output. Outputs share no state.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from appliance.errors import BadInput
from appliance.ml.model.bounds import refuse_panics
from appliance.ml.model.calls import PROBE_ID, CallForm
from appliance.ml.model.chat import Chat

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

LIMITS: Mapping[str, int] = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 10_000,
    "max_grammar_size": 100_000,
}
"""Limits of llguidance's work: about 10 ms to start, 8 ms per token and 20 MB per output."""
_SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space of calls as `tojson` writes it in a template."""
ID = "[a-zA-Z0-9]{9}"
"""Pattern of a call's id, if the template has the model write it."""
_LOOSE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""White space without line breaks: weak models write unbounded white space."""
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
MAX_PATTERNS, MAX_JOINED_PATTERNS = 64, 8
"""Largest number of patterns in a schema, separate and joined.

Testing whether a text can match n patterns at once takes 2^n steps, which llguidance does not count.
"""
MAX_ITEMS = 10_000
"""Largest sum of all list lengths in a schema: each item is a rule of the grammar."""
MAX_MULTIPLES = 10_000
"""Bound on all `multipleOf` of a schema and of all tools of a request: their sum, or their product if some are joined.

An automaton with n states recognises the multiples of n. llguidance builds it in n^2 steps, which it does not count.
"""
_PATTERNS, _ITEMS = ("pattern", "format"), ("minItems", "maxItems")
_COMBINED = ("anyOf", "oneOf", "allOf", "$ref")
_REMARKS = {"title", "description", "default", "examples", "$schema", "$id", "$defs", "definitions", "discriminator"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions"}
"""Keywords whose fields have names that the caller chose."""
_VALUES = {"const", "enum", "default", "examples"}
"""Keywords that hold JSON values instead of schemas."""
_TOO_DEAR = ("ParserTooComplex", "LexerTooComplex")


class Vocabulary:
    """A base's tokens in llguidance's form, built when first needed."""

    def __init__(self, chat: Chat, words: int) -> None:
        """Prepare a vocabulary; `words` is the number of logits."""
        self._chat, self._words = chat, words
        # Token that the template writes after an output; other end tokens are not part of a grammar.
        self._end: int = chat.encode(chat.end_of_turn)[0]
        self._lock = threading.Lock()
        self._made: LLTokenizer | None = None

    def match(self, grammar: str, what: str) -> Matcher:
        """Return a matcher for the grammar; `what` names it in errors.

        Raises:
            BadInput: the grammar is invalid or exceeds the limits.
        """
        # Imported at the first restricted output: most workers never need these 8 MB.
        from llguidance import LLMatcher, LLParserLimits

        with self._lock:
            made = self._made = self._made or self._make()
        limits = LLParserLimits(**LIMITS, verbose_errors=False)  # type: ignore[arg-type] # none is a flag
        with refuse_panics(f"{what}: expected a JSON schema that an answer can be held to"):
            matcher = LLMatcher(made, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise BadInput(
                f"{what}: expected a JSON schema that an answer can be held to, got: {_describe_error(matcher)}"
            )
        return Matcher(matcher, what, self._end)

    def _make(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        try:
            return LLTokenizer(self._chat.tokenizer.to_str(), n_vocab=self._words, eos_token=self._end)
        except ValueError as error:
            raise BadInput(
                f"response_format: expected a base whose tokens can be held to a schema, got: {str(error)[:200]}"
            ) from None


class Matcher:
    """The state of one output in its grammar."""

    def __init__(self, matcher: LLMatcher, what: str, end: int) -> None:
        self._matcher, self._what, self._end = matcher, what, end

    def allows(self, token: int) -> bool:
        """Return True if this token may come next."""
        self._check()
        with self._refusing():
            return token == self._end if self._matcher.is_stopped() else self._matcher.validate_tokens([token]) == 1

    def mask(self) -> bytes:
        """Return a bit mask of the tokens that may come next, lowest bit of a byte first."""
        with self._refusing():
            mask = self._matcher.compute_bitmask()
        self._check()
        return mask

    def take(self, token: int) -> None:
        """Advance by the token that was chosen."""
        with self._refusing():
            self._matcher.consume_token(token)
        self._check()

    def _refusing(self) -> AbstractContextManager[None]:
        return refuse_panics(f"{self._what}: expected a schema that an answer can be held to")

    def _check(self) -> None:
        if self._matcher.is_error():
            dear = self._matcher.stop_reason() in _TOO_DEAR
            got = "one that takes more" if dear else _describe_error(self._matcher)
            raise BadInput(f"{self._what}: expected a schema within what a token may cost, got: {got}")


def _describe_error(matcher: LLMatcher) -> str:
    return " ".join(matcher.get_error().split())[:200]


def write_schema_grammar(schema: Mapping[str, Any]) -> str:
    """Return the grammar for an output that is JSON of this schema."""
    return f"start: {_write_json(schema, _LOOSE)}\n"


def write_call_grammar(
    chat: Chat,
    tools: Sequence[Mapping[str, Any]],
    *,
    most: int,
    may_speak: bool = False,
    schema: Mapping[str, Any] | None = None,
) -> str:
    """Return the grammar for an output of 1 to `most` calls of these tools, in the template's form.

    With `schema`, the output may be JSON of that schema instead. With `may_speak`, it may be text, also before calls.
    """
    form = chat.calls
    assert form is not None
    check_multiples([tool["function"].get("parameters") for tool in tools])
    more = "" if most == 1 or form.between is None else f" ({_literal(chat, form.between)} body){{0,{most - 1}}}"
    before, after = _literal(chat, form.before), _literal(chat, form.after)
    rules = [f"calls: {before} body{more} {after}", *_write_bodies(chat, form, tools)]
    if schema is not None:
        rules = ["start: calls | said", f"said: {_write_json(schema, _LOOSE)}", *rules]
    elif not may_speak:
        rules = ["start: calls", *rules]
    elif not form.marker:
        rules = ["start: calls | said", r"said: /([^{\s](.|\n)*)?/", *rules]
    else:
        rules = [
            f"start: said | {_write_lead_in(chat, form)} body{more} {after} blank",
            *rules[1:],
            r"blank: /\s*/",
            _SAID,
        ]
        if _literal(chat, form.marker) == json.dumps(form.marker):
            rules.append(f"lead[lazy]: TEXT {json.dumps(form.marker)}")
    return "\n".join([*rules, ""])


_SAID = "said: TEXT\nTEXT: /(.|\\n)*/"


def _write_lead_in(chat: Chat, form: CallForm) -> str:
    """Return the rule for any text up to the marker of calls, and the template's text after the marker."""
    head, marker = form.before.partition(form.marker), _literal(chat, form.marker)
    behind = _literal(chat, head[2])
    return f"lead {behind}" if marker == json.dumps(form.marker) else f"TEXT {marker} {behind}"


def _write_bodies(chat: Chat, form: CallForm, tools: Sequence[Mapping[str, Any]]) -> list[str]:
    functions = [tool["function"] for tool in tools]
    inner = f" /{ID}/ ".join(_literal(chat, part) for part in form.inner.split(PROBE_ID))
    if form.members:
        return ["body: " + " | ".join(_write_json(_describe_body(form, one), _SPACED) for one in functions)]
    return [
        "body: " + " | ".join(f"body_{number}" for number in range(len(functions))),
        *(
            f"body_{number}: {json.dumps(one['name'])} {inner} "
            + _write_json(one.get("parameters") or ANY_OBJECT, _SPACED)
            for number, one in enumerate(functions)
        ),
    ]


def _describe_body(form: CallForm, function: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's body as a schema; references within the tool's schema are adjusted to its new location."""
    parameters = function.get("parameters") or ANY_OBJECT
    known_members = {
        "name": {"const": function["name"]},
        "type": {"const": "function"},
        "id": {"type": "string", "pattern": f"^{ID}$"},
    }
    members = {name: known_members.get(name, parameters) for name in form.members}
    moved = next((name for name in form.members if name not in known_members), "arguments")
    members[moved] = _move(parameters, f"#/properties/{moved}")
    return {
        "type": "object",
        "properties": members,
        "required": list(form.members),
        "additionalProperties": False,
    }


def _move(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        return {
            name: f"{place}{one[1:]}"
            if name == "$ref" and isinstance(one, str) and one.startswith("#")
            else _move(one, place)
            for name, one in value.items()
        }
    return [_move(one, place) for one in value] if isinstance(value, list) else value


def check_cost(schema: Mapping[str, Any]) -> None:
    """Check the cost of a schema that llguidance's own limits do not cover.

    Raises:
        BadInput: the schema has too many patterns, separate or joined, too long lists, or too large multiples.
    """
    patterns, items, joined = 0, 0, False
    for one in _walk(schema):
        patterns += sum(name in one for name in _PATTERNS)
        patterns += len(more) if isinstance(more := one.get("patternProperties"), dict) else 0
        # The absolute value, so that negative numbers do not reduce the sum.
        items += sum(abs(int(found)) for name in _ITEMS if isinstance(found := one.get(name), int | float))
        joined = joined or _joins(one)
    most = MAX_JOINED_PATTERNS if joined else MAX_PATTERNS
    if patterns > most:
        where = "where some are joined by allOf, or by keywords beside anyOf or $ref" if joined else "of one schema"
        raise BadInput(f"schema: expected at most {most} of pattern and format {where}, got {patterns}")
    if items > MAX_ITEMS:
        raise BadInput(f"schema: expected at most {MAX_ITEMS} for all minItems and maxItems together, got more")
    check_multiples(schema)


def check_multiples(schemas: Any) -> None:
    """Check the cost of the multiples of a schema, or of all tools of a request together.

    Raises:
        BadInput: the multiples are too large.
    """
    found = list(_walk(schemas))
    multiples = [_count_states(more) for one in found if isinstance(more := one.get("multipleOf"), int | float)]
    joined = any(map(_joins, found))
    if (math.prod if joined else sum)(multiples) > MAX_MULTIPLES:
        how = "multiplied, since some are joined by allOf, anyOf or $ref" if joined else "together"
        raise BadInput(f"schema: expected at most {MAX_MULTIPLES} for all multipleOf {how}, got more")


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a value."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one


def _count_states(multiple: float) -> int:
    """Return an upper bound on the states of the automaton for multiples: 25 for 0.25 as for 25."""
    number = Decimal(str(multiple))
    return max(1, abs(int(number)), int("".join(map(str, number.as_tuple().digits))))


def _joins(schema: Mapping[str, Any]) -> bool:
    """Return True if an output must match more than one schema at once."""
    combined = [name for name in _COMBINED if name in schema]
    several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    return several or bool(combined and schema.keys() - _REMARKS - set(combined[:1]))


def _write_json(schema: Mapping[str, Any], spaces: Mapping[str, Any]) -> str:
    """Return the grammar expression for JSON of a schema; replaces a caller's `x-guidance`, which could loosen it."""
    check_cost(schema)
    return f"%json {json.dumps({**_without_neutral(schema), 'x-guidance': spaces})}"


def _without_neutral(schema: Any) -> Any:
    """Return the schema without `uniqueItems: false`, which allows everything and which llguidance refuses."""
    if isinstance(schema, list):
        return [_without_neutral(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {name: one for name, one in schema.items() if name != "uniqueItems" or one is not False}
    for name, one in kept.items():
        if name in _NAMED and isinstance(one, Mapping):
            kept[name] = {key: _without_neutral(inner) for key, inner in one.items()}
        elif name not in _VALUES:
            kept[name] = _without_neutral(one)
    return kept


def _literal(chat: Chat, text: str) -> str:
    """Return the grammar expression for a text, with control tokens by their ids; empty for an empty text."""
    parts, plain = list[str](), ""
    while text:
        token = max((one for one in chat.control_tokens if text.startswith(one)), key=len, default="")
        if token:
            parts += [json.dumps(plain)] if plain else []
            parts.append(f"<[{chat.tokenizer.token_to_id(token)}]>")
            plain, text = "", text[len(token) :]
        else:
            plain, text = plain + text[0], text[1:]
    return " ".join([*parts, *([json.dumps(plain)] if plain else [])])
