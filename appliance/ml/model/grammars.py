"""What an answer is held to: a JSON schema, or calls of tools, as a grammar over a model's tokens. No torch.

llguidance (https://github.com/guidance-ai/llguidance) says after each token which may come next. It is Rust, opens no
file and no connection, and counts what it does: a schema that would take more than LIMITS is refused or, where that
shows later, ends its own answer. Nothing of one answer is kept for another.
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
from appliance.ml.model.calls import PROBE_ID, CallForm
from appliance.ml.model.chat import Chat
from appliance.ml.model.panics import refuse_panics

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
"""By llguidance's own figures some 10 ms to begin, 8 ms a token, and 20 MB an answer."""
_SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `tojson` writes calls in a template."""
ID = "[a-zA-Z0-9]{9}"
"""An id of a call, where the template has the model write it."""
_LOOSE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""Without line breaks: white space that may go on for ever is what a weak model writes."""
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
MAX_PATTERNS, MAX_JOINED_PATTERNS = 64, 8
"""Of a schema. To find whether a text can match n patterns at once takes 2^n steps, which llguidance does not count."""
MAX_ITEMS = 10_000
"""Of all lists of a schema together: each item is a rule of the grammar."""
MAX_MULTIPLES = 10_000
"""Of all `multipleOf` of a schema, and of all tools of a request: their sum, or their product where some are joined. A
multiple of n is told by an automaton of n states, which llguidance takes n^2 steps to make and does not count."""
_PATTERNS, _ITEMS = ("pattern", "format"), ("minItems", "maxItems")
_COMBINED = ("anyOf", "oneOf", "allOf", "$ref")
_REMARKS = {"title", "description", "default", "examples", "$schema", "$id", "$defs", "definitions", "discriminator"}
_TOO_DEAR = ("ParserTooComplex", "LexerTooComplex")


class Vocabulary:
    """A base's tokens as llguidance reads them: made once, at the first answer that needs it."""

    def __init__(self, chat: Chat, words: int) -> None:
        """`words`: how many logits there are."""
        self._chat, self._words = chat, words
        # What the template writes behind an answer; another token that ends answers is no part of a grammar.
        self._end: int = chat.encode(chat.end_of_turn)[0]
        self._lock = threading.Lock()
        self._made: LLTokenizer | None = None

    def match(self, grammar: str, what: str) -> Matcher:
        """BadInput where the grammar is none, or takes too much. `what` names it."""
        # Loaded at the first answer that is held to something: 8 MB that most workers never need.
        from llguidance import LLMatcher, LLParserLimits

        with self._lock:
            made = self._made = self._made or self._make()
        limits = LLParserLimits(**LIMITS, verbose_errors=False)  # type: ignore[arg-type] # none is a flag
        with refuse_panics(f"{what}: expected a JSON schema that an answer can be held to"):
            matcher = LLMatcher(made, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise BadInput(f"{what}: expected a JSON schema that an answer can be held to, got: {_said(matcher)}")
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
    """One answer's place in its grammar."""

    def __init__(self, matcher: LLMatcher, what: str, end: int) -> None:
        self._matcher, self._what, self._end = matcher, what, end

    def allows(self, token: int) -> bool:
        """Whether this token may come next."""
        self._check()
        with self._refusing():
            return token == self._end if self._matcher.is_stopped() else self._matcher.validate_tokens([token]) == 1

    def mask(self) -> bytes:
        """A bit for each token that may come next, the lowest bit of a byte first."""
        with self._refusing():
            mask = self._matcher.compute_bitmask()
        self._check()
        return mask

    def take(self, token: int) -> None:
        """The token that came."""
        with self._refusing():
            self._matcher.consume_token(token)
        self._check()

    def _refusing(self) -> AbstractContextManager[None]:
        return refuse_panics(f"{self._what}: expected a schema that an answer can be held to")

    def _check(self) -> None:
        if self._matcher.is_error():
            dear = self._matcher.stop_reason() in _TOO_DEAR
            got = "one that takes more" if dear else _said(self._matcher)
            raise BadInput(f"{self._what}: expected a schema within what a token may cost, got: {got}")


def _said(matcher: LLMatcher) -> str:
    return " ".join(matcher.get_error().split())[:200]


def write_schema_grammar(schema: Mapping[str, Any]) -> str:
    """An answer that is JSON of this schema."""
    return f"start: {_write_json(schema, _LOOSE)}\n"


def write_call_grammar(
    chat: Chat,
    tools: Sequence[Mapping[str, Any]],
    *,
    most: int,
    may_speak: bool = False,
    schema: Mapping[str, Any] | None = None,
) -> str:
    """An answer of 1 to `most` calls of these tools, as the template writes them. `schema`: or else JSON of it;
    `may_speak`: or text before them, or alone."""
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
        rules = [f"start: said | {_lead_in(chat, form)} body{more} {after} blank", *rules[1:], r"blank: /\s*/", _SAID]
        if _literal(chat, form.marker) == json.dumps(form.marker):
            rules.append(f"lead[lazy]: TEXT {json.dumps(form.marker)}")
    return "\n".join([*rules, ""])


_SAID = "said: TEXT\nTEXT: /(.|\\n)*/"


def _lead_in(chat: Chat, form: CallForm) -> str:
    """Any text up to the marker of calls, and what the template writes behind that."""
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
    """A call's body as a schema. References within the tool's schema are moved to where it stands now."""
    parameters = function.get("parameters") or ANY_OBJECT
    said = {
        "name": {"const": function["name"]},
        "type": {"const": "function"},
        "id": {"type": "string", "pattern": f"^{ID}$"},
    }
    members = {name: said.get(name, parameters) for name in form.members}
    moved = next((name for name in form.members if name not in said), "arguments")
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
    """BadInput for a schema that takes longer to read than llguidance's own limits say: too many patterns, by
    themselves or joined, too long lists, or multiples of too large numbers."""
    patterns, items, joined = 0, 0, False
    for one in _walk(schema):
        patterns += sum(name in one for name in _PATTERNS)
        patterns += len(more) if isinstance(more := one.get("patternProperties"), dict) else 0
        # A number below 0, wherever it stands, takes nothing off.
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
    """The same for the multiples of a schema, or of all tools of a request together."""
    found = list(_walk(schemas))
    multiples = [_count_states(more) for one in found if isinstance(more := one.get("multipleOf"), int | float)]
    joined = any(map(_joins, found))
    if (math.prod if joined else sum)(multiples) > MAX_MULTIPLES:
        how = "multiplied, since some are joined by allOf, anyOf or $ref" if joined else "together"
        raise BadInput(f"schema: expected at most {MAX_MULTIPLES} for all multipleOf {how}, got more")


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in it."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one


def _count_states(multiple: float) -> int:
    """Of an automaton for its multiples, at most: of 0.25 as of 25."""
    number = Decimal(str(multiple))
    return max(1, abs(int(number)), int("".join(map(str, number.as_tuple().digits))))


def _joins(schema: Mapping[str, Any]) -> bool:
    """Whether an answer must be of more than one schema at once."""
    combined = [name for name in _COMBINED if name in schema]
    several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    return several or bool(combined and schema.keys() - _REMARKS - set(combined[:1]))


def _write_json(schema: Mapping[str, Any], spaces: Mapping[str, Any]) -> str:
    """In a grammar; `x-guidance` of a caller's would loosen what it is held to."""
    check_cost(schema)
    return f"%json {json.dumps({**schema, 'x-guidance': spaces})}"


def _literal(chat: Chat, text: str) -> str:
    """Text in a grammar, its control tokens by their ids; nothing where there is none."""
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
