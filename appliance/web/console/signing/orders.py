"""An order signed in the browser: its form, what is signed, and its entry.

The service makes the statement from the form. The page's script shows it from its bytes, and asks a passkey to sign
their digest. What comes back is an envelope like any other: the same rules decide on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from appliance.domain.core.order import Order, encode_order
from appliance.domain.governance.endorsement import Endorse
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.releases.reviews import Review
from appliance.domain.rulebook.proposals import Proposal, check_documents, encode_proposal, parse_proposal
from appliance.domain.rulebook.registry import ORDERS, VERBS
from appliance.domain.runs.training import Train
from appliance.errors import Denied, NotAuthenticated, NotFound
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import parse_disclosure_value
from appliance.formats.core.fields import parse_base64
from appliance.formats.signatures.dsse import encode_envelope, parse_envelope
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.page import PEOPLE, Page, Query, Value, Viewer
from appliance.web.console.core.security import source_of
from appliance.web.console.core.shell import make_shell
from appliance.web.console.core.why import Reason, explain_reasons
from appliance.web.console.operators.plans import against_plan, plan_of
from appliance.web.console.signing.forms import COMMAND_LINE, Field, fields_of, model_of, read_draft
from appliance.web.console.signing.imports import CHECK, MOST_BYTES, Checks, import_routes, is_import
from appliance.web.console.signing.opened import against_opened, opened_by
from appliance.web.console.signing.policies import Comparison, Trials, check_administrator, compare_policies
from appliance.web.console.signing.statements import (
    ASSERTION_FIELDS,
    Signing,
    make_signing,
    members_json,
    read_envelope,
    standing_passkeys,
)
from appliance.workflows import orders
from appliance.workflows.core.context import Context
from appliance.workflows.proposals import Draft, propose
from appliance.workflows.queries import people
from appliance.workflows.queries.people import pending_orders


class VerbsQuery(Query):
    pass


class VerbRow(Value):
    """`here`: whether it can be signed in the browser."""

    verb: str
    title: str
    group: str
    signers: tuple[str, ...]
    meaning: str
    here: bool


class Verbs(Value):
    verbs: tuple[VerbRow, ...]

    @property
    def groups(self) -> tuple[tuple[str, tuple[VerbRow, ...]], ...]:
        """What the viewer may sign, by subject."""
        found = {name: tuple(row for row in self.verbs if row.group == name) for name in GROUPS.values()}
        return tuple((name, rows) for name, rows in found.items() if rows)


GROUPS = {
    "data": "Data",
    "runs": "Training",
    "releases": "Reviews and releases",
    "serving": "Applications and tokens",
    "governance": "People, keys and policy",
    "retention": "Texts and holds",
}
"""The subjects that have verbs, in words."""


def verbs(context: Context, viewer: Viewer, query: VerbsQuery) -> Verbs:
    """Every verb that one of the viewer's roles may sign, and those that need no role."""
    rows = [
        VerbRow(
            verb=row.name,
            title=row.title,
            group=GROUPS[row.order.__module__.split(".")[2]],
            signers=row.signers,
            meaning=row.told,
            here=row.name not in COMMAND_LINE,
        )
        for row in VERBS.values()
        if row.name != Endorse.verb and _may(viewer, row.signers)
    ]
    return Verbs(verbs=tuple(rows))


def _may(viewer: Viewer, signers: tuple[str, ...]) -> bool:
    kinds = {signer.partition(":")[0] for signer in signers}
    return viewer.has(*kinds) or ("any reviewer" in kinds and viewer.has("reviewer")) or bool(kinds & _RELATIONS)


_RELATIONS = {"the key's owner", "who ordered it"}


class FormQuery(Query):
    verb: str
    given: tuple[str, ...] = ()
    """`name:value` of fields that are filled in."""


class Folded(Value):
    """The first and last field of a part that is opened on demand."""

    first: str = ""
    last: str = ""
    count: int = 0


class Form(Value):
    verb: str
    title: str
    meaning: str
    signers: tuple[str, ...]
    fields: tuple[Field, ...]

    @property
    def folded(self) -> Folded:
        """The recipe's values that need no answer; they are one run of fields."""
        names = [one.name for one in self.fields if one.name.startswith("recipe.") and one.optional]
        return Folded(first=names[0], last=names[-1], count=len(names)) if names else Folded()

    @property
    def has_file(self) -> bool:
        return any(one.kind == "file" for one in self.fields)

    @property
    def most_bytes(self) -> int:
        """Of a file, in a browser."""
        return MOST_BYTES


