"""Attempts to bypass findings, requests, conditions and delegations, through the API and by editing the database."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from appliance.domain.core.decisions import Conditions, ReviewRecord
from appliance.domain.core.names import add_seconds
from appliance.domain.core.order import Order
from appliance.domain.governance.delegations import Delegate
from appliance.domain.releases.activations import BreakGlass
from appliance.domain.releases.findings import AddFinding, CloseFinding
from appliance.domain.releases.requests import RequestRelease, WithdrawRequest
from appliance.formats.core.commitment import Disclosure, disclose
from scripts.kit.appliance import Appliance, Refused

pytestmark = pytest.mark.thorough


def signed(site: Appliance, model: type[Order], who: str, *, texts: tuple[str, ...] = (), **values: Any) -> Any:
    """Orders it, with a text for each member that is one."""
    found: dict[str, Disclosure] = {name: disclose(f"{name} of it", os.urandom(32)) for name in texts}
    commitments = {name: text.commitment for name, text in found.items()}
    return site.order(model(**{**site.terms(who), **values, **commitments}), *found.values())


def request_release(site: Appliance, who: str = "olga", **values: Any) -> str:
    """Request a release, and return the request's identity."""
    defaults: dict[str, Any] = {
        **site.on("clauses@1"), "unit": "legal", "exposure": "internal", "purpose": "assist", "tier": "low",
        "verdict": None, "conditions": None,
    }  # fmt: skip
    order = signed(site, RequestRelease, who, texts=("intended_use", "limits"), **defaults | values)
    return str(order["order"])


def find(site: Appliance, who: str = "rita", **values: Any) -> int:
    defaults: dict[str, Any] = {
        **site.on("clauses@1"), "kind": "issue", "severity": "high", "blocks": True, "accepts_verdict": False,
        "review_function": "privacy", "owner": "olga", "due": add_seconds(site.now(), 86_400),
    }  # fmt: skip
    return int(signed(site, AddFinding, who, texts=("finding", "remedy", "retest"), **defaults | values)["index"])


def close(site: Appliance, entry: int, who: str = "rita") -> Any:
    return signed(site, CloseFinding, who, texts=("evidence",), **site.on("clauses@1"), entry=entry)


def decide(site: Appliance, who: str, **changes: Any) -> Any:
    """Submit a review with a reason, by a person who has the review function."""
    reason = disclose("Because.", os.urandom(32))
    order, meaning = site.review_order(who, **{"reason": reason.commitment, **changes})
    return site.order(order, meaning, reason)


def change_adapter(site: Appliance, **members: Any) -> None:
    """In the projected row, as who owns the database can."""
    path = site.settings.database_file or ""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        where = "kind = 'adapter' AND id = 'clauses@1' AND until IS NULL"
        (value,) = connection.execute(f"SELECT value FROM projections WHERE {where}").fetchone()
        edited = json.dumps(json.loads(value) | members, sort_keys=True, separators=(",", ":"))
        assert connection.execute(f"UPDATE projections SET value = ? WHERE {where}", (edited,)).rowcount == 1


def refused(site: Appliance, code: str = "not-admitted") -> str:
    with pytest.raises(Refused) as caught:
        site.chat("legal", "labels")
    assert caught.value.code == code
    return caught.value.message


def test_a_finding_stops_answers_until_the_right_person_closes_it(released: Appliance) -> None:
    site = released
    site.chat("legal", "labels")
    entry = find(site)
    assert f"Finding {entry} (high issue, privacy) blocks this release." in refused(site)
    for who in ("rob", "olga", "lou", "anna"):
        with pytest.raises(Refused) as wrong:
            close(site, entry, who)
        assert wrong.value.status == 403 and any(
            "This action needs reviewer" in str(reason) for reason in wrong.value.reasons
        )
    assert f"Finding {entry} (high issue, privacy) blocks this release." in refused(site)
    # By the database: the row says that it is closed, while the service runs and across a restart.
    row = site.adapter()["findings"][0]
    closed = {**row, "closed": entry, "closed_by": "rita", "closed_keyid": site.keys["rita"].keyid}
    closed.pop("open")
    change_adapter(site, findings=[closed])
    assert f"Finding {entry} (high issue, privacy) blocks this release." in refused(site)
    report = site.verify()
    assert report["verdict"] == "failed"
    assert any("projection adapter clauses@1" in finding for finding in report["local_findings"])
    site.stop()
    site.start()
    assert f"Finding {entry} (high issue, privacy) blocks this release." in refused(site)
    close(site, entry)
    site.chat("legal", "labels")


