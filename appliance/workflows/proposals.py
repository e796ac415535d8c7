"""An order that a person is asked to sign in a browser: made here from what they typed and from what the state says.

The client's commands make the same orders from proved entries; here the service looks up what they would prove, and the
person sees every value before they sign. What a recipe leaves to `auto` is resolved here (docs/adr/0003).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.domain.core.credentials import PasskeyPossession, Possession, parse_credential
from appliance.domain.core.names import split_version, versioned
from appliance.domain.core.order import Order
from appliance.domain.core.records.data import BoundSet, LocalSet
from appliance.domain.core.state import State
from appliance.domain.core.table import Table
from appliance.domain.data.bases import RevokeBase
from appliance.domain.data.datasets import RevokeDataset
from appliance.domain.data.imports import ImportRows
from appliance.domain.data.validation_sets import RevokeValidationSet
from appliance.domain.evaluation.gates import GateSet, parse_gates
from appliance.domain.governance.keys import NewKey
from appliance.domain.governance.passkeys import PASSKEY_MEMBERS, EnrollPasskey
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import Facts, resolve_recipe
from appliance.domain.releases.adapters import OnAdapter
from appliance.domain.releases.requests_for_release import RequestRelease, WithdrawRequest
from appliance.domain.releases.reviews import Review
from appliance.domain.releases.tiers import current_request, tier_for
from appliance.domain.rulebook.proposals import Proposal, make_proposal
from appliance.domain.rulebook.registry import VERBS
from appliance.domain.runs.training import Train
from appliance.errors import BadInput, NotFound
from appliance.formats.core.commitment import disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import parse_envelope
from appliance.workflows.core.context import Context
from appliance.workflows.queries.work import recipe_facts
from appliance.workflows.releases.review import find_adapter


@dataclass
class Draft:
    """What a person gave for an order: values by member, texts that it commits to, and the document that it binds."""

    values: dict[str, Any]
    texts: dict[str, str] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    resolved: frozenset[str] = frozenset()


def propose(context: Context, signer: str, verb: str, draft: Draft) -> Proposal:
    """NotFound for a thing that the state does not hold; BadInput names a value that cannot be."""
    model, state = VERBS[verb].order, context.ledger.state
    for kind, complete in _COMPLETIONS.items():
        if issubclass(model, kind):
            complete(context, model, draft)
    return make_proposal(
        model,
        draft.values,
        origin=state.site.origin,
        signer=signer,
        lifetime_s=state.parameters.order_lifetime_s,
        now=context.now(state),
        nonce=secrets.token_hex(16),
        disclosures={name: disclose(text, secrets.token_bytes(32)) for name, text in draft.texts.items()},
        documents=draft.documents,
        resolved=draft.resolved,
    )


def _on_adapter(context: Context, model: type[Order], draft: Draft) -> None:
    """`adapter` was given as NAME@VERSION."""
    row = find_adapter(context.ledger.state, str(draft.values.get("adapter")))
    draft.values |= {"adapter": row.name, "version": row.version, "manifest": row.manifest}
    if model in (Review, WithdrawRequest):
        request = current_request(context.ledger.state, row, str(draft.values.get("unit")))
        if request is None and model is WithdrawRequest:
            raise NotFound(f"request: expected one that stands for {row.name}@{row.version}, got none")
        draft.values["request"] = None if request is None else request.order
    if model is Review:
        draft.values.setdefault("opened", ())
    if model is RequestRelease:
        draft.values |= {"verdict": row.verdict, "tier": _tier(context.ledger.state, draft.values)}


def _tier(state: State, values: Mapping[str, Any]) -> str:
    rules = state.parameters
    tier = tier_for(rules, str(values.get("exposure")), str(values.get("purpose")))
    if tier is None:
        expected = f"one of {', '.join(rules.exposures)}, and one of {', '.join(rules.purposes)}"
        got = f"{values.get('exposure')} and {values.get('purpose')}"
        raise BadInput(f"exposure and purpose: expected {expected}, got {got}")
    return tier.name


def _base(context: Context, model: type[Order], draft: Draft) -> None:
    row = context.ledger.state.bases.get(str(draft.values.get("base")))
    if row is None:
        raise NotFound(f"base: expected an imported one, got {draft.values.get('base')!r:.80}")
    draft.values["digest"] = row.digest


def _dataset(context: Context, model: type[Order], draft: Draft) -> None:
    _rows(context.ledger.state.datasets, "dataset", draft)


def _validation_set(context: Context, model: type[Order], draft: Draft) -> None:
    _rows(context.ledger.state.validation_sets, "validation_set", draft)


def _rows(table: Table[Any], member: str, draft: Draft) -> None:
    """The member was given as NAME@VERSION."""
    name = str(draft.values.get(member))
    row = table.get(name)
    if row is None:
        raise NotFound(f"{table.kind}: expected an imported one as NAME@VERSION, got {name!r:.80}")
    short, version = split_version(name)
    draft.values |= {member: short, "version": version, "digest": row.digest}


def _key(context: Context, model: type[Order], draft: Draft) -> None:
    """The key is taken from its own proof alone; so is all that is said of a passkey."""
    data = draft.documents.get("possession", b"")
    envelope = parse_envelope(data)
    kind = PasskeyPossession if model is EnrollPasskey else Possession
    proof = parse_credential(kind, envelope.payload)
    draft.values |= {
        "principal": proof.signer,
        "key": proof.key,
        "keyid": proof.keyid,
        "possession": envelope.pae_digest,
    }
    if isinstance(proof, PasskeyPossession):
        draft.values |= {name: getattr(proof, name) for name in PASSKEY_MEMBERS}


def _policy(context: Context, model: type[Order], draft: Draft) -> None:
    draft.values["policy"] = digest_bytes(draft.documents.get("policy", b""))


def _training(context: Context, model: type[Order], draft: Draft) -> None:
    """`recipe` was given as a recipe's own keys; every `auto` of it is decided here, and said so."""
    recipe = parse_recipe(draft.values.pop("recipe"))
    found = recipe_facts(context, recipe.base, recipe.dataset)
    gates = draft.documents.get("gates")
    draft.values |= {
        "recipe": resolve_recipe(recipe, Facts.model_validate(found["facts"])),
        "base_digest": found["base_digest"],
        "dataset_digest": found["dataset_digest"],
        "gates": None if gates is None else digest_bytes(gates),
        "on": draft.values.get("on") or found["runs_on"],
    }
    if gates is not None:
        draft.values |= _sets(context, found, parse_gates(gates))
    draft.resolved = frozenset(name for name, value in recipe.model_dump().items() if value == "auto")


