"""Commands for keys, shell completion, log keys, texts and legal holds."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import (
    PATH,
    REASON,
    command,
    with_common_options,
    with_key_options,
    with_session_options,
    with_signing_options,
)
from appliance.cli.support.groups import hold, key, log_key, post_quantum, text
from appliance.cli.support.output import (
    END_HELP,
    parse_end,
    print_facts,
    print_json,
    print_line,
    print_result,
    print_rows,
    say,
)
from appliance.cli.support.signing import order_action, print_outcome, sign_and_submit
from appliance.errors import ApplianceError, BadInput

if TYPE_CHECKING:
    from appliance.formats.signatures.keys import Signer


@key.command("new", example="appliance key new ada.key\nappliance key new ada.key --passphrase-file ada.pass")
@click.argument("file", type=PATH)
@with_key_options
def key_new(caller: Caller, file: Path) -> None:
    """Make an encrypted key in FILE, and its public key in the same folder: ada.key and ada.pub.

    The passphrase has 8 characters or more. It comes from a prompt, a descriptor or a 0600 file. It cannot be
    recovered.
    """
    from appliance.client.support.files import check_free
    from appliance.client.support.profile import MIN_PASSPHRASE_CHARACTERS, check_passphrase, create_key, public_path

    for path in (file, public_path(file)):
        check_free(path, "key file")
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
@click.argument("file", type=PATH, required=False)
@with_key_options
def key_show(caller: Caller, file: Path | None) -> None:
    """Print the public key, its id and its short code, from a key file or a public key in PEM. Needs no passphrase."""
    from appliance.client.support.profile import read_public_key
    from appliance.formats.core.digest import short_code
    from appliance.formats.signatures.keys import encode_spki_pem, keyid_of

    path = file or caller.key_file
    spki = read_public_key(path)
    keyid, pem = keyid_of(spki), encode_spki_pem(spki).decode("ascii")
    if caller.json:
        print_json({"keyid": keyid, "public_key": pem, "short_code": short_code(keyid)})
        return
    print_facts([("key id", keyid), ("short code", short_code(keyid))])
    print_line(pem.rstrip("\n"))


@key.command("prove", example="appliance key prove --key ada.key --as ada --output ada.proof")
@click.option("--origin", metavar="LOG", help="The log's origin. Default: the service is asked.")
@click.option("--output", type=PATH, metavar="FILE", help="Write the proof to a new file instead of stdout.")
@with_key_options
def key_prove(caller: Caller, origin: str | None, output: Path | None) -> None:
    """Sign a proof that this key is yours, under the name --as, for one appliance.

    Give the proof to an administrator, who enrols you with it, and read your key id out to them.
    """
    from appliance.client.people import prove_possession
    from appliance.client.support.files import check_free, write_new

    name = caller.signer
    if output is not None:
        check_free(output, "proof of possession")
    log = origin or caller.about_without_session.origin
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
        f"next: an administrator types: appliance principal enrol {name} --proof {output} "
        "--printed-name TEXT --role ROLE",
        f"or, if it is an application's key: the unit {name} types: appliance token enrol NAME "
        f"--served-model MODEL --proof {output}",
    )


@key.command("rotate", example="appliance key rotate ada2.key --key ada.key --as ada --old-until 7d")
@click.argument("new", type=PATH, metavar="NEW")
@click.option(
    "--old-until",
    metavar="TIME",
    help=f"Until when the old key also signs: {END_HELP} Default: as long as policy allows.",
)
@click.option(
    "--new-passphrase-file", type=PATH, metavar="FILE", help="The passphrase of NEW. Default: that of the old key."
)
@with_signing_options
def key_rotate(caller: Caller, new: Path, old_until: str | None, new_passphrase_file: Path | None) -> None:
    """Replace your own key with the one in NEW, which is made if it does not exist. Signed with the old key.

    What the old key signed stays valid.
    """
    from appliance.client.people import prove_possession
    from appliance.domain.core.lookup import UnprovenValue

    name, until = caller.signer, end_of_overlap(caller, old_until)
    signer = _new_key(caller, new, new_passphrase_file)
    documents = {"possession": prove_possession(caller.about.origin, name, signer)}
    values = {"old_until": until if old_until else UnprovenValue(until)}
    receipt = sign_and_submit(caller, caller.propose("rotate-key", values, documents=documents))
    value = {**asdict(receipt), "key": str(new), "keyid": signer.keyid, "old_until": until}
    facts = [("done", f"{name} has another key"), ("entry", receipt.index), ("key id", signer.keyid)]
    print_result(caller.json, value, facts)
    say(f"From now on sign with --key {new} (or APPLIANCE_KEY); {caller.key_file} signs until {until} and no longer.")
    if caller.profile is not None and caller.profile.key == caller.key_file:
        say(f"next: have the new one remembered: appliance login {name} --key {new}")


def end_of_overlap(caller: Caller, text: str | None) -> str:
    """Return the end of an old key beside the new one: as requested, or the latest that policy allows."""
    from appliance.domain.core.names import add_seconds
    from appliance.formats.core.timestamp import encode_time

    now = datetime.now(UTC)
    if text is not None:
        return parse_end(text, "old until", now)
    return add_seconds(encode_time(now), caller.about.parameters.key_overlap_s)


def _new_key(caller: Caller, path: Path, passphrase_file: Path | None) -> Signer:
    """Return the key in the file, or make one there. It belongs to a person only once an order was accepted."""
    from appliance.client.support.profile import create_key, open_key, passphrase_of_file

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

    can_try_again = caller.can_try_passphrase_again if passphrase_file is None else lambda tries: False
    return open_key(path, ask, can_try_again) if exists else create_key(path, ask())


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
@REASON
@with_signing_options
def key_revoke(caller: Caller, principal: str, keyid: str | None, since: int | None, reason: str | None) -> None:
    """Revoke a key at once: your own, or as an administrator any key. This cannot be undone.

    KEYID can be its first 6 digits or more, or a passkey's name. It can be left out if NAME has had only one key. With
    --since-entry, approvals and releases that the key signed from that entry on become invalid, and adapters that
    depend on them are no longer served.
    """
    from appliance.client.people import find_keyid, keys_of
    from appliance.domain.core.lookup import UnprovenValue

    keys = keys_of(caller.reading(), principal)
    found = find_keyid(keys, keyid)
    chosen = found if keyid == found else UnprovenValue(found)
    values = {"principal": principal, "keyid": chosen, "since": since}
    others = [key for key in keys if key.keyid != found and key.revoked is None]
    then = [] if others else [f"{principal} has no key left; two administrators enrol a new one: principal replace-key"]
    done = f"the key {found[:19]} of {principal} is revoked"
    order_action(caller, "revoke-key", values, done, then, texts={"reason": reason})


@key.command("list", example="appliance key list ada")
@click.argument("principal", metavar="NAME")
@with_session_options
def key_list(caller: Caller, principal: str) -> None:
    """List every key that a person or a unit ever had, and its state."""
    from appliance.client.people import keys_of

    print_rows(
        caller.json,
        keys_of(caller.reading(), principal),
        ("key id", "passkey", "enrolled", "valid until", "revoked", "valid before"),
        lambda key: (key.keyid, key.passkey and key.passkey.name, key.enrolled, key.until, key.revoked, key.distrusted),
    )


@command("completion", example='eval "$(appliance completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@with_common_options
def completion(caller: Caller, shell: str) -> None:
    """Print the completion script of a shell, for its start-up file to evaluate."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise BadInput(f"completion, shell: expected bash, zsh or fish, got {shell}")
    root = click.get_current_context().find_root()
    print_line(found(root.command, {}, "appliance", "_APPLIANCE_COMPLETE").source())


