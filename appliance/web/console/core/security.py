"""What every answer of the console says to the browser, and what it asks of a request that changes something."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request

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
"""Nothing from elsewhere, nothing written into a page, and no page inside another."""
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


class Site:
    """The one address under which browsers come, and what follows from it."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self.host = parts.netloc
        self.is_tls = parts.scheme == "https"
        # Browsers keep the cookies of all ports of a host together: each console has a name of its own.
        name = COOKIE if parts.port is None else f"{COOKIE}-{parts.port}"
        self.cookie = f"__Host-{name}" if self.is_tls else name

    @property
    def headers(self) -> dict[str, str]:
        return {**HEADERS, "Strict-Transport-Security": HSTS} if self.is_tls else dict(HEADERS)

    def is_named_by(self, headers: Headers) -> bool:
        """Whether the browser asked for this very host: another name that leads here may be a stranger's."""
        return headers.getlist("host") == [self.host]

    def read_cookie(self, request: Request) -> str | None:
        """None where there is none, or more than one of the name: a neighbour on another port may have set it."""
        sent = [part.strip().partition("=") for line in request.headers.getlist("cookie") for part in line.split(";")]
        found = [value for name, sign, value in sent if name == self.cookie and sign]
        return found[0] if len(found) == 1 and found[0] else None

    def set_cookie(self, value: str, seconds: int) -> str:
        ends = f"; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Strict"
        return f"{self.cookie}={value}{ends}{'; Secure' if self.is_tls else ''}"

    def check_source(self, headers: Headers) -> None:
        """Denied unless a page of this console sent the form. Under `no-referrer` a browser says `Origin: null`. Then
        Sec-Fetch-Site decides, which no page can set."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site not in (None, "same-origin") or origin not in (None, "null", self.url):
            raise _foreign(f"{site or 'no Sec-Fetch-Site'} from {origin or 'no origin'}")
        if site is None and origin != self.url:
            raise _foreign(f"no Sec-Fetch-Site and {origin or 'no origin'}")


def source_of(request: Request) -> str:
    """Where it came from, as entries have it."""
    return "tcp" if request.client is None else f"tcp:{request.client.host}"


def csrf_of(secret: str) -> str:
    """The token that the forms of a session carry: it follows from the cookie, and the cookie not from it."""
    return encode_base64url(hashlib.sha256(f"csrf:{secret}".encode()).digest())


def check_csrf(secret: str, given: object) -> None:
    if not isinstance(given, str) or not hmac.compare_digest(
        csrf_of(secret).encode(), given.encode("utf-8", "replace")
    ):
        raise _foreign("no token of this session")


def _foreign(got: str) -> ApplianceError:
    return Denied(f"form: expected one of a page of this console in the same session, got {got}", code="cross-site")
