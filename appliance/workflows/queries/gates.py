"""Gates files that an order to train can bind.

They are those that come with the appliance, the same on a validation set, and those that earlier orders bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from appliance.build import find_folder
from appliance.domain.core.names import encode_value
from appliance.domain.core.records.data import ValidationSet
from appliance.domain.data.kinds import PREFERENCE
from appliance.domain.evaluation.gates import move_gates, parse_gate_file, parse_gates
from appliance.domain.evaluation.rules import CLASSIFICATION
from appliance.errors import BadInput
from appliance.formats.core.digest import digest_bytes
from appliance.workflows.core.context import LedgerContext

MOST_BOUND = 50
"""Maximum number of gates files of earlier orders. The latest are listed."""
MOST_SETS = 50
"""Maximum number of validation sets with a gates file. The latest are listed."""
_FILES = {CLASSIFICATION: "classification", PREFERENCE: "preferences"}
"""Name of the shipped gates file that fits a kind of rows. "answers" fits all others."""


@dataclass(frozen=True)
class KnownGates:
    """A gates file with its canonical bytes.

    `validation_set` is the set on which a shipped file was put. `run` is the last run that a file of the log decides
    on.
    """

    name: str
    data: bytes
    run: str | None = None
    validation_set: str | None = None

    @property
    def digest(self) -> str:
        """Return the digest by which orders bind it."""
        return digest_bytes(self.data)

    @property
    def title(self) -> str:
        """Return its name for a list."""
        return self.name if self.run is None else f"{self.name}, as for {self.run}"


@lru_cache(maxsize=1)
def _list_shipped() -> tuple[KnownGates, ...]:
    paths = sorted((find_folder("policies") / "gates").glob("*.json"))
    files = [parse_gate_file(path.read_bytes(), f"gates file, {path.name}") for path in paths]
    return tuple(KnownGates(gates.name, encode_value(gates)) for gates in files)


def put_on_set(found: ValidationSet) -> KnownGates:
    """Return the shipped gates file that fits the rows of a validation set, with the set in place of held-out rows."""
    name = _FILES.get(found.dataset_kind, "answers")
    shipped = next(one for one in _list_shipped() if one.name == name)
    moved = move_gates(parse_gates(shipped.data), found.name)
    return KnownGates(moved.name, encode_value(moved), validation_set=found.name)


def list_gates(context: LedgerContext) -> tuple[KnownGates, ...]:
    """Return the known gates files: the shipped ones, those on validation sets, those of the latest orders."""
    sets = {one.name: one for one in context.ledger.state.validation_sets.values() if one.revoked is None}
    shipped = (*_list_shipped(), *map(put_on_set, list(sets.values())[-MOST_SETS:]))
    bound = {run.gates: run.id for run in context.ledger.state.runs.values() if run.gates is not None}
    for one in shipped:
        bound.pop(one.digest, None)
    found = [(digest, bound[digest]) for digest in reversed(bound)][:MOST_BOUND]
    return (*shipped, *(_read(context, digest, run) for digest, run in found))


def _read(context: LedgerContext, digest: str, run: str) -> KnownGates:
    data = context.ledger.document(digest)
    return KnownGates(parse_gates(data).name, data, run)


def read_gates(context: LedgerContext, digest: str) -> bytes:
    """Return the bytes of a known gates file by its digest.

    Raises: BadInput for another one.
    """
    for one in list_gates(context):
        if one.digest == digest:
            return one.data
    raise BadInput(f"gates: expected a file of the list, or one of your own, got {digest:.80}")
