"""Gate sets at hand: those that came with the appliance, those of files, and those that orders of the log bound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.client.support.door import Door
from appliance.client.support.files import read_file
from appliance.client.support.log import fetch_document
from appliance.domain.core.names import encode_value
from appliance.domain.data import local_sets
from appliance.domain.evaluation.detectable import Detectable, list_detectable
from appliance.domain.evaluation.gates import HELD_OUT, GateSet, parse_gate_file, parse_gates
from appliance.domain.evaluation.judging import count_items
from appliance.domain.evaluation.shipped.sets import digest_set
from appliance.errors import BadInput, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes

SHIPPED = Path(__file__).resolve().parents[3] / "policies" / "gates"
_MAX_BYTES = 262_144
_LEAST_DIGITS = 6


@dataclass(frozen=True)
class AtHand:
    """A gate set, its canonical bytes, which orders bind, and where it was found."""

    gates: GateSet
    data: bytes
    source: str

    @property
    def digest(self) -> str:
        return digest_bytes(self.data)


def load_gates(path: Path) -> AtHand:
    """The gate set of a file; BadInput names the file and the member that is off."""
    data = read_file(path, "gate set", _MAX_BYTES)
    gates = parse_gate_file(data, f"gate set, {path}")
    return AtHand(gates, encode_value(gates), str(path))


def list_shipped() -> list[AtHand]:
    return [load_gates(path) for path in sorted(SHIPPED.glob("*.json"))]


def list_bound(door: Door) -> list[AtHand]:
    """Those that orders to train bound, and those that the policy set in force requires; each checked by its digest."""
    digests = [str(row["gates"]) for row in door.get("/v1/runs") if row["gates"] is not None]
    return [_fetch(door, digest) for digest in dict.fromkeys(digests)]


def _fetch(door: Door, digest: str) -> AtHand:
    data = fetch_document(door, digest, "gate set")
    return AtHand(parse_gates(data), data, "the log")


def find_gates(door: Door, given: str) -> AtHand:
    """By a file's path, by the name of one that came with the appliance, or by the start of a digest."""
    if given.endswith(".json") or "/" in given:
        return load_gates(Path(given))
    shipped = list_shipped()
    named = [one for one in shipped if one.gates.name == given]
    if named:
        return named[0]
    wanted, everywhere = given.removeprefix("sha256:"), [*shipped, *list_bound(door)]
    if len(wanted) >= _LEAST_DIGITS:
        found = {one.digest: one for one in everywhere if one.digest.removeprefix("sha256:").startswith(wanted)}
        if len(found) == 1:
            return next(iter(found.values()))
    known = ", ".join(dict.fromkeys(f"{one.gates.name} ({one.digest[:19]})" for one in everywhere)) or "none"
    raise BadInput(
        f"gates: expected a file such as gates.json, or the name or digest of a set at hand ({known}), got {given!r}"
    )


def choose_gates(door: Door, given: str | None, purpose: str) -> AtHand | None:
    """What an order to train binds: the set that was named, else the first that policy requires; None where neither
    is."""
    if given is not None:
        return find_gates(door, given)
    required = tuple(map(str, door.about.parameters.get("required_gates", ())))
    return _find_required(door, required) if required and purpose == "release" else None


def choose_sets(facts: Mapping[str, Any], gates: GateSet | None) -> list[dict[str, Any]]:
    """Of each validation set that the gates name the newest version that stands for the recipe's base, as the service's
    facts tell it. NotFound where there is none."""
    known = {str(one["name"]): dict(one) for one in facts["validation_sets"]}
    names = () if gates is None else gates.validation_sets
    if missing := [name for name in names if name not in known]:
        at_hand = ", ".join((HELD_OUT, *known))
        raise NotFound(
            f"gates, set {missing[0]}: expected {at_hand}, which stand for this base, got none of that name; a "
            "validator imports one with: appliance validation-set import"
        )
    return [known[name] for name in names]


def choose_local_sets(facts: Mapping[str, Any], gates: GateSet | None) -> list[dict[str, Any]]:
    """The sets of no log that the gates name, as the service's facts tell them. NotFound where it has none of a name,
    Tampered where it has other texts of a set that comes with the appliance."""
    known = {str(one["set"]): dict(one) for one in facts["local_sets"]}
    names = () if gates is None else gates.local_sets
    for name in names:
        if name not in known:
            raise NotFound(
                f"gates, set {name}: expected one of {', '.join(known)}, got none of that name; tasks of lm-eval are "
                "in the home's folder harness/NAME, metrics of evaluate in metrics/NAME"
            )
        got = known[name]["digest"]
        if name in local_sets.SHIPPED and got != digest_set(name):
            raise Tampered(f"set {name}: expected {digest_set(name)}, as it came with this program, got {got}")
    return [known[name] for name in names]


def _find_required(door: Door, required: tuple[str, ...]) -> AtHand:
    for one in (*list_shipped(), *list_bound(door)):
        if one.digest in required:
            return one
    raise NotFound(
        f"gates: expected one of the sets that policy requires ({', '.join(required)}) at hand, got none: "
        "name its file with --gates"
    )


def list_effects(gates: GateSet, facts: Mapping[str, Any]) -> list[Detectable]:
    """What each gate can show on its set, by the service's facts of recipe, dataset and validation sets."""
    sizes = {HELD_OUT: count_items(facts["dataset_facts"]) or 0}
    before = {HELD_OUT: int(facts["judged_before"])}
    for one in choose_sets(facts, gates):
        sizes[str(one["name"])] = count_items(one["facts"], "rows") or 0
        before[str(one["name"])] = int(one["judged_before"])
    for one in choose_local_sets(facts, gates):
        # Only its own files say how many rows a task has.
        sizes[one["set"]] = _least(gates, one["set"]) if one["items"] is None else int(one["items"])
        before[one["set"]] = int(one["judged_before"])
    return list_detectable(gates, sizes, before)


def _least(gates: GateSet, name: str) -> int:
    """The fewest items that the gates on a set ask for."""
    return max(gate.least_items for gate in gates.gates if gate.set == name)


def tell_effects(
    chosen: AtHand | None, effects: list[Detectable], facts: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """What who orders a run must know of its gates, as (label, text)."""
    if chosen is None:
        yield "gates", "none: no gate decides on this adapter"
        return
    gates = chosen.gates
    yield "gates", f"{gates.name} ({chosen.digest[:19]}), alpha {gates.alpha}, {gates.correction}, luck {gates.luck}"
    yield "judged before", f"{facts['judged_before']} runs on the held-out rows of this dataset"
    for one in choose_sets(facts, gates):
        marks = "".join(f", {mark}" for mark in ("blind", "final") if one[mark])
        name = f"{one['name']}@{one['version']}"
        yield (
            f"set {name}",
            f"{one['facts'].get('rows')} rows{marks}; {one['judged_before']} runs were judged on it before",
        )
    for one in choose_local_sets(facts, gates):
        rows = "as many rows as its files have" if one["items"] is None else f"{one['items']} rows"
        told = f"{rows}, {one['digest'][:19]}; {one['judged_before']} runs on this dataset were judged on it before"
        yield f"set {one['set']}", told
    for effect in effects:
        yield f"gate {effect.gate}", effect.told
