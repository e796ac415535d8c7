"""Each response of a running service has a response record that verifies against the trust file and the text."""

from __future__ import annotations

import base64
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from appliance import verifier
from appliance.domain.queries.proofs import MEMBER, VerifiedRecord, parse_record, verify_record, verify_text
from appliance.errors import Tampered
from appliance.formats.core.canonical import encode_canonical
from scripts.kit.appliance import Appliance
from tests.kit.log_policies import quorum_policy

REQUESTED: Any = [{"role": "user", "content": "the parties agree"}]
DRAWN: dict[str, Any] = {"model": "labels", "max_tokens": 6, "temperature": 1.0, "seed": 3}

pytestmark = pytest.mark.thorough


def check(site: Appliance, extra: dict[str, Any] | None, text: str) -> VerifiedRecord:
    """As a unit does it: with the record as it came, the text and the trust file."""
    record = parse_record(json.dumps((extra or {})[MEMBER]).encode())
    answered = verify_record(record, quorum_policy([site.trust.log_key], [], 0))
    verify_text(answered, "answer", text)
    with pytest.raises(Tampered):
        verify_text(answered, "answer", text + " ")
    return answered


def test_every_way_of_asking_gives_a_record_that_holds(released: Appliance, tmp_path: Path) -> None:
    client = released.openai()
    whole = client.chat.completions.create(messages=REQUESTED, **DRAWN)
    text = whole.choices[0].message.content or ""
    answered = check(released, whole.model_extra, text)
    body = answered.body
    approvals = tuple(review["index"] for review in released.adapter()["reviews"])
    assert (body.unit, body.served_model, body.adapter, body.approvals) == ("legal", "labels", "clauses@1", approvals)
    assert body.manifest == whole.system_fingerprint
    assert whole.id == f"chatcmpl-{body.request}"
    history = released.get("/v1/releases")[0]["history"]
    assert body.release == history[-1]["index"]
    admitted = released.entries(subject=f"request:{body.request}")[0]
    salt = base64.b64decode(answered.record.prompt_salt or "")
    assert admitted["body"]["prompt"] == f"hmac-sha256:{hmac.digest(salt, encode_canonical(REQUESTED), 'sha256').hex()}"

    for usage in (False, True):
        options: Any = {"include_usage": usage}
        chunks = list(client.chat.completions.create(messages=REQUESTED, stream=True, stream_options=options, **DRAWN))
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert streamed == text
        assert [MEMBER in (chunk.model_extra or {}) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert bool(chunks[-1].usage) is usage
        assert chunks[-1].id == f"chatcmpl-{check(released, chunks[-1].model_extra, streamed).body.request}"

    completed = client.completions.create(prompt="the parties", **DRAWN)
    check(released, completed.model_extra, completed.choices[0].text)

    head = {"Authorization": f"Bearer {client.api_key}"}
    wanted = {"model": "labels", "input": "invoice and fee", "labels": ["payment", "secrecy"]}
    found = released.units().post("/v1/classify", json=wanted, headers=head).json()
    check(released, found, found[MEMBER]["text"])
    said = {label: float(share) for label, share in json.loads(found[MEMBER]["text"]).items()}
    assert said == found["data"][0]["probabilities"]

    kept, trust = tmp_path / "record.json", tmp_path / "trust.json"
    kept.write_text(json.dumps(found[MEMBER]))
    trust.write_bytes(released.settings.trust.read_bytes())
    with pytest.raises(SystemExit) as ended:
        verifier.main(["--record", str(kept), "--trust", str(trust)])
    assert ended.value.code == 0
    assert released.verify()["verdict"] == "verified"


def test_the_ledger_holds_no_salt(released: Appliance) -> None:
    """Who reads the log or the database can guess no answer, however short."""
    whole = released.openai().chat.completions.create(messages=REQUESTED, **DRAWN)
    record = (whole.model_extra or {})[MEMBER]
    told = json.dumps(released.entries()).encode()
    told += b"".join(path.read_bytes() for path in released.home.glob("ledger.db*"))
    for salt in (record["prompt_salt"], record["answer_salt"]):
        for form in (salt.encode(), base64.b64decode(salt), base64.b64decode(salt).hex().encode()):
            assert form not in told
