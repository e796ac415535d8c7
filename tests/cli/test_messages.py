"""Messages to people about values that do not fit, and at the end of a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.formats.signatures.keys import encode_spki_pem, generate_ed25519
from scripts.kit.log_builder import ORIGIN
from tests.cli.conftest import PASSPHRASE, Desk

ROOT = Path(__file__).resolve().parents[2]


def test_no_message_shows_a_regular_expression(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    proof, recipe, rows = (desk.folder / name for name in ("p.proof", "recipe.yaml", "rows.csv"))
    key = ("--as", "new", *desk.options("rita")[2:])
    assert desk.type("key", "prove", "--origin", ORIGIN, "--output", str(proof), *key).code == 0
    recipe.write_text("name: clauses\nbase: smollm2\ndataset: tickets\n")
    rows.write_text("text,label\nA term.,Term\n")
    terms = ("--name", "t", "--base", "smollm2", "--owner", "Legal", "--licence", "MIT", "--classification", "internal")
    enrol = ("principal", "enrol", "new", "--proof", str(proof), "--printed-name", "New", "--role", "reviewer")
    for words, said in (
        (enrol, "reviewer:FUNCTION such as reviewer:privacy"),
        (("run", "start", str(recipe)), "dataset: expected NAME@VERSION such as clauses@1, got 'tickets'"),
        (("dataset", "import", str(rows), *terms, "--held-out", "20"), "a share above 0 and at most 0.9, such as 0.2"),
        (("hold", "place", "clauses"), "subject: expected KIND:NAME such as adapter:clauses@1, got 'clauses'"),
        (("completion",), "Choose from: bash, zsh, fish; type: appliance completion --help"),
    ):
        told = desk.type(*words) if words == ("completion",) else desk.as_("anna", *words, "--yes")
        assert told.code == 2 and said in told.err, told.err
        assert not [mark for mark in ("^", "\\", "pattern", "should", "Input") if mark in told.err], told.err
    for words in (("key", "prove", "--origin", ORIGIN, "--as", "Ada!"), ("login", "Ada!")):
        told = desk.type(*words, *key[2:])
        assert told.code == 2 and "name: expected 1 to 63 of a-z, 0-9 and inner hyphens, got 'Ada!'" in told.err, told
    assert desk.service.uploads == {}


def test_no_command_makes_a_missing_folder(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("serving")
    missing = desk.folder / "missing"
    for words in (
        ("ledger", "export", str(missing / "ledger.tar")),
        ("run", "report", "r-000001", "--folder", str(missing / "report")),
        ("run", "export", "r-000001", "--to", "wandb", "--folder", str(missing / "wandb")),
        ("release", "export", "legal", "labels", "--folder", str(missing / "export"), "--yes"),
        ("key", "rotate", str(missing / "new.key"), "--yes"),
        ("key", "new", str(missing / "new.key")),
    ):
        given = desk.options("otto") if words[:2] != ("key", "new") else ["--passphrase-file", str(desk.passphrase)]
        told = desk.type(*words, *given)
        assert told.code == 2 and f"expected the folder {missing} to write to, got none" in told.err, (words, told)
    assert not missing.exists() and desk.ordered() == 0


def test_who_leaves_after_signing_is_told_that_the_order_stays_and_how_to_follow_it(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.client import runs
    from appliance.client.support import orders

    desk = open_desk("imported")
    recipe = desk.folder / "recipe.yaml"
    recipe.write_text("name: clauses\nbase: smollm2\ndataset: clauses@1\n")

    def leave(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "follow", leave)
    told = desk.as_("olga", "run", "start", str(recipe), "--follow", "--yes")
    assert told.code == 130
    last = told.err.splitlines()[-1]
    assert last.startswith("error: stopped by you; what you signed stays recorded: run.requested, entry ")
    assert last.endswith("r-000001 continues; follow it again with: appliance run show r-000001 --follow [interrupted]")
    shown = desk.as_("olga", "run", "show", "r-000001", "--follow")
    assert "stopped by you; r-000001 continues; follow it again" in shown.err
    monkeypatch.setattr(orders, "submit", leave)
    told = desk.as_("olga", "run", "cancel", "r-000001", "--yes")
    assert told.code == 130 and "was recorded is not known: look with: appliance ledger log --last 5" in told.err
    monkeypatch.setattr(orders, "sign", leave)
    told = desk.as_("olga", "run", "cancel", "r-000001", "--yes")
    assert "error: stopped by you; nothing was signed [interrupted]" in told.err


@pytest.mark.thorough
def test_a_path_that_this_account_may_not_use_is_named_and_is_no_defect(tmp_path: Path) -> None:
    """Also for root, which types these commands without the capabilities that let it use every path."""
    closed, public = tmp_path / "closed", tmp_path / "anna.pub"
    passphrase = tmp_path / "pass"
    passphrase.write_bytes(PASSPHRASE)
    passphrase.chmod(0o600)
    public.write_bytes(encode_spki_pem(generate_ed25519().spki))
    (closed / "trust").mkdir(parents=True)
    ordinary = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []

    def type_ordinary(*words: str | Path) -> tuple[int, str]:
        line = [*ordinary, sys.executable, "-m", "appliance", *map(str, words)]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
        return done.returncode, done.stderr

    init = ("init", "--single-admin", "--administrator", f"anna={public}", "--home")
    (closed / "trust").chmod(0o500)
    closed.chmod(0o500)
    written = [
        type_ordinary("key", "new", closed / "ada.key", "--passphrase-file", passphrase),
        type_ordinary(*init, closed / "home"),
        type_ordinary(*init, public),
        type_ordinary(*init, tmp_path / "home", "--output", closed / "trust" / "trust.json"),
    ]
    closed.chmod(0o000)
    read = [
        type_ordinary("key", "show", closed / "ada.key"),
        type_ordinary("config", "check", closed / "new.toml"),
        type_ordinary("doctor", "--home", closed),
    ]
    closed.chmod(0o700)
    assert [code for code, _ in (*written, *read)] == [7] * 7, (written, read)
    for (_, told), said in zip(
        (*written, *read),
        (
            f"expected a folder that this account can write to, got {closed}; ask its owner for access",
            f"data folder, {closed / 'home'}: expected a folder, or a place where this account can make one",
            "got File exists; name another one with --home",
            f"expected a folder that this account can write to, got {closed / 'trust'}; ask its owner for access",
            f"path, {closed / 'ada.key'}: expected that this account can use it, got Permission denied; ask its owner",
            f"path, {closed / 'new.toml'}: expected that this account can use it",
            f"path, {closed}",
        ),
        strict=True,
    ):
        assert said in told and "defect" not in told, told
    assert not (tmp_path / "home").exists() and not list(closed.glob("*.key"))
