"""The agent that renews an application's token: the application's key signs the service's challenge to get a token."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.client.support.connection import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, Address, error_of, is_answering
from appliance.domain.core.credentials import TokenRequest, encode_credential
from appliance.domain.core.names import add_seconds
from appliance.errors import ApplianceError, BadInput, Conflict, NotAuthenticated, RateLimited, Unavailable
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import encode_envelope, sign_envelope
from appliance.formats.signatures.keys import Signer

if TYPE_CHECKING:
    import httpx


_ANSWER_BYTES = 65_536


@dataclass(frozen=True)
class ReceivedToken:
    """An issued token; `id` names it in the ledger and for `token revoke`."""

    token: str
    id: str
    expires_at: str


class Renewal:
    """A source of tokens for one application at one API for units.

    Each token is valid for `ttl_s` seconds from its request.
    """

    def __init__(self, address: Address, origin: str, unit: str, application: str, key: Signer, ttl_s: int) -> None:
        self._address = address
        self._origin, self._unit, self._application = origin, unit, application
        self._key = key
        self.ttl_s = ttl_s

    def __call__(self) -> ReceivedToken:
        """Request a token over a new connection.

        Raises: the service's error, if it refuses; Unavailable if it does not answer.
        """
        with self._client() as http:
            nonce = str(_member(self._post(http, "/v1/tokens/challenge", b""), "nonce"))
            answer = self._post(http, "/v1/tokens", self._request(nonce))
        return ReceivedToken(*(str(_member(answer, name)) for name in ("token", "id", "expires_at")))

    def is_valid(self, token: str) -> bool:
        """Return False if the service says that the token is no longer valid; True if the service does not answer."""
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
            refusal = error_of(answer.status_code, answer.content[:_ANSWER_BYTES], what)
            if isinstance(refusal, RateLimited):
                refusal.retry_after_s = _seconds(answer.headers.get("Retry-After"))
            raise refusal
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


Renew = Callable[[], ReceivedToken]


FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
CHECK_S = 60.0
"""Seconds between the checks that the token is still valid, since it may have been revoked."""
_POLL_S = 0.5
_SEND_S = 5.0
_CREDENTIALS = struct.Struct("iII")


_NONE: ApplianceError = Unavailable("token: expected a valid one, got none yet or one that ended", code="no-token")


class TokenAgent:
    """An agent that renews a token and gives it to local callers.

    `renew` requests a token, `report` prints changes to the terminal, and `is_valid` returns True if the service
    accepts a token. A token is renewed after half of its lifetime, and when it becomes invalid. If renewal fails,
    callers get the token as long as it is valid.
    """

    def __init__(
        self, renew: Renew, ttl_s: int, report: Callable[[str], None], is_valid: Callable[[str], bool] = lambda _: True
    ) -> None:
        self._renew, self._ttl_s, self._report, self._is_valid = renew, ttl_s, report, is_valid
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._granted: ReceivedToken | None = None
        self._problem = _NONE
        self.ended: ApplianceError | None = None
        """The error by which the service ended the application; no more tokens are issued."""

    def stop(self) -> None:
        """Stop the agent."""
        self._stopped.set()
        self._wake.set()

    def renew_now(self) -> None:
        """Renew the token before its time, for example after it leaked and was revoked."""
        self._wake.set()

    def run(self, path: Path) -> None:
        """Serve tokens at the socket until the agent is stopped.

        Raises: the service's error, if it ended the application; BadInput or Conflict if the socket cannot be created.
        """
        with open_socket(path) as listener:
            thread = threading.Thread(target=self._renew_repeatedly, name="renewal")
            thread.start()
            try:
                while not self._stopped.is_set():
                    self._serve_connection(listener)
            finally:
                self.stop()
                path.unlink(missing_ok=True)
                thread.join()
        if self.ended is not None:
            raise self.ended

    # --- renewal ------------------------------------------------------------------------------------------------------

    def _renew_repeatedly(self) -> None:
        """Renew the token until the agent is stopped or the application has ended."""
        retry_s = FIRST_RETRY_S
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                granted = self._renew()
            except ApplianceError as error:
                self._fail(error)
                self._wake.wait(float(error.retry_after_s) if isinstance(error, RateLimited) else retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)
            else:
                self._take(granted)
                retry_s = FIRST_RETRY_S
                self._wait_for_renewal(granted)

    def _wait_for_renewal(self, granted: ReceivedToken) -> None:
        """Wait until the token must be renewed: after half of its lifetime, on request, or when it is invalid."""
        renew_at = time.monotonic() + self._ttl_s / 2
        while (left_s := renew_at - time.monotonic()) > 0:
            if self._wake.wait(min(CHECK_S, left_s)):
                return
            if time.monotonic() < renew_at and not self._is_valid(granted.token):
                self._report(f"token {granted.id} counts no longer")
                with self._lock:
                    self._granted = None
                return

    def _take(self, granted: ReceivedToken) -> None:
        with self._lock:
            self._granted, self._problem = granted, _NONE
        self._report(f"token {granted.id}, until {granted.expires_at}")

    def _fail(self, error: ApplianceError) -> None:
        """Record a failed renewal.

        The present token is still served, unless the service says that the application ended.
        """
        ended = isinstance(error, NotAuthenticated) and error.code == "revoked"
        with self._lock:
            changed = error.message != self._problem.message
            self._problem = error
            if ended:
                self._granted, self.ended = None, error
        if changed and not ended:
            self._report(f"no new token: {error.message}")
        if ended:
            self.stop()

    # --- local callers ------------------------------------------------------------------------------------------------

    def answer(self) -> dict[str, object]:
        """Return the valid token, or the reason why there is none."""
        now = encode_time(datetime.now(UTC))
        with self._lock:
            granted, problem = self._granted, self._problem
        if granted is not None and granted.expires_at > now:
            return {"token": granted.token, "id": granted.id, "expires_at": granted.expires_at}
        return {"error": {"code": problem.code, "message": problem.message}}

    def _serve_connection(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return
        with connection:
            connection.settimeout(_SEND_S)
            response = self.answer() if is_own(connection) else _FOREIGN_ACCOUNT
            try:
                connection.sendall(json.dumps(response).encode() + b"\n")
            except OSError:
                return  # the caller has closed the connection


_FOREIGN_ACCOUNT: dict[str, object] = {
    "error": {"code": "denied", "message": "agent: expected the account that runs it or root, got another"}
}


def is_own(connection: socket.socket) -> bool:
    """Return True if the process at the other end is this account's or root's, by the kernel's credentials."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    return uid in (0, os.geteuid())


def open_socket(path: Path) -> socket.socket:
    """Return a listener at a new socket of mode 0600; a socket without a listener is replaced.

    Raises: BadInput for a path that is too long; Conflict if the path is in use.
    """
    if len(os.fsencode(path)) > 107:
        raise BadInput(f"agent, {path}: expected a path of at most 107 bytes, as the kernel takes it, got a longer one")
    _remove_stale_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.fchmod(listener.fileno(), 0o600)  # bind gives the file this mode; a change after it would leave a gap
    try:
        listener.bind(str(path))
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise Unavailable(f"agent, {path}: expected to make a socket there, got {error.strerror}") from None
    listener.settimeout(_POLL_S)
    return listener


def _remove_stale_socket(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"agent, {path}: expected to look at it, got {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise Conflict(f"agent, {path}: expected a path that is free, got something that is no socket")
    if is_answering(path):
        raise Conflict(f"agent, {path}: expected a path that is free, got one where an agent answers")
    path.unlink(missing_ok=True)
