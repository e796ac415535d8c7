from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from appliance import errors
from appliance.client.support.connection import Address, Connection, error_of
from appliance.domain.core.records.people import Principal
from appliance.domain.releases.approval import IMPORTED_THE_DATASET, ORDERED_THE_RUN
from appliance.web.core.errors import people_body
from scripts.kit.certificates import Authority, Files
from tests.client.conftest import Office


def _body(code: str, refusals: tuple[errors.Refusal, ...] = ()) -> bytes:
    listed = [asdict(one) for one in refusals]
    content = {"code": code, "message": "what, which", "refusals": listed} | ({"subject": "order"} if listed else {})
    return json.dumps({"error": content}).encode()


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
        errors.RateLimited,
    ],
)
def test_an_error_arrives_as_the_class_it_was_raised_as(branch: type[errors.ApplianceError]) -> None:
    error = error_of(branch.status, _body("expired"), "GET /v1/x")
    assert type(error) is branch
    assert (error.code, error.message) == ("expired", "what, which")


def test_a_refusal_keeps_its_reasons() -> None:
    refusals = (ORDERED_THE_RUN("principal:olga"), IMPORTED_THE_DATASET("principal:olga"))
    error = error_of(403, _body("denied", refusals), "POST /v1/orders")
    assert isinstance(error, errors.Denied)
    assert (error.summary, error.refusals) == ("order", refusals)


def test_the_message_of_a_refusal_has_its_sentences() -> None:
    refusals = (ORDERED_THE_RUN("principal:olga"), IMPORTED_THE_DATASET("principal:olga"))
    status, body = people_body(errors.Denied("order review by olga", refusals=refusals))
    assert (status, body["error"]["subject"]) == (403, "order review by olga")
    assert body["error"]["message"] == " ".join(one.sentence for one in refusals)
    assert people_body(errors.NotFound("run: expected one, got r-9"))[1]["error"] == {
        **{"code": "not-found", "message": "run: expected one, got r-9"},
        **{"reasons": [], "refusals": []},
    }


@pytest.mark.parametrize("data", [b"", b"<html>", b"[]", b'{"error":"x"}', b'{"detail":[]}', b"\xff", b"[" * 99_999])
def test_an_answer_of_nobodys_form_is_unavailable_and_says_which_request(data: bytes) -> None:
    error = error_of(500, data, "GET /v1/x")
    assert isinstance(error, errors.Unavailable)
    assert "GET /v1/x" in error.message and "HTTP 500" in error.message


def test_nobody_at_the_socket_is_unavailable_and_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="appliance serve"):
        _ = Connection(tmp_path / "none.sock").about


def test_a_service_is_started_once_when_nobody_answers(open_office: Callable[..., Office], home: Path) -> None:
    started: list[bool] = []

    def start() -> None:
        started.append(True)
        open_office("initialized")

    connection = Connection(home / "run" / "appliance.sock", start)
    assert connection.about.origin == "bank.example/log"
    assert started == [True]
    connection.close()


def test_reading_without_a_session_is_refused_before_anything_is_sent(open_office: Callable[..., Office]) -> None:
    office = open_office("initialized")
    with pytest.raises(errors.NotAuthenticated, match="--key FILE"):
        office.connection.get("/v1/principals", list[Principal])
    assert office.service.seen == []


def test_a_service_that_does_not_describe_itself_is_no_service(open_office: Callable[..., Office]) -> None:
    office = open_office("initialized")
    office.service.bend["/v1/about"] = lambda answer: {"origin": "x"}
    with pytest.raises(errors.Unavailable, match="GET /v1/about: expected a response of this build, got log_key"):
        _ = office.connection.about


def test_a_field_that_this_build_does_not_have_is_refused(open_office: Callable[..., Office]) -> None:
    """The response of a newer service may mean something else than a client of this build shows."""
    office = open_office("initialized")
    office.service.bend["/v1/about"] = lambda answer: {**answer, "tenant": "x"}
    with pytest.raises(errors.Unavailable, match=r"got tenant: .*; compare the versions"):
        _ = office.connection.about


@pytest.mark.parametrize("data", [b"not json", b"[" * 99_999])
def test_what_is_not_json_is_unavailable(open_office: Callable[..., Office], data: bytes) -> None:
    office = open_office("initialized")
    office.service.bend["/v1/about"] = lambda answer: data
    with pytest.raises(errors.Unavailable, match="expected JSON"):
        _ = office.connection.about


def shake_hands(client: ssl.SSLContext, files: Files, name: str) -> None:
    """Complete a TLS handshake in memory with a server that has these files."""
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(files.chain, files.key)
    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = own.wrap_bio(there, here, server_side=True)
    connected = client.wrap_bio(here, there, server_hostname=name)
    for side in (connected, server, connected, server):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()


def test_a_pinned_address_accepts_the_services_own_certificate_under_any_name_and_no_other(tmp_path: Path) -> None:
    bank = Authority(tmp_path)
    own, other = bank.issue("own"), bank.issue("other")
    pinned = Address("10.0.0.7", 9090, own.chain, is_pinned=True).tls()
    assert pinned.minimum_version == ssl.TLSVersion.TLSv1_2
    shake_hands(pinned, own, "10.0.0.7")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(pinned, other, "10.0.0.7")
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        shake_hands(Address("10.0.0.7", 9090, bank.file).tls(), own, "10.0.0.7")
