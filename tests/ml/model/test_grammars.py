"""Grammars of responses: masks by token, bounds on the cost of a schema, and independence of other responses."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BadInput
from appliance.ml.model.chat import Chat
from appliance.ml.model.grammars import Matcher, Vocabulary, write_call_grammar, write_schema_grammar
from scripts.kit.tool_templates import TEMPLATES
from tests.kit.toolful import TOOLS, toolful_chat

COST_S = 2.0
"""Of the processor; what this guards against took minutes."""
ANSWER = {
    "type": "object",
    "properties": {"kind": {"enum": ["payment", "secrecy"]}, "most": {"type": "integer"}},
    "required": ["kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chat]:
    folder = tmp_path_factory.mktemp("chats")
    return {form: toolful_chat(folder / form, form) for form in TEMPLATES}


@pytest.fixture(scope="module")
def vocabularies(chats: dict[str, Chat]) -> dict[str, Vocabulary]:
    return {form: Vocabulary(chat, chat.tokenizer.get_vocab_size() + 7) for form, chat in chats.items()}


def follow(chat: Chat, matcher: Matcher, text: str) -> tuple[str, bool]:
    """How much of a text may come, and whether the answer may end there."""
    taken: list[int] = []
    for token in chat.encode(text):
        assert matcher.allows(token) == bool(matcher.mask()[token // 8] >> token % 8 & 1)
        if not matcher.allows(token):
            break
        matcher.take(token)
        taken.append(token)
    return chat.decode(taken), any(map(matcher.allows, chat.stop_ids()))


@pytest.mark.parametrize(
    ("text", "may_come", "ends"),
    [
        ('{"kind": "payment"}', '{"kind": "payment"}', True),
        ('{"kind":"secrecy", "most": 12}', '{"kind":"secrecy", "most": 12}', True),
        ('{"kind": "payment"', '{"kind": "payment"', False),
        ('{"most": 1', '{"', False),
        ("Sure: {", "", False),
        ("\n\n\n{", "", False),
        ('{"kind": "other"', '{"kind": "', False),
        ("<|im_start|>system", "", False),
    ],
)
def test_an_answer_is_held_to_its_schema(
    text: str, may_come: str, ends: bool, chats: dict[str, Chat], vocabularies: dict[str, Vocabulary]
) -> None:
    matcher = vocabularies["hermes"].match(write_schema_grammar(ANSWER), "schema")
    assert follow(chats["hermes"], matcher, text) == (may_come, ends)


@pytest.mark.parametrize("form", TEMPLATES)
def test_a_call_that_must_come_is_as_the_template_writes_it(
    form: str, chats: dict[str, Chat], vocabularies: dict[str, Vocabulary]
) -> None:
    chat = chats[form]
    assert chat.calls is not None
    calls = [{"id": "call00000", "type": "function", "function": {"name": "find", "arguments": {"kind": "secrecy"}}}]
    asked = {"role": "user", "content": "x"}
    ((_, answer),) = chat.render_answered([asked, {"role": "assistant", "content": "", "tool_calls": calls}], TOOLS)
    text = answer.removesuffix(chat.end_of_turn)
    must = vocabularies[form].match(write_call_grammar(chat, TOOLS, most=1), "tools")
    assert follow(chat, must, text) == (text, True)
    wrong = vocabularies[form].match(write_call_grammar(chat, TOOLS[1:], most=1), "tools")
    assert follow(chat, wrong, text)[0] != text, "a tool that is not the named one"
    may = vocabularies[form].match(write_call_grammar(chat, TOOLS, most=3, may_speak=True), "tools")
    assert follow(chat, may, text) == (text, True)
    free = vocabularies[form].match(write_call_grammar(chat, TOOLS, most=3, may_speak=True), "tools")
    assert follow(chat, free, "I look") == ("I look", True)
    bad = text.replace("secrecy", "ending")
    strict = vocabularies[form].match(write_call_grammar(chat, TOOLS, most=3, may_speak=True), "tools")
    assert follow(chat, strict, bad)[0] != bad, "arguments that are not of the tool's schema"
    either = vocabularies[form].match(write_call_grammar(chat, TOOLS, most=1, schema=ANSWER), "tools")
    assert follow(chat, either, '{"kind": "payment"}') == ('{"kind": "payment"}', True)


def test_a_reference_within_a_tools_schema_is_followed(
    chats: dict[str, Chat], vocabularies: dict[str, Vocabulary]
) -> None:
    kinds = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/n"}},
        "required": ["a"],
        "$defs": {"n": {"const": 7}},
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": {**kinds, "additionalProperties": False}}}]
    for form in TEMPLATES:
        matcher = vocabularies[form].match(write_call_grammar(chats[form], tools, most=1), "tools")
        assert chats[form].calls is not None
        before = chats[form].calls.before  # type: ignore[union-attr]
        body = {"hermes": '{"name": "f", "arguments": ', "llama": '{"name": "f", "parameters": '}.get(
            form, "f[ARGS]" if form == "mistral-arguments" else '{"name": "f", "arguments": '
        )
        assert follow(chats[form], matcher, f'{before}{body}{{"a": 8')[0] == f'{before}{body}{{"a": '


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "text"},
        {"not": {}},
        {"$ref": "http://127.0.0.1:9/schema"},
        {"$ref": "file:///etc/passwd"},
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": "(?=a)b"},
        {"enum": []},
        {"properties": {"a": {"not": {}, "x-guidance": {"lenient": True}}}},
        {"not": {}, "x-guidance": {"lenient": True}},
    ],
)
def test_a_schema_that_is_none_is_a_bad_request(schema: dict[str, Any], vocabularies: dict[str, Vocabulary]) -> None:
    with pytest.raises(BadInput, match="response_format: expected a JSON schema that an answer can be held to, got: "):
        vocabularies["hermes"].match(write_schema_grammar(schema), "response_format")


def pattern(number: int) -> dict[str, str]:
    return {"pattern": f"a.{{{number}}}"}


def chain(depth: int) -> dict[str, Any]:
    return {**pattern(depth), **({"anyOf": [chain(depth - 1), {}]} if depth else {})}


BOMBS: dict[str, dict[str, Any]] = {
    "patterns joined by allOf": {"allOf": [pattern(number) for number in range(60)]},
    "patterns joined by reference": {
        "$defs": {f"d{n}": {**pattern(n), "$ref": f"#/$defs/d{n + 1}"} for n in range(60)} | {"d60": {}},
        "$ref": "#/$defs/d0",
    },
    "patterns joined by anyOf": chain(25),
    "patterns of members": {"patternProperties": {f"^a{n:03}.*b.*c": {"type": "string"} for n in range(100)}},
    "a pattern of many states": {"type": "string", "pattern": "^(.*a.{500}b.*)(c.{500}d)*$"},
    "repetitions": {"type": "string", "pattern": "((((a{1,99}){1,99}){1,99}){1,99}){1,99}"},
    "alternatives": {"type": "string", "pattern": "|".join("x" * n + f"[a-z]*y{{{n}}}" for n in range(1, 100))},
    "a product": {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(9)]} for i in range(30)]},
    "references": {
        "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)} | {"d60": {}},
        "$ref": "#/$defs/d0",
    },
    "itself": {"$ref": "#"},
    "members": {"properties": {f"k{n}": {"type": "string"} for n in range(800)}},
    "deep": json.loads('{"items":' * 31 + "{}" + "}" * 31),
    "long": {"type": "array", "minItems": 10**9, "items": {"type": "string"}},
    "long lists": {"prefixItems": [{"type": "array", "maxItems": 900, "items": {}}] * 900},
    "long texts": {"type": "array", "minItems": 9_000, "items": {"type": "string", "minLength": 10**9}},
    "a long list beside one below nothing": {
        **{"type": "array", "maxItems": 2 * 10**9, "items": {"type": "string"}},
        "default": {"minItems": -(10**10)},
    },
    "multiples": {"type": "integer", "multipleOf": 9_999_991},
    "multiples of members": {"properties": {f"p{n}": {"type": "integer", "multipleOf": 90_001 + n} for n in range(9)}},
    "multiples joined": {"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83, 79)]},
    "numbers": {"type": "number", "minimum": -1e308, "maximum": 1e308, "multipleOf": 1e-9},
}


@pytest.mark.parametrize(
    ("schema", "is_accepted"),
    [
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, True),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, False),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": False}, True),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, False),
        ({"type": "object", "properties": {"uniqueItems": False}, "additionalProperties": False}, True),
    ],
)
def test_a_keyword_is_accepted_where_it_can_be_enforced_or_changes_nothing(
    vocabularies: dict[str, Vocabulary], schema: dict[str, Any], is_accepted: bool
) -> None:
    with nullcontext() if is_accepted else pytest.raises(BadInput):
        vocabularies["hermes"].match(write_schema_grammar(schema), "response_format")


def test_a_property_that_is_named_as_a_keyword_stays() -> None:
    schema = {"properties": {"uniqueItems": False}, "enum": [{"uniqueItems": False}], "uniqueItems": False}
    written = json.loads(write_schema_grammar(schema).removeprefix("start: %json "))
    assert {name: written[name] for name in schema if name in written} == {
        "properties": {"uniqueItems": False},
        "enum": [{"uniqueItems": False}],
    }


@pytest.mark.thorough
@pytest.mark.parametrize("bomb", BOMBS)
def test_no_schema_takes_longer_than_its_bound(
    bomb: str, chats: dict[str, Chat], vocabularies: dict[str, Vocabulary]
) -> None:
    """To begin, or at any token: it is refused, or ends its own answer, or is held to in time."""
    chat, longest = chats["hermes"], 0.0
    quote, letter = chat.encode('"')[0], chat.encode("a")[0]
    try:
        began = time.process_time()
        matcher = vocabularies["hermes"].match(write_schema_grammar(BOMBS[bomb]), "schema")
        longest = time.process_time() - began
        for number in range(64):
            began = time.process_time()
            mask = matcher.mask()
            allowed = [token for token in (quote if number == 0 else letter, *range(8 * len(mask)))
                       if mask[token // 8] >> token % 8 & 1 and token not in chat.stop_ids()]  # fmt: skip
            if not allowed:
                break
            matcher.take(allowed[0])
            longest = max(longest, time.process_time() - began)
    except BadInput as error:
        longest = max(longest, time.process_time() - began)
        assert error.status == 400 and len(error.message) < 400
    assert longest < COST_S


def test_the_multiples_of_all_tools_are_bounded_together(chats: dict[str, Chat]) -> None:
    schema = {"properties": {"amount": {"type": "integer", "multipleOf": 1_000}}}
    tools = [{"type": "function", "function": {"name": f"t{n}", "parameters": schema}} for n in range(11)]
    assert write_call_grammar(chats["hermes"], tools[:10], most=1)
    with pytest.raises(BadInput, match="at most 10000 for all multipleOf together"):
        write_call_grammar(chats["hermes"], tools, most=1)


def test_a_mask_has_nothing_of_another_answer(chats: dict[str, Chat], vocabularies: dict[str, Vocabulary]) -> None:
    """The tokens that may come are the same, whatever others were held to before or are at work."""
    chat, vocabulary = chats["hermes"], vocabularies["hermes"]
    fresh = Vocabulary(chat, chat.tokenizer.get_vocab_size() + 7)

    def masks(one: Vocabulary, beside: Matcher | None) -> list[bytes]:
        matcher, found = one.match(write_schema_grammar({"type": "object"}), "schema"), []
        for token in chat.encode('{"pay": [1, "due"'):
            if beside is not None:
                beside.mask()
                beside.take(chat.encode('{"word": "due' if not found else "x")[0])
            found.append(matcher.mask())
            matcher.take(token)
        return found

    secret = {
        "type": "object",
        "properties": {"word": {"const": "confide"}},
        "additionalProperties": {"type": "string"},
    }
    alone = masks(fresh, None)
    theirs = vocabulary.match(write_schema_grammar({"type": "string", "enum": ["confide" * 9, "hidden"]}), "schema")
    assert masks(vocabulary, None) == alone
    theirs.mask()
    vocabulary.match(write_schema_grammar(secret), "schema").mask()
    assert masks(vocabulary, None) == alone


def test_a_tokenizer_that_cannot_be_read_is_a_bad_request(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    chat = toolful_chat(tmp_path / "base", "hermes")
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "<|im_end|>": 2}, unk_token="[UNK]"))
    words.add_special_tokens(["<|im_end|>"])
    other = Chat(words, chat.template, chat.variables, chat.control_tokens, chat.end_of_turn)
    with pytest.raises(BadInput, match="response_format: expected a base whose tokens can be held to a schema"):
        Vocabulary(other, 3).match(write_schema_grammar({}), "response_format")
