"""Sources of the values from which the derived fields of orders are filled.

The client reads entries of the log and checks their proofs; the service reads its state. A value that only the service
states is `UnprovenValue`, and the page that a person signs marks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from appliance.domain.core.policy import Parameters
from appliance.formats.core.commitment import Disclosure

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class ProvenValue(Generic[T]):
    """A value that follows from proved entries of the log, or from bytes that were hashed."""

    value: T

    def of(self, derived: U) -> ProvenValue[U]:
        """Return a value that was computed from this one."""
        return ProvenValue(derived)


@dataclass(frozen=True)
class UnprovenValue(Generic[T]):
    """A value that the service states without a proof."""

    value: T
    parts: frozenset[str] = frozenset()
    """Names of the fields to mark, if not the whole value is reported."""

    def of(self, derived: U) -> UnprovenValue[U]:
        """Return a value that was computed from this one."""
        return UnprovenValue(derived)


Kind = Literal["adapter", "base", "dataset", "validation-set"]


@dataclass(frozen=True)
class Artifact:
    """The digests that the entry of an import or a sealing binds: of the manifest, and of an adapter's verdict."""

    manifest: str
    verdict: str | None = None


@dataclass(frozen=True)
class TrainingFacts:
    """The facts about a base, a dataset and the service's machine from which a recipe is resolved.

    `facts` are the fields of `domain.recipe.recipe.ResolutionFacts`, `validation_sets` the newest valid versions by
    name, and `local_sets` the digests of sets that are in no log.
    """

    facts: Mapping[str, Any]
    runs_on: str
    validation_sets: Mapping[str, str]
    local_sets: Mapping[str, str]


class Lookup(Protocol):
    """A reader of the values that orders are completed with. Methods raise NotFound for unknown names."""

    def find_artifact(self, kind: Kind, name: str) -> ProvenValue[Artifact]:
        """Return the digests of an adapter, a base, a dataset or a validation set."""
        ...

    def find_request(self, adapter: str, unit: str) -> ProvenValue[str] | None:
        """Return the digest of the unit's valid release request for the adapter, or None."""
        ...

    def read_parameters(self) -> ProvenValue[Parameters] | UnprovenValue[Parameters]:
        """Return the parameters of the valid policy set."""
        ...

    def read_training_facts(self, base: str, dataset: str) -> UnprovenValue[TrainingFacts]:
        """Return the facts for a recipe on this base and dataset."""
        ...


@dataclass
class OrderInput:
    """The values that a person chose for an order, by field, and the texts and documents that it binds.

    A value can be `UnprovenValue`. `texts` become commitments. `several` are the texts of fields that hold several
    commitments. `disclosures` belong to commitments among the values.
    """

    values: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    several: dict[str, list[str]] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    disclosures: tuple[Disclosure, ...] = ()

    def word(self, name: str) -> str:
        """Return a value as text, which is empty if there is none."""
        value = self.values.get(name)
        return "" if value is None else str(value.value if isinstance(value, UnprovenValue) else value)


Completed = Mapping[str, ProvenValue[Any] | UnprovenValue[Any]]
"""Derived values by field. They replace the given ones."""

Completion = Callable[[OrderInput, Lookup], Completed]
"""A function that returns the derived fields of an order. It raises NotFound or BadInput for unusable input."""
