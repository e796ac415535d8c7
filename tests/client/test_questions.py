"""The client checks answers about the past: a false entry, row or text is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.api.data import RowRequest
from appliance.client.questions import dataset_uses, effective_access, find_row, read_adapter_history, state_as_of
from appliance.domain.queries.effective_access import UnitAccess
from appliance.errors import Tampered, Unavailable
from appliance.formats.core.commitment import disclose, disclosure_value
from appliance.store.files.artifacts import Artifacts
from tests.client.conftest import Office
from tests.kit.founded import ROWS


@pytest.fixture
def rowed(open_office: Callable[..., Office]) -> Office:
    return open_office("imported")


@pytest.mark.parametrize(("text", "places"), [("one", [0]), ("two", [1, 3]), (ROWS[2]["text"], [2]), ("three", [])])
def test_a_row_is_proved_here_under_the_root_that_the_entry_binds(rowed: Office, text: str, places: list[int]) -> None:
    (answer,) = find_row(rowed.as_("audrey"), rowed.anchor, "clauses", text)
    assert (answer.dataset, answer.found) == ("clauses@1", len(places))
    assert [row.proof.index for row in answer.rows] == places
    assert {row.split for row in answer.rows} <= {"train"}


def test_the_rows_of_a_dataset_are_read_one_by_one(rowed: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person asks several questions at once, and a dataset is larger than the memory for them."""
    read = Artifacts.read

    def read_small(artifacts: Artifacts, digest: str, path: str, *limit: int) -> bytes:
        assert path != "rows.jsonl", "the rows were read as a whole"
        return read(artifacts, digest, path, *limit)

    monkeypatch.setattr(Artifacts, "read", read_small)
    (answer,) = find_row(rowed.as_("audrey"), rowed.anchor, "clauses", "two")
    assert answer.found == 2
    assert rowed.as_("audrey").get("/v1/datasets/clauses@1/labels", dict[str, Any]) is not None


def _other_row(found: Any) -> Any:
    found[0]["proofs"][0] = {**found[0]["proofs"][0], "row": "e30="}
    return found


def _unproved(found: Any) -> Any:
    return [{**found[0], "proofs": []}]


def _elsewhere(found: Any) -> Any:
    return [{**found[0], "imported": found[0]["imported"] - 1}]


def _renamed(found: Any) -> Any:
    return [{**found[0], "dataset": "clauses@2"}]


@pytest.mark.parametrize("bend", [_other_row, _unproved, _elsewhere, _renamed])
def test_a_lie_about_a_row_is_refused(rowed: Office, bend: Callable[[Any], Any]) -> None:
    rowed.service.bend["/v1/datasets/clauses@1/row"] = bend
    with pytest.raises((Tampered, Unavailable)):
        find_row(rowed.as_("audrey"), rowed.anchor, "clauses@1", "one")


def test_another_row_of_the_dataset_is_no_answer(rowed: Office) -> None:
    """Its proof holds: it is not what was asked for."""
    connection = rowed.as_("audrey")
    other = connection.post("/v1/datasets/clauses@1/row", list[dict[str, Any]], RowRequest(text="five"))
    rowed.service.bend["/v1/datasets/clauses@1/row"] = lambda found: other
    with pytest.raises(Tampered, match="expected the text that was asked for"):
        find_row(connection, rowed.anchor, "clauses@1", "one")


def test_what_a_unit_could_load_rests_on_entries_that_are_proved_here(open_office: Callable[..., Office]) -> None:
    office = open_office("serving")
    proved = effective_access(office.as_("audrey"), office.anchor, "legal", None)
    answer = proved.found.answer
    assert isinstance(answer, UnitAccess)
    (served_model,) = answer.served_models
    assert served_model.effective_access and served_model.candidate.adapter == "clauses@1"
    assert proved.found.rests_on and proved.log_size == len(office.site.entries)
    assert set(proved.names.values()) >= {"Rita Example", "Raul Example"}


def _other_type(answer: Any) -> Any:
    answer["rests_on"][2]["type"] = "review.recorded"
    return answer


def _other_time(answer: Any) -> Any:
    answer["rests_on"][-1]["time"] = "2026-01-01T00:00:00.000Z"
    return answer


def _other_name(answer: Any) -> Any:
    forged = disclosure_value(disclose("Mallory", bytes(32)))
    answer["disclosures"][0] = {**forged, "commitment": answer["disclosures"][0]["commitment"]}
    return answer


@pytest.mark.parametrize("bend", [_other_type, _other_time, _other_name])
def test_a_lie_about_an_entry_or_a_name_is_refused(
    open_office: Callable[..., Office], bend: Callable[[Any], Any]
) -> None:
    office = open_office("serving")
    office.service.bend["/v1/units/legal/effective-access"] = bend
    with pytest.raises(Tampered):
        effective_access(office.as_("audrey"), office.anchor, "legal", None)


def test_a_story_is_told_in_order_with_what_reviews_mean_and_requests_are_only_counted(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("serving")
    row, steps, requests = read_adapter_history(office.as_("audrey"), "clauses@1")
    types = [step.entry.type for step in steps]
    assert row.name == "clauses" and requests["answered"] == 1
    assert types[:5] == ["import.requested", "base.imported", "import.requested", "dataset.imported", "run.requested"]
    assert types[-1] == "adapter.loaded"
    assert not [kind for kind in types if kind.startswith("request.")]
    meanings = [step.texts["meaning"] for step in steps if step.entry.type == "review.recorded"]
    assert meanings == ["I have examined this adapter."] * 2


def test_a_story_with_another_order_is_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("serving")

    def swap(answer: Any) -> Any:
        ordered = [item for item in answer["entries"] if item["order"] is not None]
        ordered[0]["order"] = ordered[1]["order"]
        return answer

    office.service.bend["/v1/adapters/clauses@1/history"] = swap
    with pytest.raises(Tampered, match="got other bytes"):
        read_adapter_history(office.as_("audrey"), "clauses@1")


def test_uses_and_the_state_of_one_kind_come_as_the_service_tells_them(open_office: Callable[..., Office]) -> None:
    office = open_office("serving")
    ((version,),) = (dataset_uses(office.as_("audrey"), "clauses"),)
    assert [(use.run, use.adapter, use.released_now) for use in version.uses] == [
        ("r-000001", "clauses@1", ("legal/labels",))
    ]
    state = state_as_of(office.as_("audrey"), None, ("adapter",))
    assert [thing.id for thing in state.rows] == ["clauses@1"]


def test_a_proof_that_is_none_is_refused(rowed: Office) -> None:
    rowed.service.bend["/v1/datasets/clauses/row"] = lambda found: [{**found[0], "proofs": [{}]}]
    with pytest.raises(Unavailable, match="row proof, fields"):
        find_row(rowed.as_("audrey"), rowed.anchor, "clauses", "one")
