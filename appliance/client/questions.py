"""Questions to the service about the past. The client checks the answers as far as it can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.client.support.door import Door
from appliance.client.support.log import Anchor, read_entry
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.order import Order
from appliance.domain.rulebook.registry import ORDERS
from appliance.errors import Tampered, Unavailable
from appliance.formats.artifacts.rows import RowProof, parse_row_proof_value, verify_row
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.commitment import parse_disclosure_value, verify_disclosure
from appliance.formats.core.digest import digest_bytes, raw_digest
from appliance.formats.core.fields import parse_base64
from appliance.formats.signatures.dsse import parse_envelope


@dataclass(frozen=True)
class Proved:
    """An answer, each of whose entries was proved to be in the log, which then had this many."""

    answer: dict[str, Any]
    entries: int
    log_size: int


def could_load(door: Door, anchor: Anchor, unit: str, at: str | None) -> Proved:
    """What the unit could have loaded. The client proves that the named entries are as named. That no other entry
    contradicts the answer is known only once the log is verified."""
    return _prove_could_load(door, anchor, dict(door.get(f"/v1/units/{unit}/could-load", at=at)))


def could_load_between(door: Door, anchor: Anchor, unit: str, since: str, until: str | None) -> dict[str, Any]:
    """The same for a span: `since`, `until` and `periods`, each a Proved answer that held until the next one's."""
    answer = dict(door.get(f"/v1/units/{unit}/could-load", since=since, until=until))
    return {**answer, "periods": [_prove_could_load(door, anchor, dict(one)) for one in answer["periods"]]}


def _prove_could_load(door: Door, anchor: Anchor, answer: dict[str, Any]) -> Proved:
    size = 0
    for named in answer["rests_on"]:
        entry, size = _entry(door, anchor, int(named["entry"]))
        got = {"entry": entry.index, "time": entry.time, "type": entry.type, "actor": entry.actor}
        if got != named:
            raise Tampered(f"entry {entry.index}: expected {named}, as the answer says, got {got}")
    if "log_begins" in answer:
        _check_begins(answer)
    names = [parse_disclosure_value(value) for value in answer.pop("disclosures")]
    for name in names:
        verify_disclosure(name)
    answer["names"] = {name.commitment: name.text for name in names}
    return Proved(answer, len(answer["rests_on"]), size)


def _check_begins(answer: Mapping[str, Any]) -> None:
    """The first entry, which was proved, is later than the moment; Tampered otherwise."""
    firsts = [named["time"] for named in answer["rests_on"] if named["entry"] == 0]
    if firsts != [answer["log_begins"]] or firsts[0] <= answer["at"]:
        raise Tampered(f"entry 0: expected one later than {answer['at']}, as the answer says, got {firsts}")


def _entry(door: Door, anchor: Anchor, index: int) -> tuple[Entry, int]:
    proven = read_entry(door, anchor, index)
    return proven.entry, proven.size


def state_as_of(door: Door, at: str | None, kinds: tuple[str, ...]) -> dict[str, Any]:
    return dict(door.get("/v1/ledger/state", at=at, kind=kinds))


def dataset_uses(door: Door, name: str) -> list[dict[str, Any]]:
    return list(door.get(f"/v1/datasets/{name}/uses"))


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
    """`found`: how often the service says that the text is there; at most 16 of them are proved."""

    dataset: str
    entry: int
    found: int
    rows: tuple[FoundRow, ...]


def find_row(door: Door, anchor: Anchor, name: str, text: str) -> list[RowAnswer]:
    """For each version of the dataset, the rows of this text, each proved here; Tampered when a proof does not hold."""
    return [
        _row_answer(door, anchor, version, text) for version in door.post(f"/v1/datasets/{name}/row", {"text": text})
    ]


def _row_answer(door: Door, anchor: Anchor, version: Mapping[str, Any], text: str) -> RowAnswer:
    dataset, index = str(version["dataset"]), int(version["imported"])
    entry, _ = _entry(door, anchor, index)
    if (entry.type, entry.body.get("dataset")) != ("dataset.imported", dataset):
        raise Tampered(f"entry {index}: expected the import of {dataset}, got {entry.type}")
    root, size = str(entry.body["root"]), int(entry.body["facts"]["rows"])
    rows = []
    for value in version["proofs"]:
        proof = parse_row_proof_value(value)
        verify_row(proof, size, raw_digest(root))
        row = parse_canonical(proof.row)
        if not isinstance(row, dict) or (row.get("text"), row.get("index")) != (text, proof.index):
            raise Tampered(
                f"row {proof.index} of {dataset}: expected the text that was asked for, got one of a different text"
            )
        rows.append(FoundRow(dataset, index, root, str(row["split"]), str(row["answer"]), proof))
    if bool(rows) != bool(version["found"]):
        raise Unavailable(f"rows of {dataset}: expected a proof for what was found, got {len(rows)}")
    return RowAnswer(dataset, index, int(version["found"]), tuple(rows))


@dataclass(frozen=True)
class Step:
    """An entry of a story, with its order in words where it has one; `texts` by the order's field."""

    entry: Entry
    order: Order | None
    texts: Mapping[str, str]


def adapter_story(door: Door, name: str) -> tuple[dict[str, Any], list[Step], dict[str, int]]:
    """The adapter's row; every entry about it, its run and what it is made of, in order; its requests, counted."""
    row = dict(door.get(f"/v1/adapters/{name}"))
    answer = door.get(f"/v1/adapters/{name}/history")
    return row, [_step(item) for item in answer["entries"]], dict(answer["requests"])


def _step(item: Mapping[str, Any]) -> Step:
    """Order and texts are those that the entry binds; Tampered when they are others."""
    entry = parse_entry(parse_base64(item["entry"], "entry"))
    texts = {}
    for value in item["disclosures"]:
        disclosure = parse_disclosure_value(value)
        verify_disclosure(disclosure)
        texts[disclosure.commitment] = disclosure.text
    if item["order"] is None:
        return Step(entry, None, _opened(entry.body, texts))
    data = parse_base64(item["order"], f"entry {entry.index}, order")
    if digest_bytes(data) != entry.documents.get("order"):
        raise Tampered(f"entry {entry.index}, order: expected {entry.documents.get('order')}, got other bytes")
    order = ORDERS.parse(parse_envelope(data).payload)
    return Step(entry, order, _opened(order.model_dump(mode="json"), texts))


def _opened(values: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, str]:
    return {name: texts[value] for name, value in values.items() if isinstance(value, str) and value in texts}
