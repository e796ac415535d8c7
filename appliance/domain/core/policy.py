"""The policy set: parameters of the invariants and the site's own Cedar policies, adopted as one document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from appliance.domain.core.identity import IdentityProvider
from appliance.domain.core.names import Digest, Identifier, RecordClass, Token, Value, validate_json
from appliance.errors import BadInput, Refusal, RefusalCode, Rejected
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.log.checkpoint import parse_witness_vkey
from appliance.formats.log.note import parse_vkey

WITNESS_IS_LOG = RefusalCode(
    "witness-has-log-key",
    "policy",
    "The witness {witness} has a key of this log.",
    "Give each witness a key of its own.",
)


def own_witnesses(log_keys: Iterable[str], parameters: Parameters) -> list[Refusal]:
    """Return the refusal reasons of witnesses that have a key of the log. Public keys are compared, not names."""
    own = {parse_vkey(vkey).spki for vkey in log_keys}
    names = [key.name for key in map(parse_witness_vkey, parameters.witnesses) if key.spki in own]
    return [WITNESS_IS_LOG(witness=Rejected(name)) for name in names]


MOST_SWEEP_RUNS = 256
"""Largest number of runs of a sweep that a policy can allow."""
LAYERS = ("user-ns", "network-ns", "pid-ns", "ipc-ns", "mount-ns", "uts-ns", "seccomp", "landlock")
"""Layers of the sandbox whose absence a policy may accept; no-new-privs is always required."""


class Tier(Value):
    """The requirements of releases of one tier of materiality, beyond those of every release.

    A release has the tier if its score, the rank of its exposure times that of its purpose, is `from_score` or more.
    """

    name: Identifier = Field(description="Name of the tier.")
    from_score: int = Field(ge=1, le=256, description="Least score of a release in this tier.")
    reviewers: int = Field(ge=1, le=16, description="Valid approvals that such a release needs.")
    distinct_functions: int = Field(ge=1, le=16, description="Different review functions among them.")
    required_functions: tuple[Identifier, ...] = Field(
        max_length=16, description="Review functions, each of which must be among them."
    )
    review_s: int = Field(ge=60, le=31_536_000, description="Longest time in which a request may be approved.")
    reattest_s: int = Field(ge=60, le=315_360_000, description="Time after which an approval has to be renewed.")
    authorise_runs: bool = Field(default=False, description="A second person must authorise the run before it begins.")


class SlurmAccount(Value):
    """The Slurm account under which a person's runs on the cluster are submitted."""

    person: Identifier
    account: Token


LEAST_RETENTION_DAYS = 183
"""Least number of days before a record can be archived: six months, for which providers and deployers keep the logs of
a high-risk AI system (Regulation (EU) 2024/1689, Articles 19 and 26(6))."""


class Retention(Value):
    """The retention of one class of records, after which they may be archived."""

    records: RecordClass
    days: int = Field(ge=LEAST_RETENTION_DAYS, le=36_500, description="Days for which the log keeps these records.")


def _tier(name: str, from_score: int, reviewers: int, review_days: int, reattest_days: int) -> Tier:
    return Tier(
        name=name,
        from_score=from_score,
        reviewers=reviewers,
        distinct_functions=2,
        required_functions=(),
        review_s=review_days * 86_400,
        reattest_s=reattest_days * 86_400,
    )


