"""Searches of the log, single entries with their proofs, and an export of the whole log."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field

from appliance.api.log import About, EntryWithProof, LoggedEntry, LogPage
from appliance.domain.actions.registry import EVENTS
from appliance.domain.core.entry import Outcome, parse_entry
from appliance.domain.core.names import SERVICE
from appliance.domain.core.records.site import Archive
from appliance.domain.core.state import State
from appliance.domain.core.words import unknown_word
from appliance.domain.queries.proofs import EntryProof
from appliance.domain.queries.unit_reading import UnitReader
from appliance.errors import ApplianceError, Conflict, Denied, RefusalCode
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.commitment import Disclosure, disclosure_value
from appliance.formats.core.fields import encode_base64
from appliance.formats.log.checkpoint import claimed_size
from appliance.formats.log.export import read_removed, write_export
from appliance.formats.log.note import parse_note
from appliance.formats.log.proof import Proof, encode_proof
from appliance.formats.signatures.dsse import parse_envelope
from appliance.store.ledger.checks import describe_archive
from appliance.store.ledger.rows import find_archive
from appliance.store.ledger.search import MAX_TYPES, Count, Filters, count_by, find_removed
from appliance.workflows.core.context import LedgerContext, WorkerContext
from appliance.workflows.releases.review import reviews_among

OWN_ENTRIES_ONLY = RefusalCode(
    "own-entries-only",
    "policy",
    "Policy (units_read) lets {id} read only the entries that concern it.",
    "Ask an auditor for the entry, or for an export of the log.",
)

_NAMES: dict[str, Callable[[State], Collection[str]]] = {
    "adapter": lambda state: [key for key, _ in state.adapters.items()],
    "base": lambda state: [key for key, _ in state.bases.items()],
    "dataset": lambda state: [key for key, _ in state.datasets.items()],
    "principal": lambda state: [key for key, _ in state.principals.items()],
    "run": lambda state: [key for key, _ in state.runs.items()],
    "served-model": lambda state: {release.served_model for release in state.releases.values()},
    "unit": lambda state: [person.name for person in state.principals.values() if "unit" in person.roles],
    "validation-set": lambda state: [key for key, _ in state.validation_sets.items()],
    "witness": lambda state: [witness.name for witness in state.witnesses.values()],
}
"""Functions that return the names of each kind of subject in the state."""
_OTHERS = ("order", "policy", "request", "text")
"""Kinds of subjects that only the log's entries name."""
_RESPONSE = re.compile(r"(?:(?:chat)?cmpl-)?([0-9a-f]{32})")
_WORD = re.compile(r"[^a-z]+")
_ALONE = ("log-key", "rules")
"""Subjects that have no name."""


def unknown_types(types: Sequence[str]) -> Iterator[str]:
    """Yield a message for each unknown type of entry, with similar ones."""
    for kind in types:
        if kind not in EVENTS:
            near = "" if "." in kind else _suggest_types(kind)
            message = unknown_word("type", kind, EVENTS.keys() if not near else (), "a type of entry")
            yield message + near


def _suggest_types(kind: str) -> str:
    """Return a suggestion of the types that share a word with an unknown one, or an empty text."""
    words = {word for word in _WORD.split(kind) if len(word) > 2}
    alike = [known for known in sorted(EVENTS) if words & set(_WORD.split(known))]
    return f"; did you mean {', '.join(alike)}?" if alike else ""


def unknown_names(
    context: LedgerContext, actor: str | None, unit: str | None, subjects: Sequence[str]
) -> Iterator[str]:
    """Yield a message for each name that neither the state nor an entry has. Called after a search without results."""
    state = context.ledger.state
    people = [*_NAMES["principal"](state), SERVICE]
    if actor is not None and actor not in people and not context.ledger.find(actor=actor, limit=1):
        yield unknown_word("actor", actor, people, "the name of a person, of a unit or service")
    units = _NAMES["unit"](state)
    if unit is not None and unit not in units and not context.ledger.find(unit=unit, limit=1):
        yield unknown_word("unit", unit, units, "an enrolled unit")
    for subject in subjects:
        if not context.ledger.find(subjects=[subject], limit=1):
            yield from _unknown_subject(state, subject)


