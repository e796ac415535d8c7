"""The routes of the people's API, used by the command line.

Each route parses its input and calls one workflow.
"""

from __future__ import annotations

import json
from functools import cache, partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from appliance.api import data as data_api
from appliance.api import log as log_api
from appliance.api import operations as operations_api
from appliance.api import people as people_api
from appliance.api import releases as releases_api
from appliance.api import runs as runs_api
from appliance.domain.core.decisions import Delegation
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import Value
from appliance.domain.core.records.data import Base, Dataset, Import, ValidationSet
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import AdapterEvaluation, Run, TrainingCheckpoint
from appliance.domain.core.records.serving import Release
from appliance.domain.core.records.site import Hold, WitnessRecord
from appliance.domain.core.state import Table
from appliance.domain.core.words import add_advice, unknown_word
from appliance.domain.queries.review.reported_state import ReportedState
from appliance.domain.queries.review.values import ReviewPage
from appliance.domain.queries.rows import DatasetUses
from appliance.domain.queries.unit_reading import find_unit_reader
from appliance.errors import BadInput, NotFound, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import parse_digest
from appliance.formats.core.fields import MAX_DECIMAL
from appliance.formats.log.checkpoint import MAX_SIZE
from appliance.web.core.auth import LINK_S, CallerAuthenticator, Session
from appliance.web.core.errors import install, people_body
from appliance.web.core.receiving import Delivery, read_size, run_while_awaited, source_of, take_upload
from appliance.web.people.middleware import check_unit, follow
from appliance.web.people.parsing import MAX_PUBLIC_VALUES, body_of, describe
from appliance.workflows import governance, orders, restoration, witnesses
from appliance.workflows.backups.listing import list_rows
from appliance.workflows.core.context import Context, LedgerContext, RunContext, ServingContext, WorkerContext
from appliance.workflows.core.prompts import Answers
from appliance.workflows.data import checks
from appliance.workflows.operations.status import status, storage
from appliance.workflows.queries import log, people, questions, spans, verification, work
from appliance.workflows.queries.log import LogFilters, show
from appliance.workflows.queries.people import pending_orders
from appliance.workflows.queries.work import import_status, recipe_facts, replay_status, run_progress, run_steps
from appliance.workflows.releases import exports, review
from appliance.workflows.releases.review import adapter_row, read_reported_state, review_page
from appliance.workflows.runs import planning
from appliance.workflows.serving import previews

Wait = Annotated[float, Query(ge=0, le=25)]
"""Maximum seconds that a request waits for news."""


def _find_session(request: Request, authorization: Annotated[str | None, Header()] = None) -> Session:
    """Return the session of a request, which may be for people only."""
    session: Session = request.app.state.authenticator.person(authorization)
    check_unit(request.app.state.context, session, request.scope["path"])
    return session


Asking = Annotated[Session, Depends(_find_session)]
"""The session of the person or unit that asks."""