def form(context: Context, viewer: Viewer, query: FormQuery) -> Form:
    row = VERBS[model_of(query.verb).verb]
    given = {name: value for name, _, value in (one.partition(":") for one in query.given)}
    if query.verb == AdoptPolicy.verb:
        check_administrator(viewer)
        given = policy_in_force(context)
    known = _suggestions(context, viewer)
    if len(known["field"]) == 1:
        given = {"field": known["field"][0], **given}
    fields = [one.model_copy(update={"suggestions": known.get(one.name, ())}) for one in fields_of(query.verb, given)]
    return Form(
        verb=query.verb,
        title=row.title,
        meaning=row.told,
        signers=row.signers,
        fields=tuple(fields),
    )


def policy_in_force(context: Context) -> dict[str, str]:
    """The set that is changed into another, as its folder's files have it."""
    held = people.policy(context)["policy"]
    return {
        "policy.name": held["name"],
        "policy.parameters": json.dumps(held["parameters"], indent=2),
        "policy.cedar": held["cedar"],
        "policy.schema": held["cedar_schema"],
    }


def _suggestions(context: Context, viewer: Viewer) -> dict[str, tuple[str, ...]]:
    """Names that fit a field; another can be typed."""
    state = context.ledger.state
    names = {row.name: row.roles for row in state.principals.values() if row.revoked is None}
    people_ = tuple(name for name, roles in names.items() if "unit" not in roles)
    adapters = tuple(name for name, row in state.adapters.items() if row.revoked is None)
    found = {
        "adapter": adapters,
        "dataset": tuple(name for name, _ in state.datasets.items()),
        "base": tuple(name for name, _ in state.bases.items()),
        "run": tuple(name for name, _ in state.runs.items()),
        "unit": tuple(name for name, roles in names.items() if "unit" in roles),
        "principal": people_,
        "owner": people_,
        "field": viewer.places("reviewer"),
        "classification": state.parameters.classifications,
        "licence": state.parameters.licences,
        "exposure": state.parameters.exposures,
        "purpose": state.parameters.purposes,
    }
    found |= {f"recipe.{name}": found[name] for name in ("base", "dataset")}
    return {name: values[-MOST_SUGGESTED:] for name, values in found.items()}


MOST_SUGGESTED = 100


class Endorsed(Value):
    verb: str
    signer: str
    entry: int
    meaning: str
    file: str
    members: str


class ToSign(Value):
    """`endorsed`: the other order, where this one endorses it. `comparison`: of the policy set that either adopts.
    `plan`: what a run will take on this machine. `against`: why it would be refused now."""

    verb: str
    title: str
    meaning: str
    signing: Signing
    endorsed: Endorsed | None
    comparison: Comparison | None
    plan: tuple[tuple[str, str], ...]
    against: tuple[Reason, ...]
    text: str


VERBS_PAGE = Page(
    "/sign", "Sign an order", PEOPLE, VerbsQuery, verbs, "signing/verbs.html", group="Orders", symbol="seal"
)
PAGE = Page("/sign/{verb}", "Sign an order", PEOPLE, FormQuery, form, "signing/form.html")


def order_routes(desk: Desk) -> list[Route]:
    checks = Checks()
    return [
        *import_routes(desk, checks),
        Route("/sign/{verb}", _Prepare(desk, checks).take, methods=["POST"]),
        Route("/signed", _Submit(desk).take, methods=["POST"]),
    ]


class _Prepare:
    def __init__(self, desk: Desk, checks: Checks) -> None:
        self._desk, self._checks, self._trials = desk, checks, Trials()

    async def take(self, request: Request) -> Response:
        fields = await self._desk.form(request)
        return await run_in_threadpool(self._show, request, fields)

    def _check(self, request: Request, viewer: Viewer, verb: str, fields: Mapping[str, str], draft: Draft) -> Response:
        """The rows are checked first; the page goes on when that has ended."""
        desk = self._desk
        key = self._checks.start(desk.context, viewer.name, verb, draft)
        return desk.render(
            "signing/checking.html",
            page=PAGE,
            shell=make_shell(desk.context, viewer, desk.pages),
            path=request.url.path,
            title=VERBS[verb].title,
            verb=verb,
            fields=fields,
            again=_form_again(verb, fields),
            checked=self._checks.read(desk.context, viewer.name, key),
        )

    def _show(self, request: Request, fields: Mapping[str, str]) -> Response:
        desk, verb = self._desk, request.path_params["verb"]
        viewer = desk.viewer(request)
        PAGE.check(viewer)
        if verb == AdoptPolicy.verb:
            check_administrator(viewer)
        given = dict(fields)
        check = given.pop(CHECK, "")
        draft = read_draft(verb, given, desk.context.clock())
        if is_import(verb):
            if not check:
                return self._check(request, viewer, verb, given, draft)
            self._checks.require(desk.context, viewer.name, check, draft)
        if verb == Review.verb:
            adapter, decision = str(draft.values.get("adapter")), str(draft.values.get("decision"))
            fetched = desk.opened.of(desk.site.read_cookie(request) or "", adapter)
            draft.values["opened"] = opened_by(desk.context, adapter, decision, fetched)
        proposal = propose(desk.context, viewer.name, verb, draft)
        value = to_sign(desk.context, viewer, proposal, desk.site.url, self._trials)
        shell = make_shell(desk.context, viewer, desk.pages)
        return desk.render(
            "signing/sign.html",
            page=PAGE,
            shell=shell,
            value=value,
            path=request.url.path,
            empty=ASSERTION_FIELDS,
            again=_form_again(verb, given),
        )


