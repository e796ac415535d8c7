"""With another appliance's trust file no command answers: each ends with the same error before it prints anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from appliance.cli.main import cli
from appliance.client.support import log
from appliance.client.support.profile import Profile, profile_path, save_profile
from appliance.client.support.session import state_folder
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.log.note import vkey_of
from appliance.formats.log.trust import encode_trust
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import ORIGIN
from tests.cli.conftest import Desk
from tests.kit.founded import copied_policy

FOLDER, RECIPE, PROOF, TABLE, MODEL, NEW = "{folder}", "{recipe}", "{proof}", "{table}", "{model}", "{new}"
IMPORT = ("--name", "other", "--licence", "MIT")
RELEASE = ("--unit", "legal", "--served-model", "labels")
ROWS = (*IMPORT, "--base", "smollm2", "--owner", "Legal", "--classification", "internal")

COMMANDS: dict[str, tuple[str, ...]] = {
    "agent start": (), "key list": ("rita",), "key revoke": ("rita",), "key rotate": (NEW,),
    "principal enrol": ("new", "--proof", PROOF, "--printed-name", "New", "--role", "operator"),
    "principal recover": ("new", "--proof", PROOF, "--printed-name", "New"),
    "principal grant": ("rita", "reviewer:safety"), "principal list": (),
    "identity bind": ("rita", "sub-1", "--issuer", "https://login.bank.example"), "identity list": (),
    "identity unbind": ("rita",),
    "principal remove-role": ("rita", "reviewer:privacy"),
    "principal replace-key": ("rita", "--proof", PROOF), "principal revoke": ("rita",),
    "principal enrol-passkey": ("rita", "--proof", PROOF), "order check": (PROOF,),
    "order countersign": ("012345",), "order list": (), "order show": ("012345",), "order withdraw": ("012345",),
    "policy adopt": (FOLDER,), "policy diff": (FOLDER,), "policy export": (NEW,), "policy show": (),
    "policy test": (FOLDER,),
    "console": (), "login": ("anna",), "whoami": (), "status": (), "storage": (),
    "log-key rotate": (), "post-quantum add": (), "text erase": ("--printed-name-of", "rita"),
    "hold lift": ("adapter:clauses@1",), "hold list": (), "hold place": ("adapter:clauses@1",),
    "base import": (MODEL, *IMPORT), "base list": (), "base revoke": ("smollm2",),
    "dataset import": (TABLE, *ROWS), "dataset list": (), "dataset revoke": ("clauses@1",),
    "dataset show": ("clauses@1",), "dataset used-by": ("clauses@1",),
    "import cancel": ("012345",), "import list": (),
    "validation-set import": (TABLE, *ROWS), "validation-set list": (), "validation-set revoke": ("exam@1",),
    "validation-set show": ("exam@1",),
    "run authorise": ("r-000001",), "run refuse": ("r-000001", "--reason", "No."),
    "run cancel": ("r-000001",), "run checkpoints": ("r-000001",),
    "run export": ("r-000001", "--to", "wandb", "--folder", NEW), "run list": (), "run plan": (RECIPE,),
    "run replay": ("r-000001", "--from", "0", "--to", "2"), "run report": ("r-000001", "--folder", NEW),
    "run resume": ("r-000001",), "run show": ("r-000001",), "run start": (RECIPE,),
    "run sweep": ("intents", "--folder", NEW),
    "review approve": ("clauses@1", "--unit", "legal", "--meaning", "I read it."), "review list": (),
    "review reject": ("clauses@1", "--unit", "legal", "--meaning", "I read it."), "review show": ("clauses@1",),
    "review report": ("clauses@1", "--folder", NEW),
    "review samples": ("clauses@1",), "review try": ("clauses@1", "--prompt", "Is it?"),
    "review request-changes": ("clauses@1", "--unit", "legal", "--meaning", "I read it.", "--reason", "Why."),
    "review withdraw": ("clauses@1", "--unit", "legal", "--meaning", "I read it.", "--reason", "Why."),
    "finding add": ("clauses@1", "--review-function", "privacy", "--kind", "issue", "--severity", "low",
                    "--owner", "olga", "--due", "7d", "--text", "x", "--remedy", "y", "--retest", "z"),
    "finding close": ("clauses@1", "9", "--evidence", "x"), "finding list": (),
    "delegation add": ("raul", "--review-function", "privacy", "--until", "7d"),
    "delegation end": ("raul", "--review-function", "privacy"), "delegation list": (),
    "release request": ("clauses@1", "--unit", "legal", "--exposure", "internal", "--purpose", "assist",
                        "--intended-use", "x", "--limits", "y"),
    "release withdraw-request": ("clauses@1", "--unit", "legal"),
    "release break-glass": ("clauses@1", *RELEASE, "--until", "1h", "--reason", "x"),
    "gate check": ("clauses@1",), "gate explain": ("clauses@1",), "gate list": (), "gate show": ("classification",),
    "release activate": ("clauses@1", *RELEASE), "release export": ("legal", "labels", "--folder", NEW),
    "release suspend": ("clauses@1", "--unit", "legal", "--reason", "x"),
    "release resume": ("clauses@1", "--unit", "legal", "--reason", "x"),
    "principal withdraw-invitation": ("nina",),
    "principal invite": ("nina", "--role", "operator", "--printed-name", "Nina", "--console", "https://a.example"),
    "release history": (), "release rollback": RELEASE,
    "rules raise": ("2",), "rules show": (), "clock reset": (), "clock countersign": (),
    "dataset check": (TABLE, "--base", "smollm2"),
    "adapter list": (), "adapter revoke": ("clauses@1",), "adapter show": ("clauses@1",),
    "token revoke": ("legal", "--issued-before", "now"), "token applications": (),
    "token enrol": ("indexer", "--served-model", "labels", "--proof", PROOF),
    "ledger effective-access": ("legal",), "ledger archive": (NEW,), "ledger archives": (),
    "ledger export": (NEW,), "ledger log": (),
    "ledger request": ("0" * 32,), "ledger show": ("0",), "ledger state": (), "ledger verify": (),
    "restoration show": (), "restoration order": (), "restoration countersign": (), "restoration export": (NEW,),
    "restoration submit": (PROOF,), "restoration withdraw": (),
    "witness accept": (PROOF,), "witness list": (), "witness request": (NEW, "--witness", "w.example/1"),
}  # fmt: skip


def _taking_trust(command: click.Command, path: tuple[str, ...], context: click.Context) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _taking_trust(found, (*path, name), context)
    elif any(parameter.name == "caller_trust_file" for parameter in command.params):
        yield " ".join(path)


def test_every_command_that_takes_a_trust_file_is_tried_here() -> None:
    assert set(_taking_trust(cli, (), click.Context(cli))) == set(COMMANDS)


def _files(folder: Path) -> dict[str, str]:
    (folder / "recipe.yaml").write_text("name: clauses\nbase: smollm2\ndataset: clauses@1\n")
    (folder / "table.csv").write_text("text,label\nA term.,Term\n")
    (folder / "model.gguf").write_bytes(b"GGUF")
    (folder / "proof").write_bytes(b"{}")
    return {
        FOLDER: str(copied_policy(folder / "policy")),
        RECIPE: str(folder / "recipe.yaml"),
        PROOF: str(folder / "proof"),
        TABLE: str(folder / "table.csv"),
        MODEL: str(folder / "model.gguf"),
        NEW: str(folder / "new"),
    }


@pytest.mark.thorough
def test_another_appliances_trust_file_is_refused_by_every_command(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    size, files = len(desk.site.entries), _files(desk.folder)
    own, key, genesis = desk.site.trust, generate_ed25519(), "sha256:" + "ab" * 32
    elsewhere = replace(own, origin="other.example/log", log_key=vkey_of("other.example/log", key), genesis=genesis)
    for other in (
        elsewhere,
        replace(own, log_key=vkey_of(ORIGIN, key), genesis=genesis),
        replace(own, genesis=genesis),
    ):
        desk.trust.write_bytes(encode_trust(other))
        for command, words in COMMANDS.items():
            if command == "status":  # no process holds this appliance's lock, and so it is not running
                continue
            given = [files.get(word, word) for word in words]
            told = desk.as_("anna", *command.split(), *given, "--trust", str(desk.trust), "--json")
            assert (told.code, told.out) == (6, ""), (command, told)
            assert json.loads(told.err)["error"]["code"] == "trust", (command, told.err)
            assert not Path(files[NEW]).exists(), command
    assert len(desk.site.entries) == size, "nothing was signed, no session was opened"


@pytest.mark.thorough
def test_another_appliance_where_the_logins_was_gets_no_token_and_none_of_its_answers_is_printed(
    open_desk: Callable[[str], Desk],
) -> None:
    desk = open_desk("sealed")
    files, secret = _files(desk.folder), ("--passphrase-file", str(desk.passphrase))
    login = ("login", "anna", "--key", str(desk.key("anna")), *secret)
    assert desk.type(*login, "--trust", str(desk.trust)).code == 0
    desk.service.bend["/v1/about"] = lambda about: {**about, "origin": "other.example/log"}
    desk.service.seen.clear()
    for command, words in COMMANDS.items():
        if command in ("login", "order check", "status"):  # a file is checked without a service
            continue
        told = desk.type(*command.split(), *(files.get(word, word) for word in words), *secret, "--json")
        assert (told.code, told.out) == (6, ""), (command, told)
        assert json.loads(told.err)["error"]["code"] == "trust", (command, told.err)
    for command in ("clock show", "key prove", "token issue"):
        told = desk.type(*command.split(), *(() if command == "clock show" else secret))
        assert (told.code, told.out) == (6, ""), (command, told)
    assert set(desk.service.seen) == {("GET", "/v1/about")}


def test_a_logins_trust_file_is_of_its_own_appliance_alone(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    other = desk.folder / "other.json"
    other.write_bytes(encode_trust(replace(desk.site.trust, genesis="sha256:" + "ab" * 32)))
    save_profile(Profile("anna", desk.key("anna"), desk.folder / "elsewhere", other))
    told = desk.as_("anna", "whoami", "--json")  # the environment names this appliance's folder
    assert told.code == 0 and "no trust file was given" in json.loads(told.out)["according_to"]
    here = desk.service.settings.home.resolve()
    save_profile(Profile("anna", desk.key("anna"), here, other))
    assert desk.as_("anna", "whoami").code == 6
    assert desk.as_("anna", "whoami", "--trust", str(desk.trust)).code == 0
    login = ("login", "anna", "--key", str(desk.key("anna")), "--passphrase-file", str(desk.passphrase))
    assert desk.type(*login, "--trust", str(desk.trust)).code == 0
    save_profile(Profile("anna", desk.key("anna"), here, other))
    desk.service.seen.clear()
    told = desk.type("logout")
    assert told.code == 6 and "You are logged out on this machine" in told.err, told
    assert not profile_path().exists() and not list((state_folder() / "sessions").glob("*-anna.json"))
    assert set(desk.service.seen) == {("GET", "/v1/about")}, "the other service gets no token"


# The newest checkpoint that was proved.


def _note(desk: Desk, size: int, root: bytes | None = None) -> str:
    """Return a checkpoint under the log's own key, as a restored service or an attacker with the key would sign it."""
    ledger = desk.site.ledger
    (signer,) = desk.service.context.keyring.log_signers(ORIGIN).values()
    return sign_checkpoint(Checkpoint(ORIGIN, size, root or ledger.root_at(size)), signer).decode()


