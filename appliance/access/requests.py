"""Cedar requests: an order as the site's policies receive it, with the facts that its action declares.

There is one Cedar action for each action, with the same name. The principal is the signer, with its roles as Cedar
parents: `Role::"operator"`, or `Role::"reviewer:privacy"`, which itself is in `Role::"reviewer"`. The resource is the
thing that the order is about. policies/default/schema.cedarschema documents the attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from appliance.domain.actions.example import make_example_state
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.example import NOW, TOMORROW
from appliance.domain.core.facts import Entity, OrderContext, PrincipalEntity, describe_principal
from appliance.domain.core.names import Time, Value
from appliance.domain.core.order import Order
from appliance.domain.core.records.people import Principal
from appliance.domain.core.state import State
from appliance.domain.governance.people import EnrolSeveral

_SCALARS = {bool: "Bool", int: "Long"}


class Attribute(NamedTuple):
    """An attribute of an entity or a context: its type in Cedar, and True if it can be missing."""

    type: str
    is_optional: bool


@cache
def list_attributes(model: type[Value]) -> dict[str, Attribute]:
    """Return the attributes of an entity or a context by name."""
    hints = get_type_hints(model, include_extras=True)
    found = {}
    for name in model.model_fields:
        if not (name == "id" and issubclass(model, Entity)):
            is_optional = type(None) in get_args(hints[name])
            hint = get_args(hints[name])[0] if is_optional else hints[name]
            found[name] = Attribute(_name_type(hint), is_optional)
    return found


def _name_type(hint: Any) -> str:
    """Return the Cedar type of a type hint."""
    if hint == Time:
        return "datetime"
    if get_origin(hint) is Annotated:
        return _name_type(get_args(hint)[0])
    if get_origin(hint) is tuple:
        return "Set<String>"
    if isinstance(hint, type) and issubclass(hint, Entity):
        return name_entity(hint)
    return _SCALARS.get(hint, "String")


def name_entity(model: type[Entity]) -> str:
    """Return the type of an entity in Cedar."""
    return model.__name__.removesuffix("Entity")


@cache
def context_type(action: str) -> type[OrderContext]:
    facts = ACTIONS[action].facts
    assert facts is not None
    return facts.make_context_type(ACTIONS[action].order)


@dataclass(frozen=True, slots=True)
class CedarRequest:
    """A request to Cedar: may the principal carry out this action on this resource?"""

    principal: PrincipalEntity
    action: str
    resource: Entity
    context: OrderContext


def list_requests(signer: Principal, order: Order, state: State, now: Time) -> tuple[CedarRequest, ...]:
    """Return the Cedar requests for an order.

    An order that enrols several principals gives one request for each, so that policies about `enrol` apply to it.

    Raises: NotFound if the state lacks the thing that the order is about.
    """
    orders = order.each() if isinstance(order, EnrolSeveral) else (order,)
    return tuple(make_request(signer, single_order, state, now) for single_order in orders)


def make_request(signer: Principal, order: Order, state: State, now: Time) -> CedarRequest:
    """Return the Cedar request for an order that gives one.

    Raises: NotFound if the state lacks the thing that the order is about.
    """
    facts = ACTIONS[order.action].facts
    assert facts is not None
    context = context_type(order.action)(
        now=now, single_administrator=state.site.single_administrator, **facts.read_context(state, order)
    )
    return CedarRequest(describe_principal(signer), order.action, facts.find_resource(state, order, signer), context)


@cache
def sample_requests() -> Mapping[str, CedarRequest]:
    """Return the request of each action's example order, by the name of the action."""
    state = make_example_state()
    requests = {}
    for name, action in ACTIONS.items():
        signer = state.principals.get(action.example.signer)
        if action.facts is not None and signer is not None:
            requests[name] = make_request(signer, action.example, state, NOW)
    return requests


_FILLERS = {"Bool": True, "Long": 1, "String": "rita", "datetime": TOMORROW}


@cache
def list_probes() -> tuple[CedarRequest, ...]:
    """Return the requests that a policy set's schema must accept.

    They are the samples, and those with optional attributes again with none and with all of these.
    """
    probes = []
    for request in sample_requests().values():
        attributes = list_attributes(type(request.context)).items()
        optional = {name: _FILLERS[attribute.type] for name, attribute in attributes if attribute.is_optional}
        contexts = [request.context.model_copy(update=values) for values in (dict.fromkeys(optional), optional)]
        probes += [request, *(replace(request, context=context) for context in contexts if optional)]
    return tuple(probes)
