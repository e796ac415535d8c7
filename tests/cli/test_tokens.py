"""`token revoke`: one token or its id, or all before a time; the order is shown before the signature."""

from __future__ import annotations

import json
from collections.abc import Callable

from appliance.client.people import prove_possession
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import ORIGIN
from tests.cli.conftest import Desk, one_line


def test_a_unit_ends_its_own_token_by_the_token_or_by_its_id(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    issued = desk.as_("legal", "token", "issue")
    token, digest = issued.out.strip(), issued.err.split("Its id: ")[1].strip()
    file = desk.folder / "leaked"
    file.write_text(token + "\n")
    told = desk.as_("legal", "token", "revoke", "legal", "--token", str(file), "--reason", "it leaked", "--yes")
    assert told.code == 0, told.err
    for text in ("revoke-tokens", f"token:  {digest}", "stop working"):
        assert text in " ".join(told.err.split()) or text in told.err or text in told.out, text
    assert desk.site.state.tokens.get(f"legal/{digest}") is not None
    file.write_text(digest)
    again = desk.as_("legal", "token", "revoke", "legal", "--token", str(file), "--yes")
    assert again.code == 3 and "The token of legal was revoked by entry" in again.err


def test_an_administrator_ends_all_before_a_time(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    told = desk.as_("anna", "token", "revoke", "legal", "--issued-before", "2026-01-10", "--yes")
    assert told.code == 0, told.err
    unit = desk.site.state.principals.get("legal")
    assert unit is not None and unit.tokens_since == "2026-01-10T00:00:00.000Z"
    assert desk.as_("sales", "token", "revoke", "legal", "--issued-before", "2026-01-11", "--yes").code == 3
    assert desk.as_("anna", "token", "revoke", "legal", "--yes").code == 2


def test_a_unit_enrols_an_application_by_its_proof_lists_it_and_ends_it(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    key, proof = generate_ed25519(), desk.folder / "indexer.proof"
    proof.write_bytes(prove_possession(ORIGIN, "legal", key))
    words = (
        "token",
        "enrol",
        "indexer",
        "--served-model",
        "labels",
        "--served-model",
        "payroll",
        "--proof",
        str(proof),
        "--yes",
    )
    told = desk.as_("legal", *words)
    assert told.code == 0, told.err
    assert "warning: served model: expected one of labels, got 'payroll'" in one_line(told.err), (
        "said before it is signed"
    )
    assert "got 'labels'" not in told.err and told.err.index("warning: served model") < told.err.index("signed: ")
    assert "The holder of this key gets tokens of your unit for these served models until you end it." in one_line(
        told.err
    )
    assert key.keyid in one_line(told.err + told.out)
    row = desk.site.state.applications.get("legal/indexer")
    assert row is not None and (row.keyid, row.served_models) == (key.keyid, ("labels", "payroll"))
    other = desk.as_("sales", *words)
    assert other.code == 2 and "principal: expected sales, got legal" in one_line(other.err)
    revoke = ("token", "revoke", "legal", "--application", "indexer")
    assert desk.as_("legal", *revoke, "--issued-before", "now", "--yes").code == 2
    ended = desk.as_("otto", *revoke, "--reason", "It is not used.", "--yes")
    assert ended.code == 0, ended.err
    assert "The application and all its tokens stop working" in one_line(ended.err)
    (listed,) = json.loads(desk.as_("audrey", "token", "applications", "--json").out)
    row = desk.site.state.applications.get("legal/indexer")
    assert row is not None and listed == row.model_dump(mode="json") and row.revoked is not None
    assert "indexer" in desk.as_("audrey", "token", "applications").out


def test_an_agent_says_what_is_wrong_before_it_begins(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    words = ("token", "agent", "indexer", "--origin", ORIGIN, "--socket")
    taken = desk.folder / "taken"
    taken.write_text("kept")
    for more, code, text in (
        ((str(taken),), 5, "expected a path that is free, got something that is no socket"),
        ((str(desk.folder / "s"), "--address", "door.example:8331"), 2, "expected --ca FILE"),
        ((str(desk.folder / "s"), "--certificate", str(taken)), 2, "got one without the other"),
        ((str(desk.folder / "none" / "s"),), 7, "expected to make a socket there"),
    ):
        told = desk.as_("legal", *words, *more)
        assert told.code == code and text in one_line(told.err), told
    assert taken.read_text() == "kept"
