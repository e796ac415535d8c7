"""What a tokenizer may do to a text: linear work, and not many times its length. No torch.

A regular expression that backtracks can run for hours, or end the process: Oniguruma panics at its limit. The text
triggers it, long after the import, so such an expression is refused at the import, by its form.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

from appliance.errors import BadInput
from appliance.ml.model.bounds import MAX_TOKEN_BYTES, MAX_VOCABULARY

MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
MAX_CONTROL_TOKENS = 1_024
_MAX_PATTERN = 2_048
_MAX_COMPONENTS = 64
_MAX_GROWTH = 64
_MAX_WORD = 1_000
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")

_CLASS = r"\[(?:[^\[\]\\]|\\p\{\^?\w{1,32}\}|\\.)+\]"
_WORDS = r"\(\?i:'[a-z]{1,2}(?:\|'[a-z]{1,2})*\)"
_ATOM = rf"{_CLASS}|{_WORDS}|\(\?!\\S\)|\\p\{{\^?\w{{1,32}}\}}|\\[rnstdwSDW]|\\[^\w\s]|[^\\\[\](){{}}*+?|^$.]"
_PART = re.compile(rf"(?P<bar>\|)|(?P<atom>{_ATOM})(?P<times>[*+?]\+?|\{{[0-9]{{1,2}}(?:,[0-9]{{0,2}})?\}})?")
_SPACES = (r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)")
_O200K = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)
_KNOWN = (_O200K,)


def check_tokenizer(value: Any) -> None:
    """BadInput names what in a tokenizer.json cannot be bounded."""
    if not isinstance(value, dict) or not isinstance(model := value.get("model"), dict):
        raise _refuse("an object with a model", type(value).__name__)
    if model.get("dropout"):
        raise _refuse("tokens that do not depend on chance", "a dropout")
    # A file of an early release leaves out that it is BPE.
    if (kind := model.get("type", "BPE")) not in MODELS:
        raise _refuse(f"a model of {', '.join(MODELS)}", repr(kind)[:40])
    word = model.get("max_input_chars_per_word", 0)
    if type(word) is not int or not 0 <= word <= _MAX_WORD:
        raise _refuse(f"words of at most {_MAX_WORD} characters", repr(word)[:40])
    _check_vocabulary(model.get("vocab"))
    _check_added(value.get("added_tokens") or [])
    for part in _PARTS:
        _check_part(value.get(part), part)


def check_size(value: Any, words: int) -> None:
    """BadInput where a text can become a token that the model has no embedding for.

    A control token may be one: none is in a text, and Gemma 3 has one for images.
    """
    vocabulary, added = value["model"].get("vocab"), value.get("added_tokens") or []
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {str(place): place for place in range(len(vocabulary))}
    ids |= {token.get("content"): token.get("id") for token in added}
    control = {token.get("content") for token in added if token.get("special")}
    for content, place in ids.items():
        if type(place) is not int or not (0 <= place < words or content in control):
            raise _refuse(f"token ids below the embedding's {words} (vocab_size)", f"{place!r:.40} for {content!r:.40}")


def _check_vocabulary(vocabulary: Any) -> None:
    if not isinstance(vocabulary, dict | list) or len(vocabulary) > MAX_VOCABULARY:
        size = len(vocabulary) if isinstance(vocabulary, dict | list) else type(vocabulary).__name__
        raise _refuse(f"a vocabulary of at most {MAX_VOCABULARY} tokens", str(size))
    for token in vocabulary:
        text = token[0] if isinstance(token, list) and token else token
        if not isinstance(text, str) or len(text.encode("utf-8", "replace")) > MAX_TOKEN_BYTES:
            raise _refuse(f"tokens of at most {MAX_TOKEN_BYTES} bytes", repr(text)[:40])


def _check_added(tokens: Any) -> None:
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise _refuse("a list of objects as added tokens", repr(tokens)[:40])
    _check_vocabulary([token.get("content") for token in tokens])
    control = [token for token in tokens if token.get("special")]
    if len(control) > MAX_CONTROL_TOKENS or not all(token["content"] for token in control):
        raise _refuse(f"at most {MAX_CONTROL_TOKENS} control tokens, none of them empty", str(len(control)))


def _check_part(part: Any, what: str) -> None:
    growth = 1
    for place, (name, value) in enumerate(_members(part), start=1):
        if place > _MAX_COMPONENTS * 16:
            raise _refuse(f"a {what} of few components", "many")
        if name == "Regex":
            check_pattern(value, what)
        elif name == "String" and value == "":
            raise _refuse(f"a {what} that looks for some text", "an empty one")
        elif name in ("content", "prepend") and isinstance(value, str):
            growth *= max(1, len(value))
        elif name == "precompiled_charsmap":
            growth *= _longest_replacement(value, what)
    if growth > _MAX_GROWTH:
        raise _refuse(f"a {what} that makes a text at most {_MAX_GROWTH} times as long", str(growth))


def _longest_replacement(charsmap: Any, what: str) -> int:
    """Bytes that a character becomes at most: SentencePiece's map has the size of a trie, the trie, and what its values
    point into, texts that end with a zero."""
    if charsmap is None:
        return 1
    try:
        data = b64decode(charsmap, validate=True)
    except (ValueError, TypeError):
        raise _refuse(f"a {what} whose map of characters is base64", repr(charsmap)[:40]) from None
    trie = int.from_bytes(data[:4], "little")
    if len(data) < 4 + trie:
        raise _refuse(f"a {what} whose map of characters is whole", f"{len(data)} bytes, of which a trie has {trie}")
    return max(1, *map(len, data[4 + trie :].split(b"\0")))


def _members(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every text and number, under the name of its member."""
    if depth > 16:
        raise _refuse("components at most 16 deep", "more")
    if isinstance(value, dict):
        for key, member in value.items():
            # What the template of a post-processor writes is never asked for.
            if key != "special_tokens":
                yield from _members(member, key, depth + 1)
    elif isinstance(value, list):
        for member in value:
            yield from _members(member, name, depth + 1)
    else:
        yield name, value


