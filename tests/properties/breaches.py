"""Breaches: for each rule, an entry or a change that this rule alone keeps out of a log.

A breach is made on a site whose rule has been taken out, so that it is a log as that appliance would have written it:
chained, in one tree, under its signed checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from appliance.domain.core.entry import Ordered
from appliance.domain.core.names import NO_DIGEST, add_seconds, encode_value
from appliance.domain.core.order import Order
from appliance.domain.core.policy import Retention
from appliance.domain.data.artifacts import (
    BaseImported,
    BaseQuarantined,
    RevokeBase,
    RevokeDataset,
    RevokeValidationSet,
)
from appliance.domain.data.imports import (
    CancelImport,
    ImportBase,
    ImportDataset,
    ImportFailed,
    ImportRequested,
    ImportValidationSet,
)
from appliance.domain.governance.countersignature import Countersign, OrderRefused, WithdrawOrder
from appliance.domain.governance.delegations import Delegate
from appliance.domain.governance.identities import BindIdentity, UnbindIdentity
from appliance.domain.governance.invitations import EnrolWithPasskey, Invite, WithdrawInvitation
from appliance.domain.governance.keys import KeyEnrolled, ReplaceKey, RevokeKey, RotateKey
from appliance.domain.governance.log_control import LogKeyRotated, RaiseRules, ResetClock, RotateLogKey, RulesRaised
from appliance.domain.governance.passkeys import EnrolPasskey, PasskeyEnrolled
from appliance.domain.governance.people import (
    Enrol,
    EnrolSeveral,
    Grant,
    PrincipalEnrolled,
    PrincipalRevoked,
    PrincipalsEnrolled,
    RemoveRole,
    RevokePrincipal,
    RoleGranted,
    RoleRemoved,
)
from appliance.domain.governance.policies import AdoptPolicy, PolicyAdopted
from appliance.domain.governance.post_quantum import AddPostQuantumKeys, PostQuantumKeysAdded
from appliance.domain.governance.recovery import RecoverAdministrator
from appliance.domain.governance.restoration import RestoreLog
from appliance.domain.governance.service import Heartbeat, ProcessLost, ServiceStarted, ServiceStopped
from appliance.domain.governance.sessions import AuthRefused, SessionClosed, SessionOpened
from appliance.domain.operations import ArtifactsChecked
from appliance.domain.releases.activations import Activate, BreakGlass, ReleaseRolledBack, Rollback
from appliance.domain.releases.adapters import AdapterQuarantined, AdapterRevoked, RevokeAdapter
from appliance.domain.releases.exports import ExportAdapter
from appliance.domain.releases.findings import AddFinding, CloseFinding
from appliance.domain.releases.previews import TryAdapter, ViewSamples
from appliance.domain.releases.requests import RequestRelease, WithdrawRequest
from appliance.domain.releases.reviews import ReviewAdapter
from appliance.domain.releases.suspensions import ResumeRelease, SuspendRelease
from appliance.domain.retention import ArchiveLog, Erase, HoldLifted, LiftHold, LogArchived, PlaceHold, TextErased
from appliance.domain.runs.control import AuthoriseRun, Cancel, RefuseRun, Resume, RunCancelled
from appliance.domain.runs.replays import ReplayFailed, ReplayRun
from appliance.domain.runs.training import RunFailed, RunRequested, Train
from appliance.domain.serving.tokens import EnrolApplication, RevokeTokens
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.checkpoint import witness_vkey_of
from appliance.formats.log.note import vkey_of
from appliance.formats.signatures.dsse import encode_envelope
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.authenticator import new_passkey
from scripts.kit.log_builder import ORIGIN, LogBuilder, manifest, order_of, policy_digest, policy_set, stage
from tests.kit.ahead import DAY_S, reset_clock, run_ahead
from tests.kit.restored import lose, restore

Breach = tuple[str, Callable[[LogBuilder], Any]]
"""The stage it begins from, and what is done there."""

NOTHING = digest_bytes(b"nothing")
WITNESS = generate_ed25519()
WITNESS_NAME = "witness.example/w1"


def by_olga(event: type[Ordered], model: type[Order], **fields: Any) -> Callable[[LogBuilder], Any]:
    """Return a breach: an order of a person who may not give it."""
    return lambda site: site.ordered(event(policy=site.in_force), site.order(model, "olga", **fields))


def enrolled(site: LogBuilder, **fields: Any) -> None:
    order, documents = site.enrolment("eve", ("auditor",), **fields)
    site.two(PrincipalEnrolled(policy=site.in_force), order, documents)


def several_enrolled(site: LogBuilder, by: str = "anna", second: str = "ben") -> None:
    order, documents = site.enrolments({"eve": ("auditor",), "mia": ("operator",)}, by)
    site.two(PrincipalsEnrolled(policy=site.in_force), order, documents, second=second)


def countersigned_alone(site: LogBuilder) -> None:
    order, documents = site.enrolment("eve", ("auditor",))
    site.two(PrincipalEnrolled(policy=site.in_force), order, documents, second="anna")


def not_behind(site: LogBuilder) -> None:
    """Set a clock back that is right."""
    reset_clock(site, site.now)


def reset_elsewhere(site: LogBuilder) -> None:
    """By an order that names another place of the log."""
    reset_clock(site, run_ahead(site, DAY_S), last=site.now)


def restored_by_a_later_key(site: LogBuilder) -> None:
    """Restore with the key of a second administrator that was enrolled after the kept entries."""
    kept, other = site.state.size, lose(site, 20)
    site.keys["ben"] = site.replace("ben")
    restore(site, other.checkpoint(), kept_size=kept)


def uncountersigned(site: LogBuilder, event: type[Ordered], model: type[Order], **fields: Any) -> None:
    site.ordered(event(policy=site.in_force), site.order(model, "anna", **fields))


def archived(site: LogBuilder, by: str = "anna", second: str | None = "ben") -> None:
    """Archive old refusals of a log that a witness has cosigned."""
    rows = (Retention(records="refusals", days=183),)
    site.adopt(policy_set(witnesses=(witness_vkey_of(WITNESS_NAME, WITNESS),), retention=rows))
    removed, last = (1 << site.state.size).to_bytes(16, "little").rstrip(b"\0"), site.now
    size = site.add(Heartbeat()).index + 1
    site.now = add_seconds(site.now, 200 * DAY_S)
    body, documents = site.cosigned(WITNESS, WITNESS_NAME)
    site.add(body, documents=documents)
    values = {"records": ("refusals",), "last": last, "count": 1, "removed": digest_bytes(removed)}
    order = site.order(ArchiveLog, by, up_to=size, size=size, archive=NOTHING, state=NOTHING, **values)
    event, documents = LogArchived(policy=site.in_force), {"removed": removed}
    if second is None:
        site.ordered(event, order, documents=documents)
    else:
        site.two(event, order, documents, second)


def uncountersigned_removal(site: LogBuilder) -> None:
    _owned_by_rita(site)
    uncountersigned(site, RoleRemoved, RemoveRole, principal="rita", role="release-owner:legal")


def pended_by_olga(site: LogBuilder, event: type[Ordered], model: type[Order], **fields: Any) -> None:
    site.two(event(policy=site.in_force), site.order(model, "olga", **fields))


def refused(site: LogBuilder) -> None:
    order = site.order(RevokePrincipal, "olga", principal="rita")
    envelope = site.sign(order)
    body = OrderRefused(order=envelope.pae_digest, action="train", code="denied", refusals=())
    site.add(body, documents={"order": encode_envelope(envelope)}, actor="olga")


def imported(site: LogBuilder) -> None:
    requested = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order())
    body = site.dataset_imported(requested, dataset="clauses@5")
    site.add(body, documents={"manifest": manifest("clauses", 5, {"rows": b"rows"})})


def set_imported(site: LogBuilder) -> None:
    """In another version than the next."""
    site.import_set(version=5)


def sealed(site: LogBuilder) -> None:
    body, documents = site.sealing("r-000001", sandbox_probes={"tcp": "open"})
    site.add(body, documents=documents)


def issued_by_another(site: LogBuilder) -> None:
    """By the unit's own key, which is no application's."""
    site.enrol_application()
    site.issue(site.token_request(site.keys["legal"]))


def cosigned(site: LogBuilder) -> None:
    body, documents = site.cosigned(WITNESS, WITNESS_NAME)
    site.add(body, documents=documents)


def rekeyed(site: LogBuilder, model: type[Any], by: str, name: str, **fields: Any) -> None:
    order, documents, _ = site.new_key(model, by, name, **fields)
    body = KeyEnrolled(policy=site.in_force)
    if model is RotateKey:
        site.ordered(body, order, documents=documents)
    else:
        site.two(body, order, documents)


def recovered_by_an_administrator(site: LogBuilder) -> None:
    """Recover with one recovery key alone."""
    site.enrol("vault", "recovery")
    site.recover("eve", second="vault")


def passkey(site: LogBuilder, by: str = "anna", second: str = "ben") -> None:
    order, documents = site.passkey_order("rita", new_passkey(), by)
    site.two(PasskeyEnrolled(policy=site.in_force), order, documents, second=second)


def accepted_late(site: LogBuilder) -> None:
    site.invite("nina", "operator", lasts_s=1)
    site.now = add_seconds(site.now, 60)
    site.accept_invitation("nina", new_passkey())


def adopted(site: LogBuilder, **signed: str) -> None:
    policy = policy_set(reviewers=1, distinct_functions=1)
    order = site.order(AdoptPolicy, signed.pop("by", "anna"), policy=policy_digest(policy))
    site.two(PolicyAdopted(policy=site.in_force), order, {"policy": encode_value(policy)}, **signed)


def log_key(site: LogBuilder, *, alone: bool = False, until_s: int = 600) -> None:
    key, old_until = generate_ed25519(), add_seconds(site.now, until_s)
    vkey = vkey_of(ORIGIN, key)
    order = site.order(RotateLogKey, "anna", log_key=vkey, old_until=old_until)
    (site.ordered if alone else site.two)(LogKeyRotated(policy=site.in_force), order)
    site.log, site.log_signers = key, {**site.log_signers, vkey: key}


def second_keys(site: LogBuilder, *, alone: bool = False, is_first: bool = True) -> None:
    if not is_first:
        site.add_post_quantum_keys()
    order = site.order(AddPostQuantumKeys, "anna", **site.make_post_quantum_keys())
    (site.ordered if alone else site.two)(PostQuantumKeysAdded(policy=site.in_force), order)


def erased_at_once(site: LogBuilder, **rest: Any) -> None:
    commitment = next(key for key, text in site.state.texts.items() if text.signer == "anna")
    order = site.order(Erase, rest.pop("by", "anna"), commitment=commitment)
    if rest.pop("alone", False):
        site.ordered(TextErased(policy=site.in_force), order)
    else:
        site.two(TextErased(policy=site.in_force), order)
    site.disclosures = [text for text in site.disclosures if text.commitment != commitment]


def resumed_by_another(site: LogBuilder) -> None:
    run = site.request_run()
    site.add(site.started(run))
    site.add(site.checkpointed(run))
    site.add(RunFailed(run=run, code="x", message=site.text("why")))
    site.resume(run, "ines")


def broken_by_one_person(site: LogBuilder) -> None:
    """Countersign the release owner's order as the release owner."""
    site.review("rita", "privacy", decision="withdraw")
    site.break_glass(second="otto")


