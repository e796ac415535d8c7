"""With another appliance's trust file no command answers: each ends with the same error before it prints anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click

from appliance.cli.main import cli
from appliance.client.support.profile import Profile, save_profile
from appliance.formats.log.note import vkey_of
from appliance.formats.log.trust import encode_trust
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import ORIGIN
from tests.cli.conftest import Desk
from tests.kit.founded import copied_policy

FOLDER, RECIPE, PROOF, TABLE, MODEL, NEW = "{folder}", "{recipe}", "{proof}", "{table}", "{model}", "{new}"
IMPORT = ("--name", "other", "--licence", "MIT")
RELEASE = ("--unit", "legal", "--task", "labels")
ROWS = (*IMPORT, "--base", "smollm2", "--owner", "Legal", "--classification", "internal")

COMMANDS: dict[str, tuple[str, ...]] = {
    "agent start": (), "key list": ("rita",), "key revoke": ("rita",), "key rotate": (NEW,),
    "principal enroll": ("new", "--proof", PROOF, "--printed-name", "New", "--role", "operator"),
    "principal grant": ("rita", "reviewer:safety"), "principal list": (),
    "principal replace-key": ("rita", "--proof", PROOF), "principal revoke": ("rita",),
    "principal enroll-passkey": ("rita", "--proof", PROOF), "order check": (PROOF,),
    "order endorse": ("012345",), "order list": (), "order show": ("012345",),
    "policy adopt": (FOLDER,), "policy diff": (FOLDER,), "policy export": (NEW,), "policy show": (),
    "policy test": (FOLDER,),
    "console": (), "login": ("anna",), "whoami": (), "status": (), "storage": (),
    "log-key rotate": (), "text erase": ("--printed-name-of", "rita"),
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
    "finding add": ("clauses@1", "--field", "privacy", "--kind", "issue", "--severity", "low", "--owner", "olga",
                    "--due", "7d", "--text", "x", "--remedy", "y", "--retest", "z"),
    "finding close": ("clauses@1", "9", "--evidence", "x"), "finding list": (),
    "delegation add": ("raul", "--field", "privacy", "--until", "7d"),
    "delegation end": ("raul", "--field", "privacy"), "delegation list": (),
    "release request": ("clauses@1", "--unit", "legal", "--exposure", "internal", "--purpose", "assist",
                        "--intended-use", "x", "--limits", "y"),
    "release withdraw-request": ("clauses@1", "--unit", "legal"),
    "release break-glass": ("clauses@1", *RELEASE, "--until", "1h", "--reason", "x"),
    "gate check": ("clauses@1",), "gate explain": ("clauses@1",), "gate list": (), "gate show": ("classification",),
    "release activate": ("clauses@1", *RELEASE), "release export": ("legal", "labels", "--folder", NEW),
    "release history": (), "release rollback": RELEASE,
    "rules raise": ("2",), "rules show": (), "clock reset": (), "clock endorse": (),
    "dataset check": (TABLE, "--base", "smollm2"),
    "adapter list": (), "adapter revoke": ("clauses@1",), "adapter show": ("clauses@1",),
    "token revoke": ("legal", "--issued-before", "now"), "token applications": (),
    "token enroll": ("indexer", "--task", "labels", "--proof", PROOF),
    "ledger could-load": ("legal",), "ledger export": (NEW,), "ledger log": (),
    "ledger request": ("0" * 32,), "ledger show": ("0",), "ledger state": (), "ledger verify": (),
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
    assert desk.type("logout").code == 0
