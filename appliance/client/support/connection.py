"""HTTP over the service's Unix socket or over TLS: responses are returned as values or raised as the project's errors.

httpx is imported with the first request, since the import takes 0.1 s, which commands without requests save.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from appliance.domain.core.entry import parse_refusals
from appliance.errors import (
    ApplianceError,
    BadInput,
    Conflict,
    Denied,
    NotAuthenticated,
    NotFound,
    RateLimited,
    Tampered,
    TooLarge,
    Unavailable,
)

if TYPE_CHECKING:
    import httpx

    from appliance.api.log import About

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 120.0
"""Seconds within which the service must respond to an ordinary request."""
LONG_TIMEOUT_S = 3_600.0
"""Seconds within which the service must respond to an upload, a download, a verification, or an order
whose check reads the log."""
_CHUNK_BYTES = 1 << 20

_BRANCHES: dict[int, type[ApplianceError]] = {
    branch.status: branch
    for branch in (
        BadInput, TooLarge, NotAuthenticated, Denied, NotFound, Conflict, Tampered, Unavailable, RateLimited,
    )
}  # fmt: skip


Parameter = str | int | Sequence[str]
"""A parameter of a query; several values become several parameters of one name."""


class Bearer(Protocol):
    """A source of session tokens for reading. `renew` is True after the service has refused the token."""

    def token(self, *, renew: bool) -> str: ...


@dataclass(frozen=True)
class Address:
    """An address of the service over TCP: under a certificate of this CA, or unencrypted on this machine.

    `certificate` is the client host's own certificate and key in PEM, if the site requires one. With `is_pinned`, `ca`
    is the service's own certificate, which is accepted under any name, and no other certificate is.
    """

    host: str
    port: int
    ca: Path | None
    certificate: tuple[Path, Path] | None = None
    is_pinned: bool = False

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Return the URL of the service."""
        return f"{'http' if self.ca is None else 'https'}://{self}"

    def tls(self) -> ssl.SSLContext:
        """Return the TLS settings.

        Raises: BadInput if the PEM files are missing or do not fit.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(*self.certificate)
        except OSError as error:  # an SSLError is one too
            files = ", ".join(map(str, (self.ca, *(self.certificate or ()))))
            raise BadInput(f"service, {self}: expected PEM files that fit, got {files}: {error.args[-1]}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.is_pinned:
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]")


def parse_address(text: str, ca: Path | None, certificate: tuple[Path, Path] | None = None) -> Address:
    """Parse HOST:PORT.

    Raises: BadInput if it is malformed, or if a host other than this machine has no CA.
    """
    host, _, port = text.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) <= 65_535
    if not is_port or not _HOST.fullmatch(host):
        raise BadInput(f"address: expected HOST:PORT, got {text!r}")
    host = host.strip("[]")
    if ca is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise BadInput(
            f"address, {text}: expected --ca FILE with the site's CA, because it is not this machine, got none"
        )
    return Address(host, int(port), ca, certificate)


class Connection:
    """A connection to the service.

    `start` is called once if no service answers; `bearer` is used once a read needs a session.
    """

    def __init__(self, where: Path | Address, start: Callable[[], None] | None = None) -> None:
        self.where = where
        self.bearer: Bearer | None = None
        self.waiting: int | None = None
        """Number of orders that wait for a second signature by the signer of the last order, once one was submitted."""
        self._start = start

    @cached_property
    def _http(self) -> httpx.Client:
        import httpx

        where = self.where
        if isinstance(where, Path):
            # HTTP without TLS: to verify, httpx would read the CAs of the system for every command.
            transport, url = httpx.HTTPTransport(uds=str(where), verify=False), "http://appliance"
        else:
            transport, url = httpx.HTTPTransport(verify=where.tls() if where.ca else False), where.url
        return httpx.Client(
            transport=transport,
            base_url=url,
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        if "_http" in self.__dict__:
            self._http.close()

    @cached_property
    def about(self) -> About:
        """Return the service's description, which every command requests first.

        An embedded service is started if none runs.
        """
        if isinstance(self.where, Path) and not is_answering(self.where):
            if self._start is None:
                raise Unavailable(_explain_silence(self.where))
            self._start()
        return self.describe()

    def describe(self, seen: int | None = None) -> About:
        """Request the service's description, with the proof that the log begins with `seen` entries."""
        from appliance.api.log import About

        return self.call("GET", "/v1/about", About, query={} if seen is None else {"seen": seen}, reading=False)

    def get(self, path: str, model: type[T], **query: Parameter | None) -> T:
        """Read under the caller's session. Parameters that are None are omitted, and sequences are repeated."""
        return self.call("GET", path, model, query={k: v for k, v in query.items() if v is not None})

    def post(
        self, path: str, model: type[T], body: object, *, reading: bool = True, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> T:
        """Send a POST request with a model of `appliance.api` as its body."""
        return self.call("POST", path, model, body=body, reading=reading, timeout_s=timeout_s)

    def call(
        self,
        method: str,
        path: str,
        model: type[T],
        *,
        query: dict[str, Parameter] | None = None,
        body: object = None,
        reading: bool = True,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> T:
        """Send a request; return the response as a value of this type.

        If `reading`, the session's token is sent, and renewed once if the service refuses it.
        """
        from appliance.api.wire import json_value

        content = None if body is None else json.dumps(json_value(body)).encode("utf-8")
        headers = {"Content-Type": "application/json"} if content is not None else {}
        for renew in (False, True):
            with self._exchange(
                method, path, query, content, {**headers, **self._authority(reading, renew)}, timeout_s
            ) as answer:
                data = answer.read()
                if answer.status_code == 401 and reading and self.bearer is not None and not renew:
                    continue
                return _parse_response(model, answer.status_code, data, f"{method} {path}")
        raise AssertionError("unreachable: the second answer is returned or raised")

    def put(self, path: str, model: type[T], chunks: Callable[[], Iterator[bytes]], size: int) -> T:
        """Upload a stream of `size` bytes; it is sent again once if the service refused the session."""
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        for renew in (False, True):
            authority = self._authority(True, renew)
            with self._exchange("PUT", path, None, chunks(), {**headers, **authority}, LONG_TIMEOUT_S) as answer:
                data = answer.read()
                if answer.status_code == 401 and not renew:
                    continue
                return _parse_response(model, answer.status_code, data, f"PUT {path}")
        raise AssertionError("unreachable: the second answer is returned or raised")

    def require_answer(self) -> None:
        """Raise Unavailable if no service runs on this machine; none is started."""
        if isinstance(self.where, Path) and not is_answering(self.where):
            raise Unavailable(_explain_silence(self.where))

    def end_session(self, token: str) -> None:
        """End the session of this token, without renewing it."""
        with self._exchange(
            "DELETE", "/v1/sessions/own", None, None, {"Authorization": f"Bearer {token}"}, ANSWER_TIMEOUT_S
        ) as answer:
            if answer.status_code != 200:
                raise error_of(answer.status_code, answer.read(), "DELETE /v1/sessions/own")

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of a response as they arrive."""
        for renew in (False, True):
            with self._exchange("GET", path, None, None, self._authority(True, renew), LONG_TIMEOUT_S) as answer:
                if answer.status_code == 401 and self.bearer is not None and not renew:
                    continue
                if answer.status_code != 200:
                    raise error_of(answer.status_code, answer.read(), f"GET {path}")
                yield from answer.iter_bytes(_CHUNK_BYTES)
                return

    def _authority(self, reading: bool, renew: bool) -> dict[str, str]:
        if not reading:
            return {}
        if self.bearer is None:
            raise NotAuthenticated("session: expected one to read with, got none; give --key FILE and --as NAME")
        return {"Authorization": f"Bearer {self.bearer.token(renew=renew)}"}

    @contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        query: dict[str, Parameter] | None,
        content: bytes | Iterator[bytes] | None,
        headers: dict[str, str],
        timeout_s: float,
    ) -> Iterator[httpx.Response]:
        """Send one request and yield its response.

        Raises: Unavailable if the connection fails; the message says if the request may have been carried out.
        """
        import httpx

        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        try:
            with self._http.stream(
                method, path, params=query, content=content, headers=headers, timeout=timeout
            ) as answer:
                yield answer
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unavailable(_explain_silence(self.where, str(error))) from None
        except httpx.HTTPError as error:
            raise Unavailable(
                f"service, {method} {path}: expected an answer, got {type(error).__name__}; "
                "it may have been carried out; check before you repeat it: appliance ledger log"
            ) from None


def is_answering(path: Path) -> bool:
    """Return True if a service accepts connections at the socket.

    Raises: Denied if this account has no access to it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except PermissionError:
            raise Denied(
                f"service, {path}: expected access for your account, got permission denied; ask who runs it to take "
                "you into its socket_group, then log in anew"
            ) from None
        except OSError:
            return False
    return True


def _explain_silence(where: Path | Address, why: str = "") -> str:
    if isinstance(where, Path):
        return f"service, {where}: expected it to answer, got nothing; start it with: appliance serve"
    under = "in the clear" if where.ca is None else f"under a certificate of {where.ca}"
    return f"service, {where}: expected it to answer {under}, got {why or 'nothing'}; ask who runs it"


def _parse_response(model: type[T], status: int, data: bytes, what: str) -> T:
    if status != 200:
        raise error_of(status, data, what)
    from appliance.api.wire import parse_response

    return parse_response(model, data, what)


def error_of(status: int, data: bytes, what: str) -> ApplianceError:
    """Return the error of a response as the error that the service raised."""
    branch = _BRANCHES.get(status, Unavailable)
    try:
        content = json.loads(data)["error"]
        # The API for units has OpenAI's code in `code`.
        message, code = str(content["message"]), str(content.get("appliance_code") or content["code"])
        problems, rows, subject = (content.get(name) or () for name in ("reasons", "refusals", "subject"))
        reasons, refusals = tuple(map(str, problems)), parse_refusals(rows)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, BadInput):
        return branch(f"service, {what}: expected an answer of ours, got HTTP {status}: {data[:200]!r}")
    if issubclass(branch, Denied):
        return branch(str(subject or message), refusals=refusals, code=code)
    error = branch(message, code=code)
    error.reasons = reasons
    return error
