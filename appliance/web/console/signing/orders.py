"""Orders that are signed in the browser: the form, its draft, the page to sign, and submission.

The service makes the statement from the form. The page's script shows it from its bytes and asks a passkey to sign
their digest. The resulting envelope is subject to the same rules as any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated

from pydantic import StringConstraints
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from appliance.domain.actions.proposals import Proposal, check_documents, encode_proposal, parse_proposal, split_texts
from appliance.domain.actions.registry import ACTIONS, ORDERS
from appliance.domain.core.lookup import OrderInput
from appliance.domain.core.names import Time
from appliance.domain.core.order import Order, encode_order
from appliance.domain.core.records.serving import release_key
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.invitations import EnrolWithPasskey, Invite, describe_dropped_passkey
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.releases.activations import Activate, Rollback
from appliance.domain.releases.previews import TryAdapter, ViewSamples
from appliance.domain.releases.reviews import ReviewAdapter
from appliance.domain.runs.training import Train
from appliance.errors import (
    ApplianceError,
    BadInput,
    Conflict,
    Denied,
    NotAuthenticated,
    NotFound,
    Refusal,
    Unavailable,
)
from appliance.formats.core.digest import is_short_code
from appliance.formats.signatures.dsse import encode_envelope, parse_envelope
from appliance.reports.impact import describe_activation, describe_stop, list_terms
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.page import Page, PageValue, Query, Viewer
from appliance.web.console.core.why import Explained, explain
from appliance.web.console.operators.runs import GateOutlook, foresee_gates, list_plan_problems, plan_of
from appliance.web.console.signing import forms, statements
from appliance.web.console.signing.actions import describe_signers, may_sign
from appliance.web.console.signing.choices import ChoiceQuery
from appliance.web.console.signing.drafts import KEPT_S, Drafts, FormDraft
from appliance.web.console.signing.imports import (
    CHECK,
    MOST_BYTES,
    ImportCheck,
    import_routes,
    is_import,
    read_check,
    start_check,
)
from appliance.web.console.signing.initial_values import fill_initial_values
from appliance.web.core.receiving import source_of
from appliance.workflows import orders
from appliance.workflows.core.context import LedgerContext, RunContext
from appliance.workflows.invitations import read_proof
from appliance.workflows.proposals import propose
from appliance.workflows.queries.gates import read_gates
from appliance.workflows.queries.people import pending_order
from appliance.workflows.releases.review import adapter_row
from appliance.workflows.serving.previews import hold_prompts

_BACK = r"^(/start-sweep\?[!-~]*)?$"
Back = Annotated[str, StringConstraints(pattern=_BACK, max_length=4_000)]
"""Address of the plan of a sweep, or ""."""


class FormQuery(Query):
    """The action of a form, and values for some fields."""

    action: str
    given: tuple[str, ...] = ()
    """Values of fields that are filled in, as `name:value`."""
    back: Back = ""
    """The page to which the browser returns after the signature."""


class Form(PageValue):
    """The form of an order. `problem` is about the form as a whole, `refused` why its order was refused."""

    action: str
    title: str
    meaning: str
    signed_by: str
    may_sign: bool
    """True if the viewer has a role or a relation that the action needs."""
    fields: tuple[forms.Field, ...]
    problem: str = ""
    refused: Explained | None = None
    back: str = ""

    @property
    def parts(self) -> tuple[tuple[str, tuple[forms.Field, ...], bool], ...]:
        """The fields by folded part; the part "" is always shown. The last value says that a part begins open."""
        return tuple(
            (title, found, title == self._asked_for or any(one.is_changed or one.problem for one in found))
            for title, found in forms.parts_of(self.fields)
        )

    @property
    def _asked_for(self) -> str:
        """The title of the part that the chosen decision is about, or "none"."""
        return forms.CONDITIONS_PART if self._value_of("decision") == "approve-with-conditions" else "none"

    @property
    def adapter(self) -> str:
        """The adapter that the form names, or ""."""
        return self._value_of("adapter")

    def _value_of(self, name: str) -> str:
        return next((one.value for one in self.fields if one.name == name), "")

    @property
    def wrong(self) -> tuple[forms.Field, ...]:
        """The fields with a problem."""
        return tuple(one for one in self.fields if one.problem)

    @property
    def has_file(self) -> bool:
        """Return True if a field takes a file to upload."""
        return any(one.kind == "file" for one in self.fields)

    @property
    def reads_files(self) -> bool:
        """True if the page's script has to read a file."""
        return any(one.kind in ("file", "document") for one in self.fields)

    @property
    def makes_secret(self) -> bool:
        """True if the page's script has to make the secret of an invitation."""
        return any(one.kind == "secret" for one in self.fields)

    @property
    def kept_hours(self) -> int:
        """Hours for which the filled form is kept."""
        return round(KEPT_S / 3_600)

    @property
    def most_bytes(self) -> int:
        """Maximum bytes of a file."""
        return MOST_BYTES


