"""A tokenizer that takes more than linear work, or makes a text many times as long, is refused before it is used."""

from __future__ import annotations

import json
import time
import unicodedata
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from appliance.errors import BadInput
from appliance.ml.model.chat import load_chat
from appliance.ml.model.tokenizer import _O200K, check_pattern, check_tokenizer, is_linear
from scripts.kit.tiny_model import build_tokenizer

SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PUBLISHED = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-3": rf"{WORDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}",
    "qwen-2": rf"{WORDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}",
    "marks": rf"{WORDS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}",
    "o200k": _O200K,
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + SPACES,
    "han": "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "digits": r"\p{N}{1,3}",
    "three-digits": "[0-9][0-9][0-9]",
    "letters": r"\s?\p{L}+",
    "spaces": " {2,}",
    "tried-little": "a?" * 5 + "y|a",
    "escaped": r"<\|im_start\|>|\.\.\.",
}
BACKTRACKING = {
    "nested": "(a+)+$",
    "nested-class": r"(?:\p{L}+)+!",
    "alternatives": "(a|a)*b",
    "optional": "a?a?a?a*a*b",
    "twice": r"\s*\s*x",
    "then-something": r"\p{L}+!",
    "then-repeated": r"\s+\p{L}+",
    "spaces-without-the-rest": r"\s*[\r\n]+",
    "lookahead": r"\p{L}+(?!\S)",
    "lookbehind": "(?<=a+)b",
    "reference": r"(a*)\1b",
    "recursion": r"(?<x>a\g<x>?b)",
    "any": ".*x",
    "repeated-words": "(?i:'a|'aa)+",
    "long": "a" * 3_000,
    "many-optional": "~?" * 22 + "y|~|[^~]+",
    "many-bounded": "~{0,99}" * 3 + "y|~|[^~]+",
    "bounded-then-something": "~{1,40}y|~",
    "optional-words": f"{WORDS}?" * 3 + "x|y",
    "long-then-something": "a{99}" * 3 + "b|a",
    "many-alternatives": "|".join(f"aaaa{letter}" for letter in "bcdefghijklmnopqrstuvwxyz" * 3),
    "spaces-one-by-one": r"\s*[\r\n]+| |\s+(?!\S)|\s+",
    "spaces-in-another-order": r"\s*[\r\n]+|\s+|\s+(?!\S)",
    "nested-class-operators": "[a[b]]+",
    "half": "[a",
}


