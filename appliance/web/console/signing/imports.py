"""Imports of files of rows in a browser: upload under the digest that the browser computed, check, then signature.

The checks are those of the command line, by the same worker.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from appliance.api.data import RowFindings, RowsToCheck
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.lookup import OrderInput
from appliance.domain.core.names import explain
from appliance.domain.data.imports import ImportDataset, ImportRows
from appliance.errors import BadInput, Denied, TooLarge
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
_REMEMBERED = 1_000
"""Maximum number of checks whose files are remembered."""


class ImportCheck(PageValue):
    """A check as the page shows it.

    `problem` is the reason for which it failed. `count` is the number of all errors. `errors` are the first ones, or
    only their lines for a blind set.
    """

    key: str
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


class Checks:
    """The files of each check, and whether they belong to a blind set. An unknown check counts as blind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[tuple[str, ...], bool]] = OrderedDict()

    def start(self, context: RunContext, signer: str, action: str, draft: OrderInput) -> str:
        """Start a check of the form's files and return its key."""
        model, values = ACTIONS[action].order, draft.values
        rows = _rows_to_check(draft, is_dataset=issubclass(model, ImportDataset))
        key = checks.order_check(context, signer, rows)
        with self._lock:
            self._known[key] = (tuple(rows.uploads), bool(values.get("blind")))
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return key

    def read(self, context: WorkerContext, signer: str, key: str) -> ImportCheck:
        """Return the findings so far.

        Raises: NotFound for another person's check.
        """
        with self._lock:
            blind = self._known.get(key, ((), True))[1]
        status = checks.check_status(context, signer, key)
        if not status.ended:
            return ImportCheck(key=key, ended=False, blind=blind)
        if status.error is not None:
            return ImportCheck(key=key, ended=True, problem=name_fields(status.error.message), blind=blind)
        result = status.result
        assert result is not None
        return ImportCheck(
            key=key,
            ended=True,
            facts=_facts(result),
            warnings=_warnings(result),
            errors=tuple(map(name_fields, result.errors)),
            count=result.error_count,
            blind=blind,
        )

    def require(self, context: WorkerContext, signer: str, key: str, draft: OrderInput) -> None:
        """Raise Denied unless this check was of the same files and found no errors."""
        files = _files(draft)
        with self._lock:
            known = self._known.get(key, ((), True))[0]
        if known != files or not self.read(context, signer, key).passed:
            raise Denied("import: expected a check of these files that found nothing wrong, got another; begin again")


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


def _files(draft: OrderInput) -> tuple[str, ...]:
    held_out = str(draft.values.get("held_out"))
    return (str(draft.values["file"]), *((held_out,) if held_out.startswith("sha256:") else ()))


def _facts(found: RowFindings) -> tuple[tuple[str, str], ...]:
    split = f"{found.rows}, {found.train_rows} to train on, {found.held_out_rows} held out"
    facts = [("rows", split if found.train_rows else str(found.rows))]
    facts.append(("labels", str(found.label_count)))
    facts += [(f"label {name}", str(sides.train + sides.held_out)) for name, sides in found.labels.items()]
    if found.max_tokens is not None:
        lengths = f"{found.max_tokens} tokens at most, {found.mean_tokens} in the mean"
        facts.append(("length", f"{lengths}, of the base's context of {found.context_length}"))
    facts.append(("duplicate texts", str(found.duplicate_count)))
    return tuple(facts)


def _warnings(found: RowFindings) -> tuple[str, ...]:
    lines = list(found.notes)
    lines += [f"labels {one!r} and {other!r} are nearly the same" for one, other, *_ in found.similar_labels]
    for name, one in found.overlaps.items():
        if one.duplicates or one.near_duplicates:
            duplicates = f"{one.duplicates} of {one.rows} rows are among those to train on"
            lines.append(f"validation set {name}: {duplicates}, and {one.near_duplicates} nearly")
    for label, sides in found.labels.items():
        if sides.train and not sides.held_out:
            lines.append(f"label {label!r} has no held-out row: nothing will measure it")
    return tuple(lines)


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
