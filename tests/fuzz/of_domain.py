"""Parsers of `appliance/domain` and `appliance/access`."""

from __future__ import annotations

import json
from functools import cache, partial

from appliance.access.cases import parse_cases
from appliance.domain.actions.apply import parse_typed
from appliance.domain.actions.proposals import parse_proposal
from appliance.domain.actions.registry import ACTIONS, ORDERS
from appliance.domain.audit.archives import read_archive_entry
from appliance.domain.core import credentials
from appliance.domain.core.entry import parse_entry, parse_refusals
from appliance.domain.core.names import parse_file, parse_value
from appliance.domain.core.order import parse_order
from appliance.domain.core.policy import PolicySet, parse_policy
from appliance.domain.core.signatures import open_envelope
from appliance.domain.data import tool_calls
from appliance.domain.data.kinds import parse_about
from appliance.domain.evaluation.gates import parse_gate_file, parse_gates
from appliance.domain.evaluation.items import parse_items
from appliance.domain.evaluation.verdict import parse_verdict
from appliance.domain.governance.policies import assemble_policy
from appliance.domain.planning import plan, shape
from appliance.domain.queries.proofs import parse_entry_proof, parse_record
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.releases.admission import open_log_checkpoint
from appliance.domain.runs.steps import parse_steps
from appliance.formats.signatures import dsse
from scripts.kit.log_builder import stage
from tests.fuzz.seeds import (
    BASE_FACTS,
    CALL,
    OWN,
    ROOT,
    TOOL,
    bound_gates,
    credential_statements,
    documents,
    entries,
    entry_proofs,
    facts,
    orders,
    policies,
    policy_files,
    proposals,
    recipes,
    records,
    shipped_gates,
    sites,
)
from tests.fuzz.target import (
    Target,
    add,
    of_bytes,
    of_text,
    of_value,
    read_object,
)

# --- domain -----------------------------------------------------------------------------------------------------------

of_bytes(parse_cases, [(ROOT / f"policies/{name}/tests.json").read_bytes() for name in ("default", "strict-example")])
of_bytes(parse_entry, entries)
of_bytes(read_archive_entry, entries, parse=lambda data: read_archive_entry(data, _find_document))
of_bytes(parse_typed, entries)
of_bytes(parse_proposal, lambda: [*proposals(), *orders()])
of_bytes(parse_order, orders, "json", {name: row.order for name, row in ACTIONS.items()})
of_value(
    parse_refusals,
    [[{"code": "a", "subject": "b", "values": {"c": 1}, "kind": "rule", "sentence": "c", "remedy": "d"}]],
)
of_bytes(parse_value, policies, parse=lambda data: parse_value(PolicySet, data, "value"))
of_bytes(parse_file, policies, parse=lambda data: parse_file(PolicySet, data, "value"))
of_bytes(parse_policy, policies)
of_bytes(open_envelope, lambda: documents("order"), parse=lambda data: open_envelope(sites()[0].state, data))
for _model in (credentials.SessionStatement, credentials.UnitToken, credentials.TokenRequest):
    of_bytes(
        credentials.parse_credential,
        credential_statements,
        parse=partial(credentials.parse_credential, _model),
        name=_model.kind,
    )
of_text(credentials.parse_token, [credentials.encode_token(dsse.parse_envelope(OWN["envelope"].encode()))])
for _name, _policy in (("policies.cedar", b""), ("schema.cedarschema", b""), ("parameters.json", b"{}")):
    of_bytes(
        assemble_policy,
        partial(
            lambda name: [policy_files(folder)[name] for folder in ("default", "strict-example")],
            _name,
        ),
        "json" if _name.endswith("json") else "text",
        parse=partial(lambda name, data: assemble_policy("site", policy_files("default") | {name: data}), _name),
        name=_name,
    )
of_bytes(parse_about, [b'{"dataset_kind":"classification","label_rows":[1],"labels":["a"]}'])
of_value(tool_calls.read_tools, [[TOOL]], "row")
of_value(tool_calls.read_calls, [[CALL]], "row")
of_value(tool_calls.read_name, ["look_up"], "row")
of_value(tool_calls.read_id, ["call12345"], "row")
of_value(tool_calls.read_arguments, [{"a": 1}, '{"a":1}'], "row")
of_bytes(parse_gates, bound_gates)
of_bytes(parse_gate_file, lambda: [*bound_gates(), *shipped_gates()])
of_bytes(parse_items, lambda: [_items()], "lines")
of_bytes(parse_verdict, lambda: [_verdict()])


def _items() -> bytes:
    from scripts.kit.log_builder import ITEMS

    return ITEMS


def _find_document(digest: str) -> bytes | None:
    return next((site.documents[digest] for site in sites() if digest in site.documents), None)


@cache
def _verdict() -> bytes:
    from appliance.domain.evaluation.items import encode_items
    from tests.domain.evaluation.test_rules import ALIKE, GATES

    site = stage("imported")
    run = site.train(gates=GATES)
    return bytes(site.evaluate(run, encode_items(ALIKE))["verdict"])


of_value(shape.read_packed, [BASE_FACTS], is_object=True)
of_bytes(
    shape.read_shape, lambda: map(encode_json, facts()), parse=lambda data: shape.read_shape("base", read_object(data))
)
of_bytes(
    shape.read_lengths,
    lambda: map(encode_json, facts()),
    parse=lambda data: shape.read_lengths("dataset", read_object(data)),
)
of_value(shape.read_roles, [BASE_FACTS], is_object=True)
of_bytes(
    plan.read_subject,
    [json.dumps(BASE_FACTS).encode()],
    parse=lambda data: plan.read_subject("base", "dataset", BASE_FACTS, read_object(data)),
)


def encode_json(value: object) -> bytes:
    return json.dumps(value).encode()


of_bytes(parse_entry_proof, entry_proofs)
of_bytes(parse_record, records)
of_bytes(parse_recipe, recipes, parse=lambda data: parse_recipe(read_object(data)))
of_bytes(open_log_checkpoint, [OWN["checkpoint"].encode()], "text", OWN["vkey"].partition("+")[0], [OWN["vkey"]])
of_bytes(parse_steps, lambda: [_steps()], "lines")


def _steps() -> bytes:
    from scripts.kit.log_builder import STEPS

    return STEPS


for _action in ACTIONS:
    add(
        f"domain.actions.registry.ORDERS {_action}",
        Target(ORDERS.parse, partial(lambda place: [orders()[place]], list(ACTIONS).index(_action)), "json"),
    )
