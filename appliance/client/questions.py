"""Questions to the service about the past. The client verifies the answers as far as possible."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.api.data import RowRequest, RowsFound
from appliance.api.log import AccessPeriods, EffectiveAccess, EntrySummary, LogPage, StateAt
from appliance.api.releases import Adapter, AdapterHistory, HistoryStep
from appliance.client.support.connection import Connection
from appliance.client.support.log import Anchor, ProvenEntry, find_entries, read_entry, read_event
from appliance.domain.actions.apply import parse_body
from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.order import Order
from appliance.domain.data.artifacts import DatasetImported
from appliance.domain.queries.effective_access import BeforeLog
from appliance.domain.queries.rows import DatasetUses
from appliance.domain.serving.requests import RequestAdmitted, RequestFinished
from appliance.errors import BadInput, NotFound, Tampered, Unavailable
from appliance.formats.artifacts.rows import RowProof, verify_row
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.commitment import verify_disclosure
from appliance.formats.core.digest import digest_bytes, raw_digest
from appliance.formats.signatures.dsse import parse_envelope


@dataclass(frozen=True)
class ProvedAnswer:
    """An answer whose entries were proved to be in the log, the printed names by commitment, and the log's size."""

    found: EffectiveAccess
    names: dict[str, str]
    log_size: int


def effective_access(connection: Connection, anchor: Anchor, unit: str, at: str | None) -> ProvedAnswer:
    """Return what the unit could have loaded.

    The client proves that the named entries are as named. Only a verification of the whole log shows that no other
    entry contradicts the answer.
    """
    return _prove_effective_access(
        connection, anchor, connection.get(f"/v1/units/{unit}/effective-access", EffectiveAccess, at=at)
    )


def effective_access_between(
    connection: Connection, anchor: Anchor, unit: str, since: str, until: str | None
) -> tuple[AccessPeriods, list[ProvedAnswer]]:
    """Return the same for a period: each answer was valid until the next."""
    during = connection.get(f"/v1/units/{unit}/effective-access", AccessPeriods, since=since, until=until)
    return during, [_prove_effective_access(connection, anchor, found) for found in during.periods]


def _prove_effective_access(connection: Connection, anchor: Anchor, found: EffectiveAccess) -> ProvedAnswer:
    size = 0
    for named in found.rests_on:
        proven = read_entry(connection, anchor, named.entry)
        entry, size = proven.entry, proven.size
        got = EntrySummary(entry=entry.index, time=entry.time, type=entry.type, actor=entry.actor)
        if got != named:
            raise Tampered(f"entry {entry.index}: expected {named}, as the answer says, got {got}")
    if isinstance(found.answer, BeforeLog):
        _check_begins(found, found.answer)
    for name in found.disclosures:
        verify_disclosure(name)
    return ProvedAnswer(found, {name.commitment: name.text for name in found.disclosures}, size)


def _check_begins(found: EffectiveAccess, answer: BeforeLog) -> None:
    """Raise Tampered unless the first entry, which was proved, is later than the requested time."""
    firsts = [named.time for named in found.rests_on if named.entry == 0]
    if firsts != [answer.log_begins] or firsts[0] <= answer.at:
        raise Tampered(f"entry 0: expected one later than {answer.at}, as the answer says, got {firsts}")


def state_as_of(connection: Connection, at: str | None, kinds: tuple[str, ...]) -> StateAt:
    """Return the state at a time."""
    return connection.get("/v1/ledger/state", StateAt, at=at, kind=kinds)


def dataset_uses(connection: Connection, name: str) -> list[DatasetUses]:
    """Return the uses of a dataset."""
    return connection.get(f"/v1/datasets/{name}/uses", list[DatasetUses])


@dataclass(frozen=True)
class FoundRow:
    """A row proved to be in a version of a dataset, under the root that the log's entry binds."""

    dataset: str
    entry: int
    root: str
    split: str
    answer: str
    proof: RowProof


@dataclass(frozen=True)
class RowAnswer:
    """The rows of a version of a dataset with a text.

    `found` is their number by the service; at most 16 of them are proved.
    """

    dataset: str
    entry: int
    found: int
    rows: tuple[FoundRow, ...]


def find_row(connection: Connection, anchor: Anchor, name: str, text: str) -> list[RowAnswer]:
    """Return the rows of this text for each version of the dataset, each proved here.

    Raises: Tampered if a proof is invalid; Unavailable if there is none.
    """
    return [
        _row_answer(connection, anchor, version, text)
        for version in connection.post(f"/v1/datasets/{name}/row", list[RowsFound], RowRequest(text=text))
    ]


