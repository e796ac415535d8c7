"""The CPU time of a rule grows with the rows of its subject and no faster, however a person arranges them."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from appliance.domain.core import decisions
from appliance.domain.core.decisions import ReviewRecord
from appliance.domain.core.example import NOW
from appliance.domain.core.records.people import Key
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.signatures import list_keys_rotated_from
from appliance.domain.core.state import State
from appliance.domain.releases.approval import find_review_status
from appliance.errors import Denied
from scripts.kit.log_builder import stage

FREE_S = 0.020
GROWTH = 2.5


def key_id(number: int) -> str:
    return f"sha256:{number:064x}"


def revoke_rotated_keys(rows: int) -> Callable[[], object]:
    """Return the revocation of the first of so many keys, each of which rotated to the next."""
    state = State()
    for number in range(rows):
        rotated_from = key_id(number - 1) if number else None
        key = Key(
            keyid=key_id(number), spki="AA==", principal="vera", enrolled=number, enrolled_at=NOW,
            rotated_from=rotated_from,
        )  # fmt: skip
        state.keys.put(key.keyid, key)
    return lambda: list_keys_rotated_from(state, key_id(0), 1)


def describe_reviews(rows: int) -> Callable[[], object]:
    """Return the description of so many reviews of one person."""
    state = State()
    reviews = tuple(
        ReviewRecord(
            index=number, order=key_id(number), reviewer="rita", keyid=key_id(0), unit="legal",
            review_function="privacy", decision="reject", valid_until=None, time=NOW, request=None, conditions=None,
            on_behalf_of=None,
        )
        for number in range(rows)
    )  # fmt: skip
    adapter = Adapter.model_construct(reviews=reviews)
    return lambda: [find_review_status(state, adapter, review, NOW) for review in reviews]


RULES = {"reviews of an adapter": describe_reviews, "revoke-key": revoke_rotated_keys}


def cpu_s(rule: Callable[[], object]) -> float:
    """Return the least CPU seconds of two calls."""
    found = []
    for _ in range(2):
        begun = time.thread_time()
        rule()
        found.append(time.thread_time() - begun)
    return min(found)


@pytest.mark.thorough
@pytest.mark.parametrize("name", RULES)
def test_cpu_time_grows_no_faster_than_the_rows(name: str) -> None:
    """A growth counts if it is found each of three times."""
    for _ in range(3):
        measured = [cpu_s(RULES[name](rows)) for rows in (500, 1_000, 2_000, 4_000)]
        if not [step for step in pairwise(measured) if step[1] > FREE_S and step[1] > GROWTH * step[0]]:
            return
    raise AssertionError(measured)


@pytest.mark.parametrize("what", ["reviews", "release requests"])
def test_one_person_s_decisions_for_all_units_are_bounded(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each copies the row of the adapter, whatever the unit, and the database keeps every version of it."""
    monkeypatch.setattr(decisions, "MOST_FOR_ALL_UNITS", 3)
    site = stage("sealed")

    def decide(unit: str, **fields: str) -> None:
        if what == "reviews":
            site.review("rita", "privacy", unit=unit, **fields)
        else:
            site.request_release(unit=unit)

    for unit in ("legal", "sales", "legal"):
        decide(unit)
    with pytest.raises(Denied, match=f"has signed 3 {what} of clauses@1"):
        decide("sales")
    if what == "reviews":
        decide("sales", decision="reject")
