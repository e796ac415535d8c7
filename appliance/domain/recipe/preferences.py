"""What a recipe says of preferences: DPO (Rafailov et al., 2023, https://arxiv.org/abs/2305.18290). Pure."""

from __future__ import annotations

from decimal import Decimal as Number

from appliance.domain.recipe.methods import METHODS

BETA = "0.1"
"""How closely DPO holds the adapter to its base, unless the author says otherwise: TRL's default."""
RATE_SHARE = Number("0.05")
"""Of a method's own learning rate: with all of it DPO moves far from the base within a few steps."""


def lower_rate(learning_rate: str) -> str:
    """The learning rate for preferences, where the author leaves it open."""
    return f"{(Number(learning_rate) * RATE_SHARE).normalize():f}"


def misfits_rows(method: str, beta: str, dataset: str, *, preferences: bool) -> list[str]:
    """What of a recipe does not fit rows that are preferences, or that are none."""
    if not preferences:
        if Number(beta):
            return [f"recipe, beta: expected 0.0 or auto, since {dataset} has no preferences, got {beta}"]
        return []
    problems = []
    if not Number(beta):
        problems.append(f"recipe, beta: expected a number above 0, since {dataset} has preferences, got {beta}")
    if not METHODS[method].chooses_modules:
        able = ", ".join(name for name, one in METHODS.items() if one.chooses_modules)
        problems.append(
            f"recipe, method: expected one of {able}, since {dataset} has preferences, whose reference is the base "
            f"with the adapter switched off, got {method}, which changes the base"
        )
    return problems
