"""Each test's verdict is computed, and computed again from the items' bytes."""

from __future__ import annotations

import pytest

from scripts.benches import verdicts


@pytest.mark.outside
def test_each_test_is_measured_with_its_verification_and_the_goal_that_is_its_own() -> None:
    rows = list(verdicts.measure(400, 1))
    assert len(rows) == 12 and all(one.ours > 0 and one.unit == "s" for one in rows)
    goals = {one.name.split(",")[0]: one.goal for one in rows if one.name.startswith("verdict")}
    assert goals["verdict by mcnemar"] == goals["verdict by tango"] == "≤ 1"
    assert goals["verdict by permutation"] == goals["verdict by tost"] == "≤ 10"


def test_a_record_has_as_many_items_as_asked_for_and_an_adapter_that_gains() -> None:
    items = verdicts.make_record(1_000, cluster=4)
    assert len(items) == 1_000 and len({item.cluster for item in items}) == 250
    assert sum(bool(item.adapter.right) - bool(item.base.right) for item in items) == 100
