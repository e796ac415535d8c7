from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.client import people
from appliance.client.support import orders
from appliance.domain.core.credentials import parse_token
from appliance.domain.core.signatures import accept_token
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.people import Enrol
from appliance.errors import BadInput, NotAuthenticated, Tampered
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import ORIGIN
from tests.client.conftest import Office


def _proof(tmp_path: Path, name: str = "dora", origin: str = ORIGIN) -> Path:
    path = tmp_path / "dora.proof"
    path.write_bytes(people.prove_possession(origin, name, generate_ed25519()) + b"\n")
    return path


def test_a_person_is_enrolled_with_the_key_that_they_proved(open_office: Callable[..., Office], tmp_path: Path) -> None:
    office = open_office("staffed")
    proof = _proof(tmp_path)
    data, _ = people.read_possession(proof, ORIGIN, "dora")
    texts, documents = {"printed_name": "Dora Example"}, {"possession": data}
    proposal = office.propose("anna", Enrol, {"roles": ("operator",)}, texts=texts, documents=documents)
    receipt = orders.submit(office.connection, orders.sign(proposal, office.site.keys["anna"]), office.anchor.log_keys)
    assert (receipt.type, receipt.outcome) == ("order.pending", "pending")
    (found,) = orders.pending_orders(office.as_("ben"))
    countersignature = office.propose("ben", Countersign, {"order": found.digest})
    orders.submit(office.connection, orders.sign(countersignature, office.site.keys["ben"]), office.anchor.log_keys)
    dora = office.site.state.principals.get("dora")
    assert dora is not None and dora.keyid == people.read_possession(proof, ORIGIN, "dora")[1].keyid


@pytest.mark.parametrize(
    ("name", "origin", "words"),
    [
        ("mallory", ORIGIN, "principal: expected dora, got mallory"),
        ("dora", "other.example/log", "make a new one with: appliance key prove --as dora"),
    ],
)
def test_a_proof_for_another_name_or_another_log_is_refused(tmp_path: Path, name: str, origin: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        people.read_possession(_proof(tmp_path, name, origin), ORIGIN, "dora")


def test_a_proof_whose_signature_does_not_hold_is_refused(tmp_path: Path) -> None:
    path = _proof(tmp_path)
    first, second = path.read_bytes(), people.prove_possession(ORIGIN, "dora", generate_ed25519())
    path.write_bytes(second[: second.index(b'"signatures"')] + first[first.index(b'"signatures"') :])
    with pytest.raises(Tampered):
        people.read_possession(path, ORIGIN, "dora")


def test_a_units_token_is_one_word_that_the_rules_accept_until_it_ends(open_office: Callable[..., Office]) -> None:
    site = open_office("staffed").site
    text, expires = people.issue_token(ORIGIN, "legal", site.keys["legal"], 600)
    assert text.isascii() and " " not in text
    now = encode_time(datetime.now(UTC))
    token, unit = accept_token(site.state, parse_token(text), now)
    assert (unit.name, token.expires_at) == ("legal", expires)
    with pytest.raises(NotAuthenticated, match="expired"):
        accept_token(site.state, parse_token(text), expires)
