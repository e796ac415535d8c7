"""The policy set: parameters of the invariants, and the site's own Cedar policies, adopted as one document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from appliance.domain.core.names import Digest, Identifier, Token, Value, explain
from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.log.cosignature import parse_witness_vkey
from appliance.formats.log.note import parse_vkey


def own_witnesses(log_keys: Iterable[str], parameters: Parameters) -> list[str]:
    """A log is not its own witness, whatever the key is called: the public keys themselves are compared."""
    own = {parse_vkey(vkey).spki for vkey in log_keys}
    names = [key.name for key in map(parse_witness_vkey, parameters.witnesses) if key.spki in own]
    return [f"witness {name}: expected a key of its own, got the log's" for name in names]


LAYERS = ("user-ns", "network-ns", "pid-ns", "ipc-ns", "mount-ns", "uts-ns", "seccomp", "landlock")
"""The sandbox's layers that a policy may accept as missing; no-new-privs is never optional."""


class Tier(Value):
    """What a release of this materiality needs: at least what every release needs, and more where this says so. Its
    score, the exposure's place times the purpose's, is `from_score` or more."""

    name: Identifier
    from_score: int = Field(ge=1, le=256)
    reviewers: int = Field(ge=1, le=16)
    distinct_fields: int = Field(ge=1, le=16)
    required_fields: tuple[Identifier, ...] = Field(max_length=16)
    review_s: int = Field(ge=60, le=31_536_000, description="how long a request may be approved")
    reattest_s: int = Field(ge=60, le=315_360_000, description="how long an approval counts before it is made again")
    authorise_runs: bool = Field(default=False, description="a second person must let the training run begin")


class SlurmAccount(Value):
    """Whose runs on the cluster are submitted under which account of Slurm."""

    person: Identifier
    account: Token


def _tier(name: str, from_score: int, reviewers: int, review_days: int, reattest_days: int) -> Tier:
    return Tier(
        name=name,
        from_score=from_score,
        reviewers=reviewers,
        distinct_fields=2,
        required_fields=(),
        review_s=review_days * 86_400,
        reattest_s=reattest_days * 86_400,
    )


