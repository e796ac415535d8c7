"""Numbers, dates and states of the review page in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context
from fractions import Fraction
from typing import Any

from appliance.domain.core.decisions import Conditions
from appliance.domain.evaluation.comparison import show
from appliance.domain.evaluation.gates import GatesFile
from appliance.domain.evaluation.verdict import EvaluatedSet, correction_factor
from appliance.domain.queries.review.values import Change, PreviousRuns, PrivacySummary
from appliance.reports.review.blocks import NONE


def show_number(value: str | None) -> str:
    """Return a decimal with at most four digits."""
    return NONE if value is None else show(value)


_DECIMAL = re.compile(r"-?[0-9]+\.[0-9]+")


def shorten_decimals(value: Any) -> Any:
    """Return a JSON value whose decimals, which are texts, have at most four digits."""
    if isinstance(value, dict):
        return {name: shorten_decimals(one) for name, one in value.items()}
    if isinstance(value, list):
        return [shorten_decimals(one) for one in value]
    return show(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else value


def show_guarantee(epsilon: str, delta: str) -> str:
    """Return a guarantee with at most four digits, rounded up so that it promises no more than holds."""
    rounding = Context(prec=4, rounding=ROUND_CEILING)
    return f"{rounding.create_decimal(epsilon):f} at delta {rounding.create_decimal(delta):f}"


def show_gain(value: str | None) -> str:
    """Return a gain with its sign, such as `+0.0400`."""
    text = show_number(value)
    return text if value is None or text.startswith("-") else f"+{text}"


def show_p(value: str | None) -> str:
    """Return a p-value with at most four digits; a small one as `below 0.0001`."""
    return "below 0.0001" if value is not None and Fraction(value) < Fraction(1, 10_000) else show_number(value)


def show_interval(lower: str | None, upper: str | None) -> str:
    """Return an interval such as `0.1000 to 0.2000`."""
    return NONE if lower is None and upper is None else f"{show_number(lower)} to {show_number(upper)}"


def show_percent(value: str | None) -> str:
    """Return a percentage such as `95 %` or `99.17 %`, rounded down so that it does not overstate the confidence."""
    places = int(Fraction(value or 0) * 10_000)
    return NONE if value is None else f"{f'{places // 100}.{places % 100:02d}'.rstrip('0').rstrip('.')} %"


def count_of(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun, such as `1 run` or `3 runs`."""
    return f"1 {one}" if number == 1 else f"{number} {several or one + 's'}"


_EXPOSURES = {
    "internal": "Only the organisation sees its responses.",
    "customers": "Customers see its responses.",
    "public": "Anyone can see its responses.",
}
"""Sentences for the exposures of the shipped policy. Other words of a policy stand for themselves."""
_PURPOSES = {
    "draft": "People edit what it writes.",
    "assist": "People decide with its help.",
    "decide": "Its responses are decisions.",
}
"""Sentences for the purposes of the shipped policy."""


def describe_use(exposure: str, purpose: str) -> str:
    """Return who sees the responses and what they are for, such as `Customers see its responses (customers). …`."""
    seen, used = _EXPOSURES.get(exposure), _PURPOSES.get(purpose)
    exposed = f"Exposure: {exposure}." if seen is None else f"{seen[:-1]} ({exposure})."
    return f"{exposed} " + (f"Purpose: {purpose}." if used is None else f"{used[:-1]} ({purpose}).")


def tone_of_tier(tier: str | None, tiers: Sequence[str]) -> str:
    """Return `bad` for the highest of several tiers and for none of them, `good` for the lowest, else `wait`."""
    if tier not in tiers:
        return "bad"
    place = tiers.index(tier)
    return "wait" if len(tiers) == 1 else "good" if place == 0 else "bad" if place == len(tiers) - 1 else "wait"


_DECISIONS: dict[str, str] = {
    "approve": "approved",
    "approve-with-conditions": "approved with conditions",
    "request-changes": "changes requested",
    "reject": "rejected",
    "withdraw": "withdrawn",
}


def name_decision(decision: str) -> str:
    """Return a decision as what was done. Another word stays as it is."""
    return _DECISIONS.get(decision, decision)


def describe_conditions(conditions: Conditions | None) -> str:
    """Return conditions in one line."""
    if conditions is None:
        return "none"
    limit = conditions.answers_a_day
    parts = (
        f"not before {conditions.not_before}" if conditions.not_before else "",
        f"not after {conditions.not_after}" if conditions.not_after else "",
        f"only as the model {' or '.join(conditions.served_models)}" if conditions.served_models else "",
        f"at most {count_of(limit, 'response')} a day" if limit else "",
    )
    return "; ".join(filter(None, parts)) or "none"


def describe_change(one: Change) -> str:
    """Return a change, such as `rank: 16, was 8`. Only the first line of a longer text is shown."""
    before, now = (None if text is None else _first_line(text) for text in (one.before, one.now))
    if before is None or now is None:
        word = "" if one.what.startswith("labels") else " (new)" if before is None else " (no longer)"
        return f"{one.what}: {now if before is None else before}{word}"
    return f"{one.what}: {now}, was {before}"


def _first_line(text: str) -> str:
    lines = text.splitlines()
    return f"{lines[0]} …" if len(lines) > 1 else text


def describe_record(gates: GatesFile, one: EvaluatedSet) -> str:
    """Return how often a set was used for evaluation before, and how many of its rows are training rows."""
    text = f"{one.items} rows; evaluated before: {count_of(one.evaluated_before, 'run')}; "
    if gates.run_correction == "once":
        text += "only the first evaluation counts"
    else:
        text += f"p-values are multiplied by {correction_factor(gates, one.evaluated_before)}"
    if one.named_before is not None:
        text += f"; final, {count_of(one.named_before, 'run')} of this name before"
    if one.duplicates is not None:
        text += f"; also training rows: {one.duplicates}, nearly: {one.near_duplicates}"
    return text


def describe_previous_runs(previous: PreviousRuns) -> str:
    """Return the counts of earlier runs as one sentence."""
    if not previous.runs:
        return "No other run was trained on this dataset before it was sealed."
    people = count_of(previous.people, "person", "people")
    text = f"{count_of(previous.runs, 'other run')} on this dataset before it was sealed, by {people}"
    if previous.swept:
        text += f", {previous.swept} of them in {count_of(previous.sweeps, 'sweep')}"
    return f"{text}. Sealed: {previous.sealed}, cancelled: {previous.cancelled}, failed: {previous.failed}."


def describe_privacy(privacy: PrivacySummary) -> list[tuple[str, str]]:
    """Return (label, text) rows that describe the guarantee."""
    before, guarantee = privacy.before, show_guarantee(privacy.epsilon, privacy.delta)
    rows = [("Epsilon", f"{guarantee}, for one training row")]
    rows.append(("A person's rows", "not this epsilon: of a person with k rows k times it, at a larger delta"))
    rows.append(("Noise", f"{privacy.noise} times the clipping norm, {privacy.clip}"))
    if before.private:
        names = ", ".join(run.run for run in before.private[:8]) + (" …" if len(before.private) > 8 else "")
        total = f"epsilon {show_guarantee(privacy.epsilon_all, privacy.delta_all)}, added up over this and "
        runs = count_of(len(before.private), "private run")
        rows.append(("With earlier runs", f"{total}{runs} on the same dataset: {names}"))
    if before.plain:
        which = "1 adapter was" if before.plain == 1 else f"{before.plain} adapters were"
        rows.append(("Not covered", f"{which} trained on the same dataset before without privacy"))
    return [*rows, ("Not counted", "runs on other datasets with the same rows; measures; how this run was chosen")]
