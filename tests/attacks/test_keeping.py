"""Key rotation, erasure of texts, and a log that lost entries a witness saw, with the commands that people type."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.names import add_seconds
from appliance.domain.governance.keys import ReplaceKey
from appliance.domain.governance.people import RevokePrincipal
from appliance.domain.retention import LiftHold, PlaceHold
from appliance.formats.core.commitment import Disclosure, disclose
from appliance.formats.log.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from appliance.formats.log.checkpoint import cosign as cosign_note
from appliance.formats.log.note import add_signature, encode_note, parse_note
from appliance.formats.signatures.keys import encode_key_file, generate_ed25519, parse_key_file
from scripts.kit.appliance import ROOT, Appliance, Refused
from tests.attacks import ahead
from tests.attacks.keeping import (
    WITNESS,
    adopt,
    cosigned,
    erase_order,
    files_with,
    new_key,
    submit_cosignature,
    two,
    watched,
)

PASSPHRASE = b"correct horse battery"


@dataclass(frozen=True)
class Told:
    code: int
    out: str
    err: str


@dataclass
class Desk:
    """A machine on which people type, at one site's socket, with their key files."""

    site: Appliance
    folder: Path
    capsys: pytest.CaptureFixture[str]

    def type(self, who: str, *words: str) -> Told:
        key, secret = self.key(who), self.folder / "pass"
        if not secret.exists():
            secret.touch(0o600)
            secret.write_bytes(PASSPHRASE)
        self.capsys.readouterr()
        code = main.run(
            [*words, "--home", str(self.site.home), "--as", who, "--key", str(key), "--passphrase-file", str(secret)]
        )
        told = self.capsys.readouterr()
        return Told(code, told.out, told.err)

    def two(self, *words: str) -> Told:
        """One administrator orders, the other types the command that the first one's output names."""
        told = self.type("anna", *words, "--yes")
        assert told.code == 0, told.err
        following = next(
            line for line in told.err.splitlines() if line.startswith("next: another administrator types:")
        )
        told = self.type("ben", *following.partition("appliance ")[2].split(), "--yes")
        assert told.code == 0, told.err
        return told

    def key(self, who: str) -> Path:
        path = self.folder / f"{who}.key"
        if not path.exists():
            private = self.site.keys[who].private
            path.touch(0o600)
            path.write_bytes(
                encode_key_file(private, PASSPHRASE, salt=secrets.token_bytes(32), nonce=secrets.token_bytes(12))
            )
        return path


@pytest.fixture
def desk_at(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Desk]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "desk"
    folder.mkdir()

    def open_desk(site: Appliance) -> Desk:
        # A command that finds no service starts one, on the site's own port.
        monkeypatch.setenv("APPLIANCE_LISTEN", site.environment["APPLIANCE_LISTEN"])
        return Desk(site, folder, capsys)

    return open_desk


