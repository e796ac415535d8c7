"""Breaches: for each rule, an entry or a change that this rule alone keeps out of a log.

A breach is made on a site whose rule has been taken out, so that it is a log as that appliance would have written it:
chained, in one tree, under its signed checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from appliance.domain import events as e
from appliance.domain import orders as o
from appliance.domain.names import add_seconds, encode_value
from appliance.formats.cosignature import witness_vkey_of
from appliance.formats.digest import digest_bytes
from appliance.formats.dsse import encode_envelope
from appliance.formats.keys import generate_ed25519
from appliance.formats.note import vkey_of
from tests.domain.builder import ORIGIN, Site, manifest, policy_set, stage

Breach = tuple[str, Callable[[Site], Any]]
"""The stage it begins from, and what is done there."""

NOTHING = digest_bytes(b"nothing")
WITNESS = generate_ed25519()
WITNESS_NAME = "witness.example/w1"


def by_olga(event: type[e.Ordered], model: type[o.Order], **fields: Any) -> Callable[[Site], Any]:
    """An order of somebody who may not give it."""
    return lambda site: site.ordered(event(policy=site.in_force), site.order(model, "olga", **fields))


def enrolled(site: Site, **fields: Any) -> None:
    order, documents = site.enrolment("eve", ("auditor",), **fields)
    site.two(e.PrincipalEnrolled(policy=site.in_force), order, documents)


def endorsed_alone(site: Site) -> None:
    order, documents = site.enrolment("eve", ("auditor",))
    site.two(e.PrincipalEnrolled(policy=site.in_force), order, documents, second="anna")


def unendorsed(site: Site, event: type[e.Ordered], model: type[o.Order], **fields: Any) -> None:
    site.ordered(event(policy=site.in_force), site.order(model, "anna", **fields))


def pended_by_olga(site: Site, event: type[e.Ordered], model: type[o.Order], **fields: Any) -> None:
    site.two(event(policy=site.in_force), site.order(model, "olga", **fields))


def refused(site: Site) -> None:
    order = site.order(o.RevokePrincipal, "olga", principal="rita")
    envelope = site.sign(order)
    body = e.OrderRefused(order=envelope.pae_digest, verb="train", reasons=("role",))
    site.add(body, documents={"order": encode_envelope(envelope)}, actor="olga")


def imported(site: Site) -> None:
    requested = site.ordered(e.ImportRequested(policy=site.in_force), site.dataset_order())
    body = site.dataset_imported(requested, dataset="clauses@5")
    site.add(body, documents={"manifest": manifest("clauses", 5, {"rows": b"rows"})})


def sealed(site: Site) -> None:
    body, documents = site.sealing("r-000001", walls={"tcp": "open"})
    site.add(body, documents=documents)


def cosigned(site: Site) -> None:
    body, documents = site.cosigned(WITNESS, WITNESS_NAME)
    site.add(body, documents=documents)


def rekeyed(site: Site, model: type[Any], by: str, name: str, **fields: Any) -> None:
    order, documents, _ = site.new_key(model, by, name, **fields)
    body = e.KeyEnrolled(policy=site.in_force)
    if model is o.RotateKey:
        site.ordered(body, order, documents=documents)
    else:
        site.two(body, order, documents)


def adopted(site: Site, **signed: str) -> None:
    policy = policy_set(reviewers=1, distinct_fields=1)
    order = site.order(o.AdoptPolicy, signed.pop("by", "anna"), policy=policy.digest)
    site.two(e.PolicyAdopted(policy=site.in_force), order, {"policy": encode_value(policy)}, **signed)


def log_key(site: Site, *, alone: bool = False, until_s: int = 600) -> None:
    key, old_until = generate_ed25519(), add_seconds(site.now, until_s)
    vkey = vkey_of(ORIGIN, key)
    order = site.order(o.RotateLogKey, "anna", log_key=vkey, old_until=old_until)
    (site.ordered if alone else site.two)(e.LogKeyRotated(policy=site.in_force), order)
    site.log, site.log_signers = key, {**site.log_signers, vkey: key}


def erased_at_once(site: Site, **rest: Any) -> None:
    commitment = next(key for key, text in site.state.texts.items() if text.signer == "anna")
    order = site.order(o.Erase, rest.pop("by", "anna"), commitment=commitment)
    if rest.pop("alone", False):
        site.ordered(e.TextErased(policy=site.in_force), order)
    else:
        site.two(e.TextErased(policy=site.in_force), order)
    site.disclosures = [text for text in site.disclosures if text.commitment != commitment]


def resumed_by_another(site: Site) -> None:
    run = site.request_run()
    site.add(site.started(run))
    site.add(site.checkpointed(run))
    site.add(e.RunFailed(run=run, code="x", message=site.text("why")))
    site.resume(run, "ines")


# One for each handler of an entry's type.
TYPES: dict[str, Breach] = {
    "session.opened": ("staffed", lambda s: s.add(
        e.SessionOpened(), documents={"session": encode_envelope(s.session("olga"))}, actor="anna")),
    "order.refused": ("staffed", refused),
    "order.pending": ("staffed", lambda s: s.pend(s.order(o.RevokePrincipal, "anna", principal="rita"))),
    "principal.enrolled": ("staffed", endorsed_alone),
    "principal.granted": ("staffed", lambda s: unendorsed(
        s, e.RoleGranted, o.Grant, principal="olga", role="reviewer:privacy")),
    "principal.revoked": ("staffed", by_olga(e.PrincipalRevoked, o.RevokePrincipal, principal="rita")),
    "policy.adopted": ("staffed", lambda s: adopted(s, second="anna")),
    "import.requested": ("staffed", lambda s: s.ordered(
        e.ImportRequested(policy=s.in_force), s.order(o.ImportBase, "audrey", base="b", format="gguf", source=NOTHING,
                                                      licence="MIT"))),
    "import.failed": ("staffed", lambda s: s.add(e.ImportFailed(order=NOTHING, code="x", message=s.text("why")))),
    "import.cancelled": ("staffed", lambda s: s.cancel_import(s.request_import(), "olga")),
    "base.imported": ("staffed", lambda s: s.add(
        e.BaseImported(order=NOTHING, base="b", facts={}, walls={}),
        documents={"manifest": manifest("b", 1, {"w": b"w"})})),
    "dataset.imported": ("imported", imported),
    "run.requested": ("imported", lambda s: s.ordered(
        e.RunRequested(policy=s.in_force, run="r-000001"), s.train_order("audrey"))),
    "run.started": ("imported", lambda s: s.add(s.started(s.request_run(), walls={"tcp": "open"}))),
    "run.finished": ("imported", lambda s: s.add(s.finished("r-000009"))),
    "run.failed": ("imported", lambda s: s.add(e.RunFailed(run="r-000009", code="x", message=s.text("why")))),
    "run.cancelled": ("trained", by_olga(e.RunCancelled, o.Cancel, run="r-000009")),
    "run.checkpointed": ("trained", lambda s: s.add(s.checkpointed("r-000001", 3))),
    "resume.requested": ("trained", lambda s: s.resume("r-000001")),
    "run.resumed": ("trained", lambda s: s.add(s.resumed("r-000001", 1))),
    "replay.requested": ("trained", lambda s: s.replay("r-000001", signer="olga")),
    "replay.finished": ("trained", lambda s: s.add(s.replayed(s.replay("r-000001"), verdict="different"))),
    "replay.failed": ("trained", lambda s: s.add(
        e.ReplayFailed(order=NOTHING, run="r-000001", code="x", message=s.text("why")))),
    "adapter.sealed": ("trained", sealed),
    "adapter.quarantined": ("sealed", lambda s: s.add(
        e.AdapterQuarantined(adapter="clauses@9", message=s.text("why")))),
    "base.quarantined": ("sealed", lambda s: s.add(e.BaseQuarantined(base="none", message=s.text("why")))),
    "review.recorded": ("sealed", lambda s: s.review("olga", "privacy")),
    "release.activated": ("sealed", lambda s: s.activate()),
    "release.rolled-back": ("released", lambda s: s.ordered(
        e.ReleaseRolledBack(policy=s.in_force), s.release_order(o.RollBack))),
    "adapter.revoked": ("sealed", lambda s: s.ordered(
        e.AdapterRevoked(policy=s.in_force), s.order(o.RevokeAdapter, "olga", **s.on_adapter()))),
    "artifacts.checked": ("sealed", lambda s: s.add(
        e.ArtifactsChecked(folders=1, size=1, changed=("adapter:clauses@1",)), outcome="failure")),
    "adapter.exported": ("released", lambda s: s.export(standing=b"{}")),
    "base.revoked": ("sealed", lambda s: s.revoke_base("olga")),
    "dataset.revoked": ("sealed", lambda s: s.revoke_dataset("olga")),
    "adapter.admitted": ("released", lambda s: s.add(s.admitted(approvals=()))),
    "adapter.loaded": ("released", lambda s: s.add(s.loaded(s.add(s.admitted()).index - 1))),
    "adapter.unloaded": ("released", lambda s: s.add(s.unloaded())),
    "request.admitted": ("serving", lambda s: s.add(s.request(2))),
    "request.finished": ("serving", lambda s: s.add(s.answered(9))),
    "key.enrolled": ("staffed", lambda s: rekeyed(s, o.RotateKey, "raul", "rita", old_until=s.now)),
    "key.revoked": ("staffed", lambda s: s.revoke_key("rita", signer="olga")),
    "tokens.revoked": ("staffed", lambda s: s.revoke_tokens(signer="olga", token="sha256:" + "1" * 64)),
    "log-key.rotated": ("staffed", lambda s: log_key(s, alone=True)),
    "text.erased": ("staffed", lambda s: erased_at_once(s, alone=True)),
    "hold.placed": ("staffed", lambda s: s.hold("unit:legal", signer="olga")),
    "hold.lifted": ("staffed", lambda s: s.ordered(
        e.HoldLifted(policy=s.in_force), s.order(o.LiftHold, "anna", subject="unit:legal"))),
    "checkpoint.cosigned": ("staffed", cosigned),
}  # fmt: skip

WITHOUT_A_RULE = {
    "heartbeat",
    "service.started",
    "service.stopped",
    "auth.refused",
    "admission.refused",
    "request.refused",
}
"""Their handlers check nothing beyond what every entry is held to."""

# One for each verb: an order that its invariant stands against.
VERBS: dict[type[o.Order], Breach] = {
    o.Enroll: ("staffed", lambda s: enrolled(s, signer="olga")),
    o.Grant: ("staffed", lambda s: pended_by_olga(
        s, e.RoleGranted, o.Grant, principal="olga", role="reviewer:privacy")),
    o.RevokePrincipal: TYPES["principal.revoked"],
    o.AdoptPolicy: ("staffed", lambda s: adopted(s, by="olga")),
    o.Endorse: ("staffed", endorsed_alone),
    o.ImportBase: TYPES["import.requested"],
    o.ImportDataset: ("imported", lambda s: s.ordered(e.ImportRequested(policy=s.in_force), s.dataset_order("audrey"))),
    o.Train: TYPES["run.requested"],
    o.Cancel: ("imported", lambda s: s.ordered(
        e.RunCancelled(policy=s.in_force), s.order(o.Cancel, "ines", run=s.request_run()))),
    o.CancelImport: TYPES["import.cancelled"],
    o.Resume: ("imported", resumed_by_another),
    o.Replay: TYPES["replay.requested"],
    o.Review: ("sealed", lambda s: s.review("olga", "privacy")),
    o.Activate: ("sealed", lambda s: s.activate()),
    o.RollBack: TYPES["release.rolled-back"],
    o.RevokeAdapter: TYPES["adapter.revoked"],
    o.ExportAdapter: ("released", lambda s: s.export("olga")),
    o.RevokeBase: TYPES["base.revoked"],
    o.RevokeDataset: TYPES["dataset.revoked"],
    o.ReplaceKey: ("staffed", lambda s: rekeyed(s, o.ReplaceKey, "olga", "rita")),
    o.RotateKey: ("staffed", lambda s: rekeyed(s, o.RotateKey, "raul", "rita", old_until=s.now)),
    o.RevokeKey: TYPES["key.revoked"],
    o.RevokeTokens: TYPES["tokens.revoked"],
    o.RotateLogKey: ("staffed", lambda s: log_key(s, until_s=300_000_000)),
    o.Erase: ("staffed", erased_at_once),
    o.PlaceHold: TYPES["hold.placed"],
    o.LiftHold: ("staffed", lambda s: s.lift("unit:legal")),
}  # fmt: skip


def policy_with_a_witness() -> Any:
    vkey = witness_vkey_of(WITNESS_NAME, WITNESS)
    return policy_set(witnesses=(vkey,), witness_quorum=1)


def made(breach: Breach) -> Site:
    """The site after the breach; the rule that it offends must be out."""
    name, act = breach
    site = stage(name)
    act(site)
    return site
