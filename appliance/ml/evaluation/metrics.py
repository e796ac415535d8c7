"""Metrics of responses, computed exactly and written as decimal text. No torch."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

from appliance.errors import BadInput

_PLACES = Decimal("0.000001")
_MOST_NATS = 20.0
_PUNCTUATION = frozenset(string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
"""Characters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Hiragana, Katakana and Chinese."""


def accuracy(expected: Sequence[str], answered: Sequence[str]) -> Fraction:
    """Return the share of rows with the expected response."""
    _check(expected, answered)
    return Fraction(sum(a == b for a, b in zip(expected, answered, strict=True)), len(expected))


def majority(expected: Sequence[str]) -> Fraction:
    """Return the accuracy of always responding with the most frequent label."""
    _check(expected, expected)
    return Fraction(max(Counter(expected).values()), len(expected))


def macro_f1(expected: Sequence[str], answered: Sequence[str]) -> Fraction:
    """Return the mean of F1 over the labels that were expected or given; F1 is 0 for a label without hits."""
    _check(expected, answered)
    labels = sorted(set(expected) | set(answered))
    return sum((_f1(label, expected, answered) for label in labels), Fraction(0)) / len(labels)


def _f1(label: str, expected: Sequence[str], answered: Sequence[str]) -> Fraction:
    hits = sum(a == b == label for a, b in zip(expected, answered, strict=True))
    # 2 precision recall / (precision + recall), in one fraction.
    return Fraction(2 * hits, expected.count(label) + answered.count(label))


def _check(expected: Sequence[str], answered: Sequence[str]) -> None:
    if not expected or len(expected) != len(answered):
        raise BadInput(
            f"metrics: expected as many answers as rows, at least one, got {len(answered)} of {len(expected)}"
        )


def encode_metric(value: Fraction) -> str:
    """Return a fraction with six decimals, rounded half to even, such as `0.812500`."""
    decimal = Decimal(value.numerator) / Decimal(value.denominator)
    return str(decimal.quantize(_PLACES, rounding=ROUND_HALF_EVEN))


def summarize(expected: Sequence[str], answered: Sequence[str]) -> dict[str, str | int]:
    """Return the metrics of a classification."""
    return {
        "accuracy": encode_metric(accuracy(expected, answered)),
        "macro_f1": encode_metric(macro_f1(expected, answered)),
    }


def summarize_majority(expected: Sequence[str]) -> dict[str, str | int]:
    """Return the accuracy of a classification without a model, which a useful model exceeds."""
    return {"accuracy": encode_metric(majority(expected)), "rows": len(expected)}


def summarize_loss(total: float, tokens: int) -> dict[str, str | int]:
    """Return the mean cross-entropy of a trained token in nats, and the perplexity.

    Raises:
        BadInput: there are no trained tokens.
    """
    if tokens < 1:
        raise BadInput("metrics: expected trained tokens in the held-out rows, got none", code="nothing-to-train")
    loss = total / tokens
    # The perplexity is capped: far above the size of a vocabulary it has no meaning.
    return {"loss": f"{loss:.6f}", "perplexity": f"{math.exp(min(loss, _MOST_NATS)):.6f}", "trained_tokens": tokens}


def summarize_margins(margins: Sequence[int], scale: int) -> dict[str, str | int]:
    """Return the share of preferences with a margin above 0, and the mean margin.

    `margins` are integers in units of 1/`scale`.
    """
    return {
        "accuracy": encode_metric(Fraction(sum(margin > 0 for margin in margins), len(margins))),
        "margin": encode_metric(Fraction(sum(margins), len(margins) * scale)),
    }


def summarize_calls(right: Sequence[bool]) -> dict[str, str | int]:
    """Return the share of chats with tools whose calls are those of the row."""
    return {"call_match": encode_metric(Fraction(sum(right), len(right)))}


def summarize_answers(expected: Sequence[str], answered: Sequence[str]) -> dict[str, str | int]:
    """Return SQuAD's metrics of question answering: the share of exact matches, and the mean F1 of the words."""
    pairs = _pair(expected, answered)
    matches = sum(normalise(a) == normalise(b) for a, b in pairs)
    return {
        "exact_match": encode_metric(Fraction(matches, len(pairs))),
        "token_f1": encode_metric(sum((token_f1(a, b) for a, b in pairs), Fraction(0)) / len(pairs)),
    }


def summarize_summaries(expected: Sequence[str], answered: Sequence[str]) -> dict[str, str | int]:
    """Return the mean ROUGE-L of the summaries."""
    pairs = _pair(expected, answered)
    return {"rouge_l": encode_metric(sum((rouge_l(a, b) for a, b in pairs), Fraction(0)) / len(pairs))}


def _pair(expected: Sequence[str], answered: Sequence[str]) -> list[tuple[str, str]]:
    _check(expected, answered)
    return list(zip(expected, answered, strict=True))


def normalise(text: str) -> str:
    """Return SQuAD's normal form of a text, extended to all scripts like MLQA's.

    The text is lower-case, without punctuation and English articles, with single spaces. In a script without spaces
    between words each character is a word.
    """
    parts: list[str] = []
    after = False
    for character in text.lower():
        category = unicodedata.category(character)
        if character in _PUNCTUATION or category.startswith("P"):
            continue
        # A combining mark, such as a vowel sign, belongs to the preceding character.
        if not category.startswith("M"):
            unspaced = _UNSPACED.match(character) is not None
            parts += [" "] if unspaced or after else []
            after = unspaced
        parts.append(character)
    return " ".join(_ARTICLES.sub(" ", "".join(parts)).split())


def token_f1(expected: str, answered: str) -> Fraction:
    """Return the F1 of the words in common, with multiplicity; two empty texts agree."""
    mine, theirs = normalise(expected).split(), normalise(answered).split()
    if not mine or not theirs:
        return Fraction(int(mine == theirs))
    return Fraction(2 * (Counter(mine) & Counter(theirs)).total(), len(mine) + len(theirs))


def split_words(text: str) -> list[str]:
    """Return the sequences of letters and digits, in lower case.

    A combining mark, such as a vowel sign, belongs to the preceding character. In a script without spaces between words
    each character is a word.
    """
    words: list[str] = []
    inside = is_continued = False
    for character in text.lower():
        if unicodedata.category(character).startswith("M"):
            if inside:
                words[-1] += character
            continue
        unspaced = _UNSPACED.match(character) is not None
        inside = character.isalnum()
        if inside and is_continued and not unspaced:
            words[-1] += character
        elif inside:
            words.append(character)
        is_continued = inside and not unspaced
    return words


def rouge_l(expected: str, answered: str) -> Fraction:
    """Return ROUGE-L, the F1 of the longest common subsequence of words, without stemming."""
    mine, theirs = split_words(expected), split_words(answered)
    if not mine or not theirs:
        return Fraction(0)
    lengths = [0] * (len(theirs) + 1)
    for word in mine:
        diagonal = 0
        for place, other in enumerate(theirs, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return Fraction(2 * lengths[-1], len(mine) + len(theirs))
