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
    """An order to adopt a policy set, which it names by digest."""

    action = "adopt-policy"
    policy: Digest = entered(kind="document")

    def subjects(self) -> Subjects:
        return ((f"policy:{self.policy}", self.policy),)


def complete_adoption(given: OrderInput, lookup: Lookup) -> Completed:
    """Return the digest of the policy set beside the order."""
    return {"policy": ProvenValue(digest_bytes(given.documents.get("policy", b"")))}


class PolicyAdopted(Countersigned):
    """The event of the adoption of a policy set."""

    type = "policy.adopted"
    documents = ("order", "policy")


def authorise_adopt_policy(state: State, order: AdoptPolicy, signer: Principal, now: Time) -> Reasons:
    """Return no refusal reasons: every administrator may adopt a policy set that is well-formed."""
    return []


def check_witnesses(log_keys: list[str], policy: PolicySet) -> None:
    """Raise Denied if a witness of the policy set has a key of the log."""
    if reasons := own_witnesses(log_keys, policy.parameters):
        raise Denied("policy set", refusals=reasons)


def find_signers(state: State, parameters: Parameters, now: Time) -> list[Principal]:
    """Return the administrators who can change the policy under these parameters, which may differ from the valid ones.

    They have a key that may sign. With an identity provider it is a key file: if the provider is unavailable, sessions
    open only on the service's own machine, where no passkey signs.
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


def too_few_signers(state: State, signers: Sequence[Principal]) -> Reasons:
    """Return the refusal reason if these administrators are too few to adopt another set."""
    least = 1 if state.site.single_administrator else 2
    if len(signers) >= least:
        return []
    able = tuple(person.name for person in signers) or "none"
    return [TOO_FEW_SIGNERS(needed=least, able=able)]


def check_policy(case: Case, order: AdoptPolicy, data: bytes) -> None:
    """Check that the document is the set that the order names, and that none of its witnesses is the log itself.

    Raises: Denied otherwise; BadInput for a malformed set.
    """
    case.require(digest_bytes(data) == order.policy, "policy", order.policy, digest_bytes(data))
    check_witnesses([key.vkey for key in case.state.site.log_keys], parse_policy(data))


def apply_policy_adoption(case: Case) -> Changes:
    """Apply the adoption of a policy set."""
    policy = parse_policy(case.documents["policy"])
    digest = digest_bytes(case.documents["policy"])
    site = case.state.site.model_copy(update={"policy": digest, "parameters": policy.parameters})
    return [(case.state.sites, "site", site)]


class PolicyEntity(Entity):
    """A policy set. Its id is its digest, too."""

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
ADOPTED = (PARAMETERS, POLICIES, SCHEMA)
"""Files of a policy folder that are adopted."""
BESIDE = (TESTS, "README.md")
"""Files that a policy folder may contain and that are not adopted."""


def assemble_policy(name: str, files: Mapping[str, bytes]) -> PolicySet:
    """Return the policy set of a folder's files (name to bytes). `access` checks that the policies are valid Cedar.

    Raises: BadInput for a missing file, and for a file that would be ignored.
    """
    missing, unknown = sorted(set(ADOPTED) - set(files)), sorted(set(files) - {*ADOPTED, *BESIDE})
    if missing:
        raise BadInput(f"policy set {name}, files: expected {', '.join(ADOPTED)}, got none of {', '.join(missing)}")
    if unknown:
        raise BadInput(f"policy set {name}, files: expected {', '.join(ADOPTED + BESIDE)}, got {', '.join(unknown)}")
    try:
        return PolicySet(
            name=name,
            parameters=parse_file(Parameters, files[PARAMETERS], f"policy set {name}, {PARAMETERS}"),
            cedar=_text(files[POLICIES], f"policy set {name}, {POLICIES}"),
            cedar_schema=_text(files[SCHEMA], f"policy set {name}, {SCHEMA}"),
        )
    except ValidationError as error:
        raise BadInput(f"policy set {name}: {explain(error)}") from None


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{what}, byte {error.start}: expected UTF-8, got {error.reason}") from None


_MOST_PAIRS = 4_000_000
"""Largest product of the numbers of lines of two texts that are compared line by line."""


class PolicyChange(Value):
    """A difference between two policy sets.

    `what` is a parameter, a named part of one (such as a tier), a Cedar policy, or the schema. `before` or `now` is
    None if that set has none.
    """

    what: str
    before: str | None
    now: str | None


def describe_changes(old: PolicySet, new: PolicySet) -> tuple[PolicyChange, ...]:
    """Return each difference between the sets once."""
    before, now = old.parameters.model_dump(mode="json"), new.parameters.model_dump(mode="json")
    found: list[PolicyChange] = []
    for name in now:
        found += _compare_parameter(name.replace("_", " "), before[name], now[name])
    ours, theirs = _policies(old.cedar), _policies(new.cedar)
    for name in dict.fromkeys((*ours, *theirs)):
        found += _compare(f"Cedar policy {name}", ours.get(name), theirs.get(name))
    return (
        *found,
        *_compare(
            "schema",
            _describe_length(old.cedar_schema),
            _describe_length(new.cedar_schema),
            old.cedar_schema == new.cedar_schema,
        ),
    )


def differences(old: PolicySet, new: PolicySet) -> list[str]:
    """Return unified diffs: one over the parameters, one over the Cedar text, one over its schema."""
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

    Two long texts have one hunk, from the first line that differs to the last: comparing the lines between these takes
    time proportional to the product of their numbers.
    """
    if before == after or len(before) * len(after) <= _MOST_PAIRS:
        return difflib.unified_diff(before, after, was, now, lineterm="")
    first = _count_equal(before, after)
    last = _count_equal(before[first:][::-1], after[first:][::-1])
    old, new = before[first : len(before) - last], after[first : len(after) - last]
    head = (f"--- {was}", f"+++ {now}", f"@@ -{first + 1},{len(old)} +{first + 1},{len(new)} @@")
    return (*head, *(f"-{line}" for line in old), *(f"+{line}" for line in new))


def _count_equal(first: Sequence[str], second: Sequence[str]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (line, other) in pairs if line != other), min(len(first), len(second)))


def _compare_parameter(label: str, before: Any, now: Any) -> list[PolicyChange]:
    if _is_named(before) and _is_named(now):
        ours, theirs = ({item["name"]: item for item in value} for value in (before, now))
        parts: list[PolicyChange] = []
        for name in dict.fromkeys((*ours, *theirs)):
            parts += _compare(f"{label}: {name}", _format_value(ours.get(name)), _format_value(theirs.get(name)))
        return parts
    return _compare(label, _format_value(before), _format_value(now), before == now)


def _is_named(value: Any) -> bool:
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


def _policies(cedar: str) -> dict[str, str]:
    """Return each policy's text by its `@id`. Text before the first `@id` is compared only by the text diff."""
    starts = list(POLICY_ID.finditer(cedar))
    ends = (*(found.start() for found in starts), len(cedar))[1:]
    return {found[1]: _strip_layout(cedar[found.end() : end]) for found, end in zip(starts, ends, strict=True)}


def _strip_layout(text: str) -> str:
    """Return the text without comments and line layout, as Cedar reads it."""
    lines = (line.strip() for line in text.split("\n"))
    return " ".join(line for line in lines if line and not line.startswith("//"))


def _describe_length(schema: str) -> str:
    return f"{len(schema.splitlines())} lines"


def _format_parameters(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, indent=2, sort_keys=True)
