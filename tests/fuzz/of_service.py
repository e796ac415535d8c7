"""Parsers of requests, answers, forms and settings, and of files that people and the service keep."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.entry import parse_entry
from appliance.domain.governance.countersignature import Countersign
from appliance.formats.core import frame
from scripts.kit.log_builder import RECIPE
from tests.fuzz.seeds import (
    ADVISORY,
    CALL,
    NOW,
    OWN,
    TOOL,
    WITNESSED,
    entries,
    orders,
    policies,
    proposals,
    recipe_texts,
    shipped_gates,
    sites,
)
from tests.fuzz.target import (
    Target,
    add,
    of_bytes,
    of_file,
    of_text,
    of_value,
    read_object,
)
from tests.kit.identity_provider import Provider


def _add_service() -> None:
    """Add the parsers of requests, settings, and files that people and the service keep."""
    from appliance.access.identity import read_identity_token
    from appliance.api import runs, wire
    from appliance.cli.builds import parse_build_metadata
    from appliance.cli.support.advisories import compare
    from appliance.client import questions
    from appliance.client.feed import _parse as parse_event
    from appliance.client.gates import load_gates
    from appliance.client.policies import load_policy
    from appliance.client.runs import load_recipe, load_written
    from appliance.client.support import connection, osv, profile
    from appliance.client.support.orders import read_order_file
    from appliance.config.description import explain_settings
    from appliance.config.settings import load_settings
    from appliance.slurm import folder
    from appliance.store.database.engine import parse_database_url
    from appliance.store.files.encryption import read_identities
    from appliance.store.ledger import search_index, snapshots
    from appliance.web.console.signing.forms import read_draft
    from appliance.web.core.auth import CallerAuthenticator
    from appliance.web.people.api import people_app
    from appliance.web.people.parsing import find_body, list_routes
    from appliance.web.units import request_bodies
    from appliance.workflows.queries.verification_program import parse_moment  # noqa: F401

    of_value(runs.parse_frame, [{"frame": "step", "step": 1, "loss": 0.5}], is_object=True)
    of_text(questions.parse_request_id, ["chatcmpl-" + "0" * 32])
    of_text(connection.parse_address, ["127.0.0.1:8330", "[::1]:1", "appliance.example:1"], Path("ca.pem"))
    of_bytes(
        read_identity_token,
        lambda: [PROVIDER.token("sub-rita", "n").encode()],
        "text",
        parse=lambda data: read_identity_token(PINNED, data.decode("utf-8", "surrogateescape")),
    )
    of_text(parse_database_url, ["sqlite:////tmp/x", "postgresql://user:secret@host:1/name?a=b"])
    of_bytes(search_index.decode_bits, [b"\x01"], "bytes")
    of_bytes(
        snapshots.decode_snapshot,
        lambda: [snapshots.encode_snapshot(snapshots.take_snapshot(sites()[2].state))],
        "lines",
    )
    of_bytes(folder.parse_record, [encode_frame({"frame": "job"})], "bytes")
    of_bytes(folder.parse_description, _descriptions, "bytes")
    of_value(folder.parse_left, [[{"path": "a", "size": 1, "digest": f"sha256:{'0' * 64}", "folder": 0}]])
    of_bytes(osv.parse_advisories, [json.dumps(ADVISORY).encode(), json.dumps([ADVISORY]).encode()])
    of_bytes(parse_build_metadata, [b'{"version": "1", "compatibility": 1}\n'])
    of_file(compare, _advisories, "json", lambda path: compare(path, {"h11": "0.13"}))
    of_file(load_gates, shipped_gates, "json")
    of_file(load_policy, policies, "json")
    of_file(load_written, recipe_texts, "yaml")
    of_file(load_recipe, recipe_texts, "yaml")
    of_file(read_order_file, proposals, "json")
    of_file(read_identities, _identity, "text")
    of_file(load_settings, [SETTINGS], "toml", lambda path: load_settings(path.parent, {}, path))
    of_file(explain_settings, [SETTINGS], "toml", lambda path: explain_settings(path.parent, {}, path))
    of_bytes(profile._parse, [PROFILE], "toml", "profile")
    of_bytes(parse_event, _list_events)
    for kind, value in _unit_requests().items():
        of_bytes(
            request_bodies.parse_request,
            [json.dumps(one).encode() for one in value],
            parse=partial(_ask, getattr(request_bodies, kind)),
            name=kind,
        )
    unbuilt: Any = None
    for route in list_routes(people_app(unbuilt, CallerAuthenticator(unbuilt))):
        if find_body(route) is not None:
            parsers = [one.call for one in route.dependant.dependencies if hasattr(one.call, "parse")]
            name = f"web.people.api {sorted(route.methods or ())[0]} {route.path}"
            add(name, Target(parsers[0].parse, partial(_body_seeds, route.path), "json"))
        model = route.response_model
        if model is not None:
            name = f"{wire.parse_response.__module__.removeprefix('appliance.')}.parse_response {route.path}"
            add(
                f"{name} {sorted(route.methods or ())[0]}",
                Target(partial(_answer, model), lambda: [b"{}", b"[]"], "json"),
            )
    for action in (name for name, row in ACTIONS.items() if row.has_form and name != Countersign.action):
        add(f"{read_draft.__module__.removeprefix('appliance.')}.read_draft {action}", _draft(read_draft, action))


def _answer(model: Any, data: bytes) -> object:
    from appliance.api.wire import parse_response

    return parse_response(model, data, "answer")


def _ask(model: Any, data: bytes) -> object:
    from appliance.web.units.request_bodies import parse_request

    return parse_request(model, data).parameters()


def _draft(read: Callable[..., Any], action: str) -> Target:
    from appliance.web.console.signing.forms import fields_of

    def parse(data: bytes) -> object:
        given = read_object(data)
        texts = {name: value for name, value in given.items() if isinstance(value, str)}
        # A form's bytes that are no UTF-8 are replaced before it is read.
        return read(action, {name: text.encode("utf-8", "replace").decode() for name, text in texts.items()}, NOW)

    def seeds() -> Iterator[bytes]:
        texts = {name: as_text(value) for name, value in json.loads(ACTIONS[action].example.model_dump_json()).items()}
        yield json.dumps({one.name: texts.get(one.name, "a") for one in fields_of(action)}).encode()

    return Target(parse, seeds, "json")


def as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _body_seeds(path: str) -> list[bytes]:
    """Return a good body for a route of the people's API, if a log has one."""
    envelope = json.loads(OWN["envelope"])
    statement = base64.b64encode(orders()[0]).decode()
    known: dict[str, Any] = {
        "/v1/sessions": {"envelope": envelope},
        "/v1/orders": {
            "envelope": envelope,
            "disclosures": [json.loads(OWN["disclosure"])],
            "documents": {"a": "YQ=="},
        },
        "/v1/dataset-checks": {"dataset_kind": "classification", "format": "csv", "file": f"sha256:{'0' * 64}"},
        "/v1/datasets/{name}/row": {"text": "a row"},
        "/v1/prompts": {"prompts": [json.loads(OWN["disclosure"])]},
        "/v1/orders/check": {"statement": statement},
        "/v1/policy/test": {"policy": base64.b64encode(policies()[0]).decode(), "cases": "W10="},
        "/v1/calibrations": {"recipe": RECIPE},
        "/v1/ledger/verify": {"trust": json.loads(OWN["trust"])},
        "/v1/cosignatures": {"note": WITNESSED["note"]},
    }
    return [json.dumps(known.get(path, {})).encode()]


