"""The pages of a person who was invited: they open the address, make a passkey, and prove it.

Nobody is signed in there. The address's secret comes in the body of each form, and no answer contains it. It says whose
passkey is made; two administrators enrol it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.errors import BadInput, NotAuthenticated, RateLimited
from appliance.formats.core.fields import parse_base64url
from appliance.web.console.core.desk import Desk
from appliance.web.console.signing import passkeys
from appliance.web.console.signing.statements import ASSERTION_FIELDS
from appliance.web.core.receiving import source_of
from appliance.workflows.invitations import accept_invitation, find_invitation, look_up

ADDRESS = "/invitation"
MOST_A_MINUTE = 12
"""Maximum forms that are accepted for one invitation in a minute. Three are needed."""
_MINUTE_S = 60.0


class Attempts:
    """The times at which forms of each invitation came, in the last minute."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._times: dict[str, deque[float]] = {}

    def take(self, invitation: str) -> None:
        """Note a form of an invitation, by the digest of its secret.

        Raises: RateLimited beyond the limit.
        """
        with self._lock:
            now = self._clock()
            self._times = {key: times for key, times in self._times.items() if now - times[-1] < _MINUTE_S}
            times = self._times.setdefault(invitation, deque(maxlen=MOST_A_MINUTE))
            if len(times) == MOST_A_MINUTE and now - times[0] < _MINUTE_S:
                left_s = round(_MINUTE_S - (now - times[0])) + 1
                got = f"expected at most {MOST_A_MINUTE} forms in a minute, got more"
                raise RateLimited(f"invitation: {got}; wait {left_s} s", retry_after_s=left_s)
            times.append(now)


def invitation_routes(desk: Desk, attempts: Attempts | None = None) -> list[Route]:
    """Return the routes of a person who was invited."""
    pages = _Invited(desk, attempts or Attempts())

    def show(request: Request) -> Response:
        return desk.render("signing/invitation.html", shell=None)

    return [
        Route(ADDRESS, show),
        Route(ADDRESS, pages.handler(pages.show), methods=["POST"]),
        Route(f"{ADDRESS}/passkey", pages.handler(pages.prove), methods=["POST"]),
        Route(f"{ADDRESS}/accepted", pages.handler(pages.accept), methods=["POST"]),
    ]


class _Invited:
    """The handlers of the three forms. Each comes with the address's secret."""

    def __init__(self, desk: Desk, attempts: Attempts) -> None:
        self._desk, self._attempts = desk, attempts

    def handler(
        self, respond: Callable[[Request, bytes, Mapping[str, str]], Response]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler that reads the secret.

        The page about a secret that opens nothing says why only if the invitation was withdrawn.
        """
        desk = self._desk

        def answer(request: Request, fields: dict[str, str]) -> Response:
            secret = _read_secret(fields)
            if (row := look_up(desk.context, secret)) is not None:
                self._attempts.take(row.secret)
            try:
                return respond(request, secret, fields)
            except NotAuthenticated as error:
                desk.authenticator.count(None, error)
                row = look_up(desk.context, secret)
                is_withdrawn = row is not None and row.withdrawn is not None
                return desk.render(
                    "signing/not_invited.html", status=error.status, shell=None, is_withdrawn=is_withdrawn
                )

        return desk.posted(answer, in_session=False)

    def show(self, request: Request, secret: bytes, fields: Mapping[str, str]) -> Response:
        """Return the page that says who is invited, on which the passkey is created."""
        desk, row = self._desk, find_invitation(self._desk.context, secret)
        texts = desk.context.ledger.disclosures([row.printed_name])
        return desk.render(
            "signing/invited.html",
            shell=None,
            invited=row,
            printed_name=texts[row.printed_name].text if row.printed_name in texts else "",
            refusal_reasons=passkeys.refuse_address(desk.context, desk.site.url),
            script_data=passkeys.describe_creation(desk, row.name),
            address=f"{ADDRESS}/passkey",
            url=desk.site.url,
            origin=desk.context.ledger.state.site.origin,
        )

    def prove(self, request: Request, secret: bytes, fields: Mapping[str, str]) -> Response:
        """Return the page on which the created passkey signs its statement."""
        desk, row = self._desk, find_invitation(self._desk.context, secret)
        statement = passkeys.make_statement(desk, row.name, fields)
        return desk.render(
            "signing/prove_invited.html",
            shell=None,
            name=statement.passkey,
            signing=passkeys.make_proving(desk, statement),
            empty=ASSERTION_FIELDS,
            address=f"{ADDRESS}/accepted",
        )

    def accept(self, request: Request, secret: bytes, fields: Mapping[str, str]) -> Response:
        """Record the proof, and return the page with the passkey's short code."""
        desk = self._desk
        statement, proof = passkeys.read_proof(fields)
        row = accept_invitation(desk.context, secret, proof, (desk.site.url,), source_of(request.scope))
        return desk.render("signing/accepted.html", shell=None, invited=row, keyid=statement.keyid, url=desk.site.url)


def _read_secret(fields: Mapping[str, str]) -> bytes:
    try:
        return parse_base64url(fields.get("secret", ""), "invitation, secret")
    except BadInput:
        return b""
