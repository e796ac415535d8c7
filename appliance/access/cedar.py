"""The site's own policies, decided by Cedar. They may only tighten: what comes back is reasons against, nothing else.

Everything fails closed: a request that the schema does not take, or a policy that cannot be evaluated (Cedar would skip
it, and a skipped `forbid` forbids nothing), is a reason against.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import cedarpy

from appliance.access.bounds import check_bounds
from appliance.access.declared import Declared
from appliance.access.lockout import at_worst
from appliance.access.request import Moment, Request, Thing, pending_thing, principal_thing, requests_of
from appliance.access.samples import PROBES
from appliance.access.trial import try_policies
from appliance.domain.core.names import IDENTIFIER, NO_DIGEST, Time
from appliance.domain.core.order import Order
from appliance.domain.core.policy import PolicySet
from appliance.domain.core.records.people import Principal
from appliance.domain.core.state import State
from appliance.errors import BadInput, NotFound

_ID = re.compile(IDENTIFIER)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The `@id` of each policy that forbids, what could not be evaluated, and whether Cedar said allow."""

    forbids: tuple[str, ...]
    errors: tuple[str, ...]
    permitted: bool


class SitePolicies:
    """A policy set's Cedar part: parsed and validated once, decided many times.

    A set in force, or a past one, may be of an earlier build: a verb whose action its schema lacks is refused, no
    other, and what its schema does not declare of a request is left out of it.
    """

    def __init__(self, policy: PolicySet) -> None:
        """TooLarge for text that Cedar must not be given. BadInput, in Cedar's words, for text that does not parse,
        does not fit the schema, or that could not be identified in a refusal: every policy must have its own `@id`."""
        check_bounds(policy)
        self.name = policy.name
        what = f"policy set {policy.name}"
        try:
            self._schema = cedarpy.Schema.from_str(policy.cedar_schema)
        except ValueError as error:
            raise BadInput(f"{what}, schema: expected a Cedar schema, got: {_line(error)}") from None
        try:
            self._policies = cedarpy.PolicySet.from_str(policy.cedar)
            parsed = json.loads(cedarpy.policies_to_json_str(policy.cedar))
        except ValueError as error:
            raise BadInput(f"{what}, policies: expected Cedar policies, got: {_line(error)}") from None
        self._ids = _policy_ids(parsed, what)
        if not any(one["effect"] == "permit" for one in parsed["staticPolicies"].values()):
            raise BadInput(f"{what}, policies: expected at least one permit, without which all is refused, got none")
        self._text = policy.cedar
        self._declared = Declared(self._schema)
        self._validate(policy.cedar, what)

    @classmethod
    def for_adoption(cls, policy: PolicySet) -> Self:
        """Those of a set that is to be put in force: BadInput, too, where its schema does not take all that this build
        sends for a verb, or where its text ends or holds up a process. What the next build sends beside that is left
        out."""
        site = cls.of_export(policy)
        for request in PROBES:
            site._probe(request)
        return site

    @classmethod
    def of_export(cls, policy: PolicySet) -> Self:
        """The policies of a set from an untrusted author. They are tried in a separate process before Cedar reads them
        in this one. BadInput where its text ends or holds up that process, Unavailable where none can be started
        here."""
        check_bounds(policy)
        try_policies(policy, [(_encode_request(request), _encode_entities(request)) for request in PROBES])
        return cls(policy)

    def decide(self, principal: Principal, order: Order, state: State, now: Time) -> tuple[str, ...]:
        """Every reason of the site's own against an authentic order; empty when its policies allow it."""
        reasons: tuple[str, ...] = ()
        try:
            for request in requests_of(principal, order, state, now):
                reasons += self.reasons_against(request)
        except NotFound as error:
            return (f"site policies {self.name}, {order.verb} by {order.signer}: {error.message}",)
        return tuple(dict.fromkeys(reasons))

    def reasons_against(self, request: Request) -> tuple[str, ...]:
        verdict = self.evaluate(request)
        wanted = f"{request.verb} by {request.principal.id}"
        if verdict.errors and not self._knows(request.verb):
            expected = f"expected a schema with the action {request.verb}, got none: adopt a set whose schema has it"
            return (f"site policies {self.name}, {wanted}: {expected}",)
        reasons = [f"site policy {name}: forbids {wanted}" for name in verdict.forbids]
        reasons += [f"site policies {self.name}: expected a decision on {wanted}, got: {e}" for e in verdict.errors]
        if not verdict.permitted and not reasons:
            reasons.append(f"site policies {self.name}: expected a policy that permits {wanted}, got none")
        return tuple(reasons)

    def evaluate(self, request: Request) -> Verdict:
        return self._evaluate(self._declared.cut(request))

    def _evaluate(self, request: Request) -> Verdict:
        result = cedarpy.is_authorized(
            _encode_request(request), self._policies, _encode_entities(request), self._schema
        )
        errors = tuple(_line(error) for error in result.diagnostics.errors)
        if result.decision == cedarpy.Decision.NoDecision and not errors:
            errors = ("no decision",)
        permitted = result.decision == cedarpy.Decision.Allow
        # A decision's reasons are the policies that made it: of a denial, those that forbid.
        forbids = () if permitted else tuple(sorted(self._ids[place] for place in result.diagnostics.reasons))
        return Verdict(forbids, errors, permitted)

    def locked_out(self, people: Sequence[Principal], single: bool, now: Time) -> tuple[str, ...]:
        """Why nobody could adopt another policy set once this one is in force, now or later; empty when these
        administrators always can.

        Asked before adoption: a set that forbids its own replacement would be the last.
        """
        reasons = self._reasons_against_adopting(people, single, now)
        if reasons:
            return reasons
        worst = self._at_worst()
        rule = "its conditions read context or resource, so at some time, or for some set, it could not be replaced"
        return tuple(f"{reason}: {rule}" for reason in worst._reasons_against_adopting(people, single, now))

    def _reasons_against_adopting(self, people: Sequence[Principal], single: bool, now: Time) -> tuple[str, ...]:
        reasons: list[str] = []
        for first in people:
            against = self.reasons_against(_governing("adopt-policy", first, None, single, now))
            reasons += against
            if not against and single:
                return ()
            for second in [] if against or single else people:
                if second.name != first.name:
                    against = self.reasons_against(_governing("endorse", second, first, single, now))
                    reasons += against
                    if not against:
                        return ()
        return tuple(dict.fromkeys(reasons)) or ("administrators: expected enough to adopt a policy set, got too few",)

    def _at_worst(self) -> Self:
        text = cedarpy.policies_from_json_str(
            json.dumps(at_worst(json.loads(cedarpy.policies_to_json_str(self._text))))
        )
        worst = copy.copy(self)
        worst._policies = cedarpy.PolicySet.from_str(text)
        worst._ids = _policy_ids(json.loads(cedarpy.policies_to_json_str(text)), self.name)
        return worst

    def _validate(self, text: str, what: str) -> None:
        result = cedarpy.validate_policies(text, self._schema)
        if result.validation_passed:
            return
        found = [f"{self._ids.get(error.policy_id, 'policies')}: {_line(error.error)}" for error in result.errors]
        raise BadInput(f"{what}, policies: expected them to fit the schema, got: {'; '.join(found) or 'no'}")

    def _probe(self, request: Request) -> None:
        if errors := self._evaluate(request).errors:
            what = f"policy set {self.name}, action {request.verb}"
            raise BadInput(f"{what}: expected it to take a sample request, got: {errors[0]}")

    def _knows(self, verb: str) -> bool:
        """Whether the schema has an action for the verb; one from before the release that brought the verb has none."""
        policy = f'permit (principal, action == Action::"{verb}", resource);'
        return bool(cedarpy.validate_policies(policy, self._schema).validation_passed)


