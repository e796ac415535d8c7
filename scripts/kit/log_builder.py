"""A site whose ledger is in memory: real keys, real envelopes, entries that the rules accept one by one.

Stages of a whole journey are built once and forked for each test, so that a test states only what it breaks.
"""

from __future__ import annotations

import base64
import copy
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from appliance.domain.actions.apply import apply, subjects_of
from appliance.domain.core.credentials import (
    PasskeyPossession,
    Possession,
    SessionStatement,
    TokenRequest,
    encode_credential,
)
from appliance.domain.core.decisions import APPROVALS, Conditions
from appliance.domain.core.entry import Entry, Event, Ordered, encode_entry, parse_entry
from appliance.domain.core.names import add_seconds, encode_value
from appliance.domain.core.order import Order, encode_order
from appliance.domain.core.policy import Parameters, PolicySet, parse_policy
from appliance.domain.core.records.data import BoundSet, LocalSet
from appliance.domain.core.state import State
from appliance.domain.data.artifacts import (
    BaseImported,
    BaseRevoked,
    DatasetImported,
    DatasetRevoked,
    RevokeBase,
    RevokeDataset,
    RevokeValidationSet,
    ValidationSetImported,
    ValidationSetRevoked,
)
from appliance.domain.data.imports import (
    CancelImport,
    ImportBase,
    ImportCancelled,
    ImportDataset,
    ImportRequested,
    ImportValidationSet,
)
from appliance.domain.data.kinds import SHIPPED
from appliance.domain.evaluation.basis import find_basis, find_sets, items_path
from appliance.domain.evaluation.gates import HELD_OUT, GatesFile, parse_gates
from appliance.domain.evaluation.items import ITEMS_FILE, encode_items, parse_items
from appliance.domain.evaluation.shipped.sets import digest_set
from appliance.domain.evaluation.verdict import TrainingOverlap, VerdictInputs, conclude
from appliance.domain.governance.countersignature import Countersign, OrderPending, OrderWithdrawn, WithdrawOrder
from appliance.domain.governance.delegations import Delegate, ReviewDelegated
from appliance.domain.governance.identities import BindIdentity, IdentityBound, IdentityUnbound, UnbindIdentity
from appliance.domain.governance.invitations import (
    EnrolledWithPasskey,
    EnrolWithPasskey,
    InvitationAccepted,
    InvitationWithdrawn,
    Invite,
    PersonInvited,
    WithdrawInvitation,
)
from appliance.domain.governance.keys import KeyEnrolled, KeyRevoked, NewKey, ReplaceKey, RevokeKey, RotateKey
from appliance.domain.governance.log_control import LogKeyRotated, RotateLogKey
from appliance.domain.governance.passkeys import EnrolPasskey, PasskeyEnrolled
from appliance.domain.governance.people import (
    Enrol,
    Enrolment,
    EnrolSeveral,
    Grant,
    PrincipalEnrolled,
    PrincipalRevoked,
    RemoveRole,
    RevokePrincipal,
    RoleGranted,
    RoleRemoved,
    join_proofs,
)
from appliance.domain.governance.policies import AdoptPolicy, PolicyAdopted
from appliance.domain.governance.post_quantum import AddPostQuantumKeys, PostQuantumKeys, PostQuantumKeysAdded
from appliance.domain.governance.recovery import AdministratorRecovered, RecoverAdministrator
from appliance.domain.governance.service import Administrator, Initialized
from appliance.domain.recipe.methods import METHODS
from appliance.domain.recipe.recipe import LINEAR_LAYERS, ResolvedRecipe
from appliance.domain.releases.activations import Activate, BreakGlass, EmergencyDeclared, ReleaseActivated
from appliance.domain.releases.adapters import SIGNATURE_ROLES, SLSA_PROVENANCE, AdapterSealed
from appliance.domain.releases.exports import AdapterExported, ExportAdapter, collect_rows
from appliance.domain.releases.findings import AddFinding, CloseFinding, FindingAdded, FindingClosed
from appliance.domain.releases.previews import (
    SamplesRequested,
    SamplesShown,
    TrialAnswer,
    TryAdapter,
    TryFinished,
    TryRequested,
    ViewSamples,
)
from appliance.domain.releases.requests import (
    ReleaseRequested,
    RequestRelease,
    RequestWithdrawn,
    WithdrawRequest,
    find_current_request,
)
from appliance.domain.releases.reviews import ReviewAdapter, ReviewRecorded
from appliance.domain.releases.suspensions import ReleaseResumed, ReleaseSuspended, ResumeRelease, SuspendRelease
from appliance.domain.retention import Erase, HoldLifted, HoldPlaced, LiftHold, PlaceHold, TextErased
from appliance.domain.runs.conditions import RunCheckpointed
from appliance.domain.runs.control import (
    AuthoriseRun,
    Cancel,
    RefuseRun,
    Resume,
    ResumeRequested,
    RunAuthorised,
    RunCancelled,
    RunRefused,
    RunResumed,
)
from appliance.domain.runs.replays import ReplayFailed, ReplayFinished, ReplayRequested, ReplayRun
from appliance.domain.runs.steps import StepRecord, encode_steps, record_step
from appliance.domain.runs.training import RunFailed, RunFinished, RunRequested, RunStarted, Train
from appliance.domain.serving.requests import RequestAdmitted, RequestFinished
from appliance.domain.serving.slots import AdapterAdmitted, AdapterLoaded, AdapterUnloaded
from appliance.domain.serving.tokens import (
    ApplicationEnrolled,
    EnrolApplication,
    RevokeTokens,
    TokenIssued,
    TokensRevoked,
)
from appliance.domain.witnesses import CheckpointCosigned
from appliance.formats.artifacts.manifest import (
    MANIFEST_PATH,
    Manifest,
    ManifestFile,
    PrivacyGuarantee,
    encode_manifest,
)
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import Disclosure, commit, disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64url
from appliance.formats.core.merkle import consistency_proof, hash_leaf, root_of
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.log.checkpoint import Checkpoint, cosign, sign_checkpoint, witness_vkey_of
from appliance.formats.log.export import hash_line
from appliance.formats.log.note import Note, encode_note, parse_note, vkey_of
from appliance.formats.log.trust import Trust
from appliance.formats.signatures.bundle import sign_model
from appliance.formats.signatures.dsse import Envelope, Statement, encode_envelope, encode_statement, sign_envelope
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer, Signer, generate_ed25519
from appliance.formats.signatures.ml_dsa import MlDsaSigner, generate_ml_dsa
from scripts.kit.authenticator import Authenticator, new_passkey
from scripts.kit.item_groups import Group, make_items

ORIGIN = "bank.example/log"
ISSUER = "https://login.bank.example"
START = "2026-01-15T09:30:00.000Z"
SANDBOX_PROBES = {"tcp": "refused", "keys": "refused"}
MACHINE = {"device": "cpu", "device_name": "AVX2", "threads": 2, "torch": "2.0"}
LAYERS = {"seccomp": True, "landlock": True}
PEOPLE = {
    "olga": ("operator",),
    "ines": ("operator",),
    "rita": ("reviewer:privacy",),
    "raul": ("reviewer:model-risk",),
    "legal": ("unit",),
    "sales": ("unit",),
    "otto": ("release-owner:legal",),
    "audrey": ("auditor",),
}

O = TypeVar("O", bound=Order)  # noqa: E741
K = TypeVar("K", bound=NewKey)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def policy_set(**parameters: Any) -> PolicySet:
    return PolicySet(name="default", parameters=Parameters(**parameters), cedar="", cedar_schema="")


def policy_digest(policy: PolicySet) -> str:
    """Return the digest of the policy's document as this build writes it."""
    return digest_bytes(encode_value(policy))


