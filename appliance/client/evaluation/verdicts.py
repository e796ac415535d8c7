"""A sealed adapter's verdict: proved to be in the log, and computed again from the items of its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from appliance.client.support.door import Door
from appliance.client.support.log import Anchor, Proven, find_entries, read_entry
from appliance.domain.core.names import split_version
from appliance.domain.evaluation.basis import items_path
from appliance.domain.evaluation.evidence import read_evidence
from appliance.domain.evaluation.gates import HELD_OUT, GateSet, parse_gates
from appliance.domain.evaluation.items import MOST_BYTES
from appliance.domain.evaluation.verdict import Judged, Verdict, luck_of, parse_verdict, verify_verdict
from appliance.errors import BadInput, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.artifacts.manifest import parse_manifest

NOT_JUDGED = "not-judged"


@dataclass(frozen=True)
class Decided:
    """What the gates that a run's order bound decided; `entry`: the sealing, proved to be in the log."""

    adapter: str
    run: str
    gates: GateSet
    verdict: Verdict
    entry: Proven

    @property
    def judged_before(self) -> int:
        return max((one.judged_before for one in self.verdict.judged), default=0)

    @property
    def times(self) -> int:
        """How many times each p-value counts."""
        return luck_of(self.gates, self.judged_before)

    @property
    def could_judge(self) -> bool:
        """Whether a gate that failed was tested; one that could not be judged has failed too."""
        failed = [result for result in self.verdict.results if result.outcome == "failed"]
        worse = any(part.worse for result in self.verdict.results for part in result.slices)
        return self.verdict.passed or worse or not failed or any(result.p is not None for result in failed)


def read_verdict(door: Door, anchor: Anchor, name: str) -> Decided:
    """Of an adapter (NAME@VERSION) or a run. Unavailable (`not-judged`) where nothing is sealed, or no gates bound."""
    entry = _find_sealing(door, name)
    proven = read_entry(door, anchor, entry)
    body = proven.entry.body
    if "verdict" not in proven.documents:
        raise Unavailable(f"{name}: expected a verdict, got none: its run's order bound no gates", code=NOT_JUDGED)
    gates, verdict = parse_gates(proven.document("gates")), parse_verdict(proven.document("verdict"))
    return Decided(str(body["adapter"]), str(body["run"]), gates, verdict, proven)


def _find_sealing(door: Door, name: str) -> int:
    kind = "adapter" if "@" in name else "run"
    if kind == "run" and not name.startswith("r-"):
        raise BadInput(f"verdict: expected an adapter such as clauses@1 or a run such as r-000001, got {name!r}")
    found = list(find_entries(door, type="adapter.sealed", subject=f"{kind}:{name}"))
    if not found:
        row = door.get(f"/v1/{kind}s/{name}")
        raise Unavailable(f"{name}: expected a sealed adapter, got one that is {row['status']}", code=NOT_JUDGED)
    return found[-1].index


def recompute(door: Door, decided: Decided, progress: Callable[[int], None] = lambda size: None) -> None:
    """Tampered unless the sealed items give the same verdict again, byte for byte.

    Each record of items is downloaded, and has the digest that the verdict names; the run's own is also the one that
    its manifest lists.
    """
    listed = {file.path: file.digest for file in parse_manifest(decided.entry.document("manifest")).files}
    for one in decided.verdict.judged:
        path = items_path(one.set)
        if one.model == "run" and listed.get(path) != one.digest:
            said = f"expected items {listed.get(path)} on {one.set}, got {one.digest}"
            raise Tampered(f"adapter {decided.adapter}, verdict: {said}")
    places = _find_records(door)

    def read(one: Judged) -> bytes:
        path = items_path(one.set, released=one.model == "released")
        found = (decided.adapter, path) if listed.get(path) == one.digest else places.get(one.digest)
        if found is None:
            raise NotFound(f"items of {one.model}: expected a sealed adapter with {one.digest}, got none")
        data = bytearray()
        for chunk in door.stream(f"/v1/adapters/{found[0]}/files/{found[1]}"):
            data += chunk
            progress(len(chunk))
            if len(data) > MOST_BYTES:
                raise TooLarge(f"items of {found[0]}: expected at most {MOST_BYTES} bytes, got more")
        return bytes(data)

    verify_verdict(decided.verdict, decided.gates, read_evidence(decided.verdict, decided.gates, read))


def _find_records(door: Door) -> dict[str, tuple[str, str]]:
    """By the digest of their items, the adapter and the file of every record that the service names."""
    found = {}
    for row in door.get("/v1/judgements"):
        adapter = str(row["adapter"])
        found[str(row["items"])] = (adapter, items_path(HELD_OUT))
        for one in row["sets"]:
            found[str(one["items"])] = (adapter, items_path(split_version(str(one["validation_set"]))[0]))
        for one in row["local_sets"]:
            found[str(one["items"])] = (adapter, items_path(str(one["set"])))
    return found


def tell_luck(decided: Decided) -> str:
    """What the runs cost that were judged on the rows of each set before."""
    told = [_tell_luck(decided.gates, one) for one in decided.verdict.judged if one.model == "run"]
    return "; ".join(told)


def _tell_luck(gates: GateSet, judged: Judged) -> str:
    before = judged.judged_before
    if gates.luck == "once":
        return f"{judged.set} judges once; {before} runs were judged on it before"
    times = luck_of(gates, before)
    counts = "once" if times == 1 else f"{times} times"
    return f"{before} runs were judged on {judged.set} before this one: each p-value counts {counts}"


def tell_overlaps(decided: Decided) -> list[tuple[str, str]]:
    """Of each set of rows: how many of them are trained on."""
    return [
        (
            f"set {one.set}",
            f"{one.items} items; {one.duplicates} of the rows are trained on, {one.near_duplicates} nearly",
        )
        for one in decided.verdict.judged
        if one.model == "run" and one.overlap is not None
    ]
