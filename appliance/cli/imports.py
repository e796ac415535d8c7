"""Commands for imports and validation sets, and the parts that imports of rows share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, REASON, combine, with_session_options, with_signing_options
from appliance.cli.support.groups import base, dataset, imports, validation_set
from appliance.cli.support.output import plain, print_facts, print_json, print_result, print_rows, say
from appliance.cli.support.progress import ImportDisplay, ProgressMeter
from appliance.cli.support.signing import order_action, print_receipt, sign_and_submit
from appliance.domain.data.kinds import DATASET_KINDS, FORMATS
from appliance.errors import BadInput

if TYPE_CHECKING:
    from appliance.client.imports import ImportTerms
    from appliance.client.support.files import ImportSource
    from appliance.client.support.orders import Receipt


@imports.command("list", example="appliance import list")
@with_session_options
def list_imports(caller: Caller) -> None:
    """List every import, in the order in which they were ordered."""
    from appliance.domain.core.records.data import Import

    print_rows(
        caller.json,
        sorted(caller.reading().get("/v1/imports", list[Import]), key=lambda row: row.index),
        ("import of", "status", "ordered by", "entry", "order"),
        lambda row: (row.subject, row.status, row.signer, row.index, row.order),
        empty="No import was ordered. Order one with: appliance base import, or dataset import",
    )


@imports.command("cancel", example="appliance import cancel base:smollm2")
@click.argument("what", metavar="IMPORT")
@with_signing_options
def cancel(caller: Caller, what: str) -> None:
    """Cancel an import that waits or runs. The person who ordered it or an administrator may do so.

    IMPORT is its subject, such as base:smollm2 or dataset:clauses, or the digest of its order.
    """
    from appliance.client.imports import find_import

    order = find_import(caller.reading(), caller.anchor, what)
    order_action(caller, "cancel-import", {"order": order}, [("cancelled", what)])


def finish_import(caller: Caller, receipt: Receipt, wait: bool) -> None:
    """Wait for the import that was ordered, and print its result."""
    if not wait:
        print_receipt(caller, receipt)
        return
    result = _wait(caller, receipt.order)
    if caller.json:
        print_json({**asdict(receipt), "result": result})
        return
    measured = dict(result.get("facts") or {})
    facts = [(key, value) for key, value in describe_facts(measured) if key not in result]
    listed = [(name, value) for name, value in result.items() if name not in ("facts", "sample")]
    print_facts([*((name, _joined(value)) for name, value in [*listed, *facts]), ("ordered by entry", receipt.index)])
    if "sample" in result:
        say("", "The first row as the model sees it:", *(f"  {plain(line)}" for line in result["sample"].splitlines()))


def _wait(caller: Caller, order: str) -> dict[str, Any]:
    """Return the import's result. Interrupting the command does not stop the import."""
    from appliance.client.imports import wait_for_import

    display = ImportDisplay()
    caller.continuation = f"the import continues; look for its end with: appliance ledger log --subject order:{order}"
    try:
        return wait_for_import(caller.reading(), order, display.take)
    finally:
        display.close()