def _answers(desk: Desk, *notes: str | None) -> None:
    """Replace the service's description of its log: these checkpoints in turn, the last one ever after; None: the
    true one."""
    left = list(notes)

    def bend(about: dict[str, Any]) -> dict[str, Any]:
        note = left.pop(0) if len(left) > 1 else left[0]
        return about if note is None else {**about, "checkpoint": note}

    desk.service.bend["/v1/about"] = bend


COMMANDS_OF_EACH_KIND = (("ledger", "log"), ("hold", "place", "principal:rita", "--yes"), ("clock", "show"))
"""With a session, with an order, and without both."""


@pytest.mark.parametrize("trusting", [True, False])
def test_a_log_that_is_shorter_than_the_one_that_was_seen_is_refused_by_every_command(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch, trusting: bool
) -> None:
    monkeypatch.setattr(log, "PAUSES_S", (0.0, 0.0))
    desk = open_desk("staffed")
    trust = ("--trust", str(desk.trust)) if trusting else ()
    for _ in range(2):  # the first one opens a session, which is an entry
        assert desk.as_("audrey", "ledger", "log", *trust).code == 0
    size, sessions = desk.site.state.size, list((state_folder() / "sessions").iterdir())
    _answers(desk, _note(desk, size - 2))
    desk.service.seen.clear()
    for words in COMMANDS_OF_EACH_KIND:
        told = desk.type(*desk.options("audrey"), *trust, *words, "--json")
        assert (told.code, told.out) == (6, ""), words
        error = json.loads(told.err)["error"]
        assert error["code"] == "log-truncated"
        assert f"it has {size - 2} entries here, and this account has seen {size}" in error["message"]
    assert set(desk.service.seen) == {("GET", "/v1/about")}
    assert list((state_folder() / "sessions").iterdir()) == sessions
    # Somebody who has not seen it cannot know.
    for path in (state_folder() / "logs").glob("*.checkpoint"):
        path.unlink()
    assert desk.type(*trust, "clock", "show").code == 0


