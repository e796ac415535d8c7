"""Any random log that the rules allow is verified; any change of it is found, and the first finding names the place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from appliance.domain.audit.report import Report
from appliance.domain.core.decisions import Suspension
from appliance.domain.core.names import NO_DIGEST
from appliance.domain.governance.service import Heartbeat, ServiceStarted
from appliance.domain.governance.sessions import AuthRefused
from appliance.domain.runs.control import Cancel, RunCancelled
from appliance.domain.serving.requests import RequestRefused
from appliance.errors import ApplianceError
from scripts.kit.log_builder import PEOPLE, LogBuilder, stage
from tests.domain.audit.test_verify import reforged, verify

Step = Callable[[LogBuilder, int], Any]


def last_suspension(site: LogBuilder) -> Suspension:
    adapter = site.state.adapters.get("clauses@1")
    if adapter is None or not adapter.suspensions:
        raise KeyError("suspension")
    return adapter.suspensions[-1]


STEPS: dict[str, Step] = {
    "heartbeat": lambda site, _: site.add(Heartbeat()),
    "refusal": lambda site, n: site.add(
        RequestRefused(unit="sales", application=None, served_model=None, code="x", count=1 + n)
    ),
    "outsiders": lambda site, n: site.add(AuthRefused(count=n + 1, since=site.now, principals=(), keys=())),
    "start": lambda site, _: site.add(
        ServiceStarted(version="1", code=NO_DIGEST, layers={"b": True, "a": False}, process=None, epoch=None)
    ),
    "request": lambda site, n: site.add(site.request(n)),
    "answer": lambda site, n: site.add(site.answered(n)),
    "load": lambda site, _: site.load(),
    "review": lambda site, _: site.review("rita", "privacy"),
    "activate": lambda site, _: site.activate(),
    "suspend": lambda site, n: site.suspend(list(PEOPLE)[n]),
    "resume": lambda site, _: site.resume_release(last_suspension(site).index, last_suspension(site).by),
    "resume by two": lambda site, _: site.resume_release(last_suspension(site).index, "anna", second="ben"),
    "enrol": lambda site, n: site.enrol(f"person-{n}", "auditor"),
    "revoke": lambda site, n: site.revoke(f"person-{n}"),
    "rotate": lambda site, _: site.keys.update(rita=site.rotate("rita", site.now)),
    "run": lambda site, _: site.request_run(),
    "begin": lambda site, n: site.add(site.started(f"r-{n + 2:06d}")),
    "replay": lambda site, _: site.replay("r-000001"),
    "hold": lambda site, n: site.hold(f"principal:{list(PEOPLE)[n]}"),
    "cancel": lambda site, n: site.ordered(
        RunCancelled(policy=site.in_force), site.order(Cancel, "olga", run=f"r-{n + 2:06d}")
    ),
}
STAGES = ("initialized", "staffed", "sealed", "serving")


def grow(site: LogBuilder, steps: list[tuple[str, int]]) -> LogBuilder:
    """Return the site after those steps that its rules allow."""
    for name, number in steps:
        texts = len(site.disclosures)
        try:
            STEPS[name](site, number)
        except (ApplianceError, KeyError):  # refused, or nobody there who could sign it: nothing was appended
            del site.disclosures[texts:]
    return site


STEP_LISTS = st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 4)), max_size=8)
SITES = st.builds(lambda name, steps: grow(stage(name), steps), st.sampled_from(STAGES), STEP_LISTS)
QUICK = settings(max_examples=25, deadline=None)


def first(report: Report) -> int | None:
    assert report.verdict == "failed" and report.findings
    return report.findings[0].index


@pytest.mark.thorough
def test_every_step_is_taken_by_some_stage() -> None:
    for name in STEPS:
        sizes = []
        for at in ("sealed", "serving"):
            before = [("suspend", 2)] if name.startswith("resume") else []
            site = grow(stage(at), [("enrol", 0), ("run", 0), *before])
            sizes.append(len(grow(site.fork(), [(name, 0), (name, 2), (name, 1)]).entries) > len(site.entries))
        assert any(sizes), name


@pytest.mark.thorough
@QUICK
@given(SITES)
def test_a_log_that_the_rules_allow_is_verified(site: LogBuilder) -> None:
    report = verify(site)
    assert (report.verdict, report.counts.entries) == ("verified", len(site.entries))


@pytest.mark.thorough
@QUICK
@given(SITES, st.data())
def test_an_edit_is_named(site: LogBuilder, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(site.entries) - 1))
    old = site.entries[index]
    place = data.draw(st.integers(0, len(old) - 1))
    put = data.draw(st.binary(max_size=2).filter(lambda put: put != old[place : place + 1]))
    edited = old[:place] + put + old[place + 1 :]
    # Where an entry names another one before it, either of the two may be the one that was changed.
    assert first(verify(site, [*site.entries[:index], edited, *site.entries[index + 1 :]])) in (index, index - 1)


@pytest.mark.thorough
@QUICK
@given(SITES, st.data())
def test_a_drop_is_named(site: LogBuilder, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(site.entries) - 1))
    report = verify(site, [*site.entries[:index], *site.entries[index + 1 :]], disclosures=[])
    assert first(report) == (index if index < len(site.entries) - 1 else None)
    assert any(finding.rule == "size" for finding in report.findings)


@pytest.mark.thorough
@QUICK
@given(SITES, st.data())
def test_a_swap_is_named(site: LogBuilder, data: st.DataObject) -> None:
    assume(len(site.entries) > 1)
    one, two = sorted(data.draw(st.lists(st.integers(0, len(site.entries) - 1), min_size=2, max_size=2, unique=True)))
    entries = list(site.entries)
    entries[one], entries[two] = entries[two], entries[one]
    assert first(verify(site, entries)) == one


@pytest.mark.thorough
@QUICK
@given(SITES, st.data())
def test_an_insertion_is_named(site: LogBuilder, data: st.DataObject) -> None:
    index, copied = (data.draw(st.integers(0, len(site.entries) - 1)) for _ in range(2))
    report = verify(site, [*site.entries[:index], site.entries[copied], *site.entries[index:]])
    assert first(report) == (index + 1 if copied == index else index)


@QUICK
@given(SITES, st.data())
def test_a_truncation_is_found_with_both_sizes(site: LogBuilder, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(site.entries) - 1))
    report = verify(site, site.entries[:size], disclosures=[])
    said = f"expected {len(site.entries)} entries, as the checkpoint says, got {size}"
    assert [said in finding.message for finding in report.findings if finding.rule != "missing-text"] == [True]


@pytest.mark.thorough
@QUICK
@given(SITES, st.data())
def test_a_history_told_otherwise_and_chained_anew_has_another_root(site: LogBuilder, data: st.DataObject) -> None:
    """Only the root shows it, and so the last entry is named."""
    index = data.draw(st.integers(1, len(site.entries)) if len(site.entries) > 1 else st.nothing())
    assume(index < len(site.entries))
    report = verify(site, reforged(site, index, source="elsewhere"))
    assert (first(report), report.findings[0].rule) == (len(site.entries) - 1, "root")


@pytest.mark.thorough
@QUICK
@given(st.sampled_from(STAGES), STEP_LISTS, STEP_LISTS)
def test_a_fork_by_all_the_rules_is_not_the_log_that_was_signed(
    name: str, ours: list[tuple[str, int]], theirs: list[tuple[str, int]]
) -> None:
    """Two histories from one beginning, each allowed: one is not taken for the other."""
    site, fork = grow(stage(name), ours), grow(stage(name), theirs)
    site_size, fork_size = len(site.entries), len(fork.entries)
    assume(site.entries != fork.entries)
    report = verify(fork, checkpoint=site.checkpoint(), disclosures=[])
    if fork_size < site_size:
        assert (first(report), report.findings[0].rule) == (None, "size")
    elif fork_size > site_size:
        assert (first(report), report.findings[0].rule) == (site_size, "size")
    else:
        assert (first(report), report.findings[0].rule) == (site_size - 1, "root")
