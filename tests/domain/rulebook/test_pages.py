"""docs/formats/ledger.md says what the code does: a stranger writes a second verifier from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.decisions import Conditions, Delegated, Finding, ReleaseRequest, ReviewRecord
from appliance.domain.core.entry import Entry
from appliance.domain.core.event import Event
from appliance.domain.core.order import Order
from appliance.domain.core.policy import LAYERS, Parameters, PolicySet, Tier
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.data import Base, BoundSet, Dataset, ValidationSet
from appliance.domain.core.records.people import Key, Passkey, Principal
from appliance.domain.core.records.runs import Authorisation
from appliance.domain.core.records.serving import Activation, Release
from appliance.domain.core.records.site import LogKey, Site, Witness
from appliance.domain.governance.people import Enrolment
from appliance.domain.operations.integrity import ArtifactsChecked
from appliance.domain.recipe.methods import METHODS, is_servable
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.domain.releases.exports import Standing
from appliance.domain.rulebook.registry import EVENTS, VERBS
from appliance.formats.log.export import MEMBERS

PAGES = Path(__file__).resolve().parents[3] / "docs" / "formats"
PAGE = (PAGES / "ledger.md").read_text()
ORDER_PAGE = (PAGES / "order.md").read_text()
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
    assert sorted(EVENT_ROWS) == sorted(EVENTS)


@pytest.mark.parametrize("model", EVENTS.values(), ids=lambda model: model.type)
def test_a_types_row_is_the_types(model: type[Event]) -> None:
    _, outcomes, body, documents, _ = EVENT_ROWS[model.type]
    assert outcomes.split(", ") == list(model.outcomes)
    assert sorted(names(body)) == sorted(model.model_fields)
    required = [name for name in names(documents) if f"[`{name}`]" not in documents]
    optional = [name for name in names(documents) if f"[`{name}`]" in documents]
    assert (required, set(optional)) == (list(model.documents), set(model.optional))


SUBJECTS = section("## Types of entries").partition("**Subjects**")[2]
BODY_MEMBERS = names(SUBJECTS.partition("in the order ")[2].partition(";")[0])
ALSO = {
    verb: re.findall(r"`([a-z]+):", kinds)
    for verbs, kinds in re.findall(r"((?:`[a-z-]+`(?:, | and )?)+) also about (`[^;.]+`)", SUBJECTS)
    for verb in names(verbs)
}
OF_A_TYPE = [(kind, member) for member, kind in re.findall(r"`([a-z]+)` of\s`([a-z.-]+)`", SUBJECTS)]
ORDER_ROWS = {
    verb: (re.findall(r"`([A-Za-z-]+)", subjects), set(names(members)))
    for verbs, subjects, members in re.findall(r"^\| (`.*?) \| (.*?) \| (.*) \|$", ORDER_PAGE, re.MULTILINE)
    for verb in names(verbs)
}


def kinds(subjects: tuple[str, ...]) -> list[str]:
    return [subject.partition(":")[0] for subject in subjects]


@pytest.mark.parametrize("model", EVENTS.values(), ids=lambda model: model.type)
def test_a_type_is_filed_under_what_the_page_says(model: type[Event]) -> None:
    values: dict[str, Any] = dict.fromkeys(model.model_fields, "x")
    body = model.model_construct(**values | {"changed": ("changed:x",), "unread": ("unread:x",)})
    special = [member for kind, member in OF_A_TYPE if kind == model.type]
    usual = [member for member in BODY_MEMBERS if member in model.model_fields and member not in special]
    named = [{"principals": "principal"}.get(member, member) for member in special if member not in BODY_MEMBERS]
    assert kinds(body.about()) == [member.replace("_", "-") for member in usual + named]


def test_of_what_has_changed_as_many_are_subjects_as_the_page_says() -> None:
    changed = tuple(f"base:x{number}" for number in range(1000))
    most = int(re.findall(r"the first (\d+)", SUBJECTS)[0])
    body = ArtifactsChecked(folders=0, size=0, changed=changed, unread=())
    assert body.about() == changed[:most]


@pytest.mark.parametrize("model", [row.order for row in VERBS.values()], ids=lambda model: model.verb)
def test_an_order_is_about_what_the_page_says(model: type[Order]) -> None:
    values: dict[str, Any] = {name: 1 if field.annotation is int else "x" for name, field in model.model_fields.items()}
    recipe: dict[str, Any] = dict.fromkeys(ResolvedRecipe.model_fields, "x")
    values |= {"recipe": ResolvedRecipe.model_construct(**recipe), "subject": "SUBJECT"}
    values["sets"] = ()
    values["people"] = (Enrolment.model_construct(principal="x", keyid="x"),)
    order = model.model_construct(**values)
    own, members = ORDER_ROWS[model.verb]
    assert kinds(order.about()) == own + ALSO.get(model.verb, [])
    assert members == model.model_fields.keys() - Order.model_fields.keys()


def test_the_members_of_each_person_that_an_order_of_several_enrols_are_named() -> None:
    cell = ORDER_PAGE.partition("\n- `people` is")[2].partition("\n- ")[0]
    assert set(names(cell)) == set(Enrolment.model_fields)


def test_the_rows_that_an_export_holds_have_the_members_of_the_state() -> None:
    page = (PAGES / "exported-adapter.md").read_text()
    rows = {row: names(cell) for row, cell in re.findall(r"^\| ([a-z ]+) \| (`.*) \|$", page, re.MULTILINE)}
    models = {
        "site": Site, "log key": LogKey, "principal": Principal, "key": Key, "passkey": Passkey,
        "base": Base, "dataset": Dataset, "validation set": ValidationSet, "bound set": BoundSet,
        "adapter": Adapter, "review": ReviewRecord,
        "delegated": Delegated, "request": ReleaseRequest, "conditions": Conditions,
            "authorisation": Authorisation, "finding": Finding,
        "release": Release, "activation": Activation, "witness": Witness,
    }  # fmt: skip
    assert rows == {row: list(model.__annotations__) for row, model in models.items()}
    found = re.findall(r"^\| (`[a-z_`, ]+) \| ", page, re.MULTILINE)
    assert [name for cell in found for name in names(cell)] == list(Standing.model_fields)


def test_every_verb_has_its_rule() -> None:
    verbs = [verb for line in section("### Who may").splitlines() if line.startswith("| `") for verb in names(line)[:1]]
    assert sorted(verbs) == sorted(VERBS)


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


def shown(value: Any) -> str:
    """A parameter's default as the page says it; a tier by its name."""
    if isinstance(value, tuple):
        return ", ".join(one.name if isinstance(one, Tier) else one for one in value) or "none"
    if isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else f"{value:,}"