def complete_subject(state: State, text: str) -> str:
    """Return the subject that a person means by an id or a name without its kind, or the text if that is not clear.

    A response's id, such as `chatcmpl-…`, means its request.
    """
    response = _RESPONSE.fullmatch(text)
    if response is not None:
        return f"request:{response[1]}"
    meant = _list_meanings(state, text)
    return meant[0] if len(meant) == 1 else text


def _list_meanings(state: State, name: str) -> list[str]:
    return [f"{kind}:{name}" for kind, names in _NAMES.items() if name in names(state)]


def _unknown_subject(state: State, subject: str) -> Iterator[str]:
    kind, colon, name = subject.partition(":")
    if subject in _ALONE:
        return
    if meant := _list_meanings(state, subject):
        yield f"subject: expected its kind too, {' or '.join(meant)}, got {subject!r:.80}"
        return
    if not colon or kind not in (*_NAMES, *_OTHERS):
        kinds = ", ".join(sorted((*_NAMES, *_OTHERS)))
        yield f"subject: expected KIND:NAME with a kind of {kinds}, or {' or '.join(_ALONE)}, got {subject!r:.80}"
        return
    names = _NAMES[kind](state) if kind in _NAMES else ()
    if name not in names:
        yield unknown_word(f"subject, {kind}", name, names, "one that the log names")


MAX_LIMIT = 1_000
"""Most entries of a page."""


MAX_SUBJECTS = 8
"""Most subjects of a filter."""


class LogFilters(BaseModel):
    """Filters of a search. An entry must match all of them: one of the types, and all of the subjects.

    Entries come in their order, or from the end backwards with `newest`, a page at a time.
    """

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


def about(context: WorkerContext, seen: int | None = None) -> About:
    """Return the description that every client requests first, with the newest checkpoint.

    `consistency`: the proof that the log begins with its first `seen` entries; empty if it has fewer.
    """
    site, checkpoint = context.ledger.state.site, context.ledger.checkpoint()
    size = claimed_size(checkpoint)
    proof = context.ledger.consistency_proof(seen, size) if seen is not None and seen <= size else []
    return About(
        is_restored=bool(context.ledger.state.site.restorations),
        checkpoint=checkpoint.decode("utf-8"),
        consistency=tuple(proof),
        origin=site.origin,
        log_key=site.log_key,
        post_quantum_log_key=site.post_quantum_log_key,
        genesis=f"sha256:{parse_entry(context.ledger.entry_bytes(0)).leaf.hex()}",
        version=context.code.version,
        device=context.device,
        bfloat16=context.bfloat16,
        single_administrator=site.single_administrator,
        policy=site.policy,
        parameters=site.parameters,
    )


class SearchPage(NamedTuple):
    """A page of a search. `entries` by index; `unknown`: messages on unknown words of the filters, which may be why
    none match.
    """

    entries: list[tuple[int, bytes]]
    unknown: list[str]
    archived: tuple[str, ...] = ()
    """If nothing was found: the archives that have matching entries, which they removed."""


def search(context: LedgerContext, filters: LogFilters, reader: UnitReader | None = None) -> SearchPage:
    """Return a page of the entries that match the filters and that the reader may read."""
    given = filters.model_dump(exclude={"type", "subject"})
    searched = Filters(types=filters.type, subjects=filters.subject, **given)  # type: ignore[typeddict-item]
    found = context.ledger.find(**searched) if reader is None else _find_readable(context, searched, reader)
    unknown = list(unknown_types(filters.type))
    archived: tuple[str, ...] = ()
    if not found and reader is None:  # a unit must not learn the names of others
        archived = tuple(_describe_archives(context, searched))
        unknown += () if archived else unknown_names(context, filters.actor, filters.unit, filters.subject)
    return SearchPage(found, unknown, archived)


def _describe_archives(context: LedgerContext, filters: Filters) -> Iterator[str]:
    ledger = context.ledger
    for index in ledger.ask(lambda connection: find_removed(connection, ledger.partial_block, filters)):
        yield describe_archive(index, ledger.state.archives.get(str(index)))