def form(context: LedgerContext, viewer: Viewer, query: FormQuery) -> Form:
    """Return the form of an order.

    Raises: NotFound for an action without a form; Denied for a policy set unless the viewer is an administrator.
    """
    forms.model_of(query.action)
    given = {name: value for name, _, value in (one.partition(":") for one in query.given)}
    if query.action == AdoptPolicy.action:
        statements.check_administrator(viewer)
    given = fill_initial_values(context, viewer, query.action, given)
    return _make_form(context, viewer, query.action, given, {}).model_copy(update={"back": query.back})


def _make_form(
    context: LedgerContext, viewer: Viewer, action: str, given: Mapping[str, str], problems: Mapping[str, str]
) -> Form:
    row, now = ACTIONS[action], context.now(context.ledger.state)
    return Form(
        action=action,
        title=row.title,
        meaning=row.description,
        signed_by=describe_signers(row.signers),
        may_sign=may_sign(context, viewer, row),
        fields=forms.fill_fields(ChoiceQuery(context, viewer, action, now), given, problems),
        problem=problems.get("", ""),
    )


class CountersignedOrder(PageValue):
    """The order that is countersigned."""

    action: str
    title: str
    signer: str
    entry: int
    meaning: str
    file: str
    fields: str


class OrderToSign(PageValue):
    """An order that is ready to be signed.

    `countersigned` is the other order, if this one countersigns it. `comparison` is about the policy set that either
    adopts. `plan` says what a run will need on this machine, and `warnings` why its evaluation cannot show much.
    `change` says what the order would replace and what limits a release. `refusal_reasons` lists why the order would be
    refused now.
    """

    action: str
    title: str
    meaning: str
    signing: statements.Signing
    countersigned: CountersignedOrder | None
    comparison: statements.PolicySetComparison | None
    plan: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    change: tuple[tuple[str, str], ...]
    refusal_reasons: tuple[Refusal, ...]
    text: str

    @property
    def is_blocked(self) -> bool:
        """Return True if the order would be refused now."""
        return bool(self.refusal_reasons) or (self.comparison is not None and self.comparison.problem is not None)


PAGE = Page("/sign/{action}", "Sign an order", form)


def order_routes(desk: Desk) -> list[Route]:
    """Return the routes of filling a form in, preparing its order and submitting it."""
    handlers = _OrderHandlers(desk)
    return [
        *import_routes(desk),
        Route("/sign/{action}", desk.posted(handlers.keep), methods=["POST"]),
        Route("/sign/{action}/{draft}", handlers.show),
        Route("/signed", desk.posted(handlers.submit), methods=["POST"]),
    ]


def _check_viewer(viewer: Viewer, action: str) -> None:
    """Raise Denied unless the viewer may fill in forms, and is an administrator for a policy set."""
    PAGE.check(viewer)
    if action == AdoptPolicy.action:
        statements.check_administrator(viewer)


