"""What a policy set's own schema declares of a request. The rest is left out before Cedar sees it.

A set that an earlier build adopted does not declare what came later. No policy of the set can use that, since policies
are validated against their schema. Cedar cannot list what a schema declares. So each attribute is tested with a policy
that is valid only where the attribute is not declared. An attribute for which this test gives no answer is sent, and
Cedar decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cedarpy

from appliance.access.request import Request, Thing


class Declared:
    def __init__(self, schema: cedarpy.Schema) -> None:
        self._schema = schema
        self._known: dict[str, bool] = {}

    def cut(self, request: Request) -> Request:
        """The request without the attributes of its context and of its entities that the schema does not declare."""
        scope = f'principal, action == Action::"{request.verb}", resource'
        return Request(
            self._cut_thing(request.principal, scope),
            request.verb,
            self._cut_thing(request.resource, scope),
            self._cut(request.context, scope, "context"),
        )

    def _cut_thing(self, thing: Thing, scope: str) -> Thing:
        return replace(thing, attributes=self._cut(thing.attributes, scope, f'{thing.type}::""'))

    def _cut(self, attributes: Mapping[str, Any], scope: str, owner: str) -> dict[str, Any]:
        return {
            name: self._cut_thing(value, scope) if isinstance(value, Thing) else value
            for name, value in attributes.items()
            if not self._lacks(scope, owner, name)
        }

    def _lacks(self, scope: str, owner: str, name: str) -> bool:
        """Whether, by the schema, the owner never has the attribute: only then Cedar does not look at `!0`, which
        has no type."""
        question = f'permit ({scope}) when {{ if {owner} has "{name}" then !0 else true }};'
        known = self._known.get(question)
        if known is None:
            known = self._known[question] = bool(cedarpy.validate_policies(question, self._schema).validation_passed)
        return known
