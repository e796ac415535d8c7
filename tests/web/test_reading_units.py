"""A unit with a session reads the log and what it needs to sign: nothing of other units but what the log says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from appliance.web.people.api import people_app
from tests.kit.service import Service, running
from tests.kit.signed_session import sign_session

OPEN = {
    "/v1/console/links", "/v1/orders/check", "/v1/orders/waiting", "/v1/policy", "/v1/principals", "/v1/rules",
    "/v1/ledger", "/v1/ledger/{index}", "/v1/ledger/state", "/v1/ledger/export", "/v1/documents/{digest}",
}  # fmt: skip
PUBLIC = {"/v1/about", "/v1/clock", "/v1/sessions/challenge", "/v1/sessions", "/v1/sessions/own", "/v1/orders"}


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    with running("sealed", home) as made:
        yield made


def at(service: Service, name: str) -> httpx.Client:
    token, _ = service.door.open_session(sign_session(service.door, name, service.site.keys[name]), "unix")
    transport = httpx.HTTPTransport(uds=str(service.settings.socket))
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(transport=transport, base_url="http://appliance", headers=headers, timeout=30)


def test_a_unit_reads_no_sealed_file_and_no_row_uploads_nothing_and_starts_no_worker(service: Service) -> None:
    """Whatever route the people's door has: a new one is closed to units until it is opened."""
    routes = people_app(service.context, service.door).openapi()["paths"]
    assert routes.keys() >= OPEN | PUBLIC
    with at(service, "legal") as unit:
        for route, method in [(one, method) for one in routes.keys() - PUBLIC for method in routes[one]]:
            path = re.sub(r"\{[^}]*\}", "0", route)
            answer = unit.request(method, path, content=b"" if method == "put" else None)
            assert (answer.status_code == 403) == (route not in OPEN), (method, path, answer.text)
        weights = "/v1/adapters/clauses@1/files/adapter_model.safetensors"
        assert unit.get(weights).status_code == 403
        assert unit.get("/v1/%6cedger/../adapters").status_code in (403, 404)
        assert unit.get("/v1/ledger/0").json()["index"] == 0
    with at(service, "rita") as person:
        assert person.get(weights).status_code == 200
