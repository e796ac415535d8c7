"""Entries and rows of the state that a unit's session may read under the policy parameter `units_read`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.domain.core.entry import Entry
from appliance.domain.core.records.data import Base, Dataset, ValidationSet
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.state import State

GOVERNANCE = frozenset(
    {
        "administrator.recovered",
        "appliance.initialized",
        "checkpoint.cosigned",
        "clock.reset",
        "review.delegated",
        "heartbeat",
        "key.enrolled",
        "key.revoked",
        "log-key.rotated",
        "log.restored",
        "post-quantum-keys.added",
        "passkey.enrolled",
        "policy.adopted",
        "principal.enrolled",
        "principal.enrolled-with-passkey",
        "principal.granted",
        "principal.revoked",
        "principal.role-removed",
        "principals.enrolled",
        "process.lost",
        "rules.raised",
        "service.started",
        "service.stopped",
    }
)
"""Types of entries about the service, its policy and its people. Every unit may read them."""

APPROVAL_CHAIN = frozenset(
    {
        "adapter.quarantined",
        "adapter.revoked",
        "adapter.sealed",
        "base.imported",
        "base.quarantined",
        "base.revoked",
        "dataset.imported",
        "dataset.revoked",
        "finding.added",
        "finding.closed",
        "import.requested",
        "release.activated",
        "release.emergency",
        "release.requested",
        "release.resumed",
        "release.rolled-back",
        "release.suspended",
        "request.withdrawn",
        "review.recorded",
        "run.authorised",
        "run.checkpointed",
        "run.finished",
        "run.requested",
        "run.resumed",
        "run.started",
        "validation-set.imported",
        "validation-set.revoked",
    }
)
"""Types of entries that made or approved an adapter. A unit may read those of its own adapters."""

_CHAIN_PREFIXES = ("adapter:", "base:", "dataset:", "run:", "unit:", "validation-set:")
"""Prefixes of the subjects that must all be in the chain."""

_OF_UNIT = ("release", "slot", "export", "application", "issued-token", "token")
"""Kinds of rows with a field `unit`."""
_OF_CHAIN = {
    "adapter": "adapter",
    "base": "base",
    "dataset": "dataset",
    "evaluation": "adapter",
    "run": "run",
    "validation-set": "validation-set",
}
"""Kinds of rows whose key is the name of a thing in the chain, with the kind of that thing."""
_SHARED = ("site", "principal", "key", "delegation", "witness")
"""Kinds of rows about the service and its people."""


@dataclass(frozen=True)
class UnitReader:
    """The reading rights of one unit's session at one moment.

    `chain`: ledger subjects of the unit's adapters, of the runs, datasets, bases and validation sets behind them, and
    of the orders that imported these.
    `others`: names of all other units.
    """

    unit: str
    chain: frozenset[str]
    others: frozenset[str]

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        """Groups of search keys. Every readable entry has at least one key of each group.

        The second group leaves out requests of other units to the same adapters, so that a search does not read them.
        """
        own = (f"actor={self.unit}", f"unit:{self.unit}", f"principal:{self.unit}")
        public = tuple(f"type={name}" for name in sorted(GOVERNANCE))
        chain = tuple(f"type={name}" for name in sorted(APPROVAL_CHAIN))
        return (*own, *sorted(self.chain), *public), (*own, *chain, *public)

    def may_read(self, entry: Entry) -> bool:
        """Return True if the entry is the unit's own, in the approval chain of its adapters, or public governance.

        Governance that names another unit is not public, even if it names this unit, too.
        """
        names = frozenset(entry.subjects)
        if entry.type in GOVERNANCE:
            principals = {name.removeprefix("principal:") for name in names if name.startswith("principal:")}
            return entry.actor not in self.others and principals.isdisjoint(self.others)
        if entry.actor == self.unit or not names.isdisjoint((f"unit:{self.unit}", f"principal:{self.unit}")):
            return True
        if entry.type not in APPROVAL_CHAIN:
            return False
        things = {name for name in names if name.startswith(_CHAIN_PREFIXES)}
        ordered = any(name in self.chain for name in names if name.startswith("order:"))
        return ordered or (bool(things) and things <= self.chain)

    def narrow_row(self, kind: str, key: str, value: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the row as the unit may read it, or None.

        The row of an adapter contains decisions for this unit only.
        """
        if kind in _SHARED:
            owner = key if kind == "principal" else value.get("principal")
            return None if owner in self.others else dict(value)
        if kind in _OF_UNIT:
            return dict(value) if value["unit"] == self.unit else None
        if kind not in _OF_CHAIN or f"{_OF_CHAIN[kind]}:{key}" not in self.chain:
            return None
        own = ("requests", "reviews", "findings", "suspensions") if kind == "adapter" else ()
        return {
            name: [item for item in member if item.get("unit") in (None, self.unit)] if name in own else member
            for name, member in value.items()
        }


def find_unit_reader(state: State, principal: str) -> UnitReader | None:
    """Return the reading rights of a unit, or None for a principal who may read everything.

    People may read everything. Units may if the current policy set says `units_read: all`.
    """
    row = state.principals.get(principal)
    if row is None or "unit" not in row.roles or state.parameters.units_read == "all":
        return None
    others = frozenset(
        other.name for other in state.principals.values() if "unit" in other.roles and other.name != principal
    )
    return UnitReader(principal, frozenset(_list_chain(state, principal)), others)


def _list_chain(state: State, unit: str) -> set[str]:
    active = {step.adapter for release in state.releases.values() if release.unit == unit for step in release.history}
    active |= {export.adapter for export in state.exports.values() if export.unit == unit}
    subjects: set[str] = set()
    for name, adapter in state.adapters.items():
        units = {request.unit for request in adapter.requests} | {review.unit for review in adapter.reviews}
        if name in active or unit in units:
            subjects |= _list_origins(state, name, adapter)
    return subjects


def _list_origins(state: State, name: str, adapter: Adapter) -> set[str]:
    sets = [bound.validation_set for bound in adapter.sets]
    subjects = {f"adapter:{name}", f"run:{adapter.run}", f"base:{adapter.base}", f"dataset:{adapter.dataset}"}
    subjects |= {f"validation-set:{validation_set}" for validation_set in sets}
    imports: list[Base | Dataset | ValidationSet | None] = [state.bases.get(adapter.base)]
    imports += [state.datasets.get(adapter.dataset), *map(state.validation_sets.get, sets)]
    return subjects | {f"order:{row.order}" for row in imports if row is not None}
