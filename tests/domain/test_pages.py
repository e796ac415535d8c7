"""docs/formats/ledger.md says what the code does: a stranger writes a second verifier from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.domain.entry import Entry
from appliance.domain.events import EVENTS, Event
from appliance.domain.methods import METHODS, is_servable
from appliance.domain.orders import ORDERS
from appliance.domain.policy import Parameters, PolicySet
from appliance.domain.recipe import ResolvedRecipe
from appliance.formats.export import MEMBERS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats" / "ledger.md").read_text()
ROW = re.compile(r"^\| `([a-z.-]+)` \|(.*)\|$", re.MULTILINE)


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def section(title: str) -> str:
    _, _, rest = PAGE.partition(f"{title}\n")
    return re.split(r"^#", rest, flags=re.MULTILINE)[0]


EVENT_ROWS = {
    name: [cell.strip() for cell in cells.split("|")] for name, cells in ROW.findall(section("## Types of entries"))
}


def test_every_type_has_a_row_and_every_row_a_type() -> None:
    assert list(EVENT_ROWS) == list(EVENTS)


@pytest.mark.parametrize("model", EVENTS.values(), ids=lambda model: model.type)
def test_a_types_row_is_the_types(model: type[Event]) -> None:
    _, outcomes, body, documents, _ = EVENT_ROWS[model.type]
    assert outcomes.split(", ") == list(model.outcomes)
    assert names(body) == list(model.model_fields)
    required = [name for name in names(documents) if f"[`{name}`]" not in documents]
    optional = [name for name in names(documents) if f"[`{name}`]" in documents]
    assert (required, set(optional)) == (list(model.documents), set(model.optional))


def test_every_verb_has_its_rule() -> None:
    verbs = [verb for line in section("### Who may").splitlines() if line.startswith("| `") for verb in names(line)[:1]]
    assert verbs == list(ORDERS)


def test_the_members_of_a_recipe_stand_in_their_order_and_the_methods_are_the_codes() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section("### Recipes").splitlines()
        if line.startswith("| `")
    ]
    found = {name: (names(row[1]), row[2]) for row in rows if len(row) == 3 for name in names(row[0])}
    assert [name for row in rows if len(row) == 2 for name in names(row[0])] == list(ResolvedRecipe.model_fields)
    assert found.keys() == METHODS.keys()
    for name, method in METHODS.items():
        kinds, released = found[name]
        assert sorted(kinds) == sorted(method.quantisations)
        servable = [kind for kind in kinds if is_servable(name, kind)]
        on = "yes" if servable == kinds else " and ".join(f"on `{kind}`" for kind in servable) or "no"
        assert released == on


def test_the_members_of_an_entry_and_a_policy_set_are_all_named() -> None:
    assert [name for name, _ in ROW.findall(section("## Entry"))] == list(Entry.model_fields)
    for name in (*Parameters.model_fields, *PolicySet.model_fields):
        assert f"`{name}`" in section("## Types of entries"), name


def test_the_exports_members_are_in_order() -> None:
    assert tuple(name for name, _ in ROW.findall(section("## Export"))) == MEMBERS
