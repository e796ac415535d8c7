"""The list of long files names files, and a run begins with them in their order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from tests.kit import longest_first
from tests.kit.longest_first import LONGEST, TESTS


def test_every_file_of_the_list_is_there_once() -> None:
    assert [name for name in LONGEST if not (TESTS / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)


def test_long_files_come_first_and_the_others_stay_in_their_order() -> None:
    names = ["b.py", LONGEST[1], "a.py", LONGEST[0], LONGEST[1]]
    items = cast(Any, [SimpleNamespace(path=TESTS / name, number=number) for number, name in enumerate(names)])
    longest_first.pytest_collection_modifyitems(items)
    assert [item.number for item in items] == [3, 1, 4, 0, 2]
