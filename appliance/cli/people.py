"""What everyone needs: a key of one's own, and completion in one's shell."""

from __future__ import annotations

from pathlib import Path

import click

from appliance.cli.caller import Caller
from appliance.cli.command import command, group, keyed, shares
from appliance.cli.output import print_facts, print_json, print_line, say
from appliance.errors import BadInput, Conflict

_FILE = click.Path(path_type=Path)


@group("key", example="appliance key new ada.key")
def key() -> None:
    """A person's own key: make it, show it, prove it. The service never sees it."""


@key.command("new", example="appliance key new ada.key\nappliance key new ada.key --passphrase-file ada.pass")
@click.argument("file", type=_FILE)
@keyed
@click.pass_obj
def key_new(caller: Caller, file: Path) -> None:
    """Make an encrypted key in FILE, and its public key beside it: ada.key and ada.pub.

    The passphrase, of 8 characters or more, comes from a prompt, a descriptor or a 0600 file. Nobody can recover it.
    """
    from appliance.client.keys import check_passphrase, create_key, public_path

    for path in (file, public_path(file)):
        if path.exists():
            raise Conflict(f"key file, {path}: expected a name that is free, got an existing file")
    passphrase = caller.ask_passphrase(f"New passphrase for {file}", confirm=True)
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
    from appliance.client.keys import read_public_key
    from appliance.formats.keys import encode_spki_pem, keyid_of

    path = file or caller.key_file
    spki = read_public_key(path)
    pem = encode_spki_pem(spki).decode("ascii")
    if caller.json:
        print_json({"keyid": keyid_of(spki), "public_key": pem})
        return
    print_facts([("key id", keyid_of(spki))])
    print_line(pem.rstrip("\n"))


@key.command("prove", example="appliance key prove --key ada.key --as ada --output ada.proof")
@click.option("--origin", metavar="LOG", help="The log's origin; asked of the service unless it is named.")
@click.option("--output", type=_FILE, help="Write the proof to a new file instead of stdout.")
@keyed
@click.pass_obj
def key_prove(caller: Caller, origin: str | None, output: Path | None) -> None:
    """Sign that this key is yours, under the name --as, for one appliance.

    Hand the proof to an administrator, who enrols you with it, and read your key id out to them.
    """
    from appliance.client.files import write_new
    from appliance.client.people import prove_possession

    name, log = caller.signer, origin or caller.about.origin
    signer = caller.unlocked
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
        "--printed-name TEXT --role ROLE"
    )


@command("completion", example='eval "$(appliance completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@shares
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell, to be evaluated in its start-up file."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise BadInput(f"completion, shell: expected bash, zsh or fish, got {shell}")
    root = context.find_root()
    print_line(found(root.command, {}, "appliance", "_APPLIANCE_COMPLETE").source())
