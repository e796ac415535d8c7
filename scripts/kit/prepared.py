"""Parts that are the same in every service of this checkout, made once in the process that forks services.

The app of the people's API has some hundred routes. Building them took half of the processor's time of a service that
starts, answers one request and ends; the digest of the code took a tenth.
"""

from __future__ import annotations

from typing import Any, cast

from fastapi import FastAPI

from appliance.web.core.auth import CallerAuthenticator
from appliance.web.people.api import people_app
from appliance.wiring import serving
from appliance.workflows.core.context import Context, describe_code


class _Later:
    """A stand-in for an object that only the fork has."""

    def __getattr__(self, name: str) -> Any:
        if name == "_object":
            raise RuntimeError("expected the object of a forked service, got its use before the fork")
        return getattr(self._object, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_object":
            object.__setattr__(self, name, value)
        else:
            setattr(self._object, name, value)


def prepare() -> None:
    """Make these parts for the services that are forked from this process."""
    describe_code()
    context, authenticator = _Later(), _Later()
    app = people_app(cast(Context, context), cast(CallerAuthenticator, authenticator), None)
    for route in app.router.routes:
        # The first request to an app completes its routes.
        route.matches({"type": "http", "method": "GET", "path": "/", "root_path": "", "headers": [], "app": app})

    def give(own: Context, counted: CallerAuthenticator, console_url: str | None = None) -> FastAPI:
        if console_url is not None:
            return people_app(own, counted, console_url)
        context._object, authenticator._object = own, counted
        return app

    changed: Any = serving
    changed.people_app = give
