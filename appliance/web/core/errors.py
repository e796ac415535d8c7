"""One table from error to answer, and the last handler. Nothing foreign leaks out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from appliance.domain.core.words import problems
from appliance.errors import ApplianceError, BadInput, TooMany

log = logging.getLogger(__name__)


class Malformed(BadInput):
    """What does not have the form of a request: refused before anything has looked at it."""

    def __init__(self, found: Iterable[Mapping[str, Any]]) -> None:
        """`found`: pydantic's errors, each with its place. What was sent is not repeated: it may be a prompt."""
        told = [{**item, "loc": tuple(item["loc"])[1:] or item["loc"]} for item in found]
        for item in told:
            item.pop("input", None)
        super().__init__("request: " + "; ".join(problems(told, unknown="not supported")))


Body = Callable[[str, str, tuple[str, ...], int], dict[str, Any]]


def people_body(code: str, message: str, reasons: tuple[str, ...], status: int) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "reasons": list(reasons)}}


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def openai_body(code: str, message: str, reasons: tuple[str, ...], status: int) -> dict[str, Any]:
    """The form that OpenAI's clients read."""
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def refusal(body: Body, error: ApplianceError) -> JSONResponse:
    """The error in the form of that door, and when to ask again where only time is wanting."""
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, TooMany) else None
    return JSONResponse(body(error.code, error.message, error.reasons, error.status), error.status, headers)


def install(app: Starlette, body: Body, count: Callable[[Request, ApplianceError], None]) -> None:
    """Every error of the appliance by its status; everything else is a 500 that says nothing."""

    async def appliance_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApplianceError)
        count(request, error)
        return refusal(body, error)

    async def bad_request(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return await appliance_error(request, Malformed(error.errors()))

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        # Such as which methods there are.
        return JSONResponse(body("http", message, (), error.status_code), error.status_code, error.headers)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s", request.method, request.url.path, exc_info=error)
        return JSONResponse(body("error", "the service failed; its log says more", (), 500), 500)

    app.add_exception_handler(ApplianceError, appliance_error)
    app.add_exception_handler(RequestValidationError, bad_request)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)
