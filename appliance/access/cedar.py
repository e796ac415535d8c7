"""Decisions of the site's Cedar policies. They can only refuse: a decision is a list of refusal reasons for an order.

All failures refuse: a request that the schema does not accept and a policy that cannot be evaluated are refusal
reasons. The current policy set is evaluated in this process, every other set in a separate process.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Self

from appliance.access.engine import Cedar, PolicyDecision, PolicyEngine
from appliance.access.process import CedarProcess
from appliance.access.requests import CedarRequest, list_attributes, list_probes, list_requests, name_entity
from appliance.domain.core.facts import Entity, OrderContext, PrincipalEntity, describe_principal
from appliance.domain.core.names import NO_DIGEST, Time, Value
from appliance.domain.core.order import Order
from appliance.domain.core.policy import PolicySet
from appliance.domain.core.records.people import Principal
from appliance.domain.core.state import State
from appliance.domain.governance.countersignature import PendingOrderEntity
from appliance.domain.governance.policies import PolicyEntity
from appliance.errors import BadInput, NotFound, Refusal, RefusalCode, Rejected

_SEE_POLICY = "The site's Cedar policies must allow it: appliance policy show."
POLICY_FORBIDS = RefusalCode(
    "policy-forbids", "policy", "Cedar policy {id} forbids {principal} the action {action}.", _SEE_POLICY
)
POLICY_PERMITS_NOT = RefusalCode(
    "policy-does-not-permit",
    "policy",
    "No policy of the set {id} permits {principal} the action {action}.",
    _SEE_POLICY,
)
POLICY_ERROR = RefusalCode(
    "policy-error",
    "policy",
    "The policy set {id} could not decide on the action {action} of {principal}: {detail}.",
    "Have two administrators adopt a corrected policy set.",
)
POLICY_SUBJECT_UNKNOWN = RefusalCode(
    "policy-subject-unknown",
    "state",
    "The policy set {id} could not decide on the action {action} of {principal}, because the order names something "
    "that the log does not have: {detail}.",
    "Correct the order.",
)
POLICY_WITHOUT_ACTION = RefusalCode(
    "policy-without-action",
    "policy",
    "The schema of the policy set {id} has no action {action}, which {principal} signed.",
    "Have two administrators adopt a policy set whose schema has it.",
)
NOT_REPLACEABLE = RefusalCode(
    "policy-not-always-replaceable",
    "policy",
    "Cedar policy {id} reads context or resource, so that at some time, or for some set, it could forbid "
    "{principal} the action {action}. The set could then never be replaced.",
    "Let every policy allow the replacement of the set without conditions.",
)
TOO_FEW_TO_ADOPT = RefusalCode(
    "administrators-too-few", "rule", "There are too few administrators to adopt a policy set.", "Enrol another one."
)

Keep = Callable[[str, str], bool]
"""A function of (owner, attribute) that returns True if the attribute is sent. `owner` is a Cedar expression."""


class DeclaredAttributes:
    """The attributes that a schema declares. `is_valid` returns True for a policy's text that the schema accepts."""

    def __init__(self, is_valid: Callable[[str], bool]) -> None:
        self._is_valid = is_valid
        self._known: dict[str, bool] = {}

    def has(self, action: str, owner: str, name: str) -> bool:
        """Return True if the schema declares the attribute.

        For an undeclared one Cedar ignores the ill-typed `!0` behind `has`, and accepts the question as a policy.
        """
        scope = f'principal, action == Action::"{action}", resource'
        question = f'permit ({scope}) when {{ if {owner} has "{name}" then !0 else true }};'
        is_undeclared = self._known.get(question)
        if is_undeclared is None:
            is_undeclared = self._known[question] = self._is_valid(question)
        return not is_undeclared


