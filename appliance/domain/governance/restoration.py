"""Restorations: two administrators accept that the log gives up entries that others may have seen.

After a restore of an older backup, clients and witnesses have seen more entries than the log has. The order names the
size and root of the log that stays (`kept`), and the newest signed checkpoint that is given up (`lost`). So a client or
witness with a checkpoint between the two can distinguish the restored log from a forged one.

The entries that are given up may have revoked something: an approval, a token, a key. So the entry suspends every
version that was approved for a unit or served it, ends all tokens, and drops the orders that were pending. Statements
that were signed before it are refused, because an order that was carried out in the lost part could be submitted again.
"""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.action import Action, Attachment
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import Suspension
from appliance.domain.core.entry import Countersigned
from appliance.domain.core.example import example_digest
from appliance.domain.core.facts import ActionFacts, Entity
from appliance.domain.core.names import Base64, Digest, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.records.site import Restoration, Site
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.errors import RefusalCode, Tampered
from appliance.formats.core.digest import digest_bytes, raw_digest
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint
from appliance.formats.log.restoration import StepBack

KEPT_BEYOND_LOG = RefusalCode(
    "kept-beyond-log",
    "order",
    "The order keeps {kept} entries. The log has {size}.",
    "Prepare the order again: appliance restoration order.",
)
KEPT_DIFFERS = RefusalCode(
    "kept-differs",
    "order",
    "The order names another root at {kept} entries than this log has.",
    "Prepare the order again: appliance restoration order.",
)
NOTHING_LOST = RefusalCode(
    "nothing-lost",
    "order",
    "The checkpoint that the order gives up has {lost} entries, and the log keeps {kept}.",
    "Name a larger checkpoint. Two checkpoints of one size with different roots are two histories: call an auditor.",
)
ENROLLED_SINCE = RefusalCode(
    "enrolled-since-restore",
    "rule",
    "{id} was enrolled by entry {entry}. The log keeps {kept} entries.",
    "Ask an administrator whose key the kept entries enrolled.",
)


class RestoreLog(Order):
    """An order to continue the log from its first `kept_size` entries and to give up the checkpoint `lost`.

    `lost` is the digest of the checkpoint's signed note. That checkpoint has `lost_size` entries and the root
    `lost_root`.
    """

    action = "restore-log"
    kept_size: int = Field(ge=1, description="number of entries that the log keeps")
    kept_root: Digest
    lost: Digest
    lost_size: int = Field(ge=1, description="number of entries of the checkpoint that is given up")
    lost_root: Digest

    def subjects(self) -> Subjects:
        return self._self("log")


class LogRestored(Countersigned):
    """The event of a restoration.

    `proof` (RFC 6962, base64) proves that the log up to this entry begins with the entries that the order keeps.
    """

    type = "log.restored"
    documents = ("order", "lost")
    proof: tuple[Base64, ...] = Field(max_length=63)


def make_step_back(site: Site, restoration: Restoration) -> StepBack:
    """Return the step back of the log that a restoration orders."""
    kept = Checkpoint(site.origin, restoration.kept_size, raw_digest(restoration.kept_root))
    lost = Checkpoint(site.origin, restoration.lost_size, raw_digest(restoration.lost_root))
    return StepBack(kept, lost, restoration.ordered_at)


def find_restoration(site: Site, note: bytes, seen_at_s: float) -> Restoration:
    """Return the restoration that gives up the checkpoint in `note`.

    `seen_at_s` is the time in seconds since 1970 at which a client or witness received the note.

    Raises: Tampered if there is none, with the reason for which the last restoration does not apply.
    """
    refusal = Tampered("restoration: expected one of this log, got none", code="restoration-refused")
    for restoration in site.restorations:
        try:
            seen = open_checkpoint(note, *site.checkpoint_keys(restoration.kept_size))
            make_step_back(site, restoration).check(seen, seen_at_s)
        except Tampered as error:
            refusal = error
        else:
            return restoration
    raise refusal