class Parameters(Value):
    """The parameters of the invariants. All durations are in seconds.

    A set that was adopted before a parameter existed has the parameter's default. So the default of a new parameter is
    the behaviour before it, and defaults never change (docs/adr/0014-versions-of-meaning.md).
    """

    reviewers: int = Field(default=2, ge=1, le=16, description="Valid approvals that a release to a unit needs.")
    distinct_functions: int = Field(
        default=2, ge=1, le=16, description="Different review functions among these approvals."
    )
    required_functions: tuple[Identifier, ...] = Field(
        default=(), max_length=64, description="Review functions, each of which must be among these approvals."
    )
    order_lifetime_s: int = Field(
        default=172_800,
        ge=60,
        le=604_800,
        description="Longest time for which an order is valid. It can wait so long for a countersignature. A recovery "
        "cannot be countersigned before half of it.",
    )
    approval_lifetime_s: int = Field(
        default=31_536_000, ge=3_600, le=315_360_000, description="Longest time for which an approval is valid."
    )
    session_lifetime_s: int = Field(
        default=900, ge=60, le=900, description="Longest time of a session, in which a person reads."
    )
    token_lifetime_s: int = Field(default=3_600, ge=60, le=3_600, description="Longest time of a unit's API token.")
    clock_skew_s: int = Field(
        default=60,
        ge=0,
        le=600,
        description="Tolerated difference between the clocks of a signer, of the service and of the database.",
    )
    accepted_missing_layers: tuple[str, ...] = Field(
        default=(),
        max_length=64,
        description="Layers of the sandbox without which workers may run. Each missing layer weakens it.",
    )
    key_overlap_s: int = Field(
        default=2_592_000,
        ge=0,
        le=31_536_000,
        description="Longest time for which a replaced key stays valid beside the new one.",
    )
    name_retention_s: int = Field(
        default=15_552_000,
        ge=0,
        le=3_153_600_000,
        description="Time after a person's revocation before which their printed name cannot be erased.",
    )
    text_retention_s: int = Field(
        default=0,
        ge=0,
        le=3_153_600_000,
        description="Time before which a free text, such as a reason, cannot be erased.",
    )
    training_checkpoint_retention_s: int = Field(
        default=2_592_000,
        ge=0,
        le=3_153_600_000,
        description="Time for which training checkpoints are kept after the decision on the adapter.",
    )
    export_lifetime_s: int = Field(
        default=604_800,
        ge=60,
        le=31_536_000,
        description="Longest time for which an exported adapter loads. A revocation does not reach it.",
    )
    witnesses: tuple[str, ...] = Field(
        default=(), max_length=16, description="Keys of the witnesses that cosign the log (vkeys of C2SP, type 0x04)."
    )
    witness_quorum: int = Field(
        default=0, ge=0, le=16, description="Fresh cosignatures without which no adapter is admitted."
    )
    witness_lifetime_s: int = Field(
        default=604_800, ge=60, le=31_536_000, description="Time for which a cosignature is fresh."
    )
    licences: tuple[Token, ...] = Field(
        default=(), max_length=256, description="Licences that an import may name beside those of SPDX."
    )
    classifications: tuple[Token, ...] = Field(
        default=("public", "internal", "confidential", "restricted"),
        min_length=1,
        max_length=64,
        description="Words for the classification of a dataset.",
    )
    requests_required: bool = Field(
        default=False, description="An adapter can be approved only on a release request, which gives it a tier."
    )
    exposures: tuple[Token, ...] = Field(
        default=("internal", "customers", "public"),
        min_length=1,
        max_length=16,
        description="Words for who sees the responses, lowest risk first.",
    )
    purposes: tuple[Token, ...] = Field(
        default=("draft", "assist", "decide"),
        min_length=1,
        max_length=16,
        description="Words for what the responses are used for, lowest risk first.",
    )
    tiers: tuple[Tier, ...] = Field(
        default=(_tier("low", 1, 2, 30, 365), _tier("medium", 3, 2, 30, 365), _tier("high", 6, 3, 14, 180)),
        min_length=1,
        max_length=16,
        description="Tiers of materiality by rising score. A tier adds requirements to those above.",
    )
    delegation_lifetime_s: int = Field(
        default=2_592_000,
        ge=60,
        le=31_536_000,
        description="Longest time for which a reviewer delegates a review function.",
    )
    break_glass_lifetime_s: int = Field(
        default=28_800, ge=60, le=259_200, description="Longest time of an emergency release."
    )

    tries_a_day: int = Field(
        default=100,
        ge=0,
        le=100_000,
        description="Prompts that one reviewer may put to adapters before their release, on one day of UTC.",
    )
    approver_may_activate: bool = Field(
        default=False,
        description="A person behind a valid approval of an adapter for a unit may also activate it for that unit.",
    )
    required_gates: tuple[Digest, ...] = Field(
        default=(),
        max_length=64,
        description="Gates files by their digests. A run for release must be evaluated by one of them, "
        "if `failed_verdict` is `stops`.",
    )
    failed_verdict: Literal["shown", "stops"] = Field(
        default="shown",
        description="Effect of a verdict that was not passed: reviewers see it, or it stops the release.",
    )
    most_sweep_runs: int = Field(default=16, ge=1, le=MOST_SWEEP_RUNS, description="Runs that one sweep may order.")
    slurm_accounts: tuple[SlurmAccount, ...] = Field(
        default=(),
        max_length=1024,
        description="Persons who may train on the Slurm cluster, each with an account there. If it is empty, every "
        "operator may.",
    )
    passkeys_synced: bool = Field(
        default=False, description="Passkeys that can be copied, such as to a cloud service, may sign."
    )
    passkeys_on_localhost: bool = Field(
        default=False,
        description="Passkeys of `http://localhost` may sign. Every account of that machine can listen there.",
    )
    identity_provider: IdentityProvider | None = Field(
        default=None,
        description="The site's identity provider (OpenID Connect). If it is set, a person opens a session only with a "
        "fresh ID token of it. Units, and administrators and recovery keys on the service's own machine, need none.",
    )
    units_read: Literal["own", "all"] = Field(
        default="own",
        description="Entries that a unit reads: its own, the approval chains of its adapters and public governance; or "
        "all. Prompts and responses are in no entry.",
    )

    retention: tuple[Retention, ...] = Field(
        default=(),
        max_length=4,
        description="Classes of records that may be archived, each with the days (183 at least) for which the log "
        "keeps them. It keeps the others for ever.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.distinct_functions > self.reviewers:
            raise ValueError(
                f"distinct_functions: expected at most reviewers ({self.reviewers}), got {self.distinct_functions}"
            )
        unknown = sorted(set(self.accepted_missing_layers) - set(LAYERS))
        if unknown:
            raise ValueError(f"accepted_missing_layers: expected some of {', '.join(LAYERS)}, got {', '.join(unknown)}")
        persons = [row.person for row in self.slurm_accounts]
        if twice := sorted({name for name in persons if persons.count(name) > 1}):
            raise ValueError(f"slurm_accounts: expected each person once, got {', '.join(twice)} twice")
        classes = [row.records for row in self.retention]
        if twice := sorted({name for name in classes if classes.count(name) > 1}):
            raise ValueError(f"retention: expected each class of records once, got {', '.join(twice)} twice")
        self._check_tiers()
        self._check_witnesses()
        return self

    def _check_tiers(self) -> None:
        for name in ("exposures", "purposes"):
            words = getattr(self, name)
            if len(set(words)) != len(words):
                raise ValueError(f"{name}: expected each word once, got {', '.join(words)}")
        names, scores = [tier.name for tier in self.tiers], [tier.from_score for tier in self.tiers]
        if len(set(names)) != len(names):
            raise ValueError(f"tiers: expected each name once, got {', '.join(names)}")
        if scores[0] != 1 or sorted(set(scores)) != scores:
            raise ValueError(f"tiers, from_score: expected 1 first and then rising numbers, got {scores}")
        for tier in self.tiers:
            if tier.distinct_functions > tier.reviewers:
                got = f"at most reviewers ({tier.reviewers}), got {tier.distinct_functions}"
                raise ValueError(f"tier {tier.name}, distinct_functions: expected {got}")

    def _check_witnesses(self) -> None:
        try:
            keys = [parse_witness_vkey(vkey) for vkey in self.witnesses]
        except BadInput as error:
            raise ValueError(f"witnesses: {error.message}") from None
        names = [key.name for key in keys]
        if len(set(names)) != len(names):
            raise ValueError(f"witnesses: expected each name once, got {', '.join(names)}")
        if len({key.spki for key in keys}) != len(keys):  # under two names one machine would be a quorum
            raise ValueError(f"witnesses: expected a key of its own for each name, got one twice: {', '.join(names)}")
        if self.witness_quorum > len(names):
            raise ValueError(f"witness_quorum: expected at most the {len(names)} witnesses, got {self.witness_quorum}")


class PolicySet(Value):
    """The content of an adopted policy document.

    Decisions name it by the digest of the document's own bytes: an encoding by a later build could have other bytes.
    """

    version: Literal[1] = 1
    name: Identifier
    parameters: Parameters
    cedar: str = Field(max_length=1_000_000)
    cedar_schema: str = Field(max_length=1_000_000)


def parse_policy(data: bytes) -> PolicySet:
    """Parse canonical bytes as a policy set. Parameters may be missing.

    Raises: BadInput, which names a parameter that is out of bounds, or fields that only a later build supports.
    """
    try:
        value = parse_canonical(data)
    except BadInput as error:
        raise BadInput(f"policy set: {error.message}") from None
    if isinstance(value, dict):
        _check_names(value)
    policy = validate_json(PolicySet, data, "policy set")
    if encode_canonical(policy.model_dump(mode="json", exclude_unset=True)) != data:  # `true` would be version 1
        raise BadInput("policy set: expected canonical JSON (RFC 8785), got a different encoding")
    return policy


def _check_names(value: dict[str, Any]) -> None:
    """Check that this build knows all fields, and that only parameters are missing.

    Raises: BadInput otherwise.
    """
    parameters = value.get("parameters")
    names = parameters.keys() if isinstance(parameters, dict) else set()
    later = [f"parameters.{name}" for name in sorted(names - Parameters.model_fields.keys())]
    later += sorted(value.keys() - PolicySet.model_fields.keys())
    if later:
        raise BadInput(
            f"policy set: expected fields that this build knows, got {', '.join(later)[:200]}: "
            "the set is of a later build, so read it with that one"
        )
    if missing := sorted(PolicySet.model_fields.keys() - value.keys()):
        raise BadInput(f"policy set: expected {', '.join(PolicySet.model_fields)}, got none of {', '.join(missing)}")
