"""What adapters are put on where the library's modules are at work: linear layers by their roles, and experts.

transformers keeps all experts of a layer in two parameters, [experts, ...]; peft adapts a parameter as a whole
(`target_parameters`), each expert with an A and a B of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.domain.recipe.recipe import ON_EXPERTS
from appliance.errors import BadInput
from appliance.ml.layers.architecture import TABLE
from appliance.ml.model.library import EXPERT_PARAMETERS, list_experts, list_roles


def name_modules(model: Any, roles: Sequence[str]) -> list[str]:
    """The ends of names of linear layers that play these roles; BadInput for a role that nothing plays."""
    row, found, played = TABLE.get(type(model).__name__), list[str](), set[str]()
    linears = [name for name, module in model.named_modules() if hasattr(module, "in_features")]
    parameters = {role for name in list_experts(model) for role in EXPERT_PARAMETERS[name.rsplit(".", 1)[-1]]}
    for role in roles:
        names = [role] if row is None else [row.modules[role]]
        mine = [name for name in names if any(f".{linear}".endswith(f".{name}") for linear in linears)]
        found += mine
        played |= {role} if mine or role in parameters else set()
    if missing := [role for role in roles if role not in played]:
        raise BadInput(
            f"recipe, target_modules: expected some of {', '.join(list_roles(model))}, which this base has, "
            f"got {', '.join(missing)}"
        )
    return list(dict.fromkeys(found))


def name_parameters(model: Any, recipe: Mapping[str, Any]) -> list[str]:
    """The ends of names of the experts' parameters that the recipe's roles name; none where a base has no experts.

    BadInput for a method or a dropout that peft has not for parameters, and for half of what is one parameter.
    """
    chosen = [name for name in list_experts(model) if set(_roles(name)) & set(recipe["target_modules"])]
    for name in chosen:
        if not set(_roles(name)) <= set(recipe["target_modules"]):
            raise BadInput(
                f"recipe, target_modules: expected {', '.join(_roles(name))} together, which are one parameter of this "
                f"base's experts, got {', '.join(recipe['target_modules'])}"
            )
    if chosen and recipe["method"] not in ON_EXPERTS:
        raise BadInput(
            f"recipe, method: expected one of {', '.join(ON_EXPERTS)} for experts, got {recipe['method']}; "
            "name the attention's layers alone in target_modules"
        )
    if chosen and float(recipe["dropout"]):
        raise BadInput(f"recipe, dropout: expected 0.0 for experts, got {recipe['dropout']}")
    return chosen


def _roles(name: str) -> tuple[str, ...]:
    return EXPERT_PARAMETERS[name.rsplit(".", 1)[-1]]
