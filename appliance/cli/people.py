"""What everyone needs: a key of one's own, and completion in one's shell."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, group, keyed, reads, shares, signs
from appliance.cli.support.output import print_facts, print_json, print_line, print_table, say
from appliance.cli.support.signing import receipt_value, sign_and_submit, tell
from appliance.cli.support.times import END_HELP, parse_end
from appliance.errors import BadInput, Conflict

if TYPE_CHECKING:
    from appliance.formats.signatures.keys import Signer

_FILE = click.Path(path_type=Path)


@group("key", example="appliance key new ada.key")
def key() -> None:
    """A person's own key: make it, show it, prove it, rotate it, revoke it. The service never sees it."""


@key.command("new", example="appliance key new ada.key\nappliance key new ada.key --passphrase-file ada.pass")
@click.argument("file", type=_FILE)
@keyed
@click.pass_obj
def key_new(caller: Caller, file: Path) -> None:
    """Make an encrypted key in FILE, and its public key in the same folder: ada.key and ada.pub.

    The passphrase, of 8 characters or more, comes from a prompt, a descriptor or a 0600 file. It cannot be recovered.
    """
    from appliance.client.support.keys import MIN_PASSPHRASE_CHARACTERS, check_passphrase, create_key, public_path

    for path in (file, public_path(file)):
        if path.exists():
            raise Conflict(f"key file, {path}: expected a name that is free, got an existing file")
    passphrase = caller.ask_passphrase(
        f"New passphrase for {file} ({MIN_PASSPHRASE_CHARACTERS} characters or more)", confirm=True
    )
    check_passphrase(passphrase)
    signer = create_key(file, passphrase)
    if caller.json:
        print_json({"key": str(file), "public_key": str(public_path(file)), "keyid": signer.keyid})
        return
    print_facts([("key", file), ("public key", public_path(file)), ("key id", signer.keyid)])
    say(f"next: prove that it is yours: appliance key prove --key {file} --as NAME --output NAME.proof")


@key.command("show", example="appliance key show ada.key")
@click.argument("file", type=_FILE, required=False)
@keyed
@click.pass_obj
def key_show(caller: Caller, file: Path | None) -> None:
    """Print the public key and its id, of a key file or of a public key in PEM. Needs no passphrase."""
    from appliance.client.support.keys import read_public_key
    from appliance.formats.signatures.keys import encode_spki_pem, keyid_of

    path = file or caller.key_file
    spki = read_public_key(path)
    pem = encode_spki_pem(spki).decode("ascii")
    if caller.json:
        print_json({"keyid": keyid_of(spki), "public_key": pem})
        return
    print_facts([("key id", keyid_of(spki))])
    print_line(pem.rstrip("\n"))


@key.command("prove", example="appliance key prove --key ada.key --as ada --output ada.proof")
@click.option("--origin", metavar="LOG", help="The log's origin. Default: the service is asked.")
@click.option("--output", type=_FILE, metavar="FILE", help="Write the proof to a new file instead of stdout.")
@keyed
@click.pass_obj
def key_prove(caller: Caller, origin: str | None, output: Path | None) -> None:
    """Sign that this key is yours, under the name --as, for one appliance.

    Hand the proof to an administrator, who enrols you with it, and read your key id out to them.
    """
    from appliance.client.people import prove_possession
    from appliance.client.support.files import write_new

    name, log = caller.signer, origin or caller.claimed.origin
    signer = caller.unlock("to prove that the key is yours")
    proof = prove_possession(log, name, signer) + b"\n"
    say(f"{name} proves the key {signer.keyid} for the log {log}.")
    if output is None:
        print_line(proof.decode("utf-8").rstrip("\n"))
        return
    write_new(output, proof, "proof of possession", 0o644)
    if caller.json:
        print_json({"proof": str(output), "principal": name, "keyid": signer.keyid, "origin": log})
    say(
        f"next: an administrator types: appliance principal enroll {name} --proof {output} "
        "--printed-name TEXT --role ROLE",
        f"or, if it is an application's key: the unit {name} types: appliance token enroll NAME --task TASK "
        f"--proof {output}",
    )


