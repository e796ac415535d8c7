"""What a dataset was used for, and whether a row was in it: for importers and auditors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, reads
from appliance.cli.support.output import print_json, print_table, say
from appliance.errors import BadInput

if TYPE_CHECKING:
    from appliance.client.questions import RowAnswer

_PATH = click.Path(path_type=Path)
_MAX_ROW_BYTES = 4_000_000


@command(
    "used-by",
    example=(
        "appliance dataset used-by clauses\n"
        "appliance dataset used-by clauses@1 --row 'The parties agree to keep it secret.' --output proof.json"
    ),
)
@click.argument("name", metavar="NAME[@VERSION]")
@click.option("--row", metavar="TEXT", help="Was this text one of its rows?")
@click.option(
    "--row-file", type=_PATH, metavar="FILE", help="As --row, with the text from a file, without its last newline."
)
@click.option("--output", type=_PATH, metavar="FILE", help="Write the rows' proofs to a new file.")
@reads
@click.pass_obj
def used_by(caller: Caller, name: str, row: str | None, row_file: Path | None, output: Path | None) -> None:
    """Which runs and adapters saw a dataset, and where they were released. Without a version: all of them.

    With a row's text, whether it was in the dataset, for operators and auditors: proved here, under the root that the
    log binds. That it was not there is the service's word. The terminal's history keeps --row; --row-file does not.
    """
    from appliance.client.questions import dataset_uses, find_row

    if row is not None and row_file is not None:
        raise BadInput("row: expected --row or --row-file, got both")
    text = _row_text(row_file) if row_file is not None else row
    if output is not None and text is None:
        raise BadInput("output: expected --row or --row-file with it, got neither")
    uses = dataset_uses(caller.reading(), name)
    answers = [] if text is None else find_row(caller.reading(), caller.anchor, name, text)
    if output is not None:
        _write_proofs(output, caller.about.origin, answers)
    if caller.json:
        found = None if text is None else [_row_value(answer) for answer in answers]
        print_json({"datasets": uses, "row": found})
        return
    _print_uses(uses)
    for answer in answers:
        _print_row(answer)


def _row_text(path: Path) -> str:
    from appliance.client.support.files import read_file

    try:
        return read_file(path, "row", _MAX_ROW_BYTES).decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise BadInput(f"row, {path}: expected UTF-8, got other bytes") from None


def _print_uses(uses: list[dict[str, Any]]) -> None:
    rows = []
    for version in uses:
        for use in version["uses"] or [{}]:
            gone = [f"{how} by {use[how]}" for how in ("revoked", "quarantined") if use.get(how) is not None]
            rows.append(
                (
                    version["dataset"],
                    version["imported"],
                    use.get("run"),
                    use.get("status"),
                    use.get("adapter"),
                    use.get("sealed"),
                    ", ".join(gone) or None,
                    ", ".join(use.get("released_now", ())) or None,
                    ", ".join(use.get("released_to", ())) or None,
                )
            )
    columns = ("dataset", "entry", "run", "status", "adapter", "sealed", "taken away", "answers", "ever released to")
    print_table(columns, rows, least=("sealed", "entry", "taken away", "run", "status", "adapter", "answers"))


def _print_row(answer: RowAnswer) -> None:
    if not answer.found:
        say(
            f"{answer.dataset}: not among its rows, says the service; a proof can only show that a row is there.",
        )
        return
    say("", f"{answer.dataset}: found {answer.found} times, {len(answer.rows)} proved here under entry {answer.entry}.")
    print_table(
        ("dataset", "row", "split", "answer", "root"),
        [(row.dataset, row.proof.index, row.split, row.answer, row.root) for row in answer.rows],
    )


def _row_value(answer: RowAnswer) -> dict[str, Any]:
    from appliance.formats.artifacts.rows import row_proof_value

    return {
        "dataset": answer.dataset,
        "entry": answer.entry,
        "found": answer.found,
        "rows": [
            {"split": row.split, "answer": row.answer, "root": row.root, "proof": row_proof_value(row.proof)}
            for row in answer.rows
        ],
    }


def _write_proofs(path: Path, origin: str, answers: list[RowAnswer]) -> None:
    """A new file of its owner's alone: it opens the rows."""
    from appliance.client.support.files import write_new

    value = {"version": 1, "origin": origin, "datasets": [_row_value(answer) for answer in answers]}
    write_new(path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n", "proof")
