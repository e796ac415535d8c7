"""Clients without a key, and keys, tokens and trust files of another appliance, have no access."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance import wiring
from appliance.domain.core import credentials
from appliance.domain.core.names import add_seconds, encode_value
from appliance.domain.governance.policies import assemble_policy
from appliance.errors import Tampered
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.signatures.dsse import encode_envelope, sign_envelope
from appliance.formats.signatures.keys import Ed25519Signer, generate_ed25519
from appliance.verifier import verify_export
from scripts.kit.appliance import ROOT, Appliance, Refused

ORIGIN = "bank.example/test"


@dataclass
class Other:
    """Another appliance of the same bank: founded, never run."""

    site: Appliance

    @property
    def key(self) -> Ed25519Signer:
        return self.site.keys["anna"]


@pytest.fixture(scope="module", params=["bank.example/other", ORIGIN], ids=["other-origin", "same-origin"])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Other:
    keys = {"anna": generate_ed25519(), "ben": generate_ed25519()}
    site = Appliance(tmp_path_factory.mktemp("o") / "h", keys)
    policy = ROOT / "policies" / "default"
    wiring.init(
        site.settings,
        [wiring.Person(name, key.spki) for name, key in keys.items()],
        origin=request.param,
        single_administrator=False,
        policy=encode_value(assemble_policy("default", {path.name: path.read_bytes() for path in policy.iterdir()})),
    )
    return Other(site)


def models(site: Appliance, authorization: str | None) -> httpx.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    with site.units() as client:
        return client.get("/v1/models", headers=headers)


def is_unknown(answer: httpx.Response) -> bool:
    """401 in the form that OpenAI's clients read."""
    return answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_units_own_token_is_honoured(shared: Appliance) -> None:
    """What makes the refusals below mean something."""
    assert models(shared, f"Bearer {shared.token('legal')}").status_code == 200


def test_a_token_for_another_appliance_is_refused(shared: Appliance) -> None:
    assert is_unknown(models(shared, f"Bearer {shared.token('legal', origin='bank.example/other')}"))


def test_a_token_by_a_key_that_nobody_enrolled_is_refused(shared: Appliance, other: Other) -> None:
    for key in (generate_ed25519(), other.key, shared.keys["claims"]):
        assert is_unknown(models(shared, f"Bearer {shared.token('legal', key)}"))


@pytest.mark.parametrize("ttl_s", [-1, 0, 3700, 10**7], ids=["expired", "never-valid", "over-an-hour", "for-ever"])
def test_a_token_lives_an_hour_at_most(shared: Appliance, ttl_s: int) -> None:
    assert is_unknown(models(shared, f"Bearer {shared.token('legal', ttl_s=ttl_s)}"))


@pytest.mark.parametrize("who", ["olga", "rita", "lou", "anna", "axel"])
def test_a_token_of_a_person_who_is_no_unit_is_refused(shared: Appliance, who: str) -> None:
    assert is_unknown(models(shared, f"Bearer {shared.token(who)}"))
    with pytest.raises(Refused) as refused:
        shared.chat("legal", "labels", token=shared.token(who))
    assert refused.value.status == 401


@pytest.mark.thorough
def test_a_changed_token_is_refused(shared: Appliance) -> None:
    token = shared.token("legal")
    for at in range(0, len(token) - 4, 61):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        assert is_unknown(models(shared, f"Bearer {changed}")), at


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer x", "Basic bGVnYWw6", "Bearer e30", "Bearer " + "A" * 4000]
)
def test_without_a_token_the_units_api_answers_nothing(shared: Appliance, authorization: str | None) -> None:
    assert is_unknown(models(shared, authorization))


def test_a_session_statement_is_no_token(shared: Appliance) -> None:
    """Both are signed by the same key; what one says cannot be used as the other."""
    session = statement(shared, "legal", os.urandom(16).hex())
    token = credentials.encode_token(sign_envelope(credentials.encode_credential(session), shared.keys["legal"]))
    assert is_unknown(models(shared, f"Bearer {token}"))


# --- sessions ---------------------------------------------------------------------------------------------------------


def statement(site: Appliance, who: str, nonce: str, **changes: Any) -> credentials.SessionStatement:
    now = site.now()
    values = {
        "origin": site.trust.origin, "signer": who, "nonce": nonce, "issued_at": now,
        "expires_at": add_seconds(now, 900), **changes,
    }  # fmt: skip
    return credentials.SessionStatement(**values)


def challenge(site: Appliance) -> str:
    return str(site.ask("POST", "/v1/sessions/challenge", None)["nonce"])


def open_session(site: Appliance, session: credentials.SessionStatement, key: Ed25519Signer | None = None) -> Any:
    envelope = sign_envelope(credentials.encode_credential(session), key or site.keys[session.signer])
    body = {"envelope": parse_canonical(encode_envelope(envelope))}
    return site.ask("POST", "/v1/sessions", None, json=body)


def no_session(site: Appliance, session: credentials.SessionStatement, key: Ed25519Signer | None = None) -> Refused:
    opened = len(site.entries(type="session.opened"))
    with pytest.raises(Refused) as refused:
        open_session(site, session, key)
    assert refused.value.status == 401, refused.value
    assert len(site.entries(type="session.opened")) == opened
    return refused.value


def test_a_session_for_another_appliance_is_not_opened(shared: Appliance) -> None:
    session = statement(shared, "axel", challenge(shared), origin="bank.example/other")
    assert "bank.example/other" in no_session(shared, session).message