class _OrderHandlers:
    """The handlers of forms and orders, with the drafts that they share."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._drafts = desk, Drafts()

    def keep(self, request: Request, fields: dict[str, str]) -> Response:
        """Keep a filled form, and send the browser on to the page of its draft."""
        action, viewer = request.path_params["action"], self._desk.viewer(request)
        _check_viewer(viewer, action)
        for one in forms.fields_of(action):
            if one.kind == "yes":
                fields.setdefault(one.name, "")  # browsers send no field for a box without its mark
        back = fields.pop("back", "")
        if not re.fullmatch(_BACK, back):
            raise BadInput(f"back: expected the address of the plan of a sweep, got {back!r:.60}")
        draft = self._drafts.keep(viewer.name, action, fields, back)
        return RedirectResponse(f"/sign/{action}/{draft.key}", 303)

    def show(self, request: Request) -> Response:
        """Return the page to sign the draft's order, or its form if something is wrong or is to be changed."""
        desk, action = self._desk, request.path_params["action"]
        viewer = desk.viewer(request)
        _check_viewer(viewer, action)
        try:
            draft = self._drafts.find(viewer.name, action, request.path_params["draft"])
        except NotFound as error:
            empty = form(desk.context, viewer, FormQuery(action=action))
            return self._render(request, viewer, empty.model_copy(update={"problem": error.message}), error.status)
        if draft.entry is not None:
            return RedirectResponse(f"/signed/{draft.entry}", 303)
        if "change" in request.query_params:
            return self._form(request, viewer, draft, {}, 200)
        order, problems = forms.read_draft(action, draft.fields, desk.context.clock())
        if problems:
            return self._form(request, viewer, draft, problems, BadInput.status)
        try:
            return self._prepare(request, viewer, draft, order)
        except (Conflict, NotAuthenticated, Unavailable):
            raise
        except ApplianceError as error:
            problems = {} if error.refusals else forms.assign_problems(action, error)
            return self._form(request, viewer, draft, problems, error.status, error)

    def _form(
        self,
        request: Request,
        viewer: Viewer,
        draft: FormDraft,
        problems: Mapping[str, str],
        status: int,
        error: ApplianceError | None = None,
    ) -> Response:
        value = _make_form(self._desk.context, viewer, draft.action, draft.fields, problems)
        refused = explain(error) if error is not None and error.refusals else draft.refused
        value = value.model_copy(update={"refused": refused, "back": draft.back})
        return self._render(request, viewer, value, status)

    def _render(self, request: Request, viewer: Viewer, value: Form, status: int) -> Response:
        return self._desk.render_page(request, viewer, PAGE.template, status=status, page=PAGE, value=value)

    def _prepare(self, request: Request, viewer: Viewer, draft: FormDraft, order: OrderInput) -> Response:
        desk, action = self._desk, draft.action
        if is_import(action):
            # The fields of a draft never change, so its check is of the order's own files.
            if not draft.check:
                key = start_check(desk.context, viewer.name, action, order)
                draft = self._drafts.change(draft, check=key)
            checked = read_check(desk.context, viewer.name, draft.check, blind=bool(order.values.get("blind")))
            if request.query_params.get(CHECK) != draft.check:
                return self._show_check(request, viewer, draft, checked)
            if not checked.passed:
                raise Denied("import: expected a check that found nothing wrong, got another; begin again")
        if action == ReviewAdapter.action:
            adapter, decision = str(order.values.get("adapter")), str(order.values.get("decision"))
            fetched = desk.opened.of(desk.site.read_cookie(request) or "", adapter)
            order.values["opened"] = statements.opened_by(desk.context, adapter, decision, fetched)
        if action == Train.action and (digest := order.values.pop("gates", None)):
            order.documents["gates"] = read_gates(desk.context, digest)
        if action == EnrolWithPasskey.action and (keyid := order.values.pop("possession", None)):
            order.documents["possession"] = read_proof(desk.context, keyid)
        code = str(order.values.pop(forms.SHORT_CODE, None) or "")
        proposal = propose(desk.context, viewer.name, action, order)
        _check_short_code(desk.context, proposal.order, code)
        fields = _make_form(desk.context, viewer, action, draft.fields, {}).fields
        unchanged = tuple(one.label for one in fields if one.part and not one.is_changed)
        value = to_sign(desk.context, viewer, proposal, desk.site.url, unchanged)
        wrong = {one.order_field: one.sentence for one in value.refusal_reasons if one.order_field}
        if wrong:
            return self._form(request, viewer, draft, wrong, BadInput.status)
        return desk.render_page(
            request,
            viewer,
            "signing/sign.html",
            page=PAGE,
            value=value,
            draft=draft,
            empty=statements.ASSERTION_FIELDS,
            again=f"{request.url.path}?change=form",
        )

    def _show_check(self, request: Request, viewer: Viewer, draft: FormDraft, checked: ImportCheck) -> Response:
        """Return the page of the check of an import's rows."""
        desk = self._desk
        return desk.render_page(
            request,
            viewer,
            "signing/checking.html",
            page=PAGE,
            title=ACTIONS[draft.action].title,
            again=f"{request.url.path}?change=form",
            checked=checked,
            next=f"{request.url.path}?{CHECK}={draft.check}",
        )

    def submit(self, request: Request, fields: Mapping[str, str]) -> Response:
        """Submit a signed order. Send the browser on to the page of what the order did, or back to its form."""
        desk = self._desk
        viewer = desk.viewer(request)
        proposal, _ = parse_proposal(fields.get("file", "").encode("utf-8"))
        order = proposal.order
        if order.signer != viewer.name:
            raise Denied(
                f"order {order.action}: expected one signed by {viewer.name}, got one signed by {order.signer}"
            )
        draft = self._find_draft(viewer, order, fields.get("draft", ""))
        try:
            submitted = self._sign(request, viewer, proposal, fields)
        except ApplianceError as error:
            if draft is None:
                raise
            self._drafts.change(draft, refused=explain(error))
            return RedirectResponse(f"/sign/{draft.action}/{draft.key}", 303)
        index = submitted.appended.entry.index
        if draft is not None:
            self._drafts.finish(draft, index)
        if isinstance(order, ViewSamples | TryAdapter):
            return RedirectResponse(f"/previews/{submitted.digest}", 303)
        if draft is not None and draft.back:
            return RedirectResponse(draft.back, 303)
        return RedirectResponse(f"/signed/{index}", 303)

    def _find_draft(self, viewer: Viewer, order: Order, key: str) -> FormDraft | None:
        """Return the draft of a signed order; None if it is no longer kept, since the order itself is complete."""
        try:
            return self._drafts.find(viewer.name, order.action, key)
        except NotFound:
            return None

    def _sign(
        self, request: Request, viewer: Viewer, proposal: Proposal, fields: Mapping[str, str]
    ) -> orders.SubmittedOrder:
        desk = self._desk
        try:
            envelope = statements.read_envelope(
                encode_order(proposal.order), fields, desk.context.ledger.state, viewer.name
            )
            texts, prompts = split_texts(proposal)
            if prompts:
                hold_prompts(desk.context, viewer.name, prompts)
            submission = orders.Submission(
                envelope=encode_envelope(envelope),
                disclosures=texts,
                documents=proposal.documents,
                source=source_of(request.scope),
                refuse=partial(_check_opened, desk, desk.site.read_cookie(request) or ""),
            )
            return orders.submit(desk.context, submission)
        except NotAuthenticated as error:
            # The session is valid, but the signature is not.
            desk.authenticator.count(None, error)
            raise Denied(error.message, code="wrong-signature") from None


