"""Commands about runs that wait for authorisation, and about verdicts that did not pass."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.policy import Parameters
from appliance.domain.runs.control import AuthoriseRun
from appliance.formats.signatures.dsse import parse_envelope
from tests.cli.conftest import Desk, one_line
from tests.cli.test_findings import ON, done
from tests.cli.test_gates import WORSE, evaluated, recipe_file
from tests.cli.test_service import held
from tests.kit.founded import FILES, policy_set


def open_asking(open_desk: Callable[[str], Desk]) -> Desk:
    """Open the desk of a site whose highest tier requires a second person."""
    desk = open_desk("imported")
    *others, high = Parameters().tiers
    desk.site.adopt(policy_set(tiers=(*others, high.model_copy(update={"authorise_runs": True}))))
    return desk


def start(desk: Desk, folder: Path, tier: str = "high") -> str:
    (row,) = json.loads(
        done(desk, "olga", *("run", "start", str(recipe_file(folder)), "--tier", tier, "--yes", "--json"))
    )
    assert row["status"] == ("waiting" if tier == "high" else "queued")
    return str(row["run"])


@pytest.mark.thorough
def test_a_run_waits_is_listed_with_whom_it_waits_for_and_begins_once_authorised(
    open_desk: Callable[[str], Desk], tmp_path: Path
) -> None:
    desk = open_asking(open_desk)
    begun: list[str] = []
    desk.service.work = begun.append
    run = start(desk, tmp_path)
    assert begun == [] and "waiting" in done(desk, "olga", "run", "list")
    with held(desk.service.settings.lock, os.getpid()):
        told = one_line(done(desk, "rita", "status"))
        (waits,) = json.loads(done(desk, "rita", "status", "--json"))["authorisations"]
    assert f"{run} (high), ordered by olga, waits to be authorised by one of: anna, ben, raul, rita" in told
    assert (waits["run"], waits["authorisers"]) == (run, ["anna", "ben", "raul", "rita"])
    refused = desk.as_("olga", "run", "authorise", run, "--yes")
    assert refused.code == 3 and "olga is operator. This action needs administrator or reviewer" in one_line(
        refused.err
    )
    assert "The order of olga" not in refused.err
    told_ = desk.as_("rita", "run", "authorise", run, "--yes")
    assert told_.code == 0, told_.err
    shown = one_line(told_.err)
    assert shown.index("The order of olga, entry") < shown.index("You are the second person")
    assert "learning rate" in shown and "dataset: clauses@1" in shown, "the recipe is shown before the signature"
    assert begun == ["local"], "the queue heard of it"
    row = desk.site.state.runs.get(run)
    assert row is not None and row.status == "queued" and row.authorised is not None
    document = desk.site.ledger.documents_of(row.authorised.index)["order"]
    order = ORDERS.parse(parse_envelope(document).payload)
    assert isinstance(order, AuthoriseRun) and order.order == row.order
    with held(desk.service.settings.lock, os.getpid()):
        assert json.loads(done(desk, "rita", "status", "--json"))["authorisations"] == []


@pytest.mark.thorough
def test_a_run_is_refused_for_a_reason_and_does_not_begin(open_desk: Callable[[str], Desk], tmp_path: Path) -> None:
    desk = open_asking(open_desk)
    run = start(desk, tmp_path)
    done(desk, "anna", "run", "refuse", run, "--reason", "The rows hold names.", "--yes")
    assert "refused" in done(desk, "olga", "run", "list")
    again = desk.as_("rita", "run", "authorise", run, "--yes")
    assert again.code == 3 and f"Run {run} is refused and does not wait for authorisation." in one_line(again.err)
    assert desk.as_("rita", "run", "authorise", "seven", "--yes").code == 2


def test_a_run_of_a_low_tier_waits_for_nobody_and_an_unknown_tier_is_refused(
    open_desk: Callable[[str], Desk], tmp_path: Path
) -> None:
    desk = open_asking(open_desk)
    start(desk, tmp_path, "low")
    told = desk.as_("olga", "run", "start", str(recipe_file(tmp_path)), "--tier", "highest", "--yes")
    assert told.code == 3 and "no tier with the name highest. Name one of these: low, medium, high" in one_line(
        told.err
    )


@pytest.mark.thorough
def test_a_second_person_is_not_shown_another_order_than_the_log_holds(
    open_desk: Callable[[str], Desk], tmp_path: Path
) -> None:
    desk = open_asking(open_desk)
    run, other = start(desk, tmp_path), start(desk, tmp_path, "low")
    row = desk.site.state.runs.get(other)
    assert row is not None
    desk.service.bend[f"/v1/runs/{run}"] = lambda answer: {**answer, "index": row.index}
    told = desk.as_("rita", "run", "authorise", run, "--yes")
    assert told.code == 6 and f"entry {row.index}, run: expected {run}, got {other}" in one_line(told.err)


ACCEPT = (
    *("finding", "add", "clauses@1", "--review-function", "privacy", "--kind", "exception", "--severity", "high"),
    *("--owner", "olga", "--due", "14d", "--text", "Worse on the held-out rows.", "--remedy", "Train on more rows."),
    *("--retest", "The same gates.", "--accepts-verdict", "--yes"),
)


@pytest.mark.thorough
def test_a_failed_verdict_is_refused_by_gate_until_a_reviewer_accepts_it(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    evaluated(desk, files=FILES | {"items.jsonl": WORSE}, items=WORSE)
    told = desk.as_("rita", "review", "approve", *ON)
    assert told.code == 3 and "Adapter clauses@1 did not pass these gates: better-than-base." in one_line(told.err)
    signed = desk.as_("rita", *ACCEPT)
    assert signed.code == 0 and "You accept, until its due date, that this adapter is released" in one_line(signed.err)
    assert "high exception: open, accepts the verdict" in one_line(done(desk, "raul", "review", "show", "clauses@1"))
    for who in ("rita", "raul"):
        done(desk, who, "review", "approve", *ON)
    done(desk, "otto", "release", "activate", "clauses@1", "--unit", "legal", "--served-model", "labels", "--yes")
