"""What keeps the log's evidence: its own keys, its texts, the holds on them, and the witnesses who have seen it.

Reasons against, like those of the invariants, and the records of texts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from sys import intern

from appliance.domain.entry import Entry
from appliance.domain.names import Time, add_seconds
from appliance.domain.orders import Erase, Order
from appliance.domain.policy import Parameters
from appliance.domain.records import Text
from appliance.domain.state import State
from appliance.domain.table import Table
from appliance.errors import BadInput, Denied
from appliance.formats.cosignature import parse_witness_vkey
from appliance.formats.note import parse_vkey

_COMMITMENT = re.compile(r"hmac-sha256:[0-9a-f]{64}")

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
        if isinstance(value, str) and _COMMITMENT.fullmatch(value):
            yield value


def bound_texts(
    state: State,
    entry: Entry,
    order: Order | None,
    message: str = "",
    about: tuple[str, ...] = (),
    withheld: Collection[str] = (),
) -> Texts:
    """The texts that an entry binds: those of its order but for the withheld, and why something failed; `about`: what
    else that is about."""
    found = [] if order is None else [one for one in commitments_of(order) if one not in withheld]
    found += [message] if _COMMITMENT.fullmatch(message) else []
    if not found:
        return []
    check_unerased(state, entry, found)
    if isinstance(order, Erase):  # which names a text, and does not keep it longer
        found = [commitment for commitment in found if commitment not in state.texts]
    # Subjects repeat from entry to entry; orders are found by their digest, and no hold is placed on one.
    about = (*entry.subjects, *about, *(() if order is None else order.about()))
    subjects = _share(tuple(subject for subject in dict.fromkeys(about) if not subject.startswith("order:")))
    text = Text(entry.index, entry.time, intern(entry.actor), subjects)
    return [(state.texts, commitment, _joined(state.texts.get(commitment), text)) for commitment in found]


def check_unerased(state: State, entry: Entry, commitments: Iterable[str]) -> None:
    """Denied where a text was erased that would travel beside the log again, or that a name would stand for."""
    for commitment in commitments:
        if (known := state.texts.get(commitment)) is not None and known.erased is not None:
            said = f"expected one that was not erased, got that of entry {known.erased}"
            raise Denied(f"entry {entry.index}, commitment {commitment}: {said}", code="erased")


def _joined(before: Text | None, text: Text) -> Text:
    """What was bound before, and is bound again: it is kept for whatever either is about, as long as the later one."""
    if before is None:
        return text
    about = (*before.subjects, *text.subjects, f"principal:{text.signer}")
    return before._replace(time=text.time, subjects=_share(tuple(dict.fromkeys(about))))


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
        if _keeps(hold.subject, (*text.subjects, f"principal:{text.signer}"))
    ]
    return reasons + _retained(state, commitment, text, now)


def _keeps(held: str, subjects: tuple[str, ...]) -> bool:
    """A hold on a name keeps what is about any version of it; on a version also what is about the name alone, as the
    order is that imported it."""
    name, _, version = held.partition("@")
    return any(subject in (held, name) or (not version and subject.startswith(f"{name}@")) for subject in subjects)


def is_known(state: State, subject: str) -> bool:
    """Whether the log knows what a hold is placed on: else it would keep nothing, and nobody would be told."""
    kind, _, name = subject.partition(":")
    match kind:
        case "principal" | "unit":
            return name in state.principals
        case "base" | "dataset":
            return name in state.datasets or any(row.subject == subject for row in state.imports.values())
        case "adapter":
            return name in state.adapters or any(run.name == name for run in state.runs.values())
        case "run":
            return name in state.runs
        case "task":
            return any(release.task == name for release in state.releases.values())
    return False


def _retained(state: State, commitment: str, text: Text, now: Time) -> list[str]:
    """A printed name belongs to every signature of its owner, and stays as long as policy asks after the last."""
    owners = [principal for principal in state.principals.values() if principal.printed_name == commitment]
    if not owners:
        return _until("text", add_seconds(text.time, state.parameters.text_retention_s), now)
    standing = [owner.name for owner in owners if owner.revoked_at is None]
    if standing:
        return [f"printed name: expected that of a revoked principal, got {', '.join(standing)}, who stands"]
    last = max(owner.revoked_at or "" for owner in owners)
    return _until("printed name", add_seconds(last, state.parameters.name_retention_s), now)


def _until(what: str, end: Time, now: Time) -> list[str]:
    return [f"{what}: expected its retention to have ended by {now}, got one until {end}"] if now < end else []


def witnessed_until(state: State) -> list[Time]:
    """Until when the witnesses stand behind the log, if nobody cosigns it again; nothing where policy asks for none, or
    too few have."""
    rules = state.parameters
    times = [w.time for w in state.witnesses.values() if w.vkey in rules.witnesses]
    return cosigned_until(times, rules.witness_quorum, rules.witness_lifetime_s)


def cosigned_until(times: Iterable[Time], quorum: int, lifetime_s: int) -> list[Time]:
    """Until when so many of the newest of these cosignatures count; nothing where there are fewer or none is needed."""
    needed = sorted(times, reverse=True)[quorum - 1 : quorum] if quorum else []
    return [add_seconds(time, lifetime_s) for time in needed]


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
