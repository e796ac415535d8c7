"""Who looks, and how each page, form and refusal is answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl

from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from appliance.errors import ApplianceError, BadInput, Denied, NotAuthenticated, NotFound, TooMany
from appliance.web.console.core.csvs import write_csv
from appliance.web.console.core.opened import OpenedParts
from appliance.web.console.core.page import Page, Viewer, parse_query
from appliance.web.console.core.security import Site, check_csrf, csrf_of
from appliance.web.console.core.shell import make_shell
from appliance.web.console.core.why import explain
from appliance.web.core.auth import Doorkeeper
from appliance.web.core.errors import Foreign, people_body, refusal
from appliance.workflows.core.context import Context

log = logging.getLogger(__name__)

MAX_FIELDS = 64
_MOST_DIGITS = 15
COUNTED_FOR = "counted_for"
"""Member of a request's state: the unit for which a refusal counts like one at the units' door."""


class Desk:
    """Answers requests with the pages that it was given."""

    def __init__(
        self, context: Context, door: Doorkeeper, site: Site, environment: Environment, pages: Sequence[Page]
    ) -> None:
        self.context, self.door, self.site = context, door, site
        self._environment = environment
        self.pages = pages
        self.opened = OpenedParts()

    # --- who looks ------------------------------------------------------------------------------------------------

    def viewer(self, request: Request) -> Viewer:
        """NotAuthenticated without the cookie of a session that stands."""
        secret = self.site.read_cookie(request)
        if secret is None:
            raise NotAuthenticated("session: expected one in this browser, got none", code="no-session")
        return self.viewer_of(secret)

    def viewer_of(self, secret: str) -> Viewer:
        session = self.door.browser(secret)
        principal = self.context.ledger.state.principals.get(session.principal)
        roles = () if principal is None else principal.roles
        return Viewer(session.principal, roles, session.expires_at, csrf_of(secret))

    def check(self, request: Request, what: str, roles: Sequence[str]) -> None:
        """Denied unless whoever asks for a file has one of the roles."""
        viewer = self.viewer(request)
        if not viewer.has(*roles):
            got = ", ".join(viewer.roles) or "none"
            raise Denied(what, reasons=(f"role: expected {viewer.name} to be {' or '.join(roles)}, got {got}",))

    def entry(self, request: Request) -> int:
        """The entry whose number is in the path."""
        text, size = request.path_params["index"], self.context.ledger.state.size
        if not text.isascii() or not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) >= size:
            raise NotFound(f"entry: expected one of the log's {size} entries, got none")
        return int(text)

    @staticmethod
    def named(name: str) -> dict[str, str]:
        """Headers of a file to keep."""
        return {"Content-Disposition": f'attachment; filename="{name}"'}

    async def form(self, request: Request, *, in_session: bool = True) -> dict[str, str]:
        """The fields of a form that a page of this console sent, in this very session."""
        self.site.check_source(request.headers)
        fields = _parse_form(request.headers.get("content-type", ""), await request.body())
        if in_session:
            check_csrf(self.site.read_cookie(request) or "", fields.pop("csrf", None))
        return fields

    # --- pages ----------------------------------------------------------------------------------------------------

    def html(self, page: Page) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            viewer, query, value = self._value(page, request)
            shell = make_shell(self.context, viewer, self.pages)
            told: dict[str, Any] = (
                {"opened": self._open(page, request, value, whole=False)} if page.opens is not None else {}
            )
            return self.render(
                page.template, page=page, shell=shell, query=query, value=value, path=request.url.path, **told
            )

        return answer

    def json(self, page: Page) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            value = self._value(page, request)[2]
            self._open(page, request, value, whole=True)
            return JSONResponse(value.model_dump(mode="json"))

        return answer

    def csv(self, page: Page) -> Callable[[Request], Response]:
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
        """Notes what of a review page this answer shows; the parts that this session has fetched so far."""
        if page.opens is None:
            return {}
        adapter, parts = page.opens(value, whole)
        secret = self.site.read_cookie(request) or ""
        if request.method != "HEAD":  # whose answer has no body
            self.opened.note(secret, adapter, parts)
        return self.opened.of(secret, adapter)

    def _value(self, page: Page, request: Request) -> tuple[Viewer, Any, Any]:
        """The rights are the page's, whatever form it is asked for in."""
        viewer = self.viewer(request)
        page.check(viewer)
        query = parse_query(page.query, request.path_params, request.query_params)
        return viewer, query, page.value(self.context, viewer, query)

    def render(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._environment.get_template(template).render(**values), status)

    # --- refusals -------------------------------------------------------------------------------------------------

    async def refuse(self, request: Request, error: Exception) -> Response:
        """A page that says what refused and what would allow it; for programs the people's form of it."""
        return await run_in_threadpool(self._refuse, request, error)

    def _refuse(self, request: Request, error: Exception) -> Response:
        told = _own(request, error)
        # A request without a cookie is no attempt.
        if told.code != "no-session":
            self.door.count(getattr(request.state, COUNTED_FOR, None), told)
        if request.url.path.endswith((".json", ".csv")) or request.method == "PUT":
            return refusal(people_body, told)
        # What failed may be what a shell is made of.
        is_plain = isinstance(told, NotAuthenticated) or told.status == 500
        shell = None if is_plain else self._shell(request)
        answer = self.render(
            "core/refusal.html",
            status=told.status,
            shell=shell,
            error=explain(told),
            path=request.url.path,
        )
        if isinstance(told, TooMany):
            answer.headers["Retry-After"] = str(told.retry_after_s)
        if isinstance(told, NotAuthenticated) and "hx-request" in request.headers:
            answer.headers["HX-Refresh"] = "true"
        return answer

    def _shell(self, request: Request) -> Any:
        try:
            return make_shell(self.context, self.viewer(request), self.pages)
        except ApplianceError:
            return None


def _parse_form(kind: str, body: bytes) -> dict[str, str]:
    """Each field once, in the one form that pages of this console use."""
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


def _own(request: Request, error: Exception) -> ApplianceError:
    """What the framework refuses, and a defect, as an error of our own tree: nothing foreign is shown."""
    if isinstance(error, ApplianceError):
        return error
    if isinstance(error, HTTPException):
        code = "not-found" if error.status_code == 404 else "http"
        return Foreign(
            f"address: expected a page, got {request.method} {request.url.path:.200}", code, error.status_code
        )
    # Not the address itself: that of a one-time link is a secret.
    log.exception("%s %s", request.method, getattr(request.scope.get("route"), "path", "?"), exc_info=error)
    return Foreign("the service failed; its log says more", "error", 500)
