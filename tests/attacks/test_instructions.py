"""The system message of the training: its display to a unit, its addition to prompts, and its removal."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import verifier
from appliance.domain.queries.proofs import MEMBER
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import parse_disclosure_value
from scripts.kit.appliance import Appliance, Refused
from scripts.kit.ports import free_port
from scripts.kit.tiny_model import WORDS, clauses
from tests.attacks.keeping import erase_order, two

pytestmark = pytest.mark.thorough

INSTRUCTION = "Name the kind of this clause, and say nothing else about it."
ASKED = [{"role": "user", "content": "the parties agree"}]
ROWS = "text,label\n" + "".join(f"{text},{label}\n" for text, label in clauses())


@pytest.fixture(scope="module")
def approved(golden: Appliance, tmp_path_factory: pytest.TempPathFactory) -> Appliance:
    """Return a stopped site with an approved adapter of a dataset with an instruction, told@1, for legal."""
    site = golden.copy(tmp_path_factory.mktemp("i") / "h", free_port())
    site.start()
    found = site.import_dataset(ROWS.encode(), "told", instruction=INSTRUCTION)
    assert found["status"] == "finished", found
    assert site.train("told", dataset="told@1")["adapter"] == "told@1"
    site.approve(name="told@1")
    site.stop()
    return site


@pytest.fixture
def instructed(approved: Appliance, tmp_path: Path) -> Iterator[Appliance]:
    site = approved.copy(tmp_path / "h", free_port())
    site.start()
    yield site
    site.kill()


def ask(site: Appliance, messages: list[dict[str, str]]) -> dict[str, Any]:
    head = {"Authorization": f"Bearer {site.token('legal')}"}
    with site.units() as client:
        answer = client.post("/v1/chat/completions", json={"model": "labels", "messages": messages}, headers=head)
    if answer.status_code != 200:
        raise Refused(answer)
    return dict(answer.json())


def opens(site: Appliance, record: dict[str, Any], messages: list[dict[str, str]]) -> bool:
    """Whether the prompt's commitment is one over these messages."""
    request = json.loads(record["entry"])["body"]["request"]
    (admitted,) = site.entries(type="request.admitted", subject=f"request:{request}")
    salt = base64.b64decode(record["prompt_salt"])
    mac = hmac.digest(salt, encode_canonical(messages), "sha256").hex()
    return bool(admitted["body"]["prompt"] == f"hmac-sha256:{mac}")


def erase_instruction(site: Appliance) -> None:
    (requested,) = [e for e in site.entries(type="import.requested") if "dataset:told" in e["subjects"]]
    told = site.get(f"/v1/ledger/{requested['index']}", "axel")["disclosures"]
    (text,) = [one for one in map(parse_disclosure_value, told) if one.text == INSTRUCTION]
    two(site, erase_order(site, text.commitment), text)


def test_a_unit_learns_how_its_task_wants_to_be_asked_and_no_row(instructed: Appliance) -> None:
    instructed.activate(name="told@1")
    client = instructed.openai()
    extra = client.models.retrieve("labels").model_extra or {}
    assert (extra["trained_for"], extra["instruction"], extra["labels"]) == (
        "classification",
        INSTRUCTION,
        sorted(WORDS),
    )
    assert not extra["adds_instruction"]
    assert not [text for text, _ in clauses() if text in json.dumps(extra)]
    example = json.loads(json.dumps(extra["example"]).replace("<text>", "the parties agree"))
    found = instructed.units().post(
        example["path"], json=example["body"], headers={"Authorization": f"Bearer {client.api_key}"}
    )
    assert found.json()["data"][0]["label"] in WORDS
    erase_instruction(instructed)
    extra = client.models.retrieve("labels").model_extra or {}
    assert extra["instruction"] is None
    assert INSTRUCTION not in json.dumps(extra)


def test_an_instruction_is_put_in_where_there_is_none_and_the_record_proves_it(
    instructed: Appliance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = [{"role": "system", "content": INSTRUCTION}]
    instructed.activate(name="told@1")
    plain, given = ask(instructed, ASKED), ask(instructed, system + ASKED)
    instructed.activate(name="told@1", adds_instruction=True)
    added, own = ask(instructed, ASKED), ask(instructed, [{"role": "system", "content": "Be brief."}, *ASKED])
    assert added["choices"] == given["choices"], "as if the unit had sent it"
    assert added["usage"] == given["usage"] != plain["usage"]
    assert opens(instructed, added[MEMBER], system + ASKED)
    assert opens(instructed, plain[MEMBER], ASKED)
    bodies = [json.loads(answer[MEMBER]["entry"])["body"] for answer in (plain, given, added, own)]
    assert [body["instruction"] is None for body in bodies] == [True, True, False, True]
    assert instructed.openai().models.retrieve("labels").model_extra["adds_instruction"] is True  # type: ignore[index]
    assert instructed.verify()["verdict"] == "verified"

    kept, text = tmp_path / "record.json", tmp_path / "instruction.txt"
    kept.write_text(json.dumps(added[MEMBER]))
    for said, code in ((INSTRUCTION, 0), ("Name another.", 6)):
        text.write_text(said)
        with pytest.raises(SystemExit) as ended:
            verifier.main(
                ["--record", str(kept), "--trust", str(instructed.settings.trust), "--instruction", str(text)]
            )
        assert ended.value.code == code
    assert "is the one that was put in" in capsys.readouterr().out


def test_an_erased_instruction_is_put_in_no_more_and_a_message_of_the_units_own_is_answered(
    instructed: Appliance,
) -> None:
    instructed.activate(name="told@1", adds_instruction=True)
    ask(instructed, ASKED)
    erase_instruction(instructed)
    with pytest.raises(Refused, match="got one that was erased; send a system message of your own") as refused:
        ask(instructed, ASKED)
    assert (refused.value.status, refused.value.code) == (403, "instruction-erased")
    assert ask(instructed, [{"role": "system", "content": "Be brief."}, *ASKED])["choices"]
    with pytest.raises(Refused, match="was erased by entry"):
        instructed.activate(name="told@1", adds_instruction=True)
    instructed.activate(name="told@1")
    assert ask(instructed, ASKED)["choices"]
    assert instructed.verify()["verdict"] == "verified"
