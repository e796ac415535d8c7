"""Adoption of policy sets, their files, and the comparison of two sets."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from appliance.domain.core.action import Action, Attachment
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Countersigned
from appliance.domain.core.facts import ActionFacts, Entity
from appliance.domain.core.lookup import Completed, Lookup, OrderInput, ProvenValue
from appliance.domain.core.names import Digest, Time, Value, explain, parse_file
from appliance.domain.core.order import Order, Subjects, entered
from appliance.domain.core.policy import Parameters, PolicySet, own_witnesses, parse_policy
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons
from appliance.domain.core.signatures import refuse_passkey_scope
from appliance.domain.core.state import State
from appliance.domain.governance.policy_ids import POLICY_ID
from appliance.errors import BadInput, Denied, RefusalCode
from appliance.formats.core.digest import digest_bytes

TOO_FEW_SIGNERS = RefusalCode(
    "administrators-cannot-sign",
    "rule",
    "After the adoption, {needed} administrators must be able to sign under this policy set (passkeys_synced, "
    "passkeys_on_localhost, identity_provider). These can: {able}.",
    "Allow the passkeys that administrators have, or have them enrol keys that the set allows first. With an identity "
    "provider they need key files, to sign on the service's own machine while the provider is unavailable.",
)


class AdoptPolicy(Order):
    """An order to adopt a policy set. `policy` is the digest of the set, which is sent with the order."""

    action = "adopt-policy"
    policy: Digest = entered(kind="document")

    def subjects(self) -> Subjects:
        return ((f"policy:{self.policy}", self.policy),)


def complete_adoption(order_input: OrderInput, lookup: Lookup) -> Completed:
    """Return the digest of the policy set that is sent with the order."""
    return {"policy": ProvenValue(digest_bytes(order_input.documents.get("policy", b"")))}


class PolicyAdopted(Countersigned):
    """The event of the adoption of a policy set."""

    type = "policy.adopted"
    documents = ("order", "policy")


def authorise_adopt_policy(state: State, order: AdoptPolicy, signer: Principal, now: Time) -> Reasons:
    """Return no refusal reasons: administrators may adopt every well-formed policy set."""
    return []


def require_foreign_witnesses(log_keys: list[str], policy: PolicySet) -> None:
    """Raise Denied if a witness of the policy set has a key of the log."""
    if reasons := own_witnesses(log_keys, policy.parameters):
        raise Denied("policy set", refusals=reasons)


def list_policy_signers(state: State, parameters: Parameters, now: Time) -> list[Principal]:
    """Return the administrators who could change the policy if `parameters` were valid.

    Each has a valid key that these parameters allow. If they have an identity provider, it must be a key file: while
    the provider is unavailable, sessions open only on the service's own machine, where passkeys cannot sign.
    """
    names = {
        key.principal
        for key in state.keys.values()
        if key.is_valid(now)
        and (
            key.scope is None
            or (parameters.identity_provider is None and not refuse_passkey_scope(parameters, key.scope))
        )
    }
    return [person for person in state.principals.values() if person.has("administrator") and person.name in names]


def refuse_too_few_signers(state: State, signers: Sequence[Principal]) -> Reasons:
    """Return the refusal reason if `signers` are too few administrators to adopt another policy set.

    A site needs two, or one if it was founded with a single administrator.
    """
    least = 1 if state.site.single_administrator else 2
    if len(signers) >= least:
        return []
    able = tuple(person.name for person in signers) or "none"
    return [TOO_FEW_SIGNERS(needed=least, able=able)]


def check_policy(case: Case, order: AdoptPolicy, data: bytes) -> None:
    """Check that the document is the policy set that the order names, and that no witness in it has a key of the log.

    Raises: Denied if a check fails; BadInput for a malformed set.
    """
    case.require(digest_bytes(data) == order.policy, "policy", order.policy, digest_bytes(data))
    require_foreign_witnesses([key.vkey for key in case.state.site.log_keys], parse_policy(data))


def apply_policy_adoption(case: Case) -> Changes:
    """Apply the adoption of a policy set."""
    policy = parse_policy(case.documents["policy"])
    digest = digest_bytes(case.documents["policy"])
    site = case.state.site.model_copy(update={"policy": digest, "parameters": policy.parameters})
    return [(case.state.sites, "site", site)]


class PolicyEntity(Entity):
    """A policy set. `digest` equals its id."""

    digest: str


def _describe_policy(state: State, order: AdoptPolicy, signer: Principal) -> PolicyEntity:
    return PolicyEntity(id=order.policy, digest=order.policy)


ACTIONS = (
    Action(
        AdoptPolicy,
        title="Adopt a policy set",
        complete=complete_adoption,
        authorise=authorise_adopt_policy,
        signers=("administrator",),
        meaning="From now on every decision is made under this policy set.",
        event=PolicyAdopted,
        apply=apply_policy_adoption,
        two_administrators=True,
        attachment=Attachment("policy", check_policy),
        recheck_slots=True,
        facts=ActionFacts(PolicyEntity, _describe_policy),
        example_values={"signer": "anna"},
    ),
)


PARAMETERS, POLICIES, SCHEMA, TESTS = "parameters.json", "policies.cedar", "schema.cedarschema", "tests.json"
ADOPTED_FILES = (PARAMETERS, POLICIES, SCHEMA)
"""Files of a policy folder that become part of the policy set."""
OPTIONAL_FILES = (TESTS, "README.md")
"""Files that a policy folder may contain and that do not become part of the policy set."""


def assemble_policy(name: str, files: Mapping[str, bytes]) -> PolicySet:
    """Return the policy set `name` made of a folder's files, given as bytes by file name.

    The package `access` checks that the policies are valid Cedar.

    Raises: BadInput for a missing, unknown or malformed file.
    """
    missing, unknown = sorted(set(ADOPTED_FILES) - set(files)), sorted(set(files) - {*ADOPTED_FILES, *OPTIONAL_FILES})
    if missing:
        raise BadInput(
            f"policy set {name}, files: expected {', '.join(ADOPTED_FILES)}, got none of {', '.join(missing)}"
        )
    if unknown:
        raise BadInput(
            f"policy set {name}, files: expected {', '.join(ADOPTED_FILES + OPTIONAL_FILES)}, got {', '.join(unknown)}"
        )
    try:
        return PolicySet(
            name=name,
            parameters=parse_file(Parameters, files[PARAMETERS], f"policy set {name}, {PARAMETERS}"),
            cedar=_decode_text(files[POLICIES], f"policy set {name}, {POLICIES}"),
            cedar_schema=_decode_text(files[SCHEMA], f"policy set {name}, {SCHEMA}"),
        )
    except ValidationError as error:
        raise BadInput(f"policy set {name}: {explain(error)}") from None


def _decode_text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{what}, byte {error.start}: expected UTF-8, got {error.reason}") from None


_MAX_LINE_PAIRS = 4_000_000
"""Largest product of the numbers of lines of two texts for which an exact diff is computed."""


class PolicyChange(Value):
    """A difference between two policy sets.

    `what` names a parameter, a named item of a parameter (such as a tier), a Cedar policy, or the schema. `before` is
    its text in the old set and `now` its text in the new set. They are None if the set does not contain it.
    """

    what: str
    before: str | None
    now: str | None


def describe_changes(old: PolicySet, new: PolicySet) -> tuple[PolicyChange, ...]:
    """Return the differences between two policy sets: parameters first, then Cedar policies, then the schema."""
    old_parameters, new_parameters = old.parameters.model_dump(mode="json"), new.parameters.model_dump(mode="json")
    changes: list[PolicyChange] = []
    for name in new_parameters:
        changes += _compare_parameter(name.replace("_", " "), old_parameters[name], new_parameters[name])
    old_policies, new_policies = _split_policies(old.cedar), _split_policies(new.cedar)
    for name in dict.fromkeys((*old_policies, *new_policies)):
        changes += _compare(f"Cedar policy {name}", old_policies.get(name), new_policies.get(name))
    return (
        *changes,
        *_compare(
            "schema",
            _describe_length(old.cedar_schema),
            _describe_length(new.cedar_schema),
            old.cedar_schema == new.cedar_schema,
        ),
    )


def list_diff_lines(old: PolicySet, new: PolicySet) -> list[str]:
    """Return the lines of three unified diffs: of the parameters, of the Cedar policies, and of the schema."""
    lines: list[str] = []
    for what, before, after in (
        (PARAMETERS, _format_parameters(old.parameters.model_dump()), _format_parameters(new.parameters.model_dump())),
        (POLICIES, old.cedar, new.cedar),
        (SCHEMA, old.cedar_schema, new.cedar_schema),
    ):
        names = (f"{old.name}/{what} (valid)", f"{new.name}/{what}")
        lines += _diff(before.split("\n"), after.split("\n"), *names)
    return lines


def _diff(before: list[str], after: list[str], was: str, now: str) -> Iterable[str]:
    """Return a unified diff.

    If the product of their numbers of lines exceeds `_MAX_LINE_PAIRS`, the diff has one hunk from the first line that
    differs to the last. An exact comparison takes time proportional to that product.
    """
    if before == after or len(before) * len(after) <= _MAX_LINE_PAIRS:
        return difflib.unified_diff(before, after, was, now, lineterm="")
    equal_at_start = _count_equal(before, after)
    equal_at_end = _count_equal(before[equal_at_start:][::-1], after[equal_at_start:][::-1])
    old, new = before[equal_at_start : len(before) - equal_at_end], after[equal_at_start : len(after) - equal_at_end]
    head = (f"--- {was}", f"+++ {now}", f"@@ -{equal_at_start + 1},{len(old)} +{equal_at_start + 1},{len(new)} @@")
    return (*head, *(f"-{line}" for line in old), *(f"+{line}" for line in new))


def _count_equal(first: Sequence[str], second: Sequence[str]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (line, other) in pairs if line != other), min(len(first), len(second)))


def _compare_parameter(label: str, before: Any, now: Any) -> list[PolicyChange]:
    if _is_list_of_named(before) and _is_list_of_named(now):
        old_items, new_items = ({item["name"]: item for item in value} for value in (before, now))
        changes: list[PolicyChange] = []
        for name in dict.fromkeys((*old_items, *new_items)):
            changes += _compare(
                f"{label}: {name}", _format_value(old_items.get(name)), _format_value(new_items.get(name))
            )
        return changes
    return _compare(label, _format_value(before), _format_value(now), before == now)


def _is_list_of_named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value)


def _compare(what: str, before: str | None, now: str | None, same: bool | None = None) -> list[PolicyChange]:
    is_same = before == now if same is None else same
    return [] if is_same else [PolicyChange(what=what, before=before, now=now)]


def _format_value(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_format_value(item) or 'none'}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(str(_format_value(item)) for item in value) or "none"
    return str(value)


def _split_policies(cedar: str) -> dict[str, str]:
    """Return each policy's text by its `@id`, without comments and layout. Text before the first `@id` is left out."""
    starts = list(POLICY_ID.finditer(cedar))
    ends = (*(found.start() for found in starts), len(cedar))[1:]
    return {found[1]: _strip_layout(cedar[found.end() : end]) for found, end in zip(starts, ends, strict=True)}


def _strip_layout(text: str) -> str:
    """Return the text on one line, without indentation and without lines that contain only a comment."""
    lines = (line.strip() for line in text.split("\n"))
    return " ".join(line for line in lines if line and not line.startswith("//"))


def _describe_length(schema: str) -> str:
    return f"{len(schema.splitlines())} lines"


def _format_parameters(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, indent=2, sort_keys=True)