def test_the_default_tiers_are_those_of_the_page() -> None:
    _, _, table = section("## Types of entries").partition("| name | from score |")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:5]]
    assert rows == [
        [
            *(tier.name, str(tier.from_score), str(tier.reviewers), str(tier.distinct_fields)),
            *(", ".join(tier.required_fields) or "none", f"{tier.review_s // 86_400} days"),
            f"{tier.reattest_s // 86_400} days",
        ]
        for tier in Parameters().tiers
    ]
    assert all(f"`{name}`" in section("## Types of entries") for name in Tier.model_fields)


def test_the_parameters_of_a_policy_set_have_their_bounds() -> None:
    _, _, table = section("## Types of entries").partition("| parameter | value | default |")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:3] == "| `"]
    found = {name: value for cell, value, _ in rows for name in names(cell)}
    # One default for all names of a cell, or one for each.
    defaults = {
        name: one
        for cell, _, default in rows
        for name, one in zip(names(cell), (default.split("; ") * len(names(cell))), strict=False)
    }
    assert defaults == {name: shown(value) for name, value in Parameters()}
    assert found.keys() == Parameters.model_fields.keys()
    for name, field in Parameters.model_json_schema()["properties"].items():
        if name.endswith("_s") or name in ("reviewers", "distinct_fields"):
            assert found[name].startswith(f"{field['minimum']:,} to {field['maximum']:,}"), name
    assert names(found["accepted_missing_layers"]) == list(LAYERS)


def test_what_the_members_of_bodies_and_orders_are_is_said_of_each() -> None:
    of_bodies, of_orders = (
        set(names(page.partition("| value | members |")[2].partition("\n\n")[0])) for page in (PAGE, ORDER_PAGE)
    )
    assert {name for model in EVENTS.values() for name in model.model_fields} <= of_bodies
    assert {
        name
        for model in [row.order for row in VERBS.values()]
        for name in model.model_fields.keys() - Order.model_fields
    } <= of_orders


def test_the_exports_members_are_in_order() -> None:
    assert tuple(name for name, _ in ROW.findall(section("## Export"))) == MEMBERS
