"""Erasure: the text behind a commitment is destroyed, once its retention has ended and no hold keeps it."""

from __future__ import annotations

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Endorsed
from appliance.domain.core.names import Commitment, Time, add_seconds
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.site import Text
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.domain.retention.holds import keeps
from appliance.errors import Denied


class Erase(Order):
    """The text behind a commitment goes; the commitment stays, and every signature over it holds."""

    verb = "erase"
    keeps_texts = False
    commitment: Commitment

    def subjects(self) -> Subjects:
        return self._self(f"text:{self.commitment}")


class TextErased(Endorsed):
    """With this entry the text behind the order's commitment was removed."""

    type = "text.erased"


def reasons_to_keep(state: State, commitment: str, now: Time) -> list[str]:
    """Why a text must not be erased yet."""
    text = state.texts.get(commitment)
    if text is None:
        return [f"text: expected one that an order or a failure of this log binds, got {commitment}"]
    if text.erased is not None:
        return [f"text: expected one that stands, got one erased by entry {text.erased}"]
    reasons = [
        f"legal hold of entry {hold.index}: expected no hold on {hold.subject}, got one"
        for hold in state.holds.values()
        if keeps(hold.subject, (*text.subjects, f"principal:{text.signer}"))
    ]
    return reasons + _retained(state, commitment, text, now)


def _retained(state: State, commitment: str, text: Text, now: Time) -> list[str]:
    """A printed name belongs to every signature of its owner, and stays as long as policy asks after the last."""
    owners = [principal for principal in state.principals.values() if principal.printed_name == commitment]
    if not owners:
        return _until("text", add_seconds(text.time, state.parameters.text_retention_s), now)
    standing = [owner.name for owner in owners if owner.revoked_at is None]
    if standing:
        return [f"printed name: expected that of a revoked principal, got {', '.join(standing)}, who stands"]
    last = max(owner.revoked_at or "" for owner in owners)
    return _until("printed name", add_seconds(last, state.parameters.name_retention_s), now)


def _until(what: str, end: Time, now: Time) -> list[str]:
    return [f"{what}: expected its retention to have ended by {now}, got one until {end}"] if now < end else []


def may_erase(state: State, order: Erase, signer: Principal, now: Time) -> Reasons:
    return needs(signer, "administrator") + reasons_to_keep(state, order.commitment, now)


def text_erased(case: Case) -> Changes:
    order = case.order(Erase)
    text = case.state.texts.get(order.commitment)
    if text is None:
        raise Denied(f"entry {case.entry.index}: text: expected one that an entry binds, got {order.commitment}")
    return [(case.state.texts, order.commitment, text._replace(erased=case.entry.index))]


VERBS = (
    Verb(
        Erase,
        may=may_erase,
        signers=("administrator",),
        meaning="This text is destroyed here, for ever; every signature over its commitment holds. What was "
        "made of it stays: an instruction is in its dataset's rows and in what was trained on them. "
        "SECURITY.md says how these go.",
        event=TextErased,
        apply=text_erased,
        two_administrators=True,
    ),
)
