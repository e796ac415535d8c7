"""A run: the recipe resolved here, so that the order holds every value, then followed to its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from appliance.client.evaluation.gates import AtHand, choose_local_sets, choose_sets
from appliance.client.imports import proven_digest
from appliance.client.support.door import About, Door
from appliance.client.support.files import read_file
from appliance.client.support.log import Anchor, find_entries, read_entry
from appliance.client.support.orders import propose
from appliance.domain.core.names import versioned
from appliance.domain.core.records.data import BoundSet, LocalSet
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import Facts, Recipe, resolve_recipe
from appliance.domain.recipe.sweep import SWEPT
from appliance.domain.rulebook.proposals import Proposal
from appliance.domain.rulebook.registry import ORDERS
from appliance.domain.runs.authorisation import AuthoriseRun, RefuseRun
from appliance.domain.runs.cancellation import Cancel
from appliance.domain.runs.training import Train
from appliance.errors import BadInput, Tampered
from appliance.formats.signatures.dsse import parse_envelope

WAIT_S = 20
FINAL = ("sealed", "failed", "cancelled", "refused")
_MAX_RECIPE_BYTES = 65_536

Frames = Callable[[str, list[dict[str, Any]]], None]
"""Called with the run's status and the frames that are new."""


@dataclass(frozen=True)
class Ended:
    run: str
    status: str
    adapter: str | None
    detail: str | None


class _Loader(yaml.SafeLoader):
    """Plain YAML without tags, aliases or a key that is there twice: what is read is what was written."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = 1 if parent is None else parent.start_mark.line + 1
            raise BadInput(f"recipe, from line {line} on: expected each value itself, got an alias of one")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            line = node.start_mark.line + 1
            raise BadInput(f"recipe, key {twice[0]!r}: expected it once, got it twice in the mapping at line {line}")
        return super().construct_mapping(node, deep)


def load_written(path: Path) -> dict[str, Any]:
    """What a recipe's YAML file says; BadInput names the file and the line that is off."""
    data = read_file(path, "recipe", _MAX_RECIPE_BYTES)
    try:
        value = yaml.load(data, _Loader)  # noqa: S506 a SafeLoader, stricter
    except RecursionError:
        raise BadInput(
            f"recipe, {path}: expected YAML of a few levels, got hundreds of brackets in each other"
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # the latter for a date that does not exist
        raise BadInput(f"recipe, {path}: expected YAML, got {' '.join(str(error).split())}") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error.message}") from None
    if not isinstance(value, dict):
        raise BadInput(f"recipe, {path}: expected lines of `name: value`, got {type(value).__name__}")
    return value


def load_recipe(path: Path) -> Recipe:
    """The recipe of a YAML file; BadInput names the file and the line or value that is off."""
    value = load_written(path)
    lists = [key for key in SWEPT if isinstance(value.get(key), list)]
    if lists:
        raise BadInput(
            f"{path}: recipe, {', '.join(lists)}: expected one value, got a list; a recipe with lists is a sweep: "
            f"appliance run start {path} --sweep --folder FOLDER"
        )
    try:
        return parse_recipe(value)
    except BadInput as error:
        raise error.within(str(path)) from None


def propose_run(
    door: Door,
    anchor: Anchor,
    signer: str,
    recipe: Recipe,
    what: str,
    gates: AtHand | None = None,
    tier: str | None = None,
    sweep: str | None = None,
    on: str | None = None,
    nodes: int = 1,
) -> Proposal:
    """The order with every value resolved by the rules, over digests that the log itself binds: the gate set's, and
    that of each validation set which it names, in the newest version. `tier`: what the adapter is meant for.
    `sweep`: the name of the sweep that the run belongs to. `on`: where it is trained; None: where the site trains.
    `nodes`: on how many of a cluster's."""
    answer = door.get("/v1/recipes/facts", base=recipe.base, dataset=recipe.dataset)
    base_digest = proven_digest(door, anchor, "base", recipe.base)
    dataset_digest = proven_digest(door, anchor, "dataset", recipe.dataset)
    got = (answer["base_digest"], answer["dataset_digest"])
    if got != (base_digest, dataset_digest):
        raise Tampered(
            f"facts of {recipe.base} and {recipe.dataset}: expected {base_digest}, {dataset_digest}, got {got}"
        )
    try:
        resolved = resolve_recipe(recipe, Facts.model_validate(answer["facts"]))
    except BadInput as error:
        raise error.within(what) from None
    sets = choose_sets(answer, None if gates is None else gates.gates)
    local = choose_local_sets(answer, None if gates is None else gates.gates)
    unwritten = frozenset(name for name, value in recipe.model_dump().items() if value == "auto")
    return propose(
        door.about,
        signer,
        Train,
        {
            "recipe": resolved,
            "base_digest": base_digest,
            "dataset_digest": dataset_digest,
            "gates": None if gates is None else gates.digest,
            "sets": tuple(_bind_set(door, anchor, one) for one in sets),
            "local_sets": tuple(LocalSet(set=one["set"], digest=one["digest"]) for one in local),
            "tier": tier,
            "sweep": sweep,
            "on": on or answer["runs_on"],
            "nodes": nodes,
        },
        documents={} if gates is None else {"gates": gates.data},
        resolved=unwritten,
    )


