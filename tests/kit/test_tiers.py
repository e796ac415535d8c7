"""The tiers select cases by their marks, and draw families the same in every process."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from tests.kit.tiers import list_gate, list_undrawn

MOST_ESSENTIAL = 25
TESTS = Path(__file__).resolve().parents[1]


class Case:
    """The parts of a collected test that the tiers read."""

    def __init__(self, nodeid: str, keep: Any = None, marks: tuple[str, ...] = ()) -> None:
        self.nodeid, self._keep, self._marks = nodeid, keep, marks

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        if name == "family":
            return None if self._keep is None else pytest.mark.family(keep=self._keep).mark
        return getattr(pytest.mark, name).mark if name in self._marks else None


def family(name: str, cases: int, keep: Any) -> list[Any]:
    return [Case(f"tests/test_x.py::{name}[{number}]", keep) for number in range(cases)]


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ((), True),
        (("thorough",), False),
        (("outside",), False),
        (("essential",), True),
        (("thorough", "essential"), True),
        (("outside", "essential"), True),
    ],
)
def test_a_case_is_in_the_gate_unless_its_marks_say_otherwise(marks: tuple[str, ...], expected: bool) -> None:
    found = cast(Any, Case("tests/test_x.py::test_a", marks=marks))
    assert list_gate([found]) == ({found} if expected else set())


def test_of_an_essential_test_the_gate_has_the_first_case() -> None:
    cases = cast(Any, [Case(f"tests/test_x.py::test_a[{name}]", marks=("essential",)) for name in "zab"])
    assert list_gate(cases) == {cases[0]}


def test_the_gate_has_few_essential_cases() -> None:
    found: Counter[str] = Counter()
    for path in TESTS.rglob("test_*.py"):
        found[path.name] += len(re.findall(r"^@pytest\.mark\.essential$", path.read_text(encoding="utf-8"), re.M))
    assert 0 < found.total() <= MOST_ESSENTIAL


def test_so_many_cases_of_each_long_family_are_kept_and_no_other_test_is_left_out() -> None:
    items = [*family("long", 40, 5), *family("short", 4, 5), *family("plain", 9, None)]
    left_out = list_undrawn(items, 1)
    assert len(left_out) == 35
    assert {item.nodeid.partition("[")[0] for item in left_out} == {"tests/test_x.py::long"}


def test_a_seed_draws_the_same_in_whatever_order_the_cases_were_collected_and_another_seed_others() -> None:
    items = family("long", 40, 5)
    assert list_undrawn(items, 1) == list_undrawn(list(reversed(items)), 1)
    assert list_undrawn(items, 1) != list_undrawn(items, 2)


def test_every_case_is_drawn_in_time() -> None:
    items = family("long", 40, 5)
    assert set.intersection(*(list_undrawn(items, seed) for seed in range(200))) == set()


@pytest.mark.parametrize("keep", [0, "3", -1, 1.0, 0.5])
def test_a_sample_of_none_is_a_mistake(keep: Any) -> None:
    with pytest.raises(pytest.UsageError, match="expected keep=N"):
        list_undrawn(family("long", 40, keep), 1)
