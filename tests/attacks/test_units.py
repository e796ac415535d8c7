"""What a unit's client may not have: another unit's adapter, the bare base, an unlogged answer."""

from __future__ import annotations

import pytest

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
