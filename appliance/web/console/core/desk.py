"""The handlers of pages, forms and refusals, and the session of each request."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from urllib.parse import parse_qsl

from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from appliance.addresses import PREFIX
from appliance.domain.core.decisions import OpenedPagePart
from appliance.errors import ApplianceError, BadInput, NotAuthenticated, NotFound, RateLimited
from appliance.formats.core.text import safe_cell
from appliance.web.console.core.events import RecentEntries
from appliance.web.console.core.page import CsvTable, Page, Viewer, parse_query
from appliance.web.console.core.render import make_shell
from appliance.web.console.core.security import ConsoleOrigin, check_csrf, csrf_of
from appliance.web.console.core.why import explain
from appliance.web.core.auth import CallerAuthenticator
from appliance.web.core.errors import FrameworkError, people_body, refusal
from appliance.workflows.core.context import Context

FILES = ("/static/", PREFIX)
"""Prefixes of static files and the manual. They are sent from memory, without a check of the session."""


def write_csv(table: CsvTable) -> str:
    """Return a table as CSV (RFC 4180) with a header line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(table.headers)
    for row in table.rows:
        writer.writerow([safe_cell(value) for value in row])
    return out.getvalue()


_MOST = 4_096
"""Maximum number of sessions times adapters. The least recently used is dropped, and its reviewer opens the parts
again."""


class OpenedParts:
    """The parts of review pages that each session has fetched."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[bytes, str], dict[str, str]] = OrderedDict()

    def note(self, secret: str, adapter: str, opened: Iterable[OpenedPagePart]) -> None:
        """Record fetched parts of an adapter's page.

        `secret` is the session's cookie, of which only a digest is stored.
        """
        with self._lock:
            parts = self._found.setdefault(_key(secret, adapter), {})
            parts.update({one.part: one.digest for one in opened})
            self._found.move_to_end(_key(secret, adapter))
            while len(self._found) > _MOST:
                self._found.popitem(last=False)

    def of(self, secret: str, adapter: str) -> dict[str, str]:
        """Return the digest of each part when this session last fetched it."""
        with self._lock:
            return dict(self._found.get(_key(secret, adapter), {}))


def _key(secret: str, adapter: str) -> tuple[bytes, str]:
    return hashlib.sha256(secret.encode()).digest(), adapter


log = logging.getLogger(__name__)

MAX_FIELDS = 64
"""Maximum number of fields of a form."""
_MOST_DIGITS = 15
"""Maximum digits of an entry's number in an address."""
COUNTED_FOR = "counted_for"
"""Attribute of a request's state: the unit for which a refusal counts like one at the units' listener."""


