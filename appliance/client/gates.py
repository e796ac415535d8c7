"""Gates files: the shipped ones, local files, and those that orders of the log bound; and the verdicts by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.api.releases import Adapter
from appliance.build import find_folder
from appliance.client.support.connection import Connection
from appliance.client.support.files import read_file
from appliance.client.support.log import Anchor, ProvenEntry, fetch_document, find_entries, read_event
from appliance.domain.core.names import encode_value, split_version
from appliance.domain.core.records.runs import AdapterEvaluation, Run
from appliance.domain.evaluation.basis import items_path
from appliance.domain.evaluation.gates import HELD_OUT, GatesFile, parse_gate_file, parse_gates
from appliance.domain.evaluation.items import MOST_BYTES
from appliance.domain.evaluation.verdict import (
    EvaluatedSet,
    Verdict,
    correction_factor,
    parse_verdict,
    read_verdict_inputs,
    verify_verdict,
)
from appliance.domain.releases.adapters import AdapterSealed
from appliance.errors import BadInput, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.artifacts.manifest import parse_manifest
from appliance.formats.core.digest import digest_bytes

SHIPPED = find_folder("policies") / "gates"
"""The folder of the gates files that come with the appliance."""
_MAX_BYTES = 262_144
_LEAST_DIGITS = 6


@dataclass(frozen=True)
class LocatedGates:
    """A gates file, its canonical bytes, which orders bind, and its source."""

    gates: GatesFile
    data: bytes
    source: str

    @property
    def digest(self) -> str:
        return digest_bytes(self.data)


def load_gates(path: Path) -> LocatedGates:
    """Read a gates file.

    Raises: BadInput, which names the file and the malformed field.
    """
    data = read_file(path, "gates file", _MAX_BYTES)
    gates = parse_gate_file(data, f"gates file, {path}")
    return LocatedGates(gates, encode_value(gates), str(path))


def list_shipped() -> list[LocatedGates]:
    """Return the gates files that come with the appliance."""
    return [load_gates(path) for path in sorted(SHIPPED.glob("*.json"))]


def list_gates_of_orders(connection: Connection) -> list[LocatedGates]:
    """Return the gates files that orders to train bound, each verified by its digest."""
    digests = [row.gates for row in connection.get("/v1/runs", list[Run]) if row.gates is not None]
    return [_fetch(connection, digest) for digest in dict.fromkeys(digests)]


def _fetch(connection: Connection, digest: str) -> LocatedGates:
    data = fetch_document(connection, digest, "gates file")
    return LocatedGates(parse_gates(data), data, "the log")


def find_gates(connection: Connection, given: str) -> LocatedGates:
    """Return a gates file by its path, by the name of a shipped one, or by the first digits of a digest.

    Raises: BadInput if there is none.
    """
    if given.endswith(".json") or "/" in given:
        return load_gates(Path(given))
    shipped = list_shipped()
    named = [candidate for candidate in shipped if candidate.gates.name == given]
    if named:
        return named[0]
    digits, all_gates = given.removeprefix("sha256:"), [*shipped, *list_gates_of_orders(connection)]
    if len(digits) >= _LEAST_DIGITS:
        found = {
            candidate.digest: candidate
            for candidate in all_gates
            if candidate.digest.removeprefix("sha256:").startswith(digits)
        }
        if len(found) == 1:
            return next(iter(found.values()))
    known = (
        ", ".join(dict.fromkeys(f"{candidate.gates.name} ({candidate.digest[:19]})" for candidate in all_gates))
        or "none"
    )
    raise BadInput(
        f"gates: expected a file such as gates.json, or the name or digest of a set at hand ({known}), got {given!r}"
    )


def choose_gates(connection: Connection, given: str | None, purpose: str) -> LocatedGates | None:
    """Return the gates file that an order to train binds: the named one, or the first that policy requires, or None."""
    if given is not None:
        return find_gates(connection, given)
    required = connection.about.parameters.required_gates
    return _find_required(connection, required) if required and purpose == "release" else None


def _find_required(connection: Connection, required: tuple[str, ...]) -> LocatedGates:
    for candidate in (*list_shipped(), *list_gates_of_orders(connection)):
        if candidate.digest in required:
            return candidate
    raise NotFound(
        f"gates: expected one of the sets that policy requires ({', '.join(required)}) at hand, got none: "
        "name its file with --gates"
    )


NOT_EVALUATED = "not-evaluated"
"""Error code of an adapter or run that was not evaluated by gates."""


@dataclass(frozen=True)
class RecordedVerdict:
    """The verdict by the gates that a run's order bound; `entry` is the sealing, proved to be in the log."""

    adapter: str
    run: str
    gates: GatesFile
    verdict: Verdict
    entry: ProvenEntry

    @property
    def evaluated_before(self) -> int:
        """Return the largest number of earlier runs that were evaluated on one of the sets."""
        return max((record.evaluated_before for record in self.verdict.evaluated), default=0)

    @property
    def times(self) -> int:
        """Return the factor by which each p-value is multiplied."""
        return correction_factor(self.gates, self.evaluated_before)

    @property
    def has_evaluated_gates(self) -> bool:
        """Return True if a gate that failed was tested; a gate that could not be evaluated also fails."""
        failed = [result for result in self.verdict.results if result.outcome == "failed"]
        worse = any(part.worse for result in self.verdict.results for part in result.slices)
        return self.verdict.passed or worse or not failed or any(result.p is not None for result in failed)


