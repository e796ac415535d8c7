"""Values that the client proves itself: those that orders are completed with, and the evidence of a review."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from appliance.api.releases import Adapter
from appliance.api.runs import RecipeFacts
from appliance.client.support.connection import Connection
from appliance.client.support.log import Anchor, ProvenEntry, list_adapter_keys, read_entry, read_event
from appliance.domain.core.entry import Event
from appliance.domain.core.lookup import Artifact, Kind, ProvenValue, TrainingFacts, UnprovenValue
from appliance.domain.core.names import versioned
from appliance.domain.core.policy import Parameters
from appliance.domain.core.records.data import Base, Dataset, Import, ValidationSet
from appliance.domain.data.artifacts import BaseImported, DatasetImported, ValidationSetImported
from appliance.domain.data.imports import ImportDataset
from appliance.domain.evaluation.items import MOST_BYTES
from appliance.domain.queries.review.page import is_page_file, make_page, read_import, read_order
from appliance.domain.queries.review.reported_state import ReportedState
from appliance.domain.queries.review.values import ReviewPage
from appliance.domain.releases.activations import BreakGlass
from appliance.domain.releases.adapters import AdapterSealed
from appliance.domain.releases.requests import RequestRelease
from appliance.errors import Tampered, TooLarge
from appliance.formats.artifacts.manifest import ManifestFile
from appliance.formats.core.digest import Hasher

Progress = Callable[[int], None]


@dataclass(frozen=True)
class ReviewEvidence:
    """The review page of an adapter, whose files were all hashed and whose entries were proved to be in the log.

    `log_size` and `log_source` are the size of the log and the source of its key.
    """

    page: ReviewPage
    log_size: int
    log_source: str

    @property
    def name(self) -> str:
        """The adapter's name and version."""
        return self.page.adapter

    @property
    def digest(self) -> str:
        """The digest of the adapter's manifest."""
        return self.page.signed_content.manifest

    @property
    def log(self) -> str:
        """The log against which the page was proved, in words."""
        return f"a log of {self.log_size} entries, vouched for by {self.log_source}"

    def request_for(self, unit: str) -> str | None:
        """Return the order of the request on which a decision for the unit is made, or None."""
        return next((one.digest for one in self.page.release_requests if one.order.unit == unit), None)


class ProvedPageSource:
    """A lookup that verifies the proof of each entry and hashes each file. The service reports the state."""

    def __init__(self, connection: Connection, anchor: Anchor, progress: Progress = lambda count: None) -> None:
        self._connection, self._anchor, self._progress = connection, anchor, progress
        self._reported_states: dict[str, ReportedState] = {}
        self.log_size = 0

    @cached_property
    def _adapter_keys(self) -> list[tuple[bytes, int]]:
        return list_adapter_keys(self._connection, self._anchor)

    def adapter_keys(self, index: int) -> tuple[bytes, ...]:
        """Return the SPKIs whose signatures an adapter needs that was sealed by the entry of this index."""
        return tuple(key for key, since in self._adapter_keys if since < index)

    def entry(self, index: int) -> ProvenEntry:
        """Return an entry of the log after verifying its proof."""
        proven = read_entry(self._connection, self._anchor, index)
        self.log_size = proven.size
        return proven

    def reported_state(self, adapter: str) -> ReportedState:
        """Return the present state of an adapter, as the service reports it."""
        if adapter not in self._reported_states:
            self._reported_states[adapter] = self._connection.get(f"/v1/adapters/{adapter}/review", ReportedState)
        return self._reported_states[adapter]

    def file(self, adapter: str, manifest: str, file: ManifestFile) -> bytes:
        """Download a file of the page, and return it after comparing its size and digest with the manifest."""
        if file.size > MOST_BYTES:
            raise TooLarge(f"adapter {adapter}, {file.path}: expected at most {MOST_BYTES} bytes, got {file.size}")
        content = bytearray()
        self.check_file(adapter, file.path, file.size, file.digest, content)
        return bytes(content)

    def check_file(self, adapter: str, path: str, size: int, digest: str, content: bytearray | None = None) -> None:
        """Download a file, and append it to `content`.

        Raises: Tampered if its size or digest is another one.
        """
        hasher = Hasher()
        for chunk in self._connection.stream(f"/v1/adapters/{adapter}/files/{path}"):
            hasher.update(chunk)
            if hasher.size > size:
                raise Tampered(f"adapter {adapter}, {path}: expected {size} bytes, got at least {hasher.size}")
            if content is not None:
                content += chunk
            self._progress(len(chunk))
        if hasher.digest() != digest:
            raise Tampered(f"adapter {adapter}, {path}: expected {digest}, got {hasher.digest()}")