@log_key.command("rotate", example="appliance log-key rotate\nappliance log-key rotate --old-until 30d")
@click.option(
    "--old-until", metavar="TIME", help="Until when the old key also signs. Default: as long as policy allows."
)
@click.option("--post-quantum", is_flag=True, help="Replace the key of ML-DSA-65 in place of that of Ed25519.")
@with_signing_options
def rotate(caller: Caller, old_until: str | None, post_quantum: bool) -> None:
    """Have the log's checkpoints signed by a new key, which the service makes and keeps. Needs two administrators.

    Until TIME the old key signs, too: 2026-11-24, a whole time in UTC, 90m, 2h, 7d, 4w from now, or now for an
    immediate end. Give witnesses that time to switch, since they identify a log by its key.
    """
    from appliance.client.retention import next_log_key
    from appliance.domain.core.lookup import UnprovenValue

    until = end_of_overlap(caller, old_until)
    vkey = next_log_key(caller.reading(), post_quantum=post_quantum)
    values = {"log_key": UnprovenValue(vkey), "old_until": until if old_until else UnprovenValue(until)}
    receipt = sign_and_submit(caller, caller.propose("rotate-log-key", values), successor=vkey)
    print_outcome(caller, receipt, "the log has another key", after_rotation(vkey, until))


def after_rotation(vkey: str, old_until: str) -> list[str]:
    """Return the instructions for people once the log has a new key. Witnesses verify no key of ML-DSA-65."""
    from appliance.formats.core.timestamp import encode_time
    from appliance.formats.log.note import is_post_quantum

    if is_post_quantum(vkey):
        return [_TRUST_FILES_STAY]
    when = f"before {old_until}" if old_until > encode_time(datetime.now(UTC)) else "now"
    return [
        _TRUST_FILES_STAY,
        f"Two of you tell each witness the new key {when}, not by the stick alone. From then on they type:",
        f"appliance-witness cosign REQUEST --log '{vkey}' and the rest as before",
    ]


_TRUST_FILES_STAY = "Trust files stay valid: appliance-verify follows the log from its first key to this one."


