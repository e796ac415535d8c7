"""Orders: what a person signs. One predicateType a verb, one value, one encoding.

An order is the payload of a DSSE envelope: an in-toto Statement v1 whose predicate is the value below and whose
subjects name, by digest, what the order is about. Subjects are derived from the predicate and compared whole when
parsed. The order is identified by the digest of its PAE, never of a signature.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from appliance.domain.names import (
    Base64,
    Commitment,
    Decimal,
    Digest,
    Identifier,
    Role,
    RunId,
    Time,
    Token,
    Value,
    encode_value,
    parse_value,
    versioned,
)
from appliance.domain.recipe import ResolvedRecipe
from appliance.domain.tasks import Format, Task
from appliance.errors import BadInput
from appliance.formats.canonical import encode_canonical
from appliance.formats.digest import digest_bytes
from appliance.formats.statement import Statement, encode_statement, parse_statement

PREFIX = "urn:appliance:order:"

ColumnName = Annotated[str, Field(min_length=1, max_length=256)]
LabelWord = Annotated[str, Field(min_length=1, max_length=200)]
Subjects = tuple[tuple[str, str], ...]


class Order(Value):
    """What every order carries, whatever its verb."""

    verb: ClassVar[str]

    origin: str = Field(max_length=255, description="the log this order is for")
    signer: Identifier
    nonce: str = Field(pattern=r"^[0-9a-f]{32}$")
    issued_at: Time
    expires_at: Time
    reason: Commitment | None = Field(default=None, description="why, in the signer's words")

    def subjects(self) -> Subjects:
        """(name, digest) of what the order is about; at least one."""
        raise NotImplementedError

    def about(self) -> tuple[str, ...]:
        """The subjects under which the ledger files the order."""
        return tuple(name for name, _ in self.subjects())

    def _self(self, name: str) -> Subjects:
        """For what has no bytes of its own: the digest of the predicate itself."""
        return ((name, digest_bytes(encode_value(self))),)


class NewKey(Order):
    """Brings in a person's key, which has proved that somebody holds it."""

    principal: Identifier
    key: Base64 = Field(description="SubjectPublicKeyInfo, DER")
    keyid: Digest
    possession: Digest = Field(description="PAE digest of the statement by which the new key proves possession")

    def subjects(self) -> Subjects:
        return ((f"principal:{self.principal}", self.keyid),)


class Enroll(NewKey):
    verb = "enroll"
    printed_name: Commitment
    roles: tuple[Role, ...] = Field(min_length=1, max_length=8)


class ReplaceKey(NewKey):
    """Administrators give a person a new key, because the old one is lost: it ends at once."""

    verb = "replace-key"


class RotateKey(NewKey):
    """A person's own: the new key takes over, the old ones stand until a time."""

    verb = "rotate-key"
    old_until: Time


class RevokeKey(Order):
    """Ends a key; with `since`, what it signed in that entry or later does not count."""

    verb = "revoke-key"
    principal: Identifier
    keyid: Digest
    since: int | None = Field(ge=0)

    def subjects(self) -> Subjects:
        return ((f"principal:{self.principal}", self.keyid),)


class RotateLogKey(Order):
    """A new key signs the log's checkpoints; until a time the old ones sign beside it."""

    verb = "rotate-log-key"
    log_key: str = Field(max_length=400)
    old_until: Time

    def subjects(self) -> Subjects:
        return self._self("log-key")


class Erase(Order):
    """The text behind a commitment goes; the commitment stays, and every signature over it holds."""

    verb = "erase"
    commitment: Commitment

    def subjects(self) -> Subjects:
        return self._self(f"text:{self.commitment}")


class PlaceHold(Order):
    """A legal hold: no text about the subject is erased while it stands."""

    verb = "place-hold"
    subject: str = Field(pattern=r"^[a-z-]{1,20}:[a-z0-9@-]{1,100}$")

    def subjects(self) -> Subjects:
        return self._self(self.subject)


class LiftHold(PlaceHold):
    verb = "lift-hold"


class Grant(Order):
    verb = "grant"
    principal: Identifier
    role: Role

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class RevokePrincipal(Order):
    verb = "revoke-principal"
    principal: Identifier

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class RevokeTokens(Order):
    """Ends one token of a unit, by the digest of its PAE, or every one that was issued before a time."""

    verb = "revoke-tokens"
    unit: Identifier
    token: Digest | None
    issued_before: Time | None

    def subjects(self) -> Subjects:
        return self._self(f"unit:{self.unit}")


class AdoptPolicy(Order):
    verb = "adopt-policy"
    policy: Digest

    def subjects(self) -> Subjects:
        return ((f"policy:{self.policy}", self.policy),)


class Endorse(Order):
    """The second signature: names the pending order by the digest of its PAE."""

    verb = "endorse"
    order: Digest

    def subjects(self) -> Subjects:
        return ((f"order:{self.order}", self.order),)


class ImportBase(Order):
    verb = "import-base"
    base: Identifier
    format: Literal["safetensors", "gguf"]
    source: Digest = Field(description="digest of the GGUF file, or of the manifest over the model folder")
    licence: Token

    def subjects(self) -> Subjects:
        return ((f"base:{self.base}", self.source),)


class ImportDataset(Order):
    verb = "import-dataset"
    dataset: Identifier
    task: Task
    format: Format
    file: Digest
    columns: dict[str, ColumnName] = Field(description="the file's own name for each part of the task's rows")
    labels: tuple[LabelWord, ...] = Field(max_length=1000, description="all there are; none: those that occur")
    instruction: Commitment = Field(description="the system message rows are rendered with; may be the empty text")
    base: Identifier = Field(description="whose chat template renders the rows")
    base_digest: Digest
    seed: int = Field(ge=0, le=2**31 - 1)
    held_out: Decimal | Digest = Field(description="a share of the rows, or a file of its own, in the same format")
    owner: Commitment
    licence: Token
    classification: Token

    def subjects(self) -> Subjects:
        return ((f"dataset:{self.dataset}", self.file), (f"base:{self.base}", self.base_digest))


