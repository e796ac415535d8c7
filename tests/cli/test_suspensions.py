"""A release is suspended and resumed by the command line. An activation says what it replaces and what limits it."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.cli.conftest import Desk, Told, one_line
from tests.kit.evaluated_release import adapter_of, conditions, reasons

ON = ("clauses@1", "--unit", "legal", "--reason", "A response names a client.", "--yes")


def suspend(desk: Desk, who: str, *words: str) -> Told:
    return desk.as_(who, "release", "suspend", *ON, *words)


def resume(desk: Desk, who: str, *words: str) -> Told:
    return desk.as_(who, "release", "resume", *ON, *words)


def test_a_reviewer_suspends_a_release_and_resumes_it(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    told = suspend(desk, "rita")
    assert told.code == 0, told.err
    assert "suspended: clauses@1 for legal" in one_line(told.out)
    assert "Exported copies are not reached" in one_line(told.err)
    (found,) = adapter_of(desk.site).suspensions
    assert (found.unit, found.served_model, found.role, found.by) == ("legal", None, "reviewer:privacy", "rita")
    shown = one_line(desk.as_("olga", "adapter", "show", "clauses@1").out)
    assert f"suspension {found.index}: valid: for legal by rita (reviewer:privacy)" in shown
    assert "release.suspended" in shown
    assert "A response names a client." in shown

    refused = resume(desk, "otto")
    assert refused.code == 3
    assert "which otto does not have" in one_line(refused.err)
    told = resume(desk, "rita")
    assert told.code == 0, told.err
    assert f"the suspension of entry {found.index} of clauses@1 for legal is lifted" in one_line(told.out)
    assert reasons(desk.site) == []
    shown = one_line(desk.as_("olga", "adapter", "show", "clauses@1").out)
    lifted = adapter_of(desk.site).suspensions[0].lifted
    assert f"suspension {found.index}: lifted by rita, entry {lifted}: for legal" in shown
    nothing = resume(desk, "rita")
    assert nothing.code == 4
    assert "expected a valid one of clauses@1 for legal, got none" in one_line(nothing.err)


def test_the_reason_is_stored_beside_the_log_only(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    assert suspend(desk, "rita").code == 0
    index = adapter_of(desk.site).suspensions[0].index
    assert b"names a client" not in desk.site.ledger.entry_bytes(index)
    assert b"names a client" not in desk.site.ledger.documents_of(index)["order"]


def test_two_administrators_resume_what_another_role_suspended(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    assert suspend(desk, "otto").code == 0
    told = resume(desk, "anna")
    assert told.code == 0, told.err
    assert "outcome: pending" in one_line(told.out)
    assert "next: another administrator types: appliance order countersign" in one_line(told.err)
    assert reasons(desk.site) != []
    told = desk.as_("ben", "order", "countersign", "--yes")
    assert told.code == 0, told.err
    assert reasons(desk.site) == []


def test_a_suspension_for_one_served_model_and_several_at_once(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    assert suspend(desk, "rita", "--served-model", "labels").code == 0
    assert suspend(desk, "raul").code == 0
    first, second = adapter_of(desk.site).suspensions
    assert (first.served_model, second.served_model) == ("labels", None)
    told = resume(desk, "rita")
    assert told.code == 2
    assert f"got those of entries {first.index}, {second.index}; name it: --entry" in one_line(told.err)
    assert resume(desk, "rita", "--entry", str(first.index)).code == 0
    assert len(reasons(desk.site)) == 1


def test_a_role_is_named_by_who_has_several_or_none(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    told = suspend(desk, "olga")
    assert told.code == 2
    assert "role: expected exactly one of yours that can suspend for legal, got none" in one_line(told.err)
    told = suspend(desk, "rita", "--role", "release-owner:legal")
    assert told.code == 3
    assert "rita cannot suspend an adapter for legal under the role release-owner:legal" in one_line(told.err)


def test_an_activation_says_what_it_replaces_and_which_conditions_limit_it(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    limits = conditions(answers_a_day=3)
    approval = desk.site.review("rita", "privacy", decision="approve-with-conditions", conditions=limits)
    desk.site.review("raul", "model-risk")
    words = ("release", "activate", "clauses@1", "--unit", "legal", "--served-model", "labels", "--yes")
    told = desk.as_("otto", *words)
    assert told.code == 0, told.err
    shown = one_line(told.err)
    assert "replaces: nothing: no version was active under this name" in shown
    assert f"condition of approval {approval.index}: at most 3 responses a day" in shown
    until = adapter_of(desk.site).reviews[0].valid_until
    assert f"until: {until}, the first date that ends it, by entry {approval.index}" in shown
    shown = one_line(desk.as_("otto", *words).err)
    release = desk.site.state.releases.get("legal/labels")
    assert release is not None
    assert f"replaces: clauses@1, active by entry {release.history[0].index} of otto" in shown


def test_json_of_an_adapter_has_its_suspensions(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    assert suspend(desk, "rita").code == 0
    (found,) = json.loads(desk.as_("olga", "adapter", "show", "clauses@1", "--json").out)["adapter"]["suspensions"]
    assert (found["valid"], found["by"], found["lifted"]) == (True, "rita", None)
