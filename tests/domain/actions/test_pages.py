"""docs/formats/ledger.md agrees with the code, so that a second verifier can be written from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import AfterValidator, BaseModel

from appliance.domain.actions.registry import ACTIONS, EVENTS
from appliance.domain.core.decisions import Conditions, Delegator, Finding, ReleaseRequest, ReviewRecord, Suspension
from appliance.domain.core.entry import Entry, Event
from appliance.domain.core.policy import LAYERS, Parameters, PolicySet, Tier
from appliance.domain.core.records.data import Base, BoundSet, Dataset, ValidationSet
from appliance.domain.core.records.people import Key, Passkey, Principal
from appliance.domain.core.records.runs import Adapter, Authorisation
from appliance.domain.core.records.serving import Activation, Release
from appliance.domain.core.records.site import AdapterKey, LogKey, Site, WitnessRecord
from appliance.domain.operations import ArtifactsChecked
from appliance.domain.recipe.methods import METHODS, is_servable
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.domain.releases.exports import ExportRows
from appliance.formats.log.export import MEMBERS
from scripts.references.formats import SECTIONS, fill

PAGES = Path(__file__).resolve().parents[3] / "docs" / "formats"
PAGE = (PAGES / "ledger.md").read_text()
ORDER_PAGE = (PAGES / "order.md").read_text()
REFERENCE_PAGE = (PAGES.parent / "reference" / "actions.md").read_text()
ROW = re.compile(r"^\| `([a-z.-]+)` \|(.*)\|$", re.MULTILINE)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_tables_of_a_page_are_what_the_code_says(name: str) -> None:
    text = (PAGES / name).read_text(encoding="utf-8")
    assert text == fill(name, text), "expected what scripts/reference writes"


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_has_a_row_in_each_page(name: str) -> None:
    rows = re.compile(rf"^\| `{name}` \|", re.MULTILINE)
    assert rows.search(ORDER_PAGE) and rows.search(PAGE) and rows.search(REFERENCE_PAGE)


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def section(title: str) -> str:
    _, _, rest = PAGE.partition(f"{title}\n")
    return re.split(r"^#", rest, flags=re.MULTILINE)[0]


SUBJECTS = section("## Types of entries").partition("**Subjects**")[2]
BODY_MEMBERS = names(SUBJECTS.partition("in the order ")[2].partition(";")[0])
OF_A_TYPE = [(kind, member) for member, kind in re.findall(r"`([a-z]+)` of\s`([a-z.-]+)`", SUBJECTS)]


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


CLEAR = {
    (where, field)
    for where, cell in re.findall(r"^\| ([a-z ]+) \| (`.*?) \| .* \|$", section("### Fields in clear"), re.MULTILINE)
    for field in names(cell)
}


def texts_in(annotation: Any, field: str, metadata: Sequence[Any] = ()) -> Iterator[str]:
    """Yield the field of each text in this type that can be free text: it has no pattern and no list of words."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        yield from texts_in(inner, field, (*metadata, *more))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, info in annotation.model_fields.items():
            yield from texts_in(info.annotation, name, info.metadata)
    elif annotation is Any or (annotation is str and not any(map(_gives_form, metadata))):
        yield field
    elif get_origin(annotation) is not Literal:
        for one in get_args(annotation):
            yield from texts_in(one, field)


def _gives_form(constraint: Any) -> bool:
    inner = getattr(constraint, "metadata", ())
    return isinstance(constraint, AfterValidator) or any(getattr(one, "pattern", None) for one in (constraint, *inner))


def test_every_field_that_can_hold_free_text_is_listed() -> None:
    models = [
        *(("entries", model) for model in EVENTS.values()),
        *(("orders", row.order) for row in ACTIONS.values()),
        ("policy sets", PolicySet),
    ]
    assert {(where, field) for where, model in models for field in texts_in(model, "")} == CLEAR


def test_of_what_has_changed_as_many_are_subjects_as_the_page_says() -> None:
    changed = tuple(f"base:x{number}" for number in range(1000))
    most = int(re.findall(r"the first (\d+)", SUBJECTS)[0])
    body = ArtifactsChecked(folders=0, size=0, changed=changed, unread=())
    assert body.about() == changed[:most]


def test_the_rows_that_an_export_holds_have_the_members_of_the_state() -> None:
    page = (PAGES / "exported-adapter.md").read_text()
    rows = {row: names(cell) for row, cell in re.findall(r"^\| ([a-z ]+) \| (`.*) \|$", page, re.MULTILINE)}
    models = {
        "site": Site, "log key": LogKey, "adapter key": AdapterKey,
        "principal": Principal, "key": Key, "passkey": Passkey,
        "base": Base, "dataset": Dataset, "validation set": ValidationSet, "bound set": BoundSet,
        "adapter": Adapter, "review": ReviewRecord,
        "delegated": Delegator, "request": ReleaseRequest, "conditions": Conditions,
        "authorisation": Authorisation, "finding": Finding, "suspension": Suspension,
        "release": Release, "activation": Activation, "witness": WitnessRecord,
    }  # fmt: skip
    assert rows == {row: list(model.__annotations__) for row, model in models.items()}
    found = re.findall(r"^\| (`[a-z_`, ]+) \| ", page, re.MULTILINE)
    assert [name for cell in found for name in names(cell)] == list(ExportRows.model_fields)


def test_every_action_has_its_rule() -> None:
    actions = [
        action for line in section("### Who may").splitlines() if line.startswith("| `") for action in names(line)[:1]
    ]
    assert sorted(actions) == sorted(ACTIONS)


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
    """Return a parameter's default as the page shows it, and a tier by its name."""
    if isinstance(value, tuple):
        return ", ".join(one.name if isinstance(one, Tier) else one for one in value) or "none"
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value:,}"


def test_the_default_tiers_are_those_of_the_page() -> None:
    _, _, table = section("## Types of entries").partition("| name | from score |")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:5]]
    assert rows == [
        [
            *(tier.name, str(tier.from_score), str(tier.reviewers), str(tier.distinct_functions)),
            *(", ".join(tier.required_functions) or "none", f"{tier.review_s // 86_400} days"),
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
        if name.endswith("_s") or name in ("reviewers", "distinct_functions"):
            assert found[name].startswith(f"{field['minimum']:,} to {field['maximum']:,}"), name
    assert names(found["accepted_missing_layers"]) == list(LAYERS)


def test_the_exports_members_are_in_order() -> None:
    assert tuple(name for name, _ in ROW.findall(section("## Export"))) == MEMBERS
