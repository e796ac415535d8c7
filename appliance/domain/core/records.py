"""What the state remembers: a frozen value for each thing that an entry spoke of, and what it is called there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from appliance.domain.core.decisions import Finding, ReleaseRequest, ReviewRecord
from appliance.domain.core.names import Canonical, Digest, Identifier, OtherEngine, Time, Token, Value, VersionedName
from appliance.domain.core.policy import Parameters
from appliance.formats.signatures.relying_party import PasskeyScope

ReplayVerdict = Literal["identical", "within-tolerance", "different"]


class Passkey(Value):
    """What enrolment bound of a key that is in a person's authenticator. `name` is the person's own word for it."""

    name: str
    credential_id: str
    rp_id: str
    origins: tuple[str, ...]
    backup_eligible: bool

    @property
    def scope(self) -> PasskeyScope:
        return PasskeyScope(self.rp_id, self.origins, self.backup_eligible)


class Key(Value):
    keyid: str
    spki: str
    principal: str
    enrolled: int
    enrolled_at: Time
    until: Time | None = None
    """Replaced by another key: new orders are accepted until then."""
    revoked: int | None = None
    distrusted: int | None = None
    """What it signed in this entry or later does not count, whenever it was revoked."""
    rotated_from: str | None = None
    """The key by which its owner rotated to it: where that one did not count any more, nor does this one."""
    passkey: Passkey | None = None
    """Of a key in an authenticator: it signs by assertions alone, and only there."""

    @model_serializer(mode="wrap")
    def _encode(self, encode: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `rotated_from` and `passkey` where there is none."""
        value: dict[str, Any] = encode(self)
        absent = {name for name in ("rotated_from", "passkey") if getattr(self, name) is None}
        return {name: one for name, one in value.items() if name not in absent}

    @property
    def scope(self) -> PasskeyScope | None:
        """Of a passkey: where its assertions count."""
        return None if self.passkey is None else self.passkey.scope

    def stands(self, now: Time) -> bool:
        """Whether it may sign something new."""
        return self.revoked is None and (self.until is None or now < self.until)

    def counts(self, index: int) -> bool:
        """Whether what it signed in the entry of this index still counts."""
        return self.enrolled < index and (self.distrusted is None or index < self.distrusted)


class Principal(Value):
    name: str
    printed_name: str | None
    roles: tuple[str, ...]
    keyid: str
    enrolled: int
    revoked: int | None = None
    revoked_at: Time | None = None
    tokens_since: Time | None = None
    """Of a unit: its tokens that were issued before it do not count."""

    def has(self, role: str) -> bool:
        return self.revoked is None and role in self.roles


class RevokedToken(Value):
    """A unit's token that no longer counts; `digest` of its PAE."""

    digest: str
    unit: str
    index: int


class Application(Value):
    """A unit's application: its key asks for tokens of these tasks and does nothing else. `enrolled_by`: the unit's key
    that signed for it."""

    name: str
    unit: str
    tasks: tuple[str, ...]
    keyid: str
    spki: str
    enrolled: int
    enrolled_at: Time
    enrolled_by: str
    revoked: int | None = None


class IssuedToken(Value):
    """A token that an application was given, by the digest of its text; `request`: the digest of what it signed."""

    unit: str
    application: str
    request: str
    issued_at: Time
    expires_at: Time
    index: int


class PendingOrder(Value):
    """An order that waits for a second administrator."""

    digest: str
    verb: str
    signer: str
    index: int
    expires_at: Time


class Base(Value):
    """`digest`: of the manifest over the converted folder; `order`: what was asked for (source, licence)."""

    name: str
    digest: str
    licence: str
    imported_by: str
    order: str
    index: int
    facts: dict[str, Any]
    quarantined: int | None = None
    revoked: int | None = None


class Dataset(Value):
    name: str
    version: int
    digest: str
    root: str
    base: str
    base_digest: str
    licence: str
    classification: str
    imported_by: str
    order: str
    instruction: str
    """The commitment of the system message that its rows were rendered with."""
    index: int
    facts: dict[str, Any]
    revoked: int | None = None