def gather(connection: Connection, anchor: Anchor, name: str, progress: Progress) -> ReviewEvidence:
    """Return the review page of an adapter after checking every file, also those that the page does not show.

    Raises: Tampered, which names the first check that fails.
    """
    lookup = ProvedPageSource(connection, anchor, progress)
    page = make_page(lookup, name)
    for file in page.signed_content.files:
        if not is_page_file(file.path):
            lookup.check_file(name, file.path, file.size, file.digest)
    return ReviewEvidence(page, lookup.log_size, anchor.source)


def dataset_owner(connection: Connection, anchor: Anchor, row: Dataset) -> str | None:
    """Return the owner of a dataset from the proved order of its import; None if the text was erased or is withheld."""
    index = next(one.index for one in connection.get("/v1/imports", list[Import]) if one.order == row.order)
    lookup = ProvedPageSource(connection, anchor)
    imported, name = lookup.entry(row.index), versioned(row.name, row.version)
    order, texts = read_import(lookup, f"dataset {name}", index, imported)
    if not isinstance(order, ImportDataset):
        raise Tampered(f"dataset {name}, order: expected an import of a dataset, got {order.action}")
    return texts.get("owner")


_ARTIFACTS: dict[Kind, tuple[type[Adapter | Base | Dataset | ValidationSet], type[Event]]] = {
    "adapter": (Adapter, AdapterSealed),
    "base": (Base, BaseImported),
    "dataset": (Dataset, DatasetImported),
    "validation-set": (ValidationSet, ValidationSetImported),
}
"""The service's row of each kind, and the event of its entry."""


class ProvedLookup:
    """A reader of proved entries. It opens a session only when a value is looked up."""

    def __init__(self, connection: Callable[[], Connection], anchor: Callable[[], Anchor]) -> None:
        self._connection, self._anchor = connection, anchor
        self._found: dict[tuple[Kind, str], Artifact] = {}

    def find_artifact(self, kind: Kind, name: str) -> ProvenValue[Artifact]:
        """Return the digests of an adapter, a base, a dataset or a validation set from its proved entry.

        Raises: NotFound if there is none; Tampered if the service names another entry or another digest.
        """
        if (kind, name) not in self._found:
            self._found[kind, name] = self._read_artifact(kind, name)
        return ProvenValue(self._found[kind, name])

    def _read_artifact(self, kind: Kind, name: str) -> Artifact:
        connection = self._connection()
        row_type, event = _ARTIFACTS[kind]
        row = connection.get(f"/v1/{kind}s/{name}", row_type)
        proven, _ = read_event(connection, self._anchor(), row.index, event, **{kind.replace("-", "_"): name})
        bound, reported = proven.entry.documents, row.manifest if isinstance(row, Adapter) else row.digest
        if (manifest := bound["manifest"]) != reported:
            raise Tampered(f"{kind} {name}: expected {manifest}, which the log binds, got {reported}")
        return Artifact(reported, bound.get("verdict"))

    def find_request(self, adapter: str, unit: str) -> ProvenValue[str] | None:
        """Return the digest of the unit's release request for the adapter, from its signer's order in the log.

        The service says which request is the valid one.

        Raises: Tampered if the entry that the service names contains no such request.
        """
        connection = self._connection()
        for row in connection.get(f"/v1/adapters/{adapter}", Adapter).release_requests:
            if row.request.unit == unit:
                index = row.request.index
                order, digest = read_order(read_entry(connection, self._anchor(), index))
                if not isinstance(order, RequestRelease | BreakGlass) or (order.name, order.unit) != (adapter, unit):
                    what = f"request of entry {index}: expected one for {adapter} and {unit}"
                    raise Tampered(f"{what}, got {order.action} of {order.about()}")
                return ProvenValue(digest)
        return None

    def read_parameters(self) -> UnprovenValue[Parameters]:
        """Return the parameters of the policy set that the service describes as the valid one."""
        return UnprovenValue(self._connection().about.parameters)

    def read_training_facts(self, base: str, dataset: str) -> UnprovenValue[TrainingFacts]:
        """Return the service's facts for a recipe.

        Raises: Tampered if they are of another base or dataset than those that the log binds.
        """
        found = self._connection().get("/v1/recipes/facts", RecipeFacts, base=base, dataset=dataset)
        expected = tuple(self.find_artifact(kind, name).value.manifest for kind, name in _inputs(base, dataset))
        got = (found.base_digest, found.dataset_digest)
        if got != expected:
            raise Tampered(f"facts of {base} and {dataset}: expected {', '.join(expected)}, got {got}")
        return UnprovenValue(found.for_orders)


def _inputs(base: str, dataset: str) -> tuple[tuple[Kind, str], tuple[Kind, str]]:
    return ("base", base), ("dataset", dataset)
