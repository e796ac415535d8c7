"""Cost of the signatures that every commit makes and every verifier checks: Ed25519 alone, and ML-DSA-65 beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from appliance.formats.log.note import vkey_of
from appliance.formats.signatures.keys import Signer, generate_ed25519
from appliance.formats.signatures.ml_dsa import generate_ml_dsa
from scripts.benches.measure import Row, measure_interleaved, row

FULL, QUICK = 1_000, 100
"""Checkpoints of a round."""
ORIGIN = "bench.example/log"


def _time(count: int, act: Callable[[], object]) -> list[float]:
    """Return the milliseconds of processor time of each of so many calls."""
    found = []
    for _ in range(count):
        began = time.process_time()
        act()
        found.append((time.process_time() - began) * 1e3)
    return found


def measure(count: int, rounds: int) -> Iterator[Row]:
    """Yield the rows: signing and opening a checkpoint by one algorithm and by both."""
    first, second = generate_ed25519(), generate_ml_dsa()
    checkpoint = Checkpoint(ORIGIN, 1_000_000, bytes(range(32)))
    kinds: dict[str, tuple[Signer, ...]] = {"one": (first,), "both": (second, first)}
    notes = {name: sign_checkpoint(checkpoint, *signers) for name, signers in kinds.items()}
    keys = {name: [vkey_of(ORIGIN, signer) for signer in signers] for name, signers in kinds.items()}
    acts = {f"sign_{name}": partial(sign_checkpoint, checkpoint, *kinds[name]) for name in kinds}
    acts |= {f"open_{name}": partial(open_checkpoint, notes[name], *keys[name]) for name in kinds}
    found = measure_interleaved(rounds, **{name: partial(_time, count, act) for name, act in acts.items()})
    for act, words in (("sign", "signing a checkpoint"), ("open", "verifying a checkpoint")):
        yield row(
            f"{words} by ML-DSA-65 and Ed25519", found[f"{act}_both"], "ms", against="Ed25519 alone",
            theirs=found[f"{act}_one"],
        )  # fmt: skip
    sizes = {name: len(note) for name, note in notes.items()}
    yield row("bytes of a checkpoint by both", sizes["both"], "B", against="Ed25519 alone", theirs=sizes["one"])
