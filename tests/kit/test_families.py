"""The sample of a long family: drawn by the seed, the same in every process, and never fewer than asked for."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kit.families import undrawn


class Case:
    """As much of a collected test as the draw looks at."""

    def __init__(self, nodeid: str, keep: Any) -> None:
        self.nodeid, self._keep = nodeid, keep

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return None if self._keep is None else pytest.mark.family(keep=self._keep).mark


def family(name: str, cases: int, keep: Any) -> list[Any]:
    return [Case(f"tests/test_x.py::{name}[{number}]", keep) for number in range(cases)]


def test_so_many_cases_of_each_long_family_are_kept_and_no_other_test_is_left_out() -> None:
    items = [*family("long", 40, 5), *family("short", 4, 5), *family("plain", 9, None)]
    left_out = undrawn(items, 1)
    assert len(left_out) == 35
    assert {item.nodeid.partition("[")[0] for item in left_out} == {"tests/test_x.py::long"}


def test_a_share_of_the_cases_is_one_at_least() -> None:
    assert len(undrawn([*family("wires", 2, 0.5), *family("more", 12, 0.5)], 1)) == 1 + 6
    assert undrawn(family("alone", 1, 0.5), 1) == set()


def test_a_seed_draws_the_same_in_whatever_order_the_cases_were_collected_and_another_seed_others() -> None:
    items = family("long", 40, 5)
    assert undrawn(items, 1) == undrawn(list(reversed(items)), 1)
    assert undrawn(items, 1) != undrawn(items, 2)


def test_every_case_is_drawn_in_time() -> None:
    items = family("long", 40, 5)
    assert set.intersection(*(undrawn(items, seed) for seed in range(200))) == set()


@pytest.mark.parametrize("keep", [0, "3", -1, 1.0, 0.0])
def test_a_sample_of_none_is_a_mistake(keep: Any) -> None:
    with pytest.raises(pytest.UsageError, match="expected keep=N"):
        undrawn(family("long", 40, keep), 1)