class CedarPolicies:
    """The Cedar part of a policy set, parsed and validated once for many decisions.

    The set can be from an earlier build. An action that its schema lacks is refused. Attributes of a request
    that its schema does not declare are left out.
    """

    def __init__(self, policy: PolicySet, cedar: Cedar | None = None) -> None:
        """Load the set in this process, unless `cedar` has loaded it.

        Raises:
            TooLarge, BadInput: as for `PolicyEngine`.
        """
        self.name = policy.name
        self._cedar = cedar or PolicyEngine(policy.name, policy.cedar, policy.cedar_schema)
        self._declared = DeclaredAttributes(self._cedar.is_valid)
        self._is_worst_case = False

    @classmethod
    def confine(cls, policy: PolicySet) -> Self:
        """Load a set that is not the current one in a separate process.

        Raises:
            TooLarge, BadInput, Unavailable: as for `CedarProcess`.
        """
        return cls(policy, CedarProcess(policy.name, policy.cedar, policy.cedar_schema))

    @classmethod
    def for_adoption(cls, policy: PolicySet) -> Self:
        """Load a set that is to be adopted, as `confine` does, and decide a sample of every order.

        Attributes that a later build adds are left out of its requests.

        Raises:
            TooLarge, BadInput, Unavailable: as for `CedarProcess`.
            BadInput: the schema does not accept all that this build sends for an action.
        """
        site = cls.confine(policy)
        try:
            for request in list_probes():
                site._check_sample(request)
        except BaseException:
            site.close()
            raise
        return site

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the separate process, if the set has one."""
        self._cedar.close()

    def decide(self, principal: Principal, order: Order, state: State, now: Time) -> tuple[Refusal, ...]:
        """Return the refusal reasons of the site's policies for an authentic order, none if they allow it."""
        reasons: tuple[Refusal, ...] = ()
        try:
            for request in list_requests(principal, order, state, now):
                reasons += self.list_refusal_reasons(request)
        except NotFound as error:
            return (self._refuse(POLICY_SUBJECT_UNKNOWN, order.action, order.signer, detail=Rejected(error.message)),)
        except BadInput as error:  # the policies ended their process, or exceeded its limits
            return (self._refuse(POLICY_ERROR, order.action, order.signer, detail=Rejected(error.message)),)
        return tuple(dict.fromkeys(reasons))

    def _refuse(self, code: RefusalCode, action: str, principal: str, **values: str) -> Refusal:
        return code(f"policy-set:{self.name}", action=action, principal=principal, **values)

    def list_refusal_reasons(self, request: CedarRequest) -> tuple[Refusal, ...]:
        """Return the refusal reasons of the site's policies for one request."""
        verdict, action, signer = self.evaluate(request), request.action, request.principal.id
        if verdict.errors and not self._has_action(action):
            return (self._refuse(POLICY_WITHOUT_ACTION, action, signer),)
        code = NOT_REPLACEABLE if self._is_worst_case else POLICY_FORBIDS
        reasons = [code(f"cedar-policy:{name}", action=action, principal=signer) for name in verdict.forbids]
        reasons += [self._refuse(POLICY_ERROR, action, signer, detail=Rejected(error)) for error in verdict.errors]
        if not verdict.permitted and not reasons:
            reasons.append(self._refuse(POLICY_PERMITS_NOT, action, signer))
        return tuple(reasons)

    def evaluate(self, request: CedarRequest) -> PolicyDecision:
        """Decide a request, without the attributes that the set's schema does not declare."""
        return self._authorize(request, partial(self._declared.has, request.action))

    def _authorize(self, request: CedarRequest, keep: Keep) -> PolicyDecision:
        encoded = _encode_request(request, keep), _encode_entities(request, keep)
        return self._cedar.authorize(*encoded, self._is_worst_case)

    def list_lockout_reasons(self, people: Sequence[Principal], single: bool, now: Time) -> tuple[Refusal, ...]:
        """Return the reasons that would prevent these administrators from replacing this set after its adoption.

        A set that forbids its own replacement could never be changed, so adoption requires that they can always
        replace it.
        """
        reasons = self._reasons_against_adopting(people, single, now)
        if reasons:
            return reasons
        worst = copy.copy(self)
        worst._is_worst_case = True
        return worst._reasons_against_adopting(people, single, now)

    def _reasons_against_adopting(self, people: Sequence[Principal], single: bool, now: Time) -> tuple[Refusal, ...]:
        reasons: list[Refusal] = []
        for first in people:
            refused = self.list_refusal_reasons(_make_adoption_request("adopt-policy", first, None, single, now))
            reasons += refused
            if not refused and single:
                return ()
            for second in [] if refused or single else people:
                if second.name != first.name:
                    refused = self.list_refusal_reasons(
                        _make_adoption_request("countersign", second, first, single, now)
                    )
                    reasons += refused
                    if not refused:
                        return ()
        return tuple(dict.fromkeys(reasons)) or (TOO_FEW_TO_ADOPT(),)

    def _check_sample(self, request: CedarRequest) -> None:
        if errors := self._authorize(request, lambda owner, name: True).errors:
            what = f"policy set {self.name}, action {request.action}"
            raise BadInput(f"{what}: expected it to take a sample request, got: {errors[0]}")

    def _has_action(self, action: str) -> bool:
        """Return True if the schema has the action. The schema of an earlier build lacks later actions."""
        return self._cedar.is_valid(f'permit (principal, action == Action::"{action}", resource);')


