"""HTTP over the service's Unix socket or over TLS: requests go in, values or an error of our own tree come out.

httpx is imported when the first request is made: it costs 0.1 s, which a command that asks nothing need not pay.
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
from typing import TYPE_CHECKING, Any, Protocol

from appliance.errors import (
    ApplianceError,
    BadInput,
    Conflict,
    Denied,
    NotAuthenticated,
    NotFound,
    Tampered,
    TooLarge,
    TooMany,
    Unavailable,
)
from appliance.formats.core.fields import show

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 120.0
LONG_TIMEOUT_S = 3_600.0
_CHUNK_BYTES = 1 << 20

_BRANCHES: dict[int, type[ApplianceError]] = {
    branch.status: branch
    for branch in (
        BadInput, TooLarge, NotAuthenticated, Denied, NotFound, Conflict, Tampered, Unavailable, TooMany,
    )
}  # fmt: skip


Parameter = str | int | Sequence[str]
"""Of a query; several values are given by several parameters of one name."""


class Bearer(Protocol):
    """What opens the door for reading; `renew` after the service has refused the token."""

    def token(self, *, renew: bool) -> str: ...


@dataclass(frozen=True)
class About:
    """What the service says of itself, before anything was proved."""

    origin: str
    log_key: str
    genesis: str
    version: str
    device: str
    bfloat16: bool
    single_administrator: bool
    policy: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Address:
    """Where people come in over TCP: under a certificate of this CA and no other, or in the clear on this machine.
    `certificate` is their own host's, where the site asks for one: PEM, and its key."""

    host: str
    port: int
    ca: Path | None
    certificate: tuple[Path, Path] | None = None

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'http' if self.ca is None else 'https'}://{self}"

    def tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(*self.certificate)
        except OSError as error:  # an SSLError is one too
            files = ", ".join(map(str, (self.ca, *(self.certificate or ()))))
            raise BadInput(f"service, {self}: expected PEM files that fit, got {files}: {error.args[-1]}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]")


def parse_address(text: str, ca: Path | None, certificate: tuple[Path, Path] | None = None) -> Address:
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


class Door:
    """`start` is called once when no service answers, `bearer` once a read needs a session."""

    def __init__(self, where: Path | Address, start: Callable[[], None] | None = None) -> None:
        self.where = where
        self.bearer: Bearer | None = None
        self.waiting: int | None = None
        """Orders that wait for the signer of the last order's second signature, once one was handed in."""
        self._start = start

    @cached_property
    def _http(self) -> httpx.Client:
        import httpx

        where = self.where
        if isinstance(where, Path):
            transport, url = httpx.HTTPTransport(uds=str(where)), "http://appliance"
        else:
            transport, url = httpx.HTTPTransport(verify=where.tls() if where.ca else False), where.url
        return httpx.Client(
            transport=transport,
            base_url=url,
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,
        )

    def close(self) -> None:
        if "_http" in self.__dict__:
            self._http.close()

    @cached_property
    def about(self) -> About:
        """Asked first by every command: here an embedded service is started when none runs."""
        if isinstance(self.where, Path) and not is_answering(self.where):
            if self._start is None:
                raise Unavailable(_nobody(self.where))
            self._start()
        answer = self.call("GET", "/v1/about", reading=False)
        try:
            return About(**{name: answer[name] for name in About.__dataclass_fields__})
        except (KeyError, TypeError):
            raise Unavailable(f"service, {self.where}: expected it to describe itself, got {show(answer)}") from None

    def get(self, path: str, **query: Parameter | None) -> Any:
        """A read, under the caller's session; parameters that are None are left out, a sequence is repeated."""
        return self.call("GET", path, query={k: v for k, v in query.items() if v is not None})

    def post(self, path: str, body: Any, *, reading: bool = True, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        return self.call("POST", path, body=body, reading=reading, timeout_s=timeout_s)

    def call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Parameter] | None = None,
        body: Any = None,
        reading: bool = True,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Any:
        """The answer's JSON. `reading`: with the session's token, renewed once when the service refuses it."""
        content = None if body is None else json.dumps(body).encode("utf-8")
        headers = {"Content-Type": "application/json"} if content is not None else {}
        for renew in (False, True):
            with self._exchange(
                method, path, query, content, {**headers, **self._authority(reading, renew)}, timeout_s
            ) as answer:
                data = answer.read()
                if answer.status_code == 401 and reading and self.bearer is not None and not renew:
                    continue
                return _value_of(answer.status_code, data, f"{method} {path}")
        raise AssertionError("unreachable: the second answer is returned or raised")

    def put(self, path: str, chunks: Callable[[], Iterator[bytes]], size: int) -> Any:
        """Sends a stream of `size` bytes; it is sent again once when the service has refused the session."""
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        for renew in (False, True):
            authority = self._authority(True, renew)
            with self._exchange("PUT", path, None, chunks(), {**headers, **authority}, LONG_TIMEOUT_S) as answer:
                data = answer.read()
                if answer.status_code == 401 and not renew:
                    continue
                return _value_of(answer.status_code, data, f"PUT {path}")
        raise AssertionError("unreachable: the second answer is returned or raised")

    def end_session(self, token: str) -> None:
        """Ends the session of this token; it is not renewed for that, and no service is started."""
        if isinstance(self.where, Path) and not is_answering(self.where):
            raise Unavailable(_nobody(self.where))
        with self._exchange(
            "DELETE", "/v1/sessions/own", None, None, {"Authorization": f"Bearer {token}"}, ANSWER_TIMEOUT_S
        ) as answer:
            _value_of(answer.status_code, answer.read(), "DELETE /v1/sessions/own")

    def stream(self, path: str) -> Iterator[bytes]:
        """The bytes of a read, as they come."""
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
        """One request and its answer; what fails on the way is Unavailable, and says whether it may have arrived."""
        import httpx

        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        try:
            with self._http.stream(
                method, path, params=query, content=content, headers=headers, timeout=timeout
            ) as answer:
                yield answer
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unavailable(_nobody(self.where, str(error))) from None
        except httpx.HTTPError as error:
            raise Unavailable(
                f"service, {method} {path}: expected an answer, got {type(error).__name__}; "
                "it may have been carried out; check before you repeat it: appliance ledger log"
            ) from None


def is_answering(path: Path) -> bool:
    """Whether a service accepts a connection at the socket; Denied where this account may not try."""
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


def _nobody(where: Path | Address, why: str = "") -> str:
    if isinstance(where, Path):
        return f"service, {where}: expected it to answer, got nothing; start it with: appliance serve"
    under = "in the clear" if where.ca is None else f"under a certificate of {where.ca}"
    return f"service, {where}: expected it to answer {under}, got {why or 'nothing'}; ask who runs it"


def _value_of(status: int, data: bytes, what: str) -> Any:
    if status != 200:
        raise error_of(status, data, what)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Unavailable(f"service, {what}: expected JSON, got {data[:60]!r}") from None


def error_of(status: int, data: bytes, what: str) -> ApplianceError:
    """The service's refusal as the error it was there."""
    branch = _BRANCHES.get(status, Unavailable)
    try:
        told = json.loads(data)["error"]
        # The units' door says OpenAI's code first.
        message, code = str(told["message"]), str(told.get("appliance_code") or told["code"])
        reasons = tuple(str(reason) for reason in told.get("reasons") or ())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return branch(f"service, {what}: expected an answer of ours, got HTTP {status}: {data[:200]!r}")
    error = branch(message, code=code)
    error.reasons = reasons
    return error