def _waits(site: LogBuilder) -> str:
    """Request a run that waits for a second person."""
    tier = policy_set().parameters.tiers[0].model_copy(update={"authorise_runs": True})
    site.adopt(policy_set(tiers=(tier,)))
    return site.request_run(tier=tier.name)


def authorised(site: LogBuilder, by: str) -> None:
    site.authorise(_waits(site), by)


def refused_run(site: LogBuilder, by: str) -> None:
    site.refuse_run(_waits(site), by)


def _owned_by_rita(site: LogBuilder) -> None:
    role = "release-owner:legal"
    site.two(RoleGranted(policy=site.in_force), site.order(Grant, "anna", principal="rita", role=role))


def activated_by_an_approver(site: LogBuilder) -> None:
    _owned_by_rita(site)
    site.activate(signer="rita")


def approved_by_the_activator(site: LogBuilder) -> None:
    """Rita withdraws her approval, which is not needed, activates, and approves again."""
    site.enrol("quinn", "reviewer:privacy")
    site.review("quinn", "privacy")
    site.review("rita", "privacy", decision="withdraw")
    activated_by_an_approver(site)
    site.review("rita", "privacy")


def declared_by_an_approver(site: LogBuilder) -> None:
    _owned_by_rita(site)
    site.review("raul", "model-risk", decision="withdraw")
    site.break_glass(signer="rita")


