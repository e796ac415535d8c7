"""Refusals as OpenAI's clients read them, with our own code behind OpenAI's.

`error` has OpenAI's four members and `appliance_code`. Where OpenAI has a word for what happened, `code` is that word;
otherwise it is our own, so that `appliance_code` is always ours and `code` never empty.
"""

from __future__ import annotations

from typing import Any

from appliance.errors import ApplianceError
from appliance.web.core.errors import Malformed

_CODES = {
    "model-not-found": "model_not_found",
    "context-length": "context_length_exceeded",
    "concurrent-limit": "rate_limit_exceeded",
    "rate-limit": "rate_limit_exceeded",
    "token-limit": "rate_limit_exceeded",
    "too-many": "rate_limit_exceeded",
    "answers-a-day": "rate_limit_exceeded",
}
_OF_MEMBERS = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}
"""By pydantic's type of an error. One that ends in `_type` or `_parsing` says that the value has another type."""
_PARAMS = {"model-not-found": "model", "context-length": "messages"}


def openai_body(error: ApplianceError) -> tuple[int, dict[str, Any]]:
    """The status and the body. A prompt over the model's context is a bad request (400), as it is at OpenAI."""
    status = 400 if error.code == "context-length" else error.status
    code, param = _CODES.get(error.code, error.code), _PARAMS.get(error.code)
    if status == 401:
        code = "invalid_api_key"
    if isinstance(error, Malformed):
        code, param = _of_member(error)
    told = {"message": error.message, "type": _type_of(error), "param": param, "code": code}
    return status, {"error": {**told, "appliance_code": error.code}}


def _type_of(error: ApplianceError) -> str:
    """OpenAI says of a rate what it counts: requests or tokens."""
    if error.status == 429:
        return "tokens" if error.code == "token-limit" else "requests"
    return "invalid_request_error" if error.status < 500 else "server_error"


def _of_member(error: Malformed) -> tuple[str, str | None]:
    """Code and place of the first member that is wrong: `messages[0].content`."""
    kind, place = error.first
    code = _OF_MEMBERS.get(kind, "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value")
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
    return code, param[:128] or None
