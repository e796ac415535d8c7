"""The facts about an order that a site's Cedar policies decide on: the thing that the order is about, and a context.

Each action declares its facts beside its rules. `access` evaluates policies over them and derives the Cedar schema from
the types that are declared here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_type_hints

from pydantic import Field, create_model

from appliance.domain.core.names import Time, Value
from appliance.domain.core.order import Order
from appliance.domain.core.records.people import Principal
from appliance.domain.core.state import State
from appliance.errors import NotFound


class Entity(Value):
    """A thing that policies can name. Its type in Cedar is the name of its class without `Entity`.

    The fields other than `id` are its attributes: texts, integers, booleans, times, tuples of texts and other entities.
    """

    table: ClassVar[str] = ""
    """Name of the state's table whose rows have the attributes; empty if the order has them."""

    id: str

    @classmethod
    def find(cls, state: State, key: str) -> Self:
        """Return the entity of a row of its table.

        Raises: NotFound if there is none.
        """
        return cls.make(state, find_row(state, cls.table, key), key)

    @classmethod
    def make(cls, state: State, source: object, id: str, **attributes: object) -> Self:
        """Return an entity with these attributes. The others are the source's fields of the same name.

        An attribute that is an entity itself is given by its key.

        Raises: NotFound if the state lacks such an entity.
        """
        values: dict[str, Any] = {"id": id}
        for name in cls.model_fields.keys() - {"id"}:
            kind = cls.model_fields[name].annotation
            value: Any = attributes[name] if name in attributes else getattr(source, name)
            values[name] = kind.find(state, value) if isinstance(kind, type) and issubclass(kind, Entity) else value
        return cls(**values)


def find_row(state: State, table: str, key: str) -> Any:
    """Return a row of a table.

    Raises: NotFound if there is none.
    """
    rows = getattr(state, table)
    row = rows.get(key)
    if row is None:
        raise NotFound(f"{rows.kind}: expected one that is recorded, got {key}")
    return row


class PrincipalEntity(Entity):
    """A person or a unit. `in Role::"reviewer"` is any reviewer, `in Role::"reviewer:privacy"` one of privacy."""

    table = "principals"
    name: str
    roles: tuple[str, ...]


def describe_principal(person: Principal) -> PrincipalEntity:
    """Return the entity of a person or a unit."""
    return PrincipalEntity(id=person.name, name=person.name, roles=person.roles)


class OrderContext(Value):
    """The attributes that the context of every order has."""

    now: Time
    single_administrator: bool


@dataclass(frozen=True)
class ActionFacts:
    """The declaration of an action's facts."""

    resource: type[Entity]
    """The type of the thing that the order is about."""
    key: str | Callable[[State, Any, Principal], Entity]
    """The order's field with the thing's key, or a function of (state, order, signer) that returns a new thing."""
    context: tuple[str, ...] | Callable[[State, Any], Value] = ()
    """The order's fields that the context has, or a function of (state, order) that returns them as a value."""

    def find_resource(self, state: State, order: Order, signer: Principal) -> Entity:
        """Return the thing that the order is about.

        Raises: NotFound if the state lacks it.
        """
        if callable(self.key):
            return self.key(state, order, signer)
        key = getattr(order, self.key)
        return self.resource.find(state, key) if self.resource.table else self.resource.make(state, order, key)

    def read_context(self, state: State, order: Order) -> dict[str, Any]:
        """Return the attributes that this action adds to the context.

        Raises: NotFound if the state lacks what they are about.
        """
        if callable(self.context):
            return dict(self.context(state, order))
        return {name: getattr(order, name) for name in self.context}

    def make_context_type(self, order: type[Order]) -> type[OrderContext]:
        """Return the type of the context: the attributes that every context has, and those of this action."""
        source: type[Value] = get_type_hints(self.context)["return"] if callable(self.context) else order
        hints = get_type_hints(source, include_extras=True)
        fields: dict[str, Any] = {}
        for name in source.model_fields if callable(self.context) else self.context:
            default = None if type(None) in getattr(hints[name], "__args__", ()) else ...
            fields[name] = (hints[name], Field(default, description=source.model_fields[name].description))
        return create_model(f"{order.__name__}Context", __base__=OrderContext, **fields)
