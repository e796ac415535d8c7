"""What people are told when something does not fit, or when they leave."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scripts.kit.log_builder import ORIGIN
from tests.cli.conftest import Desk


def test_no_message_shows_a_regular_expression(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    proof, recipe, rows = (desk.folder / name for name in ("p.proof", "recipe.yaml", "rows.csv"))
    key = ("--as", "new", *desk.options("rita")[2:])
    assert desk.type("key", "prove", "--origin", ORIGIN, "--output", str(proof), *key).code == 0
    recipe.write_text("name: clauses\nbase: smollm2\ndataset: tickets\n")
    rows.write_text("text,label\nA term.,Term\n")
    terms = ("--name", "t", "--base", "smollm2", "--owner", "Legal", "--licence", "MIT", "--classification", "internal")
    enroll = ("principal", "enroll", "new", "--proof", str(proof), "--printed-name", "New", "--role", "reviewer")
    for words, said in (
        (enroll, "reviewer:FIELD such as reviewer:privacy"),
        (("run", "start", str(recipe)), "dataset: expected NAME@VERSION such as clauses@1, got 'tickets'"),
        (("dataset", "import", str(rows), *terms, "--held-out", "20"), "a share above 0 and at most 0.9, such as 0.2"),
        (("hold", "place", "clauses"), "subject: expected KIND:NAME such as adapter:clauses@1, got 'clauses'"),
        (("completion",), "Choose from: bash, zsh, fish; type: appliance completion --help"),
    ):
        told = desk.type(*words) if words == ("completion",) else desk.as_("anna", *words, "--yes")
        assert told.code == 2 and said in told.err, told.err
        assert not [mark for mark in ("^", "\\", "pattern", "should", "Input") if mark in told.err], told.err
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
    assert last.endswith("r-000001 goes on; follow it again with: appliance run show r-000001 --follow [interrupted]")
    shown = desk.as_("olga", "run", "show", "r-000001", "--follow")
    assert "stopped by you; r-000001 goes on; follow it again" in shown.err
    monkeypatch.setattr(orders, "submit", leave)
    told = desk.as_("olga", "run", "cancel", "r-000001", "--yes")
    assert told.code == 130 and "was recorded is not known: look with: appliance ledger log --last 5" in told.err
    monkeypatch.setattr(orders, "sign", leave)
    told = desk.as_("olga", "run", "cancel", "r-000001", "--yes")
    assert "error: stopped by you; nothing was signed [interrupted]" in told.err
