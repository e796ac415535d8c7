"""A verdict and its calibration, from records of items, and the check that stored ones are what the records give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from pydantic import Field

from appliance.domain.core.names import Canonical, write_canonical
from appliance.domain.evaluation.calibration import Calibration, measure_calibration
from appliance.domain.evaluation.gates import GateSet
from appliance.domain.evaluation.items import Item, kinds_of, parse_items
from appliance.domain.evaluation.verdict import Evidence, Judged, Verdict, judge
from appliance.errors import Tampered
from appliance.formats.core.digest import digest_bytes


class Calibrations(Canonical):
    """calibration.json. `seed`: that of the gate set, 0 where there is none."""

    adapter: Calibration
    base: Calibration
    seed: int = Field(ge=0)
    version: Literal[1]


class Conclusion(NamedTuple):
    """What is sealed beside the items, as canonical JSON: the verdict where a gate set is bound, and the calibration
    where answers have a confidence."""

    verdict: bytes | None
    calibration: bytes | None


def conclude(gates: GateSet | None, items: tuple[Item, ...], evidence: Evidence) -> Conclusion:
    """`items`: those of the run itself, which are in `evidence` too."""
    verdict = None if gates is None else write_canonical(judge(gates, evidence))
    if not {"right", "confidence"} <= set(kinds_of(items[0].adapter)):
        return Conclusion(verdict, None)
    seed = 0 if gates is None else gates.seed
    adapter, base = (measure_calibration(items, model, seed) for model in ("adapter", "base"))
    return Conclusion(verdict, write_canonical(Calibrations(adapter=adapter, base=base, seed=seed, version=1)))


def read_evidence(verdict: Verdict, gates: GateSet, read: Callable[[Judged], bytes]) -> Evidence:
    """The evidence that a stored verdict names. `read` gives the record of items; Tampered where it has another digest.

    That these are the records to compare with, and the count is right, the log's rules say (`check_judgement`).
    """
    sets: dict[str, tuple[Item, ...]] = {}
    others: dict[tuple[str, str], tuple[Item, ...] | None] = {}
    for one in verdict.judged:
        data = read(one)
        if digest_bytes(data) != one.digest:
            raise Tampered(f"items of {one.model} on {one.set}: expected {one.digest}, got {digest_bytes(data)}")
        items = parse_items(data, f"items of {one.model} on {one.set}")
        if one.model == "run":
            sets[one.set] = items
        else:
            others[(one.model, one.set)] = items
    for gate, result in zip(gates.gates, verdict.results, strict=True):
        if result.outcome == "not-applicable":
            others.setdefault((gate.comparison, gate.set), None)
    return Evidence(
        sets,
        others,
        {one.set: one.judged_before for one in verdict.judged},
        {one.set: one.named_before for one in verdict.judged if one.named_before is not None},
        {one.set: one.overlap for one in verdict.judged if one.overlap is not None},
    )
