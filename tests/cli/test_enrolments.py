"""`principal enrol --folder`: everybody in a folder by one order and one countersignature, or nobody."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.formats.signatures.keys import generate_ed25519
from tests.cli.conftest import Desk, Told, one_line

TABLE = 'name,printed_name,roles\ndora,Dora Example,operator reviewer:privacy\nemil,"Example, Emil",auditor\n'


@pytest.fixture
def desk(open_desk: Callable[[str], Desk]) -> Desk:
    return open_desk("staffed")


@pytest.fixture
def folder(desk: Desk) -> Path:
    """Two people with their proofs."""
    folder = desk.folder / "newcomers"
    folder.mkdir()
    (folder / "people.csv").write_text(TABLE)
    for name in ("dora", "emil"):
        prove(desk, name, folder / f"{name}.proof")
    return folder


def prove(desk: Desk, name: str, proof: Path) -> None:
    desk.site.keys[name] = generate_ed25519()
    assert desk.as_(name, "key", "prove", "--output", str(proof)).code == 0


def enrol(desk: Desk, folder: Path, *words: str) -> Told:
    return desk.as_("anna", "principal", "enrol", "--folder", str(folder), "--yes", *words)


def test_two_administrators_enrol_everybody_in_a_folder(desk: Desk, folder: Path) -> None:
    told = enrol(desk, folder)
    assert told.code == 0 and "outcome:  pending" in told.out, told.err
    second = told.err.splitlines()[-1]
    told = desk.as_("ben", *second.partition("appliance ")[2].split(), "--yes")
    assert told.code == 0 and "the order enrol-several of anna took effect" in told.out, told.err
    rows = {row["name"]: row for row in json.loads(desk.as_("dora", "principal", "list", "--json").out)}
    assert (rows["dora"]["printed_name"], rows["dora"]["roles"]) == ("Dora Example", ["operator", "reviewer:privacy"])
    assert (rows["emil"]["printed_name"], rows["emil"]["roles"]) == ("Example, Emil", ["auditor"])
    assert rows["dora"]["enrolled"] == rows["emil"]["enrolled"]
    assert desk.ordered() == 2


def test_both_administrators_see_every_value_of_each_person(desk: Desk, folder: Path) -> None:
    first = enrol(desk, folder, "--json")
    digest = json.loads(first.out)["order"]
    second = desk.as_("ben", "order", "countersign", digest, "--yes")
    for told in (first.err, second.err):
        for text in ("dora, printed name:", "Dora Example", "operator, reviewer:privacy", "Example, Emil"):
            assert text in told, told
        for name in ("dora", "emil"):
            assert desk.site.keys[name].keyid in told


def test_the_printed_name_of_each_is_a_text_of_its_own(desk: Desk, folder: Path) -> None:
    digest = json.loads(enrol(desk, folder, "--json").out)["order"]
    assert desk.as_("ben", "order", "countersign", digest, "--yes").code == 0
    erase = ("text", "erase", "--printed-name-of", "emil", "--yes")
    assert "The text is the printed name of an enrolled principal: emil." in desk.as_("anna", *erase).err
    assert desk.as_("anna", "principal", "revoke", "emil", "--yes").code == 0
    assert "Policy keeps this text until" in desk.as_("anna", *erase).err


def test_all_faults_of_table_and_proofs_are_named_at_once(desk: Desk, folder: Path) -> None:
    (folder / "people.csv").write_text(f"{TABLE}\nzoe,,operator\ndora,Dora,operator\nx,y\n")
    (folder / "stray.proof").write_bytes((folder / "dora.proof").read_bytes())
    told = enrol(desk, folder)
    assert told.code == 2
    for words in (
        "people.csv, line 7: expected 3 values, got 2",
        "people.csv, line 5: expected a printed name, got none",
        "people.csv: expected 'dora' once, got it twice",
        "stray.proof: expected a line in people.csv for it, got none",
    ):
        assert words in one_line(told.err)
    assert desk.ordered() == 0


def test_every_proof_is_checked_before_anything_is_signed(desk: Desk, folder: Path) -> None:
    (folder / "people.csv").write_text(f"{TABLE}fay,Fay,operator\ngus,Gus,operator\nhal,Hal,boss\n")
    emil = (folder / "emil.proof").read_bytes()
    (folder / "fay.proof").write_bytes(emil)
    value = json.loads(emil)
    value["signatures"][0]["sig"] = json.loads((folder / "dora.proof").read_bytes())["signatures"][0]["sig"]
    (folder / "emil.proof").write_text(json.dumps(value, sort_keys=True, separators=(",", ":")))
    prove(desk, "hal", folder / "hal.proof")
    told = enrol(desk, folder)
    assert told.code == 2 and desk.ordered() == 0
    said = one_line(told.err)
    assert "emil: signature" in said
    assert "fay: proof of possession, principal: expected fay, got emil" in said
    assert "gus: proof of possession" in said and "expected a file, got nothing" in said
    assert "hal: roles" in said, "each fault of a value with those of the proofs"
    assert "dora" not in said.replace("dora.proof", "")


def test_what_the_service_would_refuse_is_not_signed(desk: Desk, folder: Path) -> None:
    (folder / "people.csv").write_text(
        "name,printed_name,roles\ndora,Dora,operator auditor\nemil,Emil,release-owner:no\n"
    )
    told = enrol(desk, folder)
    assert told.code == 3 and desk.ordered() == 0
    assert "The roles of dora would be operator, auditor." in told.err
    assert "emil would be the release owner of no, which is not an enrolled unit." in told.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: expected name,printed_name,roles, got"),
        ("name;printed_name;roles\n", "line 1: expected name,printed_name,roles, got"),
        ("name,printed_name,roles\n", "expected 1 to 24 people, got 0"),
        ("name,printed_name,roles\n" + "".join(f"p{n},P,operator\n" for n in range(25)), "people, got 25"),
    ],
)
def test_a_table_that_is_none_is_refused(desk: Desk, folder: Path, text: str, words: str) -> None:
    (folder / "people.csv").write_text(text)
    told = enrol(desk, folder)
    assert told.code == 2 and words in one_line(told.err)


def test_a_folder_stands_alone(desk: Desk, folder: Path) -> None:
    told = enrol(desk, folder, "--role", "operator")
    assert told.code == 2 and "expected --folder alone" in told.err
    told = desk.as_("anna", "principal", "enrol", "dora", "--role", "operator")
    assert told.code == 2 and "or --folder" in told.err