@key.command("rotate", example="appliance key rotate ada2.key --key ada.key --as ada --old-until 7d")
@click.argument("new", type=_FILE, metavar="NEW")
@click.option(
    "--old-until",
    metavar="TIME",
    help=f"Until when the old key also signs: {END_HELP} Default: as long as policy allows.",
)
@click.option(
    "--new-passphrase-file", type=_FILE, metavar="FILE", help="The passphrase of NEW. Default: that of the old key."
)
@signs
@click.pass_obj
def key_rotate(caller: Caller, new: Path, old_until: str | None, new_passphrase_file: Path | None) -> None:
    """Replace your own key by the one in NEW, which is made if it does not exist. Signed with the old key.

    What the old key signed stays valid.
    """
    from appliance.client.people import propose_rotation

    name, until = caller.signer, end_of_overlap(caller, old_until)
    signer = _new_key(caller, new, new_passphrase_file)
    receipt = sign_and_submit(caller, propose_rotation(caller.about, name, signer, until))
    if caller.json:
        print_json({**receipt_value(receipt), "key": str(new), "keyid": signer.keyid, "old_until": until})
    else:
        print_facts([("done", f"{name} has another key"), ("entry", receipt.index), ("key id", signer.keyid)])
    say(f"From now on sign with --key {new} (or APPLIANCE_KEY); {caller.key_file} signs until {until} and no longer.")
    if caller.profile is not None and caller.profile.key == caller.key_file:
        say(f"next: have the new one remembered: appliance login {name} --key {new}")


def end_of_overlap(caller: Caller, text: str | None) -> str:
    """Until when an old key signs beside the new one: as asked, or as long as policy lets it."""
    from appliance.domain.core.names import add_seconds
    from appliance.formats.core.timestamp import encode_time

    now = datetime.now(UTC)
    if text is not None:
        return parse_end(text, "old until", now)
    return add_seconds(encode_time(now), int(caller.about.parameters["key_overlap_s"]))


def _new_key(caller: Caller, path: Path, passphrase_file: Path | None) -> Signer:
    """The key in the file, or a new one written there. It belongs to a person only once an order was accepted."""
    from appliance.client.support.keys import create_key, open_key, passphrase_of_file

    if path.resolve() == caller.key_file.resolve():
        raise BadInput(f"new key, {path}: expected a file of its own, got that of the old key")
    if passphrase_file is None and caller.passphrase_fd is not None:
        raise BadInput("passphrase of the new key: expected --new-passphrase-file beside --passphrase-fd, got none")
    exists = path.exists()

    def ask() -> bytes:
        if passphrase_file is not None:
            return passphrase_of_file(passphrase_file)
        return caller.ask_passphrase(
            f"{'Passphrase of' if exists else 'New passphrase for'} {path}", confirm=not exists
        )

    again = caller.again if passphrase_file is None else lambda tries: False
    return open_key(path, ask, again) if exists else create_key(path, ask())


@key.command(
    "revoke",
    example=(
        "appliance key revoke ada\n"
        "appliance key revoke ada 1f2e3d4c --since-entry 120 --reason 'the laptop was stolen on Monday'"
    ),
)
@click.argument("principal", metavar="NAME")
@click.argument("keyid", required=False)
@click.option(
    "--since-entry",
    "since",
    type=click.IntRange(1),
    metavar="ENTRY",
    help="Its signatures in this entry or later become invalid.",
)
@click.option("--reason", metavar="TEXT", help="Why, in your words; can be erased later.")
@signs
@click.pass_obj
def key_revoke(caller: Caller, principal: str, keyid: str | None, since: int | None, reason: str | None) -> None:
    """End a key at once: your own, or as an administrator any key. This cannot be undone.

    KEYID may be cut after 6 digits, be a passkey's name, and be left out where NAME has had one key only. With
    --since-entry, sign-offs and releases that it signed from that entry on no longer count, and adapters that rest on
    them stop answering.
    """
    from appliance.client.people import find_keyid, keys_of, propose_key_revocation

    keys = keys_of(caller.reading(), principal)
    found = find_keyid(keys, keyid)
    proposal = propose_key_revocation(caller.about, caller.signer, principal, found, since, reason)
    receipt = sign_and_submit(caller, proposal)
    others = [key for key in keys if key["keyid"] != found and key["revoked"] is None]
    then = [] if others else [f"{principal} has no key left; two administrators enrol a new one: principal replace-key"]
    tell(caller, receipt, f"the key {found[:19]} of {principal} is revoked", then)


@key.command("list", example="appliance key list ada")
@click.argument("principal", metavar="NAME")
@reads
@click.pass_obj
def key_list(caller: Caller, principal: str) -> None:
    """Every key that a person or a unit ever had, and what became of it."""
    from appliance.client.people import keys_of

    keys = keys_of(caller.reading(), principal)
    if caller.json:
        print_json(keys)
        return
    print_table(
        ("key id", "passkey", "enrolled", "valid until", "revoked", "counts before"),
        [
            (k["keyid"], k.get("passkey", {}).get("name"), k["enrolled"], k["until"], k["revoked"], k["distrusted"])
            for k in keys
        ],
    )


@command("completion", example='eval "$(appliance completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@shares
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell, for its start-up file to evaluate."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise BadInput(f"completion, shell: expected bash, zsh or fish, got {shell}")
    root = context.find_root()
    print_line(found(root.command, {}, "appliance", "_APPLIANCE_COMPLETE").source())