def check_pattern(pattern: Any, what: str) -> None:
    """BadInput for a regular expression that may backtrack."""
    if not isinstance(pattern, str) or not (pattern in _KNOWN or is_linear(pattern)):
        raise _refuse(f"a {what} whose patterns cannot backtrack, as published models have", repr(pattern)[:200])


def is_linear(pattern: str) -> bool:
    """Whether nothing that follows a repetition can fail, in any alternative, so that none is ever tried again.

    The usual ways to split spaces do fail, but only where the last ones take all of them at once.
    """
    if len(pattern) > _MAX_PATTERN:
        return False
    branches: list[list[tuple[str, str]]] = [[]]
    end = 0
    for found in _PART.finditer(pattern):
        if found.start() != end:
            return False
        end = found.end()
        if found["bar"]:
            branches.append([])
        else:
            branches[-1].append((found["atom"], found["times"] or ""))
    written = ["".join(atom + times for atom, times in branch) for branch in branches]
    spaces = _SPACES if {r"\s+(?!\S)", r"\s+"} <= set(written) else ()
    return end == len(pattern) and all(
        text in spaces or _ends_at_once(branch) for text, branch in zip(written, branches, strict=True)
    )


def _ends_at_once(branch: list[tuple[str, str]]) -> bool:
    repeated = False
    for atom, times in branch:
        if repeated and times.rstrip("+") not in ("*", "?"):
            return False
        if times.startswith(("*", "+")) or times.endswith(",}"):
            if atom.startswith("("):
                return False
            repeated = True
    return True


def _refuse(expected: str, got: str) -> BadInput:
    return BadInput(f"base, tokenizer.json: expected {expected}, got {got}")