def people_app(context: Context, authenticator: CallerAuthenticator, console_url: str | None = None) -> FastAPI:
    """Return the app of the people's API."""
    app = FastAPI(title="appliance, the people's API", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.context, app.state.authenticator = context, authenticator
    install(app, people_body, lambda request, error: authenticator.count(None, error))
    public, private = APIRouter(), APIRouter(dependencies=[Depends(_find_session)])
    _sessions(public, context, authenticator, console_url)
    _console(private, authenticator, console_url)
    _orders(public, private, context)
    _tables(private, context)
    _runs(private, context)
    _adapters(private, context)
    _questions(private, context)
    _previews(private, context)
    _ledger(private, context)
    _keeping(private, context)

    @private.get("/v1/openapi.json", include_in_schema=False)
    def document() -> dict[str, Any]:
        return described()

    app.include_router(public)
    app.include_router(private)
    described = cache(partial(describe, app))
    return app


def _sends(media: str) -> dict[int | str, dict[str, Any]]:
    """Return what the document says of a route whose response is no JSON."""
    return {200: {"content": {media: {}}}}


def _sessions(
    router: APIRouter, context: WorkerContext, authenticator: CallerAuthenticator, console: str | None
) -> None:
    @router.get("/v1/about")
    def about(seen: Annotated[int | None, Query(ge=0, le=MAX_SIZE)] = None) -> log_api.About:
        return log.about(context, seen)

    @router.get("/v1/clock")
    def clock() -> people_api.Clock:
        return people.clock(context)

    @router.get("/v1/restoration")
    def describe_restoration(
        kept: Annotated[int | None, Query(ge=1, le=MAX_SIZE)] = None,
        keyid: Annotated[list[str], Query(max_length=2)] = [],  # noqa: B006
    ) -> log_api.RestorationAnswer:
        return restoration.describe(context, kept, keyid)

    @router.post("/v1/sessions/challenge")
    def challenge() -> people_api.Challenge:
        needed = console is not None and context.ledger.state.parameters.identity_provider is not None
        page = f"{console}/sign-in/identity" if needed else None
        return people_api.Challenge(nonce=authenticator.challenge(), identity_page=page)

    @router.post("/v1/sessions")
    def open_session(
        request: Request,
        body: Annotated[people_api.SessionRequest, body_of(people_api.SessionRequest, MAX_PUBLIC_VALUES)],
    ) -> people_api.OpenedSession:
        data = encode_canonical(body.envelope)
        token, session = authenticator.open_session(data, source_of(request.scope), body.identity_token)
        principal = context.ledger.state.principals.get(session.principal)
        roles = () if principal is None else principal.roles
        return people_api.OpenedSession(
            token=token, principal=session.principal, roles=roles, expires_at=session.expires_at
        )

    @router.delete("/v1/sessions/own")
    def end_session(request: Request, authorization: Annotated[str | None, Header()] = None) -> people_api.EmptyBody:
        authenticator.end_session(authorization, source_of(request.scope))
        return people_api.EmptyBody()


def _console(router: APIRouter, authenticator: CallerAuthenticator, url: str | None) -> None:
    def expect_url() -> str:
        if url is None:
            raise Unavailable(
                'console: expected the setting console, such as "127.0.0.1:8330", got off; '
                "set it in appliance.toml and start the service again",
                code="console-off",
            )
        return url

    @router.get("/v1/console")
    def address() -> people_api.ConsoleAddress:
        return people_api.ConsoleAddress(url=expect_url())

    @router.post("/v1/console/links")
    def link(authorization: Annotated[str | None, Header()] = None) -> people_api.ConsoleLink:
        return people_api.ConsoleLink(url=f"{expect_url()}/sign-in/{authenticator.link(authorization)}", seconds=LINK_S)


def _orders(public: APIRouter, private: APIRouter, context: Context) -> None:
    @public.post("/v1/orders")
    def submit(
        request: Request, body: Annotated[people_api.OrderRequest, body_of(people_api.OrderRequest, MAX_PUBLIC_VALUES)]
    ) -> people_api.OrderReceipt:
        submission = orders.Submission(
            envelope=encode_canonical(body.envelope),
            disclosures=body.disclosures,
            documents=body.documents,
            source=source_of(request.scope),
        )
        submitted = orders.submit(context, submission)
        return people_api.OrderReceipt(
            bytes=submitted.appended.entry_bytes,
            proof=tuple(orders.prove(context, submitted)),
            checkpoint=submitted.appended.checkpoint.decode("utf-8"),
            waiting=len(people.waiting_for(context, submitted.appended.entry.actor)),
        )

    @private.post("/v1/orders/check")
    def check(
        body: Annotated[people_api.OrderCheck, body_of(people_api.OrderCheck)], session: Asking
    ) -> people_api.OrderRefusals:
        return people_api.OrderRefusals(refusals=orders.check(context, session.principal, body.statement))

    @private.get("/v1/orders/waiting")
    def waiting(session: Asking) -> tuple[people_api.WaitingOrder, ...]:
        return people.waiting_for(context, session.principal)

    @private.get("/v1/orders/pending")
    def pending() -> list[people_api.PendingOrder]:
        return pending_orders(context)

    @private.put("/v1/uploads/{digest}")
    async def put_upload(digest: str, request: Request, session: Asking) -> people_api.UploadReceipt:
        size = read_size(request.headers)
        await take_upload(context, session.principal, parse_digest(digest), size, request.stream())
        return people_api.UploadReceipt(digest=digest, bytes=size)

    @private.post("/v1/policy/test")
    def test_policy(
        body: Annotated[people_api.PolicyTest, body_of(people_api.PolicyTest)], session: Asking
    ) -> people_api.PolicyTestResults:
        return people.test_policy(context, session.principal, body.policy, body.cases)


def _tables(router: APIRouter, context: RunContext) -> None:
    @router.get("/v1/status")
    def service_status(session: Asking) -> operations_api.Status:
        return status(context, session.principal)

    @router.get("/v1/storage")
    def service_storage() -> operations_api.Storage:
        return storage(context)

    @router.get("/v1/backups")
    def backups() -> list[operations_api.BackupRow]:
        return list_rows(context)

    @router.get("/v1/principals")
    def principals(session: Asking) -> list[Principal]:
        return people.principals(context, find_unit_reader(context.ledger.state, session.principal))

    @router.get("/v1/policy")
    def policy() -> people_api.Policy:
        return people.policy(context)

    @router.get("/v1/rules")
    def rules() -> people_api.Rules:
        return people.rules(context)

    @router.get("/v1/imports/{order}")
    async def an_import(order: str, session: Asking, wait_s: Wait = 0) -> data_api.ImportStatus:
        key, status = parse_digest(order), partial(import_status, context, principal=session.principal)
        return await follow(context.progress, key, partial(status, key), wait_s)

    for name, row in _TABLES.items():
        _table(router, context, name, row)


_TABLES: dict[str, type[Value]] = {
    "bases": Base,
    "datasets": Dataset,
    "validation-sets": ValidationSet,
    "runs": Run,
    "adapters": releases_api.Adapter,
    "imports": Import,
    "evaluations": AdapterEvaluation,
    "releases": Release,
    "holds": Hold,
    "witnesses": WitnessRecord,
    "delegations": Delegation,
}
"""The type of the rows of each table. Those of the first five also have an address of their own."""


def _table(router: APIRouter, context: LedgerContext, name: str, model: type[Value]) -> None:
    def table() -> Table[Any]:
        found: Table[Any] = getattr(context.ledger.state, name.replace("-", "_"))
        return found

    def describe(row: Any) -> Any:
        return adapter_row(context, row) if model is releases_api.Adapter else row

    @router.get(f"/v1/{name}", name=name, response_model=list[model])  # type: ignore[valid-type]
    def rows() -> list[Any]:
        return [describe(row) for row in table().values()]

    if model not in (Base, Dataset, ValidationSet, Run, releases_api.Adapter):
        return

    @router.get(f"/v1/{name}/{{key}}", name=f"one of {name}", response_model=model)
    def row(key: str) -> Any:
        found_row = table().get(key)
        if found_row is None:
            what = name.removesuffix("s")
            known = [known for known, _ in table().items()]
            raise NotFound(add_advice(unknown_word(what, key, known), f"list them with: appliance {what} list"))
        return describe(found_row)


def _runs(router: APIRouter, context: RunContext) -> None:
    @router.get("/v1/runs/{run}/progress")
    async def progress(run: str, after: Annotated[int, Query(ge=0)] = 0, wait_s: Wait = 0) -> runs_api.RunProgress:
        look = partial(run_progress, context, run, after)
        return await follow(context.progress, run, look, wait_s, lambda found: bool(found.frames) or found.ended)

    @router.get("/v1/runs/{run}/checkpoints")
    def training_checkpoints(run: str) -> list[TrainingCheckpoint]:
        return work.training_checkpoints(context, run)

    @router.get("/v1/runs/{run}/steps", responses=_sends("application/jsonl"))
    def steps(run: str) -> Response:
        return Response(run_steps(context, run), media_type="application/jsonl")

    @router.get("/v1/replays/{order}")
    async def replay(order: str, wait_s: Wait = 0) -> runs_api.ReplayStatus:
        key = parse_digest(order)
        return await follow(context.progress, key, partial(replay_status, context, key), wait_s)

    @router.post("/v1/calibrations")
    def calibrate(
        body: Annotated[runs_api.CalibrationRequest, body_of(runs_api.CalibrationRequest)], session: Asking
    ) -> runs_api.WorkStarted:
        return runs_api.WorkStarted(key=planning.order_calibration(context, session.principal, body.recipe))

    @router.get("/v1/calibrations/{key}")
    async def calibration(key: str, session: Asking, wait_s: Wait = 0) -> runs_api.CalibrationStatus:
        look = partial(planning.calibration_status, context, session.principal, key)
        return await follow(context.progress, key, look, wait_s)

    @router.post("/v1/dataset-checks")
    def check_rows(
        body: Annotated[data_api.RowsToCheck, body_of(data_api.RowsToCheck)], session: Asking
    ) -> runs_api.WorkStarted:
        return runs_api.WorkStarted(key=checks.order_check(context, session.principal, body))

    @router.get("/v1/dataset-checks/{key}")
    async def checked_rows(key: str, session: Asking, wait_s: Wait = 0) -> data_api.CheckStatus:
        look = partial(checks.check_status, context, session.principal, key)
        return await follow(context.progress, key, look, wait_s)

    @router.get("/v1/recipes/facts")
    def facts(base: str, dataset: str) -> runs_api.RecipeFacts:
        return recipe_facts(context, base, dataset)


def _adapters(router: APIRouter, context: LedgerContext) -> None:
    @router.get("/v1/adapters/{name}/review")
    def reported_state(name: str) -> ReportedState:
        return read_reported_state(context, name)

    @router.get("/v1/adapters/{name}/page")
    def page(name: str) -> ReviewPage:
        return review_page(context, name)

    @router.get("/v1/adapters/{name}/files/{path:path}")
    def file(name: str, path: str) -> Response:
        return Response(review.adapter_file(context, name, path), media_type="application/octet-stream")

    @router.get("/v1/exports/{order}")
    def exported(order: str) -> releases_api.ExportPacket:
        return exports.export_packet(context, parse_digest(order))

    @router.get("/v1/adapters/{name}/history")
    def history(name: str) -> releases_api.AdapterHistory:
        return questions.read_adapter_history(context, name)


def _questions(router: APIRouter, context: LedgerContext) -> None:
    @router.get("/v1/units/{unit}/effective-access")
    def effective_access(
        unit: str, at: str | None = None, since: str | None = None, until: str | None = None
    ) -> log_api.EffectiveAccess | log_api.AccessPeriods:
        if since is not None and at is None:
            return spans.effective_access_between(context, unit, since, until)
        if since is not None or until is not None:
            raise BadInput("effective-access: expected `at`, or `since` with or without `until`, got others")
        return questions.effective_access_at(context, unit, at)

    @router.get("/v1/datasets/{name}/uses")
    def uses(name: str) -> tuple[DatasetUses, ...]:
        return questions.dataset_uses(context, name)

    @router.get("/v1/datasets/{name}/labels")
    def labels(name: str) -> dict[str, data_api.SplitRows]:
        return questions.dataset_labels(context, name)

    @router.post("/v1/datasets/{name}/row")
    def row(
        name: str, body: Annotated[data_api.RowRequest, body_of(data_api.RowRequest)], session: Asking
    ) -> list[data_api.RowsFound]:
        return questions.dataset_row(context, session.principal, name, body.text)

    @router.get("/v1/ledger/state")
    def state(
        session: Asking,
        at: str | None = None,
        kind: Annotated[list[str], Query()] = [],  # noqa: B006
    ) -> log_api.StateAt:
        return questions.state_as_of(context, at, kind, find_unit_reader(context.ledger.state, session.principal))


def _previews(router: APIRouter, context: ServingContext) -> None:
    """Add the routes of sample views and trials.

    Prompts are sent before their order. The responses are given only to the person who ordered them.
    """

    @router.post("/v1/prompts")
    def put_prompts(
        body: Annotated[releases_api.PromptsRequest, body_of(releases_api.PromptsRequest)], session: Asking
    ) -> releases_api.PromptsHeld:
        return releases_api.PromptsHeld(held=previews.hold_prompts(context, session.principal, body.prompts))

    @router.get("/v1/previews/{order}", response_model=releases_api.PreviewStatus)
    async def look(order: str, session: Asking, wait_s: Wait = 0) -> Response:
        digest, person = parse_digest(order), session.principal
        find = partial(previews.preview_status, context, person, digest)
        current = await follow(context.progress, previews.preview_key(person, digest), find, wait_s)
        if not current.ended or current.error is not None:
            return Response(current.model_dump_json(), media_type="application/json")

        def render(answers: Answers) -> bytes:
            result = releases_api.PreviewResult.model_validate_json(json.dumps(answers.result))
            return current.model_copy(update={"result": result}).model_dump_json(exclude_unset=True).encode()

        body, record = await run_in_threadpool(previews.deliver_answers, context, person, digest, render)
        return Delivery(body, "application/json", record)


def _keeping(router: APIRouter, context: LedgerContext) -> None:
    """Add the routes of witnesses and of the log's own keys."""

    @router.get("/v1/witness-request", responses=_sends("text/plain"))
    def request(witness: str, old: Annotated[int | None, Query(ge=0)] = None) -> Response:
        return Response(witnesses.request(context, witness, old), media_type="text/plain; charset=utf-8")

    @router.post("/v1/cosignatures")
    def cosignature(
        request: Request, body: Annotated[log_api.CosignatureRequest, body_of(log_api.CosignatureRequest)]
    ) -> log_api.Cosignature:
        entry = parse_entry(witnesses.accept(context, body.note.encode(), source_of(request.scope)).entry_bytes)
        return log_api.Cosignature(
            index=entry.index, **{name: entry.body[name] for name in ("witness", "size", "time")}
        )

    @router.post("/v1/log-keys")
    def log_key(
        body: Annotated[log_api.LogKeyRequest, body_of(log_api.LogKeyRequest)], session: Asking
    ) -> log_api.NewLogKey:
        vkey = governance.next_log_key(context, session.principal, post_quantum=body.post_quantum)
        return log_api.NewLogKey(vkey=vkey)

    @router.post("/v1/post-quantum-keys")
    def post_quantum_keys(session: Asking) -> log_api.NewPostQuantumKeys:
        return governance.make_post_quantum_keys(context, session.principal)


def _ledger(router: APIRouter, context: RunContext) -> None:
    @router.get("/v1/documents/{digest}")
    def document(digest: str) -> Response:
        return Response(context.ledger.document(parse_digest(digest)), media_type="application/octet-stream")

    @router.get("/v1/ledger")
    def find(filters: Annotated[LogFilters, Query()], session: Asking) -> log_api.LogPage:
        return log.find(context, filters, find_unit_reader(context.ledger.state, session.principal))

    @router.get("/v1/ledger/export", responses=_sends("application/x-tar"))
    def export() -> StreamingResponse:
        return StreamingResponse(log.export(context), media_type="application/x-tar")

    @router.post("/v1/ledger/verify")
    async def verify(
        request: Request, body: Annotated[log_api.VerifyRequest, body_of(log_api.VerifyRequest)]
    ) -> log_api.ServiceReport:
        return await run_while_awaited(request, partial(verification.verify, context, body.trust))

    @router.get("/v1/ledger/{index}")
    def entry(index: Annotated[int, Path(ge=0, le=MAX_DECIMAL)], session: Asking) -> log_api.EntryWithProof:
        return show(context, index, find_unit_reader(context.ledger.state, session.principal))
