"""A plan, computed here from what the service says of base, dataset and machine: nothing is signed, nothing runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from appliance.client.support.door import Door
from appliance.domain.planning.cards import Machine
from appliance.domain.planning.plan import Plan, make_plan, read_subject
from appliance.domain.recipe.recipe import Facts, Recipe, ResolvedRecipe
from appliance.errors import BadInput, Unavailable
from appliance.formats.core.fields import show

WAIT_S = 20


def plan_run(door: Door, recipe: Recipe, what: str) -> Plan:
    """BadInput names the file, here `what`, and the value that cannot be trained."""
    return plan_from(read_facts(door, recipe), recipe, what)


def read_facts(door: Door, recipe: Recipe) -> dict[str, Any]:
    """What the service says of the recipe's base and dataset, of its machine, and of runs that were judged before."""
    return dict(door.get("/v1/recipes/facts", base=recipe.base, dataset=recipe.dataset))


def plan_from(answer: Mapping[str, Any], recipe: Recipe, what: str) -> Plan:
    try:
        facts, machine = Facts.model_validate(answer["facts"]), read_machine(answer["machine"])
        subject = read_subject(recipe.base, recipe.dataset, answer["base_facts"], answer["dataset_facts"])
        return make_plan(recipe, facts, subject, machine)
    except BadInput as error:
        raise error.within(what) from None


def calibrate(door: Door, recipe: ResolvedRecipe) -> dict[str, Any]:
    """Has the service's machine measured by a few short steps of this recipe; what was found."""
    key = door.post("/v1/calibrations", {"recipe": recipe.model_dump(mode="json")})["key"]
    while not (state := door.get(f"/v1/calibrations/{key}", wait_s=WAIT_S))["ended"]:
        continue
    if state["error"] is not None:
        raise Unavailable(f"calibration: {state['error']['message']}", code=str(state["error"]["code"]))
    return dict(state["result"])


def read_machine(value: object) -> Machine:
    try:
        return Machine.model_validate_json(json.dumps(value))
    except ValidationError:
        raise Unavailable(f"service, machine: expected a description that a plan can use, got {show(value)}") from None
