"""The data of a signing page: a statement's bytes, and a passkey's assertion over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from appliance.domain.actions.proposals import Proposal
from appliance.domain.actions.showing import LABELS
from appliance.domain.core.decisions import APPROVALS, PARTS, Conditions, OpenedPagePart
from appliance.domain.core.policy import parse_policy
from appliance.domain.core.records.data import BoundSet, LocalSet
from appliance.domain.core.records.people import Key
from appliance.domain.core.signatures import key_ended
from appliance.domain.core.state import State
from appliance.domain.governance.passkeys import list_passkeys
from appliance.domain.governance.people import Enrolment
from appliance.domain.governance.policies import AdoptPolicy, PolicyChange, describe_changes, list_diff_lines
from appliance.domain.queries.review.values import open_parts
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.domain.releases.reviews import ReviewAdapter
from appliance.errors import (
    ApplianceError,
    BadInput,
    Denied,
    NotAuthenticated,
    NotFound,
    Refusal,
    RefusalCode,
    Tampered,
)
from appliance.formats.core.fields import encode_base64, parse_base64url
from appliance.formats.signatures.dsse import Envelope, Signature
from appliance.formats.signatures.webauthn import Assertion, encode_assertion
from appliance.web.console.core.page import PageValue, Viewer
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.policy_trial import Trial, try_policy
from appliance.workflows.releases.review import find_adapter, review_page

_OPEN_TABS = "Open the tabs Changes, Quality and Findings of the adapter's page, then decide again."
PART_NOT_OPENED = RefusalCode(
    "part-not-opened", "rule", "The part {part} of the adapter's page was not opened in this session.", _OPEN_TABS
)
PART_CHANGED = RefusalCode(
    "part-changed",
    "state",
    "The part {part} of the adapter's page has changed since it was opened in this session.",
    _OPEN_TABS,
)
PARTS_DIFFER = RefusalCode(
    "parts-differ",
    "order",
    "The order names other parts of the adapter's page than those that this session opened.",
    "Decide again from the adapter's page.",
)

ASSERTION_FIELDS = ("credential_id", "authenticator_data", "client_data", "signature")
"""Form fields of a passkey's assertion."""


class Signing(PageValue):
    """A statement to sign.

    `file` is all that is shown and signed. `allowed` lists the ids of credentials that may sign. `script_data` is JSON
    for the script.
    """

    file: str
    script_data: str
    allowed: tuple[str, ...]


def rp_id_of(url: str) -> str:
    """Return the WebAuthn relying party id of the console: the host's name in its address."""
    return urlsplit(url).hostname or ""


def list_valid_passkeys(state: State, signer: str, url: str, now: str) -> list[Key]:
    """Return the signer's passkeys that are valid for this console now."""
    return [
        key
        for key in list_passkeys(state, signer)
        if key.passkey is not None and url in key.passkey.origins and key_ended(state, key, now) is None
    ]


def make_signing(
    file: bytes,
    kind: str,
    signer: str,
    url: str,
    allowed: tuple[str, ...],
    model: type[Any] | None = None,
    unchanged: tuple[str, ...] = (),
) -> Signing:
    """Return a statement to sign.

    Its type has to begin with `kind`, which the script checks before it asks the passkey. The script folds the lines
    with the labels `unchanged`, like technical ones.
    """
    script_data = {
        "kind": kind,
        "signer": signer,
        "rpId": rp_id_of(url),
        "allowed": allowed,
        "fields": describe_fields(model),
        "unchanged": unchanged,
    }
    return Signing(file=file.decode("utf-8"), script_data=json.dumps(script_data), allowed=allowed)


def describe_fields(model: type[Any] | None) -> dict[str, Mapping[str, Any]]:
    """Return the order and the labels in which the command line shows the fields of a statement.

    The script shows all other fields after them.
    """
    nested: dict[str, type[BaseModel]] = {
        "recipe": ResolvedRecipe,
        "conditions": Conditions,
        "opened": OpenedPagePart,
        "people": Enrolment,
        "sets": BoundSet,
        "local_sets": LocalSet,
    }
    found = {name: list(one.model_fields) for name, one in nested.items()}
    members = found | {"": [] if model is None else list(model.model_fields)}
    return {"members": members, "labels": LABELS}


def statement_file(payload: bytes) -> bytes:
    """Return the file of a statement that is not an order and has no texts and documents."""
    value = {"disclosures": [], "documents": {}, "reported": [], "statement": encode_base64(payload)}
    return json.dumps(value).encode()