def _policy_ids(parsed: dict[str, Any], what: str) -> dict[str, str]:
    """Cedar's own name of each policy (its place in the file) to its `@id`."""
    if parsed["templates"]:
        raise BadInput(f"{what}, policies: expected no templates, since nothing would link them, got some")
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for place, policy in parsed["staticPolicies"].items():
        name = policy.get("annotations", {}).get("id")
        if not isinstance(name, str) or _ID.fullmatch(name) is None:
            raise BadInput(f"{what}, {place}: expected an @id of a-z, 0-9 and hyphens, got {name!r}")
        if name in taken:
            raise BadInput(f"{what}, {place}: expected an @id of its own, got {name!r} again")
        ids[place] = name
        taken.add(name)
    return ids


def _governing(verb: str, signer: Principal, first: Principal | None, single: bool, now: Time) -> Request:
    """A request to adopt a policy set, or to endorse the first administrator's.

    Every set declares these two verbs, and is sent what it declares of them: so a set in force can always be replaced.
    """
    context = {"now": Moment(now), "single_administrator": single}
    resource = Thing("Policy", NO_DIGEST, {"digest": NO_DIGEST})
    if first is not None:
        resource = pending_thing(NO_DIGEST, "adopt-policy", principal_thing(first.name, first.roles))
    return Request(principal_thing(signer.name, signer.roles), verb, resource, context)


def _encode_request(request: Request) -> dict[str, Any]:
    return {
        "principal": _uid(request.principal),
        "action": {"type": "Action", "id": request.verb},
        "resource": _uid(request.resource),
        "context": {name: _encode(value) for name, value in request.context.items()},
    }


def _encode_entities(request: Request) -> str:
    """Every entity that the request names, each once, and the roles above them."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for thing in (*_things(request.principal), *_things(request.resource)):
        found[thing.type, thing.id] = {
            "uid": _uid(thing),
            "attrs": {name: _encode(value) for name, value in thing.attributes.items()},
            "parents": [{"type": "Role", "id": role} for role in thing.roles],
        }
        for role in thing.roles:
            kind, colon, _ = role.partition(":")
            parents = [{"type": "Role", "id": kind}] if colon else []
            found["Role", role] = {"uid": {"type": "Role", "id": role}, "attrs": {}, "parents": parents}
    return json.dumps(list(found.values()))


def _things(thing: Thing) -> Iterator[Thing]:
    yield thing
    for value in thing.attributes.values():
        if isinstance(value, Thing):
            yield from _things(value)


def _uid(thing: Thing) -> dict[str, str]:
    return {"type": thing.type, "id": thing.id}


def _encode(value: Any) -> Any:
    if isinstance(value, Thing):
        return {"__entity": _uid(value)}
    if isinstance(value, Moment):
        return {"__extn": {"fn": "datetime", "arg": value.time}}
    return list(value) if isinstance(value, tuple) else value


def _line(error: object) -> str:
    return " ".join(str(error).split())[:500]
