"""The people's door: each request of the command line, later of the console. A route parses, calls one workflow."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import parse_value
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.words import unknown_word
from appliance.domain.recipe.parsing import parse_resolved
from appliance.domain.releases.looks import MOST_PROMPTS
from appliance.errors import BadInput, NotFound, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import parse_disclosure_value
from appliance.formats.core.digest import parse_digest
from appliance.formats.core.fields import MAX_DECIMAL, encode_base64
from appliance.web.core.auth import LINK_S, Doorkeeper, Session
from appliance.web.core.errors import install, people_body
from appliance.web.core.leaving import run_while_awaited
from appliance.web.core.receiving import read_size, take_upload
from appliance.web.people.following import follow, has_ended, has_frames, is_settled
from appliance.web.people.units import check_unit
from appliance.workflows import orders
from appliance.workflows.core.context import Context
from appliance.workflows.data import checks
from appliance.workflows.governance import administration
from appliance.workflows.operations.status import status
from appliance.workflows.operations.storage import storage
from appliance.workflows.queries import log, people, questions, spans, verification, work
from appliance.workflows.queries.log import LogFilters, show
from appliance.workflows.queries.people import pending_orders
from appliance.workflows.queries.work import import_status, recipe_facts, replay_status, run_progress, run_steps
from appliance.workflows.releases import exports, review
from appliance.workflows.releases.page import review_page
from appliance.workflows.releases.review import adapter_row
from appliance.workflows.runs import planning
from appliance.workflows.serving import looks
from appliance.workflows.witnesses import exchange as witnesses

Wait = Annotated[float, Query(ge=0, le=25)]
"""Seconds that somebody who follows waits for news at most."""
MAX_ROW_CHARACTERS = 1_000_000


class SessionRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    envelope: dict[str, Any]


class OrderRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    envelope: dict[str, Any]
    disclosures: list[dict[str, Any]] = Field(default=[], max_length=16)
    documents: dict[str, str] = {}


class OrderCheck(BaseModel):
    model_config = ConfigDict(extra="forbid")
    statement: str = Field(max_length=MAX_ROW_CHARACTERS)


class PolicyTest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    policy: str
    cases: str


class RowRequest(BaseModel):
    """Asked by POST, so that no address and no log of addresses holds a row's text."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(max_length=MAX_ROW_CHARACTERS)


class PromptsRequest(BaseModel):
    """What a reviewer is about to put to an adapter: kept in memory until the order that binds them."""

    model_config = ConfigDict(extra="forbid")
    prompts: list[dict[str, Any]] = Field(max_length=MOST_PROMPTS)


class CalibrationRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    recipe: dict[str, Any]


class CosignatureRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    note: str = Field(max_length=65_536)


class VerifyRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    trust: dict[str, Any] | None = None


def people_app(context: Context, door: Doorkeeper, console_url: str | None = None) -> FastAPI:
    app = FastAPI(title="appliance, the people's API", docs_url=None, redoc_url=None, openapi_url=None)
    install(app, people_body, lambda request, error: door.count(None, error))

    def person(request: Request, authorization: Annotated[str | None, Header()] = None) -> Session:
        session = door.person(authorization)
        check_unit(context, session, request.scope["path"])
        return session

    public, private = APIRouter(), APIRouter(dependencies=[Depends(person)])
    _sessions(public, context, door)
    _console(private, door, console_url)
    _orders(public, private, context, person)
    _tables(private, context)
    _runs(private, context, person)
    _adapters(private, context)
    _questions(private, context, person)
    _looks(private, context, person)
    _ledger(private, context)
    _keeping(private, context, person)
    app.include_router(public)
    app.include_router(private)
    return app