def verified(site: Appliance, place: Path, trust: bytes) -> str:
    """Return the report of the auditor's program on an export, under a trust file of an earlier time."""
    export, kept = place / f"{secrets.token_hex(4)}.tar", place / "kept.json"
    export.write_bytes(site.get("/v1/ledger/export", "axel"))
    kept.write_bytes(trust)
    command = [sys.executable, "-m", "appliance.verifier", str(export), "--trust", str(kept)]
    environment = {**os.environ, "APPLIANCE_HOME": str(place / "nowhere"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(act: Callable[[], object], *words: str) -> Refused:
    with pytest.raises(Refused) as found:
        act()
    for word in words:
        assert word in str(found.value), found.value
    return found.value


# Keys.


@pytest.mark.thorough
def test_a_rotated_key_signs_off_and_a_back_dated_revocation_takes_its_word_back(
    site: Appliance, desk_at: Callable[..., Desk]
) -> None:
    desk = desk_at(site)
    new = desk.folder / "rita2.key"
    told = desk.type("rita", "key", "rotate", str(new), "--old-until", "1h", "--yes")
    assert told.code == 0, told.err
    site.keys["rita"] = parse_key_file(new.read_bytes(), PASSPHRASE)
    signed = site.review("rita")["index"]
    site.review("rob")
    site.activate()
    assert site.chat("legal", "labels")["choices"]
    keyid = site.keys["rita"].keyid.removeprefix("sha256:")[:12]
    told = desk.type(
        "anna", "key", "revoke", "rita", keyid, "--since-entry", str(signed), "--reason", "stolen", "--yes"
    )
    assert told.code == 0, told.err
    answer = refused(lambda: site.chat("legal", "labels"))
    assert (answer.status, answer.code) == (403, "not-admitted")
    types = site.types()
    assert types.index("key.revoked") < types.index("adapter.unloaded") < types.index("admission.refused")
    report = site.verify()
    assert (report["verdict"], report["local_findings"]) == ("verified", [])


def test_a_lost_key_is_replaced_by_two_and_signs_nothing_more(site: Appliance) -> None:
    order, proof, key = new_key(site, ReplaceKey, "anna", "rita")
    two(site, order, possession=proof)
    refused(lambda: site.review("rita"), "The key")
    site.keys["rita"] = key
    assert site.review("rita")["type"] == "review.recorded"


@pytest.mark.thorough
def test_the_logs_key_rotates_and_the_first_trust_file_is_enough(
    site: Appliance, tmp_path: Path, desk_at: Callable[..., Desk]
) -> None:
    trust, first = site.settings.trust.read_bytes(), site.trust.log_key
    refused(lambda: site.ask("POST", "/v1/log-keys", "olga", json={}), "expected an administrator")
    # Its last signature here is before that time, and the service that starts last is 8 minutes ahead.
    desk, until = desk_at(site), add_seconds(site.now(), 6 * 60)
    told = desk.two("log-key", "rotate", "--old-until", until, "--trust", str(site.settings.trust))
    vkey = site.get("/v1/about", None)["log_key"]
    assert vkey != first and vkey in told.err
    assert signers(site) == [first, vkey]
    site.stop()
    site.start()
    assert signers(site) == [first, vkey]
    verified(site, tmp_path, trust)
    site.stop()
    (site.settings.keys / "log.pem").unlink()  # nothing will need it again
    site.launcher = (ahead.__file__,)
    site.start()
    site.order(PlaceHold(subject="principal:olga", **site.terms("axel")))
    assert signers(site) == [vkey]
    verified(site, tmp_path, trust)
    told = desk.type("axel", "ledger", "show", "0", "--trust", str(tmp_path / "kept.json"))
    assert told.code == 0, told.err
    assert "the log verified from it to today's key" in told.err
    report = site.verify()
    assert (report["verdict"], report["local_findings"]) == ("verified", [])


def signers(site: Appliance) -> list[str]:
    """Return the vkeys whose lines the checkpoint of today carries."""
    known = [row["vkey"] for row in site.get("/v1/ledger/state", "axel", kind="site")["rows"][0]["value"]["log_keys"]]
    ids = [line.key_id.hex() for line in parse_note(site.get("/v1/ledger/0", "axel")["checkpoint"].encode()).signatures]
    return [vkey for vkey in known if vkey.split("+")[1] in ids]


# Texts.

SECRET = "Mia von Beispielhausen"


@pytest.mark.essential
def test_an_erased_name_is_in_no_file_and_what_must_be_kept_is_refused(
    site: Appliance, tmp_path: Path, desk_at: Callable[..., Desk]
) -> None:
    trust = site.settings.trust.read_bytes()
    envelope, _, proof = site.propose_enrolment("mia", "operator")
    order = ORDERS.parse(envelope.payload)
    printed = disclose(SECRET, os.urandom(32))
    order = order.model_copy(update={"printed_name": printed.commitment})
    two(site, order, printed, possession=proof)
    assert files_with(site, SECRET)
    erasing(site, printed, "The text is the printed name of an enrolled principal: mia.")
    site.order(RevokePrincipal(principal="mia", **site.terms("anna")))
    erasing(site, printed, "Policy keeps this text until")
    adopt(site, name_retention_s=0)
    site.order(PlaceHold(subject="principal:mia", **site.terms("axel")))
    erasing(site, printed, "keeps texts about mia")
    two(site, LiftHold(subject="principal:mia", **site.terms("anna")))
    told = desk_at(site).two("text", "erase", "--printed-name-of", "mia")
    assert SECRET in told.err, "the second administrator reads what goes"
    assert "What was made of it stays" in told.err, "... and what does not"
    assert "text.erased" in site.types()
    assert site.get("/v1/principals")[-1]["printed_name"] is None
    again = refused(lambda: site.order(erase_order(site, printed.commitment), printed))
    assert again.status in (403, 409)
    verified(site, tmp_path, trust)
    assert files_with(site, SECRET) == []
    site.stop()
    assert files_with(site, SECRET) == []
    site.start()
    report = site.verify()
    assert (report["verdict"], report["local_findings"]) == ("verified", [])


def erasing(site: Appliance, text: Disclosure, reason: str) -> None:
    assert refused(lambda: site.order(erase_order(site, text.commitment), text), reason).status == 403


# Witnesses.


def cosign(desk: Desk, witness: Path, *more: str) -> Told:
    """One walk with the stick: request, cosign on the witness's machine, and back."""
    site, stick = desk.site, desk.folder
    told = desk.type("axel", "witness", "request", str(stick / "request"))
    assert told.code == 0, told.err
    told = desk.type(
        "witness", "witness", "cosign", str(stick / "request"), "--name", WITNESS, "--log", str(site.settings.trust),
        "--state", str(witness), "--output", str(stick / "cosigned"), *more,
    )  # fmt: skip
    assert told.code == 0, told.err
    return desk.type("axel", "witness", "accept", str(stick / "cosigned"))


@pytest.mark.thorough
def test_a_log_that_lost_what_a_witness_saw_names_it_and_neither_starts_nor_admits(
    released: Appliance, tmp_path: Path, desk_at: Callable[..., Desk]
) -> None:
    site, state = released, tmp_path / "w1.state"
    site.keys["witness"] = generate_ed25519()
    watched(site, site.keys["witness"])
    answer = refused(lambda: site.chat("legal", "labels"), "Policy requires 1 witnesses")
    assert (answer.status, answer.code) == (403, "not-admitted")
    desk = desk_at(site)
    told = cosign(desk, state, "--first")
    assert told.code == 0, told.err
    assert f"witness:  {WITNESS}" in told.out and "entry:" in told.out
    assert site.chat("legal", "labels")["choices"]
    listed = json.loads(desk.type("axel", "witness", "list", "--json").out)
    assert [row["counts"] for row in listed["witnesses"]] == [True]
    assert 0 < listed["witnesses"][0]["behind"] < listed["log_size"]
    older = (desk.folder / "cosigned").read_bytes()

    # Yesterday's database ...
    site.stop()
    yesterday = tmp_path / "ledger.db"
    shutil.copy(site.home / "ledger.db", yesterday)
    site.start()
    for _ in range(8):  # more than whoever goes on from yesterday will have
        site.chat("legal", "labels")
    assert cosign(desk, state).code == 0
    site.stop()
    lost = f"entries {entries_in(yesterday)} to {size_of(desk.folder / 'cosigned') - 1} are lost"
    restore(site, yesterday)
    with pytest.raises(RuntimeError) as ended:
        site.start()
    assert lost in str(ended.value), ended.value
    site.service = None
    told = desk.type("axel", "witness", "list")
    assert told.code == 7
    assert lost in told.err

    # ... removing what was kept beside it helps nobody ...
    (kept,) = site.settings.witnessed.iterdir()
    kept.unlink()
    with pytest.raises(RuntimeError, match=r"\[witness-missing\]"):
        site.start()
    site.service = None

    # ... and whoever puts the older word there that the older database itself has is told by the witness.
    kept.write_bytes(older)
    site.start()
    assert site.chat("legal", "labels")["choices"], "nothing here knows better"
    told = desk.type("axel", "witness", "accept", str(desk.folder / "cosigned"))
    assert told.code == 6 and "this account has seen" in told.err and WITNESS not in told.err
    shutil.rmtree(tmp_path / "state" / "appliance" / "logs")  # as an account that has seen nothing of what is lost
    told = desk.type("axel", "witness", "accept", str(desk.folder / "cosigned"))
    assert told.code == 6
    assert "[log-truncated]" in told.err and "are lost" in told.err and WITNESS in told.err
    answer = refused(lambda: site.chat("legal", "labels"), "are lost")
    assert answer.status == 403
    site.stop()
    with pytest.raises(RuntimeError, match=r"are lost\. .*appliance serve --restoration.* \[log-truncated\]"):
        site.start()
    site.service = None


@pytest.mark.thorough
def test_nobody_makes_the_appliance_forget_what_a_witness_saw(site: Appliance) -> None:
    """An old word handed in again changes nothing, nor does the witness's word on another log; both are refused."""
    witness = generate_ed25519()
    watched(site, witness, quorum=0)
    first = cosigned(site, witness)
    submit_cosignature(site, first)
    second = cosigned(site, witness)
    submit_cosignature(site, second)
    refused(lambda: submit_cosignature(site, first), "its cosignature before")
    other = sign_checkpoint(Checkpoint(site.trust.origin, 1_000, bytes(32)), generate_ed25519())
    note = add_signature(parse_note(other), cosign_note(parse_note(other), WITNESS, witness, int(time.time())))
    answer = refused(
        lambda: submit_cosignature(site, encode_note(note).decode()), "expected a signature by the key of this log"
    )
    assert answer.status == 422
    assert [path.read_text() for path in site.settings.witnessed.iterdir()] == [second]
    site.stop()
    site.start()
    assert site.verify()["verdict"] == "verified"


def size_of(note: Path) -> int:
    return parse_checkpoint(parse_note(note.read_bytes()).text).size


def entries_in(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])


def restore(site: Appliance, database: Path) -> None:
    """With nothing beside it but what witnesses have seen."""
    for path in (*site.home.glob("ledger.db*"), *site.home.glob("state.snapshot")):
        path.unlink()
    shutil.copy(database, site.home / "ledger.db")
