"""How many rows of a set are also trained on: the same texts, and texts that are nearly the same. No torch.

Near ones are found by MinHash (Broder 1997): texts whose signatures agree in a whole band are candidates, and the
likeliest of them are compared exactly, by the Jaccard index of their character 5-grams. Hashes have a fixed seed, so
the same rows give the same counts everywhere. Nothing but counts leaves this file.
"""

from __future__ import annotations

import re
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
    """Of the texts that are trained on only signatures are kept; the few that are candidates are split again."""
    if not trained:
        return 0
    signatures = np.empty((len(trained), BANDS * BAND_ROWS), dtype=np.uint64)
    for place, text in enumerate(trained):
        signatures[place] = _sign(_split(text))
    bands = [_index_band(signatures, band) for band in range(BANDS)]
    return sum(_is_near(text, trained, signatures, bands) for text in judged)


def _is_near(text: str, trained: Sequence[str], signatures: Array, bands: Sequence[tuple[Array, Array]]) -> bool:
    own = _split(text)
    signature = _sign(own)
    places = np.unique(np.concatenate([_look_up(signature, band, *index) for band, index in enumerate(bands)]))
    agree = (signatures[places] == signature).sum(axis=1)
    likeliest = places[np.argsort(-agree, kind="stable")[:MOST_CANDIDATES]]
    return any(jaccard(own, _split(trained[place])) >= NEAR for place in likeliest)


def jaccard(one: Array, other: Array) -> float:
    """Of two sorted arrays of distinct hashes: what they share, by what either has."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _index_band(signatures: Array, band: int) -> tuple[Array, Array]:
    """The band's hashes in order, and which signature has each."""
    hashes = _hash_band(signatures, band)
    order = np.argsort(hashes, kind="stable")
    return hashes[order], order.astype(np.uint32)


def _look_up(signature: Array, band: int, hashes: Array, order: Array) -> Array:
    own = _hash_band(signature[None], band)
    return order[np.searchsorted(hashes, own[0], "left") : np.searchsorted(hashes, own[0], "right")]


def _hash_band(signatures: Array, band: int) -> Array:
    hashes = np.zeros(len(signatures), dtype=np.uint64)
    for column in range(band * BAND_ROWS, (band + 1) * BAND_ROWS):
        hashes = _mix(hashes ^ signatures[:, column])
    return hashes


def _split(text: str) -> Array:
    """The hashes of a text's character 5-grams, sorted, each once; letters and digits alone, in lower case."""
    plain = _OTHER.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
    points = np.frombuffer(plain.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    windows = max(1, len(points) - SHINGLE + 1)
    hashes = np.full(windows, len(points) if len(points) < SHINGLE else 0, dtype=np.uint64)
    for place in range(min(SHINGLE, len(points))):
        hashes = _mix(hashes * np.uint64(0x100000001B3) + points[place : place + windows])
    return np.unique(hashes)


_OTHER = re.compile(r"[\W_]+")


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