def to_sign(
    context: RunContext, viewer: Viewer, proposal: Proposal, url: str, unchanged: tuple[str, ...] = ()
) -> OrderToSign:
    """Return the page to sign an order. `unchanged` are the labels of values that the person left as they were."""
    state, order = context.ledger.state, proposal.order
    now = orders.find_decision_time(context, state, order)
    keys = statements.list_valid_passkeys(state, viewer.name, url, context.now(state))
    allowed = tuple(key.passkey.credential_id for key in keys if key.passkey is not None)
    waiting = _waiting(context, order.order) if isinstance(order, Countersign) else None
    recipe = order.recipe if isinstance(order, Train) else None
    unfit = () if recipe is None else list_plan_problems(context, recipe)
    outlook = GateOutlook() if recipe is None else foresee_gates(context, recipe, proposal.documents.get("gates"))
    return OrderToSign(
        action=order.action,
        title=ACTIONS[order.action].title,
        meaning=ACTIONS[order.action].explain(order),
        signing=statements.make_signing(
            encode_proposal(proposal), "order:", viewer.name, url, allowed, type(order), unchanged
        ),
        countersigned=None if waiting is None else _describe_countersigned(*waiting),
        comparison=statements.compare_policies(context, viewer, proposal if waiting is None else waiting[0]),
        plan=() if recipe is None else (*plan_of(context, recipe).items(), *outlook.facts),
        warnings=outlook.warnings,
        change=describe_change(context, order if waiting is None else waiting[0].order, now),
        refusal_reasons=(*orders.check(context, viewer.name, encode_order(order)), *unfit),
        text=encode_order(order).decode("utf-8"),
    )


