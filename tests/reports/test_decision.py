"""The decision and its evidence: missing approvals and who can give them, changes, and arguments."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.decisions import Conditions
from appliance.domain.evaluation.comparison import SliceResult
from appliance.domain.queries.review import values
from appliance.domain.queries.review.values import Change, EligibleReviewer, RequestStatus, Subgroup, VersionChanges
from appliance.domain.releases.approval import FUNCTION_MISSING
from appliance.errors import Refusal
from appliance.reports.review.blocks import Columns, Point, Section, Tiles
from appliance.reports.review.decision import describe_missing, list_helpful
from appliance.reports.review.sections import make_sections
from appliance.reports.review.words import describe_conditions, describe_use, shorten_decimals, show_guarantee
from tests.reports.test_review import page

RITA, RAUL, LEA = (
    EligibleReviewer(name=name, review_function=function, delegates=())
    for name, function in (("rita", "privacy"), ("raul", "model-risk"), ("lea", "legal"))
)


def _status(**changes: Any) -> RequestStatus:
    defaults: dict[str, Any] = {
        **{"tier": "low", "tiers": ("low", "high"), "reviewers": 2, "distinct_functions": 2, "required_functions": ()},
        **{"approvals": (), "blockers": (), "eligible_reviewers": (RITA, RAUL, LEA), "until": None},
    }
    return RequestStatus(**defaults | changes)


@pytest.mark.parametrize(
    ("changes", "functions", "sentence", "helpful"),
    [
        ({"reviewers": 1, "distinct_functions": 1}, set(), "Needs 1 approval.", (RITA, RAUL, LEA)),
        ({}, set(), "Needs 2 approvals, from different review functions.", (RITA, RAUL, LEA)),
        ({"reviewers": 3}, set(), "Needs 3 approvals, from at least 2 review functions.", (RITA, RAUL, LEA)),
        (
            {"approvals": (7,)},
            {"privacy"},
            "Needs 1 more approval, from a review function other than privacy.",
            (RAUL, LEA),
        ),
        (
            {"reviewers": 3, "approvals": (7,)},
            {"privacy"},
            "Needs 2 more approvals, at least 1 of them from a review function other than privacy.",
            (RITA, RAUL, LEA),
        ),
        (
            {"reviewers": 3, "approvals": (7, 8)},
            {"privacy", "legal"},
            "Needs 1 more approval.",
            (RITA, RAUL, LEA),
        ),
        (
            {"approvals": (7, 8)},
            {"privacy"},
            "Needs 1 more approval, from a review function other than privacy.",
            (RAUL, LEA),
        ),
        (
            {"approvals": (7,), "required_functions": ("legal",)},
            {"privacy"},
            "Needs 1 more approval, from a review function other than privacy, legal among them.",
            (LEA,),
        ),
    ],
)
def test_what_is_missing_is_one_sentence_and_names_who_can_give_it(
    changes: dict[str, Any], functions: set[str], sentence: str, helpful: tuple[EligibleReviewer, ...]
) -> None:
    status = _status(**changes)
    assert describe_missing(status, functions) == sentence
    assert tuple(list_helpful(status, functions)) == helpful


ANN, BOB = (EligibleReviewer(name=name, review_function="legal", delegates=()) for name in ("ann", "bob"))
NO_PRIVACY = "Nobody who can approve it is a reviewer for privacy: an administrator gives a person that role."


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"eligible_reviewers": (ANN, BOB)}, f"These people can give one: ann (legal), bob (legal). {NO_PRIVACY}"),
        ({"eligible_reviewers": (ANN, RITA)}, "These people can give one: ann (legal), rita (privacy)."),
        ({"eligible_reviewers": (), "reviewers": 1}, NO_PRIVACY),
        (
            {"eligible_reviewers": (ANN,), "reviewers": 3},
            f"These people can give one: ann (legal). {NO_PRIVACY} That is not enough: an administrator gives one more "
            "person the role of a reviewer.",
        ),
        (
            {"eligible_reviewers": (), "reviewers": 1, "required_functions": ()},
            "Nobody who can give one is enrolled. An administrator gives a person the role of a reviewer.",
        ),
    ],
)
def test_a_required_review_function_that_nobody_has_is_named(changes: dict[str, Any], text: str) -> None:
    blocker = Refusal(FUNCTION_MISSING.name, "adapter:clauses@2", {}, "policy", "", "")
    defaults: dict[str, Any] = {"distinct_functions": 1, "required_functions": ("privacy",), "blockers": (blocker,)}
    shown, status = page(), _status(**defaults | changes)
    (request,) = shown.release_requests
    request = request.model_copy(update={"status": status})
    section = make_sections(shown.model_copy(update={"release_requests": (request,)}))[0]
    (point,) = (point for head, point in _points(section).items() if head.startswith("Needs "))
    assert _text(point.body) == text


def _points(section: Section) -> dict[str, Point]:
    (columns,) = [block for block in section.blocks if isinstance(block, Columns)]
    groups = [group for groups in columns.columns for group in groups]
    return {_text(point.head): point for group in groups for point in group.rows}


def _text(content: Any) -> str:
    return "".join(cell.text for cell in content if cell.kind != "mark")


def _compared(evaluation: tuple[Change, ...], **topics: tuple[Change, ...]) -> Point:
    empty: dict[str, Any] = dict.fromkeys(values.TOPICS, ())
    changes = VersionChanges(
        units=("legal",), since="clauses@1", entry=7, **empty | topics | {"evaluation": evaluation}
    )
    shown = _points(make_sections(page().model_copy(update={"changes": (changes,)}))[0])
    return next(point for head, point in shown.items() if "clauses@1" in head)


def test_a_gate_that_was_dropped_is_said_and_marked() -> None:
    dropped = _compared((Change(what="gate no-worse-than-released", before="rest: accuracy", now=None),))
    assert _text(dropped.head) == "Differs from clauses@1, which is active for legal, in gates."
    assert "Gates dropped: no-worse-than-released." in _text(dropped.body) and dropped.tone == "wait"
    assert "The same: measures, data, recipe, base, instruction, run, code." in _text(dropped.body)
    changed = _compared(
        (Change(what="gate better", before="a", now="b"), Change(what="alpha", before="0.05", now="0.1"))
    )
    assert "Gates changed: better.\nGates file: alpha: 0.1, was 0.05." in _text(changed.body)
    added = _compared((Change(what="gate better", before=None, now="b"),))
    assert "Gates added: better." in _text(added.body) and added.tone == ""
    same = _compared(())
    assert _text(same.head).startswith(
        "The same as clauses@1, which is active for legal: measures, data, recipe, base,"
    )


def test_many_differences_of_a_topic_are_counted() -> None:
    recipe = tuple(Change(what=f"value {number}", before="1", now="2") for number in range(9))
    text = _text(_compared((), recipe=recipe).body)
    assert "value 5: 2, was 1 and 3 more." in text and "value 6" not in text


@pytest.mark.parametrize(
    ("gain", "adjusted", "worse", "found"),
    [
        ("-0.200000000", "0.300000000", False, "lost much"),
        ("-0.200000000", None, False, "lost much, too few rows"),
        ("-0.200000000", "0.010000000", True, "worse"),
        ("-0.099000000", "0.300000000", False, ""),
        ("0.200000000", None, False, "too few rows"),
    ],
)
def test_a_subgroup_that_lost_much_is_marked_also_without_a_proof(
    gain: str, adjusted: str | None, worse: bool, found: str
) -> None:
    result = SliceResult.model_construct(gain=gain, adjusted=adjusted, worse=worse)
    subgroup = Subgroup.model_construct(gate="better", result=result)
    assert (subgroup.found, subgroup.lost_much) == (found, gain == "-0.200000000")


def test_a_private_run_states_its_guarantee_among_the_evidence() -> None:
    (tiles,) = [block for block in make_sections(page())[0].blocks if isinstance(block, Tiles)]
    found = {tile.label: tile for tile in tiles.rows}
    privacy = found["Privacy guarantee"]
    assert privacy.figure == "epsilon 3.0" and "at delta 0.001" in _text(privacy.detail)
    assert "With 1 earlier private run: epsilon 8.5 at delta 0.002." in _text(privacy.detail)
    assert "2 adapters on the same dataset had no guarantee." in _text(privacy.detail)
    assert (found["Held-out rows"].figure, found["Held-out rows"].tone) == ("60", "wait")
    assert "1 under the name clauses. 20 other runs on the dataset before." in _text(
        found["Earlier evaluations"].detail
    )


def test_numbers_have_four_digits_and_a_guarantee_is_never_rounded_down() -> None:
    assert show_guarantee("2.998101", "0.00001") == "2.999 at delta 0.00001"
    assert shorten_decimals({"a": ["12.345600", 7], "b": "0.900000", "c": "v1.2.3"}) == {
        "a": ["12.35", 7],
        "b": "0.9000",
        "c": "v1.2.3",
    }


def test_uses_and_conditions_are_sentences_also_with_the_words_of_another_policy() -> None:
    assert (
        describe_use("public", "decide")
        == "Anyone can see its responses (public). Its responses are decisions (decide)."
    )
    assert describe_use("branches", "triage") == "Exposure: branches. Purpose: triage."
    assert describe_conditions(None) == "none"
    limits = Conditions(not_before=None, not_after=None, served_models=("labels",), answers_a_day=1)
    assert describe_conditions(limits) == "only as the model labels; at most 1 response a day"
