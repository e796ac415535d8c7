"""Questions about the past and about what was made of what: each answer names the entries that prove it."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import Any

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.records.data import Dataset
from appliance.domain.core.state import State
from appliance.domain.core.words import unknown_word
from appliance.domain.data.teaching import parse_about
from appliance.domain.queries.could_load import BeforeLog, CouldLoad, could_load, reviewed_for
from appliance.domain.queries.rows import MODELS
from appliance.domain.queries.uses import TOLD_OF_ADAPTERS, used_by
from appliance.errors import Denied, NotFound, Tampered
from appliance.formats.artifacts.rows import prove_row, row_proof_value, split_digests
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.commitment import disclosure_value
from appliance.formats.core.fields import encode_base64, parse_decimal
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.store.ledger.past import (
    Window,
    count_requests,
    entries_at,
    last_at,
    page_at,
    unit_state_at,
    values_at,
)
from appliance.workflows.core.context import Context
from appliance.workflows.data.folders import secret_name
from appliance.workflows.data.teaching import read_about
from appliance.workflows.queries.log import disclosed
from appliance.workflows.releases.review import find_adapter

MAX_ROW_PROOFS = 16
"""Rows of one text that are proved; a dataset may hold a text many times."""

ROW_ROLES = ("auditor", "operator")
_POLICIES = ("appliance.initialized", "policy.adopted")


def could_load_at(context: Context, unit: str, at: str | None) -> dict[str, Any]:
    """What the unit could have loaded, and the time, type and actor of every entry that the answer rests on."""
    return could_load_page(context, unit, at, most=None)[0]


def could_load_page(
    context: Context, unit: str, at: str | None, *, past: str = "", most: int | None
) -> tuple[dict[str, Any], str | None]:
    """The same with only `most` of the adapters that no release named, from the first after `past` on; and the `past`
    of those that follow."""
    window = None if most is None else Window(past, most)
    index, now = find_moment(context, at)
    if index is None:
        first = _entry_summary(context.ledger.entry_bytes(0))
        before = BeforeLog(unit=unit, at=now, log_begins=first["time"])
        return {**before.model_dump(mode="json"), "rests_on": [first], "disclosures": []}, None
    state, following = unit_state(context, unit, index, window)
    return told(context, could_load(state, unit, now), index), following


def unit_state(context: Context, unit: str, index: int, window: Window | None = None) -> tuple[State, str | None]:
    reviewed = reviewed_for(context.ledger.state, unit, index)
    return context.ledger.ask(partial(unit_state_at, index=index, unit=unit, reviewed=reviewed, window=window))


def told(context: Context, answer: CouldLoad, index: int) -> dict[str, Any]:
    policies = context.ledger.find(types=_POLICIES, before=index + 1, newest=True, limit=1)
    rests_on = sorted({*answer.rests_on, index, *(adopted for adopted, _ in policies)})
    commitments = {
        review.printed_name
        for candidate in (*(task.candidate for task in answer.tasks), *answer.others)
        for review in candidate.reviews
        if review.printed_name is not None
    }
    return {
        **answer.model_dump(mode="json"),
        "as_of": index,
        "policy_entry": policies[0][0],
        "rests_on": [_entry_summary(data) for data in context.ledger.ask(partial(entries_at, indexes=rests_on))],
        "disclosures": [disclosure_value(name) for name in context.ledger.disclosures(commitments).values()],
    }


def find_moment(context: Context, at: str | None) -> tuple[int | None, str]:
    """The last entry of a moment, None where the log begins later, and the time that rules count with: an entry's own,
    or a time that is not to come."""
    now = context.now(context.ledger.state)
    if at is not None and at.isdecimal():
        index = parse_decimal(at, "at, entry")
        return index, parse_entry(context.ledger.entry_bytes(index)).time
    time = now if at is None else min(encode_time(parse_time(at, "at")), now)
    return context.ledger.ask(partial(last_at, unfiled=context.ledger.unfiled, time=time)), time


def _entry_summary(data: bytes) -> dict[str, Any]:
    entry = parse_entry(data)
    return {"entry": entry.index, "time": entry.time, "type": entry.type, "actor": entry.actor}


def state_as_of(context: Context, at: str | None, kinds: list[str]) -> dict[str, Any]:
    """Every thing of the state after an entry, each since which entry it is as it is."""
    index, moment = find_moment(context, at)
    if index is None:
        begins = parse_entry(context.ledger.entry_bytes(0)).time
        raise NotFound(f"entry at {moment}: expected a time since {begins}, when the log begins, got an earlier one")
    values = context.ledger.ask(partial(values_at, index=index, kinds=kinds or tuple(MODELS)))
    return {
        "as_of": index,
        "time": parse_entry(context.ledger.entry_bytes(index)).time,
        "things": [{**asdict(value), "value": json.loads(value.value)} for value in values],
    }


def things_as_of(context: Context, at: str | None, kind: str, past: str, limit: int) -> dict[str, Any]:
    """The same of one kind, a page at a time: `limit` things from the first identifier after `past` on."""
    index, moment = find_moment(context, at)
    if index is None:
        begins = parse_entry(context.ledger.entry_bytes(0)).time
        raise NotFound(f"entry at {moment}: expected a time since {begins}, when the log begins, got an earlier one")
    values = context.ledger.ask(partial(page_at, index=index, kind=kind, past=past, limit=limit))
    return {
        "as_of": index,
        "time": parse_entry(context.ledger.entry_bytes(index)).time,
        "things": [{**asdict(value), "value": json.loads(value.value)} for value in values],
    }


def dataset_uses(context: Context, name: str) -> list[dict[str, Any]]:
    with context.ledger.lock:
        found = used_by(context.ledger.state, name)
    if not found:
        raise _no_dataset(context, name)
    return [uses.model_dump(mode="json") for uses in found]


def _no_dataset(context: Context, name: str) -> NotFound:
    known = [key for key, _ in context.ledger.state.datasets.items()]
    return NotFound(unknown_word("dataset", name, known, "an imported one"))


def dataset_labels(context: Context, name: str) -> dict[str, dict[str, int]]:
    """For each label of a classification, how many rows of each split have it; empty for another task."""
    dataset = context.ledger.state.datasets.get(name)
    if dataset is None:
        raise _no_dataset(context, name)
    counts = {label: {"train": 0, "held-out": 0} for label in parse_about(read_about(context, dataset)).labels}
    if not counts:
        return {}
    for line in context.artifacts.read(dataset.digest, "rows.jsonl").splitlines():
        row = json.loads(line)
        if row["answer"] in counts:
            counts[row["answer"]][row["split"]] += 1
    return counts


def dataset_row(context: Context, person: str, name: str, text: str) -> list[dict[str, Any]]:
    """For each version of the dataset, the rows of this text, each with a proof that opens this row and no other.

    Importers and auditors may ask. That there is no such row cannot be proved.
    """
    principal = context.ledger.state.principals.get(person)
    if principal is None or not any(principal.has(role) for role in ROW_ROLES):
        held = "none" if principal is None else ", ".join(principal.roles)
        raise Denied(f"row of a dataset: expected {person} to have the role {' or '.join(ROW_ROLES)}, got {held}")
    datasets = [(key, row) for key, row in context.ledger.state.datasets.items() if name in (key, row.name)]
    if not datasets:
        raise _no_dataset(context, name)
    return [_rows(context, key, dataset, text) for key, dataset in datasets]


def _rows(context: Context, key: str, dataset: Dataset, text: str) -> dict[str, Any]:
    lines = context.artifacts.read(dataset.digest, "rows.jsonl")
    # Canonical: the text is the last member, and no text can hold the quotation mark that ends one.
    needle = b',"text":' + encode_canonical(text) + b"}\n"
    found = []
    place = lines.find(needle)
    while place >= 0:
        start = lines.rfind(b"\n", 0, place) + 1
        found.append(lines[start : place + len(needle) - 1])
        place = lines.find(needle, place + len(needle))
    answer = {"dataset": key, "imported": dataset.index, "found": len(found), "proofs": []}
    return answer if not found else {**answer, "proofs": _prove(context, dataset, found[:MAX_ROW_PROOFS])}


def _prove(context: Context, dataset: Dataset, rows: list[bytes]) -> list[dict[str, Any]]:
    secret = context.keyring.read_secret(secret_name(dataset.digest))
    digests = split_digests(context.artifacts.read(dataset.digest, "row_digests.bin"))
    proofs = []
    for row in rows:
        index = parse_canonical(row)["index"]
        if not isinstance(index, int) or not 0 <= index < len(digests):
            raise Tampered(f"dataset {dataset.name}@{dataset.version}, row: expected an index of it, got {index!r:.40}")
        proofs.append(row_proof_value(prove_row(secret, digests, index, row)))
    return proofs


def adapter_story(context: Context, name: str) -> dict[str, Any]:
    """Everything that ever happened to an adapter, in order, from the imports it is made of; requests are counted."""
    with context.ledger.lock:
        state = context.ledger.state
        size = state.size
        made_by = _made_by(state, name)
        open_requests = sum(request.adapter == name for request in state.requests.values())
    found = {index: context.ledger.entry_bytes(index) for index in made_by}
    run = find_adapter(state, name).run
    for subject, types in ((f"run:{run}", ()), (f"adapter:{name}", TOLD_OF_ADAPTERS)):
        after: int | None = None
        while page := context.ledger.find(subjects=[subject], types=types, after=after, before=size, limit=1_000):
            after = page[-1][0]
            found.update(page)
    wanted = partial(
        count_requests, unfiled=context.ledger.unfiled, adapter=name, size=size, open_requests=open_requests
    )
    counts = context.ledger.ask(wanted)
    return {"entries": [_entry_with_order(context, found[index]) for index in sorted(found)], "requests": counts}


def _made_by(state: State, name: str) -> list[int]:
    """The imports that the adapter stands on: what was ordered and what came of it."""
    run = state.runs.get(find_adapter(state, name).run)
    if run is None:
        return []
    sources = (state.bases.get(run.base), state.datasets.get(run.dataset))
    ordered = (state.imports.get(source.order) for source in sources if source is not None)
    return [row.index for row in (*sources, *ordered) if row is not None]


def _entry_with_order(context: Context, data: bytes) -> dict[str, Any]:
    """An entry; with its order and the texts that it committed to, where it has one."""
    digest = parse_entry(data).documents.get("order")
    order = None if digest is None else context.ledger.document(digest)
    sources = [data] if order is None else [data, order]
    return {
        "entry": encode_base64(data),
        "order": None if order is None else encode_base64(order),
        "disclosures": disclosed(context, sources),
    }