class ValidationSet(Value):
    """Rows of the site's own that adapters are judged on and nothing is trained on. `file`: the digest of the file that
    they came in. `blind`: only digests, scores and counts leave it; `final`: it judges each adapter name once."""

    name: str
    version: int
    digest: str
    root: str
    file: str
    task: str
    base: str
    base_digest: str
    licence: str
    classification: str
    blind: bool
    final: bool
    imported_by: str
    order: str
    index: int
    facts: dict[str, Any]
    revoked: int | None = None


class BoundSet(Value):
    """A version of a validation set, and the digest of its manifest, as a run's order binds them."""

    validation_set: VersionedName
    digest: Digest


class LocalSet(Value):
    """A set of rows that is in no log (`data/local_sets.py`), and the digest of its files, as a run's order binds
    them."""

    set: Identifier
    digest: Digest


class Import(Value):
    """An import that was ordered; `verb` says of what. A base has no classification, no base it is rendered for, no
    instruction and no `held_out_of`: the digest of the file whose rows are held out, of a validation set its file."""

    order: str
    verb: str
    subject: str
    signer: str
    licence: str
    classification: str
    base: str
    base_digest: str
    instruction: str
    held_out_of: str
    index: int
    status: Literal["requested", "finished", "failed", "cancelled"]
    task: str = ""
    blind: bool = False
    final: bool = False
    """Of a validation set."""


class Authorisation(Value):
    """A second person let a run begin, by the entry `index`."""

    by: str
    keyid: str
    order: str
    index: int


class Guarantee(Value):
    """Differential privacy: what a run of so many steps tells of any one row that it trained on."""

    epsilon: str
    delta: str
    steps: int


class Job(Canonical):
    """A start of a job of Slurm: its id, how often it had been requeued by then, and the nodes that it had."""

    id: int = Field(ge=1)
    restart: int = Field(ge=0)
    nodes: tuple[Token, ...] = Field(min_length=1, max_length=64)


class Run(Value):
    id: str
    order: str
    name: str
    ordered_by: str
    base: str
    base_digest: str
    dataset: str
    dataset_digest: str
    method: str
    purpose: str
    baseline: str | None
    index: int
    status: Literal["waiting", "queued", "running", "trained", "sealed", "failed", "cancelled", "refused"]
    queued: int = 0
    """The entry that last put it into the queue, which is worked off in this order."""
    early_stopping: int = 0
    validate_every: int = 0
    weights: str | None = None
    record: str | None = None
    """The digest of its steps, once it is trained."""
    step: int = 0
    """Of its last training checkpoint; 0 while it has none."""
    resumes: int = 0
    """How often it was resumed without an order since the last order to resume it."""
    seconds: str | None = None
    peak_bytes: int | None = None
    """What its training took: of its last worker's memory the most."""
    gates: str | None = None
    """The digest of the gate set that its order bound; None where it bound none."""
    sets: tuple[BoundSet, ...] = ()
    """The validation sets that its order bound, each that its gates name."""
    local_sets: tuple[LocalSet, ...] = ()
    """The sets of no log that its order bound."""
    tier: str | None = None
    """The tier of materiality that its order named."""
    authorised: Authorisation | None = None
    sweep: str | None = None
    """The sweep that it belongs to, as its order names it."""
    privacy: Guarantee | None = None
    """Of a private run."""
    secret: str | None = None
    """Of a private run that has begun, the digest that binds its secret."""
    on: Literal["here", "slurm"] = "here"
    """Where its order has it trained."""
    nodes: int = 1
    """On Slurm: on how many nodes."""
    job: Job | None = None
    """Of Slurm: where its last worker was started."""
    began: int = 0
    """The step from which its last worker went on."""


class TrainingCheckpoint(Value):
    """`digest` of the bytes, the machine that made them, and how long the run had taken until then."""

    run: str
    step: int
    digest: str
    seconds: str
    machine: dict[str, Any]
    index: int


