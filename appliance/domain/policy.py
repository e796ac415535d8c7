"""The policy set: parameters of the invariants, and the site's own Cedar policies, adopted as one document."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from appliance.domain.names import Identifier, Value, encode_value, parse_value
from appliance.formats.digest import digest_bytes

LAYERS = ("user-ns", "network-ns", "pid-ns", "ipc-ns", "mount-ns", "uts-ns", "seccomp", "landlock")
"""The sandbox's layers that a policy may accept as missing; no-new-privs is never optional."""


class Parameters(Value):
    """Numbers the invariants count with. All durations in seconds."""

    reviewers: int = Field(default=2, ge=1, le=16, description="standing approvals an adapter needs for a unit")
    distinct_fields: int = Field(default=2, ge=1, le=16, description="different fields among those reviewers")
    required_fields: tuple[Identifier, ...] = Field(default=())
    order_lifetime_s: int = Field(default=3_600, ge=60, le=604_800)
    approval_lifetime_s: int = Field(default=31_536_000, ge=3_600, le=315_360_000)
    session_lifetime_s: int = Field(default=900, ge=60, le=900)
    token_lifetime_s: int = Field(default=3_600, ge=60, le=3_600)
    clock_skew_s: int = Field(default=60, ge=0, le=600)
    accepted_missing_layers: tuple[str, ...] = Field(default=())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.distinct_fields > self.reviewers:
            raise ValueError(
                f"distinct_fields: expected at most reviewers ({self.reviewers}), got {self.distinct_fields}"
            )
        unknown = sorted(set(self.accepted_missing_layers) - set(LAYERS))
        if unknown:
            raise ValueError(f"accepted_missing_layers: expected some of {', '.join(LAYERS)}, got {', '.join(unknown)}")
        return self


class PolicySet(Value):
    """One adopted document; its digest names it in every decision."""

    version: Literal[1] = 1
    name: Identifier
    parameters: Parameters
    cedar: str = Field(max_length=1_000_000)
    cedar_schema: str = Field(max_length=1_000_000)

    @property
    def digest(self) -> str:
        return digest_bytes(encode_value(self))


def parse_policy(data: bytes) -> PolicySet:
    """The policy set of canonical bytes; BadInput says which parameter is out of its bounds."""
    return parse_value(PolicySet, data, "policy set")
