"""Makes the review page of an adapter: a pure function of checked bytes and rows, so every reader has the same page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

from appliance.domain.core.names import parse_value
from appliance.domain.data.teaching import example_request
from appliance.domain.evaluation.confusion import Confusion, count_confusions
from appliance.domain.evaluation.evidence import Calibrations
from appliance.domain.evaluation.gates import HELD_OUT, parse_gates
from appliance.domain.evaluation.items import ITEMS_FILE, parse_items
from appliance.domain.evaluation.judging import CALIBRATION_FILE, GATES_FILE, VERDICT_FILE
from appliance.domain.evaluation.quality import list_measures, list_warnings
from appliance.domain.evaluation.verdict import Verdict, check_conclusion, luck_of, parse_verdict
from appliance.domain.releases.page.changes import compare_versions, read_object
from appliance.domain.releases.page.material import METRICS_FILE, ORIGIN_FILE, RECIPE_FILE, PageMaterial, SealedVersion
from appliance.domain.releases.page.privacy import make_privacy
from appliance.domain.releases.page.value import (
    Based,
    Bound,
    File,
    Judged,
    Material,
    Measure,
    Named,
    Part,
    ReviewPage,
    Taught,
)
from appliance.formats.core.digest import digest_bytes

Count = Callable[[SealedVersion, str], Confusion | None]
"""Counts the confusions of the set whose items this file of the version holds."""


def count_items(version: SealedVersion, path: str) -> Confusion | None:
    """None where its answers are no labels."""
    name = HELD_OUT if path == ITEMS_FILE else path.removeprefix("items-").removesuffix(".jsonl")
    return count_confusions(parse_items(version.files[path], f"adapter {version.name}, {path}"), name)


def make_page(material: PageMaterial, count: Count = count_items) -> ReviewPage:
    """Tampered where the sealed verdict contradicts its gate set; BadInput names a sealed file that cannot be read.

    That the verdict follows from the items is for `appliance gate check` to say, which computes it again.
    """
    version = material.version
    metrics = read_object(version, METRICS_FILE)
    return ReviewPage(
        version=1,
        adapter=version.name,
        revoked=material.revoked,
        quarantined=material.quarantined,
        answers=material.answers,
        asked=material.asked,
        findings=material.findings,
        decisions=material.decisions,
        changes=tuple(compare_versions(version, released) for released in material.released),
        warnings=tuple(list_warnings(metrics)),
        measures=tuple(Measure(name=name, told=told) for name, told in list_measures(metrics)),
        metrics=metrics,
        judged=_judged(version),
        confusion=tuple(_confusion(version, count)),
        calibration=_calibration(version),
        taught=_taught(version),
        base=_base(version),
        privacy=make_privacy(material),
        judged_before=material.judged_before,
        tried=material.tried,
        bound=_bound(version),
        entries=tuple(_entries(material)),
    )


def _judged(version: SealedVersion) -> Judged | None:
    if VERDICT_FILE not in version.files or GATES_FILE not in version.files:
        return None
    gates = parse_gates(version.files[GATES_FILE], f"adapter {version.name}, {GATES_FILE}")
    verdict = parse_verdict(version.files[VERDICT_FILE], f"adapter {version.name}, {VERDICT_FILE}")
    check_conclusion(gates, verdict)
    before = max((one.judged_before for one in verdict.judged), default=0)
    return Judged(
        gates=gates,
        gates_digest=verdict.gates,
        verdict_digest=digest_bytes(version.files[VERDICT_FILE]),
        passed=verdict.passed,
        task=verdict.task,
        rest=verdict.rest,
        why=verdict.why,
        judged_before=before,
        times=luck_of(gates, before),
        records=verdict.judged,
        results=verdict.results,
        parts=tuple(_parts(verdict)),
    )


def _parts(verdict: Verdict) -> Iterator[Part]:
    parts = [(result.gate, part) for result in verdict.results for part in result.slices]
    for gate, part in sorted(parts, key=lambda one: (not one[1].worse, Fraction(one[1].gain))):
        yield Part(
            gate=gate,
            by=part.by,
            value=part.value,
            items=part.items,
            ours=part.ours,
            theirs=part.theirs,
            gain=part.gain,
            lower=part.lower,
            upper=part.upper,
            adjusted=part.adjusted,
            worse=part.worse,
        )


def _confusion(version: SealedVersion, count: Count) -> Iterator[Confusion]:
    """Of each set that the run was judged on and whose answers are labels, the held-out rows first."""
    for path in sorted(version.files, key=lambda path: (path != ITEMS_FILE, path)):
        if path == ITEMS_FILE or path.startswith("items-"):
            found = count(version, path)
            if found is not None:
                yield found


def _calibration(version: SealedVersion) -> Calibrations | None:
    data = version.files.get(CALIBRATION_FILE)
    return None if data is None else parse_value(Calibrations, data, f"adapter {version.name}, {CALIBRATION_FILE}")


def _taught(version: SealedVersion) -> Taught:
    dataset = version.dataset
    return Taught(
        dataset=dataset.name,
        dataset_digest=dataset.digest,
        dataset_entry=dataset.entry,
        rows=dict(dataset.rows),
        task=dataset.teaching.about.task,
        instruction=dataset.teaching.instruction,
        labels=dataset.teaching.about.labels,
        owner=dataset.owner,
        licence=dataset.licence,
        classification=dataset.classification,
        imported_by=dataset.imported_by,
        example=example_request("TASK", dataset.teaching, added=False),
    )


def _base(version: SealedVersion) -> Based:
    name, digest = base_of(version)
    return Based(name=name, digest=digest, licence=version.base_licence, facts=read_object(version, ORIGIN_FILE))


def base_of(version: SealedVersion) -> tuple[str, str]:
    """(name, digest) of the base, by the provenance."""
    return next((name.removeprefix("base:"), digest) for name, digest in version.materials if name.startswith("base:"))


def _bound(version: SealedVersion) -> Bound:
    return Bound(
        manifest=version.digest,
        files=tuple(File(path=file.path, size=file.size, digest=file.digest) for file in version.manifest.files),
        materials=tuple(Material(name=name, digest=digest) for name, digest in version.materials),
        sealed=version.entry,
        sealed_at=version.sealed_at,
        run=version.run,
        ordered_by=version.ordered_by,
        order=version.order,
        recipe=read_object(version, RECIPE_FILE),
    )


def _entries(material: PageMaterial) -> Iterator[Named]:
    """For each digest on the page the first entry that binds it, in the order in which the log came to it."""
    found: dict[str, Named] = {}
    for digest, entry, binds in sorted(_bindings(material), key=lambda one: one[1]):
        found.setdefault(digest, Named(digest=digest, entry=entry, binds=binds))
    yield from found.values()


def _bindings(material: PageMaterial) -> Iterator[tuple[str, int, str]]:
    version = material.version
    base, digest = base_of(version)
    if version.base_entry is not None:
        yield digest, version.base_entry, f"base {base}"
    yield version.dataset.digest, version.dataset.entry, f"dataset {version.dataset.name}"
    yield version.order, version.run_entry, f"order of {version.run}"
    yield version.digest, version.entry, "manifest"
    for file in version.manifest.files:
        yield file.digest, version.entry, file.path
    for name, made_of in version.materials:
        yield made_of, version.entry, f"provenance, {name}"
    for request in material.asked:
        yield request.order, request.entry, f"release request for {request.unit}"
    for released in material.released:
        yield released.version.digest, released.version.entry, f"manifest of {released.version.name}"
