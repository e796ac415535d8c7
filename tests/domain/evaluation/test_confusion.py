"""The confusion matrix of a set, counted from its items."""

from __future__ import annotations

from appliance.domain.evaluation.confusion import count_confusions
from appliance.domain.evaluation.items import Answer, EvaluationItem, Slices
from scripts.kit.item_groups import digest


def _answer(label: str | None, expected: str) -> Answer:
    return Answer(confidence=None, label=label, right=label == expected, scores={"loss": 1})


def _items(*rows: tuple[str, str | None, str]) -> list[EvaluationItem]:
    return [
        EvaluationItem(
            adapter=_answer(ours, expected),
            base=_answer(theirs, expected),
            cluster=None,
            row=digest(f"row {number}"),
            slices=Slices(column=None, label=expected, length="short"),
        )
        for number, (expected, ours, theirs) in enumerate(rows)
    ]


def test_the_largest_confusions_come_first_beside_the_bases() -> None:
    found = count_confusions(
        _items(("a", "b", "b"), ("a", "b", "a"), ("b", "c", "b"), ("c", "c", "a"), ("a", "a", "c")), "held-out"
    )
    assert found is not None
    pairs = [(one.expected, one.answered, one.items, one.base_items) for one in found.pairs]
    assert pairs == [("a", "b", 2, 1), ("b", "c", 1, 0)]
    assert (found.items, found.right, found.base_right) == (5, 2, 2)


def test_the_counts_of_labels_add_up_to_the_matrix() -> None:
    found = count_confusions(_items(("a", "b", "z"), ("b", "b", "b"), ("c", "a", "c")), "held-out")
    assert found is not None
    assert [one.label for one in found.labels] == ["a", "b", "c", "z"]
    wrong = {one.expected: one.items for one in found.pairs}
    for one in found.labels:
        assert one.items == one.right + wrong.get(one.label, 0)
    assert sum(one.answered for one in found.labels) == found.items == 3


def test_answers_without_labels_have_no_confusions() -> None:
    assert count_confusions(_items(("a", None, "a")), "held-out") is None
    assert count_confusions([], "held-out") is None
