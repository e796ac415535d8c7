"""Witnesses: they watch a log from a machine of their own, and cosign what only grew."""

from __future__ import annotations

from pathlib import Path

import click

from appliance.cli.caller import Caller
from appliance.cli.command import group, keyed, shares
from appliance.cli.output import print_bytes, print_json, print_line, say

_FILE = click.Path(path_type=Path)
_NAME = click.option("--name", required=True, metavar="NAME", help="The witness's name, such as witness.example/w1.")


@group("witness", example="appliance witness vkey w1.key --name witness.example/w1")
def witness() -> None:
    """Watch a log from another machine, and cosign its checkpoints. Needs no service."""


@witness.command("vkey", example="appliance witness vkey w1.key --name witness.example/w1")
@click.argument("file", type=_FILE)
@_NAME
@shares
@click.pass_obj
def vkey(caller: Caller, file: Path, name: str) -> None:
    """Print the vkey by which a policy names this witness. Needs no passphrase.

    FILE is the witness's key, made by `appliance key new`, or its public key in PEM.
    """
    from appliance.client.keys import read_public_key
    from appliance.formats.cosignature import witness_vkey_of

    text = witness_vkey_of(name, read_public_key(file))
    if caller.json:
        print_json({"name": name, "vkey": text})
        return
    print_line(text)


@witness.command(
    "cosign",
    example=(
        "appliance witness cosign request --key w1.key --name witness.example/w1 --log trust.json \\\n"
        "  --state bank.state --out cosigned"
    ),
)
@click.argument("request", type=_FILE)
@_NAME
@click.option("--log", required=True, metavar="LOG", help="The log's vkey, or a trust file that names it.")
@click.option("--state", required=True, type=_FILE, metavar="FILE", help="What this witness saw last.")
@click.option("--out", type=_FILE, metavar="FILE", help="The cosigned checkpoint, instead of stdout.")
@click.option("--first", is_flag=True, help="Begin the state file, and believe the log as it is now.")
@keyed
@click.pass_obj
def cosign(caller: Caller, request: Path, name: str, log: str, state: Path, out: Path | None, first: bool) -> None:
    """Cosign the checkpoint of REQUEST when it continues what was seen last; else refuse, and say why.

    The state is on disk before the cosignature leaves. Whoever loses it does not begin it again: a witness that
    forgot would cosign another history.
    """
    from appliance import witness as program

    who = program.Witness(name, caller.unlocked, program.load_log_key(log))
    cosigned = program.cosign_file(request, state, out, who, first=first)
    say(*program.describe(cosigned, who))
    if caller.json:
        print_json({"checkpoint": cosigned.decode("utf-8"), "vkey": who.vkey})
    elif out is None:
        print_bytes(cosigned)
