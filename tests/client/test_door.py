from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import errors
from appliance.client.support.door import Door, error_of
from tests.client.conftest import Office


def _body(code: str, reasons: tuple[str, ...] = ()) -> bytes:
    return json.dumps({"error": {"code": code, "message": "what, which", "reasons": reasons}}).encode()


@pytest.mark.parametrize(
    "branch",
    [
        errors.BadInput,
        errors.TooLarge,
        errors.NotAuthenticated,
        errors.Denied,
        errors.NotFound,
        errors.Conflict,
        errors.Tampered,
        errors.Unavailable,
        errors.TooMany,
    ],
)
def test_an_error_arrives_as_the_class_it_was_raised_as(branch: type[errors.ApplianceError]) -> None:
    error = error_of(branch.status, _body("expired"), "GET /v1/x")
    assert type(error) is branch
    assert (error.code, error.message) == ("expired", "what, which")


def test_a_refusal_keeps_its_reasons() -> None:
    error = error_of(403, _body("denied", ("one", "two")), "POST /v1/orders")
    assert isinstance(error, errors.Denied)
    assert error.reasons == ("one", "two")


@pytest.mark.parametrize("data", [b"", b"<html>", b"[]", b'{"error":"x"}', b'{"detail":[]}', b"\xff", b"[" * 99_999])
def test_an_answer_of_nobodys_form_is_unavailable_and_says_which_request(data: bytes) -> None:
    error = error_of(500, data, "GET /v1/x")
    assert isinstance(error, errors.Unavailable)
    assert "GET /v1/x" in error.message and "HTTP 500" in error.message


def test_nobody_at_the_socket_is_unavailable_and_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="appliance serve"):
        _ = Door(tmp_path / "none.sock").about


def test_a_service_is_started_once_when_nobody_answers(open_office: Callable[..., Office], home: Path) -> None:
    started: list[bool] = []

    def start() -> None:
        started.append(True)
        open_office("initialized")

    door = Door(home / "run" / "appliance.sock", start)
    assert door.about.origin == "bank.example/log"
    assert started == [True]
    door.close()


def test_reading_without_a_session_is_refused_before_anything_is_sent(open_office: Callable[..., Office]) -> None:
    office = open_office("initialized")
    with pytest.raises(errors.NotAuthenticated, match="--key FILE"):
        office.door.get("/v1/principals")
    assert office.service.seen == []


def test_a_service_that_does_not_describe_itself_is_no_service(open_office: Callable[..., Office]) -> None:
    office = open_office("initialized")
    office.service.bend["/v1/about"] = lambda answer: {"origin": "x"}
    with pytest.raises(errors.Unavailable, match="describe itself"):
        _ = office.door.about


@pytest.mark.parametrize("data", [b"not json", b"[" * 99_999])
def test_what_is_not_json_is_unavailable(open_office: Callable[..., Office], data: bytes) -> None:
    office = open_office("initialized")
    office.service.bend["/v1/about"] = lambda answer: data
    with pytest.raises(errors.Unavailable, match="expected JSON"):
        _ = office.door.about
