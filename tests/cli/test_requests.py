"""`ledger request`: found by a response's id, proved by the client, with a proof that needs no service."""

from __future__ import annotations

import json
from collections.abc import Callable

from appliance.domain.core.entry import parse_entry
from appliance.formats.log.proof import verify_proof
from tests.cli.conftest import Desk, one_line
from tests.kit.log_policies import quorum_policy


def test_a_request_is_found_by_its_answers_id(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    name, file = f"{1:032x}", desk.folder / "answer.tlog-proof"
    desk.site.add(desk.site.request(7))
    told = desk.as_(
        "audrey", "ledger", "request", f"chatcmpl-{name}", "--output", str(file), "--trust", str(desk.trust)
    )
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    slot = desk.site.state.slots.get("legal/labels")
    assert slot is not None
    assert f"manifest: {slot.manifest}" in one_line(told.out)
    listed = [line.split()[:3:2] for line in lines if line[:1].isdigit() and len(line.split()) == 5]
    kinds = ["adapter.admitted", "release.activated", "review.recorded", "review.recorded"]
    indexes = [slot.admitted, slot.release, *slot.approvals]
    assert listed[:4] == [[str(index), kind] for index, kind in zip(indexes, kinds, strict=True)]
    assert [kind for _, kind in listed[4:]] == ["request.admitted", "request.finished"]
    assert "the trust file" in told.err

    value = json.loads(desk.as_("audrey", "ledger", "request", name, "--json").out)
    assert value["proof"].encode() == file.read_bytes()
    entry = parse_entry(desk.site.entries[value["finished"]["index"]])
    held = verify_proof(file.read_bytes(), entry.leaf, quorum_policy([desk.site.trust.log_key], [], 0))
    assert held.checkpoint.size == value["log_size"]
    assert f"index {entry.index}\n" in value["proof"]

    going = desk.as_("audrey", "ledger", "request", f"{7:032x}")
    assert (going.code, "The request has no end yet." in going.err) == (0, True)
    assert desk.as_("audrey", "ledger", "request", name, "--output", str(file)).code == 5


def test_a_name_that_is_none_is_told_so(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    assert desk.as_("audrey", "ledger", "request", "12").code == 2
    assert desk.as_("audrey", "ledger", "request", "f" * 32).code == 4