class Replay(Value):
    """An auditor's order to train a window of a run again; `order` is its identity."""

    order: str
    run: str
    from_step: int
    to_step: int
    signer: str
    index: int
    status: Literal["requested", "finished", "failed"]
    verdict: ReplayVerdict | None = None


class Adapter(Value):
    name: str
    version: int
    manifest: str
    run: str
    ordered_by: str
    dataset_by: str
    base: str
    base_digest: str
    dataset: str
    purpose: str
    measured: dict[str, Any]
    """Of the adapter, on the held-out rows."""
    index: int
    verdict: str | None = None
    """The digest of the verdict that was sealed with it, where its run's order bound gates."""
    sets: tuple[BoundSet, ...] = ()
    """The validation sets that it was judged on beside the held-out rows."""
    gates: str | None = None
    passed: bool | None = None
    failed_gates: tuple[str, ...] = ()
    """Of a verdict that was not passed, the gates that stand in the way."""
    authorised: Authorisation | None = None
    """Who let its run begin, where a second person did."""
    engines: tuple[str, ...] = ()
    """On which it was judged beside the appliance's own."""
    requests: tuple[ReleaseRequest, ...] = ()
    reviews: tuple[ReviewRecord, ...] = ()
    findings: tuple[Finding, ...] = ()
    revoked: int | None = None
    quarantined: int | None = None


class SetJudgement(Value):
    """What was found on a validation set: its version, and the digest of the items."""

    validation_set: str
    items: str


class LocalJudgement(LocalSet):
    """What was found on a set of no log: the digest of the items."""

    items: str


class Judgement(Value):
    """What was found of a sealed adapter: the digest of its items, and where its run's order bound a gate set, of that
    and of the verdict. `sets`: of each validation set beside the held-out rows. `index`: the entry that sealed it."""

    adapter: str
    run: str
    dataset: str
    items: str
    gates: str | None
    verdict: str | None
    task: bool | None
    rest: bool | None
    passed: bool | None
    index: int
    sets: tuple[SetJudgement, ...] = ()
    local_sets: tuple[LocalJudgement, ...] = ()


@dataclass(frozen=True, slots=True)
class Activation:
    index: int
    order: str
    adapter: str
    manifest: str
    signer: str
    keyid: str
    kind: Literal["activate", "roll-back", "break-glass"]
    adds_instruction: bool
    """The service puts the dataset's instruction in where a request has no system message."""
    until: Time | None = None
    """Of an emergency: it answers until then, whatever has become of its approvals."""
    endorsed_keyid: str | None = None
    """Of an emergency: the second person's key."""


class Release(Value):
    """What a unit's clients get for a task name today, and what they got before; the last activation counts."""

    unit: str
    task: str
    history: tuple[Activation, ...]

    @property
    def current(self) -> Activation:
        return self.history[-1]


class Export(Value):
    """A release that left for a host of the unit's own, by the entry `index`. It can be loaded there until its date,
    whatever is revoked."""

    unit: str
    task: str
    adapter: str
    manifest: str
    index: int
    valid_until: Time


class ServiceProcess(Value):
    """One of several processes of the appliance, since the entry of its start; `ended`: by its own word, or by that of
    another which took over from it."""

    name: Identifier
    epoch: int
    since: int
    ended: int | None = None


class Slot(Value):
    """An adapter that answers for a unit's task in the engine of a process; None where the appliance is one process."""

    unit: str
    task: str
    adapter: str
    manifest: str
    admitted: int
    release: int
    approvals: tuple[int, ...]
    """The entries that its admission rested on."""
    process: Identifier | None = None
    engine: OtherEngine | None = None
    """What answers, if it is not the appliance's own engine."""
    loaded: int | None = None
    loaded_at: Time | None = None

    @property
    def key(self) -> str:
        return slot_key(self.unit, self.task, self.process)

    @property
    def answered_by(self) -> tuple[object, ...]:
        """What the entries of a request that it answers name."""
        return self.unit, self.task, self.adapter, self.manifest, self.admitted, self.release, self.approvals

    @property
    def answering(self) -> dict[str, Any]:
        """What the entries of a request say of the slot that answers it."""
        return self.model_dump(exclude={"engine", "process", "loaded", "loaded_at"})