@pytest.mark.thorough
@pytest.mark.parametrize("pattern", PUBLISHED.values(), ids=PUBLISHED)
def test_the_patterns_of_published_models_are_taken_and_are_linear(pattern: str) -> None:
    check_pattern(pattern, "pre_tokenizer")
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    for text in (" ", "\n", "a", "A", "1", "'", "!", "漢", "\u0301", "\n ", " \n", "a!", "aA", "'s", " a", "\r\u3000"):
        for end in ("", "a", "!", " ", "\n"):
            began = time.thread_time()
            split.pre_tokenize_str(text * (40_000 // len(text)) + end)
            assert time.thread_time() - began < 2, (text, end)


@pytest.mark.parametrize("pattern", BACKTRACKING.values(), ids=BACKTRACKING)
def test_a_pattern_that_may_backtrack_is_refused(pattern: str) -> None:
    assert not is_linear(pattern)
    with pytest.raises(BadInput, match="expected a pre_tokenizer whose patterns cannot backtrack"):
        check_pattern(pattern, "pre_tokenizer")


def split_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def doubling(times: int) -> dict[str, Any]:
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [one] * times}


def token(content: str, number: int) -> dict[str, Any]:
    return {"id": number, "content": content, "special": True}


def mapped(texts: bytes, trie: bytes = bytes(4)) -> dict[str, Any]:
    """Return a map of characters as SentencePiece has it."""
    data = len(trie).to_bytes(4, "little") + trie + texts
    return {"type": "Precompiled", "precompiled_charsmap": b64encode(data).decode()}


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "split": (lambda t: t.update(pre_tokenizer=split_by("(a+)+$")), "cannot backtrack"),
    "in-a-sequence": (
        lambda t: t.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [split_by("(a+)+$")]}),
        "cannot backtrack",
    ),
    "normalizer": (
        lambda t: t.update(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}),
        "a normalizer whose patterns",
    ),
    "decoder": (
        lambda t: t.update(decoder={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}),
        "a decoder whose patterns",
    ),
    "longer": (lambda t: t.update(normalizer=doubling(8)), "at most 64 times as long"),
    "longer-decoded": (
        lambda t: t.update(decoder={"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 5}),
        "a decoder that makes a text at most 4 times as long",
    ),
    "prepended": (lambda t: t.update(normalizer={"type": "Prepend", "prepend": "a" * 100}), "64 times as long"),
    "mapped": (lambda t: t.update(normalizer=mapped(b"a\0" + b"b" * 65 + b"\0")), "at most 64 times as long"),
    "mapped-without-end": (lambda t: t.update(normalizer=mapped(b"a\0" + b"b" * 65)), "at most 64 times as long"),
    "mapped-and-longer": (
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [mapped(b"b" * 60), doubling(1)]}),
        "at most 64 times as long",
    ),
    "torn-map": (
        lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
        "map of characters is whole",
    ),
    "no-map": (lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "a"}), "is base64"),
    "empty-text": (
        lambda t: t.update(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "a"}),
        "some text",
    ),
    "words": (lambda t: t["model"].update(type="WordPiece", max_input_chars_per_word=200), "words of at most 100"),
    "pieces": (
        lambda t: t["model"].update(type="Unigram", vocab=[["a" * n, -1.0] for n in range(1, 99)]),
        "tokens of at most 64 characters in a Unigram",
    ),
    "components": (
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 16}),
        "at most 16 components",
    ),
    "model": (lambda t: t["model"].update(type="Other"), "a model of BPE"),
    "token": (lambda t: t["model"]["vocab"].update({"a" * 10_000: 999}), "tokens of at most"),
    "control-tokens": (lambda t: t.update(added_tokens=[token(f"<{n}>", n) for n in range(2_000)]), "control tokens"),
    "empty-control-token": (lambda t: t.update(added_tokens=[token("", 0)]), "none of them empty"),
    "chance": (lambda t: t["model"].update(dropout=0.1), "depend on chance"),
}


@pytest.mark.parametrize(("spoil", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_tokenizer_that_cannot_be_bounded_is_refused_by_name(
    spoil: Callable[[dict[str, Any]], object], message: str
) -> None:
    value = json.loads(build_tokenizer().to_str())
    check_tokenizer(value)
    spoil(value)
    with pytest.raises(BadInput, match=f"tokenizer.json: expected .*{message}"):
        check_tokenizer(value)


def test_a_panic_of_the_tokenizer_is_that_texts_error_and_nobody_elses(base_folder: Path) -> None:
    """As for a base that an earlier release imported."""
    chat = load_chat(base_folder)
    value = json.loads(chat.tokenizer.to_str()) | {"pre_tokenizer": split_by("(a+)+$")}
    spoilt = replace(chat, tokenizer=Tokenizer.from_str(json.dumps(value)))
    with pytest.raises(BadInput, match="expected to tokenize this text, got: Onig"):
        spoilt.encode("a" * 5_000 + "b")
    with pytest.raises(BadInput, match="expected to tokenize this text, got: Onig"):
        spoilt.encode_all(["a pay", "a" * 5_000 + "b"])
    assert spoilt.encode("a pay") == spoilt.encode_all(["a pay"])[0]


def test_a_map_of_characters_as_published_models_have_it_is_taken() -> None:
    """The longest text that a character becomes in NFKC, U+FDFA, has 33 bytes."""
    longest = unicodedata.normalize("NFKC", "\ufdfa").encode()
    value = json.loads(build_tokenizer().to_str())
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
    check_tokenizer(value | {"normalizer": {"type": "Sequence", "normalizers": [mapped(longest + b"\0"), spaces]}})