def describe_change(context: LedgerContext, order: Order, now: Time) -> tuple[tuple[str, str], ...]:
    """Return what an order would replace or stop: the passkey of an invitation, or releases. `now`: of its decision.

    An activation also has its first end and the conditions that limit it.
    """
    state = context.ledger.state
    if isinstance(order, Invite):
        row = state.invitations.get(order.principal)
        return () if row is None or row.keyid is None else (("passkey", describe_dropped_passkey(row.name, row.keyid)),)
    if not isinstance(order, Activate | Rollback):
        return describe_stop(state, order, now)
    adapter = state.adapters.get(order.name)
    if adapter is None:
        return ()
    current = state.releases.get(release_key(order.unit, order.served_model))
    return describe_activation(current, list_terms(*adapter_row(context, adapter).read_terms(order.unit)))


def _check_short_code(context: LedgerContext, order: Order, text: str) -> None:
    """Compare the short code that the signer typed with that of the passkey which the order enrols.

    Raises: BadInput for another one.
    """
    enrolled = _waiting(context, order.order)[0].order if isinstance(order, Countersign) else order
    if isinstance(enrolled, EnrolWithPasskey) and not is_short_code(text, enrolled.keyid):
        raise BadInput(
            f"short code: expected that of the passkey of {enrolled.principal}, got {'another' if text else 'none'}; "
            "ask the person to read it to you again, and do not sign if it differs"
        )


def _waiting(context: LedgerContext, digest: str) -> tuple[Proposal, int]:
    """Return the pending order, from the bytes that its signer signed, and the index of its entry."""
    pending, documents, disclosures = pending_order(context, digest)
    order = ORDERS.parse(parse_envelope(documents.pop("order")).payload)
    check_documents(order, documents)
    return Proposal(order, disclosures, documents), pending.index


def _describe_countersigned(proposal: Proposal, entry: int) -> CountersignedOrder:
    order = proposal.order
    return CountersignedOrder(
        action=order.action,
        title=ACTIONS[order.action].title,
        signer=order.signer,
        entry=entry,
        meaning=ACTIONS[order.action].explain(order),
        file=encode_proposal(proposal).decode("utf-8"),
        fields=json.dumps(statements.describe_fields(type(order))),
    )


def _check_opened(desk: Desk, secret: str, order: Order) -> tuple[Refusal, ...]:
    if not isinstance(order, ReviewAdapter):
        return ()
    return statements.against_opened(desk.context, order, desk.opened.of(secret, order.name))