class OpenRequest(NamedTuple):
    id: str
    unit: str
    task: str
    adapter: str
    manifest: str
    admitted: int
    release: int
    approvals: tuple[int, ...]
    instruction: str | None
    """The commitment of the system message that the service put in, if it did."""
    entry: int
    process: str | None = None
    """The process that answers it, where there are several."""
    engine: OtherEngine | None = None
    cut: bool = False
    """Its slot was emptied: it can end, and not well."""

    @property
    def answered_by(self) -> tuple[object, ...]:
        return self.unit, self.task, self.adapter, self.manifest, self.admitted, self.release, self.approvals


class Text(NamedTuple):
    """A text behind a commitment: the entry that binds it, who signed it, and what that entry is about. As small as it
    can be: there is one for each order."""

    entry: int
    time: Time
    signer: str
    subjects: tuple[str, ...]
    erased: int | None = None


class Hold(Value):
    """A legal hold: no text of an entry about the subject is erased."""

    subject: str
    order: str
    signer: str
    index: int


class Witness(Value):
    """The largest log that a witness has cosigned, and when it did."""

    name: str
    vkey: str
    size: int
    time: Time
    index: int


class LogKey(Value):
    """A key that signs the log's checkpoints: from the entry `since` on; once replaced, until a time."""

    vkey: str
    since: int
    until: Time | None = None


class ClockReset(Value):
    """The entry `index` set the log's time back to `time`, after the clock had run ahead to `reached`."""

    index: int
    reached: Time
    time: Time


class Site(Value):
    """What there is one of: from the first entry and the policy in force."""

    origin: str
    log_keys: tuple[LogKey, ...]
    adapter_key: str
    single_administrator: bool
    policy: str
    parameters: Parameters
    rules: int = 1
    """The version of the rules that entries are judged by."""
    resets: tuple[ClockReset, ...] = ()

    @model_serializer(mode="wrap")
    def _encode(self, encode: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `resets` where there is none."""
        value: dict[str, Any] = encode(self)
        return value if self.resets else {k: v for k, v in value.items() if k != "resets"}

    def time_for(self, index: int, now: Time) -> Time:
        """The time that a date is held against which the entry of this index recorded: where the clock was set back
        since, not before the time that it had run ahead to, so that nothing revives that had lapsed by then."""
        return max([now, *(reset.reached for reset in self.resets if index < reset.index)])

    def happened_by(self, index: int, time: Time) -> Time:
        """By when the entry of this index, which has that time, was recorded: before a reset of the clock since."""
        return min([time, *(reset.time for reset in self.resets if index < reset.index)])

    @property
    def log_key(self) -> str:
        """The vkey that signs today."""
        return self.log_keys[-1].vkey

    def signing_keys(self, now: Time) -> tuple[str, ...]:
        """Every vkey that a checkpoint carries a signature of at this time; today's last."""
        return tuple(key.vkey for key in self.log_keys if key.until is None or now < key.until)


def checkpoint_key(run: str, step: int) -> str:
    return f"{run}/{step}"


def token_key(unit: str, digest: str) -> str:
    """By unit first: what one revokes is none of another's."""
    return f"{unit}/{digest}"


def application_key(unit: str, name: str) -> str:
    return f"{unit}/{name}"


def release_key(unit: str, task: str) -> str:
    return f"{unit}/{task}"


def slot_key(unit: str, task: str, process: str | None) -> str:
    """Each process has an engine of its own."""
    return release_key(unit, task) if process is None else f"{release_key(unit, task)}@{process}"


def export_key(unit: str, task: str, index: int) -> str:
    """By the entry too: a release can be exported again before its last export has ended."""
    return f"{release_key(unit, task)}/{index}"
