"""How many rows of a set are also trained on: the same texts, and texts that are nearly the same. No torch.

Near ones are found by MinHash (Broder 1997): texts whose signatures agree in a whole band are candidates, and the
likeliest of them are compared exactly, by the Jaccard index of their character 5-grams. Hashes have a fixed seed, so
the same rows give the same counts everywhere. Nothing but counts leaves this file.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from appliance.domain.evaluation.verdict import Overlap
from appliance.ml.data.rows import same_key

SHINGLE = 5
NEAR = 0.8
"""The least Jaccard index of texts that are nearly the same."""
BANDS, BAND_ROWS = 16, 4
MOST_CANDIDATES = 32
"""Compared exactly for one text: those whose signatures agree in the most places, the first of equals."""
BLIND_STEP = 5
"""A blind set's counts are rounded down to a multiple of it: one text that was guessed changes no number."""
_SEED = 20_261_126

Array = Any


def count_overlap(trained: Iterable[str], judged: Sequence[str]) -> Overlap:
    """Of the texts that judge, how many are those of a trained one, case and spacing aside, and how many others are
    nearly those of one."""
    known = dict.fromkeys(map(same_key, trained))
    keys = [same_key(text) for text in judged]
    others = [key for key in keys if key not in known]
    return Overlap(len(keys) - len(others), _count_near(list(known), others) if others else 0)


def blur(overlap: Overlap) -> Overlap:
    """What is said of a blind set."""
    return Overlap(*(count - count % BLIND_STEP for count in overlap))


def _count_near(trained: Sequence[str], judged: Sequence[str]) -> int:
    if not trained:
        return 0
    parts = [_split(text) for text in trained]
    signatures = np.stack([_sign(part) for part in parts])
    bands = [_index_bands(signatures, band) for band in range(BANDS)]
    count = 0
    for text in judged:
        own = _split(text)
        count += _is_near(own, _sign(own), parts, signatures, bands)
    return count


def _is_near(
    own: Array, signature: Array, parts: Sequence[Array], signatures: Array, bands: Sequence[dict[bytes, list[int]]]
) -> bool:
    found = {place for band, index in enumerate(bands) for place in index.get(_band_of(signature, band), ())}
    if not found:
        return False
    places = np.array(sorted(found))
    agree = (signatures[places] == signature).sum(axis=1)
    likeliest = places[np.argsort(-agree, kind="stable")[:MOST_CANDIDATES]]
    return any(jaccard(own, parts[place]) >= NEAR for place in likeliest)


def jaccard(one: Array, other: Array) -> float:
    """Of two sorted arrays of distinct hashes: what they share, by what either has."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _index_bands(signatures: Array, band: int) -> dict[bytes, list[int]]:
    index: dict[bytes, list[int]] = {}
    for place, signature in enumerate(signatures):
        index.setdefault(_band_of(signature, band), []).append(place)
    return index


def _band_of(signature: Array, band: int) -> bytes:
    part: bytes = signature[band * BAND_ROWS : (band + 1) * BAND_ROWS].tobytes()
    return part


def _split(text: str) -> Array:
    """The hashes of a text's character 5-grams, sorted, each once; letters and digits alone, in lower case."""
    plain = "".join(c if c.isalnum() else " " for c in unicodedata.normalize("NFKC", text).casefold())
    points = np.frombuffer(" ".join(plain.split()).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    windows = max(1, len(points) - SHINGLE + 1)
    hashes = np.full(windows, len(points) if len(points) < SHINGLE else 0, dtype=np.uint64)
    for place in range(min(SHINGLE, len(points))):
        hashes = _mix(hashes * np.uint64(0x100000001B3) + points[place : place + windows])
    return np.unique(hashes)


def _mix(values: Array) -> Array:
    """The finaliser of SplitMix64: every bit of a value reaches every bit of the result."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_SALTS = _mix(np.arange(1, BANDS * BAND_ROWS + 1, dtype=np.uint64) * np.uint64(_SEED))


def _sign(hashes: Array) -> Array:
    """The least of the hashes under each of as many functions as a signature has places."""
    least = np.full(len(_SALTS), np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(hashes), 4096):
        some = hashes[start : start + 4096]
        least = np.minimum(least, _mix(some[None, :] ^ _SALTS[:, None]).min(axis=1))
    return least
