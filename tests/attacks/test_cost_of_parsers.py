"""The CPU time of every parser grows with the size of its input and no faster, whatever the input's form.

Each input is doubled four times: its size, its depth, its items, its fields, and its errors. A new route of a listener
fails here until it has a case. A new action has its case by being registered, and a new parser by its row for
`scripts/fuzz`.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel
from starlette.datastructures import QueryParams

from appliance.access.cases import parse_cases
from appliance.domain.actions.apply import parse_typed
from appliance.domain.actions.proposals import parse_proposal
from appliance.domain.actions.registry import ACTIONS, ORDERS
from appliance.domain.core import credentials
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import parse_value
from appliance.domain.core.policy import parse_policy
from appliance.domain.data import tool_calls
from appliance.domain.evaluation.gates import parse_gate_file, parse_gates
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.policies import PARAMETERS, POLICIES, SCHEMA, assemble_policy
from appliance.domain.queries.proofs import parse_entry_proof, parse_record
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import Recipe, ResolvedRecipe
from appliance.domain.releases.exports import ExportRows, Proofs
from appliance.errors import ApplianceError
from appliance.formats.core import frame
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.fields import encode_base64, parse_base64
from appliance.formats.log import export
from appliance.formats.log.trust import parse_trust
from appliance.formats.signatures.dsse import PAYLOAD_TYPE, Statement, encode_statement, parse_envelope
from appliance.formats.signatures.webauthn import _parse_client_data
from appliance.web.console.app import console_app
from appliance.web.console.core import desk as desks
from appliance.web.console.core.events import RecentEntries
from appliance.web.console.core.page import parse_query
from appliance.web.console.pages import PAGES
from appliance.web.console.signing.forms import fields_of, read_draft
from appliance.web.console.signing.identities import _TOKEN
from appliance.web.console.signing.invitations import _read_secret
from appliance.web.console.signing.passkeys import _member, read_proof
from appliance.web.core.auth import CallerAuthenticator
from appliance.web.core.server import MAX_PARAMETERS, check_framing
from appliance.web.operations.health import OperationsTokens, operations_app
from appliance.web.people import api, parsing
from appliance.web.people.middleware import PUBLIC
from appliance.web.units import openai
from appliance.web.units.openai import _Routes
from appliance.web.units.request_bodies import ChatRequest, ClassifyRequest, CompletionRequest, parse_request
from appliance.workflows.queries.log import LogFilters
from tests.attacks.grown import Shape, grow
from tests.formats.test_fuzz import FORMATS
from tests.fuzz.of_ml import NEEDS_TORCH
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

LARGEST = 1 << 17
"""Bytes of the largest input, which has been doubled four times."""
LARGEST_OF_A_ROW = 1 << 15
"""Bytes of the largest input of a parser that has its case by its row. YAML takes longer, in proportion to the size,
so its inputs are a sixteenth of that."""
OF_A_FIELD = ("numbers", "names", "fields")
"""Shapes of one field of an object; a whole input has every shape."""
SUBJECTS = (("x", "sha256:" + "0" * 64),)
FREE_S = 0.020
GROWTH = 2.5

Parse = Callable[[bytes], object]


def listed(item: bytes) -> Shape:
    return lambda size: b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


def numbered(form: str) -> Shape:
    """Return the shape of a list whose items all differ."""
    return lambda size: b"[" + b",".join((form % n).encode() for n in range(size // (len(form) + 6))) + b"]"


def fields(size: int) -> bytes:
    return b"{" + b",".join(b'"k%06d":1' % n for n in range(size // 12)) + b"}"


def twice_at_the_end(size: int) -> bytes:
    """Many fields, of which only the last is there twice."""
    return fields(size)[:-1] + b',"z":1,"z":1}'


def nested(size: int) -> bytes:
    return b"[" * (size // 2) + b"]" * (size // 2)


def nested_objects(size: int) -> bytes:
    return b'{"a":' * (size // 6) + b"1" + b"}" * (size // 6)


_SHAPES: dict[str, Shape] = {
    "numbers": listed(b"1"),
    "nulls": listed(b"null"),
    "objects": listed(b"{}"),
    "lists": listed(b"[[]]"),
    "names": numbered('"name-%d"'),
    "the same name": listed(b'"name"'),
    "fields": fields,
    "a field twice": twice_at_the_end,
    "the same field": lambda size: b"{" + b",".join([b'"a":1'] * (size // 6)) + b"}",
    "depth": nested,
    "depth of objects": nested_objects,
    "text": lambda size: b'"' + b"a" * size + b'"',
    "escapes": lambda size: b'"' + b"\\u0041" * (size // 6) + b'"',
    "quotes": lambda size: b'"' + b'\\"' * (size // 2),
    "digits": lambda size: b"9" * size,
    "fractions": listed(b"1e999999"),
    "spaces": lambda size: b" " * size,
    "lines": lambda size: b"a b\n" * (size // 4),
    "signs": lambda size: b"-_=+/" * (size // 5),
}
SHAPES: dict[str, Shape] = {kind: cache(shape) for kind, shape in _SHAPES.items()}


class Case(NamedTuple):
    """A parser, and for each form of input how it is made at a size."""

    parse: Parse
    forms: Mapping[str, Shape]
    largest: int = LARGEST


def whole(parse: Parse, **more: Shape) -> Case:
    """Return a case whose inputs are exactly the shapes."""
    return Case(parse, {**SHAPES, **more})


def in_fields(parse: Parse, names: Iterable[str], given: Mapping[str, Any] | None = None, **more: Shape) -> Case:
    """Return a case with a JSON object, whole and with each field in turn of each shape."""
    forms: dict[str, Shape] = {**SHAPES, **more}
    for name in names:
        rest = {key: value for key, value in (given or {}).items() if key != name}
        forms |= {f"{name}: {kind}": _field(name, SHAPES[kind], rest) for kind in OF_A_FIELD}
    return Case(parse, forms)


def _field(name: str, shape: Shape, rest: Mapping[str, Any]) -> Shape:
    before = json.dumps(rest)[:-1].encode() + (b"," if rest else b"") + json.dumps(name).encode() + b":"
    return lambda size: before + shape(size) + b"}"


def of_model(model: type[BaseModel], parse: Parse | None = None, **given: Any) -> Case:
    found: Parse = parse or (lambda data: parse_value(model, data, "value"))  # type: ignore[type-var]
    return in_fields(found, model.model_fields, given)


def of_text(parse: Callable[[str], object]) -> Parse:
    return lambda data: parse(data.decode("utf-8", "replace"))


def of_json(parse: Callable[[Any], object]) -> Parse:
    """Return the parser of a value that was read from a request's JSON."""
    return lambda data: parse(parsing.BodyOf(dict[str, Any]).parse(data))


