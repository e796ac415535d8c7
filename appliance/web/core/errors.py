"""The mapping from errors to HTTP responses, for every listener.

An unforeseen exception becomes a 500 response without details.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from appliance.domain.core.words import Item, items_of, problems
from appliance.errors import ApplianceError, BadInput, QuotaExceeded, RateLimited

log = logging.getLogger(__name__)


class MalformedRequest(BadInput):
    """A request that does not have the form that its endpoint expects.

    The message does not repeat the input, because that may be a prompt. The error is created where the request is
    parsed, in a worker thread.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        """Create the error from pydantic's errors. An error with an empty location is about the whole body."""
        self.first: tuple[str, tuple[int | str, ...]] = ("", ())
        """Type and location of the first error."""
        if items:
            self.first = items[0]["type"], tuple(items[0]["loc"])
        located = [{**item, "loc": item["loc"] or ("body",)} for item in items]
        for item in located:
            item.pop("input", None)
        super().__init__("request: " + "; ".join(problems(located, unknown="not supported")))

    @classmethod
    def of(cls, error: ValidationError) -> MalformedRequest:
        """Return the error for a failed validation."""
        return cls(items_of(error))

    @classmethod
    def because(cls, message: str) -> MalformedRequest:
        """Return an error about the whole body."""
        return cls([{"type": "value_error", "loc": (), "msg": message}])


class FrameworkError(ApplianceError):
    """An error of the web framework, or a caught defect, with its own HTTP status."""

    def __init__(self, message: str, code: str, status: int) -> None:
        super().__init__(message, code=code)
        self.status = status


Body = Callable[[ApplianceError], tuple[int, dict[str, Any]]]
"""A function that returns the status and the JSON body of an error, in the form of one listener."""


def people_body(error: ApplianceError) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error in the form of the people's API.

    `subject` is what was refused, such as an order; only an error with refusals has it.
    """
    refusals = [asdict(refusal) for refusal in error.refusals]
    details = {"code": error.code, "message": error.sentences, "reasons": list(error.reasons), "refusals": refusals}
    return error.status, {"error": details | ({"subject": error.summary} if refusals else {})}


def refusal(body: Body, error: ApplianceError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the response for an error in the form of one listener.

    Limits and quotas add the header `Retry-After`.
    """
    if isinstance(error, RateLimited | QuotaExceeded):
        headers = {"Retry-After": str(error.retry_after_s)}
    status, value = body(error)
    return JSONResponse(value, status, headers)


def install(app: Starlette, body: Body, count: Callable[[Request, ApplianceError], None]) -> None:
    """Add handlers that turn every exception into a response.

    Each of the project's errors has its own status. Every other exception is a 500. `count` is called with each error
    of the project.
    """

    async def appliance_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApplianceError)
        count(request, error)
        return refusal(body, error)

    async def bad_request(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        # FastAPI validates only the address and the headers, whose size is limited. Bodies are parsed in threads.
        problems_found = [{**item, "loc": tuple(item["loc"])[1:]} for item in error.errors()]
        return await appliance_error(request, MalformedRequest(problems_found))

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        # The headers are, for example, `Allow`.
        return refusal(body, FrameworkError(message, "http", error.status_code), error.headers)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s", request.method, request.url.path, exc_info=error)
        return refusal(body, FrameworkError("the service failed; its log says more", "error", 500))

    app.add_exception_handler(ApplianceError, appliance_error)
    app.add_exception_handler(RequestValidationError, bad_request)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected)
