"""Attempts to bypass a failed verdict, its exception and the authorisation of a run, through the API and the
database."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.core.policy import Parameters
from appliance.domain.evaluation.verdict import parse_verdict
from appliance.domain.releases.findings import AddFinding, CloseFinding
from appliance.domain.runs.control import AuthoriseRun
from appliance.formats.core.digest import digest_bytes
from scripts.kit.appliance import Appliance, Refused
from tests.attacks.keeping import adopt
from tests.attacks.test_decisions import signed
from tests.attacks.test_gates import EASIER, GATES, folder_of
from tests.attacks.test_ledger import around_the_refusal, opened
from tests.attacks.test_people import grant

pytestmark = pytest.mark.thorough

FAILED = "did not pass these gates: better-than-base"


def order(site: Appliance, name: str = "poor", by: str = "olga", **members: Any) -> Any:
    """Return the order of a run whose gates need more rows than its dataset holds out, so that none can be passed."""
    return site.train_order(name, by).model_copy(update={"gates": digest_bytes(GATES), **members})


def evaluated_run(site: Appliance, name: str = "poor") -> dict[str, Any]:
    return site.wait_run(site.order(order(site, name), gates=GATES)["result"]["run"])


@pytest.fixture(scope="module")
def failing(shared: Appliance) -> Appliance:
    """With poor@1, whose verdict was not passed."""
    assert evaluated_run(shared)["adapter"] == "poor@1"
    return shared


def change_row(site: Appliance, kind: str, key: str, **members: Any) -> None:
    """Change a projected row, as the database's owner can."""
    where = "kind = ? AND id = ? AND until IS NULL"
    with opened(site) as connection:
        (value,) = connection.execute(f"SELECT value FROM projections WHERE {where}", (kind, key)).fetchone()
        edited = json.dumps(json.loads(value) | members, sort_keys=True, separators=(",", ":"))
        changed = connection.execute(f"UPDATE projections SET value = ? WHERE {where}", (edited, kind, key))
        assert changed.rowcount == 1


def restart(site: Appliance, *extra: str) -> None:
    site.stop()
    site.start(*extra)


def accept(site: Appliance, who: str = "rita", **values: Any) -> int:
    defaults: dict[str, Any] = {
        **site.on("poor@1"), "kind": "exception", "severity": "high", "blocks": False, "accepts_verdict": True,
        "review_function": "privacy", "owner": "olga", "due": add_seconds(site.now(), 86_400),
    }  # fmt: skip
    return int(signed(site, AddFinding, who, texts=("finding", "remedy", "retest"), **defaults | values)["index"])


def refusal(act: Any) -> str:
    """Why the service refused."""
    with pytest.raises(Refused) as caught:
        act()
    assert caught.value.status == 403, caught.value
    return "; ".join(caught.value.reasons) or caught.value.message


def grant_once(site: Appliance, name: str, role: str) -> None:
    person = next(person for person in site.get("/v1/principals") if person["name"] == name)
    if role not in person["roles"]:
        grant(site, name, role)


@pytest.mark.essential
def test_a_failed_verdict_is_neither_approved_nor_released_whatever_the_rows_say(failing: Appliance) -> None:
    assert FAILED in refusal(lambda: failing.review("rita", name="poor@1"))
    assert FAILED in refusal(lambda: failing.activate(name="poor@1"))
    for kind in ("adapter", "evaluation"):
        change_row(failing, kind, "poor@1", passed=True)
    change_row(failing, "adapter", "poor@1", failed_gates=[])
    assert FAILED in refusal(lambda: failing.review("rita", name="poor@1"))
    report = failing.verify()
    assert report["verdict"] == "failed"
    assert any("projection adapter poor@1" in finding for finding in report["local_findings"])
    restart(failing)
    assert FAILED in refusal(lambda: failing.review("rita", name="poor@1"))
    restart(failing, "--rebuild")
    assert failing.verify()["verdict"] == "verified"


def test_an_exception_is_the_right_person_s_and_its_approvals_end_with_it(failing: Appliance) -> None:
    for who in ("olga", "lou", "anna", "rob"):
        assert "This action needs" in refusal(lambda who=who: accept(failing, who))
    grant_once(failing, "olga", "reviewer:privacy")
    assert "olga ordered the training run" in refusal(lambda: accept(failing, "olga"))
    accept(failing, accepts_verdict=False)
    assert FAILED in refusal(lambda: failing.review("rita", name="poor@1")), "an exception about something else"
    entry = accept(failing)
    failing.approve(name="poor@1")
    failing.activate(name="poor@1", served_model="poor")
    failing.chat("legal", "poor")
    signed(failing, CloseFinding, "rita", texts=("evidence",), **failing.on("poor@1"), entry=entry)
    assert FAILED in refusal(lambda: failing.chat("legal", "poor"))
    # By the database: the exception is open again, while the service runs and across a restart.
    findings = [
        {name: value for name, value in row.items() if name != "open"} | {"closed": None, "closed_by": None}
        for row in failing.adapter("poor@1")["findings"]
    ]
    change_row(failing, "adapter", "poor@1", findings=findings)
    for _ in range(2):
        assert FAILED in refusal(lambda: failing.chat("legal", "poor"))
        restart(failing)
    # Another exception does not revive what was approved on the first.
    accept(failing)
    assert "Adapter poor@1 needs 2 valid approvals for legal and has 0" in refusal(
        lambda: failing.chat("legal", "poor")
    )
    assert {row["state"] for row in failing.adapter("poor@1")["reviews"]} == {"stale"}
    restart(failing, "--rebuild")
    assert failing.verify()["verdict"] == "verified"