def _make_adoption_request(
    action: str, signer: Principal, first: Principal | None, single: bool, now: Time
) -> CedarRequest:
    """Return the Cedar request to adopt a policy set, or to countersign the first administrator's adoption.

    Every set declares these two actions, and attributes that it does not declare are left out. So a current set can
    always be replaced.
    """
    context = OrderContext(now=now, single_administrator=single)
    resource: Entity = PolicyEntity(id=NO_DIGEST, digest=NO_DIGEST)
    if first is not None:
        resource = PendingOrderEntity(id=NO_DIGEST, action="adopt-policy", signer=describe_principal(first))
    return CedarRequest(describe_principal(signer), action, resource, context)


def _encode_request(request: CedarRequest, keep: Keep) -> dict[str, Any]:
    return {
        "principal": _encode_uid(request.principal),
        "action": {"type": "Action", "id": request.action},
        "resource": _encode_uid(request.resource),
        "context": _encode_attributes(request.context, "context", keep),
    }


def _encode_entities(request: CedarRequest, keep: Keep) -> str:
    """Return Cedar's JSON of every entity in the request, each once, and of the roles above them."""
    entities: dict[tuple[str, str], dict[str, Any]] = {}
    for entity in (*_list_entities(request.principal, keep), *_list_entities(request.resource, keep)):
        roles = entity.roles if isinstance(entity, PrincipalEntity) else ()
        entities[name_entity(type(entity)), entity.id] = {
            "uid": _encode_uid(entity),
            "attrs": _encode_attributes(entity, _name_owner(entity), keep),
            "parents": [{"type": "Role", "id": role} for role in roles],
        }
        for role in roles:
            group, colon, _ = role.partition(":")
            parents = [{"type": "Role", "id": group}] if colon else []
            entities["Role", role] = {"uid": {"type": "Role", "id": role}, "attrs": {}, "parents": parents}
    return json.dumps(list(entities.values()))


def _list_entities(entity: Entity, keep: Keep) -> Iterator[Entity]:
    """Yield an entity, and those in its attributes that `keep` accepts."""
    yield entity
    for name, value in entity:
        if isinstance(value, Entity) and keep(_name_owner(entity), name):
            yield from _list_entities(value, keep)


def _name_owner(entity: Entity) -> str:
    return f'{name_entity(type(entity))}::""'


def _encode_uid(entity: Entity) -> dict[str, str]:
    return {"type": name_entity(type(entity)), "id": entity.id}


def _encode_attributes(source: Value, owner: str, keep: Keep) -> dict[str, Any]:
    """Return Cedar's JSON of the attributes of an entity or a context that are not missing and that `keep` accepts."""
    values = ((name, kind.type, getattr(source, name)) for name, kind in list_attributes(type(source)).items())
    return {name: _encode(value, kind) for name, kind, value in values if value is not None and keep(owner, name)}


def _encode(value: Any, kind: str) -> Any:
    if isinstance(value, Entity):
        return {"__entity": _encode_uid(value)}
    if kind == "datetime":
        return {"__extn": {"fn": "datetime", "arg": value}}
    return list(value) if isinstance(value, tuple) else value
