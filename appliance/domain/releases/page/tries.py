"""How often somebody tried before an adapter was sealed: a choice among many runs says less than one run."""

from __future__ import annotations

from appliance.domain.core.state import State
from appliance.domain.releases.page.value import Tried
from appliance.errors import NotFound


def count_tries(state: State, adapter: str) -> Tried:
    """Every run is counted, whatever its name, its sweep or its author; those on another version of the dataset are
    not."""
    sealed = state.adapters.get(adapter)
    own = None if sealed is None else state.runs.get(sealed.run)
    if sealed is None or own is None:
        raise NotFound(f"adapter {adapter}: expected it and its run, got none")
    others = [
        run
        for run in state.runs.values()
        if run.dataset_digest == own.dataset_digest and run.id != own.id and run.index < sealed.index
    ]
    sweeps = [run.sweep for run in others if run.sweep is not None]
    ended = [run.status for run in others]
    return Tried(
        runs=len(others),
        people=len({run.ordered_by for run in others}),
        swept=len(sweeps),
        sweeps=len(set(sweeps)),
        sealed=ended.count("sealed"),
        cancelled=ended.count("cancelled"),
        failed=ended.count("failed"),
    )


def describe_tries(tried: Tried) -> str:
    """One sentence, wherever the page is shown."""
    if not tried.runs:
        return "No other run was ordered on this dataset before it was sealed."
    people = _count(tried.people, "person", "people")
    told = f"{_count(tried.runs, 'other run')} on this dataset before it was sealed, by {people}"
    if tried.swept:
        told += f", {tried.swept} of them in {_count(tried.sweeps, 'sweep')}"
    return f"{told}. Sealed: {tried.sealed}, cancelled: {tried.cancelled}, failed: {tried.failed}."


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"1 {one}" if number == 1 else f"{number} {several or one + 's'}"
