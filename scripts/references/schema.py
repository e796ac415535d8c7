"""The Cedar schema of this build, written from the facts that actions declare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_type_hints

from appliance.access.requests import context_type, list_attributes, name_entity
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.facts import Entity
from appliance.domain.core.names import Value

_HEADER = """// What a site's policies can see. scripts/reference writes this file from the facts of all actions. The
// appliance sends exactly this and refuses a policy set whose schema does not accept it: adopt this file unchanged.

// "administrator", "operator", "auditor", "unit", "validator", "recovery"; "reviewer:FUNCTION" in "reviewer";
// "release-owner:UNIT" in "release-owner". In every context, `now` is in UTC: the later of the clock and
// the time of the last entry.
entity Role in [Role];
"""


def render_schema() -> str:
    """Return the Cedar schema of this build."""
    actions = {name: action.facts for name, action in ACTIONS.items() if action.facts is not None}
    entities: dict[type[Entity], None] = {}
    for facts in actions.values():
        entities.update(dict.fromkeys(_list_entities(facts.resource)))
    parts = [_HEADER, *(_render_entity(entity) for entity in entities)]
    for name, facts in actions.items():
        resource, context = name_entity(facts.resource), _render_record(context_type(name), "    ")
        parts.append(
            f'action "{name}" appliesTo {{\n  principal: [Principal],\n  resource: [{resource}],\n'
            f"  context: {{\n{context}  }},\n}};\n"
        )
    return "\n".join(parts)


def _list_entities(model: type[Entity]) -> Iterator[type[Entity]]:
    """Yield the entities that are attributes of an entity, and the entity itself last."""
    for hint in get_type_hints(model).values():
        if isinstance(hint, type) and issubclass(hint, Entity):
            yield from _list_entities(hint)
    yield model


def _render_entity(model: type[Entity]) -> str:
    name = name_entity(model)
    parents = " in [Role]" if name == "Principal" else ""
    return f"// {model.__doc__}\nentity {name}{parents} = {{\n{_render_record(model, '  ')}}};\n"


def _render_record(model: type[Value], indent: str) -> str:
    lines = []
    for name, attribute in list_attributes(model).items():
        if description := model.model_fields[name].description:
            lines.append(f"{indent}// {description}")
        lines.append(f"{indent}{name}{'?' if attribute.is_optional else ''}: {attribute.type},")
    return "".join(f"{line}\n" for line in lines)