class LogBuilder:
    second_adapter_key: MlDsaSigner | None = None

    def __init__(
        self, *, single: bool = False, policy: PolicySet | bytes | None = None, post_quantum: bool = False
    ) -> None:
        """Begin a log.

        `policy` is the first set, or its document as some build wrote it. With `post_quantum`, the log has such keys
        from the first entry on.
        """
        self.log: Ed25519Signer = generate_ed25519()
        self.log_signers: dict[str, Signer] = {vkey_of(ORIGIN, self.log): self.log}
        self.adapter_key = EcdsaSigner(generate_private_key(SECP256R1()))
        self.keys: dict[str, Signer] = {"anna": generate_ed25519(), "ben": generate_ed25519()}
        self.policy_document = policy if isinstance(policy, bytes) else encode_value(policy or policy_set())
        self.policy = parse_policy(self.policy_document)
        self.state = State()
        self.now = START
        self.entries: list[bytes] = []
        self.documents: dict[str, bytes] = {}
        self.disclosures: list[Disclosure] = []
        self.items: dict[str, bytes] = {}
        """Items of the sealed adapters, by digest."""
        self._count = 0
        self._initialize(["anna"] if single else ["anna", "ben"], post_quantum=post_quantum)

    def fork(self) -> LogBuilder:
        """Return a copy that changes independently. Keys are shared."""
        other = copy.copy(self)
        other.state = copy.deepcopy(self.state)
        for name in ("keys", "entries", "documents", "disclosures", "items"):
            setattr(other, name, copy.copy(getattr(self, name)))
        return other

    # What an auditor holds.

    @property
    def trust(self) -> Trust:
        people = self.first.administrators
        return Trust(
            origin=ORIGIN,
            log_key=self.first.log_key,
            genesis=f"sha256:{hash_leaf(self.entries[0]).hex()}",
            administrators=tuple((p.name, p.keyid) for p in people),
            post_quantum_log_key=self.first.post_quantum and self.first.post_quantum.log_key,
        )

    @property
    def first(self) -> Initialized:
        return Initialized.model_validate_json(encode_canonical(parse_entry(self.entries[0]).body))

    def checkpoint(self, size: int | None = None) -> bytes:
        leaves = [hash_line(data) for data in self.entries[:size]]
        checkpoint = Checkpoint(ORIGIN, len(leaves), root_of(leaves))
        held = [self.log_signers.get(vkey) for vkey in self.state.site.signing_keys(self.now) if self.state.size]
        return sign_checkpoint(checkpoint, *(one for one in held if one is not None and one is not self.log), self.log)

    # Entries.

    def entry(
        self,
        event: Event,
        /,
        documents: Mapping[str, bytes] | None = None,
        signed: tuple[tuple[str, Order], ...] = (),
        **changes: Any,
    ) -> tuple[Entry, dict[str, bytes]]:
        """Return the entry that the service would append next, with `changes` (`bound`: the digests)."""
        bound = dict(documents or {})
        fields: dict[str, Any] = {
            "v": 1,
            "index": self.state.size,
            "time": self.now,
            "type": event.type,
            "actor": signed[0][1].signer if signed else event.actor or "service",
            "source": "unix",
            "subjects": subjects_of(event, signed),
            "outcome": event.outcomes[0],
            "prev": self.state.last_leaf,
            "documents": changes.pop("bound", {role: digest_bytes(data) for role, data in bound.items()}),
            "body": event.model_dump(mode="json"),
        }
        return parse_entry(encode_entry(Entry(**fields | changes))), bound

    def add(self, event: Event, /, **rest: Any) -> Entry:
        """Append an event, if the rules allow it."""
        entry, documents = self.entry(event, **rest)
        apply(self.state, entry, documents)
        self.state.keep()
        self.entries.append(entry.encoded)
        self.documents.update({digest_bytes(data): data for data in documents.values()})
        self.now = add_seconds(self.now, 1)
        return entry

    def _initialize(self, names: list[str], *, post_quantum: bool) -> None:
        people = tuple(
            Administrator(name=name, key=b64(self.keys[name].spki), keyid=self.keys[name].keyid) for name in names
        )
        body = Initialized(
            origin=ORIGIN,
            log_key=vkey_of(ORIGIN, self.log),
            adapter_key=b64(self.adapter_key.spki),
            post_quantum=PostQuantumKeys(**self.make_post_quantum_keys()) if post_quantum else None,
            administrators=people,
            single_administrator=len(names) == 1,
        )
        self.add(body, documents={"policy": self.policy_document})

    # Orders.

    def order(self, model: type[O], by: str, /, **fields: Any) -> O:
        """Return a new order. `fields` override the defaults of all orders."""
        self._count += 1
        defaults: dict[str, Any] = {
            "origin": ORIGIN,
            "signer": by,
            "nonce": hashlib.sha256(b"%d" % self._count).hexdigest()[:32],
            "issued_at": self.now,
            "expires_at": add_seconds(self.now, 600),
            "reason": None,
        }
        return model(**defaults | fields)

    def sign(self, order: Order, key: Signer | None = None) -> Envelope:
        return sign_envelope(encode_order(order), key or self.keys[order.signer])

    def text(self, text: str) -> str:
        """Return the commitment of a text, and disclose the text."""
        self._count += 1
        disclosure = disclose(text, hashlib.sha256(b"salt %d" % self._count).digest())
        self.disclosures.append(disclosure)
        return disclosure.commitment

    def ordered(self, event: Event, order: Order, *, key: Signer | None = None, **rest: Any) -> Entry:
        """Append an entry that one order causes."""
        envelope = self.sign(order, key)
        documents = {"order": encode_envelope(envelope), **rest.pop("documents", {})}
        return self.add(event, documents=documents, signed=((envelope.pae_digest, order),), **rest)

    @property
    def in_force(self) -> str:
        return self.state.site.policy

    def two(
        self, body: Ordered, order: Order, documents: Mapping[str, bytes] | None = None, second: str = "ben"
    ) -> Entry:
        """Append both entries of an order that two administrators sign."""
        envelope = self.pend(order, documents)
        return self.countersign(body, order, envelope, documents, second)

    def pend(self, order: Order, documents: Mapping[str, bytes] | None = None) -> Envelope:
        envelope = self.sign(order)
        self.add(
            OrderPending(policy=self.in_force),
            documents={"order": encode_envelope(envelope), **(documents or {})},
            signed=((envelope.pae_digest, order),),
        )
        return envelope

    def countersign(
        self,
        body: Ordered,
        order: Order,
        envelope: Envelope,
        documents: Mapping[str, bytes] | None = None,
        second: str = "ben",
    ) -> Entry:
        countersignature = self.order(Countersign, second, order=envelope.pae_digest)
        signed = self.sign(countersignature)
        return self.add(
            body,
            documents={
                "order": encode_envelope(signed),
                "countersigned": encode_envelope(envelope),
                **(documents or {}),
            },
            signed=((signed.pae_digest, countersignature), (envelope.pae_digest, order)),
        )

    def withdraw(self, pending: Envelope, by: str = "anna") -> Entry:
        order = self.order(WithdrawOrder, by, order=pending.pae_digest)
        return self.ordered(OrderWithdrawn(policy=self.in_force), order)

    # Governance.

    def possession(self, name: str, holder: Signer, /, **fields: Any) -> Envelope:
        statement = Possession(
            **{
                "origin": ORIGIN,
                "signer": name,
                "nonce": "0" * 32,
                "issued_at": self.now,
                "key": b64(holder.spki),
                "keyid": holder.keyid,
                **fields,
            }
        )
        return sign_envelope(encode_credential(statement), holder)

    def enrolment(self, name: str, roles: tuple[str, ...], **fields: Any) -> tuple[Enrol, dict[str, bytes]]:
        """Return the order and its documents. The key is the site's own for the name."""
        key = self.keys.setdefault(name, generate_ed25519())
        proof = self.possession(name, key)
        defaults: dict[str, Any] = {
            "principal": name,
            "printed_name": self.text(f"{name.title()} Example"),
            "roles": roles,
            "key": b64(key.spki),
            "keyid": key.keyid,
            "possession": proof.pae_digest,
        }
        return self.order(Enrol, "anna", **defaults | fields), {"possession": encode_envelope(proof)}

    def enrolments(
        self, people: Mapping[str, tuple[str, ...]], /, by: str = "anna"
    ) -> tuple[EnrolSeveral, dict[str, bytes]]:
        """One order for several (name to roles), and the document beside it."""
        made = [self.enrolment(name, roles) for name, roles in people.items()]
        members = [{name: getattr(order, name) for name in Enrolment.model_fields} for order, _ in made]
        order = self.order(EnrolSeveral, by, people=tuple(Enrolment(**one) for one in members))
        return order, {"possessions": join_proofs(documents["possession"] for _, documents in made)}

    def enrol(self, name: str, *roles: str) -> Entry:
        order, documents = self.enrolment(name, roles)
        return self.two(PrincipalEnrolled(policy=self.in_force), order, documents)

    def recovery_order(
        self, name: str, by: str = "vault", **fields: Any
    ) -> tuple[RecoverAdministrator, dict[str, bytes]]:
        """Return a recovery key's order to enrol an administrator, valid as long as policy allows, and its document."""
        enrolment, documents = self.enrolment(name, ("administrator",))
        names = ("principal", "key", "keyid", "possession", "printed_name")
        defaults: dict[str, Any] = {name: getattr(enrolment, name) for name in names}
        defaults["expires_at"] = add_seconds(self.now, self.state.parameters.order_lifetime_s)
        return self.order(RecoverAdministrator, by, **defaults | fields), documents

    def recover(self, name: str, by: str = "vault", second: str = "ben", waits_s: int | None = None) -> Entry:
        """Add both entries of a recovery, with half of an order's longest lifetime between them."""
        order, documents = self.recovery_order(name, by)
        envelope = self.pend(order, documents)
        waits_s = self.state.parameters.order_lifetime_s // 2 if waits_s is None else waits_s
        self.now = add_seconds(self.now, waits_s)
        return self.countersign(AdministratorRecovered(policy=self.in_force), order, envelope, documents, second)

    def adopt(self, policy: PolicySet) -> Entry:
        order = self.order(AdoptPolicy, "anna", policy=policy_digest(policy))
        body = PolicyAdopted(policy=self.in_force)
        return self.two(body, order, {"policy": encode_value(policy)})

    def grant(self, name: str, role: str) -> Entry:
        return self.two(RoleGranted(policy=self.in_force), self.order(Grant, "anna", principal=name, role=role))

    def remove_role(self, name: str, role: str) -> Entry:
        return self.two(RoleRemoved(policy=self.in_force), self.order(RemoveRole, "anna", principal=name, role=role))

    def bind(self, name: str, subject: str = "", issuer: str = ISSUER, second: str = "ben") -> Entry:
        """Bind a person to a subject, by default `sub-NAME`."""
        order = self.order(BindIdentity, "anna", principal=name, issuer=issuer, subject=subject or f"sub-{name}")
        return self.two(IdentityBound(policy=self.in_force), order, second=second)

    def unbind(self, name: str, signer: str = "anna") -> Entry:
        order = self.order(UnbindIdentity, signer, principal=name)
        return self.ordered(IdentityUnbound(policy=self.in_force), order)

    def revoke(self, name: str, signer: str = "anna") -> Entry:
        order = self.order(RevokePrincipal, signer, principal=name)
        return self.ordered(PrincipalRevoked(policy=self.in_force), order)

    def new_key(self, model: type[K], by: str, name: str, **fields: Any) -> tuple[K, dict[str, bytes], Signer]:
        """Return an order that enrols another key for the name, its documents, and the key."""
        key = generate_ed25519()
        proof = self.possession(name, key)
        defaults: dict[str, Any] = {
            "principal": name,
            "key": b64(key.spki),
            "keyid": key.keyid,
            "possession": proof.pae_digest,
        }
        return self.order(model, by, **defaults | fields), {"possession": encode_envelope(proof)}, key

    def rotate(self, name: str, old_until: str) -> Signer:
        """Rotate a person's key. The site still signs with the old key until a test changes that."""
        order, documents, key = self.new_key(RotateKey, name, name, old_until=old_until)
        self.ordered(KeyEnrolled(policy=self.in_force), order, documents=documents)
        return key

    def replace(self, name: str) -> Signer:
        order, documents, key = self.new_key(ReplaceKey, "anna", name)
        self.two(KeyEnrolled(policy=self.in_force), order, documents)
        return key

    def passkey_proof(self, name: str, passkey: Authenticator, /, **fields: Any) -> tuple[dict[str, Any], Envelope]:
        """Return the fields that describe the passkey, named `blue`, and its proof of possession."""
        described: dict[str, Any] = {
            "key": b64(passkey.spki),
            "keyid": passkey.keyid,
            "passkey": "blue",
            "credential_id": encode_base64url(passkey.credential_id),
            "rp_id": passkey.rp_id,
            "origins": (passkey.origin,),
            "backup_eligible": passkey.is_backup_eligible,
            **fields,
        }
        header = {"origin": ORIGIN, "signer": name, "nonce": "0" * 32, "issued_at": self.now}
        return described, sign_envelope(encode_credential(PasskeyPossession(**header, **described)), passkey)

    def passkey_order(
        self, name: str, passkey: Authenticator, by: str = "anna", /, **fields: Any
    ) -> tuple[EnrolPasskey, dict[str, bytes]]:
        """Return the order that enrols the passkey, and the document beside it. Both contain `fields`."""
        described, proof = self.passkey_proof(name, passkey, **fields)
        order = self.order(EnrolPasskey, by, principal=name, possession=proof.pae_digest, **described)
        return order, {"possession": encode_envelope(proof)}

    def invite(self, name: str, *roles: str, by: str = "anna", lasts_s: int = 1_800, **fields: Any) -> Entry:
        """Record an invitation."""
        fields = {"secret": digest_bytes(name.encode()), "until": add_seconds(self.now, lasts_s)} | fields
        printed_name = self.text(f"{name.title()} Example")
        order = self.order(Invite, by, principal=name, printed_name=printed_name, roles=roles, **fields)
        return self.ordered(PersonInvited(policy=self.in_force), order)

    def accept_invitation(self, name: str, passkey: Authenticator, /, **fields: Any) -> Entry:
        """Record the proof of an invited person's passkey."""
        _, proof = self.passkey_proof(name, passkey, **fields)
        body = InvitationAccepted(principal=name, keyid=passkey.keyid)
        return self.add(body, documents={"possession": encode_envelope(proof)})

    def withdraw_invitation(self, name: str, by: str = "ben") -> Entry:
        """Record the withdrawal of an invitation."""
        order = self.order(WithdrawInvitation, by, principal=name)
        return self.ordered(InvitationWithdrawn(policy=self.in_force), order)

    def enrolment_with_passkey(
        self, name: str, passkey: Authenticator, roles: tuple[str, ...], by: str = "anna"
    ) -> tuple[EnrolWithPasskey, dict[str, bytes]]:
        """Return the order to enrol a person whose first key is a passkey, and its documents."""
        described, proof = self.passkey_proof(name, passkey)
        described |= {"printed_name": self.text(f"{name.title()} Example"), "roles": roles}
        order = self.order(EnrolWithPasskey, by, principal=name, possession=proof.pae_digest, **described)
        return order, {"possession": encode_envelope(proof)}

    def enrol_with_passkey(
        self, name: str, passkey: Authenticator, *roles: str, by: str = "anna", second: str = "ben"
    ) -> Entry:
        """Enrol a person whose first key is a passkey."""
        order, documents = self.enrolment_with_passkey(name, passkey, roles, by)
        return self.two(EnrolledWithPasskey(policy=self.in_force), order, documents, second=second)

    def enrol_passkey(self, name: str, passkey: Authenticator | None = None, /, **fields: Any) -> Authenticator:
        """Enrol a passkey. The person still signs with their key file until a test changes that."""
        passkey = passkey or new_passkey()
        order, documents = self.passkey_order(name, passkey, **fields)
        self.two(PasskeyEnrolled(policy=self.in_force), order, documents)
        return passkey

    def revoke_key(self, name: str, since: int | None = None, signer: str = "anna") -> Entry:
        order = self.order(RevokeKey, signer, principal=name, keyid=self.keys[name].keyid, since=since)
        return self.ordered(KeyRevoked(policy=self.in_force), order)

    def revoke_tokens(self, unit: str = "legal", signer: str = "anna", **fields: Any) -> Entry:
        defaults = {"token": None, "issued_before": None, "application": None}
        order = self.order(RevokeTokens, signer, unit=unit, **defaults | fields)
        return self.ordered(TokensRevoked(policy=self.in_force), order)

    def application_order(
        self, unit: str = "legal", **fields: Any
    ) -> tuple[EnrolApplication, dict[str, bytes], Ed25519Signer]:
        """Return the unit's order for an application `indexer`, its documents, and the application's key."""
        key = fields.pop("held", None) or generate_ed25519()
        proof = self.possession(unit, key)
        defaults: dict[str, Any] = {
            "principal": unit,
            "application": "indexer",
            "served_models": ("labels",),
            "key": b64(key.spki),
            "keyid": key.keyid,
            "possession": proof.pae_digest,
        }
        by = fields.pop("by", unit)
        return self.order(EnrolApplication, by, **defaults | fields), {"possession": encode_envelope(proof)}, key

    def enrol_application(self, unit: str = "legal", **fields: Any) -> Ed25519Signer:
        order, documents, key = self.application_order(unit, **fields)
        self.ordered(ApplicationEnrolled(policy=self.in_force), order, documents=documents)
        return key

    def token_request(self, key: Signer, unit: str = "legal", **fields: Any) -> Envelope:
        """Return the statement that an application signs for a token."""
        self._count += 1
        defaults: dict[str, Any] = {
            "origin": ORIGIN,
            "signer": unit,
            "application": "indexer",
            "nonce": hashlib.sha256(b"request %d" % self._count).hexdigest()[:32],
            "issued_at": self.now,
            "expires_at": add_seconds(self.now, 600),
        }
        return sign_envelope(encode_credential(TokenRequest(**defaults | fields)), key)

    def issue(self, request: Envelope, **fields: Any) -> str:
        """Issue a token for the request, and return its digest."""
        self._count += 1
        digest = digest_bytes(b"token %d" % self._count)
        body = TokenIssued(**{"unit": "legal", "application": "indexer", "token": digest, **fields})
        self.add(body, documents={"token-request": encode_envelope(request)})
        return digest

    def rotate_log_key(self, old_until: str | None = None) -> Ed25519Signer:
        """Rotate the log's key, with which the site signs checkpoints from then on."""
        key = generate_ed25519()
        order = self.order(
            RotateLogKey, "anna", log_key=vkey_of(ORIGIN, key), old_until=self.now if old_until is None else old_until
        )
        self.two(LogKeyRotated(policy=self.in_force), order)
        self.log = key
        self.log_signers = {**self.log_signers, vkey_of(ORIGIN, key): key}
        return key

    def make_post_quantum_keys(self) -> dict[str, str]:
        """Return the values of new keys, which sign once the log has them."""
        log, self.second_adapter_key = generate_ml_dsa(), generate_ml_dsa()
        vkey = vkey_of(ORIGIN, log)
        self.log_signers = {**self.log_signers, vkey: log}
        return {"log_key": vkey, "adapter_key": b64(self.second_adapter_key.spki)}

    def add_post_quantum_keys(self) -> Entry:
        order = self.order(AddPostQuantumKeys, "anna", **self.make_post_quantum_keys())
        return self.two(PostQuantumKeysAdded(policy=self.in_force), order)

    def erase(self, commitment: str) -> Entry:
        return self.two(TextErased(policy=self.in_force), self.order(Erase, "anna", commitment=commitment))

    def hold(self, subject: str, signer: str = "audrey") -> Entry:
        return self.ordered(HoldPlaced(policy=self.in_force), self.order(PlaceHold, signer, subject=subject))

    def lift(self, subject: str) -> Entry:
        return self.two(HoldLifted(policy=self.in_force), self.order(LiftHold, "anna", subject=subject))

    def cosigned(
        self, witness: Signer, name: str, size: int | None = None, *, now: str | None = None, **fields: Any
    ) -> tuple[Any, dict[str, bytes]]:
        """Return the event of a witness's cosignature over the first `size` entries, and its document.

        `now` is the time by the witness's clock.
        """
        size = self.state.size if size is None else size
        note = parse_note(self.checkpoint(size))
        time_s = int(parse_time(now or self.now).timestamp())
        note = Note(note.text, (*note.signatures, cosign(note, name, witness, time_s)))
        leaves = [hash_line(data) for data in self.entries]

        def node(level: int, index: int) -> bytes:
            return root_of(leaves[index << level : (index + 1) << level])

        defaults: dict[str, Any] = {
            "witness": name,
            "size": size,
            "time": encode_time(datetime.fromtimestamp(time_s, UTC)),
            "proof": tuple(b64(step) for step in consistency_proof(size, self.state.size, node)),
        }
        return CheckpointCosigned(**defaults | fields), {"note": encode_note(note)}

    def session(self, signer: str, **fields: Any) -> Envelope:
        defaults: dict[str, Any] = {
            "origin": ORIGIN,
            "signer": signer,
            "nonce": "0" * 32,
            "issued_at": self.now,
            "expires_at": add_seconds(self.now, 600),
        }
        return sign_envelope(encode_credential(SessionStatement(**defaults | fields)), self.keys[signer])

    # Making.

    def request_import(self, name: str = "another", signer: str = "ines") -> Entry:
        order = self.order(
            ImportBase, signer, base=name, format="gguf", source=digest_bytes(b"gguf"), licence="Apache-2.0"
        )
        return self.ordered(ImportRequested(policy=self.in_force), order)

    def cancel_import(self, requested: Entry, signer: str = "ines") -> Entry:
        order = self.order(CancelImport, signer, order=order_of(requested))
        return self.ordered(ImportCancelled(policy=self.in_force), order)

    def import_base(self, name: str = "smollm2", signer: str = "ines") -> Entry:
        requested = self.request_import(name, signer)
        return self.add(self.base_imported(requested, name), documents={"manifest": manifest(name, 1, {"w": b"base"})})

    def base_imported(self, requested: Entry, name: str = "smollm2", **fields: Any) -> BaseImported:
        defaults: dict[str, Any] = {
            "order": order_of(requested),
            "base": name,
            "facts": {"parameters": 1},
            "sandbox_probes": SANDBOX_PROBES,
        }
        return BaseImported(**defaults | fields)

    def dataset_order(self, signer: str = "ines", **fields: Any) -> ImportDataset:
        defaults: dict[str, Any] = {
            "dataset": "clauses",
            "format": "csv",
            "file": digest_bytes(b"csv"),
            "dataset_kind": "classification",
            "columns": {"text": "text", "label": "label"},
            "labels": (),
            "instruction": self.text("Name the clause."),
            "base": "smollm2",
            "base_digest": self.base_digest,
            "seed": 1,
            "held_out": "0.2",
            "owner": self.text("Legal Example"),
            "licence": "CC-BY-4.0",
            "classification": "internal",
        }
        return self.order(ImportDataset, signer, **defaults | fields)

    @property
    def base_digest(self) -> str:
        base = self.state.bases.get("smollm2")
        return digest_bytes(b"no base") if base is None else base.digest

    def import_dataset(self, **fields: Any) -> Entry:
        measured = {"facts": fields.pop("facts")} if "facts" in fields else {}
        requested = self.ordered(ImportRequested(policy=self.in_force), self.dataset_order(**fields))
        return self.add(
            self.dataset_imported(requested, **measured),
            documents={"manifest": manifest("clauses", 1, {"rows": b"rows"})},
        )

    def dataset_imported(self, requested: Entry, **fields: Any) -> DatasetImported:
        defaults: dict[str, Any] = {
            "order": order_of(requested),
            "dataset": "clauses@1",
            "base": "smollm2",
            "root": digest_bytes(b"root"),
            "facts": {"rows": 1},
            "sandbox_probes": SANDBOX_PROBES,
        }
        return DatasetImported(**defaults | fields)

    def set_order(self, signer: str = "vera", **fields: Any) -> ImportValidationSet:
        """Return the order to import a validation set `exam`, which is neither blind nor final by default."""
        defaults: dict[str, Any] = {
            "validation_set": "exam",
            "format": "csv",
            "file": digest_bytes(b"exam"),
            "dataset_kind": "classification",
            "columns": {"text": "text", "label": "label"},
            "labels": (),
            "instruction": self.text("Name the clause."),
            "base": "smollm2",
            "base_digest": self.base_digest,
            "blind": False,
            "final": False,
            "owner": self.text("Legal Example"),
            "licence": "CC-BY-4.0",
            "classification": "internal",
        }
        return self.order(ImportValidationSet, signer, **defaults | fields)

    def import_set(self, version: int = 1, **fields: Any) -> Entry:
        """Import a validation set by a validator, who is enrolled if there is none."""
        if "vera" not in self.state.principals:
            self.enrol("vera", "validator")
        order = self.set_order(**fields)
        requested = self.ordered(ImportRequested(policy=self.in_force), order)
        listed, measured = self.lay_set(order, version)
        body = self.set_imported(requested, validation_set=f"{order.validation_set}@{version}", **measured)
        return self.add(body, documents={"manifest": listed})

    def lay_set(self, order: ImportValidationSet, version: int) -> tuple[bytes, dict[str, Any]]:
        """Return the manifest of the set's folder, and its measures."""
        return manifest(order.validation_set, version, {"rows": order.file.encode()}), {}

    def set_imported(self, requested: Entry, **fields: Any) -> ValidationSetImported:
        defaults: dict[str, Any] = {
            "order": order_of(requested),
            "validation_set": "exam@1",
            "base": "smollm2",
            "root": digest_bytes(b"root"),
            "facts": {"dataset_kind": "classification"},
            "sandbox_probes": SANDBOX_PROBES,
        }
        return ValidationSetImported(**defaults | fields)

    def revoke_set(self, by: str = "vera", name: str = "exam", version: int = 1, **fields: Any) -> Entry:
        row = self.state.validation_sets.get(f"{name}@{version}")
        digest = digest_bytes(b"no set") if row is None else row.digest
        defaults: dict[str, Any] = {"validation_set": name, "version": version, "digest": digest}
        order = self.order(RevokeValidationSet, by, **defaults | fields)
        return self.ordered(ValidationSetRevoked(policy=self.in_force), order)

    def train_order(self, signer: str = "olga", recipe: Mapping[str, Any] | None = None, **fields: Any) -> Train:
        resolved = ResolvedRecipe(**RECIPE | dict(recipe or {}))
        dataset = self.state.datasets.get(resolved.dataset)
        defaults: dict[str, Any] = {
            "recipe": resolved,
            "base_digest": self.base_digest,
            "dataset_digest": digest_bytes(b"none") if dataset is None else dataset.digest,
        }
        return self.order(Train, signer, **defaults | fields)

    def request_run(
        self,
        signer: str = "olga",
        recipe: Mapping[str, Any] | None = None,
        gates: GatesFile | None = None,
        **fields: Any,
    ) -> str:
        """With the newest version of each validation set that the gates name, and the sets of no log."""
        run = f"r-{len(self.state.runs) + 1:06d}"
        document = None if gates is None else encode_value(gates)
        names = () if gates is None else gates.validation_sets
        found = find_sets(self.state, names, self.base_digest).values()
        sets = tuple(BoundSet(validation_set=f"{one.name}@{one.version}", digest=one.digest) for one in found)
        local = tuple(
            LocalSet(set=name, digest=digest_set(name) if name in SHIPPED else digest_bytes(name.encode()))
            for name in (() if gates is None else gates.local_sets)
        )
        bound = {"gates": None if document is None else digest_bytes(document), "sets": sets, "local_sets": local}
        order = self.train_order(signer, recipe, **bound | fields)
        beside = {} if document is None else {"gates": document}
        self.ordered(RunRequested(policy=self.in_force, run=run), order, documents=beside)
        return run

    def authorisation_order(
        self, run: str, by: str = "rita", model: type[AuthoriseRun | RefuseRun] = AuthoriseRun, **fields: Any
    ) -> AuthoriseRun | RefuseRun:
        """Return the second person's order. A refusal has a reason."""
        row = self.state.runs.get(run)
        defaults: dict[str, Any] = {
            "run": run,
            "order": digest_bytes(b"none") if row is None else row.order,
            "reason": self.text("Because.") if model is RefuseRun else None,
        }
        return self.order(model, by, **defaults | fields)

    def authorise(self, run: str, by: str = "rita", **fields: Any) -> Entry:
        return self.ordered(RunAuthorised(policy=self.in_force), self.authorisation_order(run, by, **fields))

    def refuse_run(self, run: str, by: str = "rita", **fields: Any) -> Entry:
        order = self.authorisation_order(run, by, RefuseRun, **fields)
        return self.ordered(RunRefused(policy=self.in_force), order)

    def started(self, run: str, **fields: Any) -> RunStarted:
        defaults: dict[str, Any] = {
            "run": run,
            "layers": LAYERS,
            "accepted_missing": (),
            "sandbox_probes": SANDBOX_PROBES,
            "job": None,
            "secret": None,
        }
        return RunStarted(**defaults | fields)

    def checkpointed(self, run: str, step: int = 2, **fields: Any) -> RunCheckpointed:
        defaults: dict[str, Any] = {
            "run": run,
            "step": step,
            "checkpoint": digest_bytes(b"state %d" % step),
            "seconds": "1.0",
            "machine": MACHINE,
        }
        return RunCheckpointed(**defaults | fields)

    def resumed(self, run: str, step: int = 2, **fields: Any) -> RunResumed:
        defaults = self.started(run).model_dump(exclude={"secret"})
        defaults |= {"step": step, "checkpoint": digest_bytes(b"state %d" % step)}
        return RunResumed(**defaults | fields)

    def resume(self, run: str, signer: str = "olga") -> Entry:
        return self.ordered(ResumeRequested(policy=self.in_force), self.order(Resume, signer, run=run))

    def cancel_run(self, run: str, signer: str = "olga", reason: str | None = None) -> Entry:
        order = self.order(Cancel, signer, run=run, reason=None if reason is None else self.text(reason))
        return self.ordered(RunCancelled(policy=self.in_force), order)

    def replay(self, run: str, from_step: int = 0, to_step: int = 2, signer: str = "audrey") -> Entry:
        order = self.order(ReplayRun, signer, run=run, from_step=from_step, to_step=to_step)
        return self.ordered(ReplayRequested(policy=self.in_force), order)

    def replayed(self, requested: Entry, run: str = "r-000001", **fields: Any) -> ReplayFinished:
        """Add the replay of the steps up to the run's last training checkpoint."""
        row = self.state.runs.get(run)
        step = 2 if row is None else row.step
        digest = digest_bytes(b"state %d" % step)
        defaults: dict[str, Any] = {
            "order": order_of(requested),
            "run": run,
            "from_step": 0,
            "to_step": step,
            "expected": digest,
            "got": digest,
            "verdict": "identical",
            "largest_difference": "0.0",
            "machine": MACHINE,
            "sandbox_probes": SANDBOX_PROBES,
        }
        return ReplayFinished(**defaults | fields)

    def finished(self, run: str, **fields: Any) -> RunFinished:
        steps = fields.get("steps", self._planned_steps(run))
        defaults: dict[str, Any] = {
            "run": run,
            "weights": digest_bytes(b"weights"),
            "weights_step": steps,
            "record": digest_bytes(STEPS),
            "validation": (),
            "planned_steps": steps,
            "steps": steps,
            "trained_tokens": 10,
            "seconds": "1.5",
            "peak_bytes": 3_000_000,
            "final_loss": "0.25",
        }
        return RunFinished(**defaults | fields)

    def train(
        self, recipe: Mapping[str, Any] | None = None, gates: GatesFile | None = None, tier: str | None = None
    ) -> str:
        """Train a run up to its seal. If it waits for a second person, rita authorises it."""
        run = self.request_run(recipe=recipe, gates=gates, tier=tier)
        row = self.state.runs.get(run)
        if row is not None and row.status == "waiting":
            self.authorise(run)
        self.add(self.started(run))
        self.add(self.checkpointed(run, self._planned_steps(run)))
        self.add(self.finished(run))
        return run

    def _planned_steps(self, run: str) -> int:
        """Return the steps of the run's recipe, or 2 if the dataset's facts count no rows."""
        row = self.state.runs.get(run)
        return 2 if row is None or row.planned_steps is None else row.planned_steps

    def sealing(self, run: str, version: int = 1, **fields: Any) -> tuple[AdapterSealed, dict[str, bytes]]:
        """Return the body and its documents.

        `files` (None removes one) and `name` change the sealed folder. `items` are the evaluated items, `sets` those on
        other sets by file, `metrics` the measures on them, and `verdict` changes the appliance's verdict.
        """
        row, own, sets = self.state.runs.get(run), fields.pop("items", ITEMS), fields.pop("sets", {})
        evaluated = self.evaluate(run, own, sets, fields.get("metrics", {})) | fields.pop("verdict", {})
        items = {ITEMS_FILE: own, **sets}
        weights = METHODS["qlora" if row is None else row.method].weights
        files: dict[str, Any] = {weights: b"weights", "recipe.json": b"{}", "steps.jsonl": STEPS, **items}
        files |= {f"{role}.json": data for role, data in evaluated.items()} | fields.pop("files", {})
        files = {path: data for path, data in files.items() if data is not None}
        self.items |= {digest_bytes(data): data for data in items.values()}
        listed = manifest(fields.pop("name", "clauses"), version, files, fields.pop("privacy", None))
        signed = {path: digest_bytes(data) for path, data in files.items()} | {MANIFEST_PATH: digest_bytes(listed)}
        key = fields.pop("key", self.adapter_key)
        keys: list[Signer] = [key, *([] if self.second_adapter_key is None else [self.second_adapter_key])]
        documents = {
            "manifest": listed,
            **{role: sign_model(signed, "clauses", key) for role, key in zip(SIGNATURE_ROLES, keys, strict=False)},
            "provenance": encode_envelope(sign_envelope(encode_statement(self.provenance(run, listed)), key)),
            **evaluated,
        }
        defaults: dict[str, Any] = {
            "run": run,
            "adapter": f"clauses@{version}",
            "metrics": {},
            "sandbox_probes": SANDBOX_PROBES,
        }
        return AdapterSealed(**defaults | fields), documents

    def evaluate(
        self, run: str, items: bytes, sets: Mapping[str, bytes] | None = None, metrics: Mapping[str, Any] | None = None
    ) -> dict[str, bytes]:
        """Gates and verdict of a run that is sealed next; nothing where its order bound no gates. `sets`: the items of
        other sets, by file; `metrics`: what was counted on them."""
        row = self.state.runs.get(run)
        if row is None or row.gates is None:
            return {}
        document, files = self.documents[row.gates], {ITEMS_FILE: items, **(sets or {})}
        basis = find_basis(self.state, row, gates := parse_gates(document))
        others = {
            key: None if one is None else parse_items(self.items[one.digest] if one.digest else files[one.path])
            for key, one in basis.others.items()
            if one is None or one.digest or one.path in files
        }
        own = {name: parse_items(files[path]) for name in basis.sets if (path := items_path(name)) in files}
        counted = {
            name: TrainingOverlap(found["duplicates"], found["near_duplicates"])
            for name, found in (metrics or {}).get("sets", {}).items()
            if "duplicates" in found
        }
        evidence = VerdictInputs(own, others, basis.evaluated_before, basis.named_before, counted)
        verdict = conclude(gates, own[HELD_OUT], evidence).verdict
        assert verdict is not None
        return {"gates": document, "verdict": verdict}

    def provenance(self, run: str, listed: bytes, **changes: str) -> Statement:
        """SLSA provenance of a run; `changes` are other digests of its dependencies."""
        row = self.state.runs.get(run)
        assert row is not None
        inputs = {f"base:{row.base}": row.base_digest, f"dataset:{row.dataset}": row.dataset_digest, "order": row.order}
        inputs |= {f"validation-set:{bound.validation_set}": bound.digest for bound in row.sets}
        inputs |= {f"local-set:{bound.set}": bound.digest for bound in row.local_sets}
        resources = [
            {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
            for name, digest in (inputs | changes).items()
        ]
        predicate = {"buildDefinition": {"resolvedDependencies": resources}, "runDetails": {}}
        return Statement((("clauses", digest_bytes(listed)),), SLSA_PROVENANCE, predicate)

    def seal(self, run: str, version: int = 1, **fields: Any) -> Entry:
        body, documents = self.sealing(run, version, **fields)
        return self.add(body, documents=documents)

    def on_adapter(self, version: int = 1) -> dict[str, Any]:
        row = self.state.adapters.get(f"clauses@{version}")
        return {
            "adapter": "clauses",
            "version": version,
            "manifest": digest_bytes(b"none") if row is None else row.manifest,
        }

    def review_order(self, signer: str, field: str, version: int = 1, **fields: Any) -> ReviewAdapter:
        """Return a review of the valid request, by default an approval for a day."""
        decision = fields.get("decision", "approve")
        approves, usual = decision in APPROVALS, decision in ("approve", "reject")
        row = self.state.adapters.get(f"clauses@{version}")
        request = None if row is None else find_current_request(self.state, row, fields.get("unit", "legal"))
        defaults: dict[str, Any] = {
            **self.on_adapter(version),
            "decision": "approve",
            "unit": "legal",
            "review_function": field,
            "meaning": self.text("I have examined this adapter."),
            "valid_until": add_seconds(self.now, 86_400) if approves else None,
            "request": None if request is None else request.order,
            "conditions": None,
            "on_behalf_of": None,
            "opened": (),
            "reason": self.text("Because.") if request is not None or not usual else None,
        }
        return self.order(ReviewAdapter, signer, **defaults | fields)

    def review(self, signer: str, field: str, version: int = 1, **fields: Any) -> Entry:
        order = self.review_order(signer, field, version, **fields)
        return self.ordered(ReviewRecorded(policy=self.in_force), order)

    def request_order(self, by: str = "olga", version: int = 1, **fields: Any) -> RequestRelease:
        row = self.state.adapters.get(f"clauses@{version}")
        defaults: dict[str, Any] = {
            **self.on_adapter(version),
            "unit": "legal",
            "exposure": "internal",
            "purpose": "assist",
            "tier": "low",
            "verdict": None if row is None else row.verdict,
            "intended_use": self.text("Sorting of clauses."),
            "limits": self.text("Not for advice."),
            "conditions": None,
        }
        return self.order(RequestRelease, by, **defaults | fields)

    def request_release(self, by: str = "olga", **fields: Any) -> Entry:
        return self.ordered(ReleaseRequested(policy=self.in_force), self.request_order(by, **fields))

    def withdrawal_order(self, by: str = "olga", version: int = 1, **fields: Any) -> WithdrawRequest:
        row = self.state.adapters.get(f"clauses@{version}")
        request = None if row is None else find_current_request(self.state, row, fields.get("unit", "legal"))
        defaults: dict[str, Any] = {
            **self.on_adapter(version),
            "unit": "legal",
            "request": digest_bytes(b"none") if request is None else request.order,
        }
        return self.order(WithdrawRequest, by, **defaults | fields)

    def withdraw_request(self, by: str = "olga", **fields: Any) -> Entry:
        return self.ordered(RequestWithdrawn(policy=self.in_force), self.withdrawal_order(by, **fields))

    def finding_order(self, by: str = "rita", version: int = 1, **fields: Any) -> AddFinding:
        """Return a reviewer's finding, by default one that blocks."""
        defaults: dict[str, Any] = {
            **self.on_adapter(version),
            "kind": "issue",
            "severity": "high",
            "blocks": True,
            "accepts_verdict": False,
            "review_function": "privacy",
            "owner": "olga",
            "due": add_seconds(self.now, 86_400),
            "finding": self.text("A name is answered."),
            "remedy": self.text("Train without names."),
            "retest": self.text("Ask for names again."),
        }
        return self.order(AddFinding, by, **defaults | fields)

    def find(self, by: str = "rita", **fields: Any) -> Entry:
        return self.ordered(FindingAdded(policy=self.in_force), self.finding_order(by, **fields))

    def closing_order(self, entry: int, by: str = "rita", version: int = 1) -> CloseFinding:
        evidence = self.text("No name is answered.")
        return self.order(CloseFinding, by, **self.on_adapter(version), entry=entry, evidence=evidence)

    def close(self, entry: int, by: str = "rita") -> Entry:
        return self.ordered(FindingClosed(policy=self.in_force), self.closing_order(entry, by))

    def suspension_order(self, by: str = "rita", version: int = 1, **fields: Any) -> SuspendRelease:
        """For all served models of legal, by default under the signer's first role."""
        person = self.state.principals.get(by)
        defaults: dict[str, Any] = {
            **self.on_adapter(version),
            "unit": "legal",
            "served_model": None,
            "role": "auditor" if person is None else person.roles[0],
            "reason": self.text("A response names a client."),
        }
        return self.order(SuspendRelease, by, **defaults | fields)

    def suspend(self, by: str = "rita", **fields: Any) -> Entry:
        return self.ordered(ReleaseSuspended(policy=self.in_force), self.suspension_order(by, **fields))

    def resumption_order(self, entry: int, by: str = "rita", version: int = 1, **fields: Any) -> ResumeRelease:
        defaults = {**self.on_adapter(version), "unit": "legal", "reason": self.text("It names no client.")}
        return self.order(ResumeRelease, by, entry=entry, **defaults | fields)

    def resume_release(self, entry: int, by: str = "rita", second: str | None = None, **fields: Any) -> Entry:
        """Lift a suspension; with `second`, by two administrators."""
        order, event = self.resumption_order(entry, by, **fields), ReleaseResumed(policy=self.in_force)
        return self.ordered(event, order) if second is None else self.two(event, order, second=second)

    def samples_order(self, by: str = "rita", version: int = 1, count: int = 5) -> ViewSamples:
        return self.order(ViewSamples, by, **self.on_adapter(version), count=count)

    def view_samples(self, by: str = "rita", **fields: Any) -> Entry:
        return self.ordered(SamplesRequested(policy=self.in_force), self.samples_order(by, **fields))

    def samples_shown(self, order: str, **fields: Any) -> SamplesShown:
        defaults: dict[str, Any] = {"adapter": "clauses@1", "by": "rita", "code": None, "rows": 5, "released": None}
        return SamplesShown(order=order, **defaults | fields)

    def try_order(self, by: str = "rita", version: int = 1, **fields: Any) -> TryAdapter:
        defaults = {"prompts": (commit("Is it 7?", bytes(32)),), "max_tokens": 16, "adds_instruction": True}
        return self.order(TryAdapter, by, **self.on_adapter(version), **defaults | fields)

    def try_adapter(self, by: str = "rita", **fields: Any) -> Entry:
        return self.ordered(TryRequested(policy=self.in_force), self.try_order(by, **fields))

    def try_finished(self, order: str, **fields: Any) -> TryFinished:
        answer = {"answer": commit("Yes.", bytes(32)), "completion_tokens": 2, "finish_reason": "stop"}
        answers = (TrialAnswer(**answer, prompt_tokens=9),)
        defaults: dict[str, Any] = {"adapter": "clauses@1", "by": "rita", "code": None, "answers": answers}
        return TryFinished(order=order, **defaults | fields)

    def delegation_order(self, to: str, by: str = "rita", **fields: Any) -> Delegate:
        defaults: dict[str, Any] = {
            "principal": to,
            "review_function": "privacy",
            "until": add_seconds(self.now, 86_400),
        }
        return self.order(Delegate, by, **defaults | fields)

    def delegate(self, to: str, by: str = "rita", **fields: Any) -> Entry:
        return self.ordered(ReviewDelegated(policy=self.in_force), self.delegation_order(to, by, **fields))

    def break_glass(self, version: int = 1, second: str = "ben", **fields: Any) -> Entry:
        defaults = {"until": add_seconds(self.now, 3_600), "reason": self.text("The newer one fails.")}
        order = self.release_order(BreakGlass, version=version, **defaults | fields)
        return self.two(EmergencyDeclared(policy=self.in_force), order, second=second)

    # Serving.

    def release_order(self, model: type[O], signer: str = "otto", version: int = 1, **fields: Any) -> O:
        defaults: dict[str, Any] = {**self.on_adapter(version), "unit": "legal", "served_model": "labels"}
        return self.order(model, signer, **defaults | {"adds_instruction": False} | fields)

    def activate(self, version: int = 1, **fields: Any) -> Entry:
        order = self.release_order(Activate, version=version, **fields)
        return self.ordered(ReleaseActivated(policy=self.in_force), order)

    def admitted(self, version: int = 1, **fields: Any) -> AdapterAdmitted:
        row = self.state.adapters.get(f"clauses@{version}")
        reviews = () if row is None else row.reviews
        defaults: dict[str, Any] = {
            "unit": "legal",
            "served_model": "labels",
            "adapter": f"clauses@{version}",
            "manifest": self.on_adapter(version)["manifest"],
            "head": self.state.size,
            "approvals": tuple(review.index for review in reviews if review.unit == "legal"),
            "policy": self.in_force,
            "process": None,
        }
        return AdapterAdmitted(**defaults | fields)

    def export_order(self, by: str = "otto", **fields: Any) -> ExportAdapter:
        defaults: dict[str, Any] = {
            **self.on_adapter(),
            "unit": "legal",
            "served_model": "labels",
            "valid_until": add_seconds(self.now, 3_600),
        }
        return self.order(ExportAdapter, by, **defaults | fields)

    def export(self, by: str = "otto", state_rows: bytes | None = None, **fields: Any) -> Entry:
        order = self.export_order(by, **fields)
        rows = encode_value(collect_rows(self.state, order, self.keys[by].keyid)) if state_rows is None else state_rows
        return self.ordered(AdapterExported(policy=self.in_force), order, documents={"state_rows": rows})

    def revoke_base(self, by: str = "anna", **fields: Any) -> Entry:
        order = self.order(RevokeBase, by, **{"base": "smollm2", "digest": self.base_digest, **fields})
        return self.ordered(BaseRevoked(policy=self.in_force), order)

    def revoke_dataset(self, by: str = "anna", **fields: Any) -> Entry:
        row = self.state.datasets.get("clauses@1")
        digest = digest_bytes(b"no dataset") if row is None else row.digest
        order = self.order(RevokeDataset, by, **{"dataset": "clauses", "version": 1, "digest": digest, **fields})
        return self.ordered(DatasetRevoked(policy=self.in_force), order)

    def load(self, version: int = 1, **fields: Any) -> Entry:
        """Into an empty slot: what was loaded before is taken out."""
        slot = self.state.slots.get("legal/labels")
        if slot is not None and slot.loaded is not None:
            self.add(self.unloaded(adapter=slot.adapter))
        admitted = self.add(self.admitted(version, **fields))
        return self.add(self.loaded(admitted.index, version))

    def loaded(self, admitted: int, version: int = 1, **fields: Any) -> AdapterLoaded:
        defaults: dict[str, Any] = {
            "unit": "legal",
            "served_model": "labels",
            "adapter": f"clauses@{version}",
            "admitted": admitted,
            "logit_fingerprint": "identical",
            "engine": None,
        }
        return AdapterLoaded(**defaults | fields)

    def unloaded(self, **fields: Any) -> AdapterUnloaded:
        slot = self.state.slots.get("legal/labels")
        defaults: dict[str, Any] = {
            "unit": "legal",
            "served_model": "labels",
            "adapter": "clauses@1",
            "admitted": 1 if slot is None else slot.admitted,
            "reason": "revoked",
            "last_token": None,
        }
        return AdapterUnloaded(**defaults | fields)

    def rests_on(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return what the admission of the unit's served model rested on; placeholders without an admission."""
        unit, served_model = fields.get("unit", "legal"), fields.get("served_model", "labels")
        slot = self.state.slots.get(f"{unit}/{served_model}") or self.state.slots.get("legal/labels")
        if slot is None:
            return {"manifest": "sha256:" + "0" * 64, "admitted": 1, "release": 1, "approvals": ()}
        return {name: getattr(slot, name) for name in ("manifest", "admitted", "release", "approvals")}

    def request(self, number: int = 1, **fields: Any) -> RequestAdmitted:
        """With the issue time of an application's token, and the time now for any other."""
        issued = self.state.issued_tokens.get(fields.get("token", ""))
        defaults: dict[str, Any] = {
            "request": f"{number:032x}",
            "unit": "legal",
            "served_model": "labels",
            "adapter": "clauses@1",
            **self.rests_on(fields),
            "application": None,
            "token": "sha256:" + "0" * 64,
            "token_issued_at": self.now if issued is None else issued.issued_at,
            "prompt": "hmac-sha256:" + "0" * 64,
            "instruction": None,
        }
        return RequestAdmitted(**defaults | fields)

    def answered(self, number: int = 1, **fields: Any) -> RequestFinished:
        defaults: dict[str, Any] = {
            "request": f"{number:032x}",
            "unit": "legal",
            "served_model": "labels",
            "adapter": "clauses@1",
            **self.rests_on(fields),
            "finish_reason": "stop",
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "answer": None,
            "engine": None,
            "instruction": None,
        }
        return RequestFinished(**defaults | fields)


RECIPE: dict[str, Any] = {
    "name": "clauses",
    "base": "smollm2",
    "dataset": "clauses@1",
    "method": "qlora",
    "baseline": None,
    "optimiser": "adamw",
    "loraplus_lr_ratio": "1.0",
    "beta": "0.0",
    "purpose": "release",
    "rank": 8,
    "alpha": 16,
    "dropout": "0.05",
    "target_modules": LINEAR_LAYERS,
    "learning_rate": "0.0005",
    "epochs": 1,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_length": 64,
    "warmup_ratio": "0.1",
    "weight_decay": "0.0",
    "max_grad_norm": "1.0",
    "gradient_checkpointing": "mlp",
    "save_steps": 10,
    "early_stopping": 0,
    "validation": "0.0",
    "eval_steps": 0,
    "seed": 1,
    "device": "cpu",
    "compute_dtype": "bfloat16",
    "processes": 1,
    "privacy": None,
    "quantisation": "nf4-double",
}


def _steps() -> bytes:
    """Return a worker's frames about two steps of a run."""
    told = {"steps": 2, "learning_rate": 0.001, "grad_norm": 0.5, "peak_bytes": 5_000_000, "validation_loss": None}
    records: list[StepRecord] = []
    for step, loss in ((1, 1.5), (2, 0.25)):
        counts = {"step": step, "loss": loss, "tokens": 40 * step, "trained_tokens": 5 * step, "seconds": 0.5 * step}
        frame = told | counts | {"row_losses": [[step, loss]]}
        records.append(record_step(frame, [one.loss for one in records]))
    return encode_steps(records)


STEPS = _steps()
ITEMS = encode_items(make_items([Group(2, adapter=True, base=False), Group(1, adapter=True, base=True)]))


def manifest(name: str, version: int, files: Mapping[str, bytes], privacy: PrivacyGuarantee | None = None) -> bytes:
    listed = tuple(ManifestFile(path, len(data), digest_bytes(data)) for path, data in sorted(files.items()))
    return encode_manifest(Manifest(name, version, listed, privacy))


def order_of(entry: Entry) -> str:
    """Return the digest of the order that is the entry's first subject."""
    return entry.subjects[0].removeprefix("order:")


@cache
def _stage(name: str, policy: PolicySet | None) -> LogBuilder:
    if name == "initialized":
        return LogBuilder(policy=policy)
    before = {
        "staffed": "initialized",
        "imported": "staffed",
        "trained": "imported",
        "sealed": "trained",
        "approved": "sealed",
        "released": "approved",
        "serving": "released",
        "kept": "serving",
        "replayed": "imported",
        "decided": "sealed",
    }[name]
    site = _stage(before, policy).fork()
    _STEPS[name](site)
    return site


def stage(name: str, policy: PolicySet | None = None) -> LogBuilder:
    """Return a new site at a point of the journey: initialized, staffed, imported, trained, sealed, approved,
    released, serving or kept; from imported, replayed; from sealed, decided.

    Its policy set has no Cedar policies unless one is given.
    """
    return _stage(name, policy).fork()


def _staff(site: LogBuilder) -> None:
    for name, roles in PEOPLE.items():
        site.enrol(name, *roles)


def _import(site: LogBuilder) -> None:
    site.import_base()
    site.import_dataset()


def _approve(site: LogBuilder) -> None:
    site.review("rita", "privacy")
    site.review("raul", "model-risk")


def _serve(site: LogBuilder) -> None:
    site.load()
    site.add(site.request(1))
    site.add(site.answered(1))
    site.add(site.request(2))


def _keep(site: LogBuilder) -> None:
    """Everything about keys, texts and witnesses happens once, and an application's token is given and ended."""
    token = site.issue(site.token_request(site.enrol_application()))
    site.add(site.request(3, application="indexer", token=token))
    site.add(site.answered(3))
    site.revoke_tokens(application="indexer")
    witness = generate_ed25519()
    name = "witness.example/w1"
    site.adopt(policy_set(witnesses=(witness_vkey_of(name, witness),), witness_quorum=1))
    body, documents = site.cosigned(witness, name)
    site.add(body, documents=documents)
    site.keys["rita"] = site.rotate("rita", add_seconds(site.now, 3_600))
    site.keys["audrey"] = site.enrol_passkey("audrey")
    site.keys["raul"] = site.replace("raul")
    site.revoke_key("olga")
    site.hold("dataset:clauses")
    site.lift("dataset:clauses")
    site.bind("audrey")
    site.bind("ines")
    site.unbind("audrey")
    text = next(text for text in site.disclosures if text.text == "Name the clause.")
    site.erase(text.commitment)
    site.disclosures.remove(text)
    site.rotate_log_key(add_seconds(site.now, 3_600))
    body, documents = site.cosigned(witness, name)
    site.add(body, documents=documents)


def _replay(site: LogBuilder) -> None:
    """Resume a run in both ways, and replay two windows, of which one fails."""
    run = site.request_run()
    site.add(site.started(run))
    site.add(site.checkpointed(run))
    site.add(site.resumed(run))
    site.add(RunFailed(run=run, code="worker-ended", message=site.text("It was killed.")))
    site.resume(run)
    site.add(site.resumed(run))
    site.add(site.finished(run))
    site.add(site.replayed(site.replay(run)))
    order = order_of(site.replay(run))
    site.add(ReplayFailed(order=order, run=run, code="tampered", message=site.text("Other bytes.")))


def _decide(site: LogBuilder) -> None:
    """Each act of a decision once: request, finding, delegation, approval under conditions, withdrawal, and a
    release in an emergency."""
    conditions = Conditions(not_before=site.now, not_after=None, served_models=("labels",), answers_a_day=9)
    site.enrol("dana", "reviewer:legal-risk")
    site.invite("nina", "operator")
    site.withdraw_invitation("nina")
    site.invite("nina", "operator", secret=digest_bytes(b"the second address"))
    site.accept_invitation("nina", passkey := new_passkey())
    site.enrol_with_passkey("nina", passkey, "operator")
    site.delegate("dana")
    site.request_release(conditions=conditions)
    site.close(site.find().index)
    site.resume_release(site.suspend().index, "anna", second="ben")
    site.add(site.samples_shown(order_of(site.view_samples())))
    site.add(site.try_finished(order_of(site.try_adapter())))
    site.review("dana", "privacy", on_behalf_of="rita", decision="approve-with-conditions", conditions=conditions)
    site.review("raul", "model-risk")
    site.activate()
    site.load()
    site.add(site.request(1))
    site.add(site.answered(1))
    site.withdraw_request()
    site.break_glass()
    site.view_samples("raul")


_STEPS: dict[str, Any] = {
    "staffed": _staff,
    "imported": _import,
    "trained": LogBuilder.train,
    "sealed": lambda site: site.seal("r-000001"),
    "approved": _approve,
    "released": LogBuilder.activate,
    "serving": _serve,
    "kept": _keep,
    "replayed": _replay,
    "decided": _decide,
}
