"""The list of all pages, in the order of the navigation, and the OpenAPI document of the console's addresses.

The console serves pages, so it does not serve this document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.domain.actions.registry import ACTIONS
from appliance.web.console.administrators import pages
from appliance.web.console.administrators.pages import Examine, make_health_page
from appliance.web.console.auditors import effective_access, entry, log, moments
from appliance.web.console.core.events import ChangesQuery
from appliance.web.console.core.page import Page
from appliance.web.console.home import home
from appliance.web.console.operators import data, inputs, run, runs, sweeps
from appliance.web.console.releases import releases
from appliance.web.console.reviewers import adapter
from appliance.web.console.signing import actions, done, orders, passkeys, sessions
from appliance.web.console.signing.statements import ASSERTION_FIELDS
from appliance.web.console.units import ask, requests
from appliance.web.console.units.requests import Measure, make_usage_page
from appliance.web.core.openapi import HTML, Operation, describe_operations


def make_pages(measure: Measure, examine: Examine) -> tuple[Page, ...]:
    """Return all pages: `measure` gives a unit's limits and usage, `examine` the findings of the service's checks."""
    return (
        home.PAGE,
        adapter.QUEUE_PAGE,
        adapter.ADAPTERS_PAGE,
        adapter.PAGE,
        releases.CANDIDATES_PAGE,
        releases.PAGE,
        releases.RELEASE,
        ask.PAGE,
        requests.PAGE,
        make_usage_page(measure),
        runs.RUNS_PAGE,
        run.PAGE,
        runs.CURVES_PAGE,
        sweeps.SWEEPS_PAGE,
        sweeps.PLAN_PAGE,
        sweeps.SWEEP_PAGE,
        data.PAGE,
        inputs.BASE,
        inputs.DATASET,
        inputs.VALIDATION_SET,
        data.IMPORTS_PAGE,
        log.PAGE,
        entry.PAGE,
        log.ARCHIVES_PAGE,
        moments.STATE_AT_PAGE,
        effective_access.PAGE,
        moments.CHECKPOINT_PAGE,
        actions.PAGE,
        orders.PAGE,
        done.PAGE,
        passkeys.PAGE,
        sessions.PAGE,
        pages.PEOPLE_PAGE,
        pages.PERSON,
        pages.ORDERS_PAGE,
        pages.POLICY_PAGE,
        make_health_page(examine),
    )


PAGES = make_pages(lambda unit: ((), ()), tuple)
"""All pages, without measurements and checks."""


_BYTES, _EVENTS = "application/octet-stream", "text/event-stream"
_ACTIONS = {"action": tuple(sorted(name for name, row in ACTIONS.items() if row.has_form))}
_ASK = ("csrf", "served_model", "text", "system", "max_tokens")
_OTHERS: Mapping[str, Operation] = {
    "GET /": Operation(media=HTML, needs_session=False),
    "GET /sign-in": Operation(media=HTML, needs_session=False),
    "GET /sign-in/identity": Operation(media=HTML, needs_session=False),
    "POST /sign-in/identity": Operation(
        media=HTML, fields=("id_token", "error", "error_description"), needs_session=False
    ),
    "GET /sign-in/passkey.json": Operation(needs_session=False),
    "POST /sign-in/passkey.json": Operation(fields=("file", *ASSERTION_FIELDS, "identity_token"), needs_session=False),
    "GET /sign-in/{code}": Operation(media=HTML, needs_session=False),
    "POST /sign-in/{code}": Operation(media=HTML, fields=("csrf",), needs_session=False),
    "POST /sign-out": Operation(media=HTML, fields=("csrf",)),
    "GET /session.json": Operation(),
    "POST /sessions": Operation(media=HTML, fields=("csrf", "entry")),
    "POST /sign/{action}": Operation(media=HTML, fields=("csrf",), choices=_ACTIONS),
    "GET /sign/{action}/{draft}": Operation(media=HTML, choices=_ACTIONS),
    "POST /signed": Operation(media=HTML, fields=("csrf", "file", "draft", *ASSERTION_FIELDS)),
    "PUT /uploads/{digest}": Operation(),
    "GET /help/passkeys": Operation(media=HTML, needs_session=False),
    "GET /passkeys/new": Operation(media=HTML),
    "POST /passkeys/new": Operation(media=HTML, fields=("csrf", "name", "data")),
    "POST /passkeys/proof": Operation(fields=("csrf", "file", *ASSERTION_FIELDS)),
    "GET /invitation": Operation(media=HTML, needs_session=False),
    "POST /invitation": Operation(media=HTML, fields=("secret",), needs_session=False),
    "POST /invitation/passkey": Operation(media=HTML, fields=("secret", "name", "data"), needs_session=False),
    "POST /invitation/accepted": Operation(
        media=HTML, fields=("secret", "file", *ASSERTION_FIELDS), needs_session=False
    ),
    "GET /previews/{order}": Operation(media=HTML),
    "POST /previews/{order}": Operation(media=HTML, fields=("csrf",)),
    "POST /ask": Operation(media=HTML, fields=_ASK),
    "GET /changes/events": Operation(query=ChangesQuery, media=_EVENTS),
    "GET /runs/events": Operation(media=_EVENTS),
    "GET /runs/{run}/events": Operation(media=_EVENTS),
    "GET /exports/ledger.tar": Operation(media="application/x-tar"),
    "GET /log/{index}/documents/{role}": Operation(media=_BYTES),
    "GET /log/{index}/proof": Operation(media=_BYTES),
    "GET /proof.html": Operation(media=HTML, needs_session=False),
    "GET /static/{name}": Operation(media=_BYTES, needs_session=False),
    "GET /docs": Operation(media=HTML, needs_session=False),
    "GET /docs/{name:path}": Operation(media=HTML, needs_session=False),
}
"""The addresses that are no pages. Tests compare all with the routes."""


def list_operations(pages: Sequence[Page] = PAGES) -> dict[str, Operation]:
    """Return the operations of all addresses, by method and path. Each page is also JSON, and its table CSV."""
    found = dict(_OTHERS)
    for page in pages:
        choices = _ACTIONS if page.path == "/sign/{action}" else None
        found[f"GET {page.path}"] = Operation(query=page.query, media=HTML, choices=choices)
        found[f"GET {page.path}.json"] = Operation(query=page.query, choices=choices)
        if page.table is not None:
            found[f"GET {page.path}.csv"] = Operation(query=page.query, media="text/csv")
    return found


def describe() -> dict[str, Any]:
    """Return the OpenAPI document of the console's addresses."""
    cookie = {"type": "apiKey", "in": "cookie", "name": "appliance-8330"}
    return describe_operations("appliance, the console", list_operations(), cookie)