class Desk:
    """The handlers for a list of pages."""

    def __init__(
        self,
        context: Context,
        authenticator: CallerAuthenticator,
        site: ConsoleOrigin,
        environment: Environment,
        changes: RecentEntries,
        pages: Sequence[Page],
    ) -> None:
        self.context, self.authenticator, self.site = context, authenticator, site
        self._environment, self.changes = environment, changes
        self.pages = pages
        self.opened = OpenedParts()

    # --- sessions and input ---------------------------------------------------------------------------------------

    def viewer(self, request: Request) -> Viewer:
        """Return the viewer of a request.

        Raises: NotAuthenticated without the cookie of a valid session.
        """
        secret = self.site.read_cookie(request)
        if secret is None:
            raise NotAuthenticated("session: expected one in this browser, got none", code="no-session")
        return self.viewer_of(secret)

    def viewer_of(self, secret: str) -> Viewer:
        """Return the viewer of a session, by its cookie."""
        session = self.authenticator.browser(secret)
        principal = self.context.ledger.state.principals.get(session.principal)
        roles = () if principal is None else principal.roles
        return Viewer(session.principal, roles, session.expires_at, csrf_of(secret))

    def entry(self, request: Request) -> int:
        """Return the number of the entry in the path.

        Raises: NotFound if the log has no such entry.
        """
        text, size = request.path_params["index"], self.context.ledger.state.size
        if not text.isascii() or not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) >= size:
            raise NotFound(f"entry: expected one of the log's {size} entries, got none")
        return int(text)

    @staticmethod
    def named(name: str) -> dict[str, str]:
        """Return the headers of a file to save."""
        return {"Content-Disposition": f'attachment; filename="{name}"'}

    async def form(self, request: Request, *, in_session: bool = True) -> dict[str, str]:
        """Return the fields of a form that a page of this console sent in the same session."""
        self.site.check_source(request.headers)
        fields = await read_form(request)
        if in_session:
            check_csrf(self.site.read_cookie(request) or "", fields.pop("csrf", None))
        return fields

    def posted(
        self,
        act: Callable[[Request, dict[str, str]], Response],
        *,
        in_session: bool = True,
        run: Callable[..., Awaitable[Response]] = run_in_threadpool,
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return the handler of a form: it reads the fields and runs `act` with them in a thread."""

        async def take(request: Request) -> Response:
            return await run(act, request, await self.form(request, in_session=in_session))

        return take

    # --- pages ----------------------------------------------------------------------------------------------------

    def html(self, page: Page) -> Callable[[Request], Response]:
        """Return the handler of a page as HTML."""

        def answer(request: Request) -> Response:
            problem, moment = None, self.changes.moment()
            try:
                viewer, query, value = self._value(page, request)
            except BadInput as error:
                if not page.is_search:
                    raise
                viewer, query = self._query(page, request)
                value, problem = page.value(self.context, viewer, page.query()), error.message
            return self.render_page(
                request,
                viewer,
                page.template,
                status=200 if problem is None else BadInput.status,
                page=page,
                query=query,
                value=value,
                moment=moment,
                opened=self._open(page, request, value, whole=False),
                problem=problem,
            )

        return answer

    def json(self, page: Page) -> Callable[[Request], Response]:
        """Return the handler of a page as JSON."""

        def answer(request: Request) -> Response:
            value = self._value(page, request)[2]
            self._open(page, request, value, whole=True)
            return JSONResponse(value.model_dump(mode="json"))

        return answer

    def csv(self, page: Page) -> Callable[[Request], Response]:
        """Return the handler of a page's table as CSV."""
        table = page.table
        assert table is not None

        def answer(request: Request) -> Response:
            text = write_csv(table(self._value(page, request)[2]))
            name = page.path.strip("/").replace("/", "-").replace("{", "").replace("}", "")
            return Response(
                text,
                media_type="text/csv; charset=utf-8",
                headers={"Content-Disposition": f'attachment; filename="{name}.csv"'},
            )

        return answer

    def _open(self, page: Page, request: Request, value: Any, *, whole: bool) -> dict[str, str]:
        """Record which parts of a review page this response shows. Return all parts that this session has fetched."""
        if page.opens is None:
            return {}
        adapter, parts = page.opens(value, whole)
        secret = self.site.read_cookie(request) or ""
        if request.method != "HEAD":  # a response to HEAD has no body
            self.opened.note(secret, adapter, parts)
        return self.opened.of(secret, adapter)

    def _value(self, page: Page, request: Request) -> tuple[Viewer, Any, Any]:
        """Return the viewer, the query and the value. The rights are the same for HTML and data."""
        viewer, query = self._query(page, request)
        return viewer, query, page.value(self.context, viewer, query)

    def _query(self, page: Page, request: Request) -> tuple[Viewer, Any]:
        viewer = self.viewer(request)
        page.check(viewer)
        return viewer, parse_query(page.query, request.path_params, request.query_params)

    def render(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a template as a response."""
        return HTMLResponse(self._environment.get_template(template).render(**values), status)

    def render_page(
        self, request: Request, viewer: Viewer, template: str, *, status: int = 200, **values: Any
    ) -> HTMLResponse:
        """Return a template in the frame of the viewer's pages. The navigation marks the page of the address `path`."""
        frame = {"shell": make_shell(self.context, viewer, self.pages), "path": request.url.path}
        return self.render(template, status=status, **frame | values)

    # --- refusals -------------------------------------------------------------------------------------------------

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Return a page that explains the refusal; for programs, the error in the form of the people's API.

        The refusal of a file is its message alone, without a thread, which pages may wait for.
        """
        if request.url.path.startswith(FILES):
            own_error = _as_own_error(request, error)
            return PlainTextResponse(f"{own_error.message}\n", own_error.status)
        return await run_in_threadpool(self._refuse, request, error)

    def _refuse(self, request: Request, error: Exception) -> Response:
        own_error = _as_own_error(request, error)
        # A request without a cookie is not counted as a failed attempt.
        if own_error.code != "no-session":
            self.authenticator.count(getattr(request.state, COUNTED_FOR, None), own_error)
        if request.url.path.endswith((".json", ".csv")) or request.method == "PUT":
            return refusal(people_body, own_error)
        if isinstance(own_error, NotAuthenticated):
            return self._ask_to_sign_in(request, own_error)
        # The shell is left out, because it may be what failed.
        shell = None if own_error.status == 500 else self.shell(request)
        answer = self.render(
            "core/refusal.html",
            status=own_error.status,
            shell=shell,
            error=explain(own_error),
            path=request.url.path,
        )
        if isinstance(own_error, RateLimited):
            answer.headers["Retry-After"] = str(own_error.retry_after_s)
        return answer

    def _ask_to_sign_in(self, request: Request, error: NotAuthenticated) -> Response:
        """Return the page to sign in, which then opens the page that was asked for."""
        path = request.url.path
        is_page = request.method in ("GET", "HEAD") and not path.startswith("/sign-in")
        target = "" if is_page else path if path.startswith("/sign/") else "/home"
        answer = self.show_sign_in(request, target=target, error=error)
        if "hx-request" in request.headers:
            answer.headers["HX-Refresh"] = "true"
        return answer

    def show_sign_in(
        self,
        request: Request,
        *,
        target: str,
        link: tuple[str, str] | None = None,
        error: NotAuthenticated | None = None,
    ) -> Response:
        """Return the page to sign in.

        `target` is the address that then takes its place, "" for its own. `link` is a link of the command line with
        its person's name.
        """
        return self.render(
            "core/sign_in.html",
            status=200 if error is None else error.status,
            shell=None,
            origin=self.context.ledger.state.site.origin,
            link=link,
            target=target,
            name=self.site.read_name(request),
            error=None if error is None else explain(error),
        )

    def shell(self, request: Request) -> Any:
        """Return the frame of a page for the request's session, or None without one."""
        try:
            return make_shell(self.context, self.viewer(request), self.pages)
        except ApplianceError:
            return None


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form of any site. Only a handler that changes nothing uses it without `Desk.form`."""
    kind, body = request.headers.get("content-type", ""), await request.body()
    return await run_in_threadpool(_parse_form, kind, body)


def _parse_form(kind: str, body: bytes) -> dict[str, str]:
    """Return the fields of a form. Each may occur once.

    Raises: BadInput for another encoding or a repeated field.
    """
    if kind.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise BadInput(f"form: expected application/x-www-form-urlencoded, got {kind!r:.60}")
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise BadInput(f"form: expected at most {MAX_FIELDS} fields, urlencoded, got another body") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise BadInput("form: expected each field once, got one twice")
    return fields


def _as_own_error(request: Request, error: Exception) -> ApplianceError:
    """Return any exception as one of the project's errors, without details of foreign ones."""
    if isinstance(error, ApplianceError):
        return error
    if isinstance(error, HTTPException):
        code = "not-found" if error.status_code == 404 else "http"
        return FrameworkError(
            f"address: expected a page, got {request.method} {request.url.path:.200}", code, error.status_code
        )
    # The route and not the address, because the address of a sign-in link is a secret.
    log.exception("%s %s", request.method, getattr(request.scope.get("route"), "path", "?"), exc_info=error)
    return FrameworkError("the service failed; its log says more", "error", 500)