def wait_for_a_second(site: Appliance, by: str = "olga") -> str:
    """Order a run of the highest tier, which requires a second person."""
    tiers = [tier.model_dump(mode="json") for tier in Parameters().tiers]
    adopt(site, tiers=[*tiers[:-1], {**tiers[-1], "authorise_runs": True}])
    run = str(site.order(order(site, "waits", by, tier="high"), gates=GATES)["result"]["run"])
    assert site.get(f"/v1/runs/{run}")["status"] == "waiting"
    return run


def authorise(site: Appliance, run: str, who: str) -> Any:
    return signed(site, AuthoriseRun, who, run=run, order=site.get(f"/v1/runs/{run}")["order"])


def began(site: Appliance, run: str) -> bool:
    return any(entry["body"]["run"] == run for entry in site.entries(type="run.started"))


def test_a_run_waits_for_a_person_who_made_nothing_of_it_whatever_the_rows_say(failing: Appliance) -> None:
    site = failing
    site.enrol("otto", "operator", "reviewer:safety")
    run = wait_for_a_second(site, "otto")
    grant_once(site, "olga", "reviewer:privacy")
    assert "otto ordered the run. A second person must authorise it." in refusal(lambda: authorise(site, run, "otto"))
    assert "olga imported the dataset of the run. A second person must authorise it." in refusal(
        lambda: authorise(site, run, "olga")
    )
    assert "lou is" in refusal(lambda: authorise(site, run, "lou"))
    change_row(site, "run", run, status="queued", tier=None)
    change_row(site, "dataset", "clauses@1", imported_by="lou")
    assert "olga imported the dataset of the run. A second person must authorise it." in refusal(
        lambda: authorise(site, run, "olga")
    )
    restart(site)
    assert "olga imported the dataset of the run. A second person must authorise it." in refusal(
        lambda: authorise(site, run, "olga")
    )
    assert site.get(f"/v1/runs/{run}")["status"] == "waiting" and not began(site, run)
    authorise(site, run, "rita")
    assert site.wait_run(run)["adapter"] == "waits@1" and began(site, run)
    restart(site, "--rebuild")
    assert site.verify()["verdict"] == "verified"


def test_gates_that_are_changed_in_the_database_after_the_order_seal_no_adapter(failing: Appliance) -> None:
    site = failing
    run = wait_for_a_second(site)
    digest = bytes.fromhex(digest_bytes(GATES).removeprefix("sha256:"))
    write = "UPDATE documents SET bytes = ? WHERE digest = ?"
    with around_the_refusal(site) as connection:
        assert connection.execute(write, (EASIER, digest)).rowcount == 1
    try:
        authorise(site, run, "rita")
        ended = site.wait_run(run)
        assert (ended["status"], ended["adapter"]) == ("failed", None)
    finally:
        with around_the_refusal(site) as connection:
            connection.execute(write, (GATES, digest))
    assert site.verify()["verdict"] == "verified"


def test_earlier_tries_on_a_set_are_counted_though_their_rows_are_deleted(failing: Appliance) -> None:
    tries = len(failing.get("/v1/evaluations"))
    assert tries >= 2, "the first adapter's run bound no gates, and showed its results"
    with opened(failing) as connection:
        connection.execute("DELETE FROM projections WHERE kind IN ('evaluation', 'run', 'adapter')")
    assert evaluated_run(failing, "again")["adapter"] == "again@1"
    verdict = parse_verdict((folder_of(failing, "again@1") / "verdict.json").read_bytes())
    assert verdict.evaluated[0].evaluated_before == tries
    restart(failing, "--rebuild")
    assert failing.verify()["verdict"] == "verified"


def test_who_ordered_run_and_data_does_not_review_it_though_the_row_names_another(failing: Appliance) -> None:
    grant_once(failing, "olga", "reviewer:privacy")
    change_row(failing, "adapter", "clauses@1", ordered_by="lou", dataset_by="lou")
    for _ in range(2):
        told = refusal(lambda: failing.review("olga", review_function="privacy"))
        assert "olga ordered the training run." in told and "olga imported the training data." in told
        restart(failing, "--rebuild")
    assert failing.verify()["verdict"] == "verified"
