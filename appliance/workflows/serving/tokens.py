"""An application of a unit is given a token, once that is an entry."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from appliance.domain.core.credentials import ISSUED, TokenRequest
from appliance.domain.serving.applications import TokenIssued
from appliance.formats.core.digest import digest_bytes
from appliance.workflows.core.context import Context
from appliance.workflows.core.record import append


@dataclass(frozen=True)
class Granted:
    """`token` is the text itself, which nobody keeps here; `id` is its digest, by which the ledger names it."""

    token: str
    id: str
    unit: str
    expires_at: str


def issue_token(context: Context, request: TokenRequest, data: bytes, source: str) -> Granted:
    """The rules check the request again, as every verifier of the log does."""
    token = f"{ISSUED}{secrets.token_urlsafe(32)}"
    digest = digest_bytes(token.encode())
    body = TokenIssued(unit=request.signer, application=request.application, token=digest)
    append(context, body, source=source, documents={"token-request": data})
    return Granted(token, digest, request.signer, request.expires_at)
