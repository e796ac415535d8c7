"""A unit's application at a real service: its key gets tokens only for its served models, and its enrolment can be
ended."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.domain.core.credentials import TokenRequest, UnitToken, encode_credential, encode_token
from appliance.domain.core.names import add_seconds
from appliance.domain.serving.tokens import EnrolApplication, RevokeTokens
from appliance.errors import Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import Envelope, encode_envelope, sign_envelope
from appliance.formats.signatures.keys import Ed25519Signer, encode_key_file, generate_ed25519
from scripts.kit.appliance import Appliance, Refused
from scripts.kit.waiting import wait_for
from tests.attacks.streaming import let_go, under_way
from tests.kit.agent_client import fetch

PASSPHRASE = b"correct horse battery"


def enrol(site: Appliance, unit: str = "legal", name: str = "indexer", *served_models: str) -> Ed25519Signer:
    key = generate_ed25519()
    proof = site.prove(unit, key)
    order = EnrolApplication(
        principal=unit,
        application=name,
        served_models=served_models or ("labels",),
        key=base64.b64encode(key.spki).decode(),
        keyid=key.keyid,
        possession=proof.pae_digest,
        **site.terms(unit),
    )
    site.order(order, possession=encode_envelope(proof))
    return key


def challenge(site: Appliance) -> str:
    with site.units() as client:
        return str(client.post("/v1/tokens/challenge").json()["nonce"])


def request(
    site: Appliance, key: Ed25519Signer, unit: str = "legal", name: str = "indexer", **changes: Any
) -> Envelope:
    now = site.now()
    defaults = {
        "origin": site.trust.origin,
        "signer": unit,
        "nonce": changes.pop("nonce", None) or challenge(site),
        "issued_at": now,
        "application": name,
        "expires_at": add_seconds(now, 600),
    }
    return sign_envelope(encode_credential(TokenRequest(**defaults | changes)), key)


def ask(site: Appliance, body: bytes) -> httpx.Response:
    with site.units() as client:
        return client.post("/v1/tokens", content=body)


def token(site: Appliance, key: Ed25519Signer, **changes: Any) -> str:
    answer = ask(site, encode_envelope(request(site, key, **changes)))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["appliance_code"]


def end(site: Appliance, by: str = "legal", **fields: Any) -> None:
    defaults = {"unit": "legal", "token": None, "issued_before": None, "application": None}
    site.order(RevokeTokens(**defaults | fields, **site.terms(by)))


@pytest.mark.thorough
def test_an_application_asks_with_the_token_it_was_given_and_the_log_says_so(released: Appliance) -> None:
    key = enrol(released)
    given = token(released, key)
    assert [row.id for row in released.openai(token=given).models.list()] == ["labels"]
    assert released.chat("legal", "labels", token=given)["choices"]
    (issued,) = released.entries(type="token.issued")
    admitted = released.entries(type="request.admitted")[-1]["body"]
    assert issued["body"] == {"unit": "legal", "application": "indexer", "token": digest_bytes(given.encode())}
    assert (admitted["application"], admitted["token"]) == ("indexer", issued["body"]["token"])
    assert given not in json.dumps(released.entries())
    released.stop()
    assert not [p for p in released.home.rglob("*") if p.is_file() and given.encode() in p.read_bytes()]
    released.start()
    assert released.chat("legal", "labels", token=given)["choices"], "a restart ends no token"
    assert released.verify()["verdict"] == "verified"


@pytest.mark.thorough
def test_tasks_that_are_not_its_own_are_as_unknown_as_none(released: Appliance) -> None:
    released.activate(served_model="payroll")
    given = token(released, enrol(released))
    assert [row.id for row in released.openai(token=given).models.list()] == ["labels"]
    client = released.openai(token=given)
    with pytest.raises(
        Exception, match="expected one released to indexer of legal, got 'payroll'; it was enrolled for labels"
    ):
        client.models.retrieve("payroll")
    with pytest.raises(Refused) as unknown:
        released.chat("legal", "payroll", token=given)
    assert (unknown.value.status, unknown.value.code) == (404, "model-not-found")
    assert released.chat("legal", "payroll")["choices"]


def test_the_applications_key_does_nothing_but_get_its_token(released: Appliance) -> None:
    key = enrol(released)
    terms = released.terms("legal")
    defaults = {"unit": "legal", "token": None, "issued_before": None, "application": "indexer"}
    with pytest.raises(Refused, match="expected a key enrolled for this principal") as order:
        released.send(released.sign(RevokeTokens(**defaults, **terms), key))
    assert order.value.status == 401
    released.sessions.clear()
    released.keys["legal"], own = key, released.keys["legal"]
    with pytest.raises(Refused, match="expected a key enrolled for this principal"):
        released.session("legal")
    with pytest.raises(Refused, match="expected a key enrolled for this principal"):
        released.chat("legal", "labels", token=released.token("legal"))
    released.keys["legal"] = own
    for changes in ({"unit": "claims"}, {"name": "another"}, {"unit": "lou"}):
        answer = ask(released, encode_envelope(request(released, key, **changes)))
        assert refused(answer) == (401, "not-authenticated"), changes
    statement = UnitToken(
        origin=released.trust.origin,
        signer="legal",
        nonce="0" * 32,
        issued_at=terms["issued_at"],
        expires_at=terms["expires_at"],
    )
    assert refused(ask(released, encode_envelope(sign_envelope(encode_credential(statement), key)))) == (
        401,
        "not-authenticated",
    )
    as_bearer = encode_token(request(released, key))
    with pytest.raises(Refused) as bearer:
        released.chat("legal", "labels", token=as_bearer)
    assert bearer.value.status == 401
    assert not released.entries(type="token.issued")


@pytest.mark.thorough
def test_what_answers_no_challenge_of_this_minute_or_is_sent_again_gets_nothing(released: Appliance) -> None:
    key = enrol(released)
    for nonce in ("0" * 32, os.urandom(16).hex()):
        assert refused(ask(released, encode_envelope(request(released, key, nonce=nonce)))) == (401, "challenge")
    nonce = challenge(released)
    first = encode_envelope(request(released, key, nonce=nonce))
    assert ask(released, first).status_code == 200
    assert refused(ask(released, first)) == (401, "challenge")
    assert refused(ask(released, encode_envelope(request(released, key, nonce=nonce)))) == (401, "challenge")
    before = encode_envelope(request(released, key))
    released.stop()
    released.start()
    assert refused(ask(released, before)) == (401, "challenge"), "of another process"
    for body in (b"", b"{}", b"x" * 20_000, encode_envelope(released.prove("legal", key))):
        assert ask(released, body).status_code in (401, 413)
    with released.units() as client:
        assert client.get("/v1/tokens").status_code == 405
    assert len(released.entries(type="token.issued")) == 1


@pytest.mark.thorough
def test_an_ended_application_is_cut_off_with_all_its_tokens_and_no_other(released: Appliance) -> None:
    key, other = enrol(released), enrol(released, "legal", "other")
    given, kept = token(released, key), token(released, other, name="other")
    released.chat("legal", "labels", token=given)
    with under_way(released, [(given, 0), (kept, 0)]) as ends:
        end(released, by="lou", application="indexer")
        cut = ends[0].result()
        let_go(released)
        whole = ends[1].result()
    assert cut["error"]["code"] == "cut-off"
    assert whole == "[DONE]"
    with pytest.raises(Refused) as gone:
        released.chat("legal", "labels", token=given)
    assert (gone.value.status, gone.value.code) == (401, "revoked")
    assert refused(ask(released, encode_envelope(request(released, key)))) == (401, "revoked")
    assert released.chat("legal", "labels", token=kept)["choices"]
    end(released, token=digest_bytes(kept.encode()))
    with pytest.raises(Refused):
        released.chat("legal", "labels", token=kept)
    assert released.chat("legal", "labels", token=token(released, other, name="other"))["choices"]
    assert released.verify()["verdict"] == "verified"


def handed(path: Path) -> str | None:
    try:
        return fetch(path)
    except Unavailable:
        return None


@pytest.mark.thorough
@pytest.mark.parametrize("wire", ["tls"])
def test_an_agent_hands_out_tokens_over_restarts_until_its_application_is_ended(
    released: Appliance, tmp_path: Path
) -> None:
    key, path = enrol(released), tmp_path / "s"
    file, secret = tmp_path / "app.key", tmp_path / "pass"
    file.write_bytes(encode_key_file(key.private, PASSPHRASE, salt=bytes(32), nonce=bytes(12)))
    secret.write_bytes(PASSPHRASE)
    for one in (file, secret):
        one.chmod(0o600)
    options = ["--as", "legal", "--key", str(file), "--passphrase-file", str(secret), "--socket", str(path)]
    assert released.authority is not None
    options += ["--origin", released.trust.origin, "--address", released.url.partition("//")[2]]
    options += ["--ca", str(released.authority.file)]
    command = [sys.executable, "-m", "appliance", "token", "agent", "indexer", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as agent:
        try:
            wait_for(lambda: handed(path) is not None)
            first = fetch(path)
            assert released.chat("legal", "labels", token=first)["choices"]
            released.stop()
            assert fetch(path) == first, "as long as it stands"
            released.start()
            agent.send_signal(signal.SIGHUP)
            wait_for(lambda: handed(path) != first)
            assert released.chat("legal", "labels", token=fetch(path))["choices"]
            end(released, application="indexer")
            agent.send_signal(signal.SIGHUP)
            assert agent.wait(60) == 3
        finally:
            agent.kill()
        assert agent.stderr is not None
        said = agent.stderr.read()
    assert "The application was ended by entry" in said
    assert not path.exists()
