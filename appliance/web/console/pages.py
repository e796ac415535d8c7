"""The one list of pages, in the order in which the navigation shows them."""

from __future__ import annotations

from appliance.web.console.administrators import health, orders, people, policy
from appliance.web.console.auditors import checkpoint, could_load, entry, log, past
from appliance.web.console.home import home
from appliance.web.console.operators import curves, data, imports, run, runs
from appliance.web.console.releases import candidates, releases
from appliance.web.console.reviewers import adapter, adapters, queue
from appliance.web.console.signing import orders as sign
from appliance.web.console.signing import passkeys, sessions
from appliance.web.console.units import ask, requests, usage

PAGES = (
    home.PAGE,
    queue.PAGE,
    adapters.PAGE,
    adapter.PAGE,
    candidates.PAGE,
    releases.PAGE,
    releases.RELEASE,
    ask.PAGE,
    requests.PAGE,
    usage.PAGE,
    runs.PAGE,
    run.PAGE,
    curves.PAGE,
    data.PAGE,
    data.DATASET,
    imports.PAGE,
    log.PAGE,
    entry.PAGE,
    past.PAGE,
    could_load.PAGE,
    checkpoint.PAGE,
    sign.VERBS_PAGE,
    sign.PAGE,
    passkeys.PAGE,
    sessions.PAGE,
    people.PAGE,
    people.PERSON,
    orders.PAGE,
    policy.PAGE,
    health.PAGE,
)
