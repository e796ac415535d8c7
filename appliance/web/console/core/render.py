"""The template environment of the console, its filters, the frame of each page with its help link, and static files."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, pass_context
from jinja2.runtime import Context
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from appliance.addresses import address_of, address_of_error, address_of_refusal
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.order import Order
from appliance.domain.queries.measures import seconds_between
from appliance.domain.witnesses import refuse_unwitnessed_log
from appliance.errors import KINDS, NotFound
from appliance.formats.core.digest import short_code
from appliance.formats.core.text import show_bytes
from appliance.reports import templates
from appliance.reports.review.words import name_decision, shorten_decimals
from appliance.reports.templates import STYLE, when
from appliance.web.console.core.page import FormLink, Page, PageValue, Viewer
from appliance.web.console.core.why import find_pages
from appliance.workflows.core.context import LedgerContext

STATIC = Path(__file__).resolve().parents[1] / "static"
FOREVER = "public, max-age=31536000, immutable"
ASSET_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """A static file. `packed` is its content with gzip."""

    name: str
    kind: str
    content: bytes
    packed: bytes


class Assets:
    """All static files and the shared style, read once at the start."""

    def __init__(self, folder: Path = STATIC) -> None:
        self._names: dict[str, str] = {}
        self._assets: dict[str, Asset] = {}
        for path in sorted((*folder.iterdir(), STYLE)):
            if path.suffix in ASSET_TYPES:
                content = path.read_bytes()
                digest = hashlib.sha256(content).hexdigest()[:16]
                name = f"{path.stem}.{digest}{path.suffix}"
                self._names[path.name] = f"/static/{name}"
                self._assets[name] = Asset(name, ASSET_TYPES[path.suffix], content, gzip.compress(content, 9, mtime=0))

    def url(self, name: str) -> str:
        """Return the address of a file by its plain name.

        Raises: KeyError if there is none.
        """
        return self._names[name]

    async def respond(self, request: Request) -> Response:
        """Return the response with a file, without a thread.

        Raises: NotFound for another name.
        """
        asset = self._assets.get(request.path_params["name"])
        if asset is None:
            raise NotFound("file: expected one of the console, got another name")
        headers = {"Cache-Control": FOREVER, "Vary": "Accept-Encoding"}
        encodings = {part.partition(";")[0].strip() for part in request.headers.get("accept-encoding", "").split(",")}
        if "gzip" in encodings:
            return Response(asset.packed, media_type=asset.kind, headers={**headers, "Content-Encoding": "gzip"})
        return Response(asset.content, media_type=asset.kind, headers=headers)


FOLDER = Path(__file__).resolve().parents[1]
"""Folder of the templates."""
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_JSON = TypeAdapter(object)


def make_environment(assets: Assets) -> Environment:
    """Return the environment of all templates of the console."""
    environment = templates.make_environment([FOLDER])
    environment.filters.update(
        age=age,
        times=reword_times,
        decision=name_decision,
        size=size,
        number=number,
        words=words,
        decimal=decimal,
        short=shorten_decimals,
        json=pretty,
        label=label,
        subject=subject,
        is_time=is_time,
        capitalise=capitalise,
        source=name_source,
        role=name_role,
        roles=name_roles,
        # For a form's field, whose text is sent back: escaped for HTML, without `plain`.
        exact=environment.filters["escape"],
        kind=KINDS.__getitem__,
        short_code=short_code,
    )
    environment.globals.update(
        asset=assets.url,
        link=link,
        address=find_address,
        marks_reported=False,
        section=find_section,
        address_of_error=address_of_error,
        address_of_refusal=address_of_refusal,
        find_pages=find_pages,
    )
    return environment


_PATHS = {"entry": "/log/", "adapter": "/adapters/", "run": "/runs/", "dataset": "/datasets/", "part": "?tab="}


def find_address(kind: str, text: object) -> str:
    """Return the address of the page about an entry, adapter, run or dataset, or of a tab of the review page."""
    return f"{_PATHS[kind]}{text}"


def is_time(text: str) -> bool:
    """Return True if the text is a time as in entries and orders."""
    return _TIME.fullmatch(text) is not None


def reword_times(text: str) -> str:
    """Return a sentence in which each time as in entries is written for reading, with its zone."""
    return _TIME.sub(lambda found: f"{when(found[0])} UTC", text)


def age(seconds: float | None) -> str:
    """Return a duration in one unit: `12 s`, `3 min`, `5 h`, `2 days`; `never` for None."""
    if seconds is None:
        return "never"
    for most, unit, name in ((120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if seconds < most:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"


def label(name: str) -> str:
    """Return a field's name as words, without the suffix `_s`, because durations show their unit."""
    return name.removesuffix("_s").replace("_", " ")


