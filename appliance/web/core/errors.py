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
from appliance.errors import ApplianceError, BadInput, TooMany, UsedUp

log = logging.getLogger(__name__)


class Malformed(BadInput):
    """What does not have the form of a request: refused before anything has looked at it."""

    def __init__(self, found: Iterable[Mapping[str, Any]]) -> None:
        """`found`: pydantic's errors, each with its place. What was sent is not repeated: it may be a prompt."""
        told = [{**item, "loc": tuple(item["loc"])[1:] or item["loc"]} for item in found]
        self.first: tuple[str, tuple[int | str, ...]] = ("", ()) if not told else (told[0]["type"], _place(told[0]))
        """What is wrong with the first of the members, in pydantic's word, and the member's place."""
        for item in told:
            item.pop("input", None)
        super().__init__("request: " + "; ".join(problems(told, unknown="not supported")))


def _place(item: Mapping[str, Any]) -> tuple[int | str, ...]:
    """Where the request's whole body is meant, there is no member."""
    return () if item["loc"] == ("body",) else tuple(item["loc"])


class Foreign(ApplianceError):
    """What the web framework refuses by itself, and a defect that it caught: its status is its own."""

    def __init__(self, message: str, code: str, status: int) -> None:
        super().__init__(message, code=code)
        self.status = status


Body = Callable[[ApplianceError], tuple[int, dict[str, Any]]]
"""How a door says an error: the status and the body."""


def people_body(error: ApplianceError) -> tuple[int, dict[str, Any]]:
    told = {"code": error.code, "message": error.message, "reasons": list(error.reasons)}
    return error.status, {"error": told}


def refusal(body: Body, error: ApplianceError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The error in the form of that door, and when to ask again where only time is wanting."""
    if isinstance(error, TooMany | UsedUp):
        headers = {"Retry-After": str(error.retry_after_s)}
    status, value = body(error)
    return JSONResponse(value, status, headers)


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
        return refusal(body, Foreign(message, "http", error.status_code), error.headers)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s", request.method, request.url.path, exc_info=error)
        return refusal(body, Foreign("the service failed; its log says more", "error", 500))

    app.add_exception_handler(ApplianceError, appliance_error)
    app.add_exception_handler(RequestValidationError, bad_request)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)
