"""What a person had the service work out is read by them alone, whatever key another person asks under."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from appliance.errors import NotFound, TooMany
from tests.client.conftest import Office
from tests.kit.founded import ROWS

LOOK = f"look:rita:sha256:{'a' * 64}"


@pytest.fixture
def looked(open_office: Callable[..., Office]) -> Office:
    """Rita's look has ended, and she has not read it yet."""
    office = open_office("imported")
    office.service.context.progress.open(LOOK, "rita")
    office.service.context.progress.end(LOOK, result={"rows": ROWS})
    return office


@pytest.mark.parametrize("who", ["olga", "rita", "audrey"])
@pytest.mark.parametrize("path", ["/v1/calibrations", "/v1/dataset-checks"])
def test_a_look_is_not_read_as_a_calibration_or_a_check(looked: Office, who: str, path: str) -> None:
    for key in (LOOK, f"calibration:{who}:{LOOK}", f"check:{who}:{LOOK}"):
        with pytest.raises(NotFound, match=f"that {who} started, got"):
            looked.as_(who).get(f"{path}/{key}", wait_s=0)


def test_made_up_keys_take_no_place_of_a_result(looked: Office) -> None:
    door, progress = looked.as_("olga"), looked.service.context.progress
    for number in range(100):
        for path, kind in (("/v1/calibrations", "calibration"), ("/v1/dataset-checks", "check")):
            with pytest.raises(NotFound):
                door.get(f"{path}/{kind}:olga:{number:032x}", wait_s=0)
    stream = progress.read_own(LOOK, "rita")
    assert stream is not None and stream.result == {"rows": ROWS}
    assert progress.followed() == ()


def test_an_operator_has_one_calibration_open_and_reads_it_alone(looked: Office) -> None:
    door, progress = looked.as_("olga"), looked.service.context.progress
    body = {"recipe": looked.site.train_order().recipe.model_dump(mode="json")}
    key = door.post("/v1/calibrations", body)["key"]
    with pytest.raises(TooMany, match="calibration: expected one at a time for olga, got another; ask again"):
        door.post("/v1/calibrations", body)
    with pytest.raises(NotFound):
        looked.as_("rita").get(f"/v1/calibrations/{key}", wait_s=0)
    progress.end(key, result={"pack_s": 1})
    assert door.get(f"/v1/calibrations/{key}", wait_s=0)["result"] == {"pack_s": 1}
    door.post("/v1/calibrations", body)
