"""What keeps the log's evidence: its own keys, its texts, the holds on them, and the witnesses who have seen it.

Reasons against, like those of the invariants, and the records of texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from sys import intern

from appliance.domain.entry import Entry
from appliance.domain.names import Time, add_seconds
from appliance.domain.orders import Order
from appliance.domain.policy import Parameters
from appliance.domain.state import State, Text
from appliance.domain.table import Table
from appliance.errors import BadInput, Denied
from appliance.formats.cosignature import parse_witness_vkey
from appliance.formats.note import parse_vkey

_COMMITMENT = "hmac-sha256:"

Texts = list[tuple[Table[Text], str, Text]]


def log_key(state: State, vkey: str) -> list[str]:
    """A key named as the log, that never signed for it."""
    try:
        name = parse_vkey(vkey).name
    except BadInput as error:
        return [f"log key: {error.message}"]
    reasons = [] if name == state.site.origin else [f"log key: expected a key of {state.site.origin}, got {name}"]
    if any(key.vkey == vkey for key in state.site.log_keys):
        reasons.append(f"log key: expected one that never signed this log, got {vkey}")
    return reasons + own_witnesses([vkey], state.parameters)


def own_witnesses(log_keys: Iterable[str], parameters: Parameters) -> list[str]:
    """A log is not its own witness, whatever the key is called: the public keys themselves are compared."""
    own = {parse_vkey(vkey).spki for vkey in log_keys}
    names = [key.name for key in map(parse_witness_vkey, parameters.witnesses) if key.spki in own]
    return [f"witness {name}: expected a key of its own, got the log's" for name in names]


def commitments_of(order: Order) -> Iterator[str]:
    """The texts that an order commits to."""
    for value in order.__dict__.values():
        if isinstance(value, str) and value.startswith(_COMMITMENT):
            yield value


def bound_texts(state: State, entry: Entry, order: Order | None, message: str = "") -> Texts:
    """The texts that an entry binds for the first time: those of its order, and why something failed."""
    found = [] if order is None else list(commitments_of(order))
    found += [message] if message.startswith(_COMMITMENT) else []
    if not found:
        return []
    for commitment in found:
        if (known := state.texts.get(commitment)) is not None and known.erased is not None:
            # Its text would travel beside the log again.
            said = f"expected one that was not erased, got that of entry {known.erased}"
            raise Denied(f"entry {entry.index}, commitment {commitment}: {said}", code="erased")
    # Subjects repeat from entry to entry; orders are found by their digest, and no hold is placed on one.
    subjects = _share(tuple(subject for subject in entry.subjects if not subject.startswith("order:")))
    text = Text(entry.index, entry.time, intern(entry.actor), subjects)
    return [(state.texts, commitment, text) for commitment in found if commitment not in state.texts]


@lru_cache(maxsize=4096)
def _share(subjects: tuple[str, ...]) -> tuple[str, ...]:
    """The first of equal ones, so that they lie in memory once."""
    return subjects


def kept(state: State, commitment: str, now: Time) -> list[str]:
    """Why a text must not be erased yet."""
    text = state.texts.get(commitment)
    if text is None:
        return [f"text: expected one that an order or a failure of this log binds, got {commitment}"]
    if text.erased is not None:
        return [f"text: expected one that stands, got one erased by entry {text.erased}"]
    reasons = [
        f"legal hold of entry {hold.index}: expected no hold on {hold.subject}, got one"
        for hold in state.holds.values()
        if hold.subject in (*text.subjects, f"principal:{text.signer}")
    ]
    return reasons + _retained(state, commitment, text, now)


def _retained(state: State, commitment: str, text: Text, now: Time) -> list[str]:
    """A printed name belongs to every signature of its owner, and stays as long as policy asks after the last."""
    owner = next((p for p in state.principals.values() if p.printed_name == commitment), None)
    if owner is None:
        return _until("text", add_seconds(text.time, state.parameters.text_retention_s), now)
    if owner.revoked_at is None:
        return [f"printed name: expected that of a revoked principal, got {owner.name}, who stands"]
    return _until("printed name", add_seconds(owner.revoked_at, state.parameters.name_retention_s), now)


def _until(what: str, end: Time, now: Time) -> list[str]:
    return [f"{what}: expected its retention to have ended by {now}, got one until {end}"] if now < end else []


def unwitnessed(state: State, now: Time) -> list[str]:
    """Why too few witnesses stand behind the log, where policy asks for them."""
    rules = state.parameters
    if not rules.witness_quorum:
        return []
    oldest = add_seconds(now, -rules.witness_lifetime_s)
    seen = [w for w in state.witnesses.values() if w.vkey in rules.witnesses and w.time >= oldest]
    if len(seen) >= rules.witness_quorum:
        return []
    return [f"witnesses: expected {rules.witness_quorum} cosignatures since {oldest}, got {len(seen)}"]