class Parameters(Value):
    """Numbers the invariants count with. All durations in seconds.

    A set that was adopted before a parameter came has its default, so a new one defaults to what was done before it,
    and no default ever changes (docs/adr/0014-versions-of-meaning.md).
    """

    reviewers: int = Field(default=2, ge=1, le=16, description="standing approvals an adapter needs for a unit")
    distinct_fields: int = Field(default=2, ge=1, le=16, description="different fields among those reviewers")
    required_fields: tuple[Identifier, ...] = Field(default=())
    order_lifetime_s: int = Field(
        default=172_800, ge=60, le=604_800, description="how long an order may wait for a second administrator"
    )
    approval_lifetime_s: int = Field(default=31_536_000, ge=3_600, le=315_360_000)
    session_lifetime_s: int = Field(default=900, ge=60, le=900)
    token_lifetime_s: int = Field(default=3_600, ge=60, le=3_600)
    clock_skew_s: int = Field(default=60, ge=0, le=600)
    accepted_missing_layers: tuple[str, ...] = Field(default=())
    key_overlap_s: int = Field(
        default=2_592_000, ge=0, le=31_536_000, description="how long a replaced key may stand on"
    )
    name_retention_s: int = Field(
        default=15_552_000,
        ge=0,
        le=3_153_600_000,
        description="a printed name stays so long after its owner has gone",
    )
    text_retention_s: int = Field(default=0, ge=0, le=3_153_600_000, description="free text stays this long")
    training_checkpoint_retention_s: int = Field(
        default=2_592_000,
        ge=0,
        le=3_153_600_000,
        description="training checkpoints stay so long after the adapter was released or rejected",
    )
    export_lifetime_s: int = Field(
        default=604_800,
        ge=60,
        le=31_536_000,
        description="how long an exported adapter may be loaded: no revocation reaches it",
    )
    witnesses: tuple[str, ...] = Field(default=(), max_length=16, description="vkeys (C2SP tlog-cosignature, 0x04)")
    witness_quorum: int = Field(default=0, ge=0, le=16, description="cosignatures that admission asks for")
    witness_lifetime_s: int = Field(default=604_800, ge=60, le=31_536_000, description="and how old they may be")
    licences: tuple[Token, ...] = Field(
        default=(), max_length=256, description="words for licences that SPDX does not list"
    )
    classifications: tuple[Token, ...] = Field(
        default=("public", "internal", "confidential", "restricted"),
        min_length=1,
        max_length=64,
        description="what a dataset may be classified as",
    )
    requests_required: bool = Field(default=False, description="an approval counts only on a release request")
    exposures: tuple[Token, ...] = Field(
        default=("internal", "customers", "public"), min_length=1, max_length=16, description="the least first"
    )
    purposes: tuple[Token, ...] = Field(
        default=("draft", "assist", "decide"), min_length=1, max_length=16, description="the least first"
    )
    tiers: tuple[Tier, ...] = Field(
        default=(_tier("low", 1, 2, 30, 365), _tier("medium", 3, 2, 30, 365), _tier("high", 6, 3, 14, 180)),
        min_length=1,
        max_length=16,
        description="by rising score; the first from 1",
    )
    delegation_lifetime_s: int = Field(
        default=2_592_000, ge=60, le=31_536_000, description="how long a reviewer may delegate a field"
    )
    break_glass_lifetime_s: int = Field(
        default=28_800, ge=60, le=259_200, description="how long a version may answer in an emergency"
    )

    tries_a_day: int = Field(
        default=100, ge=0, le=100_000, description="prompts that a reviewer may put to adapters that are not released"
    )
    required_gates: tuple[Digest, ...] = Field(
        default=(), max_length=64, description="gate sets, one of which a run for release must be judged by"
    )
    failed_verdict: Literal["shown", "stops"] = Field(
        default="shown", description="whether a verdict that was not passed stops a release"
    )
    most_sweep_runs: int = Field(default=16, ge=1, le=256, description="runs that one sweep may order")
    slurm_accounts: tuple[SlurmAccount, ...] = Field(
        default=(), max_length=1024, description="who may train on the cluster, and under which account there"
    )
    passkeys_synced: bool = Field(default=False, description="passkeys that can be copied, such as to a cloud, count")
    passkeys_on_localhost: bool = Field(
        default=False, description="passkeys of localhost count, where every user of the machine can listen"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.distinct_fields > self.reviewers:
            raise ValueError(
                f"distinct_fields: expected at most reviewers ({self.reviewers}), got {self.distinct_fields}"
            )
        unknown = sorted(set(self.accepted_missing_layers) - set(LAYERS))
        if unknown:
            raise ValueError(f"accepted_missing_layers: expected some of {', '.join(LAYERS)}, got {', '.join(unknown)}")
        persons = [row.person for row in self.slurm_accounts]
        if twice := sorted({name for name in persons if persons.count(name) > 1}):
            raise ValueError(f"slurm_accounts: expected each person once, got {', '.join(twice)} twice")
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
            if tier.distinct_fields > tier.reviewers:
                got = f"at most reviewers ({tier.reviewers}), got {tier.distinct_fields}"
                raise ValueError(f"tier {tier.name}, distinct_fields: expected {got}")

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
    """What one adopted document says. The digest of the document's own bytes names it in every decision: encoded again,
    a set of an earlier build would have other bytes."""

    version: Literal[1] = 1
    name: Identifier
    parameters: Parameters
    cedar: str = Field(max_length=1_000_000)
    cedar_schema: str = Field(max_length=1_000_000)


def parse_policy(data: bytes) -> PolicySet:
    """The policy set of canonical bytes, in which parameters may be missing. BadInput names the one that is out of its
    bounds, and what only a later build knows."""
    try:
        value = parse_canonical(data)
    except BadInput as error:
        raise BadInput(f"policy set: {error.message}") from None
    if isinstance(value, dict):
        _check_names(value)
    try:
        policy = PolicySet.model_validate_json(data)
    except ValidationError as error:
        raise BadInput(f"policy set: {explain(error)}") from None
    if encode_canonical(policy.model_dump(mode="json", exclude_unset=True)) != data:  # `true` would be version 1
        raise BadInput("policy set: expected canonical JSON (RFC 8785), got a different encoding")
    return policy


def _check_names(value: dict[str, Any]) -> None:
    """Nothing that only a later build knows, and no member missing but parameters."""
    parameters = value.get("parameters")
    names = parameters.keys() if isinstance(parameters, dict) else set()
    later = [f"parameters.{name}" for name in sorted(names - Parameters.model_fields.keys())]
    later += sorted(value.keys() - PolicySet.model_fields.keys())
    if later:
        raise BadInput(
            f"policy set: expected members that this build knows, got {', '.join(later)[:200]}: "
            "the set is of a later build, so read it with that one"
        )
    if missing := sorted(PolicySet.model_fields.keys() - value.keys()):
        raise BadInput(f"policy set: expected {', '.join(PolicySet.model_fields)}, got none of {', '.join(missing)}")
