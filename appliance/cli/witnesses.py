"""Commands for witnesses, who cosign the log from their own machines, and for the files that go between them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, with_common_options, with_key_options, with_session_options
from appliance.cli.support.groups import witness
from appliance.cli.support.output import print_bytes, print_json, print_line, print_result, print_table, say

if TYPE_CHECKING:
    from appliance.witness import Witness

_NAME = click.option("--name", required=True, metavar="NAME", help="The witness's name, such as witness.example/w1.")


@witness.command("vkey", example="appliance witness vkey w1.key --name witness.example/w1")
@click.argument("file", type=PATH)
@_NAME
@with_common_options
def vkey(caller: Caller, file: Path, name: str) -> None:
    """Print the vkey by which a policy names this witness. Needs no passphrase.

    FILE is the witness's key, made by `appliance key new`, or its public key in PEM.
    """
    from appliance.client.support.profile import read_public_key
    from appliance.formats.log.checkpoint import witness_vkey_of

    text = witness_vkey_of(name, read_public_key(file))
    if caller.json:
        print_json({"name": name, "vkey": text})
        return
    print_line(text)


@witness.command(
    "cosign",
    example=(
        "appliance witness cosign request --key w1.key --name witness.example/w1 --log trust.json \\\n"
        "  --state bank.state --output cosigned"
    ),
)
@click.argument("request", type=PATH)
@_NAME
@click.option("--log", required=True, metavar="LOG", help="The log's vkey, or a trust file that names it.")
@click.option("--state", required=True, type=PATH, metavar="FILE", help="What this witness saw last.")
@click.option("--output", type=PATH, metavar="FILE", help="Write the cosigned checkpoint here instead of to stdout.")
@click.option("--first", is_flag=True, help="Create the state file, and trust the log as it is now.")
@with_key_options
def cosign(caller: Caller, request: Path, name: str, log: str, state: Path, output: Path | None, first: bool) -> None:
    """Cosign the checkpoint in REQUEST if it continues the last one seen. Otherwise refuse, and say why.

    The state is on disk before the cosignature is output. Do not replace a lost state file: a witness without it would
    cosign a second history.
    """
    from appliance import witness as program

    who = program.Witness(name, caller.unlock("to cosign"), program.load_log_key(log))
    _print_cosigned(caller, program.cosign_file(request, state, output, who, first=first), who, output)


def _print_cosigned(caller: Caller, cosigned: bytes, who: Witness, output: Path | None) -> None:
    from appliance import witness as program

    say(*program.describe(cosigned, who))
    if caller.json:
        print_json({"checkpoint": cosigned.decode("utf-8"), "vkey": who.vkey})
    elif output is None:
        print_bytes(cosigned)


@witness.command(
    "accept-restoration",
    example=(
        "appliance witness accept-restoration restoration.json --key w1.key --name witness.example/w1 \\\n"
        "  --log trust.json --state bank.state --output cosigned"
    ),
)
@click.argument("restoration", type=PATH)
@_NAME
@click.option("--log", required=True, metavar="LOG", help="The log's vkey, or a trust file that names it.")
@click.option("--state", required=True, type=PATH, metavar="FILE", help="What this witness saw last.")
@click.option(
    "--administrator-key",
    "administrators",
    metavar="KEYID",
    multiple=True,
    help="The key id of an administrator whom you trust. Repeat it. Default: those of the trust file.",
)
@click.option("--single-administrator", is_flag=True, help="One signature is enough: the site has one administrator.")
@click.option("--output", type=PATH, metavar="FILE", help="Write the cosigned checkpoint here instead of to stdout.")
@with_key_options
def accept_restoration(
    caller: Caller,
    restoration: Path,
    name: str,
    log: str,
    state: Path,
    administrators: tuple[str, ...],
    single_administrator: bool,
    output: Path | None,
) -> None:
    """Step back to a restored log's checkpoint, as two administrators ordered in RESTORATION, and cosign it.

    The checkpoint that was seen last stays beside the state file. Every other shorter log is still refused.
    """
    from appliance import witness as program

    trusted = program.list_administrators(log, administrators)
    who = program.Witness(name, caller.unlock("to cosign"), program.load_log_key(log))
    signatures = 1 if single_administrator else 2
    cosigned = program.accept_restoration(restoration, state, output, who, trusted, signatures=signatures)
    _print_cosigned(caller, cosigned, who, output)


@witness.command("request", example="appliance witness request /mnt/stick/request --witness witness.example/w1")
@click.argument("file", type=PATH)
@click.option("--witness", "name", metavar="NAME", help="The witness to ask. Default: the policy's only witness.")
@click.option("--old", type=click.IntRange(0), metavar="SIZE", help="The size that it saw last, as its refusal says.")
@with_session_options
def request_cosignature(caller: Caller, file: Path, name: str | None, old: int | None) -> None:
    """Write a request for a witness: the log as it is now, with a proof from the size that the witness saw last.

    An existing FILE is replaced after its checkpoint was checked.
    """
    from appliance.client.retention import only_witness, write_request

    connection = caller.reading()
    wanted = write_request(connection, caller.anchor, name or only_witness(caller.about), old, file)
    print_result(
        caller.json,
        {"file": str(file), "witness": wanted.witness, "old": wanted.old, "size": wanted.size},
        [("request", file), ("witness", wanted.witness), ("from size", wanted.old), ("to size", wanted.size)],
    )
    first = " --first" if wanted.old == 0 else ""
    say(f"next: on the witness's machine: appliance-witness cosign {file} --name {wanted.witness} …{first}")
    say("then here, with what it wrote: appliance witness accept FILE")


@witness.command("accept", example="appliance witness accept /mnt/stick/cosigned")
@click.argument("file", type=PATH)
@with_session_options
def accept(caller: Caller, file: Path) -> None:
    """Accept a checkpoint that a witness cosigned. It becomes an entry, and is kept in a file outside the database.

    Fails with exit code 6 and the code `log-truncated` if the witness has seen entries that are missing from this log,
    or `split-view` if it has seen another history. From then on no adapter is admitted. Call an auditor.
    """
    from appliance.client.retention import submit_cosignature

    entry = submit_cosignature(caller.reading(), file)
    facts = [("witness", entry.witness), ("size", entry.size), ("time", entry.time), ("entry", entry.index)]
    print_result(caller.json, entry, facts)


@witness.command("list", example="appliance witness list")
@with_session_options
def list_witnesses(caller: Caller) -> None:
    """List the last cosignature of each witness in the policy, and how many entries came after it."""
    from appliance.client.retention import witnesses

    size, rows = witnesses(caller.reading(), caller.about)
    if caller.json:
        print_json({"log_size": size, "witnesses": rows})
        return
    print_table(
        ("witness", "in the policy", "size", "time", "entry", "behind"),
        [(r.name, "yes" if r.counts else "no longer", r.size, r.time, r.index, r.behind) for r in rows],
        empty="No witness is in the policy, and none has cosigned.",
    )
    rules = caller.about.parameters
    days = rules.witness_lifetime_s / 86_400
    say(f"The log has {size} entries. Admission asks for {rules.witness_quorum} cosignatures of {days:g} days.")
