"""Findings about a file of rows before its import: rows that do not fit, and unusual rows that do; text overlaps.

An import refuses every error listed here, by the same code. People decide about the rest. No torch.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from appliance.domain.data.kinds import DatasetKind, find_similar_labels
from appliance.domain.evaluation.verdict import MANY, Amount, TrainingOverlap
from appliance.errors import BadInput
from appliance.ml.data.rows import (
    HELD_OUT,
    MAX_LABEL_CHARACTERS,
    TRAIN,
    Sides,
    find_empty_splits,
    find_toolless,
    find_wrong_labels,
    known_by,
    render_row,
    same_key,
    tokenize_row,
)
from appliance.ml.data.sources import SourceRecord
from appliance.ml.model.chat import Chat, uses_tools

MOST_ERRORS = 200
MOST_PAIRS = 50
MOST_PLACES = 5
MOST_LABELS = 200
"""Largest number of labels that a check lists, the most frequent ones."""
FEW_LABELS = 20
"""Number of labels that a check lists even if most rows have a distinct label."""
_LONGEST = 400


@dataclass
class Errors:
    """A collection of errors: all are counted, and the first MOST_ERRORS are listed."""

    count: int = 0
    messages: list[str] = field(default_factory=list)

    def add(self, errors: Iterable[BadInput]) -> None:
        for error in errors:
            self.count += 1
            if len(self.messages) < MOST_ERRORS:
                self.messages.append(error.message[:_LONGEST])

    def keep_rows(self, found: Iterable[SourceRecord | BadInput]) -> list[SourceRecord]:
        """Return the records among these and add the errors of the others; an unreadable file ends the list."""
        kept: list[SourceRecord] = []
        try:
            for one in found:
                if isinstance(one, BadInput):
                    self.add([one])
                else:
                    kept.append(one)
        except BadInput as error:
            self.add([error])
        return kept


@dataclass(frozen=True)
class Rendering:
    """The base's template and limits for rendering rows and counting tokens."""

    chat: Chat
    context_length: int
    instruction: str


def examine(
    dataset_kind: DatasetKind,
    sides: Sides,
    errors: Errors,
    declared: Sequence[str],
    rendering: Rendering | None,
    *,
    is_validation_set: bool = False,
) -> dict[str, Any]:
    """Return the findings about the readable rows; `errors` has those of the others and receives more."""
    if sides or not errors.count:  # where no row could be read, that is what is wrong, and nothing else
        if dataset_kind == "classification":
            errors.add(find_wrong_labels(sides, declared, is_validation_set=is_validation_set))
        errors.add(() if is_validation_set else find_empty_splits(dataset_kind, sides))
    lengths = [] if rendering is None else _measure(dataset_kind, sides, errors, rendering)
    counts = _count_labels(sides) if dataset_kind == "classification" else {}
    labels = _list_labels(counts, len(sides))
    similar = find_similar_labels({*labels, *declared})
    repeated = _find_repeated(dataset_kind, sides)
    return {
        "rows": len(sides),
        "train_rows": sum(side == TRAIN for _, side in sides),
        "held_out_rows": sum(side == HELD_OUT for _, side in sides),
        "labels": labels,
        "label_count": len(counts),
        "similar_labels": [[*pair, *_find_rarer(sides, pair)] for pair in similar[:MOST_PAIRS]],
        "duplicates": [list(pair) for pair in repeated[:MOST_PAIRS]],
        "duplicate_count": len(repeated),
        "max_tokens": max(lengths, default=None),
        "mean_tokens": round(sum(lengths) / len(lengths)) if lengths else None,
        "context_length": None if rendering is None else rendering.context_length,
        "errors": sorted(errors.messages, key=_make_sort_key),
        "error_count": errors.count,
        "notes": [*_note_labels(len(counts), len(labels), len(sides)), *_note_characters(dataset_kind, sides)],
    }


def _count_labels(sides: Sides) -> dict[str, dict[str, int]]:
    counted = Counter((source.parts["label"][:MAX_LABEL_CHARACTERS], side) for source, side in sides)
    labels = sorted({label for label, _ in counted})
    return {label: {side: counted[label, side] for side in (TRAIN, HELD_OUT)} for label in labels}


def _list_labels(counts: dict[str, dict[str, int]], rows: int) -> dict[str, dict[str, int]]:
    """Return the labels that a check lists; empty if most rows have a distinct label, since these are texts."""
    if len(counts) > FEW_LABELS and 2 * len(counts) > rows:
        return {}
    frequent = sorted(counts, key=lambda label: -sum(counts[label].values()))[:MOST_LABELS]
    return {label: counts[label] for label in sorted(frequent)}


def _note_labels(count: int, listed: int, rows: int) -> list[str]:
    if count == listed:
        return []
    if not listed:
        return [f"the column of labels seems to hold texts: {count} different ones in {rows} rows; none is listed"]
    return [f"of {count} labels the {listed} most frequent are listed"]