# --- orders -----------------------------------------------------------------------------------------------------------


def order_of(action: str) -> Case:
    """Return a case of statements with every field of the order wrong at once, or with many unknown fields."""
    names = list(ACTIONS[action].order.model_fields)

    def encode(predicate: dict[str, Any]) -> bytes:
        return encode_statement(Statement(SUBJECTS, f"urn:appliance:order:{action}:v1", predicate))

    def make(shape: Shape) -> Shape:
        return lambda size: encode(dict.fromkeys(names, json.loads(shape(max(16, size // len(names))))))

    forms = {kind: make(SHAPES[kind]) for kind in ("numbers", "names", "fields")}
    return Case(ORDERS.parse, {**forms, "unknown fields": lambda size: encode(json.loads(fields(size)))}, 1 << 16)


def credential_of(model: type[credentials.Credential]) -> Case:
    def made(shape: Shape) -> Shape:
        prefix = f"{credentials.PREFIX}{model.kind}:v1"
        return lambda size: encode_statement(Statement(SUBJECTS, prefix, {"signer": json.loads(shape(size))}))

    plain = ("numbers", "names", "fields", "text")
    return Case(lambda data: credentials.parse_credential(model, data), {kind: made(SHAPES[kind]) for kind in plain})


def in_envelope(shape: Shape) -> Shape:
    def made(size: int) -> bytes:
        payload = encode_base64(shape(size * 3 // 4))
        return encode_canonical({"payload": payload, "payloadType": PAYLOAD_TYPE, "signatures": []})

    return made


# --- documents --------------------------------------------------------------------------------------------------------

GATE = {"claim": "better", "comparison": "base", "least_items": 20, "kind": "target", "metric": "accuracy", "name": "a"}
POLICY = {"version": 1, "name": "site", "parameters": {}, "cedar": "", "cedar_schema": ""}


def parse_parameters(data: bytes) -> object:
    return assemble_policy("site", {PARAMETERS: data, POLICIES: b"", SCHEMA: b""})


def parse_conversation(data: bytes) -> object:
    """Parse a row of a dataset with tools, as an import does."""
    value = json.loads(data)
    if isinstance(value, dict):
        tool_calls.read_tools(value.get("tools"), "row")
        return tool_calls.read_calls(value.get("tool_calls"), "row")
    tool_calls.check_json(value, "row")
    return value


def read_export(data: bytes) -> object:
    with export.ParsedExport(io.BytesIO(data)) as read:
        for line in read.entries():
            with suppress(ApplianceError):
                parse_typed(line)
        return list(read.disclosures())


def exported(shape: Shape) -> Shape:
    """Return the shape of an export whose entries are lines of this shape."""

    def made(size: int) -> bytes:
        lines = b"".join([shape(30_000) + b"\n" for _ in range(max(1, size // 30_000))])
        header = encode_canonical({"origin": "x", "size": 1, "version": export.VERSION})
        members = {"export.json": header, "checkpoint": b"x", "entries.jsonl": lines}
        written = b""
        for name in export.MEMBERS:
            data = members.get(name, b"")
            written += export._encode_header(name, len(data)) + data + bytes(-len(data) % 512)
        return written + bytes(1_024)

    return made


DOCUMENTS: dict[str, Case] = {
    **{f"order: {action}": order_of(action) for action in ACTIONS},
    **{
        f"credential: {model.kind}": credential_of(model)
        for model in (credentials.SessionStatement, credentials.UnitToken, credentials.TokenRequest)
    },
    "envelope": Case(parse_envelope, {kind: in_envelope(shape) for kind, shape in SHAPES.items()}),
    "entry": in_fields(parse_entry, ["body", "subjects", "documents"]),
    "policy set": in_fields(parse_policy, POLICY, POLICY),
    "parameters": in_fields(
        parse_parameters, ["required_functions", "licences", "tiers", "slurm_accounts", "witnesses"]
    ),
    "policy cases": whole(parse_cases, cases=numbered('{"name":"c%d","action":"train","expect":"allow","x":1}')),
    "gates": in_fields(parse_gates, ["gates", "alpha"], gates=_field("gates", listed(json.dumps(GATE).encode()), {})),
    "gate file": in_fields(parse_gate_file, ["gates", "alpha"]),
    "proofs": of_model(Proofs),
    "state_rows": of_model(ExportRows),
    "recipe": in_fields(of_json(parse_recipe), Recipe.model_fields),
    "resolved recipe": in_fields(partial(parse_value, ResolvedRecipe, what="recipe"), ResolvedRecipe.model_fields),
    "conversation": in_fields(parse_conversation, ["tools", "tool_calls"]),
    "response record": in_fields(parse_record, ["entry", "proof", "text"]),
    "entry proof": in_fields(parse_entry_proof, ["entry", "documents", "disclosures", "proofs"]),
    "client data": whole(_parse_client_data),
    "frame": whole(lambda data: frame._parse_header(data)),
    "export": Case(read_export, {kind: exported(SHAPES[kind]) for kind in ("numbers", "fields", "a field twice")}),
}


# --- listeners --------------------------------------------------------------------------------------------------------


AFTER: dict[str, Callable[[Any], object]] = {
    "POST /v1/sessions": lambda body: parse_envelope(encode_canonical(body.envelope)),
    "POST /v1/orders": lambda body: parse_envelope(encode_canonical(body.envelope)),
    "POST /v1/orders/check": lambda body: ORDERS.parse(body.statement),
    "POST /v1/policy/test": lambda body: (body.policy, body.cases),
    "POST /v1/calibrations": lambda body: body.recipe,
    "POST /v1/dataset-checks": lambda body: body.uploads,
    "POST /v1/datasets/{name}/row": lambda body: body.text,
    "POST /v1/prompts": lambda body: body.prompts,
    "POST /v1/cosignatures": lambda body: FORMATS["note"].parse(body.note.encode()),
    "POST /v1/log-keys": lambda body: body.post_quantum,
    "POST /v1/ledger/verify": lambda body: parse_trust(encode_canonical(body.trust) + b"\n"),
}
"""Parse a body as a route of the people's API does before anything else."""
WITHOUT_A_BODY = {
    "POST /v1/sessions/challenge",
    "DELETE /v1/sessions/own",
    "POST /v1/console/links",
    "POST /v1/post-quantum-keys",
    "PUT /v1/uploads/{digest}",  # written to the disk as it comes
}
UNITS: dict[str, Case] = {
    "/v1/chat/completions": in_fields(
        lambda body: parse_request(ChatRequest, body).parameters(),
        ChatRequest.model_fields,
        {"model": "labels", "messages": [{"role": "user", "content": "x"}]},
        messages=_field("messages", listed(b'{"role":"user","content":"x"}'), {"model": "labels"}),
        parts=_field("messages", lambda size: _parts(size), {"model": "labels"}),
        tools=_field("tools", listed(b'{"type":"function","function":{"name":"a"}}'), {"model": "labels"}),
    ),
    "/v1/completions": in_fields(
        lambda body: parse_request(CompletionRequest, body),
        CompletionRequest.model_fields,
        {"model": "x", "prompt": "x"},
    ),
    "/v1/classify": in_fields(
        lambda body: parse_request(ClassifyRequest, body), ClassifyRequest.model_fields, {"model": "x", "input": "x"}
    ),
    openai.TOKENS: Case(parse_envelope, {kind: in_envelope(shape) for kind, shape in SHAPES.items()}),
    openai.CHALLENGE: Case(lambda body: None, {}),
}


def _parts(size: int) -> bytes:
    return b'[{"role":"user","content":' + listed(b'{"type":"text","text":"a"}')(size) + b"}]"


def people_routes() -> Iterator[tuple[str, Any]]:
    """Each route of the people's API with the types of its bodies."""
    context: Any = None
    pending: list[Any] = list(api.people_app(context, CallerAuthenticator(context)).routes)
    for route in pending:
        if not hasattr(route, "dependant"):
            pending.extend(getattr(getattr(route, "original_router", route), "routes", []))
            continue
        bodies = [one.call for one in route.dependant.dependencies if isinstance(one.call, parsing.BodyOf)]
        for method in route.methods:
            yield f"{method} {route.path}", bodies


def people_cases() -> dict[str, Case]:
    found = {}
    for route, bodies in people_routes():
        for body in bodies:
            names = body.model.model_fields
            found[f"people: {route}"] = in_fields(_then(body.parse, AFTER.get(route)), names)
    return found


def _then(parse: Parse, after: Callable[[Any], object] | None) -> Parse:
    return lambda data: after(parse(data)) if after is not None else parse(data)


def encoded(form: str) -> Shape:
    return lambda size: form.encode() * (size // len(form))


def _in_form(shape: Shape) -> Shape:
    return lambda size: b"file=" + shape(size)


FORMS: dict[str, Shape] = {
    "fields": lambda size: b"&".join(b"k%06d=1" % n for n in range(size // 10)),
    "the same field": encoded("a=1&"),
    "escapes": lambda size: b"a=" + b"%41" * (size // 3),
    "signs": lambda size: b"&" * size,
    "text": lambda size: b"a=" + b"a" * size,
    **{f"file: {kind}": _in_form(shape) for kind, shape in SHAPES.items()},
}


def parse_form(data: bytes) -> object:
    return desks._parse_form("application/x-www-form-urlencoded", data)


def draft_of(action: str) -> Parse:
    """Return a parser of the order's form in which every field has the same text."""
    names = [one.name for one in fields_of(action)]
    return lambda data: read_draft(action, dict.fromkeys(names, data.decode("latin-1")), datetime.now(UTC))


def statement_in(data: bytes) -> object:
    """Parse the statement that a signing page sends back with an assertion."""
    payload = parse_base64(_member(data.decode("latin-1"), "statement"), "statement")
    return credentials.parse_credential(credentials.SessionStatement, payload)


CONSOLE: dict[str, dict[str, Case]] = {
    "POST /ask": {},  # the same requests as at the units' listener
    "POST /previews/{order}": {},
    "POST /invitation": {"secret": whole(of_text(lambda text: _read_secret({"secret": text})))},
    "POST /invitation/accepted": {"": in_fields(of_text(lambda text: read_proof({"file": text})), ["statement"])},
    "POST /invitation/passkey": {},  # the same secret, and the formats of a new passkey
    "POST /passkeys/new": {},  # the formats "new passkey" and "base64url"
    "POST /passkeys/proof": {"": in_fields(statement_in, ["statement"])},
    "POST /sessions": {},
    "POST /sign-in/identity": {"id_token": whole(of_text(_TOKEN.fullmatch))},
    "POST /sign-in/passkey.json": {"": in_fields(statement_in, ["statement"])},
    "POST /sign-in/{code}": {},
    "POST /sign-out": {},
    "POST /sign/{action}": {
        action: Case(draft_of(action), {kind: SHAPES[kind] for kind in ("names", "fields", "digits", "signs")}, 1 << 13)
        for action in sorted(name for name, one in ACTIONS.items() if one.has_form and name != Countersign.action)
    },
    "POST /signed": {"": in_fields(parse_proposal, ["statement", "disclosures", "documents", "reported"])},
    "PUT /uploads/{digest}": {},  # written to the disk as it comes
}
"""Parsers of the form fields of each console route."""

# --- rows of scripts/fuzz ---------------------------------------------------------------------------------------------

OTHERS = {
    "domain.actions.registry.ORDERS": "order: …",
    "domain.core.credentials.parse_credential": "credential: …",
    "domain.core.names.parse_": "policy set",
    "domain.core.policy.parse_policy": "policy set",
    "web.people.api": "people: …",
    "web.units.request_bodies": "units: …",
    "web.console.signing.forms.read_draft": "console: POST /sign/…",
    "verifier.main EXPORT": "export",
    "verifier.main --trust": "the row of its parser",
    "witness.main": "the rows of its parsers; a key's scrypt takes the same time for each input",
}
"""Rows that have other cases, by the beginnings of their names."""


def of_row(target: Target) -> Case:
    """Whole inputs of each shape, and the longest good input with each of its parts grown."""

    def parse(data: bytes) -> None:
        with suppress(*target.raises):
            target.parse(data)

    good = max(target.seeds(), key=len, default=b"")
    largest = LARGEST_OF_A_ROW >> 4 if target.form == "yaml" else LARGEST_OF_A_ROW
    return Case(parse, {**SHAPES, **grow(good, target.form)}, largest)


ROWS = [name for name in TARGETS if not name.startswith(tuple(OTHERS))]

# --- all --------------------------------------------------------------------------------------------------------------

CASES: dict[str, Case] = {
    **DOCUMENTS,
    **people_cases(),
    **{f"units: {path}": case for path, case in UNITS.items()},
    "console: form": Case(parse_form, FORMS),
    **{f"console: {route} {part}": case for route, parts in CONSOLE.items() for part, case in parts.items()},
    "address: filters": whole(lambda data: LogFilters.model_validate({"type": data.decode("latin-1").split("a")})),
}


def cpu_s(parse: Parse, data: bytes) -> float:
    """CPU seconds of the parser, which accepts the input or refuses it as one of our errors."""
    begun = time.thread_time()
    with suppress(ApplianceError, ValueError, RecursionError):
        parse(data)
    return time.thread_time() - begun


def grows_too_fast(case: Case, shape: Shape) -> str:
    """Return what was measured if the time grows faster than the size, else an empty text.

    A step counts only with a neighbour: where memory outgrows a cache, one step alone is steep.
    """

    def least(size: int) -> float:
        return min(cpu_s(case.parse, shape(size)) for _ in range(2))

    after = cpu_s(case.parse, shape(case.largest))
    for size in (case.largest >> halved for halved in range(1, 5)):
        if after <= FREE_S:
            break
        before = cpu_s(case.parse, shape(size))
        if after > GROWTH * before:
            before, after = least(size), least(2 * size)
            is_steep = after > FREE_S and after > GROWTH * before
            if is_steep and (before > GROWTH * least(size // 2) or least(4 * size) > GROWTH * after):
                return f"{before:.3f} s at {size} bytes, {after:.3f} s at {2 * size}"
        after = before
    return ""


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_cpu_time_grows_no_faster_than_the_input(name: str) -> None:
    assert find_steep(CASES[name]) == {}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.outside] * name.startswith(NEEDS_TORCH)) for name in ROWS]
)
def test_cpu_time_of_a_parser_with_a_row_grows_no_faster_than_the_input(name: str) -> None:
    assert find_steep(of_row(TARGETS[name])) == {}


def find_steep(case: Case) -> dict[str, str]:
    """Return the forms of input with which the time grows too fast, and what was measured."""
    gc.disable()
    try:
        found = dict.fromkeys(case.forms, "")
        # Processor time is noisy beside other work, and a form that really grows too fast does so each time.
        for _ in range(3):
            found = {kind: told for kind in found if (told := grows_too_fast(case, case.forms[kind]))}
        return found
    finally:
        gc.enable()


@pytest.mark.thorough
@pytest.mark.parametrize("route", ["POST /v1/orders", "POST /v1/sessions"])
def test_a_request_without_a_session_costs_little(route: str) -> None:
    """The validator of its fields blocks all other threads, and runs before a signature is verified."""
    assert route.split()[1] in PUBLIC
    case = CASES[f"people: {route}"]
    bodies = {kind: shape(PUBLIC[route.split()[1]]) for kind, shape in case.forms.items()}
    wrong = b",".join(b'"k%d":1' % n for n in range(9_000))
    bodies["documents"] = b'{"envelope":{},"documents":{' + wrong + b"}}"
    slow = {kind: min(cpu_s(case.parse, data) for _ in range(3)) for kind, data in bodies.items()}
    assert not {kind: seconds for kind, seconds in slow.items() if seconds > FREE_S}


def test_every_route_has_a_case() -> None:
    """Each listener's routes are compared with the cases; operations take no body at all."""
    routes = dict(people_routes())
    assert len(routes) > 40
    with_body = {route for route, bodies in routes.items() if bodies}
    assert with_body == AFTER.keys()
    assert {route for route in routes if not route.startswith(("GET", "HEAD"))} == with_body | WITHOUT_A_BODY
    none: Any = None
    units = {route.path for route in _Routes(none, none, none, none).listed() if "POST" in (route.methods or ())}
    assert units | {openai.TOKENS, openai.CHALLENGE} == UNITS.keys()
    console: Any = console_app(none, CallerAuthenticator(none), "http://localhost:8330", RecentEntries())
    found = {f"{method} {route.path}" for route in console._app.routes for method in route.methods or ()}
    assert {route for route in found if not route.startswith(("GET", "HEAD"))} == CONSOLE.keys()
    operations: Any = operations_app(none, none, none, OperationsTokens(b"", b""))
    assert all(route.methods == {"GET", "HEAD"} for route in operations.routes)


@pytest.mark.thorough
def test_an_address_has_a_bounded_number_of_parameters() -> None:
    """With as many as there may be, no page takes long to read or to refuse its address."""
    answered: list[int] = []

    async def send(message: Any) -> None:
        answered.extend([message["status"]] if message["type"] == "http.response.start" else [])

    app: Any = None
    query = b"&".join(b"k%d=1" % n for n in range(MAX_PARAMETERS + 1))
    asyncio.run(check_framing(app)({"type": "http", "headers": [], "query_string": query, "method": "GET"}, app, send))
    assert answered == [400]
    most = QueryParams(query.rpartition(b"&")[0].decode())
    for page in PAGES:
        assert cpu_s(lambda data, model=page.query: parse_query(model, {}, most), b"") < 0.1, page.path