def name_role(role: str) -> str:
    """Return a role in words, such as `reviewer for privacy` or `release owner of legal`."""
    kind, _, place = role.partition(":")
    words = kind.replace("-", " ")
    return words if not place else f"{words} {'of' if kind == 'release-owner' else 'for'} {place}"


def name_roles(roles: Iterable[str]) -> str:
    """Return roles in words, separated by commas."""
    return ", ".join(map(name_role, roles))


def name_source(source: str) -> str:
    """Return the source of an entry in words, such as `by command line, account 0`."""
    kind, _, place = source.partition(":")
    if kind == "unix":
        return f"by command line, account {place}" if place else "by command line"
    return f"by network, from {place}" if kind == "tcp" and place else source


def capitalise(text: str) -> str:
    """Return a text with a capital at its beginning. The rest stays as it is."""
    return text[:1].upper() + text[1:]


def subject(text: str) -> str:
    """Return a subject of an entry with its digest shortened."""
    kind, digest, rest = text.partition("sha256:")
    return f"{kind}{rest[:12]}…" if digest else text


def size(count: int | None) -> str:
    """Return a number of bytes for reading."""
    return "–" if count is None else show_bytes(count)


def number(value: float | int | str | None) -> str:
    """Format a count. A verdict in place of a count stays as it is."""
    return "–" if value is None else value if isinstance(value, str) else f"{value:,}"


def decimal(value: object, places: int = 3) -> str:
    """Format a decimal fraction, which signed documents contain as text."""
    try:
        return "–" if value is None else f"{float(str(value)):.{places}f}"
    except ValueError:
        return str(value)


def pretty(value: object) -> str:
    """Return indented JSON. It is escaped where it is inserted, like every text."""
    return _JSON.dump_json(value, indent=1, by_alias=True).decode()


def words(value: object) -> str:
    """Return any JSON value as one line of text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {words(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value)) or "none"
    return str(value)


def link(path: str, /, **parameters: Any) -> str:
    """Return a path with those parameters that have a value. A sequence is repeated."""
    given: list[tuple[str, str]] = []
    for name, value in parameters.items():
        if isinstance(value, str) or not isinstance(value, Sequence):
            given += [] if value in (None, "", False) else [(name, "true" if value is True else str(value))]
        else:
            given += [(name, str(item)) for item in value]
    return f"{path}?{urlencode(given)}" if given else path


def sign_link(order: type[Order], title: str = "", /, **given: object) -> FormLink:
    """Return the link to an order's form with these fields filled in. Its title is by default that of the action."""
    fields = [f"{name}:{value}" for name, value in given.items()]
    return FormLink(title=title or ACTIONS[order.action].title, path=link(f"/sign/{order.action}", given=fields))


class LogCondition(PageValue):
    """The condition of the log.

    `problems` lists why the log cannot be relied on now. `is_behind` is true for such a reason, or if a witness of the
    policy has not cosigned within its lifetime. `oldest_age_s` is the age of the oldest of these witnesses' last
    cosignatures, or None if one never cosigned.
    """

    origin: str
    size: int
    last_age_s: int
    cosigned: int
    witnesses: int
    oldest_age_s: int | None
    problems: tuple[str, ...]
    is_behind: bool


class Shell(PageValue):
    """The frame around a page: session, navigation and the condition of the log."""

    viewer: str
    roles: tuple[str, ...]
    until: str
    left_s: int
    csrf: str
    groups: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    """Path, title and symbol of each page that the viewer may see, by group."""
    log: LogCondition


def find_log_condition(context: LedgerContext) -> LogCondition:
    """Return the condition of the log, from the state and the valid policy, without a query to the database."""
    state = context.ledger.state
    now, rules = context.now(state), state.parameters
    witnesses_seen = [witness for witness in state.witnesses.values() if witness.vkey in rules.witnesses]
    ages = sorted(seconds_between(witness.time, now) for witness in witnesses_seen)
    problems = [*map(str, refuse_unwitnessed_log(state, now)), *(error.message for error in context.missing_from_log)]
    problems += ["heartbeat: expected one each minute, got one that hangs"] if context.stalled else []
    cosigned = sum(age <= rules.witness_lifetime_s for age in ages)
    return LogCondition(
        origin=state.site.origin,
        size=state.size,
        last_age_s=seconds_between(state.last_time, now),
        cosigned=cosigned,
        witnesses=len(rules.witnesses),
        oldest_age_s=ages[-1] if ages and len(ages) == len(rules.witnesses) else None,
        problems=tuple(problems),
        is_behind=bool(problems) or cosigned < len(rules.witnesses),
    )