def _sets(context: Context, found: Mapping[str, Any], gates: GateSet) -> dict[str, Any]:
    """The newest version of each validation set that the gates name, and the sets of no log."""
    newest = {str(one["name"]): versioned(str(one["name"]), int(one["version"])) for one in found["validation_sets"]}
    local = {str(one["set"]): str(one["digest"]) for one in found["local_sets"]}
    for name, known in [(one, newest) for one in gates.validation_sets] + [(one, local) for one in gates.local_sets]:
        if name not in known:
            raise NotFound(f"gates, set {name}: expected one of {', '.join(known) or 'none'}, got none of that name")
    rows = [context.ledger.state.validation_sets.get(newest[name]) for name in gates.validation_sets]
    bound = zip(gates.validation_sets, rows, strict=True)
    return {
        "sets": tuple(BoundSet(validation_set=newest[name], digest=row.digest) for name, row in bound if row),
        "local_sets": tuple(LocalSet(set=name, digest=local[name]) for name in gates.local_sets),
    }


def _imported(context: Context, model: type[Order], draft: Draft) -> None:
    row = context.ledger.state.bases.get(str(draft.values.get("base")))
    if row is None:
        known = ", ".join(name for name, _ in context.ledger.state.bases.items()) or "none"
        raise NotFound(f"base: expected one of {known}, got {draft.values.get('base')!r:.80}")
    draft.values["base_digest"] = row.digest


_COMPLETIONS: dict[type[Order], Callable[[Context, type[Order], Draft], None]] = {
    OnAdapter: _on_adapter,
    RevokeBase: _base,
    RevokeDataset: _dataset,
    RevokeValidationSet: _validation_set,
    NewKey: _key,
    AdoptPolicy: _policy,
    Train: _training,
    ImportRows: _imported,
}