def _form_again(verb: str, fields: Mapping[str, str]) -> str:
    """The form with its short fields filled in. An address is remembered by browsers, so texts are not in it."""
    kept = [one.name for one in fields_of(verb, {}) if one.kind not in _NOT_IN_AN_ADDRESS]
    given = [f"{name}:{fields[name]}" for name in kept if fields.get(name)]
    return f"/sign/{verb}?{urlencode([('given', one) for one in given])}"


_NOT_IN_AN_ADDRESS = ("text", "document", "file")


def to_sign(context: Context, viewer: Viewer, proposal: Proposal, url: str, trials: Trials) -> ToSign:
    state, order = context.ledger.state, proposal.order
    keys = standing_passkeys(state, viewer.name, url, context.now(state))
    allowed = tuple(key.passkey.credential_id for key in keys if key.passkey is not None)
    waiting = _waiting(context, order.order) if isinstance(order, Endorse) else None
    recipe = order.recipe if isinstance(order, Train) else None
    unfit = () if recipe is None else against_plan(context, recipe)
    return ToSign(
        verb=order.verb,
        title=VERBS[order.verb].title,
        meaning=VERBS[order.verb].means(order),
        signing=make_signing(encode_proposal(proposal), "order:", viewer.name, url, allowed, type(order)),
        endorsed=None if waiting is None else _endorsed(*waiting),
        comparison=compare_policies(context, viewer, proposal if waiting is None else waiting[0], trials),
        plan=() if recipe is None else tuple(plan_of(context, recipe).items()),
        against=explain_reasons((*orders.check(context, viewer.name, encode_order(order)), *unfit)),
        text=encode_order(order).decode("utf-8"),
    )


def _waiting(context: Context, digest: str) -> tuple[Proposal, int]:
    """The order that waits, from the bytes that its signer signed, and its entry."""
    for row in pending_orders(context):
        if row["digest"] == digest:
            order = ORDERS.parse(parse_envelope(encode_canonical(row["envelope"])).payload)
            documents = {role: parse_base64(text, role) for role, text in row["documents"].items()}
            check_documents(order, documents)
            texts = tuple(parse_disclosure_value(one) for one in row["disclosures"])
            return Proposal(order, texts, documents), row["index"]
    raise NotFound(f"order: expected one that waits for a second administrator, got {digest!r:.90}")


def _endorsed(proposal: Proposal, entry: int) -> Endorsed:
    order = proposal.order
    return Endorsed(
        verb=order.verb,
        signer=order.signer,
        entry=entry,
        meaning=VERBS[order.verb].means(order),
        file=encode_proposal(proposal).decode("utf-8"),
        members=members_json(type(order)),
    )


class _Submit:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def take(self, request: Request) -> Response:
        fields = await self._desk.form(request)
        return await run_in_threadpool(self._submit, request, fields)

    def _submit(self, request: Request, fields: Mapping[str, str]) -> Response:
        desk = self._desk
        viewer = desk.viewer(request)
        proposal, _ = parse_proposal(fields.get("file", "").encode("utf-8"))
        order = proposal.order
        if order.signer != viewer.name:
            raise Denied(f"order {order.verb}: expected one signed by {viewer.name}, got one signed by {order.signer}")
        try:
            envelope = read_envelope(encode_order(order), fields, desk.context.ledger.state, viewer.name)
            submission = orders.Submission(
                envelope=encode_envelope(envelope),
                disclosures=proposal.disclosures,
                documents=proposal.documents,
                source=source_of(request),
                against=partial(_unopened, desk, desk.site.read_cookie(request) or ""),
            )
            submitted = orders.submit(desk.context, submission)
        except NotAuthenticated as error:
            # The session stands: what does not hold is the signature.
            desk.door.count(None, error)
            raise Denied(error.message, code="wrong-signature") from None
        return RedirectResponse(f"/log/{submitted.appended.entry.index}", 303)


def _unopened(desk: Desk, secret: str, order: Order) -> tuple[str, ...]:
    if not isinstance(order, Review):
        return ()
    return against_opened(desk.context, order, desk.opened.of(secret, order.name))