def _bytes(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(f"{what}: expected standard base64, got text that does not decode") from None


def _source(request: Request) -> str:
    """Where it came from, as entries have it: the account on this machine that connected, or the host."""
    if request.client is None:
        return "unix"
    host = request.client.host
    return host if host.startswith("unix:") else f"tcp:{host}"


def _sessions(router: APIRouter, context: Context, door: Doorkeeper) -> None:
    @router.get("/v1/about")
    def about() -> dict[str, Any]:
        return log.about(context)

    @router.get("/v1/clock")
    def clock() -> dict[str, Any]:
        return people.clock(context)

    @router.post("/v1/sessions/challenge")
    def challenge() -> dict[str, str]:
        return {"nonce": door.challenge()}

    @router.post("/v1/sessions")
    def open_session(body: SessionRequest, request: Request) -> dict[str, Any]:
        token, session = door.open_session(encode_canonical(body.envelope), _source(request))
        principal = context.ledger.state.principals.get(session.principal)
        roles = () if principal is None else principal.roles
        return {"token": token, "principal": session.principal, "roles": roles, "expires_at": session.expires_at}

    @router.delete("/v1/sessions/own")
    def end_session(request: Request, authorization: Annotated[str | None, Header()] = None) -> dict[str, Any]:
        door.end_session(authorization, _source(request))
        return {}


def _console(router: APIRouter, door: Doorkeeper, url: str | None) -> None:
    @router.post("/v1/console/links")
    def link(authorization: Annotated[str | None, Header()] = None) -> dict[str, Any]:
        if url is None:
            raise Unavailable(
                'console: expected the setting console, such as "127.0.0.1:8330", got off; '
                "set it in appliance.toml and start the service again",
                code="console-off",
            )
        return {"url": f"{url}/sign-in/{door.link(authorization)}", "seconds": LINK_S}


def _orders(public: APIRouter, private: APIRouter, context: Context, person: Callable[..., Session]) -> None:
    @public.post("/v1/orders")
    def submit(
        body: OrderRequest, request: Request
    ) -> dict[str, Any]:  # `waiting`: orders that its signer could endorse
        submission = orders.Submission(
            envelope=encode_canonical(body.envelope),
            disclosures=tuple(parse_disclosure_value(value) for value in body.disclosures),
            documents={role: _bytes(text, f"document {role}") for role, text in body.documents.items()},
            source=_source(request),
        )
        submitted = orders.submit(context, submission)
        entry = submitted.appended.entry
        return {
            "index": entry.index,
            "type": entry.type,
            "outcome": entry.outcome,
            "order": submitted.digest,
            "bytes": encode_base64(submitted.appended.entry_bytes),
            "proof": [step.hex() for step in orders.prove(context, submitted)],
            "checkpoint": submitted.appended.checkpoint.decode("utf-8"),
            "result": submitted.result,
            "waiting": len(people.waiting_for(context, entry.actor)),
        }

    asking = Depends(person)

    @private.post("/v1/orders/check")
    def check(body: OrderCheck, session: Session = asking) -> dict[str, Any]:
        return {"reasons": orders.check(context, session.principal, _bytes(body.statement, "statement"))}

    @private.get("/v1/orders/waiting")
    def waiting(session: Session = asking) -> list[dict[str, Any]]:
        return people.waiting_for(context, session.principal)

    @private.get("/v1/orders/pending")
    def pending() -> list[dict[str, Any]]:
        return pending_orders(context)

    @private.put("/v1/uploads/{digest}")
    async def put_upload(digest: str, request: Request, session: Session = asking) -> dict[str, Any]:
        size = read_size(request.headers)
        await take_upload(context, session.principal, parse_digest(digest), size, request.stream())
        return {"digest": digest, "bytes": size}

    @private.post("/v1/policy/test")
    def test_policy(body: PolicyTest) -> dict[str, Any]:
        return {"results": people.test_policy(_bytes(body.policy, "policy"), _bytes(body.cases, "cases"))}


def _tables(router: APIRouter, context: Context) -> None:
    @router.get("/v1/status")
    def service_status() -> dict[str, Any]:
        return status(context)

    @router.get("/v1/storage")
    def service_storage() -> dict[str, Any]:
        return storage(context)

    @router.get("/v1/principals")
    def principals() -> list[dict[str, Any]]:
        return people.principals(context)

    @router.get("/v1/policy")
    def policy() -> dict[str, Any]:
        return people.policy(context)

    @router.get("/v1/rules")
    def rules() -> dict[str, int]:
        return people.rules(context)

    @router.get("/v1/imports/{order}")
    async def an_import(order: str, wait_s: Wait = 0) -> dict[str, Any]:
        key = parse_digest(order)
        return await follow(context.progress, key, partial(import_status, context, key), is_settled, wait_s)

    kinds = ("bases", "datasets", "imports", "runs", "adapters", "judgements", "releases", "holds", "witnesses")
    for name in (*kinds, "delegations", "validation-sets"):
        _table(router, context, name)


def _table(router: APIRouter, context: Context, name: str) -> None:
    member = name.replace("-", "_")

    @router.get(f"/v1/{name}", name=name)
    def rows() -> list[dict[str, Any]]:
        return [_row(context, row) for row in getattr(context.ledger.state, member).values()]

    if name in ("imports", "judgements", "releases", "holds", "witnesses", "delegations"):
        return

    @router.get(f"/v1/{name}/{{key}}", name=f"one of {name}")
    def row(key: str) -> dict[str, Any]:
        table = getattr(context.ledger.state, member)
        found = table.get(key)
        if found is None:
            raise NotFound(unknown_word(name, key, [known for known, _ in table.items()]))
        return _row(context, found)


def _row(context: Context, row: Any) -> dict[str, Any]:
    return adapter_row(context, row) if isinstance(row, Adapter) else dict(row.model_dump(mode="json"))


def _runs(router: APIRouter, context: Context, person: Callable[..., Session]) -> None:
    @router.get("/v1/runs/{run}/progress")
    async def progress(run: str, after: Annotated[int, Query(ge=0)] = 0, wait_s: Wait = 0) -> dict[str, Any]:
        return await follow(context.progress, run, partial(run_progress, context, run, after), has_frames, wait_s)

    @router.get("/v1/runs/{run}/checkpoints")
    def training_checkpoints(run: str) -> list[dict[str, Any]]:
        return work.training_checkpoints(context, run)

    @router.get("/v1/runs/{run}/steps")
    def steps(run: str) -> Response:
        return Response(run_steps(context, run), media_type="application/jsonl")

    @router.get("/v1/replays/{order}")
    async def replay(order: str, wait_s: Wait = 0) -> dict[str, Any]:
        key = parse_digest(order)
        return await follow(context.progress, key, partial(replay_status, context, key), is_settled, wait_s)

    asking = Depends(person)

    @router.post("/v1/calibrations")
    def calibrate(body: CalibrationRequest, session: Session = asking) -> dict[str, str]:
        return {"key": planning.order_calibration(context, session.principal, parse_resolved(body.recipe))}

    @router.get("/v1/calibrations/{key}")
    async def calibration(key: str, session: Session = asking, wait_s: Wait = 0) -> dict[str, Any]:
        look = partial(planning.calibration_status, context, session.principal, key)
        return await follow(context.progress, key, look, has_ended, wait_s)

    @router.post("/v1/dataset-checks")
    def check_rows(body: dict[str, Any], session: Session = asking) -> dict[str, str]:
        rows = parse_value(checks.Rows, encode_canonical(body), "dataset check")
        return {"key": checks.order_check(context, session.principal, rows)}

    @router.get("/v1/dataset-checks/{key}")
    async def checked_rows(key: str, session: Session = asking, wait_s: Wait = 0) -> dict[str, Any]:
        look = partial(checks.check_status, context, session.principal, key)
        return await follow(context.progress, key, look, has_ended, wait_s)

    @router.get("/v1/recipes/facts")
    def facts(base: str, dataset: str) -> dict[str, Any]:
        return recipe_facts(context, base, dataset)


def _adapters(router: APIRouter, context: Context) -> None:
    @router.get("/v1/adapters/{name}/review")
    def packet(name: str) -> dict[str, Any]:
        return review.review_packet(context, name)

    @router.get("/v1/adapters/{name}/page")
    def page(name: str) -> dict[str, Any]:
        return review_page(context, name).model_dump(mode="json")

    @router.get("/v1/adapters/{name}/files/{path:path}")
    def file(name: str, path: str) -> Response:
        return Response(review.adapter_file(context, name, path), media_type="application/octet-stream")

    @router.get("/v1/exports/{order}")
    def exported(order: str) -> dict[str, Any]:
        return exports.export_packet(context, parse_digest(order))

    @router.get("/v1/adapters/{name}/history")
    def history(name: str) -> dict[str, Any]:
        return questions.adapter_story(context, name)


def _questions(router: APIRouter, context: Context, person: Callable[..., Session]) -> None:
    asking = Depends(person)

    @router.get("/v1/units/{unit}/could-load")
    def could_load(
        unit: str, at: str | None = None, since: str | None = None, until: str | None = None
    ) -> dict[str, Any]:
        if since is not None and at is None:
            return spans.could_load_between(context, unit, since, until)
        if since is not None or until is not None:
            raise BadInput("could-load: expected `at`, or `since` with or without `until`, got others")
        return questions.could_load_at(context, unit, at)

    @router.get("/v1/datasets/{name}/uses")
    def uses(name: str) -> list[dict[str, Any]]:
        return questions.dataset_uses(context, name)

    @router.get("/v1/datasets/{name}/labels")
    def labels(name: str) -> dict[str, dict[str, int]]:
        return questions.dataset_labels(context, name)

    @router.post("/v1/datasets/{name}/row")
    def row(name: str, body: RowRequest, session: Session = asking) -> list[dict[str, Any]]:
        return questions.dataset_row(context, session.principal, name, body.text)

    @router.get("/v1/ledger/state")
    def state(at: str | None = None, kind: Annotated[list[str], Query()] = []) -> dict[str, Any]:  # noqa: B006
        return questions.state_as_of(context, at, kind)


def _looks(router: APIRouter, context: Context, person: Callable[..., Session]) -> None:
    """Samples and tries. Prompts are sent before their order, and what was answered goes to who ordered it alone."""
    asking = Depends(person)

    @router.post("/v1/prompts")
    def put_prompts(body: PromptsRequest, session: Session = asking) -> dict[str, Any]:
        found = [parse_disclosure_value(value) for value in body.prompts]
        return {"held": looks.hold_prompts(context, session.principal, found)}

    @router.get("/v1/looks/{order}")
    async def look(order: str, session: Session = asking, wait_s: Wait = 0) -> dict[str, Any]:
        digest = parse_digest(order)
        find = partial(looks.look_status, context, session.principal, digest)
        return await follow(context.progress, looks.look_key(session.principal, digest), find, has_ended, wait_s)


def _keeping(router: APIRouter, context: Context, person: Callable[..., Session]) -> None:
    """Witnesses, and the log's own keys."""
    asking = Depends(person)

    @router.get("/v1/witness-request")
    def request(witness: str, old: Annotated[int | None, Query(ge=0)] = None) -> Response:
        return Response(witnesses.request(context, witness, old), media_type="text/plain; charset=utf-8")

    @router.post("/v1/cosignatures")
    def cosignature(body: CosignatureRequest, request: Request) -> dict[str, Any]:
        entry = parse_entry(witnesses.accept(context, body.note.encode(), _source(request)).entry_bytes)
        return {"index": entry.index, **{name: entry.body[name] for name in ("witness", "size", "time")}}

    @router.post("/v1/log-keys")
    def log_key(session: Session = asking) -> dict[str, str]:
        return {"vkey": administration.next_log_key(context, session.principal)}


def _ledger(router: APIRouter, context: Context) -> None:
    @router.get("/v1/documents/{digest}")
    def document(digest: str) -> Response:
        return Response(context.ledger.document(parse_digest(digest)), media_type="application/octet-stream")

    @router.get("/v1/ledger")
    def find(filters: Annotated[LogFilters, Query()]) -> dict[str, Any]:
        return log.find(context, filters)

    @router.get("/v1/ledger/export")
    def export() -> StreamingResponse:
        return StreamingResponse(log.export(context), media_type="application/x-tar")

    @router.post("/v1/ledger/verify")
    async def verify(body: VerifyRequest, request: Request) -> dict[str, Any]:
        return await run_while_awaited(request, partial(verification.verify, context, body.trust))

    @router.get("/v1/ledger/{index}")
    def entry(index: Annotated[int, Path(ge=0, le=MAX_DECIMAL)]) -> dict[str, Any]:
        return show(context, index)
