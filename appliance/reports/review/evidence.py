"""The evidence for a decision at a glance: the gain, the worst subgroup, the rows, the privacy and the earlier runs."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.domain.core.names import split_version
from appliance.domain.evaluation.verdict import GateResult
from appliance.domain.queries.review.values import ReviewPage, Subgroup, VerdictSummary
from appliance.reports.review.blocks import NONE, Tile, Tiles, make_content
from appliance.reports.review.words import (
    count_of,
    show_gain,
    show_guarantee,
    show_interval,
    show_number,
    show_percent,
)


def show_evidence(page: ReviewPage) -> Tiles:
    """Return the figures on which the decision rests."""
    return Tiles(tuple(_list_tiles(page)))


def _list_tiles(page: ReviewPage) -> Iterator[Tile]:
    yield _show_gain(page)
    if page.evaluation is not None and page.evaluation.subgroups:
        yield _show_worst(page.evaluation)
    yield _show_rows(page)
    yield _show_privacy(page)
    yield _show_earlier(page)


def _show_gain(page: ReviewPage) -> Tile:
    """Return the gain of the target metric with its interval. Without a gate, return the leading measure."""
    result = None if page.evaluation is None else _find_target(page.evaluation)
    if result is None:
        name, text = (page.measures[0].name, page.measures[0].summary) if page.measures else ("measures", "none")
        figure, _, others = text.partition(", ")
        return Tile(
            name.capitalize(), figure, make_content(f"{others}. " if others else "", _explain_untested(page)), "wait"
        )
    detail = (
        f"{result.metric} {show_number(result.ours)} against {show_number(result.theirs)}, {_count_rows(result.items)}."
    )
    if result.lower is not None or result.upper is not None:
        detail += (
            f" Interval {show_interval(result.lower, result.upper)} at {show_percent(result.confidence)} confidence."
        )
    label = f"Gain, gate {result.gate}"
    return Tile(label, show_gain(result.gain), make_content(detail), "bad" if result.outcome == "failed" else "good")


def _explain_untested(page: ReviewPage) -> str:
    """Return why the leading measure was not tested."""
    return "No gate decides on it." if page.evaluation is None else "Its gates ended without a test of it."


def _find_target(found: VerdictSummary) -> GateResult | None:
    """Return the first result of the target metric with a gain, or the first of any gate."""
    pairs = list(zip(found.gates.gates, found.verdict.results, strict=True))
    results = [one for gate, one in pairs if gate.kind == "target"] + [
        one for gate, one in pairs if gate.kind != "target"
    ]
    return next((one for one in results if one.gain is not None), None)


def _count_rows(rows: int) -> str:
    return count_of(rows, "row")


def _show_worst(found: VerdictSummary) -> Tile:
    worst: Subgroup = found.subgroups[0]
    result = worst.result
    detail = f"{result.by} {result.value}, {_count_rows(result.items)}: {show_number(result.ours)} against "
    detail += f"{show_number(result.theirs)}."
    if result.adjusted is None:
        detail += " Too few rows to test it."
    else:
        detail += f" Interval {show_interval(result.lower, result.upper)}."
        detail += " Significant regression." if result.worse else ""
    tone = "bad" if result.worse else "wait" if worst.lost_much else ""
    return Tile("Worst subgroup", show_gain(result.gain), make_content(detail), tone)


def _show_rows(page: ReviewPage) -> Tile:
    """Return the number of held-out rows."""
    rows = page.held_out_rows
    records = (
        [] if page.evaluation is None else [one for one in page.evaluation.verdict.evaluated if one.model == "run"]
    )
    trained_on = [one for one in records if one.duplicates]
    detail = "One row changes a score much." if page.few_rows is not None else "The scores rest on these rows."
    for one in trained_on:
        detail += f" Of {one.set}, {one.duplicates} are training rows, too."
    tone = "wait" if trained_on or page.few_rows is not None else ""
    return Tile("Held-out rows", NONE if rows is None else f"{rows:,}", make_content(detail), tone)


def _show_privacy(page: ReviewPage) -> Tile:
    privacy = page.privacy
    label = "Privacy guarantee"
    if privacy is None:
        return Tile(label, "none", make_content("It was trained without differential privacy."))
    figure, delta = show_guarantee(privacy.epsilon, privacy.delta).split(" ", 1)
    detail = f"For one training row, {delta}."
    if privacy.before.private:
        runs = count_of(len(privacy.before.private), "earlier private run")
        total = show_guarantee(privacy.epsilon_all, privacy.delta_all)
        detail += f" With {runs}: epsilon {total}."
    if privacy.before.plain:
        detail += f" {count_of(privacy.before.plain, 'adapter')} on the same dataset had no guarantee."
    return Tile(label, f"epsilon {figure}", make_content(detail))


def _show_earlier(page: ReviewPage) -> Tile:
    """Return how often these rows were used for an evaluation before, and by how many runs of the same name."""
    name = split_version(page.adapter)[0]
    before = len(page.evaluated_before) if page.evaluation is None else page.evaluation.runs_before
    own = sum(split_version(one.adapter)[0] == name for one in page.evaluated_before)
    detail = ""
    if page.evaluation is not None and before:
        once = page.evaluation.gates.run_correction == "once"
        evaluations = count_of(before, "earlier evaluation")
        detail = "Only the first evaluation counts. " if once else f"Corrected for {evaluations}. "
    detail += f"{own} under the name {name}. " if before else "These rows were not used before. "
    detail += f"{count_of(page.previous_runs.runs, 'other run')} on the dataset before."
    return Tile("Earlier evaluations", str(before), make_content(detail), is_reported=True)