def authorise_restoration(state: State, order: RestoreLog, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a restoration.

    The root `kept_root` is not checked here. The service and the verifier check it, because they have the tree.
    """
    reasons = []
    if order.kept_size > state.size:
        reasons.append(KEPT_BEYOND_LOG(kept=order.kept_size, size=state.size))
    if order.lost_size <= order.kept_size:
        reasons.append(NOTHING_LOST(lost=order.lost_size, kept=order.kept_size))
    return reasons + _refuse_enrolled_since(signer.name, signer.enrolled, order.kept_size)


def _refuse_enrolled_since(name: str, entry: int, kept: int) -> Reasons:
    return [] if entry < kept else [ENROLLED_SINCE(f"principal:{name}", entry=entry, kept=kept)]


def check_lost_checkpoint(case: Case, order: RestoreLog, data: bytes) -> None:
    """Check that `data` is the note of the checkpoint that the order gives up.

    Its signatures must be valid under the keys that the log had at `kept_size` entries. A key that had been replaced
    before is not accepted: a person who stole it could claim entries that the log never had.

    Raises: Denied if the note is not the one that the order names; Tampered if a signature is invalid.
    """
    case.require(digest_bytes(data) == order.lost, "lost", order.lost, digest_bytes(data))
    lost = open_checkpoint(data, *case.state.site.checkpoint_keys(order.kept_size))
    expected = (order.lost_size, order.lost_root)
    case.require((lost.size, f"sha256:{lost.root.hex()}") == expected, "lost", expected, (lost.size, lost.root.hex()))


def apply_restoration(case: Case) -> Changes:
    """Record a restoration, end all tokens and pending orders, and suspend every version that may serve.

    Raises: Denied if a key that signed or countersigned the order was not enrolled by an entry that the log keeps.
    """
    state, order, site = case.state, case.order(RestoreLog), case.state.site
    signed = [case.accepted]
    if "countersigned" in case.documents:
        signed.insert(0, case.reader.read(state, case.documents["countersigned"], case.entry.time))
    for accepted in signed:
        key = state.keys.get(accepted.keyid)
        enrolled = None if key is None else key.enrolled
        is_kept = enrolled is not None and enrolled < order.kept_size
        case.require(is_kept, "key", f"one enrolled before entry {order.kept_size}", enrolled)
    restoration = Restoration(
        index=case.entry.index,
        time=case.entry.time,
        ordered_at=order.issued_at,
        signers=tuple(accepted.order.signer for accepted in signed),
        **{name: getattr(order, name) for name in ("kept_size", "kept_root", "lost_size", "lost_root")},
    )
    changed = site.model_copy(update={"restorations": (*site.restorations, restoration)})
    changes: Changes = [(state.sites, "site", changed)]
    changes += [(state.pending, pending.digest, None) for pending in state.pending.values()]
    changes += [(state.issued_tokens, key, None) for key, _ in state.issued_tokens.items()]
    for name, units in _list_units_by_adapter(state).items():
        adapter = state.adapters.get(name)
        if adapter is not None and adapter.revoked is None:
            changes.append((state.adapters, name, _suspend(case, adapter, sorted(units))))
    return changes


def _list_units_by_adapter(state: State) -> dict[str, set[str]]:
    """Return the units for which each adapter was approved or that it served, by the adapter's name."""
    units: dict[str, set[str]] = {}
    for name, adapter in state.adapters.items():
        for review in adapter.reviews:
            if review.approves:
                units.setdefault(name, set()).add(review.unit)
    for release in state.releases.values():
        for step in release.history:
            units.setdefault(step.adapter, set()).add(release.unit)
    return units


def _suspend(case: Case, adapter: Adapter, units: list[str]) -> Adapter:
    """Return the adapter suspended for the units.

    A unit's release owner, or two administrators, can lift each suspension.
    """
    suspensions = tuple(
        Suspension(
            index=case.entry.index,
            order=case.accepted.digest,
            unit=unit,
            served_model=None,
            role=f"release-owner:{unit}",
            by=case.accepted.order.signer,
            keyid=case.accepted.keyid,
        )
        for unit in units
    )
    return adapter.model_copy(update={"suspensions": (*adapter.suspensions, *suspensions)})


def _meaning(order: RestoreLog) -> str:
    return (
        f"The log continues from its first {order.kept_size:,} entries. Up to {order.lost_size - order.kept_size:,} "
        f"entries after them are given up, up to a log of {order.lost_size:,}, with everything that they recorded: "
        "approvals, and also revocations, leavers, stolen keys, findings and erasures. Clients and witnesses that have "
        "seen them accept this step back. Every approved version is suspended and every token ends, because a "
        "revocation may be among the lost entries. Revoke again what was revoked before anything is resumed."
    )


class RestorationEntity(Entity):
    """The step back of a log after an older backup was restored."""

    kept_size: int
    lost_size: int


def _describe(state: State, order: RestoreLog, signer: Principal) -> RestorationEntity:
    return RestorationEntity(id=order.lost, kept_size=order.kept_size, lost_size=order.lost_size)


ACTIONS = (
    Action(
        RestoreLog,
        title="Restore the log",
        has_form=False,
        authorise=authorise_restoration,
        signers=("administrator",),
        meaning=_meaning,
        summary="The log continues from an older state, and gives up entries that others have seen.",
        event=LogRestored,
        apply=apply_restoration,
        two_administrators=True,
        attachment=Attachment("lost", check_lost_checkpoint),
        recheck_slots=True,
        facts=ActionFacts(RestorationEntity, _describe),
        example_values={
            "signer": "anna",
            "kept_size": 90,
            "lost": example_digest("lost"),
            "lost_size": 120,
        },
    ),
)
