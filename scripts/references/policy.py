"""docs/reference/policy.md: every parameter of a policy set, from the model that reads one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from appliance.domain.core.identity import IdentityKey, IdentityProvider
from appliance.domain.core.policy import Parameters, Tier
from scripts.references.tables import code, table

SHIPPED = Path(__file__).resolve().parents[2] / "policies" / "default" / "parameters.json"

GROUPS = {
    "Approvals and releases": (
        *("reviewers", "distinct_functions", "required_functions", "approver_may_activate", "approval_lifetime_s"),
        *("requests_required", "exposures", "purposes", "tiers", "delegation_lifetime_s", "break_glass_lifetime_s"),
        *("export_lifetime_s", "tries_a_day"),
    ),
    "Evaluation and runs": (
        *("failed_verdict", "required_gates", "most_sweep_runs", "slurm_accounts", "accepted_missing_layers"),
        "training_checkpoint_retention_s",
    ),
    "Orders, keys and sessions": (
        *("order_lifetime_s", "session_lifetime_s", "token_lifetime_s", "clock_skew_s", "key_overlap_s"),
        *("passkeys_synced", "passkeys_on_localhost", "identity_provider", "units_read"),
    ),
    "Witnesses": ("witnesses", "witness_quorum", "witness_lifetime_s"),
    "Words and retention": ("licences", "classifications", "name_retention_s", "text_retention_s", "retention"),
}
"""The parameters by subject. tests/test_references.py compares them with the model."""

_DAY, _HOUR, _MINUTE = 86_400, 3_600, 60


def render_policy() -> str:
    """docs/reference/policy.md."""
    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    properties = Parameters.model_json_schema()["properties"]
    defaults = Parameters().model_dump(mode="json")
    sections = []
    for title, names in GROUPS.items():
        rows = [
            (
                f"`{name}`",
                show_range(name, properties[name]),
                show_value(name, defaults[name]),
                show_value(name, shipped[name]),
                properties[name]["description"],
            )
            for name in names
        ]
        headers = ("parameter", "range", "default", "shipped set", "effect")
        sections.append(f"## {title}\n\n{table(headers, rows)}")
    tiers = Tier.model_json_schema()["properties"]
    levels = [
        (
            tier.name,
            *(show_value(name, value) for name, value in tier.model_dump(mode="json").items() if name != "name"),
        )
        for tier in Parameters().tiers
    ]
    return _PAGE.format(
        sections="\n\n".join(sections),
        fields=_describe_fields(Tier),
        provider=_describe_fields(IdentityProvider),
        keys=_describe_fields(IdentityKey),
        tiers=table(("tier", *(f"`{name}`" for name in tiers if name != "name")), levels),
    )


def _describe_fields(model: type[BaseModel]) -> str:
    properties = model.model_json_schema()["properties"]
    rows = [(f"`{name}`", show_range(name, one), one["description"]) for name, one in properties.items()]
    return table(("field", "range", "effect"), rows)


def show_value(name: str, value: Any) -> str:
    """Return a value as a person types it, with a duration in its largest unit."""
    if value is None:
        return "none"
    if isinstance(value, list):
        names = [one["name"] if name == "tiers" else one for one in value]
        return code(names) or "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if name.endswith("_s"):
        return f"{value:,} ({show_duration(value)})" if value else "0"
    return f"`{value}`"


def show_duration(seconds: int) -> str:
    """Return seconds in the largest unit that divides them."""
    units: Iterable[tuple[int, str]] = ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute"), (1, "second"))
    size, unit = next((size, unit) for size, unit in units if seconds % size == 0)
    count = seconds // size
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def show_range(name: str, schema: dict[str, Any]) -> str:
    """Return the values that a parameter may have."""
    given = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    if given:
        return f"{show_range(name, given[0])}, or none"
    if "$ref" in schema:
        return "an object as below"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{word}`" for word in schema["enum"])
    match schema["type"]:
        case "boolean":
            return "`true` or `false`"
        case "integer":
            return f"{schema['minimum']:,} to {schema['maximum']:,}{' seconds' if name.endswith('_s') else ''}"
        case "array":
            least = f"{schema['minItems']} to " if "minItems" in schema else "at most "
            return f"{least}{schema['maxItems']:,}"
        case _ if name in ("issuer", "authorization_endpoint"):
            return "an `https` address"
        case _ if "maxLength" in schema:
            return f"at most {schema['maxLength']:,} characters"
        case _:
            return "an identifier"


_PAGE = """# Policy parameters

A policy set is a folder with `parameters.json`, Cedar policies and their schema. Two administrators
adopt it ([how](../guides/administrators.md#change-the-policy)). This page lists every parameter of
`parameters.json`.

*Default* is the value of a parameter that a set leaves out. *Shipped set* is its value in
`policies/default`, which `appliance init` adopts unless you name another set. They differ for
`failed_verdict`. `appliance policy show` prints the valid set.

A parameter can ask for more or for less than the shipped set.
[Invariants](../formats/ledger.md#who-may) hold under every set: for example, the person who ordered
a run never reviews its adapter. This page is written by `scripts/reference` from the model that
reads a policy set.

{sections}

## Tiers

A release request names an exposure and a purpose. Its score is the place of its exposure in
`exposures` times the place of its purpose in `purposes`, each counted from 1. Its tier is the last
one whose `from_score` is at most the score. A tier adds to the parameters above, and never lowers
them.

{fields}

The tiers of the default and of the shipped set:

{tiers}

## Identity provider

`identity_provider` is an object with these fields ([how to set it up](../guides/identity.md)):

{provider}

Each key is an object with the fields of a JWK:

{keys}
"""
