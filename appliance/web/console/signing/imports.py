"""Imports of files of rows in a browser: upload under the digest that the browser computed, check, then signature.

The checks are those of the command line, by the same worker.
"""

from __future__ import annotations

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from appliance.api.data import RowsToCheck, list_row_facts, list_row_warnings
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.lookup import OrderInput
from appliance.domain.core.names import explain
from appliance.domain.data.imports import ImportDataset, ImportRows
from appliance.errors import BadInput, TooLarge
from appliance.formats.core.digest import parse_digest
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.page import PageValue
from appliance.web.console.core.security import check_csrf
from appliance.web.core.receiving import read_size, take_upload
from appliance.workflows.core.context import RunContext, WorkerContext
from appliance.workflows.data import checks

MOST_BYTES = 200_000_000
"""Maximum bytes of a file. The browser hashes all of it in memory."""
CHECK = "check"
"""Form field with the key of a successful check."""


class ImportCheck(PageValue):
    """A check as the page shows it.

    `problem` is the reason for which it failed. `count` is the number of all errors. `errors` are the first ones, or
    only their lines for a blind set.
    """

    ended: bool
    problem: str | None = None
    facts: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    count: int = 0
    blind: bool = False

    @property
    def passed(self) -> bool:
        """Return True if the check has ended without errors."""
        return self.ended and self.problem is None and self.count == 0


def start_check(context: RunContext, signer: str, action: str, order: OrderInput) -> str:
    """Start a check of the form's files and return its key."""
    rows = _rows_to_check(order, is_dataset=issubclass(ACTIONS[action].order, ImportDataset))
    return checks.order_check(context, signer, rows)


def read_check(context: WorkerContext, signer: str, key: str, *, blind: bool) -> ImportCheck:
    """Return the findings so far.

    Raises: NotFound for another person's check.
    """
    status = checks.check_status(context, signer, key)
    if not status.ended:
        return ImportCheck(ended=False, blind=blind)
    if status.error is not None:
        return ImportCheck(ended=True, problem=name_fields(status.error.message), blind=blind)
    result = status.result
    assert result is not None
    return ImportCheck(
        ended=True,
        facts=tuple((name, str(value)) for name, value in list_row_facts(result)),
        warnings=tuple(list_row_warnings(result)),
        errors=tuple(map(name_fields, result.errors)),
        count=result.error_count,
        blind=blind,
    )


_COLUMNS = "; if yours has another name: "
_FORMAT = "name the format with --format "


def _rows_to_check(draft: OrderInput, *, is_dataset: bool) -> RowsToCheck:
    """Return the files of a form and the terms of their import.

    Raises: BadInput for values that no page of this console sends.
    """
    values = draft.values
    held_out = str(values["held_out"]) if is_dataset else "0.2"
    is_file = held_out.startswith("sha256:")
    try:
        return RowsToCheck(
            dataset_kind=values["dataset_kind"],
            format=values["format"],
            file=values["file"],
            columns=values["columns"],
            labels=tuple(values["labels"]),
            instruction=draft.texts["instruction"],
            base=values["base"],
            seed=values["seed"] if is_dataset else 1,
            held_out="0.2" if is_file else held_out,
            held_out_file=held_out if is_file else None,
            is_validation_set=not is_dataset,
            blind=bool(values.get("blind")),
            keep=True,
        )
    except ValidationError as error:
        raise BadInput(f"form: {explain(error)}") from None


def name_fields(text: str) -> str:
    """Return a check's message with the form's fields in place of the command line's options."""
    message, separator, options = text.rpartition(_COLUMNS)
    if separator:
        lines = options.removeprefix("--column ").split(" --column ")
        return f"{message}; if yours has another name, write in the field Columns, one a line: {', '.join(lines)}"
    return text.replace(_FORMAT, "choose in the field Format: ")


def is_import(action: str) -> bool:
    """Return True if the action imports a file of rows."""
    return action in ACTIONS and issubclass(ACTIONS[action].order, ImportRows)


def import_routes(desk: Desk) -> list[Route]:
    """Return the route of uploads."""

    async def put(request: Request) -> Response:
        viewer = await run_in_threadpool(desk.viewer, request)
        desk.site.check_source(request.headers)
        check_csrf(desk.site.read_cookie(request) or "", request.headers.get("x-csrf-token"))
        digest, size = parse_digest(request.path_params["digest"]), read_size(request.headers)
        if size > MOST_BYTES:
            raise TooLarge(
                f"upload: expected at most {MOST_BYTES} bytes in a browser, got {size}; use the command line"
            )
        await take_upload(desk.context, viewer.name, digest, size, request.stream())
        return JSONResponse({"digest": digest, "bytes": size})

    return [Route("/uploads/{digest}", put, methods=["PUT"])]
