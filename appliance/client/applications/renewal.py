"""An application's token, asked of the units' door: a challenge, signed by the application's own key, for a token."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from appliance.client.support.door import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, Address, error_of
from appliance.domain.core.credentials import TokenRequest, encode_credential
from appliance.domain.core.names import add_seconds
from appliance.errors import TooMany, Unavailable
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import encode_envelope, sign_envelope
from appliance.formats.signatures.keys import Signer

if TYPE_CHECKING:
    import httpx

_ANSWER_BYTES = 65_536


@dataclass(frozen=True)
class Granted:
    """`id` names the token in the ledger, and to `token revoke`."""

    token: str
    id: str
    expires_at: str


class Renewal:
    """One application at one units' door. Each token stands for `ttl_s` from when it was asked for."""

    def __init__(self, address: Address, origin: str, unit: str, application: str, key: Signer, ttl_s: int) -> None:
        self._address = address
        self._origin, self._unit, self._application = origin, unit, application
        self._key = key
        self.ttl_s = ttl_s

    def __call__(self) -> Granted:
        """Asks anew, over a connection of its own. What the service refuses is the error that it was there."""
        with self._client() as http:
            nonce = str(_member(self._post(http, "/v1/tokens/challenge", b""), "nonce"))
            answer = self._post(http, "/v1/tokens", self._request(nonce))
        return Granted(*(str(_member(answer, name)) for name in ("token", "id", "expires_at")))

    def stands(self, token: str) -> bool:
        """False where the service says that the token counts no longer; a service that does not answer says nothing."""
        import httpx

        headers = {"Authorization": f"Bearer {token}"}
        with self._client() as http:
            try:
                return http.get("/v1/models", headers=headers).status_code != HTTPStatus.UNAUTHORIZED
            except httpx.HTTPError:
                return True

    def _client(self) -> httpx.Client:
        import httpx

        address = self._address
        transport = httpx.HTTPTransport(verify=address.tls() if address.ca else False)
        timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        return httpx.Client(transport=transport, base_url=address.url, timeout=timeout, trust_env=False)

    def _request(self, nonce: str) -> bytes:
        issued = encode_time(datetime.now(UTC))
        try:
            request = TokenRequest(
                origin=self._origin,
                signer=self._unit,
                nonce=nonce,
                issued_at=issued,
                application=self._application,
                expires_at=add_seconds(issued, self.ttl_s),
            )
        except ValueError:
            raise Unavailable(f"service, {self._address}: expected a challenge, got another answer") from None
        return encode_envelope(sign_envelope(encode_credential(request), self._key))

    def _post(self, http: httpx.Client, path: str, body: bytes) -> Any:
        import httpx

        what = f"POST {path}"
        try:
            answer = http.post(path, content=body)
        except httpx.HTTPError as error:
            where = f"service, {self._address}: expected an answer to {what}"
            raise Unavailable(f"{where}, got {type(error).__name__}: {error}") from None
        if answer.status_code != 200:
            error_told = error_of(answer.status_code, answer.content[:_ANSWER_BYTES], what)
            if isinstance(error_told, TooMany):
                error_told.retry_after_s = _seconds(answer.headers.get("Retry-After"))
            raise error_told
        try:
            return json.loads(answer.content[:_ANSWER_BYTES])
        except (ValueError, RecursionError):
            raise Unavailable(f"service, {what}: expected JSON, got {answer.content[:60]!r}") from None


def _member(answer: Any, name: str) -> Any:
    if not isinstance(answer, dict) or not isinstance(answer.get(name), str):
        raise Unavailable(f"service, tokens: expected an answer with {name}, got another")
    return answer[name]


def _seconds(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 1


Renew = Callable[[], Granted]
