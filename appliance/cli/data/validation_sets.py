"""Validation sets: rows of the site's own that judge adapters, brought in by people who train none."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from appliance.cli.data.imports import finish_import, tell_facts
from appliance.cli.data.revoking import revoke_set
from appliance.cli.data.rows import (
    PATH,
    check_before_import,
    describes_set,
    describes_terms,
    read_columns,
    read_sources,
    send,
)
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import group, reads, signs
from appliance.cli.support.output import print_facts, print_json, print_table
from appliance.cli.support.signing import sign_and_submit


@group("validation-set", example="appliance validation-set list")
def validation_set() -> None:
    """Validation sets, on which adapters are judged and nothing is trained: import, list, show, revoke."""


@validation_set.command(
    "import",
    example=(
        "appliance validation-set import exam.csv --name exam --base smollm2 --blind \\\n"
        "    --instruction 'Name the kind of clause.' --owner 'Legal' --licence CC0-1.0 --classification internal"
    ),
)
@click.argument("path", type=PATH)
@click.option("--name", metavar="NAME", required=True, help="A name for the set, as gates use it; each adds a version.")
@click.option("--base", required=True, metavar="NAME", help="The base whose chat template renders the rows.")
@describes_set
@click.option("--blind", is_flag=True, help="Nobody reads a row: only digests, scores and counts leave the set.")
@click.option("--final", is_flag=True, help="The set judges each adapter name once.")
@describes_terms
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the import has ended.")
@signs
@click.pass_obj
def import_set(
    caller: Caller, /, path: Path, kind: str | None, wait: bool, columns: tuple[str, ...], **given: Any
) -> None:
    """Import rows that adapters are judged on. All rows are used to judge, and no run can train on them.

    Tasks and formats are those of `dataset import`. Use the dataset's instruction, since the model
    gets the rows exactly as they are rendered now. Before you sign you see every row that does not fit; of a blind set
    nobody else does.
    """
    from appliance.client.checks import Teaching
    from appliance.client.imports import SetTerms, check_set, propose_set

    terms = SetTerms(columns=read_columns(columns), **given)
    digest = check_set(caller.reading(), caller.anchor, caller.signer, terms)
    sources = read_sources(path, None, kind)
    _ = caller.unlock("to sign the import")
    send(caller, sources[0])
    said = {member.name for member in fields(Teaching)} & {member.name for member in fields(SetTerms)}
    check_before_import(caller, Teaching(judges=True, **{name: getattr(terms, name) for name in said}), sources, path)
    proposal = propose_set(caller.about, caller.signer, terms, sources[0], digest)
    finish_import(caller, sign_and_submit(caller, proposal), wait)


@validation_set.command("list", example="appliance validation-set list")
@reads
@click.pass_obj
def list_sets(caller: Caller) -> None:
    """Every validation set and version, and whether it is in use."""
    rows = caller.reading().get("/v1/validation-sets")
    if caller.json:
        print_json(rows)
        return
    print_table(
        ("validation set", "task", "rows", "base", "blind", "final", "imported by", "entry", "revoked by"),
        [
            (
                f"{row['name']}@{row['version']}",
                row["task"],
                row["facts"].get("rows"),
                row["base"],
                "yes" if row["blind"] else "no",
                "yes" if row["final"] else "no",
                row["imported_by"],
                row["index"],
                row["revoked"],
            )
            for row in rows
        ],
        least=("entry", "imported by", "base", "task"),
    )


@validation_set.command("show", example="appliance validation-set show exam@1")
@click.argument("name", metavar="NAME@VERSION")
@reads
@click.pass_obj
def show_set(caller: Caller, name: str) -> None:
    """One validation set: its digests, the root over its rows, what the import measured, the adapters judged on it."""
    door = caller.reading()
    row = door.get(f"/v1/validation-sets/{name}")
    judged = [
        str(one["adapter"])
        for one in door.get("/v1/judgements")
        if any(found["validation_set"] == name for found in one["sets"])
    ]
    if caller.json:
        print_json({**row, "judged": judged})
        return
    facts = tell_facts(row.pop("facts"))
    shown = [(key.replace("_", " "), value) for key, value in row.items()]
    print_facts([*shown, *facts, ("adapters judged on it", ", ".join(judged) or "none")])


validation_set.add_command(revoke_set)
