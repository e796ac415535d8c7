"""What keeps the log's evidence: its own keys, the texts beside it and the holds on them, the witnesses who saw it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from appliance.client.support.door import About, Door
from appliance.client.support.files import read_file, replace_file
from appliance.client.support.log import Anchor, Proven, read_entry
from appliance.client.support.orders import propose
from appliance.domain.governance.log_keys import RotateLogKey
from appliance.domain.governance.people import PrincipalsEnrolled
from appliance.domain.retention.holds import LiftHold, PlaceHold
from appliance.domain.retention.texts import Erase
from appliance.domain.rulebook.proposals import Proposal
from appliance.domain.rulebook.registry import ORDERS
from appliance.domain.rulebook.showing import label_of
from appliance.errors import BadInput, NotFound, Unavailable
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.fields import show
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.formats.log.cosignature import parse_witness_vkey
from appliance.formats.log.witness_request import parse_request
from appliance.formats.signatures.dsse import parse_envelope

_MAX_NOTE_BYTES = 65_536


def next_log_key(door: Door) -> str:
    """The vkey of a key that the service has made to rotate to."""
    answer = door.post("/v1/log-keys", {})
    try:
        return str(answer["vkey"])
    except (KeyError, TypeError):
        raise Unavailable(f"service, log key: expected a vkey, got {show(answer)}") from None


def propose_log_key(about: About, signer: str, vkey: str, old_until: str) -> Proposal:
    return propose(about, signer, RotateLogKey, {"log_key": vkey, "old_until": old_until})


# Texts.


@dataclass(frozen=True)
class FoundText:
    """A text as an entry's order, or a failure's message, binds it; None when it was erased or never disclosed."""

    entry: int
    field: str
    commitment: str
    disclosure: Disclosure | None


def texts_of(proven: Proven) -> list[FoundText]:
    """Every text that the entry binds."""
    texts = {disclosure.commitment: disclosure for disclosure in proven.disclosures}
    return [
        FoundText(proven.entry.index, field, commitment, texts.get(commitment))
        for field, commitment in _commitments(proven)
    ]


def _commitments(proven: Proven) -> Iterator[tuple[str, str]]:
    for role in ("endorsed", "order"):
        if role in proven.documents:
            order = ORDERS.parse(parse_envelope(proven.documents[role]).payload)
            yield from order.commitments().items()
    message = proven.entry.body.get("message")
    if isinstance(message, str) and message.startswith("hmac-sha256:"):
        yield "message", message


def find_text(door: Door, anchor: Anchor, index: int, field: str | None) -> FoundText:
    """The one text of the entry, or that of a field; the entry is proved first."""
    texts = texts_of(read_entry(door, anchor, index))
    found = [text for text in texts if field is None or label_of(text.field) == label_of(field)]
    if len(found) != 1:
        known = ", ".join(text.field for text in texts) or "none"
        raise BadInput(f"text of entry {index}: expected --field with one of its texts, got {field}; texts: {known}")
    if found[0].disclosure is None:
        raise NotFound(f"{found[0].field} of entry {index}: expected a text that is disclosed, got one that is not")
    return found[0]


def find_printed_name(door: Door, anchor: Anchor, name: str) -> FoundText:
    """Who a principal is in print, from the entry that enrolled them."""
    people = {str(row["name"]): row for row in door.get("/v1/principals")}
    if name not in people:
        raise NotFound(f"printed name: expected that of an enrolled name, got {name!r}")
    enrolled = int(people[name]["enrolled"])
    if enrolled == 0:
        raise NotFound(f"printed name of {name}: expected one, got an administrator of the first entry, who has none")
    several = read_entry(door, anchor, enrolled).entry.type == PrincipalsEnrolled.type
    return find_text(door, anchor, enrolled, f"printed_name.{name}" if several else "printed_name")


def propose_erasure(about: About, signer: str, text: FoundText) -> Proposal:
    """The text travels with the order, so that the second administrator reads what goes."""
    proposal = propose(about, signer, Erase, {"commitment": text.commitment})
    disclosures = () if text.disclosure is None else (text.disclosure,)
    return Proposal(proposal.order, disclosures)


# Holds.


def propose_hold(about: About, signer: str, subject: str, reason: str | None) -> Proposal:
    texts = {} if reason is None else {"reason": reason}
    return propose(about, signer, PlaceHold, {"subject": subject}, texts=texts)


def propose_lift(about: About, signer: str, subject: str, reason: str | None) -> Proposal:
    texts = {} if reason is None else {"reason": reason}
    return propose(about, signer, LiftHold, {"subject": subject}, texts=texts)


# Witnesses.


@dataclass(frozen=True)
class Requested:
    """What a witness is asked: from the size that it saw last to the log as it stands."""

    witness: str
    old: int
    size: int


def only_witness(about: About) -> str:
    """The name of the policy's witness, where it has one."""
    names = [parse_witness_vkey(vkey).name for vkey in about.parameters.get("witnesses", ())]
    if len(names) != 1:
        known = ", ".join(names) or "none; adopt a policy set that names one by its vkey"
        raise BadInput(f"witness: expected --witness with one of the policy's, got none; witnesses: {known}")
    return names[0]


def write_request(door: Door, anchor: Anchor, witness: str, old: int | None, path: Path) -> Requested:
    """Writes the request over the one before, once the checkpoint in it is this log's."""
    query = urlencode({"witness": witness} | ({} if old is None else {"old": old}))
    data = b"".join(door.stream(f"/v1/witness-request?{query}"))
    request = parse_request(data)
    checkpoint = open_checkpoint(request.checkpoint, anchor.log_key)
    replace_file(path, data, "witness request")
    return Requested(witness, request.old, checkpoint.size)


def hand_in(door: Door, path: Path) -> dict[str, Any]:
    """What a witness answered: index, witness, size and time of the entry that it became."""
    data = read_file(path, "cosigned checkpoint", _MAX_NOTE_BYTES)
    try:
        note = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"cosigned checkpoint, {path}: expected a signed note in UTF-8, got other bytes") from None
    return dict(door.post("/v1/cosignatures", {"note": note}))


def witnesses(door: Door, about: About) -> tuple[int, list[dict[str, Any]]]:
    """The log's size, and what each witness of the policy has seen of it, then those of earlier policies."""
    seen = {str(row["vkey"]): dict(row) for row in door.get("/v1/witnesses")}
    size = int(door.get("/v1/ledger", limit=1)["size"])
    rows = []
    for vkey in about.parameters.get("witnesses", ()):
        row = seen.pop(vkey, {"name": parse_witness_vkey(vkey).name, "size": None, "time": None, "index": None})
        rows.append({**row, "vkey": vkey, "counts": True})
    rows += [{**row, "counts": False} for row in seen.values()]
    return size, [{**row, "behind": size - (row["size"] or 0)} for row in rows]