def _list_events() -> list[bytes]:
    """Return eight events as the feed sends them."""
    from appliance.domain.queries.ocsf import encode_event

    return [json.dumps(encode_event(parse_entry(data), "origin", "1")).encode() for data in entries()[:8]]


def _unit_requests() -> dict[str, list[dict[str, Any]]]:
    tools = [{**TOOL, "type": "function"}]
    turn = {"role": "assistant", "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "call12345", "content": "1"}
    user = {"role": "user", "content": [{"type": "text", "text": "Which clause?"}]}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    drawn = {
        "model": "labels",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        "stop": ["."],
        "stream": True,
    }
    return {
        "ChatRequest": [
            {**drawn, "messages": [user]},
            {"model": "labels", "messages": [user, turn, result], "tools": tools, "tool_choice": "auto"},
            {"model": "labels", "messages": [user], "response_format": schema},
        ],
        "CompletionRequest": [
            {**drawn, "prompt": "Which clause?"},
            {"model": "a", "prompt": "b", "guided_choice": ["a"]},
        ],
        "ClassifyRequest": [{"model": "labels", "input": "Which clause?", "labels": ["payment", "notice"]}],
    }


PROVIDER = Provider()
PINNED = PROVIDER.pinned()


def encode_frame(header: dict[str, Any]) -> bytes:
    written = io.BytesIO()
    frame.write_frame(written, header)
    return written.getvalue()


def _descriptions() -> list[bytes]:
    from appliance.slurm.folder import JobDescription

    file = {"path": "rows.jsonl", "size": 1, "digest": f"sha256:{'0' * 64}"}
    texts = {name: name for name in ("key", "module", "code", "scratch")}
    described = {
        **texts,
        "gpu": False,
        "accepted_missing": (),
        "writes": 1,
        "inputs": ({"name": "0" * 64, "files": (file,)},),
    }
    return [JobDescription.model_validate(described).encode()]


def _advisories() -> list[bytes]:
    """Return a file of an advisory, and an export of it."""
    export, data = io.BytesIO(), json.dumps(ADVISORY).encode()
    with zipfile.ZipFile(export, "w") as archive:
        archive.writestr("a.json", data)
    return [data, export.getvalue()]


def _identity() -> list[bytes]:
    from pyrage import x25519

    return [f"# created\n{x25519.Identity.generate()}\n".encode()]


SETTINGS = b"""people = "127.0.0.1:8331"
console = "127.0.0.1:8330"

backup_days = 2
slurm_memory = "4G"
[limits]
concurrent = 3
[limits.legal]
tokens_per_day = 1000
"""
PROFILE = b'version = 1\nname = "olga"\nkey = "/key"\nhome = "/home"\n'
_add_service()