def describe_facts(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the facts that an import measured, without those that are only for planning."""
    return [(key.replace("_", " "), value) for key, value in facts.items() if not isinstance(value, dict)]


def _joined(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


with_row_options = combine(
    click.option(
        "--dataset-kind",
        type=click.Choice(DATASET_KINDS),
        default="classification",
        show_default=True,
        help="The kind of the rows.",
    ),
    click.option(
        "--column",
        "columns",
        multiple=True,
        metavar="PART=COLUMN",
        help="The file's column for a part of such a row, or for a cluster or slice.",
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="WORD",
        help="A label. Can be repeated. Default: all in the file.",
    ),
    click.option("--instruction", default="", metavar="TEXT", help="The system message of every row."),
    click.option(
        "--format", "kind", type=click.Choice(FORMATS), help="Needed when the file's ending does not show it."
    ),
)
"""Decorator that adds the options for the kind of a file's rows."""
with_split_options = combine(
    click.option("--seed", metavar="N", default=1, show_default=True, help="Selects which rows are held out."),
    click.option(
        "--held-out",
        default="0.2",
        show_default=True,
        metavar="FRACTION",
        help="The share of rows kept for evaluation.",
    ),
    click.option(
        "--held-out-file",
        type=PATH,
        metavar="FILE",
        help="Keep this file's rows for evaluation instead of a share.",
    ),
)
"""Decorator that adds the options for the division of a dataset's rows."""
with_terms_options = combine(
    click.option("--owner", required=True, metavar="TEXT", help="Who owns the data; can be erased later."),
    click.option("--licence", required=True, metavar="SPDX", help="The licence's SPDX identifier, or LicenseRef-NAME."),
    click.option("--classification", required=True, metavar="WORD", help="Such as public, internal or restricted."),
)
"""Decorator that adds the options for the owner and the terms of the data."""


def read_columns(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the columns of PART=COLUMN options.

    Raises: BadInput for another form or a repeated part.
    """
    columns: dict[str, str] = {}
    for pair in pairs:
        part, sign, name = pair.partition("=")
        if not (part and sign and name) or part in columns:
            raise BadInput(f"dataset, --column: expected PART=COLUMN, each part once, got {pair!r}")
        columns[part] = name
    return columns


def _read_sources(path: Path, held_out_file: Path | None, kind: str | None) -> list[ImportSource]:
    """Return the files of rows, hashed: the file and, if given, that of the held-out rows. Both have one format."""
    from appliance.client.imports import read_rows

    sources = [read_rows(file, kind) for file in (path, held_out_file) if file is not None]
    if len({source.format for source in sources}) > 1:
        first, second = (source.format for source in sources)
        raise BadInput(f"dataset, {held_out_file}: expected {first}, the format of {path}, got {second}")
    return sources


def send(caller: Caller, source: ImportSource) -> None:
    """Upload a hashed file, with a meter."""
    from appliance.client.support.files import upload

    meter = ProgressMeter("sends", source.total_bytes, "bytes")
    upload(caller.reading(), source, meter.advance)
    meter.close()


def import_rows(
    caller: Caller, terms: ImportTerms, path: Path, held_out_file: Path | None, kind: str | None, *, wait: bool
) -> None:
    """Check the terms, send and check the rows, then order their import."""
    from appliance.client.imports import check_terms, describe_rows

    check_terms(caller.reading(), caller.lookup, caller.propose_input, terms)
    sources = _read_sources(path, held_out_file, kind)
    _ = caller.unlock("to sign the import")
    for source in sources:
        send(caller, source)
    _check_before_import(caller, terms, sources, path)
    proposal = caller.propose_input(terms.action, describe_rows(terms, *sources))
    finish_import(caller, sign_and_submit(caller, proposal), wait)


def _check_before_import(caller: Caller, terms: ImportTerms, sources: Sequence[ImportSource], path: Path) -> None:
    """Check uploaded rows, and print the findings on stderr.

    Raises: BadInput if an import would fail.
    """
    from appliance.api.data import list_row_facts, list_row_warnings
    from appliance.client.imports import check_rows, refuse_errors

    found = check_rows(caller.reading(), terms, sources, keep=True)
    print_facts(list_row_facts(found), err=True)
    say(*(f"warning: {plain(text)}" for text in list_row_warnings(found)))
    hidden = f" (of a blind set only lines are shown; for the reasons run: appliance dataset check {path})"
    refuse_errors(found, str(path), ", nothing was imported" + (hidden if terms.blind else ""))


@dataset.command(
    "check", example="appliance dataset check clauses.csv\nappliance dataset check clauses.csv --base smollm2"
)
@click.argument("path", type=PATH)
@with_row_options
@with_split_options
@click.option("--base", metavar="NAME", help="Count tokens with this base, and compare with its context.")
@with_session_options
def check(
    caller: Caller,
    /,
    path: Path,
    held_out_file: Path | None,
    kind: str | None,
    columns: tuple[str, ...],
    **given: Any,
) -> None:
    """Check a file's rows: list every row that an import would refuse, and what is unusual. Nothing is recorded.

    Names every row that does not fit, counts labels, and lists labels that are nearly the same and repeated texts; with
    --base also lengths. The service's sandboxed worker reads the file, which is not kept.
    """
    from appliance.api.data import list_row_facts, list_row_warnings
    from appliance.api.wire import json_value
    from appliance.client.imports import RowTerms, check_rows, refuse_errors

    terms = RowTerms(columns=read_columns(columns), **given)
    sources = _read_sources(path, held_out_file, kind)
    for source in sources:
        send(caller, source)
    found = check_rows(caller.reading(), terms, sources, keep=False)
    warnings = list_row_warnings(found)
    facts = [*list_row_facts(found), *(("warning", text) for text in warnings)]
    print_result(caller.json, {**json_value(found), "warnings": warnings}, facts)
    refuse_errors(found, str(path))


@base.command("revoke", example="appliance base revoke smollm2 --reason 'Its licence does not allow this use.'")
@click.argument("name", metavar="NAME")
@REASON
@with_signing_options
def revoke_base(caller: Caller, name: str, reason: str | None) -> None:
    """Revoke a base at once and permanently, for every unit, with every adapter and every run on it.

    One administrator or reviewer is enough.
    """
    order_action(caller, "revoke-base", {"base": name}, [("revoked", name)], texts={"reason": reason})


@dataset.command("revoke", example="appliance dataset revoke clauses@1 --reason 'Its owner has withdrawn it.'")
@click.argument("name", metavar="NAME@VERSION")
@REASON
@with_signing_options
def revoke_dataset(caller: Caller, name: str, reason: str | None) -> None:
    """Revoke a dataset at once and permanently, for every unit, with every adapter and every run on it.

    One administrator or reviewer is enough.
    """
    order_action(caller, "revoke-dataset", {"dataset": name}, [("revoked", name)], texts={"reason": reason})


@validation_set.command(
    "revoke", example="appliance validation-set revoke exam@1 --reason 'Two of its labels are wrong.'"
)
@click.argument("name", metavar="NAME@VERSION")
@REASON
@with_signing_options
def revoke_set(caller: Caller, name: str, reason: str | None) -> None:
    """Revoke a validation set at once. Runs that wait for it fail, and approvals that depend on it become stale.

    One validator, administrator or reviewer is enough.
    """
    values, done = {"validation_set": name}, [("revoked", name)]
    order_action(caller, "revoke-validation-set", values, done, texts={"reason": reason})


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
@with_row_options
@click.option("--blind", is_flag=True, help="Show nobody a row: only digests, scores and counts leave the set.")
@click.option("--final", is_flag=True, help="Each adapter name can be evaluated on the set only once.")
@with_terms_options
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the import has ended.")
@with_signing_options
def import_set(
    caller: Caller, /, path: Path, kind: str | None, wait: bool, columns: tuple[str, ...], **given: Any
) -> None:
    """Import rows that adapters are evaluated on. All rows are for evaluation, and no run can train on them.

    Kinds and formats are those of `dataset import`. Use the dataset's instruction, since the model gets the rows
    exactly as they are rendered now. Before you sign you see every row that does not fit. Nobody else sees rows of a
    blind set.
    """
    from appliance.client.imports import SetTerms

    import_rows(caller, SetTerms(columns=read_columns(columns), **given), path, None, kind, wait=wait)


@validation_set.command("list", example="appliance validation-set list")
@with_session_options
def list_sets(caller: Caller) -> None:
    """List every validation set and version, and whether it is in use."""
    from appliance.domain.core.records.data import ValidationSet

    print_rows(
        caller.json,
        caller.reading().get("/v1/validation-sets", list[ValidationSet]),
        ("validation set", "dataset_kind", "rows", "base", "blind", "final", "imported by", "entry", "revoked by"),
        lambda row: (
            f"{row.name}@{row.version}",
            row.dataset_kind,
            row.facts.get("rows"),
            row.base,
            "yes" if row.blind else "no",
            "yes" if row.final else "no",
            row.imported_by,
            row.index,
            row.revoked,
        ),
        empty="No validation set was imported. Import one with: appliance validation-set import",
        least=("entry", "imported by", "base", "dataset_kind"),
    )


@validation_set.command("show", example="appliance validation-set show exam@1")
@click.argument("name", metavar="NAME@VERSION")
@with_session_options
def show_set(caller: Caller, name: str) -> None:
    """Show one validation set: its digests, the import's facts, and the adapters evaluated on it."""
    from appliance.domain.core.records.data import ValidationSet
    from appliance.domain.core.records.runs import AdapterEvaluation

    connection = caller.reading()
    row = connection.get(f"/v1/validation-sets/{name}", ValidationSet)
    evaluations = connection.get("/v1/evaluations", list[AdapterEvaluation])
    evaluated = [one.adapter for one in evaluations if any(found.validation_set == name for found in one.sets)]
    shown = [(key.replace("_", " "), value) for key, value in row.model_dump(exclude={"facts"}).items()]
    print_result(
        caller.json,
        {**row.model_dump(), "evaluated": evaluated},
        [*shown, *describe_facts(row.facts), ("adapters evaluated on it", ", ".join(evaluated) or "none")],
    )
