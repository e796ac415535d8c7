"""A policy set's folder: four files that people edit, assembled into the one document that is adopted.

parameters.json      the numbers of the invariants; what is left out has its default
policies.cedar       the site's own policies
schema.cedarschema   what they can see
tests.json           their test cases: not part of what is adopted
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from appliance.domain.core.names import explain
from appliance.domain.core.policy import Parameters, PolicySet
from appliance.errors import BadInput

PARAMETERS, POLICIES, SCHEMA, TESTS = "parameters.json", "policies.cedar", "schema.cedarschema", "tests.json"
ADOPTED = (PARAMETERS, POLICIES, SCHEMA)
BESIDE = (TESTS, "README.md")


def assemble_policy(name: str, files: Mapping[str, bytes]) -> PolicySet:
    """The policy set of a folder's files (name to bytes). Whether the policies are Cedar is for `access` to say.

    BadInput for a missing file, and for one that would silently not be adopted.
    """
    missing, unknown = sorted(set(ADOPTED) - set(files)), sorted(set(files) - {*ADOPTED, *BESIDE})
    if missing:
        raise BadInput(f"policy set {name}, files: expected {', '.join(ADOPTED)}, got none of {', '.join(missing)}")
    if unknown:
        raise BadInput(f"policy set {name}, files: expected {', '.join(ADOPTED + BESIDE)}, got {', '.join(unknown)}")
    try:
        return PolicySet(
            name=name,
            parameters=_parse_parameters(files[PARAMETERS], f"policy set {name}, {PARAMETERS}"),
            cedar=_text(files[POLICIES], f"policy set {name}, {POLICIES}"),
            cedar_schema=_text(files[SCHEMA], f"policy set {name}, {SCHEMA}"),
        )
    except ValidationError as error:
        raise BadInput(f"policy set {name}: {explain(error)}") from None


def _parse_parameters(data: bytes, what: str) -> Parameters:
    """People's JSON: any layout, but no key twice and none that is unknown."""
    text = _text(data, what)
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, what))
        return Parameters.model_validate_json(json.dumps(value))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput(f"{what}: expected JSON, got: {error}") from None
    except ValidationError as error:
        raise BadInput(f"{what}: {explain(error)}") from None


def _once(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise BadInput(f"{what}: expected every key once, got {', '.join(key for key, _ in pairs)}")
    return value


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{what}, byte {error.start}: expected UTF-8, got {error.reason}") from None