def loaded_after_policy_parted_them(site: LogBuilder) -> None:
    """Load what Rita approved and activated, which the next policy set forbids."""
    site.adopt(policy_set(approver_may_activate=True))
    activated_by_an_approver(site)
    site.adopt(policy_set())
    site.load()


def request_withdrawn_by_another(site: LogBuilder) -> None:
    site.request_release()
    site.withdraw_request("ines")


def unbound_by_olga(site: LogBuilder) -> None:
    site.bind("rita")
    site.unbind("rita", "olga")


# One for each handler of an entry's type.
TYPES: dict[str, Breach] = {
    "session.opened": ("staffed", lambda s: s.add(
        SessionOpened(identity=None), documents={"session": encode_envelope(s.session("olga"))}, actor="anna")),
    "order.refused": ("staffed", refused),
    "order.pending": ("staffed", lambda s: s.pend(s.order(RevokePrincipal, "anna", principal="rita"))),
    "principal.enrolled": ("staffed", countersigned_alone),
    "principals.enrolled": ("staffed", lambda s: several_enrolled(s, second="anna")),
    "principal.granted": ("staffed", lambda s: uncountersigned(
        s, RoleGranted, Grant, principal="olga", role="reviewer:privacy")),
    "principal.role-removed": ("staffed", uncountersigned_removal),
    "identity.bound": ("staffed", lambda s: s.bind("rita", second="anna")),
    "identity.unbound": ("staffed", unbound_by_olga),
    "principal.revoked": ("staffed", by_olga(PrincipalRevoked, RevokePrincipal, principal="rita")),
    "policy.adopted": ("staffed", lambda s: adopted(s, second="anna")),
    "import.requested": ("staffed", lambda s: s.ordered(
        ImportRequested(policy=s.in_force), s.order(ImportBase, "audrey", base="b", format="gguf", source=NOTHING,
                                                      licence="MIT"))),
    "import.failed": ("staffed", lambda s: s.add(ImportFailed(order=NOTHING, code="x", message=s.text("why")))),
    "import.cancelled": ("staffed", lambda s: s.cancel_import(s.request_import(), "olga")),
    "base.imported": ("staffed", lambda s: s.add(
        BaseImported(order=NOTHING, base="b", facts={}, sandbox_probes={}),
        documents={"manifest": manifest("b", 1, {"w": b"w"})})),
    "dataset.imported": ("imported", imported),
    "validation-set.imported": ("imported", set_imported),
    "run.requested": ("imported", lambda s: s.ordered(
        RunRequested(policy=s.in_force, run="r-000001"), s.train_order("audrey"))),
    "run.authorised": ("imported", lambda s: authorised(s, "olga")),
    "run.refused": ("imported", lambda s: refused_run(s, "olga")),
    "run.started": ("imported", lambda s: s.add(s.started(s.request_run(), sandbox_probes={"tcp": "open"}))),
    "run.finished": ("imported", lambda s: s.add(s.finished("r-000009"))),
    "run.failed": ("imported", lambda s: s.add(RunFailed(run="r-000009", code="x", message=s.text("why")))),
    "run.cancelled": ("trained", by_olga(RunCancelled, Cancel, run="r-000009")),
    "run.checkpointed": ("trained", lambda s: s.add(s.checkpointed("r-000001", 3))),
    "resume.requested": ("trained", lambda s: s.resume("r-000001")),
    "run.resumed": ("trained", lambda s: s.add(s.resumed("r-000001", 1))),
    "replay.requested": ("trained", lambda s: s.replay("r-000001", signer="olga")),
    "replay.finished": ("trained", lambda s: s.add(s.replayed(s.replay("r-000001"), verdict="different"))),
    "replay.failed": ("trained", lambda s: s.add(
        ReplayFailed(order=NOTHING, run="r-000001", code="x", message=s.text("why")))),
    "adapter.sealed": ("trained", sealed),
    "adapter.quarantined": ("sealed", lambda s: s.add(
        AdapterQuarantined(adapter="clauses@9", message=s.text("why")))),
    "base.quarantined": ("sealed", lambda s: s.add(BaseQuarantined(base="none", message=s.text("why")))),
    "review.recorded": ("sealed", lambda s: s.review("olga", "privacy")),
    "release.requested": ("sealed", lambda s: s.request_release("ines")),
    "request.withdrawn": ("sealed", request_withdrawn_by_another),
    "finding.added": ("sealed", lambda s: s.find("olga")),
    "finding.closed": ("sealed", lambda s: s.close(s.find().index, "raul")),
    "samples.requested": ("sealed", lambda s: s.view_samples("olga")),
    "samples.shown": ("sealed", lambda s: s.add(s.samples_shown(order_of(s.view_samples()), rows=6))),
    "try.requested": ("sealed", lambda s: s.try_adapter("audrey")),
    "try.finished": ("sealed", lambda s: s.add(s.try_finished(order_of(s.try_adapter()), by="raul"))),
    "review.delegated": ("sealed", lambda s: s.delegate("olga")),
    "release.emergency": ("released", broken_by_one_person),
    "release.activated": ("sealed", lambda s: s.activate()),
    "release.rolled-back": ("released", lambda s: s.ordered(
        ReleaseRolledBack(policy=s.in_force), s.release_order(Rollback))),
    "release.suspended": ("sealed", lambda s: s.suspend("otto", role="release-owner:sales")),
    "release.resumed": ("sealed", lambda s: s.resume_release(s.suspend().index, "raul")),
    "adapter.revoked": ("sealed", lambda s: s.ordered(
        AdapterRevoked(policy=s.in_force), s.order(RevokeAdapter, "olga", **s.on_adapter()))),
    "artifacts.checked": ("sealed", lambda s: s.add(
        ArtifactsChecked(folders=1, size=1, changed=("adapter:clauses@1",), unread=()), outcome="failure")),
    "adapter.exported": ("released", lambda s: s.export(state_rows=b"{}")),
    "base.revoked": ("sealed", lambda s: s.revoke_base("olga")),
    "dataset.revoked": ("sealed", lambda s: s.revoke_dataset("olga")),
    "validation-set.revoked": ("sealed", lambda s: (s.import_set(), s.revoke_set("olga"))),
    "adapter.admitted": ("released", lambda s: s.add(s.admitted(approvals=()))),
    "adapter.loaded": ("released", lambda s: s.add(s.loaded(s.add(s.admitted()).index - 1))),
    "adapter.unloaded": ("released", lambda s: s.add(s.unloaded())),
    "order.withdrawn": ("staffed", lambda s: s.withdraw(
        s.pend(s.order(Grant, "anna", principal="olga", role="reviewer:safety")), by="ben")),
    "request.admitted": ("serving", lambda s: s.add(s.request(2))),
    "request.finished": ("serving", lambda s: s.add(s.answered(9))),
    "key.enrolled": ("staffed", lambda s: rekeyed(s, RotateKey, "raul", "rita", old_until=s.now)),
    "principal.invited": ("staffed", lambda s: s.invite("nina", "operator", lasts_s=3_700)),
    "invitation.accepted": ("staffed", accepted_late),
    "invitation.withdrawn": ("staffed", lambda s: (
        s.invite("nina", "operator"), s.withdraw_invitation("nina", "olga"))),
    "principal.enrolled-with-passkey": (
        "staffed", lambda s: s.enrol_with_passkey("nina", new_passkey(), "operator", second="anna")),
    "passkey.enrolled": ("staffed", lambda s: passkey(s, second="anna")),
    "administrator.recovered": ("staffed", recovered_by_an_administrator),
    "key.revoked": ("staffed", lambda s: s.revoke_key("rita", signer="olga")),
    "application.enrolled": ("staffed", lambda s: s.enrol_application(by="olga")),
    "token.issued": ("staffed", issued_by_another),
    "tokens.revoked": ("staffed", lambda s: s.revoke_tokens(signer="olga", token="sha256:" + "1" * 64)),
    "rules.raised": ("staffed", lambda s: s.ordered(
        RulesRaised(policy=s.in_force), s.order(RaiseRules, "anna", rules=2))),
    "clock.reset": ("staffed", not_behind),
    "log-key.rotated": ("staffed", lambda s: log_key(s, alone=True)),
    "post-quantum-keys.added": ("staffed", lambda s: second_keys(s, alone=True)),
    "log.restored": ("staffed", restored_by_a_later_key),
    "text.erased": ("staffed", lambda s: erased_at_once(s, alone=True)),
    "hold.placed": ("staffed", lambda s: s.hold("unit:legal", signer="olga")),
    "log.archived": ("staffed", lambda s: archived(s, second=None)),
    "hold.lifted": ("staffed", lambda s: s.ordered(
        HoldLifted(policy=s.in_force), s.order(LiftHold, "anna", subject="unit:legal"))),
    "checkpoint.cosigned": ("staffed", cosigned),
    "session.closed": ("staffed", lambda s: s.add(SessionClosed(opened=1, principal="anna"), actor="olga")),
    "service.started": ("staffed", lambda s: s.add(
        ServiceStarted(version="1", code=NO_DIGEST, layers={}, process="gateway-1", epoch=None))),
    "service.stopped": ("staffed", lambda s: s.add(ServiceStopped(reason="signal", process="gateway-1"))),
    "process.lost": ("staffed", lambda s: s.add(ProcessLost(process="gateway-1", epoch=1, last_contact=s.now))),
    "auth.refused": ("staffed", lambda s: s.add(
        AuthRefused(count=1, since=s.now, principals=("nobody",), keys=()))),
}  # fmt: skip