_ZERO_WIDTH = re.compile("[\u00ad\u200b-\u200d\u2060-\u2064\ufeff\U000e0000-\U000e007f]")
_BIDIRECTIONAL = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_UNSEEN = (
    (_ZERO_WIDTH, "characters of no width, such as U+200B or U+00AD; some scripts and emoji need them"),
    (_BIDIRECTIONAL, "characters that control the direction of text, such as U+202E: it can be shown in another order"),
)


def _note_characters(dataset_kind: DatasetKind, sides: Sides) -> list[str]:
    """Count rows with invisible characters, and rows that differ only by Unicode normalisation."""
    texts = [
        "\n".join([*source.parts.values(), *(str(one["content"]) for one in source.messages)]) for source, _ in sides
    ]
    notes = []
    for unseen, what in _UNSEEN:
        if count := sum(unseen.search(text) is not None for text in texts):
            notes.append(f"{count} of {len(sides)} rows have {what}")
    forms: dict[str, Counter[str]] = {}
    for source, _ in sides:
        key = same_key(known_by(dataset_kind, source))
        forms.setdefault(unicodedata.normalize("NFC", key), Counter())[key] += 1
    if count := sum(sum(keys.values()) for keys in forms.values() if len(keys) > 1):
        notes.append(
            f"{count} of {len(sides)} rows have the text of another row in another Unicode normalisation, such as NFC "
            "and NFD; convert the file to NFC"
        )
    return notes


def _find_rarer(sides: Sides, pair: tuple[str, str]) -> tuple[str, str]:
    """Return the rarer of two labels, which may be a misspelling, and the places of its first rows."""
    places: dict[str, list[str]] = {label: [] for label in pair}
    for source, _ in sides:
        if source.parts.get("label") in places:
            places[source.parts["label"]].append(source.place)
    rarer = min(pair, key=lambda label: len(places[label]))
    more = f" and {len(places[rarer]) - MOST_PLACES} more" if len(places[rarer]) > MOST_PLACES else ""
    return rarer, "; ".join(places[rarer][:MOST_PLACES]) + more


_LINE = re.compile(r"^(.*?), (?:line|row) ([0-9]+)")


def _make_sort_key(message: str) -> tuple[bool, str, int]:
    """Return a sort key: messages about a line by file and line, then messages about a whole file."""
    found = _LINE.match(message)
    return (True, "", 0) if found is None else (False, found[1], int(found[2]))


def _find_repeated(dataset_kind: DatasetKind, sides: Sides) -> list[tuple[str, str]]:
    """Return (place, place of the first) for each row whose text occurred before, ignoring case and spacing."""
    seen: dict[str, str] = {}
    pairs = []
    for source, _ in sides:
        first = seen.setdefault(same_key(known_by(dataset_kind, source)), source.place)
        if first != source.place:
            pairs.append((source.place, first))
    return pairs


def _measure(dataset_kind: DatasetKind, sides: Sides, errors: Errors, rendering: Rendering) -> list[int]:
    """Return the number of tokens of each row that can be rendered for the base and fits its context."""
    chat, lengths = rendering.chat, []
    try:
        chat.check_plain(rendering.instruction, "dataset, instruction")
    except BadInput as error:
        errors.add([error])
        return []
    errors.add(find_toolless(sides, chat))
    for index, (source, side) in enumerate(sides):
        if chat.calls is None and uses_tools(source.messages, source.tools):
            continue
        try:
            row = render_row(index, source, side, chat, dataset_kind, rendering.instruction)
            sample = tokenize_row(row, chat, rendering.context_length, source.place, "the base's context")
        except BadInput as error:
            errors.add([error])
        else:
            lengths.append(sample.longest)
    return lengths


SHINGLE = 5
NEAR = 0.8
"""Smallest Jaccard index of texts that count as near duplicates."""
BANDS, BAND_ROWS = 16, 4
MOST_OF_BAND = 64
"""Largest number of candidates that one band contributes, the first training texts of those with an equal hash.

The time per text is thus limited if all texts follow one template. A near duplicate that no band contributes is not
counted, so the real number is at least the count.
"""
MOST_CANDIDATES = 32
"""Number of texts that are compared exactly with one text: those with the most equal signature positions."""
MANY_ROWS = 20
"""Typical number of rows of a blind set from which the verdict is `many`; half of the rows of a set below 40."""
NOISE = 0.15
"""Scale of the Laplace noise on this number, as a share of it."""
_SEED = 20_261_126

Array = Any


def count_overlap(trained: Iterable[str], evaluated: Sequence[str]) -> TrainingOverlap:
    """Count the evaluated texts that equal a training text, ignoring case and spacing, and the near duplicates."""
    known = dict.fromkeys(map(same_key, trained))
    keys = [same_key(text) for text in evaluated]
    others = [key for key in keys if key not in known]
    return TrainingOverlap(len(keys) - len(others), _count_near(list(known), others) if others else 0)


def count_split(rows: Iterable[tuple[str, str]]) -> int:
    """Count the held-out rows of a dataset that equal or nearly equal a training row.

    A row is its text and its split.
    """
    sides: dict[str, list[str]] = {TRAIN: [], HELD_OUT: []}
    for text, side in rows:
        sides[side].append(text)
    return sum(map(int, count_overlap(sides[TRAIN], sides[HELD_OUT])))


