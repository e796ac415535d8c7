"""ID tokens of the site's identity provider: the way to the provider and the page that it sends a token to.

The browser alone talks to the provider. The provider's form is a request of another site, so the page that receives it
changes nothing: its script opens the session with the statement that this tab signed, or the page shows the token for
the command line whose statement it names.
"""

from __future__ import annotations

import re
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from appliance.domain.core.identity import IdentityProvider
from appliance.domain.core.names import Digest
from appliance.errors import BadInput, Denied, RefusalCode, Rejected
from appliance.formats.core.digest import parse_digest
from appliance.web.console.core.desk import Desk, read_form

ADDRESS = "/sign-in/identity"
"""Address of the page, which the site registers at the provider as the redirect URI."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

NOT_IDENTIFIED = RefusalCode(
    "not-identified",
    "state",
    "The identity provider did not sign you in. It reports: {problem}.",
    "Sign in again. If the provider refuses you again, ask the people who run it.",
)
NO_PROVIDER = RefusalCode(
    "no-identity-provider",
    "policy",
    "The policy set names no identity provider, so no session needs an ID token.",
    "Sign in without one.",
)


def make_provider_address(provider: IdentityProvider, url: str, nonce: Digest) -> str:
    """Return the address at which a person gets an ID token with this nonce, which is then sent to the console."""
    parameters = {
        "response_type": "id_token",
        "response_mode": "form_post",
        "scope": "openid",
        "client_id": provider.client_id,
        "redirect_uri": f"{url}{ADDRESS}",
        "nonce": nonce,
    }
    return f"{provider.authorization_endpoint}?{urlencode(parameters)}"


def identity_routes(desk: Desk) -> list[Route]:
    """Return the routes of the page for ID tokens."""

    def begin(request: Request) -> Response:
        """Return the page that leads a person of a command line to the provider."""
        if "nonce" not in request.query_params:
            return RedirectResponse("/sign-in", 303)
        nonce, provider = parse_digest(request.query_params["nonce"]), _find_provider(desk)
        address = make_provider_address(provider, desk.site.url, nonce)
        return desk.render("signing/identity.html", shell=None, provider=provider, address=address, token="")

    def show(fields: dict[str, str]) -> Response:
        provider, token = _find_provider(desk), fields.get("id_token", "")
        if problem := fields.get("error"):
            what = f"{problem}: {fields.get('error_description', 'no description')}"
            raise Denied("sign-in", refusals=(NOT_IDENTIFIED(problem=Rejected(what[:300])),), code="identity-refused")
        if _TOKEN.fullmatch(token) is None:
            raise BadInput("form, id_token: expected an ID token in the compact form, got another text")
        return desk.render("signing/identity.html", shell=None, provider=provider, address="", token=token)

    async def take(request: Request) -> Response:
        return await run_in_threadpool(show, await read_form(request))

    return [Route(ADDRESS, begin), Route(ADDRESS, take, methods=["POST"])]


def _find_provider(desk: Desk) -> IdentityProvider:
    provider = desk.context.ledger.state.parameters.identity_provider
    if provider is None:
        raise Denied("sign-in", refusals=(NO_PROVIDER(),), code="identity-refused")
    return provider
