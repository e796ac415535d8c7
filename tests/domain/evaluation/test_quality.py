"""Warnings about an adapter: each ruined one has one, and a good one has none."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.evaluation.quality import list_measures, list_warnings, summarize_training

BASE = {"accuracy": "0.428571", "loss": "2.100000"}
GOOD: dict[str, Any] = {
    "base": BASE,
    "adapter": {"accuracy": "0.810000", "loss": "0.400000", "rows": 21},
    "majority": {"accuracy": "0.428571", "rows": 21},
    "training": {"first_loss": "2.000000", "last_loss": "0.300000"},
}
RUINED = GOOD | {
    "adapter": {"accuracy": "0.285714", "loss": "10.80000"},
    "training": {"first_loss": "2.000000", "last_loss": "9.500000"},
}


def test_a_good_adapter_has_no_warning() -> None:
    assert list_warnings(GOOD) == []


def test_a_ruined_adapter_has_each_warning_with_its_numbers() -> None:
    told = list_warnings(RUINED)
    assert [warning.partition(":")[0] for warning in told] == [
        "the training loss rose from 2.000 to 9.500",
        "worse than its base",
        "the loss on the held-out rows, 10.80, is far above its base's 2.100",
        "no better than always naming the majority class",
    ]
    assert "0.286" in told[1] and "0.429" in told[1]


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({"adapter": {"accuracy": "0.428571"}}, 1),  # what the majority class alone has
        ({"adapter": {"accuracy": "0.428572"}}, 0),
        ({"adapter": {"accuracy": "0.900000", "loss": "3.150000"}}, 0),  # sure of itself, and right
        ({"adapter": {"accuracy": "0.900000", "loss": "3.150001"}}, 1),
        ({"adapter": {"loss": "2.100001"}}, 1),  # a task with no other measure
        ({"adapter": {"rouge_l": "0.1"}, "base": {"rouge_l": "0.2"}}, 1),
        ({"training": {"first_loss": "1.0", "last_loss": "1.05"}}, 0),
        ({"training": {"first_loss": "1.0", "last_loss": "1.06"}}, 1),
        ({"training": {}, "majority": None, "base": {"accuracy": "NaN"}}, 0),
        ({"adapter": {"accuracy": 0, "loss": "many"}}, 0),  # metrics come from others
    ],
)
def test_the_bounds_of_warnings(changes: dict[str, Any], warnings: int) -> None:
    assert len(list_warnings(GOOD | changes)) == warnings


def test_measures_stand_beside_the_bases_and_the_majoritys() -> None:
    assert list_measures(RUINED) == [
        ("accuracy", "0.286, its base 0.429, the majority class 0.429"),
        ("loss", "10.80, its base 2.100"),
    ]
    assert list_measures({}) == []


@pytest.mark.parametrize(
    ("noise", "told"),
    [
        (
            {"rows": 64, "different": 0, "largest": 0},
            ["64 rows in another order and other batches: every answer was the same"],
        ),
        (
            {"rows": 64, "different": 3, "largest": 12},
            ["64 rows in another order and other batches: 3 answers were others, a score by at most 0.000012"],
        ),
        ({"rows": 64, "different": "3", "largest": 12}, []),  # metrics come from others
        ({}, []),
        ([64], []),
    ],
)
def test_what_was_evaluated_again_is_said_in_words(noise: Any, told: list[str]) -> None:
    assert list_measures({"noise": noise}) == [("evaluated again", one) for one in told]


def test_the_training_loss_is_the_mean_of_its_first_and_last_steps() -> None:
    assert summarize_training([]) == {}
    assert summarize_training(["1.0", "3.0"]) == {"first_loss": "1.000000", "last_loss": "3.000000"}
    losses = ["1.0", "3.0", *["9.0"] * 16, "5.0", "7.0"]
    assert summarize_training(losses) == {"first_loss": "2.000000", "last_loss": "6.000000"}