def make_shell(context: LedgerContext, viewer: Viewer, pages: Sequence[Page]) -> Shell:
    """Return the frame of a page for this viewer."""
    listed = [page for page in pages if page.group and viewer.has(*page.seen_by)]
    groups = tuple(
        (group, tuple((page.path, page.title, page.symbol) for page in found))
        for group, found in groupby(listed, key=lambda page: page.group)
    )
    return Shell(
        viewer=viewer.name,
        roles=viewer.roles,
        until=viewer.until,
        left_s=seconds_between(context.now(context.ledger.state), viewer.until),
        csrf=viewer.csrf,
        groups=groups,
        log=find_log_condition(context),
    )


SECTIONS = {
    "administrators/health.html": "operations/monitoring/",
    "administrators/orders.html": "guides/administrators/",
    "administrators/people.html": "guides/people/",
    "administrators/person.html": "guides/people/",
    "administrators/policy.html": "guides/administrators/#change-the-policy",
    "auditors/archives.html": "guides/auditors/#removed-records",
    "auditors/checkpoint.html": "formats/witness/",
    "auditors/effective_access.html": "guides/auditors/#questions-and-commands",
    "auditors/entry.html": "guides/auditors/#a-proof-in-your-own-browser",
    "auditors/log.html": "guides/console/#searching-the-log",
    "auditors/state_at.html": "guides/auditors/#questions-and-commands",
    "core/refusal.html": "troubleshooting/",
    "core/sign_in.html": "guides/console/#signing-in-and-out",
    "home/home.html": "guides/console/#what-waits-for-you",
    "operators/base.html": "guides/models/",
    "operators/compare.html": "guides/training/#sweeps",
    "operators/data.html": "guides/operators/#import",
    "operators/dataset.html": "guides/datasets/#what-is-measured",
    "operators/imports.html": "guides/operators/#import",
    "operators/run.html": "guides/operators/#train",
    "operators/runs.html": "guides/operators/#train",
    "operators/plan.html": "guides/training/#sweeps",
    "operators/sweep.html": "guides/training/#sweeps",
    "operators/sweeps.html": "guides/training/#sweeps",
    "operators/validation_set.html": "guides/validators/#what-a-set-is",
    "releases/candidates.html": "guides/release-owners/#release-an-adapter",
    "releases/release.html": "guides/release-owners/",
    "releases/releases.html": "guides/release-owners/",
    "reviewers/adapter.html": "guides/console/#an-adapter-under-review",
    "reviewers/adapters.html": "guides/reviewers/#what-you-see",
    "reviewers/answers.html": "guides/reviewers/#samples",
    "reviewers/preview.html": "guides/reviewers/#samples",
    "reviewers/queue.html": "guides/reviewers/",
    "signing/accepted.html": "guides/console/#an-invitation",
    "signing/actions.html": "guides/console/#signing-an-order",
    "signing/checking.html": "guides/console/#a-file-of-rows",
    "signing/signed.html": "guides/console/#signing-an-order",
    "signing/form.html": "guides/console/#signing-an-order",
    "signing/help.html": "guides/console/#passkeys",
    "signing/identity.html": "guides/identity/",
    "signing/invitation.html": "guides/console/#an-invitation",
    "signing/invited.html": "guides/console/#an-invitation",
    "signing/new_passkey.html": "guides/console/#passkeys",
    "signing/not_invited.html": "guides/console/#an-invitation",
    "signing/passkeys.html": "guides/console/#passkeys",
    "signing/prove_invited.html": "guides/console/#an-invitation",
    "signing/prove_passkey.html": "guides/console/#passkeys",
    "signing/sessions.html": "guides/console/#signing-in-and-out",
    "signing/sign.html": "guides/console/#signing-an-order",
    "units/answer.html": "guides/units/#your-people-in-a-browser",
    "units/ask.html": "guides/units/#your-people-in-a-browser",
    "units/requests.html": "guides/units/#what-is-recorded",
    "units/usage.html": "guides/units/#limits-of-a-request",
}
"""Place in the manual by the template of a page."""


@pass_context
def find_section(context: Context) -> str:
    """Return the address of the manual's section about the page that is rendered."""
    return address_of(SECTIONS[context.name or ""])