@post_quantum.command("add", example="appliance post-quantum add")
@with_signing_options
def add_post_quantum_keys(caller: Caller) -> None:
    """Add two keys of ML-DSA-65, which the service makes and keeps. Needs two administrators.

    From then on each checkpoint of the log, and each adapter sealed later, needs a second signature, by one of these
    keys. This cannot be undone. Witnesses and public programs still verify the keys of Ed25519 and ECDSA. Each host
    that verifies then needs cryptography 50 or later.
    """
    from appliance.client.retention import make_post_quantum_keys
    from appliance.domain.core.lookup import UnprovenValue

    made = make_post_quantum_keys(caller.reading())
    keys = {"log_key": UnprovenValue(made.log_key), "adapter_key": UnprovenValue(made.adapter_key)}
    done, then = "the log has post-quantum keys", after_post_quantum_keys(made.log_key)
    order_action(caller, "add-post-quantum-keys", keys, done, then, successor=made.log_key)


def after_post_quantum_keys(vkey: str) -> list[str]:
    """Return the instructions for people once the log has post-quantum keys."""
    return [
        _TRUST_FILES_STAY,
        "Hosts that load exported adapters need this in their trust file, from a source that you trust:",
        f'"postQuantumLogKey":"{vkey}"',
    ]


def name_backups(caller: Caller, entry: int, erased: int) -> list[str]:
    """Return a line that names the backups that may have a text of this entry, which a later entry erased."""
    from appliance.api.operations import BackupRow

    try:
        rows = caller.reading().get("/v1/backups", list[BackupRow])
    except ApplianceError as error:
        return [f"Earlier backups have the text. They could not be listed: {error.message}"]
    names = [row.name for row in rows if row.problem is not None or entry < row.entries <= erased]
    if not names:
        return []
    remove = f"Remove them: appliance backup remove {rows[0].folder} NAME; or restore them with --erasures only."
    return [f"Backups that may still have the text: {', '.join(names)}. {remove}"]


@text.command(
    "erase",
    example="appliance text erase --printed-name-of mallory\nappliance text erase --entry 41 --field reason",
)
@click.option("--printed-name-of", "name", metavar="NAME", help="The printed name of this person or unit.")
@click.option("--entry", type=click.IntRange(0), metavar="ENTRY", help="A text of this entry.")
@click.option("--field", metavar="FIELD", help="Name of the text, such as reason, meaning, owner or message.")
@with_signing_options
def erase(caller: Caller, name: str | None, entry: int | None, field: str | None) -> None:
    """Erase a text permanently. The log still verifies, as it has only a commitment. Needs two administrators.

    Refused while a retention period or a legal hold applies. A printed name is kept while its owner is enrolled, and
    for some time after.
    """
    from appliance.client.retention import find_printed_name, find_text
    from appliance.domain.core.lookup import OrderInput

    if (name is None) == (entry is None):
        raise BadInput(f"text: expected --printed-name-of or --entry, got {'neither' if name is None else 'both'}")
    connection = caller.reading()
    if name is not None:
        found = find_printed_name(connection, caller.anchor, name)
    else:
        assert entry is not None
        found = find_text(connection, caller.anchor, entry, field)
    description = f"the {found.field.replace('_', ' ')} of entry {found.entry}"
    # The text is sent with the order, so that the second administrator can read what is erased.
    beside = () if found.disclosure is None else (found.disclosure,)
    proposal = caller.propose_input("erase", OrderInput({"commitment": found.commitment}, disclosures=beside))
    receipt = sign_and_submit(caller, proposal, [f"This is {description}. Copies that people made are not reached."])
    then = name_backups(caller, found.entry, receipt.index) if receipt.outcome == "success" else []
    print_outcome(caller, receipt, f"{description} is erased", then)


@hold.command("place", example="appliance hold place dataset:clauses@1 --reason 'case 12/2026'")
@click.argument("subject")
@REASON
@with_signing_options
def place(caller: Caller, subject: str, reason: str | None) -> None:
    """Keep every text about SUBJECT, such as principal:ada or adapter:clauses@1. For administrators and auditors."""
    done = f"texts about {subject} are kept"
    order_action(caller, "place-hold", {"subject": subject}, done, texts={"reason": reason})


@hold.command("lift", example="appliance hold lift dataset:clauses@1")
@click.argument("subject")
@REASON
@with_signing_options
def lift(caller: Caller, subject: str, reason: str | None) -> None:
    """End the hold on SUBJECT. Needs two administrators."""
    done = f"there is no hold on {subject}"
    order_action(caller, "lift-hold", {"subject": subject}, done, texts={"reason": reason})


@hold.command("list", example="appliance hold list")
@with_session_options
def list_holds(caller: Caller) -> None:
    """List every valid hold, and who placed it."""
    from appliance.domain.core.records.site import Hold

    print_rows(
        caller.json,
        caller.reading().get("/v1/holds", list[Hold]),
        ("subject", "by", "entry"),
        lambda hold: (hold.subject, hold.signer, hold.index),
        empty="No hold is placed. Place one with: appliance hold place",
    )
