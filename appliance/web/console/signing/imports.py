"""A file of rows from a browser: uploaded under the digest that the browser computed, checked, and then signed for.

The checks are those of the command line, by the same worker. Of a blind set nothing but numbers is shown.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from appliance.domain.data.imports import ImportDataset, ImportRows
from appliance.domain.rulebook.registry import VERBS
from appliance.errors import BadInput, Denied, TooLarge
from appliance.formats.core.digest import parse_digest
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.page import Value, Viewer
from appliance.web.console.core.security import check_csrf
from appliance.web.core.receiving import read_size, take_upload
from appliance.workflows.core.context import Context
from appliance.workflows.data import checks
from appliance.workflows.proposals import Draft

MOST_BYTES = 200_000_000
"""Of one file. The browser hashes it whole, in memory."""
CHECK = "check"
"""The field that names a check which has ended well."""
SENDERS = ("operator", "validator")
_REMEMBERED = 1_000


class Checked(Value):
    """`ended`: nothing more comes. `problem`: why the check failed. `errors` of at most `count`, and `facts` and
    `warnings`: of a blind set none that could say what a row holds."""

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
        return self.ended and self.problem is None and self.count == 0


class Checks:
    """Which files each check was of, and whether they are a blind set's. What is not known here is blind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[tuple[str, ...], bool]] = OrderedDict()

    def start(self, context: Context, signer: str, verb: str, draft: Draft) -> str:
        """The key of a check of what the form names."""
        model, values = VERBS[verb].order, draft.values
        is_dataset = issubclass(model, ImportDataset)
        held_out = str(values["held_out"]) if is_dataset else "0.2"
        is_file = held_out.startswith("sha256:")
        rows = checks.Rows(
            task=values["task"],
            format=values["format"],
            file=values["file"],
            columns=values["columns"],
            labels=list(values["labels"]),
            instruction=draft.texts["instruction"],
            base=values["base"],
            seed=values["seed"] if is_dataset else 1,
            held_out="0.2" if is_file else held_out,
            held_out_file=held_out if is_file else None,
            judges=not is_dataset,
            keep=True,
        )
        key = checks.order_check(context, signer, rows)
        with self._lock:
            self._known[key] = (tuple(rows.uploads), bool(values.get("blind")))
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return key

    def read(self, context: Context, signer: str, key: str) -> Checked:
        """What is known now; NotFound for a check of another person's."""
        with self._lock:
            blind = self._known.get(key, ((), True))[1]
        told = checks.check_status(context, signer, key)
        if not told["ended"]:
            return Checked(key=key, ended=False, blind=blind)
        if told["error"] is not None:
            hidden = "its rows cannot be read; check the file on the command line: appliance dataset check"
            return Checked(
                key=key, ended=True, problem=hidden if blind else name_fields(told["error"]["message"]), blind=blind
            )
        found = told["result"]
        return Checked(
            key=key,
            ended=True,
            facts=_facts(found, blind),
            warnings=() if blind else _warnings(found),
            errors=() if blind else tuple(name_fields(str(one)) for one in found["errors"]),
            count=int(found["error_count"]),
            blind=blind,
        )

    def require(self, context: Context, signer: str, key: str, draft: Draft) -> None:
        """Denied unless this check was of these very files, and nothing was wrong with them."""
        files = _files(draft)
        with self._lock:
            known = self._known.get(key, ((), True))[0]
        if known != files or not self.read(context, signer, key).passed:
            raise Denied("import: expected a check of these files that found nothing wrong, got another; begin again")


_COLUMNS = "; if yours has another name: "
_FORMAT = "name the format with --format "


def name_fields(text: str) -> str:
    """What is wrong with a file, with the form's fields in place of the command line's options."""
    told, found, options = text.rpartition(_COLUMNS)
    if found:
        lines = options.removeprefix("--column ").split(" --column ")
        return f"{told}; if yours has another name, write in the field Columns, one a line: {', '.join(lines)}"
    return text.replace(_FORMAT, "choose in the field Format: ")


def _files(draft: Draft) -> tuple[str, ...]:
    held_out = str(draft.values.get("held_out"))
    return (str(draft.values["file"]), *((held_out,) if held_out.startswith("sha256:") else ()))


def _facts(found: Mapping[str, Any], blind: bool) -> tuple[tuple[str, str], ...]:
    facts = [("rows", f"{found['rows']}, {found['train_rows']} to train on, {found['held_out_rows']} held out")]
    facts.append(("labels", str(found["label_count"])))
    if not blind:
        facts += [(f"label {name}", str(sum(sides.values()))) for name, sides in found["labels"].items()]
    if found["max_tokens"] is not None:
        lengths = f"{found['max_tokens']} tokens at most, {found['mean_tokens']} in the mean"
        facts.append(("length", f"{lengths}, of the base's context of {found['context_length']}"))
    facts.append(("duplicate texts", str(found["duplicate_count"])))
    return tuple(facts)


def _warnings(found: Mapping[str, Any]) -> tuple[str, ...]:
    said = [f"labels {one!r} and {other!r} are nearly the same" for one, other, *_ in found["similar_labels"]]
    for name, one in found["overlaps"].items():
        if one["duplicates"] or one["near_duplicates"]:
            told = f"{one['duplicates']} of {one['rows']} rows are among those to train on"
            said.append(f"validation set {name}: {told}, and {one['near_duplicates']} nearly")
    for label, sides in found["labels"].items():
        if sides["train"] and not sides["held-out"]:
            said.append(f"label {label!r} has no held-out row: nothing will measure it")
    return tuple(said)


def is_import(verb: str) -> bool:
    return verb in VERBS and issubclass(VERBS[verb].order, ImportRows)


def check_sender(viewer: Viewer) -> None:
    if not viewer.has(*SENDERS):
        held = ", ".join(viewer.roles) or "none"
        raise Denied("upload", reasons=(f"role: expected {viewer.name} to be operator or validator, got {held}",))


def import_routes(desk: Desk, known: Checks) -> list[Route]:
    async def put(request: Request) -> Response:
        viewer = await run_in_threadpool(desk.viewer, request)
        check_sender(viewer)
        desk.site.check_source(request.headers)
        check_csrf(desk.site.read_cookie(request) or "", request.headers.get("x-csrf-token"))
        digest, size = parse_digest(request.path_params["digest"]), read_size(request.headers)
        if size > MOST_BYTES:
            raise TooLarge(
                f"upload: expected at most {MOST_BYTES} bytes in a browser, got {size}; use the command line"
            )
        await take_upload(desk.context, viewer.name, digest, size, request.stream())
        return JSONResponse({"digest": digest, "bytes": size})

    def show(request: Request) -> Response:
        viewer = desk.viewer(request)
        key = request.path_params["key"]
        if len(key) > 200:
            raise BadInput("check: expected its key, got another text")
        checked = known.read(desk.context, viewer.name, key)
        return desk.render("signing/checked.html", checked=checked)

    return [Route("/uploads/{digest}", put, methods=["PUT"]), Route("/checks/{key}", show)]