def test_a_host_that_lags_is_asked_again(open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "PAUSES_S", (0.0, 0.0))
    desk = open_desk("staffed")
    assert desk.as_("audrey", "ledger", "log").code == 0
    size = desk.site.state.size
    _answers(desk, _note(desk, size - 1), _note(desk, size - 1), None)
    assert desk.as_("audrey", "ledger", "log").code == 0


def test_a_log_without_the_order_of_the_last_command_is_refused(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "PAUSES_S", ())
    desk = open_desk("staffed")
    assert desk.as_("audrey", "hold", "place", "principal:rita", "--yes").code == 0
    _answers(desk, _note(desk, desk.site.state.size - 1))
    assert json.loads(desk.as_("audrey", "ledger", "log", "--json").err)["error"]["code"] == "log-truncated"


@pytest.mark.parametrize("more", [0, 3])
def test_another_log_under_the_same_key_is_called_a_fork(open_desk: Callable[[str], Desk], more: int) -> None:
    desk = open_desk("staffed")
    assert desk.as_("audrey", "ledger", "log").code == 0
    (kept,) = (state_folder() / "logs").iterdir()
    before = kept.read_bytes()
    _answers(desk, _note(desk, desk.site.state.size + more, bytes(32)))
    for _ in range(2):  # the second time, too: what was seen is not forgotten
        error = json.loads(desk.as_("audrey", "ledger", "log", "--json").err)["error"]
        assert error["code"] == "split-view" and "a fork, two logs under one key" in error["message"]
        assert str(kept) in error["message"] and kept.read_bytes() == before


def test_a_checkpoint_under_another_key_is_not_kept(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    note = sign_checkpoint(Checkpoint(ORIGIN, 1_000_000, bytes(32)), generate_ed25519()).decode()
    _answers(desk, note)
    assert desk.as_("audrey", "ledger", "log", "--trust", str(desk.trust)).code == 6
    _answers(desk, None)
    assert desk.as_("audrey", "ledger", "log", "--trust", str(desk.trust)).code == 0


def test_a_service_that_no_trust_file_names_changes_nothing_that_is_kept_of_the_log(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may say that it is any log, under a key of its own."""
    monkeypatch.setattr(log, "PAUSES_S", ())
    desk = open_desk("staffed")
    assert desk.type("--trust", str(desk.trust), "clock", "show").code == 0
    own = generate_ed25519()
    note = sign_checkpoint(Checkpoint(ORIGIN, 1_000_000, bytes(32)), own).decode()
    desk.service.bend["/v1/about"] = lambda about: {**about, "log_key": vkey_of(ORIGIN, own), "checkpoint": note}
    assert desk.type("clock", "show").code == 0
    _answers(desk, None)
    assert desk.type("--trust", str(desk.trust), "clock", "show").code == 0
