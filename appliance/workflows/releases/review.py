"""The material of a review, which a reviewer's client hashes and evaluates itself, and the review page.

A reviewer's client computes the same page by itself; the console shows the one that the service computes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import fields

from appliance.api import releases
from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.case import RecordedEntry
from appliance.domain.core.decisions import ReviewRecord
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import Time
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.state import State
from appliance.domain.evaluation.confusion import Confusion
from appliance.domain.queries.review.changes import SealedVersion
from appliance.domain.queries.review.page import Count, count_items, make_page, read_order
from appliance.domain.queries.review.reported_state import ReportedState, describe_request, report_state
from appliance.domain.queries.review.values import ReviewPage
from appliance.domain.releases.adapters import is_suspended
from appliance.domain.releases.approval import find_review_status
from appliance.domain.releases.requests import find_current_request, find_reattestation_deadline
from appliance.domain.releases.reviews import ReviewRecorded
from appliance.domain.releases.verdicts import is_open
from appliance.errors import NotFound, Tampered
from appliance.formats.artifacts.manifest import ManifestFile
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64
from appliance.formats.signatures.dsse import parse_envelope
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.data.folders import read_about


def find_adapter(state: State, name: str) -> Adapter:
    """Return the adapter of this name and version.

    Raises:
        NotFound: There is none.
    """
    if not len(state.adapters):
        got = "none is sealed yet, and a run that ends well seals one"
        raise NotFound(f"adapter: expected a sealed one, got {name!r:.80}; {got}")
    return state.adapters.require(name)


def adapter_file(context: LedgerContext, name: str, path: str) -> bytes:
    """Return one file of the sealed folder with its current bytes. The client checks them."""
    adapter = find_adapter(context.ledger.state, name)
    return context.artifacts.read(adapter.manifest, path)


def adapter_row(context: LedgerContext, adapter: Adapter) -> releases.Adapter:
    """Return the adapter with the states of its reviews, findings and suspensions, and the status of its valid
    requests.
    """
    state = context.ledger.state
    now = context.now(state)
    requests = [find_current_request(state, adapter, unit) for unit in sorted({one.unit for one in adapter.requests})]
    described = {
        "reviews": tuple(_describe_review(state, adapter, one, now) for one in adapter.reviews),
        "findings": tuple(releases.Finding(**dict(one), open=is_open(state, one)) for one in adapter.findings),
        "suspensions": tuple(
            releases.Suspension(**dict(one), valid=is_suspended(state, one)) for one in adapter.suspensions
        ),
        "release_requests": tuple(
            releases.CurrentRequest(request=one, **dict(describe_request(state, adapter, one.unit, now)))
            for one in requests
            if one is not None
        ),
    }
    return releases.Adapter(**dict(adapter) | described)


def _describe_review(state: State, adapter: Adapter, review: ReviewRecord, now: Time) -> releases.Review:
    own = {field.name: getattr(review, field.name) for field in fields(review)}
    found = find_review_status(state, adapter, review, now)
    status = {field.name: getattr(found, field.name) for field in fields(found)}
    return releases.Review(**own, again_by=find_reattestation_deadline(state, adapter, review), **status)


def reviews_among(context: LedgerContext, entries: Iterable[tuple[int, bytes]]) -> dict[int, releases.Review]:
    """Return the reviews among these entries by entry. No other entry is parsed."""
    state, marked = context.ledger.state, f'"type":"{ReviewRecorded.type}"'.encode()
    now = context.now(state)
    adapters = ((index, _adapter_of(state, data)) for index, data in entries if marked in data)
    return {
        index: _describe_review(state, adapter, review, now)
        for index, adapter in adapters
        if adapter is not None
        for review in adapter.reviews
        if review.index == index
    }


def _adapter_of(state: State, data: bytes) -> Adapter | None:
    names = (subject.removeprefix("adapter:") for subject in parse_entry(data).subjects if subject[:8] == "adapter:")
    return next((adapter for name in names if (adapter := state.adapters.get(name)) is not None), None)


MOST_ROWS = 50_000
"""Most labels and confusions that are cached for all sets together (about 30 MB)."""


class ItemCountCache:
    """A cache of counts by manifest and items file. The least recently used ones are dropped first."""

    def __init__(self, most: int = MOST_ROWS, count: Count = count_items) -> None:
        self._most, self._count, self._count_rows = most, count, 0
        self._kept: OrderedDict[tuple[str, str], Confusion | None] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, version: SealedVersion, path: str) -> Confusion | None:
        """Return the counts of a version whose files were checked against its manifest."""
        key = version.signed_content.manifest, path
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = self._count(version, path)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = found
                self._count_rows += _count_rows(found)
            while self._count_rows > self._most:
                _, dropped = self._kept.popitem(last=False)
                self._count_rows -= _count_rows(dropped)
        return found


def _count_rows(found: Confusion | None) -> int:
    return 1 if found is None else 1 + len(found.labels) + len(found.pairs)


COUNTS = ItemCountCache()
"""Cache of this process. A key determines its count completely."""


def review_page(context: LedgerContext, name: str) -> ReviewPage:
    """Return the review page of an adapter. Every file of the page is checked against the manifest in the log."""
    return make_page(StatePageSource(context), name, COUNTS)


def read_reported_state(context: LedgerContext, name: str) -> ReportedState:
    """Return the present state of an adapter, which a reviewer's client needs for the review page.

    Raises: NotFound for an unknown one.
    """
    state = context.ledger.state
    adapter = find_adapter(state, name)
    dataset = state.datasets.require(adapter.dataset)
    return report_state(state, adapter, encode_base64(read_about(context, dataset)), context.now(state))


class StatePageSource:
    """A `PageSource` that reads the service's own ledger, folders and state."""

    def __init__(self, context: LedgerContext) -> None:
        self._context = context
        self._reported_states: dict[str, ReportedState] = {}

    def adapter_keys(self, index: int) -> tuple[bytes, ...]:
        return self._context.ledger.state.site.adapter_keys(index)

    def entry(self, index: int) -> RecordedEntry:
        ledger = self._context.ledger
        documents = ledger.documents_of(index)
        bound = [
            commitment
            for role in ("order", "countersigned")
            if role in documents
            for commitment in ORDERS.parse(parse_envelope(documents[role]).payload).commitments().values()
        ]
        entry = parse_entry(ledger.entry_bytes(index))
        return RecordedEntry(entry, documents, tuple(ledger.disclosures(bound).values()))

    def file(self, adapter: str, manifest: str, file: ManifestFile) -> bytes:
        data = self._context.artifacts.read(manifest, file.path)
        if digest_bytes(data) != file.digest:
            raise Tampered(f"adapter {adapter}, {file.path}: expected {file.digest}, got {digest_bytes(data)}")
        return data

    def reported_state(self, adapter: str) -> ReportedState:
        if adapter not in self._reported_states:
            self._reported_states[adapter] = read_reported_state(self._context, adapter)
        return self._reported_states[adapter]


def read_text(context: LedgerContext, index: int, field: str) -> str | None:
    """Return a text of the order that took effect with an entry, None if there is none or it was erased."""
    recorded = StatePageSource(context).entry(index)
    return recorded.texts_of(read_order(recorded)[0]).get(field)
