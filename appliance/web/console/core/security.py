"""Security headers of every response, and checks of requests that change something."""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request

from appliance.domain.core.names import IDENTIFIER
from appliance.errors import ApplianceError, Denied
from appliance.formats.core.fields import encode_base64url

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content security policy: only the console's own files, no inline code, and no frames."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
HSTS = "max-age=31536000"
COOKIE = "appliance"


class ConsoleOrigin:
    """The one address of the console, and its cookie and headers."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self.host = parts.netloc
        self.is_tls = parts.scheme == "https"
        # Browsers share cookies between all ports of a host, so the name contains the port.
        name = COOKIE if parts.port is None else f"{COOKIE}-{parts.port}"
        self.cookie = f"__Host-{name}" if self.is_tls else name
        self.name_cookie = f"{self.cookie}-name"
        """Cookie with the name of the person who signed in last, so that they need not type it again. It grants
        nothing and ends with the browser or by signing out."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every response."""
        return {**HEADERS, "Strict-Transport-Security": HSTS} if self.is_tls else dict(HEADERS)

    def is_named_by(self, headers: Headers) -> bool:
        """Return True if the browser asked for this host.

        Another name that resolves to it could belong to an attacker.
        """
        return headers.getlist("host") == [self.host]

    def read_cookie(self, request: Request) -> str | None:
        """Return the session's cookie."""
        return _read_cookie(request, self.cookie)

    def read_name(self, request: Request) -> str:
        """Return the name of the person who signed in last, or ""."""
        name = _read_cookie(request, self.name_cookie) or ""
        return name if re.fullmatch(IDENTIFIER, name) else ""

    def set_cookie(self, value: str, seconds: int) -> str:
        """Return the value of a `Set-Cookie` header."""
        return self._set(self.cookie, value, f"; Max-Age={seconds}")

    def set_name(self, name: str) -> str:
        """Return the value of a `Set-Cookie` header with the name of the person who signed in; "" removes it."""
        return self._set(self.name_cookie, name, "" if name else "; Max-Age=0")

    def _set(self, cookie: str, value: str, age: str) -> str:
        return f"{cookie}={value}{age}; Path=/; HttpOnly; SameSite=Strict{'; Secure' if self.is_tls else ''}"

    def check_source(self, headers: Headers) -> None:
        """Raise Denied unless a page of this console sent the form.

        Under `no-referrer` a browser sends `Origin: null`. Then Sec-Fetch-Site decides, which pages cannot set.
        """
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site not in (None, "same-origin") or origin not in (None, "null", self.url):
            raise _foreign(f"{site or 'no Sec-Fetch-Site'} from {origin or 'no origin'}")
        if site is None and origin != self.url:
            raise _foreign(f"no Sec-Fetch-Site and {origin or 'no origin'}")


def _read_cookie(request: Request, cookie: str) -> str | None:
    """Return a cookie; None if there is none, or several, because a service on another port can set one."""
    cookies = [part.strip().partition("=") for line in request.headers.getlist("cookie") for part in line.split(";")]
    values = [value for name, sign, value in cookies if name == cookie and sign]
    return values[0] if len(values) == 1 and values[0] else None


def csrf_of(secret: str) -> str:
    """Return the CSRF token of a session: a digest of its cookie."""
    return encode_base64url(hashlib.sha256(f"csrf:{secret}".encode()).digest())


def check_csrf(secret: str, given: object) -> None:
    """Raise Denied unless the token is that of the session."""
    if not isinstance(given, str) or not hmac.compare_digest(
        csrf_of(secret).encode(), given.encode("utf-8", "replace")
    ):
        raise _foreign("no token of this session")


def _foreign(got: str) -> ApplianceError:
    return Denied(f"form: expected one of a page of this console in the same session, got {got}", code="cross-site")
