"""Results of work that a person started can be read by this person alone, whatever key others request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.api.runs import CalibrationStatus, WorkStarted
from appliance.domain.planning.shape import MachineCalibration
from appliance.errors import NotFound, RateLimited
from tests.client.conftest import Office
from tests.kit.founded import ROWS

LOOK = f"preview:rita:sha256:{'a' * 64}"


MEASURED = MachineCalibration(
    host="here",
    base="smollm2",
    method="qlora",
    quantisation="nf4",
    compute_dtype="bfloat16",
    pack_s=1.0,
    operations_a_second=1e12,
    load_s=1.0,
    peak_bytes=1,
    memory_bytes=2,
    machine={},
    time="2026-11-24T10:30:00.000Z",
)


@pytest.fixture
def looked(open_office: Callable[..., Office]) -> Office:
    """Rita's preview has ended, and she has not read it yet."""
    office = open_office("imported")
    office.service.context.progress.open(LOOK, "rita")
    office.service.context.progress.end(LOOK, result={"rows": ROWS})
    return office


@pytest.mark.parametrize("who", ["olga", "rita", "audrey"])
@pytest.mark.parametrize("path", ["/v1/calibrations", "/v1/dataset-checks"])
def test_a_look_is_not_read_as_a_calibration_or_a_check(looked: Office, who: str, path: str) -> None:
    for key in (LOOK, f"calibration:{who}:{LOOK}", f"check:{who}:{LOOK}"):
        with pytest.raises(NotFound, match=f"that {who} started, got"):
            looked.as_(who).get(f"{path}/{key}", dict[str, Any], wait_s=0)


@pytest.mark.thorough
def test_made_up_keys_take_no_place_of_a_result(looked: Office) -> None:
    connection, progress = looked.as_("olga"), looked.service.context.progress
    for number in range(100):
        for path, kind in (("/v1/calibrations", "calibration"), ("/v1/dataset-checks", "check")):
            with pytest.raises(NotFound):
                connection.get(f"{path}/{kind}:olga:{number:032x}", dict[str, Any], wait_s=0)
    stream = progress.read_own(LOOK, "rita")
    assert stream is not None and stream.result == {"rows": ROWS}
    assert progress.list_open() == ()


def test_an_operator_has_one_calibration_open_and_reads_it_alone(looked: Office) -> None:
    connection, progress = looked.as_("olga"), looked.service.context.progress
    body = {"recipe": looked.site.train_order().recipe.model_dump(mode="json")}
    key = connection.post("/v1/calibrations", WorkStarted, body).key
    with pytest.raises(RateLimited, match="calibration: expected one at a time for olga, got another; ask again"):
        connection.post("/v1/calibrations", dict[str, Any], body)
    with pytest.raises(NotFound):
        looked.as_("rita").get(f"/v1/calibrations/{key}", dict[str, Any], wait_s=0)
    progress.end(key, result=MEASURED)
    assert connection.get(f"/v1/calibrations/{key}", CalibrationStatus, wait_s=0).result == MEASURED
    connection.post("/v1/calibrations", dict[str, Any], body)
