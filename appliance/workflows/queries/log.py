"""The log as people read it: its entries, and an export of all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from appliance import __version__
from appliance.domain.core.entry import parse_entry
from appliance.domain.queries.entry_proof import EntryProof
from appliance.errors import ApplianceError, Conflict
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.commitment import Disclosure, disclosure_value
from appliance.formats.core.fields import encode_base64
from appliance.formats.log.checkpoint import claimed_size
from appliance.formats.log.export import write_export
from appliance.formats.log.note import parse_note
from appliance.formats.log.proof import Proof, encode_proof
from appliance.formats.signatures.dsse import parse_envelope
from appliance.store.ledger.search import MAX_TYPES
from appliance.workflows.core.context import Context
from appliance.workflows.queries.filters import unknown_names, unknown_types
from appliance.workflows.releases.review import reviews_among

MAX_LIMIT = 1_000


MAX_SUBJECTS = 8


class LogFilters(BaseModel):
    """Every filter that is given must hold: one of the types, all of the subjects. Entries come in their order, with
    `newest` from the end backwards, a page at a time."""

    model_config = ConfigDict(extra="forbid")
    type: list[str] = Field(default=[], max_length=MAX_TYPES)
    subject: list[str] = Field(default=[], max_length=MAX_SUBJECTS)
    actor: str | None = None
    outcome: str | None = None
    unit: str | None = None
    since: str | None = None
    until: str | None = None
    after: int | None = None
    before: int | None = None
    newest: bool = False
    limit: int = Field(default=100, ge=1, le=MAX_LIMIT)


def about(context: Context) -> dict[str, Any]:
    site = context.ledger.state.site
    return {
        "origin": site.origin,
        "log_key": site.log_key,
        "genesis": f"sha256:{parse_entry(context.ledger.entry_bytes(0)).leaf.hex()}",
        "version": __version__,
        "device": context.device,
        "bfloat16": context.bfloat16,
        "single_administrator": site.single_administrator,
        "policy": site.policy,
        "parameters": site.parameters.model_dump(mode="json"),
    }


class Found(NamedTuple):
    """`entries` by index; `unknown`: what of the filters' words is not known, where that may be why there is none."""

    entries: list[tuple[int, bytes]]
    unknown: list[str]


def search(context: Context, filters: LogFilters) -> Found:
    given = filters.model_dump(exclude={"type", "subject"})
    found = context.ledger.find(types=filters.type, subjects=filters.subject, **given)
    unknown = list(unknown_types(filters.type))
    if not found:
        unknown += unknown_names(context, filters.actor, filters.unit, filters.subject)
    return Found(found, unknown)


def find(context: Context, filters: LogFilters) -> dict[str, Any]:
    """A page, as programs read it."""
    found, unknown = search(context, filters)
    full = len(found) == filters.limit
    return {
        "unknown": unknown,
        "entries": [{"index": index, "bytes": encode_base64(data)} for index, data in found],
        "reviews": {str(index): review for index, review in reviews_among(context, found).items()},
        "next": found[-1][0] if full else None,
        "size": context.ledger.state.size,
    }


def show(context: Context, index: int) -> dict[str, Any]:
    """One entry whole: its bytes, documents, disclosed texts, and the proof that it is in the log."""
    checkpoint = context.ledger.checkpoint()
    size = claimed_size(checkpoint)
    proof = context.ledger.inclusion_proof(index, size) if index < size else []
    data = context.ledger.entry_bytes(index)
    documents = context.ledger.documents_of(index)
    return {
        "index": index,
        "bytes": encode_base64(data),
        "documents": {role: encode_base64(content) for role, content in documents.items()},
        "disclosures": disclosed(context, [data, *documents.values()]),
        "proof": [step.hex() for step in proof],
        "checkpoint": checkpoint.decode("utf-8"),
    }


def entry_proof(context: Context, index: int) -> EntryProof:
    """The entry with what proves it without the service: under the log's own checkpoint, and under the last one that
    each witness in force cosigned, where that has the entry."""
    ledger = context.ledger
    own = ledger.checkpoint()
    data, documents = ledger.entry_bytes(index), ledger.documents_of(index)
    notes = [own, *(note for note in _cosigned(context) if _log_lines(own) <= _log_lines(note))]
    sized = [(claimed_size(note), note) for note in notes]
    proofs = [Proof(index, tuple(ledger.inclusion_proof(index, size)), note) for size, note in sized if index < size]
    return EntryProof(
        entry=data.decode(),
        proofs=tuple(encode_proof(proof).decode() for proof in proofs),
        documents={role: encode_base64(content) for role, content in documents.items()},
        disclosures=tuple(disclosed(context, [data, *documents.values()])),
    )


def _cosigned(context: Context) -> list[bytes]:
    state = context.ledger.state
    seen = [one for one in state.witnesses.values() if one.vkey in state.parameters.witnesses]
    return [context.ledger.documents_of(one.index)["note"] for one in sorted(seen, key=lambda one: one.name)]


def _log_lines(note: bytes) -> set[bytes]:
    """By which keys the log signed it: whoever trusts the keys of now cannot check a note of older ones alone."""
    parsed = parse_note(note)
    origin = parsed.text.partition("\n")[0]
    return {line.key_id for line in parsed.signatures if line.name == origin}


def commitments_in(data: bytes) -> list[str]:
    """Every commitment that an entry or an order's envelope holds."""
    try:
        value = parse_canonical(data)
    except ApplianceError:
        return []
    return sorted(set(_commitments(value)))


def _commitments(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith("hmac-sha256:"):
        yield value
    elif isinstance(value, dict):
        if set(value) == {"payload", "payloadType", "signatures"}:
            yield from commitments_in(parse_envelope(encode_canonical(value)).payload)
        for item in value.values():
            yield from _commitments(item)
    elif isinstance(value, list):
        for item in value:
            yield from _commitments(item)


def disclosed(context: Context, sources: list[bytes]) -> list[dict[str, str]]:
    """What is still disclosed of the commitments in these bytes."""
    wanted = sorted({commitment for data in sources for commitment in commitments_in(data)})
    return [disclosure_value(found) for found in context.ledger.disclosures(wanted).values()]


def export(context: Context) -> Iterator[bytes]:
    """The whole log as one tar, as of now, a chunk at a time. Conflict where a text of it is erased meanwhile."""
    checkpoint = context.ledger.checkpoint()
    size = claimed_size(checkpoint)
    return write_export(
        origin=context.ledger.state.site.origin,
        size=size,
        checkpoint=checkpoint,
        entries=lambda: context.ledger.entries(0, size),
        document=context.ledger.document,
        disclosures=partial(_texts, context, size),
    )


def _texts(context: Context, size: int, wanted: list[str]) -> Mapping[str, Disclosure]:
    found, bound = context.ledger.disclosures(wanted), context.ledger.state.texts
    for text in (bound.get(commitment) for commitment in wanted if commitment not in found):
        if text is not None and text.erased is not None and text.erased >= size:
            said = f"expected its texts to stand meanwhile, got one erased by entry {text.erased}; ask again"
            raise Conflict(f"export of {size} entries: {said}")
    return found