def read_envelope(payload: bytes, form: Mapping[str, str], state: State, signer: str) -> Envelope:
    """Return the envelope of an assertion by one of the signer's passkeys. The signature is not verified here.

    Raises: BadInput without an assertion; NotAuthenticated for a passkey of another principal.
    """
    missing = [name for name in ASSERTION_FIELDS if not form.get(name)]
    if missing:
        raise BadInput(
            f"signature: expected a passkey's assertion, got a form without {missing[0]}; a click alone signs nothing",
            code="not-signed",
        )
    for key in list_passkeys(state, signer):
        if key.passkey is not None and key.passkey.credential_id == form["credential_id"]:
            parts = [parse_base64url(form[name], f"assertion, {name}") for name in ASSERTION_FIELDS[1:]]
            sig = encode_assertion(Assertion(*parts))
            return Envelope(payload, Signature(key.keyid, sig))
    raise NotAuthenticated(
        f"This passkey is not enrolled for {signer}. A new passkey works once two administrators have enrolled it."
    )


def opened_by(
    context: LedgerContext, adapter: str, decision: str, fetched: Mapping[str, str]
) -> tuple[OpenedPagePart, ...]:
    """Return the parts of the review page for the order: those that this session fetched and that have not changed.

    `fetched` has the digest of each part when it was fetched.

    Raises: Denied if an approval lacks a part.
    """
    find_adapter(context.ledger.state, adapter)
    found = _find_unchanged(context, adapter, fetched)
    if decision in APPROVALS and (refused := _list_missing(found, fetched)):
        raise Denied(f"approval of {adapter}", refusals=refused, code="not-opened")
    return found


def against_opened(context: LedgerContext, order: ReviewAdapter, fetched: Mapping[str, str]) -> tuple[Refusal, ...]:
    """Return why the parts in the order are not true: for an approval now, for other decisions when it was prepared."""
    claimed = {one.part for one in order.opened}
    if order.decision not in APPROVALS:
        return tuple(PART_NOT_OPENED(part=part) for part in sorted(claimed - fetched.keys()))
    found = _find_unchanged(context, order.name, fetched)
    if reasons := _list_missing(found, fetched):
        return reasons
    return () if order.opened == found else (PARTS_DIFFER(),)


def _find_unchanged(context: LedgerContext, adapter: str, fetched: Mapping[str, str]) -> tuple[OpenedPagePart, ...]:
    try:
        now = open_parts(review_page(context, adapter))
    except (BadInput, NotFound, Tampered):
        return ()  # no part can be fetched
    return tuple(one for one in now if fetched.get(one.part) == one.digest)


def _list_missing(found: tuple[OpenedPagePart, ...], fetched: Mapping[str, str]) -> tuple[Refusal, ...]:
    fetched_parts = {one.part for one in found}
    return tuple(
        (PART_CHANGED if part in fetched else PART_NOT_OPENED)(part=part) for part in PARTS if part not in fetched_parts
    )


class PolicySetComparison(PageValue):
    """A comparison of two policy sets: `changes` in words, and the `diff` of the text.

    `trial` has recent decisions under the new set. It is None if `problem` says why they could not be computed.
    """

    changes: tuple[PolicyChange, ...]
    diff: tuple[str, ...]
    trial: Trial | None
    problem: str | None


def check_administrator(viewer: Viewer) -> None:
    """Raise Denied unless the viewer is an administrator.

    A trial takes seconds of the processor, and only administrators adopt a policy set.
    """
    what = "Adopting a policy set is for administrators: they compare it, try it, sign it and countersign it"
    viewer.require(what, ("administrator",))


def compare_policies(context: LedgerContext, viewer: Viewer, proposal: Proposal) -> PolicySetComparison | None:
    """Compare the set of an order to adopt one with the valid set. Return None for another order.

    Raises: Denied unless the viewer is an administrator.
    """
    order = proposal.order
    if not isinstance(order, AdoptPolicy):
        return None
    check_administrator(viewer)
    with context.policy_trials.run_for(viewer.name):
        return _compare(context, proposal, order)


def _compare(context: LedgerContext, proposal: Proposal, order: AdoptPolicy) -> PolicySetComparison:
    document = proposal.documents["policy"]
    old = parse_policy(context.ledger.document(context.ledger.state.site.policy))
    new = parse_policy(document)
    trial, problem = None, None
    try:
        trial = try_policy(context, document, order.policy)
    except ApplianceError as error:
        problem = error.message
    return PolicySetComparison(
        changes=describe_changes(old, new), diff=tuple(list_diff_lines(old, new)), trial=trial, problem=problem
    )
