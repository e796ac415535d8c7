"""Witnesses: they watch a log from a machine of their own, and cosign what only grew; what the appliance carries there
and takes back.
"""

from __future__ import annotations

from pathlib import Path

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, keyed, reads, shares
from appliance.cli.support.output import print_bytes, print_facts, print_json, print_line, print_table, say

_FILE = click.Path(path_type=Path)
_NAME = click.option("--name", required=True, metavar="NAME", help="The witness's name, such as witness.example/w1.")


@group("witness", example="appliance witness vkey w1.key --name witness.example/w1")
def witness() -> None:
    """Watch a log: vkey and cosign on the witness's own machine; request, accept and list at the appliance."""


@witness.command("vkey", example="appliance witness vkey w1.key --name witness.example/w1")
@click.argument("file", type=_FILE)
@_NAME
@shares
@click.pass_obj
def vkey(caller: Caller, file: Path, name: str) -> None:
    """Print the vkey by which a policy names this witness. Needs no passphrase.

    FILE is the witness's key, made by `appliance key new`, or its public key in PEM.
    """
    from appliance.client.support.keys import read_public_key
    from appliance.formats.log.cosignature import witness_vkey_of

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
@click.argument("request", type=_FILE)
@_NAME
@click.option("--log", required=True, metavar="LOG", help="The log's vkey, or a trust file that names it.")
@click.option("--state", required=True, type=_FILE, metavar="FILE", help="What this witness saw last.")
@click.option("--output", type=_FILE, metavar="FILE", help="Write the cosigned checkpoint here instead of to stdout.")
@click.option("--first", is_flag=True, help="Create the state file, and trust the log as it is now.")
@keyed
@click.pass_obj
def cosign(caller: Caller, request: Path, name: str, log: str, state: Path, output: Path | None, first: bool) -> None:
    """Cosign the checkpoint of REQUEST if it continues what was seen last; otherwise refuse, and say why.

    The state is on disk before the cosignature is output. Do not replace a lost state: a witness without it would
    cosign a second history.
    """
    from appliance import witness as program

    who = program.Witness(name, caller.unlock("to cosign"), program.load_log_key(log))
    cosigned = program.cosign_file(request, state, output, who, first=first)
    say(*program.describe(cosigned, who))
    if caller.json:
        print_json({"checkpoint": cosigned.decode("utf-8"), "vkey": who.vkey})
    elif output is None:
        print_bytes(cosigned)


@witness.command("request", example="appliance witness request /mnt/stick/request --witness witness.example/w1")
@click.argument("file", type=_FILE)
@click.option("--witness", "name", metavar="NAME", help="The witness to ask. Default: the policy's only witness.")
@click.option("--old", type=click.IntRange(0), metavar="SIZE", help="The size that it saw last, as its refusal says.")
@reads
@click.pass_obj
def request_cosignature(caller: Caller, file: Path, name: str | None, old: int | None) -> None:
    """Write what a witness is asked to cosign: the log as it is now, proved from what the witness saw last.

    An existing FILE is replaced, after its checkpoint was checked.
    """
    from appliance.client.retention import only_witness, write_request

    door = caller.reading()
    wanted = write_request(door, caller.anchor, name or only_witness(caller.about), old, file)
    if caller.json:
        print_json({"file": str(file), "witness": wanted.witness, "old": wanted.old, "size": wanted.size})
    else:
        print_facts(
            [("request", file), ("witness", wanted.witness), ("from size", wanted.old), ("to size", wanted.size)]
        )
    first = " --first" if wanted.old == 0 else ""
    say(f"next: on the witness's machine: appliance-witness cosign {file} --name {wanted.witness} …{first}")
    say("then here, with what it wrote: appliance witness accept FILE")


@witness.command("accept", example="appliance witness accept /mnt/stick/cosigned")
@click.argument("file", type=_FILE)
@reads
@click.pass_obj
def accept(caller: Caller, file: Path) -> None:
    """Take in the checkpoint that a witness cosigned: it becomes an entry, and is kept in a file outside the database.

    Fails with 6 and the code `behind` when the witness has seen entries that this log does not hold, or `fork` when it
    saw another history: from then on no adapter is admitted. Call an auditor.
    """
    from appliance.client.retention import hand_in

    entry = hand_in(caller.reading(), file)
    if caller.json:
        print_json(entry)
        return
    print_facts([(label, entry[label]) for label in ("witness", "size", "time")] + [("entry", entry["index"])])


@witness.command("list", example="appliance witness list")
@reads
@click.pass_obj
def list_witnesses(caller: Caller) -> None:
    """What each witness of the policy has cosigned last, and how many entries came after."""
    from appliance.client.retention import witnesses

    size, rows = witnesses(caller.reading(), caller.about)
    if caller.json:
        print_json({"log_size": size, "witnesses": rows})
        return
    print_table(
        ("witness", "in the policy", "size", "time", "entry", "behind"),
        [
            (r["name"], "yes" if r["counts"] else "no longer", r["size"], r["time"], r["index"], r["behind"])
            for r in rows
        ],
    )
    rules = caller.about.parameters
    days = int(rules["witness_lifetime_s"]) / 86_400
    say(f"The log has {size} entries. Admission asks for {rules['witness_quorum']} cosignatures of {days:g} days.")