def read_verdict(connection: Connection, anchor: Anchor, name: str) -> RecordedVerdict:
    """Return the verdict of an adapter (NAME@VERSION) or a run.

    Raises: Unavailable (`not-evaluated`) if nothing is sealed, or no gates were bound.
    """
    entry = _find_sealing(connection, name)
    proven, body = read_event(connection, anchor, entry, AdapterSealed)
    if "verdict" not in proven.documents:
        raise Unavailable(f"{name}: expected a verdict, got none: its run's order bound no gates", code=NOT_EVALUATED)
    gates, verdict = parse_gates(proven.document("gates")), parse_verdict(proven.document("verdict"))
    return RecordedVerdict(body.adapter, body.run, gates, verdict, proven)


def _find_sealing(connection: Connection, name: str) -> int:
    kind = "adapter" if "@" in name else "run"
    if kind == "run" and not name.startswith("r-"):
        raise BadInput(f"verdict: expected an adapter such as clauses@1 or a run such as r-000001, got {name!r}")
    found = list(find_entries(connection, type="adapter.sealed", subject=f"{kind}:{name}"))
    if not found:
        if kind == "run":
            status: str = connection.get(f"/v1/runs/{name}", Run).status
        else:
            status = f"sealed by entry {connection.get(f'/v1/adapters/{name}', Adapter).index}"
        raise Unavailable(f"{name}: expected a sealed adapter, got one that is {status}", code=NOT_EVALUATED)
    return found[-1].index


def recompute(
    connection: Connection, decided: RecordedVerdict, progress: Callable[[int], None] = lambda size: None
) -> None:
    """Compute the verdict again from the sealed items, which are downloaded.

    Each file of items must have the digest that the verdict names, and the run's own file also that of the manifest.

    Raises: Tampered unless the verdict is the same, byte for byte.
    """
    listed = {file.path: file.digest for file in parse_manifest(decided.entry.document("manifest")).files}
    for record in decided.verdict.evaluated:
        path = items_path(record.set)
        if record.model == "run" and listed.get(path) != record.digest:
            mismatch = f"expected items {listed.get(path)} on {record.set}, got {record.digest}"
            raise Tampered(f"adapter {decided.adapter}, verdict: {mismatch}")
    locations = _find_records(connection)

    def read(record: EvaluatedSet) -> bytes:
        path = items_path(record.set, released=record.model == "released")
        found = (decided.adapter, path) if listed.get(path) == record.digest else locations.get(record.digest)
        if found is None:
            raise NotFound(f"items of {record.model}: expected a sealed adapter with {record.digest}, got none")
        data = bytearray()
        for chunk in connection.stream(f"/v1/adapters/{found[0]}/files/{found[1]}"):
            data += chunk
            progress(len(chunk))
            if len(data) > MOST_BYTES:
                raise TooLarge(f"items of {found[0]}: expected at most {MOST_BYTES} bytes, got more")
        return bytes(data)

    verify_verdict(decided.verdict, decided.gates, read_verdict_inputs(decided.verdict, decided.gates, read))


def _find_records(connection: Connection) -> dict[str, tuple[str, str]]:
    """Return the adapter and the file of every file of items that the service lists, by digest."""
    found = {}
    for row in connection.get("/v1/evaluations", list[AdapterEvaluation]):
        found[row.items] = (row.adapter, items_path(HELD_OUT))
        for one in row.sets:
            found[one.items] = (row.adapter, items_path(split_version(one.validation_set)[0]))
        for local in row.local_sets:
            found[local.items] = (row.adapter, items_path(local.set))
    return found


def describe_correction(decided: RecordedVerdict) -> str:
    """Return the effect of the earlier runs that were evaluated on each set, as text."""
    sentences = [
        _describe_set_correction(decided.gates, record) for record in decided.verdict.evaluated if record.model == "run"
    ]
    return "; ".join(sentences)


def _describe_set_correction(gates: GatesFile, record: EvaluatedSet) -> str:
    before = record.evaluated_before
    evaluations = f"{before} earlier evaluation{'' if before == 1 else 's'}"
    if gates.run_correction == "once":
        return f"{record.set}: only the first evaluation counts, and there are {evaluations}"
    times = correction_factor(gates, before)
    return f"{record.set}: corrected for {evaluations}, p-values are multiplied by {times}"


def describe_overlaps(decided: RecordedVerdict) -> list[tuple[str, str]]:
    """Return, for each set of rows, how many of them were trained on, as (label, text)."""
    return [
        (
            f"set {record.set}",
            f"{record.items} items; {record.duplicates} of the rows are trained on, {record.near_duplicates} nearly",
        )
        for record in decided.verdict.evaluated
        if record.model == "run" and record.overlap is not None
    ]