WITHOUT_A_RULE = {
    "heartbeat",
    "admission.refused",
    "request.refused",
}
"""Their handlers check nothing beyond what every entry is held to."""

# One for each action: an order that its invariant stands against.
ACTIONS: dict[type[Order], Breach] = {
    Enrol: ("staffed", lambda s: enrolled(s, signer="olga")),
    EnrolSeveral: ("staffed", lambda s: several_enrolled(s, by="olga")),
    Grant: ("staffed", lambda s: pended_by_olga(
        s, RoleGranted, Grant, principal="olga", role="reviewer:privacy")),
    RemoveRole: ("staffed", lambda s: s.pend(s.order(RemoveRole, "anna", principal="olga", role="operator"))),
    BindIdentity: ("staffed", lambda s: s.bind("legal")),
    UnbindIdentity: ("staffed", lambda s: s.unbind("rita")),
    RevokePrincipal: TYPES["principal.revoked"],
    AdoptPolicy: ("staffed", lambda s: adopted(s, by="olga")),
    Countersign: ("staffed", countersigned_alone),
    WithdrawOrder: TYPES["order.withdrawn"],
    ImportBase: TYPES["import.requested"],
    ImportDataset: ("imported", lambda s: s.ordered(ImportRequested(policy=s.in_force), s.dataset_order("audrey"))),
    ImportValidationSet: ("imported", lambda s: s.ordered(ImportRequested(policy=s.in_force), s.set_order("olga"))),
    Train: TYPES["run.requested"],
    AuthoriseRun: TYPES["run.authorised"],
    RefuseRun: TYPES["run.refused"],
    Cancel: ("imported", lambda s: s.ordered(
        RunCancelled(policy=s.in_force), s.order(Cancel, "ines", run=s.request_run()))),
    CancelImport: TYPES["import.cancelled"],
    Resume: ("imported", resumed_by_another),
    ReplayRun: TYPES["replay.requested"],
    ReviewAdapter: ("sealed", lambda s: s.review("olga", "privacy")),
    RequestRelease: TYPES["release.requested"],
    WithdrawRequest: TYPES["request.withdrawn"],
    AddFinding: TYPES["finding.added"],
    CloseFinding: TYPES["finding.closed"],
    ViewSamples: TYPES["samples.requested"],
    TryAdapter: TYPES["try.requested"],
    Delegate: TYPES["review.delegated"],
    BreakGlass: ("released", lambda s: s.break_glass()),
    Activate: ("sealed", lambda s: s.activate()),
    Rollback: TYPES["release.rolled-back"],
    SuspendRelease: TYPES["release.suspended"],
    ResumeRelease: TYPES["release.resumed"],
    RevokeAdapter: TYPES["adapter.revoked"],
    ExportAdapter: ("released", lambda s: s.export("olga")),
    RevokeBase: TYPES["base.revoked"],
    RevokeDataset: TYPES["dataset.revoked"],
    RevokeValidationSet: TYPES["validation-set.revoked"],
    ReplaceKey: ("staffed", lambda s: rekeyed(s, ReplaceKey, "olga", "rita")),
    Invite: ("staffed", lambda s: s.invite("nina", "operator", by="olga")),
    WithdrawInvitation: TYPES["invitation.withdrawn"],
    EnrolWithPasskey: ("staffed", lambda s: s.enrol_with_passkey("nina", new_passkey(), "operator", by="olga")),
    EnrolPasskey: ("staffed", lambda s: passkey(s, by="olga")),
    RecoverAdministrator: ("staffed", lambda s: s.recover("eve", by="olga")),
    RotateKey: ("staffed", lambda s: rekeyed(s, RotateKey, "raul", "rita", old_until=s.now)),
    RevokeKey: TYPES["key.revoked"],
    EnrolApplication: TYPES["application.enrolled"],
    RevokeTokens: TYPES["tokens.revoked"],
    RaiseRules: ("staffed", lambda s: s.two(
        RulesRaised(policy=s.in_force), s.order(RaiseRules, "olga", rules=2))),
    ResetClock: ("staffed", reset_elsewhere),
    RotateLogKey: ("staffed", lambda s: log_key(s, until_s=300_000_000)),
    AddPostQuantumKeys: ("staffed", lambda s: second_keys(s, is_first=False)),
    RestoreLog: ("staffed", lambda s: restore(s, s.checkpoint())),
    Erase: ("staffed", erased_at_once),
    PlaceHold: TYPES["hold.placed"],
    ArchiveLog: ("staffed", lambda s: archived(s, by="olga")),
    LiftHold: ("staffed", lambda s: s.lift("unit:legal")),
}  # fmt: skip


def policy_with_a_witness() -> Any:
    vkey = witness_vkey_of(WITNESS_NAME, WITNESS)
    return policy_set(witnesses=(vkey,), witness_quorum=1)


def made(breach: Breach) -> LogBuilder:
    """Return the site after the breach. The rule that it breaks must be switched off."""
    name, act = breach
    site = stage(name)
    act(site)
    return site
