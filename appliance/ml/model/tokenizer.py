"""Bounds on a tokenizer: linear work, and output of a bounded multiple of the text's length. No torch.

A regular expression that backtracks can run for hours, or end the process, as Oniguruma panics at its limit. A text can
trigger that long after the import, so the import refuses such expressions by their form.
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
_MAX_TRIED = 256
_MAX_COMPONENTS = 16
_MAX_MEMBERS = 1_024
_MAX_GROWTH = 64
_MAX_DECODED_GROWTH = 4
"""Largest growth of a text by a decoder, which runs again at each generated token."""
_MAX_WORD = 100
"""Largest number of characters of a word in WordPiece, whose work per word is quadratic."""
_MAX_PIECE = 64
"""Largest number of characters of a token in Unigram, which tries so many at each position; published ones have 16."""
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")

_CLASS = r"\[(?:[^\[\]\\]|\\p\{\^?\w{1,32}\}|\\.)+\]"
_WORDS = r"\(\?i:'[a-z]{1,2}(?:\|'[a-z]{1,2})*\)"
_ATOM = rf"{_CLASS}|{_WORDS}|\(\?!\\S\)|\\p\{{\^?\w{{1,32}}\}}|\\[rnstdwSDW]|\\[^\w\s]|[^\\\[\](){{}}*+?|^$.]"
_PART = re.compile(rf"(?P<bar>\|)|(?P<atom>{_ATOM})(?P<times>[*+?]\+?|\{{[0-9]{{1,2}}(?:,[0-9]{{0,2}})?\}})?")
_SPACES = (r"\s*[\r\n]+", r"\s*[\r\n]")
_BEFORE_TEXT = r"\s+(?!\S)"
_O200K = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)
_KNOWN = (_O200K,)


def check_tokenizer(value: Any) -> None:
    """Check that the components of a tokenizer.json are bounded.

    Raises:
        BadInput: a component is not; the message names it.
    """
    if not isinstance(value, dict) or not isinstance(model := value.get("model"), dict):
        raise _refuse("an object with a model", type(value).__name__)
    if model.get("dropout"):
        raise _refuse("tokens that do not depend on chance", "a dropout")
    # Files of early releases omit the type BPE.
    if (kind := model.get("type", "BPE")) not in MODELS:
        raise _refuse(f"a model of {', '.join(MODELS)}", repr(kind)[:40])
    word = model.get("max_input_chars_per_word", 0)
    if type(word) is not int or not 0 <= word <= _MAX_WORD:
        raise _refuse(f"words of at most {_MAX_WORD} characters", repr(word)[:40])
    _check_vocabulary(model.get("vocab"))
    if kind == "Unigram" and (longest := max(map(_measure_piece, model["vocab"]), default=0)) > _MAX_PIECE:
        raise _refuse(f"tokens of at most {_MAX_PIECE} characters in a Unigram model", str(longest))
    _check_added(value.get("added_tokens") or [])
    for part in _PARTS:
        _check_part(value.get(part), part)


def _measure_piece(token: Any) -> int:
    """Return the characters of a token, which a Unigram model has as [text, score]."""
    return len(token[0] if isinstance(token, list) and token else token)


def check_size(value: Any, words: int) -> None:
    """Check that every token of a text has a row in the embedding, which has `words` rows.

    Control tokens are exempt: they do not occur in texts, and Gemma 3 has one for images.

    Raises:
        BadInput: a token id is outside the embedding.
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
    growth, components = 1, 0
    for place, (name, value) in enumerate(_walk_members(part), start=1):
        components += name == "type"
        if place > _MAX_MEMBERS or components > _MAX_COMPONENTS:
            raise _refuse(f"a {what} of at most {_MAX_COMPONENTS} components", "more")
        if name == "Regex":
            check_pattern(value, what)
        elif name == "String" and value == "":
            raise _refuse(f"a {what} that looks for some text", "an empty one")
        elif name in ("content", "prepend") and isinstance(value, str):
            growth *= max(1, len(value))
        elif name == "precompiled_charsmap":
            growth *= _longest_replacement(value, what)
    most = _MAX_DECODED_GROWTH if what == "decoder" else _MAX_GROWTH
    if growth > most:
        raise _refuse(f"a {what} that makes a text at most {most} times as long", str(growth))


def _longest_replacement(charsmap: Any, what: str) -> int:
    """Return the largest number of bytes that replace a character.

    A SentencePiece map is the size of a trie, the trie, and the zero-terminated texts that its values point to.
    """
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


def _walk_members(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield every text and number with the name of its field."""
    if depth > 16:
        raise _refuse("components at most 16 deep", "more")
    if isinstance(value, dict):
        for key, member in value.items():
            # The template of a post-processor is never applied.
            if key not in ("special_tokens", "single", "pair"):
                yield from _walk_members(member, key, depth + 1)
    elif isinstance(value, list):
        for member in value:
            yield from _walk_members(member, name, depth + 1)
    else:
        yield name, value


def check_pattern(pattern: Any, what: str) -> None:
    """Check a regular expression of a tokenizer.

    Raises:
        BadInput: the expression may backtrack.
    """
    if not isinstance(pattern, str) or not (pattern in _KNOWN or is_linear(pattern)):
        raise _refuse(f"a {what} whose patterns cannot backtrack, as published models have", repr(pattern)[:200])


def is_linear(pattern: str) -> bool:
    """Return True if a search for the pattern is linear in the text.

    In each alternative, nothing that follows an unbounded repetition can fail, and all alternatives together try at
    most `_MAX_TRIED` characters at a position before they fail. Every part of variable length counts as a repetition,
    `?` and `{0,99}` too. The usual ways to split spaces do fail after a repetition; they are allowed directly before
    the two alternatives that match the same spaces.
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
    spaces = _find_space_splits(["".join(atom + times for atom, times in branch) for branch in branches])
    tried = [_count_tried(branch) for place, branch in enumerate(branches) if place not in spaces]
    return end == len(pattern) and None not in tried and sum(count or 0 for count in tried) <= _MAX_TRIED


def _find_space_splits(written: list[str]) -> range:
    """Return the indices of the alternatives that may fail after a repetition of spaces."""
    for place in range(len(written) - 1):
        if written[place : place + 2] == [_BEFORE_TEXT, r"\s+"]:
            first = place
            while first and written[first - 1] in _SPACES:
                first -= 1
            return range(first, place + 1)
    return range(0)


def _count_tried(branch: list[tuple[str, str]]) -> int | None:
    """Return the largest number of characters that an alternative tries before it fails; None if unbounded."""
    last = max((place for place, (_, times) in enumerate(branch) if _read_times(times)[0]), default=-1)
    tries, length = 1, 0
    for place, (atom, times) in enumerate(branch):
        least, most = _read_times(times)
        if atom.startswith("(") and times not in ("", "?"):
            return None
        if place < last and most is None:
            return None
        if place < last:
            tries *= (most or 0) - least + (atom.count("|") + 1)
        length += len(atom) if atom.startswith("(") else (most or 0) if place < last else least
    return tries * length


def _read_times(times: str) -> tuple[int, int | None]:
    """Return the smallest and largest number of repetitions; the largest is None if unbounded."""
    plain = {"": (1, 1), "?": (0, 1), "*": (0, None), "+": (1, None)}
    if (found := plain.get(times[:1])) is not None:
        return found
    least, comma, most = times.strip("{}").partition(",")
    return int(least), int(most) if most else None if comma else int(least)


def _refuse(expected: str, got: str) -> BadInput:
    return BadInput(f"base, tokenizer.json: expected {expected}, got {got}")