def _bind_set(door: Door, anchor: Anchor, found: Mapping[str, Any]) -> BoundSet:
    name = versioned(str(found["name"]), int(found["version"]))
    return BoundSet(validation_set=name, digest=proven_digest(door, anchor, "validation-set", name))


def propose_cancel(about: About, signer: str, run: str, reason: str | None = None) -> Proposal:
    return propose(about, signer, Cancel, {"run": run}, texts={} if reason is None else {"reason": reason})


@dataclass(frozen=True)
class WaitingRun:
    """A run that waits for a second person: its order as its signer signed it, the entry that holds it, and what the
    second person would sign."""

    ordered: Proposal
    entry: int
    proposal: Proposal


def propose_authorisation(
    door: Door, anchor: Anchor, signer: str, run: str, *, refusal: str | None = None
) -> WaitingRun:
    """To let the run begin; with `refusal`, to refuse it for that reason. Tampered where the log has no such order."""
    row = door.get(f"/v1/runs/{run}")
    proven = read_entry(door, anchor, int(row["index"]))
    if (proven.entry.type, proven.entry.body.get("run")) != ("run.requested", run):
        raise Tampered(f"run {run}: expected its order in entry {proven.entry.index}, got {proven.entry.type}")
    envelope = parse_envelope(proven.document("order"))
    order, documents = ORDERS.parse(envelope.payload), {}
    if not isinstance(order, Train):
        raise Tampered(f"run {run}: expected an order to train, got {order.verb}")
    if order.gates is not None:
        documents["gates"] = proven.document("gates")
    model = AuthoriseRun if refusal is None else RefuseRun
    values = {"run": run, "order": envelope.pae_digest}
    proposal = propose(door.about, signer, model, values, texts={} if refusal is None else {"reason": refusal})
    return WaitingRun(Proposal(order, proven.disclosures, documents), proven.entry.index, proposal)


def failure_of(door: Door, anchor: Anchor, run: str) -> str | None:
    """Why a run failed, as its entry says, while the text is disclosed; the service forgets its frames when it ends."""
    for entry in find_entries(door, type="run.failed", subject=f"run:{run}"):
        for found in read_entry(door, anchor, entry.index).disclosures:
            if found.commitment == entry.body["message"]:
                return found.text
    return None


def sealed_metrics(door: Door) -> dict[str, Mapping[str, Any]]:
    """What every sealed adapter was measured as, as the entries of its sealing say."""
    entries = find_entries(door, type="adapter.sealed")
    return {str(entry.body["adapter"]): entry.body["metrics"] for entry in entries}


def metrics_of(door: Door, run: str) -> Mapping[str, Any]:
    """What the run's adapter was measured as; nothing until it is sealed."""
    found = [entry.body["metrics"] for entry in find_entries(door, type="adapter.sealed", subject=f"run:{run}")]
    return dict(found[-1]) if found else {}


def follow(door: Door, run: str, told: Frames) -> Ended:
    """Returns when the run has ended, in any way. A session that ends meanwhile is renewed."""
    after = 0
    while True:
        answer = door.get(f"/v1/runs/{run}/progress", after=after, wait_s=WAIT_S)
        told(answer["status"], list(answer["frames"]))
        after = int(answer["next"])
        if answer["status"] in FINAL and not answer["frames"]:
            return Ended(run, answer["status"], answer["adapter"], answer["detail"])