def test_an_approval_is_of_no_use_after_its_request_was_changed_or_withdrawn(site: Appliance) -> None:
    request = request_release(site)
    for who in ("rita", "rob"):
        decide(site, who, request=request)
    site.activate()
    site.chat("legal", "labels")
    with pytest.raises(Refused) as another:
        request_release(site, "rita")
    assert another.value.status == 403
    wider = request_release(site, exposure="public", purpose="decide", tier="high")
    assert "needs 3 valid approvals" in refused(site)
    # The old approvals again, by their own bytes, and as new orders on the old request.
    with pytest.raises(Refused) as stale:
        decide(site, "rita", request=request)
    assert any("does not name the current release request" in str(reason) for reason in stale.value.reasons)
    with pytest.raises(Refused) as released:
        site.activate()
    assert any("approval" in str(reason) for reason in released.value.reasons)
    # By the database: the later request is gone from the row.
    row = site.adapter()
    change_adapter(site, requests=row["requests"][:1])
    assert "needs 3 valid approvals" in refused(site)
    site.stop()
    site.start()
    assert "needs 3 valid approvals" in refused(site)
    signed(site, WithdrawRequest, "olga", **site.on("clauses@1"), unit="legal", request=wider)
    assert "has 0" in refused(site)


def test_a_day_s_answers_bind_every_client_program_and_start_of_the_service(site: Appliance) -> None:
    conditions = Conditions(not_before=None, not_after=None, served_models=(), answers_a_day=6)
    decide(site, "rita", decision="approve-with-conditions", conditions=conditions)
    decide(site, "rob")
    for served_model in ("labels", "routes"):
        site.activate(served_model=served_model)
        # Loaded now: two first requests at once would each wait for a load.
        site.chat("legal", served_model)

    def ask(number: int) -> str:
        """Each with a token of its own, as two gateways of the unit would, and by turns for two served models."""
        try:
            site.chat("legal", ("labels", "routes")[number % 2])
        except Refused as error:
            assert error.status == 429, error
            return str(error.code)
        return "answered"

    with ThreadPoolExecutor(4) as gateways:
        outcomes = Counter(gateways.map(ask, range(10)))
    assert outcomes == {"answered": 4, "answers-a-day": 6}
    assert site.types().count("request.admitted") == 6
    site.stop()
    site.start()
    for served_model in ("labels", "routes"):
        with pytest.raises(Refused) as over:
            site.chat("legal", served_model)
        assert over.value.code == "answers-a-day" and "expected at most 6" in over.value.message
    assert site.verify()["verdict"] == "verified"
    # By the database: the condition is gone from the row, while the service runs and across a restart.
    reviews = [{name: row[name] for name in ReviewRecord.__annotations__} for row in site.adapter()["reviews"]]
    change_adapter(site, reviews=[{**row, "decision": "approve", "conditions": None} for row in reviews])
    for _ in range(2):
        assert "expected at most 6" in refused(site, "answers-a-day")
        site.stop()
        site.start()
    assert site.verify()["verdict"] == "failed"


def test_a_maker_decides_neither_as_a_delegate_nor_by_one(site: Appliance) -> None:
    until = add_seconds(site.now(), 86_400)
    with pytest.raises(Refused) as maker:
        signed(site, Delegate, "rita", principal="olga", review_function="privacy", until=until)
    assert any("do not review them for others" in str(reason) for reason in maker.value.reasons)
    with pytest.raises(Refused) as none:
        decide(site, "olga", review_function="privacy", on_behalf_of="rita")
    assert any(
        "rita has not delegated the review function privacy to olga" in str(reason) for reason in none.value.reasons
    )
    signed(site, Delegate, "rita", principal="cleo", review_function="privacy", until=until)
    decide(site, "cleo", review_function="privacy", on_behalf_of="rita")
    site.review("rob")
    site.activate()
    site.chat("legal", "labels")
    # Whoever holds the database cannot hand the field to the maker.
    site.stop()
    path = site.settings.database_file or ""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (value,) = connection.execute("SELECT value FROM projections WHERE kind = 'delegation'").fetchone()
        edited = json.dumps(json.loads(value) | {"delegate": "olga"}, sort_keys=True, separators=(",", ":"))
        connection.execute(
            "UPDATE projections SET value = ?, id = ? WHERE kind = 'delegation'", (edited, "rita/olga/privacy")
        )
    site.start()
    with pytest.raises(Refused) as edited_in:
        decide(site, "olga", review_function="privacy", on_behalf_of="rita")
    assert any("has not delegated" in str(reason) for reason in edited_in.value.reasons)
    assert site.verify()["verdict"] == "failed"


def test_an_emergency_answers_by_two_people_s_orders_and_by_no_fewer(released: Appliance) -> None:
    site = released
    decide(site, "rita", decision="withdraw", valid_until=None)
    assert "valid approvals" in refused(site)
    values = {
        **site.on("clauses@1"), "unit": "legal", "served_model": "labels", "adds_instruction": False,
        "until": add_seconds(site.now(), 3_600),
    }  # fmt: skip
    first = signed(site, BreakGlass, "lou", texts=("reason",), **values)
    assert first["outcome"] == "pending"
    assert "valid approvals" in refused(site)
    for who in ("lou", "rob", "olga"):
        with pytest.raises(Refused):
            site.countersign(first["order"], who)
    assert "valid approvals" in refused(site)
    site.countersign(first["order"])
    site.chat("legal", "labels")
    (asked,) = site.adapter()["release_requests"]
    assert (asked["request"]["kind"], asked["tier"], asked["reviewers"]) == ("break-glass", "high", 3)
    entry = find(site)
    assert f"Finding {entry} (high issue, privacy) blocks this release." in refused(site)
    assert site.verify()["verdict"] == "verified"
