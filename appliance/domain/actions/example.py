"""The state of the example site, under which the rules accept the example order of each action.

Policy trials, the check of adopted schemas, tests and the reference pages use it.
"""

from __future__ import annotations

from typing import Any

from appliance.domain.core.decisions import Finding, ReleaseRequest, ReviewRecord, Suspension
from appliance.domain.core.example import NOW, TOMORROW, example_commitment, example_digest, make_example
from appliance.domain.core.policy import LEAST_RETENTION_DAYS, Parameters, Retention
from appliance.domain.core.records.data import Base, Dataset, Import, ValidationSet
from appliance.domain.core.records.people import Identity, Invitation, Key, PendingOrder, Principal
from appliance.domain.core.records.runs import Adapter, Run, TrainingCheckpoint, checkpoint_key
from appliance.domain.core.records.serving import Activation, Release, release_key
from appliance.domain.core.records.site import CommittedText, Hold, Site, WitnessRecord
from appliance.domain.core.state import State

PEOPLE = {
    "anna": "administrator", "ben": "administrator", "ines": "operator", "olga": "operator", "vera": "validator",
    "rita": "reviewer:privacy", "raul": "reviewer:model-risk", "dana": "reviewer:legal-risk", "audrey": "auditor",
    "otto": "release-owner:legal", "legal": "unit", "vault": "recovery",
}  # fmt: skip
"""Role of each person and unit."""
WITNESS = "guard.example/witness+6ee9754a+BI7CsSSGNAZw4AxAlg8CtG+c3dr6F/cnXkMQMQbegytR"
"""Key of the witness that has cosigned the log."""
SECOND_ROLES = {"vera": ("reviewer:safety",)}
"""Further roles of a person."""


def make_example_state() -> State:
    """Return the state of the example site."""
    state = State()
    state.size, state.last_time = 100, NOW
    parameters = Parameters(witnesses=(WITNESS,), retention=(Retention(records="requests", days=LEAST_RETENTION_DAYS),))
    state.sites.set("site", make_example(Site, parameters=parameters))
    witness = WITNESS.partition("+")[0]
    state.witnesses.set(witness, WitnessRecord(name=witness, vkey=WITNESS, size=95, time=NOW, index=96))
    for index, (name, role) in enumerate(PEOPLE.items(), start=1):
        keyid = example_digest(f"key of {name}")
        roles = (role, *SECOND_ROLES.get(name, ()))
        person = Principal(name=name, printed_name=None, roles=roles, keyid=keyid, enrolled=index)
        state.principals.set(name, person)
        state.keys.set(keyid, make_example(Key, keyid=keyid, principal=name, enrolled=index, enrolled_at=NOW))
    state.identities.set("rita", make_example(Identity, principal="rita"))
    invitation = {"secret": example_digest("secret of omar"), "until": TOMORROW, "invited_by": "anna"}
    state.invitations.set("omar", make_example(Invitation, name="omar", **invitation))
    base = make_example(Base, name="smollm2", digest=example_digest("smollm2"))
    state.bases.set("smollm2", base)
    dataset = make_example(Dataset, name="clauses", digest=example_digest("clauses"), licence="CC-BY-4.0")
    state.datasets.set("clauses@1", dataset)
    validation_set = make_example(ValidationSet, name="exam", digest=example_digest("exam"), imported_by="vera")
    state.validation_sets.set("exam@1", validation_set)
    requested = make_example(Import, action="import-base", subject="base:qwen3", signer="olga")
    state.imports.set(requested.order, requested)
    _add_runs(state)
    _add_releases(state)
    waiting: dict[str, Any] = {"action": "grant", "signer": "anna", "keyid": example_digest("key of anna")}
    pending = make_example(PendingOrder, digest=example_digest("order"), **waiting)
    state.pending.set(pending.digest, pending)
    state.texts.set(example_commitment("commitment"), CommittedText(91, NOW, "ines", ("dataset:letters",)))
    hold = make_example(Hold, subject="principal:olga", signer="audrey")
    state.holds.set(hold.subject, hold)
    return state


def _add_runs(state: State) -> None:
    """Add a run that made the adapters, and one each that waits for its authorisation, is queued, and failed."""
    row: dict[str, Any] = {
        "name": "clauses",
        "dataset": "clauses@1",
        "method": "qlora",
        "purpose": "release",
        "step": 10,
    }
    for number, status in enumerate(("sealed", "waiting", "queued", "failed"), start=1):
        run = make_example(Run, id=f"r-{number:06d}", status=status, **row)
        state.runs.set(run.id, run)
    state.training_checkpoints.set(checkpoint_key("r-000001", 10), make_example(TrainingCheckpoint, step=10))


def _add_releases(state: State) -> None:
    """Add the adapters that served `labels` in turn: `notes`, whose approvals are missing, `terms`, and `clauses`."""
    request = make_example(
        ReleaseRequest,
        index=50,
        order=example_digest("request"),
        requested_by="olga",
        keyid=example_digest("key of olga"),
        exposure="internal",
        purpose="assist",
    )
    approvals = tuple(
        make_example(
            ReviewRecord,
            index=index,
            reviewer=name,
            keyid=example_digest(f"key of {name}"),
            review_function=PEOPLE[name].partition(":")[2],
            valid_until=TOMORROW,
            request=request.order,
        )
        for index, name in ((51, "rita"), (52, "raul"))
    )
    finding = make_example(Finding, index=53, severity="high", finder="rita")
    suspension = make_example(Suspension, index=54, served_model="drafts", role="reviewer:privacy", by="rita")
    history = []
    for name in ("notes", "terms", "clauses"):
        manifest, adapter = example_digest(f"{name}@1"), f"{name}@1"
        reviews = () if name == "notes" else approvals
        row: dict[str, Any] = {"dataset": "clauses@1", "purpose": "release", "requests": (request,), "reviews": reviews}
        row |= {"findings": (finding,), "suspensions": (suspension,)}
        state.adapters.set(adapter, make_example(Adapter, name=name, manifest=manifest, **row))
        keyid = example_digest("key of otto")
        history.append(
            make_example(Activation, index=60, adapter=adapter, manifest=manifest, signer="otto", keyid=keyid)
        )
    state.releases.set(release_key("legal", "labels"), make_example(Release, history=tuple(history)))