def _find_readable(context: LedgerContext, filters: Filters, reader: UnitReader) -> list[tuple[int, bytes]]:
    """Return a full page. It searches on, because the keys match more entries than the reader may read.

    Each search reads more entries than the one before, so that a small page needs few searches.
    """
    limit, searched = filters["limit"], Filters(**{**filters, "keys": reader.keys})
    found: list[tuple[int, bytes]] = []
    while True:
        page = context.ledger.find(**searched)
        found += [row for row in page if reader.may_read(parse_entry(row[1]))]
        if len(found) >= limit or len(page) < searched["limit"]:
            return found[:limit]
        searched["before" if searched["newest"] else "after"] = page[-1][0]
        searched["limit"] = min(4 * searched["limit"], MAX_LIMIT)


def find(context: LedgerContext, filters: LogFilters, reader: UnitReader | None = None) -> LogPage:
    """Return a page of a search."""
    found, unknown, archived = search(context, filters, reader)
    full, reviews = len(found) == filters.limit, reviews_among(context, found)
    return LogPage(
        narrowed=reader is not None,
        unknown=tuple(unknown),
        archived=archived,
        entries=tuple(LoggedEntry(index=index, bytes=data, review=reviews.get(index)) for index, data in found),
        next=found[-1][0] if full else None,
        size=context.ledger.state.size,
    )


def show(context: LedgerContext, index: int, reader: UnitReader | None = None) -> EntryWithProof:
    """Return one entry with its documents, disclosed texts, and the proof that it is in the log.

    Raises:
        Denied: The reader may not read it.
    """
    checkpoint = context.ledger.checkpoint()
    size = claimed_size(checkpoint)
    proof = context.ledger.inclusion_proof(index, size) if index < size else []
    data = context.ledger.entry_bytes(index)
    if reader is not None and not reader.may_read(parse_entry(data)):
        raise Denied(
            f"entry {index} does not concern {reader.unit}; an auditor can read it",
            refusals=(OWN_ENTRIES_ONLY(f"unit:{reader.unit}"),),
        )
    documents = context.ledger.documents_of(index)
    return EntryWithProof(
        index=index,
        bytes=data,
        documents=documents,
        disclosures=disclosed(context, [data, *documents.values()]),
        proof=tuple(proof),
        checkpoint=checkpoint.decode("utf-8"),
    )


class Removal(NamedTuple):
    """The leaf hash of an entry whose bytes an archive removed, that archive, and the entry's proof under the
    checkpoint."""

    leaf: bytes
    archive: Archive
    proof: tuple[bytes, ...]
    checkpoint: str


def find_removal(context: LedgerContext, index: int) -> Removal | None:
    """Return the hash, the archive and the proof of an entry that an archive removed, or None for any other entry."""
    ledger = context.ledger
    leaf = next(map(read_removed, ledger.entries(index, index + 1)), None)
    if leaf is None:
        return None
    archive = ledger.state.archives.get(str(ledger.ask(lambda connection: find_archive(connection, index))))
    if archive is None:
        return None
    checkpoint = ledger.checkpoint()
    proof = ledger.inclusion_proof(index, claimed_size(checkpoint))
    return Removal(leaf, archive, tuple(proof), checkpoint.decode("utf-8"))


def entry_proof(context: LedgerContext, index: int) -> EntryProof:
    """Return the entry with its proofs for offline verification.

    It is proved under the log's own checkpoint and under the last checkpoint of each valid witness that includes it.
    """
    ledger = context.ledger
    own = ledger.checkpoint()
    data, documents = ledger.entry_bytes(index), ledger.documents_of(index)
    notes = [
        own,
        *(note for note in _read_cosigned_notes(context) if _find_log_key_ids(own) <= _find_log_key_ids(note)),
    ]
    sized = [(claimed_size(note), note) for note in notes]
    proofs = [Proof(index, tuple(ledger.inclusion_proof(index, size)), note) for size, note in sized if index < size]
    return EntryProof(
        entry=data.decode(),
        proofs=tuple(encode_proof(proof).decode() for proof in proofs),
        documents={role: encode_base64(content) for role, content in documents.items()},
        disclosures=tuple(map(disclosure_value, disclosed(context, [data, *documents.values()]))),
    )


