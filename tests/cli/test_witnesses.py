"""Files that are carried to a witness and back, and their errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from appliance.errors import BadInput
from appliance.formats.core.timestamp import parse_end
from appliance.formats.log.checkpoint import witness_vkey_of
from appliance.formats.signatures.keys import generate_ed25519
from tests.cli.conftest import Desk
from tests.kit.founded import policy_set

W1, W2 = generate_ed25519(), generate_ed25519()
VKEYS = (witness_vkey_of("witness.example/w1", W1), witness_vkey_of("witness.example/w2", W2))


def test_whom_to_ask_is_said_unless_policy_names_one(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    told = desk.as_("audrey", "witness", "request", str(desk.folder / "request"))
    assert told.code == 2
    assert "witnesses: none; adopt a policy set that names one by its vkey" in told.err
    desk.site.adopt(policy_set(witnesses=VKEYS))
    told = desk.as_("audrey", "witness", "request", str(desk.folder / "request"))
    assert told.code == 2
    assert "witnesses: witness.example/w1, witness.example/w2" in told.err
    assert not (desk.folder / "request").exists()


def test_what_is_no_text_is_not_handed_in(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    (desk.folder / "cosigned").write_bytes(b"\xff\xfe")
    told = desk.as_("audrey", "witness", "accept", str(desk.folder / "cosigned"))
    assert told.code == 2
    assert "expected a signed note in UTF-8" in told.err
    assert desk.as_("audrey", "witness", "accept", str(desk.folder / "nothing")).code == 4


def test_witnesses_are_listed_with_what_came_after_their_word(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    desk.site.adopt(policy_set(witnesses=VKEYS, witness_quorum=2))
    seen = desk.site.state.size - 2
    body, documents = desk.site.cosigned(W2, "witness.example/w2", seen)
    desk.site.add(body, documents=documents)
    told = desk.as_("audrey", "witness", "list", "--json")
    rows = json.loads(told.out)["witnesses"]
    size = len(desk.site.entries)
    assert [(row["name"], row["behind"]) for row in rows] == [
        ("witness.example/w1", size),
        ("witness.example/w2", size - seen),
    ]
    told = desk.as_("audrey", "witness", "list")
    assert "witness.example/w2  yes" in told.out
    assert "Admission asks for 2 cosignatures of 7 days." in told.err
    desk.site.adopt(policy_set(witnesses=VKEYS[:1]))
    assert "no longer" in desk.as_("audrey", "witness", "list").out


NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("now", "2026-11-24T12:00:00.000Z"),
        ("90m", "2026-11-24T13:30:00.000Z"),
        ("7d", "2026-12-01T12:00:00.000Z"),
        ("2026-11-30", "2026-11-30T23:59:59.999Z"),
        ("2026-11-30T01:02:03.000Z", "2026-11-30T01:02:03.000Z"),
    ],
)
def test_a_time_to_come_is_written_as_a_time_ago_is(text: str, end: str) -> None:
    assert parse_end(text, "old until", NOW) == end


def test_a_time_to_come_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match="old until"):
        parse_end("soon", "old until", NOW)
