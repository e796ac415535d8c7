"""A unit with a session reads what concerns it in the log, and what it needs to sign."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from appliance.domain.core.entry import parse_entry
from appliance.web.people.api import people_app
from scripts.kit.log_builder import policy_set
from tests.kit.service import Service, running
from tests.kit.signed_session import sign_session

OPEN = {
    "/v1/console/links", "/v1/orders/check", "/v1/orders/waiting", "/v1/policy", "/v1/principals", "/v1/rules",
    "/v1/ledger", "/v1/ledger/{index}", "/v1/ledger/state",
}  # fmt: skip
PUBLIC = {
    *("/v1/about", "/v1/clock", "/v1/restoration", "/v1/sessions/challenge", "/v1/sessions", "/v1/sessions/own"),
    "/v1/orders",
}


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    with running("sealed", home) as made:
        yield made


def at(service: Service, name: str) -> httpx.Client:
    token, _ = service.authenticator.open_session(
        sign_session(service.authenticator, name, service.site.keys[name]), "unix"
    )
    transport = httpx.HTTPTransport(uds=str(service.settings.socket), verify=False)
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(transport=transport, base_url="http://appliance", headers=headers, timeout=90)


@pytest.mark.thorough
def test_a_unit_reads_no_sealed_file_and_no_row_uploads_nothing_and_starts_no_worker(service: Service) -> None:
    """Whatever route the people's API has: a new one is closed to units until it is opened."""
    routes = people_app(service.context, service.authenticator).openapi()["paths"]
    assert routes.keys() >= OPEN | PUBLIC
    with at(service, "legal") as unit:
        asked = [(one, method) for one in routes.keys() - PUBLIC for method in routes[one]]
        # A link takes the session over, so it is the last one.
        for route, method in sorted(asked, key=lambda one: one[0] == "/v1/console/links"):
            path = re.sub(r"\{[^}]*\}", "0", route)
            answer = unit.request(method, path, content=b"" if method == "put" else None)
            assert (answer.status_code == 403) == (route not in OPEN), (method, path, answer.text)
    with at(service, "legal") as unit:
        weights = "/v1/adapters/clauses@1/files/adapter_model.safetensors"
        refused = unit.get(weights)
        assert (refused.status_code, codes(refused)) == (403, ["for-people"])
        assert unit.get("/v1/%6cedger/../adapters").status_code in (403, 404)
        assert unit.get("/v1/ledger/0").json()["index"] == 0
    with at(service, "rita") as person:
        assert person.get(weights).status_code == 200
        refused = person.put("/v1/uploads/sha256:" + "ab" * 32, content=b"x")
        assert (
            refused.status_code == 403
            and "rita is reviewer:privacy. This action needs operator or validator." in refused.text
        )


@pytest.mark.thorough
def test_a_unit_reads_nothing_of_another_units_requests_approvals_and_rows(home: Path) -> None:
    with running("serving", home) as service:
        size = service.context.ledger.state.size
        with at(service, "sales") as other, at(service, "legal") as own, at(service, "rita") as person:
            theirs = [index for index in range(size) if other.get(f"/v1/ledger/{index}").status_code == 200]
            assert read(other) == {*theirs, size} and narrowed(other) == {"narrowed": True}
            assert read(person) >= set(range(size)) and narrowed(person) == {"narrowed": False}
            assert len(read(own)) > len(theirs)
            hidden = next(index for index in range(size) if index not in theirs)
            assert codes(other.get(f"/v1/ledger/{hidden}")) == ["own-entries-only"]
            assert read(other, type="request.admitted") == read(other, subject="unit:legal") == set()
            assert read(other, limit="1") == read(other, limit="1", newest="true") == read(other)
            for path in ("/v1/ledger", "/v1/principals", "/v1/ledger/state", "/v1/orders/waiting"):
                text = other.get(path).text
                assert "clauses" not in text and '"legal"' not in text, path
            kinds = {thing["kind"] for thing in own.get("/v1/ledger/state").json()["rows"]}
            assert kinds >= {"release", "adapter", "run", "dataset", "base", "principal", "key", "site"}
            document = parse_entry(service.context.ledger.entry_bytes(0)).documents["policy"]
            for path in ("/v1/ledger/export", f"/v1/documents/{document}"):
                assert codes(other.get(path)) == ["own-entries-only"], path
                assert person.get(path).status_code == 200


def test_a_policy_set_can_let_units_read_the_whole_log(home: Path) -> None:
    with running("serving", home) as service:
        service.site.adopt(policy_set(units_read="all"))
        with at(service, "sales") as other:
            assert read(other) >= set(range(service.context.ledger.state.size - 1))
            assert other.get("/v1/ledger/export").status_code == 200
            assert {thing["kind"] for thing in other.get("/v1/ledger/state").json()["rows"]} >= {"release", "slot"}


def codes(refused: httpx.Response) -> list[str]:
    return [one["code"] for one in refused.json()["error"]["refusals"]]


def read(client: httpx.Client, **filters: str) -> set[int]:
    """Return the indexes of every entry that a search finds, page by page."""
    found: set[int] = set()
    bound: dict[str, int] = {}
    while True:
        answer = client.get("/v1/ledger", params={"limit": "7", **filters, **bound}).json()
        found |= {row["index"] for row in answer["entries"]}
        if answer["next"] is None:
            return found
        bound = {"before" if "newest" in filters else "after": answer["next"]}


def narrowed(client: httpx.Client) -> dict[str, bool]:
    return {"narrowed": client.get("/v1/ledger").json()["narrowed"]}