def test_a_session_by_another_key_is_not_opened(shared: Appliance, other: Other) -> None:
    no_session(shared, statement(shared, "anna", challenge(shared)), other.key)
    no_session(shared, statement(shared, "axel", challenge(shared)), shared.keys["olga"])


def test_a_session_answers_a_challenge_of_this_service_once(shared: Appliance) -> None:
    assert no_session(shared, statement(shared, "axel", os.urandom(16).hex())).code == "challenge"
    session = statement(shared, "axel", challenge(shared))
    assert open_session(shared, session)["principal"] == "axel"
    assert no_session(shared, session).code == "challenge"


@pytest.mark.parametrize(("issued_s", "expires_s"), [(0, 3600), (-1000, -100), (3600, 4000)])
def test_a_session_lives_fifteen_minutes_at_most(shared: Appliance, issued_s: int, expires_s: int) -> None:
    now = shared.now()
    times = {"issued_at": add_seconds(now, issued_s), "expires_at": add_seconds(now, expires_s)}
    no_session(shared, statement(shared, "axel", challenge(shared), **times))


# --- reading ----------------------------------------------------------------------------------------------------------

PUBLIC = {
    ("GET", "/v1/about"),
    ("GET", "/v1/clock"),  # under a clock that is behind no session can be opened, and an administrator must see it
    # An account that saw entries which the log lacks opens no session, and a service that awaits the order offers none.
    ("GET", "/v1/restoration"),
    ("POST", "/v1/sessions/challenge"),
    ("POST", "/v1/sessions"),
    ("POST", "/v1/orders"),
}


def routes() -> list[tuple[str, str]]:
    """Every route of the people's API, as it is built: a new one is held to this test without being named in it."""
    from appliance.web.core.auth import CallerAuthenticator
    from appliance.web.people.api import people_app

    context: Any = None
    found: list[tuple[str, str]] = []
    pending = list(people_app(context, CallerAuthenticator(context)).routes)
    for route in pending:
        path = getattr(route, "path", None)
        if path is None:  # a router that is included as it stands
            pending.extend(getattr(getattr(route, "original_router", route), "routes", []))
            continue
        found += [(method, path) for method in (getattr(route, "methods", None) or ()) if method != "HEAD"]
    return sorted(found)


@pytest.mark.essential
def test_every_route_but_the_public_ones_needs_a_session(shared: Appliance) -> None:
    private = [route for route in routes() if route not in PUBLIC]
    assert len(private) > 20 and set(routes()) >= PUBLIC
    for method, path in private:
        place = path.replace("{index}", "0").replace("{", "").replace(":path}", "").replace("}", "")
        for headers in ({}, {"Authorization": "Bearer nobody"}, {"Authorization": f"Bearer {shared.token('legal')}"}):
            with shared.http() as client:
                answer = client.request(method, place, headers=headers)
            assert answer.status_code == 401, (method, path, answer.status_code)
            assert answer.json()["error"]["code"] == "not-authenticated"


def test_what_everybody_is_told_names_nobody(shared: Appliance) -> None:
    told = str(shared.ask("GET", "/v1/about", None))
    assert not [name for name in ("olga", "rita", "axel", "clauses") if name in told]


# --- trust files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def export(shared: Appliance, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("x") / "ledger.tar"
    path.write_bytes(shared.ask("GET", "/v1/ledger/export", "axel"))
    return path


def test_a_verifier_with_another_appliances_trust_file_verifies_nothing(
    shared: Appliance, other: Other, export: Path
) -> None:
    now = shared.now()
    assert verify_export(export, shared.trust, now).verdict in ("verified", "unverifiable")
    assert not verify_export(export, shared.trust, now).findings
    report = verify_export(export, other.site.trust, now)
    assert report.verdict == "failed"
    assert report.findings


def test_a_verifier_without_a_trust_file_verifies_nothing(shared: Appliance, export: Path) -> None:
    assert verify_export(export, None, shared.now()).verdict == "unverifiable"


@pytest.mark.thorough
def test_the_services_own_check_fails_against_another_appliances_trust_file(shared: Appliance, other: Other) -> None:
    trust = parse_canonical(other.site.settings.trust.read_bytes()[:-1])
    report = shared.ask("POST", "/v1/ledger/verify", "axel", json={"trust": trust})
    assert report["verdict"] == "failed"
    assert shared.verify()["verdict"] == "verified"


@pytest.mark.parametrize("carried", ["trust.json", "keys"])
def test_a_service_does_not_start_on_what_is_another_appliances(
    golden: Appliance, other: Other, tmp_path: Path, carried: str
) -> None:
    """The trust file alone, or the keys alone, of another appliance in this one's home."""
    site = golden.copy(tmp_path / "h", 1)
    if carried == "keys":
        place = site.settings.keys
        place.rename(place.with_name("own-keys"))
        other.site.settings.keys.rename(place)
    else:
        site.settings.trust.write_bytes(other.site.settings.trust.read_bytes())
    try:
        site.start(wait=False)
        assert site.service is not None
        code = site.service.wait(60)
    finally:
        if carried == "keys":
            site.settings.keys.rename(other.site.settings.keys)
    assert code == Tampered.exit_code, site.log()[-2000:]
    said = {"keys": "keys: expected the log's", "trust.json": "entry 0: log key: expected"}
    assert said[carried] in site.log()
