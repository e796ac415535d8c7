"""What a unit's client may not have: another unit's adapter, the bare base, an unlogged answer."""

from __future__ import annotations

import pytest

from appliance.domain.orders import RollBack
from tests.site import Refused, Site


def test_a_unit_is_answered_and_both_ends_are_entries(released: Site) -> None:
    answer = released.chat("legal", "labels")
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    types = released.types()
    assert types.index("adapter.admitted") < types.index("adapter.loaded") < types.index("request.admitted")
    assert types.index("request.admitted") < types.index("request.finished")
    assert released.verify()["verdict"] == "verified"


@pytest.mark.parametrize("model", ["", "clauses", "clauses@1", "tiny", "payroll"])
def test_a_name_that_is_not_released_to_the_unit_never_answers(released: Site, model: str) -> None:
    with pytest.raises(Refused) as refused:
        released.chat("legal", model)
    assert (refused.value.status, refused.value.code) == (404, "model-not-found")
    assert released.entries(type="request.refused")[-1]["actor"] == "legal"


def test_another_units_task_is_as_unknown_as_no_task(released: Site) -> None:
    with pytest.raises(Refused) as refused:
        released.chat("claims", "labels")
    assert refused.value.status == 404


def test_a_rollback_is_one_order_to_what_answered_before_and_nothing_else(released: Site) -> None:
    first = released.chat("legal", "labels")["system_fingerprint"]
    assert released.train(seed=2)["adapter"] == "clauses@2"
    with pytest.raises(Refused, match="quorum"):
        released.activate(name="clauses@2")
    released.approve(name="clauses@2")
    released.activate(name="clauses@2")
    second = released.chat("legal", "labels")["system_fingerprint"]
    assert second == released.adapter("clauses@2")["manifest"] != first
    terms = {"unit": "legal", "task": "labels"}
    with pytest.raises(Refused, match="an earlier one than today's"):
        released.order(RollBack(**terms, **released.on("clauses@2"), **released.terms("lou")))
    with pytest.raises(Refused, match="release-owner:legal"):
        released.order(RollBack(**terms, **released.on("clauses@1"), **released.terms("cleo")))
    released.order(RollBack(**terms, **released.on("clauses@1"), **released.terms("lou")))
    assert released.chat("legal", "labels")["system_fingerprint"] == first
    types = released.types()
    assert types.index("release.rolled-back") < len(types) - 1 - types[::-1].index("adapter.loaded")
    assert released.verify()["verdict"] == "verified"