def _read_cosigned_notes(context: LedgerContext) -> list[bytes]:
    state = context.ledger.state
    seen = [one for one in state.witnesses.values() if one.vkey in state.parameters.witnesses]
    return [context.ledger.documents_of(one.index)["note"] for one in sorted(seen, key=lambda one: one.name)]


def _find_log_key_ids(note: bytes) -> set[bytes]:
    """Return the ids of the log's keys that signed the note. A note of older keys cannot be verified with the current
    ones.
    """
    parsed = parse_note(note)
    origin = parsed.text.partition("\n")[0]
    return {line.key_id for line in parsed.signatures if line.name == origin}


def commitments_in(data: bytes) -> list[str]:
    """Return every commitment in an entry or an order's envelope."""
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


def disclosed(context: LedgerContext, sources: list[bytes]) -> tuple[Disclosure, ...]:
    """Return the disclosures of the commitments in these bytes, except erased ones."""
    wanted = sorted({commitment for data in sources for commitment in commitments_in(data)})
    return tuple(context.ledger.disclosures(wanted).values())


def export(context: LedgerContext) -> Iterator[bytes]:
    """Yield the whole log as one tar archive, as of now.

    Raises:
        Conflict: A text of the log is erased meanwhile.
    """
    checkpoint = context.ledger.checkpoint()
    size = claimed_size(checkpoint)
    return write_export(
        origin=context.ledger.state.site.origin,
        size=size,
        checkpoint=checkpoint,
        entries=lambda: context.ledger.entries(0, size),
        document=context.ledger.document,
        disclosures=partial(_find_texts, context, size),
    )


def _find_texts(context: LedgerContext, size: int, wanted: list[str]) -> Mapping[str, Disclosure]:
    found, bound = context.ledger.disclosures(wanted), context.ledger.state.texts
    for text in (bound.get(commitment) for commitment in wanted if commitment not in found):
        if text is not None and text.erased is not None and text.erased >= size:
            expected = f"expected its texts to be kept meanwhile, got one erased by entry {text.erased}; ask again"
            raise Conflict(f"export of {size} entries: {expected}")
    return found


MOST_ACTORS = 200
"""Most people and units that are counted, in the order of their names. A site may have more units than fit a page."""
MOST_SHOWN = 12
"""Most values of a facet."""
_RARE_SUBJECTS = ("order:", "request:")
"""Prefixes of subjects with few entries each. As filters they are of no use."""


def count_facets(
    context: LedgerContext, filters: LogFilters, subjects: Sequence[str]
) -> tuple[Count, dict[str, list[Count]]]:
    """Return the number of matching entries, and the counts of the values of filters that are not set yet, largest
    first.

    `subjects`: the subjects to count, since a log has too many to count all.
    """
    principals = sorted(one.name for one in context.ledger.state.principals.values())[:MOST_ACTORS]
    units = [name for name in principals if _is_unit(context, name)]
    every: dict[str, Sequence[str]] = {
        "type": () if filters.type else sorted(EVENTS),
        "outcome": get_args(Outcome),
        "unit": () if filters.unit else units,
        "actor": () if filters.actor else (SERVICE, *principals),
        "subject": [one for one in dict.fromkeys(subjects) if one not in filters.subject and _is_useful_filter(one)],
    }
    facets = {name: values for name, values in every.items() if values}
    given = filters.model_dump(exclude={"type", "subject"})
    searched = Filters(types=filters.type, subjects=filters.subject, **given)  # type: ignore[typeddict-item]
    ledger = context.ledger
    found = ledger.ask(
        partial(count_by, partial_block=ledger.partial_block, totals=ledger.totals, filters=searched, facets=facets)
    )
    # Every entry has one outcome.
    outcomes = found["outcome"]
    total = Count("", sum(one.count for one in outcomes), any(one.is_least for one in outcomes))
    chosen = {"outcome"} if filters.outcome else set()
    return total, {name: counts[:MOST_SHOWN] for name, counts in found.items() if counts and name not in chosen}


def _is_unit(context: LedgerContext, name: str) -> bool:
    principal = context.ledger.state.principals.get(name)
    return principal is not None and "unit" in principal.roles


def _is_useful_filter(subject: str) -> bool:
    return not subject.startswith((*_RARE_SUBJECTS, "unit:"))