class Train(Order):
    verb = "train"
    recipe: ResolvedRecipe
    base_digest: Digest
    dataset_digest: Digest

    def subjects(self) -> Subjects:
        return (
            (f"base:{self.recipe.base}", self.base_digest),
            (f"dataset:{self.recipe.dataset}", self.dataset_digest),
        )


class Cancel(Order):
    verb = "cancel"
    run: RunId

    def subjects(self) -> Subjects:
        return self._self(f"run:{self.run}")


class CancelImport(Order):
    """Ends an import that waits or is under way; `order` is the import's identity."""

    verb = "cancel-import"
    order: Digest

    def subjects(self) -> Subjects:
        return ((f"order:{self.order}", self.order),)


class Resume(Order):
    """A run that failed goes on from its last training checkpoint."""

    verb = "resume"
    run: RunId

    def subjects(self) -> Subjects:
        return self._self(f"run:{self.run}")


class Replay(Order):
    """Trains the steps after `from_step` up to `to_step` again, and compares: 0 is the beginning."""

    verb = "replay"
    run: RunId
    from_step: int = Field(ge=0)
    to_step: int = Field(ge=1)

    def subjects(self) -> Subjects:
        return self._self(f"run:{self.run}")


class _OnAdapter(Order):
    adapter: Identifier
    version: int = Field(ge=1)
    manifest: Digest

    @property
    def name(self) -> str:
        return versioned(self.adapter, self.version)

    def subjects(self) -> Subjects:
        return ((f"adapter:{self.name}", self.manifest),)


class Review(_OnAdapter):
    verb = "review"
    decision: Literal["approve", "reject"]
    unit: Identifier
    field: Identifier
    meaning: Commitment = Field(description="what the signature means, as shown to the signer (21 CFR 11.50)")
    valid_until: Time

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.name}", f"unit:{self.unit}")


class _OnRelease(_OnAdapter):
    unit: Identifier
    task: Identifier

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.name}", f"unit:{self.unit}", f"task:{self.task}")


class Activate(_OnRelease):
    verb = "activate"


class RollBack(_OnRelease):
    """To an adapter that answered this task before."""

    verb = "roll-back"


class ExportAdapter(_OnRelease):
    """Today's release, to be loaded by the unit on a host of its own, until a date."""

    verb = "export-adapter"
    valid_until: Time


class RevokeAdapter(_OnAdapter):
    verb = "revoke-adapter"


class RevokeBase(Order):
    """With it fall all adapters on it, for every unit."""

    verb = "revoke-base"
    base: Identifier
    digest: Digest

    def subjects(self) -> Subjects:
        return ((f"base:{self.base}", self.digest),)


class RevokeDataset(Order):
    """With it fall all adapters that were trained on it, for every unit."""

    verb = "revoke-dataset"
    dataset: Identifier
    version: int = Field(ge=1)
    digest: Digest

    @property
    def name(self) -> str:
        return versioned(self.dataset, self.version)

    def subjects(self) -> Subjects:
        return ((f"dataset:{self.name}", self.digest),)


AnyOrder = (
    Enroll
    | ReplaceKey
    | RotateKey
    | RevokeKey
    | RotateLogKey
    | Erase
    | PlaceHold
    | LiftHold
    | Grant
    | RevokePrincipal
    | AdoptPolicy
    | Endorse
    | ImportBase
    | ImportDataset
    | Train
    | Cancel
    | CancelImport
    | Resume
    | Replay
    | Review
    | Activate
    | RollBack
    | RevokeAdapter
    | RevokeTokens
    | RevokeBase
    | RevokeDataset
    | ExportAdapter
)

ORDERS: dict[str, type[Order]] = {
    model.verb: model
    for model in (
        Enroll, Grant, RevokePrincipal, AdoptPolicy, Endorse, ImportBase, ImportDataset,
        Train, Cancel, CancelImport, Review, Activate, RollBack, RevokeAdapter,
        ReplaceKey, RotateKey, RevokeKey, RotateLogKey, Erase, PlaceHold, LiftHold,
        Resume, Replay, RevokeTokens, RevokeBase, RevokeDataset, ExportAdapter,
    )
}  # fmt: skip

TWO_ADMINISTRATORS = ("enroll", "grant", "adopt-policy", "replace-key", "rotate-log-key", "erase", "lift-hold")
"""Verbs that change who has power or what can be known; they stand only when two administrators have signed."""


def encode_order(order: Order) -> bytes:
    """The payload that is signed: an in-toto statement in canonical JSON."""
    predicate = order.model_dump(mode="json")
    return encode_statement(Statement(order.subjects(), f"{PREFIX}{order.verb}:v1", predicate))


def parse_order(payload: bytes) -> Order:
    """The order of a statement's bytes; BadInput for an unknown verb, a field that does not fit or other subjects."""
    statement = parse_statement(payload)
    verb, _, version = statement.predicate_type.removeprefix(PREFIX).rpartition(":")
    model = ORDERS.get(verb)
    if model is None or version != "v1" or not statement.predicate_type.startswith(PREFIX):
        raise BadInput(f"order: expected a predicateType {PREFIX}VERB:v1, got {statement.predicate_type[:120]!r}")
    order = parse_value(model, encode_canonical(statement.predicate), f"order {verb}")
    if order.subjects() != statement.subjects:
        raise BadInput(f"order {verb}: expected subjects {order.subjects()}, got {statement.subjects}")
    return order
