"""Questions about the past, effective access, and lineage. Each answer names the entries that prove it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

from appliance.api.data import RowsFound, SplitRows
from appliance.api.log import EffectiveAccess, EntrySummary, StateAt, StateRow
from appliance.api.releases import AdapterHistory, HistoryStep
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.records.data import Dataset
from appliance.domain.core.state import State
from appliance.domain.data.kinds import parse_about
from appliance.domain.queries.effective_access import BeforeLog, UnitAccess, effective_access, list_reviewed_adapters
from appliance.domain.queries.rows import LISTED_OF_ADAPTERS, MODELS, DatasetUses, used_by
from appliance.domain.queries.unit_reading import UnitReader
from appliance.errors import Denied, NotFound, Tampered
from appliance.formats.artifacts.rows import RowProof, prove_row, split_digests
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.fields import parse_decimal
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.store.ledger.past import (
    Window,
    count_requests,
    entries_at,
    last_at,
    unit_state_at,
    values_at,
)
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.data.folders import read_about, secret_name
from appliance.workflows.queries.log import disclosed
from appliance.workflows.releases.review import find_adapter

MAX_ROW_PROOFS = 16
"""Most rows of one text that are proved. A dataset may contain a text many times."""

ROW_ROLES = ("auditor", "operator")
"""Roles that may ask for rows."""
_POLICIES = ("appliance.initialized", "policy.adopted")


def effective_access_at(context: LedgerContext, unit: str, at: str | None) -> EffectiveAccess:
    """Return the unit's effective access at a time, with time, type and actor of every entry on which the answer
    rests.
    """
    return effective_access_page(context, unit, at, most=None)[0]


def effective_access_page(
    context: LedgerContext, unit: str, at: str | None, *, past: str = "", most: int | None
) -> tuple[EffectiveAccess, str | None]:
    """Return one page of a unit's effective access, and the `past` of the next page or None.

    The page has at most `most` of the adapters that no release named, from the first one after `past` on.
    """
    window = None if most is None else Window(past, most)
    index, now = find_moment(context, at)
    if index is None:
        first = _entry_summary(context.ledger.entry_bytes(0))
        before = BeforeLog(unit=unit, at=now, log_begins=first.time)
        return EffectiveAccess(answer=before, as_of=None, policy_entry=None, rests_on=(first,), disclosures=()), None
    state, following = unit_state(context, unit, index, window)
    return add_evidence(context, effective_access(state, unit, now), index), following


def unit_state(context: LedgerContext, unit: str, index: int, window: Window | None = None) -> tuple[State, str | None]:
    """Return the rows of the state after an entry that decide a unit's effective access, and the `past` of the next
    page.
    """
    reviewed = list_reviewed_adapters(context.ledger.state, unit, index)
    return context.ledger.ask(partial(unit_state_at, index=index, unit=unit, reviewed=reviewed, window=window))


def add_evidence(context: LedgerContext, answer: UnitAccess, index: int) -> EffectiveAccess:
    """Return the answer with the entries on which it rests."""
    policies = context.ledger.find(types=_POLICIES, before=index + 1, newest=True, limit=1)
    rests_on = sorted({*answer.rests_on, index, *(adopted for adopted, _ in policies)})
    commitments = {
        review.printed_name
        for candidate in (*(model.candidate for model in answer.served_models), *answer.others)
        for review in candidate.reviews
        if review.printed_name is not None
    }
    return EffectiveAccess(
        answer=answer,
        as_of=index,
        policy_entry=policies[0][0],
        rests_on=tuple(map(_entry_summary, context.ledger.ask(partial(entries_at, indexes=rests_on)))),
        disclosures=tuple(context.ledger.disclosures(commitments).values()),
    )


def find_moment(context: LedgerContext, at: str | None) -> tuple[int | None, str]:
    """Return the last entry of a moment and the time that the rules use.

    The entry is None if the log begins later. The time is that of the given entry, or the given time but not later than
    now.
    """
    now = context.now(context.ledger.state)
    if at is not None and at.isdecimal():
        index = parse_decimal(at, "at, entry")
        return index, parse_entry(context.ledger.entry_bytes(index)).time
    time = now if at is None else min(encode_time(parse_time(at, "at")), now)
    return context.ledger.ask(partial(last_at, partial_block=context.ledger.partial_block, time=time)), time


def _entry_summary(data: bytes) -> EntrySummary:
    entry = parse_entry(data)
    return EntrySummary(entry=entry.index, time=entry.time, type=entry.type, actor=entry.actor)


def state_as_of(
    context: LedgerContext,
    at: str | None,
    kinds: Sequence[str],
    reader: UnitReader | None = None,
    *,
    past: str = "",
    limit: int | None = None,
) -> StateAt:
    """Return the rows of the state after an entry, for a unit's reader those that concern the unit.

    Of each kind, only up to `limit` rows with identifiers after `past` are read.

    Raises:
        NotFound: The log begins later.
    """
    index, moment = find_moment(context, at)
    if index is None:
        begins = parse_entry(context.ledger.entry_bytes(0)).time
        raise NotFound(f"entry at {moment}: expected a time since {begins}, when the log begins, got an earlier one")
    wanted = partial(values_at, index=index, kinds=kinds or tuple(MODELS), past=past, limit=limit)
    rows = tuple(
        StateRow(kind=row.kind, id=row.id, since=row.since, value=json.loads(row.value))
        for row in context.ledger.ask(wanted)
    )
    if reader is not None:
        narrowed = ((row, reader.narrow_row(row.kind, row.id, row.value)) for row in rows)
        rows = tuple(row.model_copy(update={"value": value}) for row, value in narrowed if value is not None)
    time = parse_entry(context.ledger.entry_bytes(index)).time
    return StateAt(as_of=index, time=time, narrowed=reader is not None, rows=rows)


def dataset_uses(context: LedgerContext, name: str) -> tuple[DatasetUses, ...]:
    """Return the uses of each version of a dataset.

    Raises:
        NotFound: There is no such dataset.
    """
    with context.ledger.lock:
        found = used_by(context.ledger.state, name)
    if not found:
        context.ledger.state.datasets.require(name)
    return found


def dataset_labels(context: LedgerContext, name: str) -> dict[str, SplitRows]:
    """Return the number of rows of each split for each label of a classification; empty for another kind of dataset.

    Raises:
        NotFound: There is no such dataset.
        Tampered: Its file has changed and has other lines than rows.
    """
    dataset = context.ledger.state.datasets.require(name)
    counts = {label: {"train": 0, "held-out": 0} for label in parse_about(read_about(context, dataset)).labels}
    if not counts:
        return {}
    for line in context.artifacts.read_lines(dataset.digest, "rows.jsonl"):
        try:
            row = json.loads(line)
            if row["answer"] in counts:
                counts[row["answer"]][row["split"]] += 1
        except (ValueError, TypeError, KeyError):
            raise Tampered(f"dataset {name}, rows.jsonl: expected rows as they were sealed, got others") from None
    return {label: SplitRows.model_validate(count) for label, count in counts.items()}


def dataset_row(context: LedgerContext, person: str, name: str, text: str) -> list[RowsFound]:
    """Return, for each version of the dataset, the rows of this text, each with a proof that opens this row only.

    That there is no such row cannot be proved.

    Raises:
        Denied: The person is neither an importer nor an auditor.
        NotFound: There is no such dataset.
    """
    principal = context.ledger.state.principals.get(person)
    if principal is None or not any(principal.has(role) for role in ROW_ROLES):
        held = "none" if principal is None else ", ".join(principal.roles)
        raise Denied(f"row of a dataset: expected {person} to have the role {' or '.join(ROW_ROLES)}, got {held}")
    datasets = [(key, row) for key, row in context.ledger.state.datasets.items() if name in (key, row.name)]
    if not datasets:
        context.ledger.state.datasets.require(name)
    return [_find_rows(context, key, dataset, text) for key, dataset in datasets]


def _find_rows(context: LedgerContext, key: str, dataset: Dataset, text: str) -> RowsFound:
    # In canonical JSON the text is the last field, and an unescaped quotation mark ends it.
    ending = b',"text":' + encode_canonical(text) + b"}\n"
    first, found = [], 0
    for line in context.artifacts.read_lines(dataset.digest, "rows.jsonl"):
        if line.endswith(ending):
            found += 1
            if found <= MAX_ROW_PROOFS:
                first.append(line.removesuffix(b"\n"))
    proofs = _prove(context, dataset, first) if first else ()
    return RowsFound(dataset=key, imported=dataset.index, found=found, proofs=proofs)


def _prove(context: LedgerContext, dataset: Dataset, rows: list[bytes]) -> tuple[RowProof, ...]:
    secret = context.keyring.read_secret(secret_name(dataset.digest))
    digests = split_digests(context.artifacts.read(dataset.digest, "row_digests.bin"))
    proofs = []
    for row in rows:
        index = parse_canonical(row)["index"]
        if not isinstance(index, int) or not 0 <= index < len(digests):
            raise Tampered(f"dataset {dataset.name}@{dataset.version}, row: expected an index of it, got {index!r:.40}")
        proofs.append(prove_row(secret, digests, index, row))
    return tuple(proofs)


def read_adapter_history(context: LedgerContext, name: str) -> AdapterHistory:
    """Return every entry about an adapter in order, from the imports it is made of, and its number of requests."""
    with context.ledger.lock:
        state = context.ledger.state
        size = state.size
        made_by = _find_imports(state, name)
        open_requests = sum(request.adapter == name for request in state.requests.values())
    found = {index: context.ledger.entry_bytes(index) for index in made_by}
    run = find_adapter(state, name).run
    for subject, types in ((f"run:{run}", ()), (f"adapter:{name}", LISTED_OF_ADAPTERS)):
        after: int | None = None
        while page := context.ledger.find(subjects=[subject], types=types, after=after, before=size, limit=1_000):
            after = page[-1][0]
            found.update(page)
    count = partial(
        count_requests, partial_block=context.ledger.partial_block, adapter=name, size=size, open_requests=open_requests
    )
    counts = context.ledger.ask(count)
    steps = tuple(_entry_with_order(context, found[index]) for index in sorted(found))
    return AdapterHistory(entries=steps, requests=counts)


def _find_imports(state: State, name: str) -> list[int]:
    """Return the entries of the adapter's imports: their orders and their results."""
    run = state.runs.get(find_adapter(state, name).run)
    if run is None:
        return []
    sources = (state.bases.get(run.base), state.datasets.get(run.dataset))
    ordered = (state.imports.get(source.order) for source in sources if source is not None)
    return [row.index for row in (*sources, *ordered) if row is not None]


def _entry_with_order(context: LedgerContext, data: bytes) -> HistoryStep:
    """Return an entry with its order and the texts that the order committed to, if it has one."""
    digest = parse_entry(data).documents.get("order")
    order = None if digest is None else context.ledger.document(digest)
    sources = [data] if order is None else [data, order]
    return HistoryStep(entry=data, order=order, disclosures=disclosed(context, sources))