def _row_answer(connection: Connection, anchor: Anchor, version: RowsFound, text: str) -> RowAnswer:
    dataset, index = version.dataset, version.imported
    _, imported = read_event(connection, anchor, index, DatasetImported, dataset=dataset)
    rows = []
    for proof in version.proofs:
        verify_row(proof, int(imported.facts["rows"]), raw_digest(imported.root))
        row = parse_canonical(proof.row)
        if not isinstance(row, dict) or (row.get("text"), row.get("index")) != (text, proof.index):
            raise Tampered(
                f"row {proof.index} of {dataset}: expected the text that was asked for, got one of a different text"
            )
        rows.append(FoundRow(dataset, index, imported.root, str(row["split"]), str(row["answer"]), proof))
    if bool(rows) != bool(version.found):
        raise Unavailable(f"rows of {dataset}: expected a proof for what was found, got {len(rows)}")
    return RowAnswer(dataset, index, version.found, tuple(rows))


@dataclass(frozen=True)
class HistoryEntry:
    """An entry of an adapter's history, with its order if it has one, and its `texts` by the order's field."""

    entry: Entry
    order: Order | None
    texts: Mapping[str, str]


def read_adapter_history(connection: Connection, name: str) -> tuple[Adapter, list[HistoryEntry], dict[str, int]]:
    """Return the adapter's row, the entries of its history, and the counts of its requests.

    The entries are those about the adapter, its run and its inputs, in order.
    """
    row, found = (
        connection.get(f"/v1/adapters/{name}", Adapter),
        connection.get(f"/v1/adapters/{name}/history", AdapterHistory),
    )
    return row, [_parse_step(item) for item in found.entries], found.requests


def _parse_step(item: HistoryStep) -> HistoryEntry:
    """Return an entry with the order and texts that it binds.

    Raises: Tampered if they differ from the bound ones.
    """
    entry, data, texts = parse_entry(item.entry), item.order, {}
    for disclosure in item.disclosures:
        verify_disclosure(disclosure)
        texts[disclosure.commitment] = disclosure.text
    if data is None:
        return HistoryEntry(entry, None, _open_texts(entry.body, texts))
    if digest_bytes(data) != entry.documents.get("order"):
        raise Tampered(f"entry {entry.index}, order: expected {entry.documents.get('order')}, got other bytes")
    order = ORDERS.parse(parse_envelope(data).payload)
    return HistoryEntry(entry, order, _open_texts(order.model_dump(mode="json"), texts))


def _open_texts(values: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, str]:
    return {name: texts[value] for name, value in values.items() if isinstance(value, str) and value in texts}


_ID = re.compile(r"(?:chatcmpl-|cmpl-|classify-)?([0-9a-f]{32})")


@dataclass(frozen=True)
class RequestHistory:
    """The entries of a request.

    `finished` is None while the request is open. `rests_on` are admission, release and reviews, in this order.
    """

    name: str
    admitted: ProvenEntry
    finished: ProvenEntry | None
    rests_on: tuple[ProvenEntry, ...]

    @property
    def last(self) -> ProvenEntry:
        """Return the latest entry of the request."""
        return self.finished or self.admitted


def parse_request_id(text: str) -> str:
    """Return the request's name, from itself or from the `id` of a response.

    Raises: BadInput if it is malformed.
    """
    found = _ID.fullmatch(text)
    if found is None:
        raise BadInput(f"request: expected the id of an answer, or its 32 hexadecimal digits, got {text!r:.80}")
    return found[1]


def find_request(connection: Connection, anchor: Anchor, name: str) -> RequestHistory:
    """Return the proved entries of a request.

    Raises: NotFound if the log has none of this name; Tampered if its entries are not those of the request.
    """
    subject = f"request:{name}"
    found = [read_entry(connection, anchor, entry.index) for entry in find_entries(connection, subject=(subject,))]
    if not found:
        page = connection.get("/v1/ledger", LogPage, subject=(subject,), limit=1)
        for archive in page.archived:
            raise NotFound(f"request {name}: {archive}", code="archived")
        raise NotFound(f"request: expected one in the log, got {name}")
    for proven in found:
        if proven.entry.subjects[0] != subject:
            raise Tampered(f"entry {proven.entry.index}: expected one of {subject}, got {proven.entry.subjects[0]}")
    admitted, *rest = found
    body = parse_body(admitted.entry)
    if not isinstance(body, RequestAdmitted) or [proven.entry.type for proven in rest] not in (
        [],
        [RequestFinished.type],
    ):
        types = ", ".join(proven.entry.type for proven in found)
        raise Unavailable(f"request {name}: expected its beginning, and its end at most, got {types}")
    rests_on = (body.admitted, body.release, *body.approvals)
    return RequestHistory(
        name,
        admitted,
        rest[0] if rest else None,
        tuple(read_entry(connection, anchor, index) for index in rests_on),
    )