def conceal_counts(counted: TrainingOverlap, rows: int, evaluated: bytes, trained: bytes) -> TrainingOverlap:
    """Return the verdict, `few` or `many`, for each count of a blind set with this number of rows.

    Each limit is drawn once for a pair of set and training rows, given as their bytes. With an exact limit, somebody
    who has all of those rows but one could test a guess. The limit cannot be computed without all rows of the set.
    Repeating a run does not draw it again; changing the training rows does. A comparison of two runs thus does not show
    whether the limit or the count has changed.
    """
    key = hashlib.sha256(b"overlap/v1\x00" + evaluated).digest()
    draws = hmac.digest(key, hashlib.sha256(trained).digest(), "sha256")
    parts = (draws[:8], draws[8:16])
    return TrainingOverlap(
        *(_compare_count(int(count), rows, part) for count, part in zip(counted, parts, strict=True))
    )


def _compare_count(count: int, rows: int, draw: bytes) -> Amount:
    """Compare a count with its noisy limit; 0 rows are always `few`, and twice the typical limit is always `many`."""
    typical = min(MANY_ROWS, rows // 2)
    side = (int.from_bytes(draw, "big") + 0.5) / 2**64 - 0.5
    noise = -math.copysign(NOISE * typical * math.log1p(-2 * abs(side)), side)
    return MANY if count + max(-typical, min(typical - 1, noise)) >= typical else "few"


def _count_near(trained: Sequence[str], evaluated: Sequence[str]) -> int:
    """Count the evaluated texts that are near a training text; the real number is at least this count.

    Only signatures of training texts are kept in memory; candidates are split into shingles again.
    """
    if not trained:
        return 0
    signatures = np.empty((len(trained), BANDS * BAND_ROWS), dtype=np.uint64)
    for place, text in enumerate(trained):
        signatures[place] = _sign(_split(text))
    bands = [_index_band(signatures, band) for band in range(BANDS)]
    return sum(_is_near(text, trained, signatures, bands) for text in evaluated)


def _is_near(text: str, trained: Sequence[str], signatures: Array, bands: Sequence[tuple[Array, Array]]) -> bool:
    own = _split(text)
    signature = _sign(own)
    places = find_candidates(signature, bands)
    agree = (signatures[places] == signature).sum(axis=1)
    likeliest = places[np.argsort(-agree, kind="stable")[:MOST_CANDIDATES]]
    return any(jaccard(own, _split(trained[place])) >= NEAR for place in likeliest)


def jaccard(one: Array, other: Array) -> float:
    """Return the Jaccard index of two sorted arrays of distinct hashes, uint64.

    Size of intersection by size of union.
    """
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _index_band(signatures: Array, band: int) -> tuple[Array, Array]:
    """Return a band's hashes in order, uint64 [texts], and the index of each one's signature, uint32 [texts]."""
    hashes = _hash_band(signatures, band)
    order = np.argsort(hashes, kind="stable")
    return hashes[order], order.astype(np.uint32)


def find_candidates(signature: Array, bands: Sequence[tuple[Array, Array]]) -> Array:
    """Return the places of the training texts with an equal band, sorted, uint32: up to MOST_OF_BAND of each band."""
    found = []
    for band, (hashes, order) in enumerate(bands):
        own = _hash_band(signature[None], band)[0]
        first = np.searchsorted(hashes, own, "left")
        found.append(order[first : min(first + MOST_OF_BAND, np.searchsorted(hashes, own, "right"))])
    return np.unique(np.concatenate(found))


def _hash_band(signatures: Array, band: int) -> Array:
    hashes = np.zeros(len(signatures), dtype=np.uint64)
    for column in range(band * BAND_ROWS, (band + 1) * BAND_ROWS):
        hashes = _mix(hashes ^ signatures[:, column])
    return hashes


def _split(text: str) -> Array:
    """Return the distinct hashes of a text's character 5-grams, sorted, uint64.

    Letters and digits only, case-folded.
    """
    plain = _OTHER.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
    points = np.frombuffer(plain.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    windows = max(1, len(points) - SHINGLE + 1)
    hashes = np.full(windows, len(points) if len(points) < SHINGLE else 0, dtype=np.uint64)
    for place in range(min(SHINGLE, len(points))):
        hashes = _mix(hashes * np.uint64(0x100000001B3) + points[place : place + windows])
    return np.unique(hashes)


_OTHER = re.compile(r"[\W_]+")


def _mix(values: Array) -> Array:
    """Apply the finaliser of SplitMix64, by which every input bit affects every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_SALTS = _mix(np.arange(1, BANDS * BAND_ROWS + 1, dtype=np.uint64) * np.uint64(_SEED))


def _sign(hashes: Array) -> Array:
    """Return the MinHash signature, uint64 [BANDS * BAND_ROWS]: the smallest hash under each hash function."""
    least = np.full(len(_SALTS), np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(hashes), 4096):
        some = hashes[start : start + 4096]
        least = np.minimum(least, _mix(some[None, :] ^ _SALTS[:, None]).min(axis=1))
    return least
