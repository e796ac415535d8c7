"""Attempts to bypass suspensions, with the real engine: through the API, and by editing the database."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.governance.delegations import Delegate
from appliance.domain.releases.activations import Activate, BreakGlass, Rollback
from appliance.domain.releases.suspensions import ResumeRelease, SuspendRelease
from scripts.kit.appliance import Appliance, Refused
from tests.attacks.streaming import under_way
from tests.attacks.test_decisions import change_adapter, refused, signed

pytestmark = pytest.mark.thorough

CODE = "release-suspended"


def suspend(site: Appliance, who: str = "rita", role: str = "reviewer:privacy", **changes: Any) -> int:
    values: dict[str, Any] = {"unit": "legal", "served_model": None, "role": role, **changes}
    return int(signed(site, SuspendRelease, who, texts=("reason",), **site.on("clauses@1"), **values)["index"])


def resume(site: Appliance, entry: int, who: str = "rita") -> Any:
    on = {**site.on("clauses@1"), "unit": "legal", "entry": entry}
    return signed(site, ResumeRelease, who, texts=("reason",), **on)


def test_a_suspension_cuts_what_is_being_answered_and_a_lift_lets_it_answer_again(released: Appliance) -> None:
    site = released
    before = site.chat("legal", "labels")["system_fingerprint"]
    with under_way(site, [(site.token("legal"), seed) for seed in range(4)]) as streams:
        entry = suspend(site)
        answered = site.now()
        ends = [stream.result() for stream in streams]
    assert [last["error"]["code"] for last in ends] == ["cut-off"] * 4
    assert f"rita (reviewer:privacy) suspended adapter clauses@1 for legal by entry {entry}." in refused(site, CODE)
    (unloaded,) = site.entries(type="adapter.unloaded")
    assert unloaded["body"]["reason"] == CODE
    assert unloaded["body"]["last_token"] <= answered
    types = site.types()
    assert "request.admitted" not in types[types.index("release.suspended") :]
    assert site.entries(type="admission.refused")[-1]["body"]["code"] == CODE
    resume(site, entry)
    assert site.chat("legal", "labels")["system_fingerprint"] == before
    assert site.verify()["verdict"] == "verified"


def test_it_is_for_one_unit(released: Appliance) -> None:
    site = released
    site.approve("claims")
    site.activate("claims")
    suspend(site)
    refused(site, CODE)
    assert site.chat("claims", "labels")["choices"]
    with pytest.raises(Refused) as wrong:
        suspend(site, "cleo", "release-owner:claims")
    assert wrong.value.status == 403


def test_no_release_gets_around_it(released: Appliance) -> None:
    site = released
    site.chat("legal", "labels")
    entry = suspend(site, "lou", "release-owner:legal")
    on = {**site.on("clauses@1"), "unit": "legal", "adds_instruction": False}
    until = add_seconds(site.now(), 3_600)
    for model, name, more, texts in (
        (Activate, "labels", {}, ()),
        (Activate, "routes", {}, ()),
        (Rollback, "labels", {}, ()),
        (BreakGlass, "labels", {"until": until}, ("reason",)),
    ):
        with pytest.raises(Refused) as caught:
            signed(site, model, "lou", texts=texts, **on, served_model=name, **more)
        assert any(f"by entry {entry}." in str(reason) for reason in caught.value.reasons), (model, name)
    assert f"by entry {entry}." in refused(site, CODE)
    assert site.verify()["verdict"] == "verified"


def test_only_its_role_or_two_administrators_lift_it(released: Appliance) -> None:
    site = released
    entry = suspend(site)
    until = add_seconds(site.now(), 86_400)
    signed(site, Delegate, "rita", principal="cleo", review_function="privacy", until=until)
    for who in ("rob", "lou", "cleo", "olga", "legal"):
        with pytest.raises(Refused) as wrong:
            resume(site, entry, who)
        assert wrong.value.status == 403, who
    refused(site, CODE)
    pending = resume(site, entry, "anna")
    assert pending["outcome"] == "pending"
    refused(site, CODE)
    with pytest.raises(Refused):
        site.countersign(pending["order"], by="anna")
    refused(site, CODE)
    site.countersign(pending["order"])
    site.chat("legal", "labels")
    assert site.verify()["verdict"] == "verified"


def test_orders_that_took_effect_do_so_once_and_each_role_lifts_its_own(released: Appliance) -> None:
    site = released
    first = suspend(site)
    on = {**site.on("clauses@1"), "unit": "legal", "entry": first}
    lift = site.sign(ResumeRelease(**site.terms("rita"), **on, reason="hmac-sha256:" + "0" * 64))
    with pytest.raises(Refused):  # without the reason's text
        site.send(lift)
    second = suspend(site, "rob", "reviewer:model-risk")
    resume(site, first)
    assert f"by entry {second}." in refused(site, CODE)
    with pytest.raises(Refused) as again:
        resume(site, first)
    assert any(f"The suspension of entry {first} was lifted" in str(reason) for reason in again.value.reasons)
    with pytest.raises(Refused):
        resume(site, second)
    resume(site, second, "rob")
    site.chat("legal", "labels")


def test_who_holds_the_database_does_not_lift_it(released: Appliance) -> None:
    site = released
    site.chat("legal", "labels")
    entry = suspend(site)
    change_adapter(site, suspensions=[])
    for _ in range(2):
        assert f"by entry {entry}." in refused(site, CODE)
        assert site.verify()["verdict"] == "failed"
        site.stop()
        site.start()
    resume(site, entry)
    site.chat("legal", "labels")
