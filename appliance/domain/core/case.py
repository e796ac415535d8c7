"""Entries with what belongs to them: the input of a rule, bound texts, and recorded entries as clients look them up."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from sys import intern
from typing import Any, NamedTuple, TypeVar

from appliance.domain.core.entry import Entry, Event
from appliance.domain.core.order import Order
from appliance.domain.core.records.site import CommittedText
from appliance.domain.core.signatures import AcceptedOrder, OrderReader
from appliance.domain.core.state import State, Table
from appliance.errors import BadInput, Denied, NotFound
from appliance.formats.core.commitment import Disclosure

Change = tuple[Table[Any], str, Any]
Changes = list[Change]
"""The changes of an entry: (table, key, value), where None as the value removes the row."""

O = TypeVar("O", bound=Order)  # noqa: E741
E = TypeVar("E", bound=Event)


class Case(NamedTuple):
    """The input of a rule for one entry."""

    state: State
    entry: Entry
    body: Event
    documents: Mapping[str, bytes]
    reader: OrderReader
    signed: AcceptedOrder | None = None
    """The order that the entry's actor signed."""
    ordered: Order | None = None
    """The order that the entry carries out: the signed order, or the order that it countersigns.

    It is authentic, and no invariant refuses it.
    """

    @property
    def accepted(self) -> AcceptedOrder:
        """Return the order that the actor signed.

        Raises: BadInput if there is none.
        """
        if self.signed is None:
            raise BadInput(f"{self.place}: order: expected one, got none")
        return self.signed

    @property
    def place(self) -> str:
        """Return the entry's index and type, as error messages name it."""
        return f"entry {self.entry.index} ({self.entry.type})"

    def of(self, model: type[E]) -> E:
        """Return the body as the type that the rule is for.

        Raises: BadInput if it has another type.
        """
        if not isinstance(self.body, model):
            raise BadInput(f"entry {self.entry.index}: body: expected {model.__name__}, got {type(self.body).__name__}")
        return self.body

    def order(self, model: type[O]) -> O:
        """Return the order that the entry carries out, as the type that the rule is for.

        Raises: Denied if there is none or it has another type.
        """
        if not isinstance(self.ordered, model):
            got = "none" if self.ordered is None else self.ordered.action
            raise Denied(f"{self.place}: order: expected {model.action}, got {got}")
        return self.ordered

    def require(self, condition: bool, rule: str, expected: object, got: object) -> None:
        """Raise Denied unless the condition holds."""
        if not condition:
            raise Denied(f"{self.place}: {rule}: expected {expected}, got {got}")


def check_sandbox(case: Case, sandbox_probes: dict[str, str]) -> None:
    """Check that the worker made escape attempts and that the sandbox refused all of them.

    `sandbox_probes` maps the name of each attempt to its result.

    Raises: Denied otherwise.
    """
    open_probes = sorted(name for name, result in sandbox_probes.items() if result != "refused")
    case.require(bool(sandbox_probes), "sandbox_probes", "the worker's probes", "none")
    case.require(not open_probes, "sandbox_probes", "every probe refused", f"through: {', '.join(open_probes)}")


@dataclass(frozen=True)
class RecordedEntry:
    """An entry of the log with its documents and the disclosures of its texts."""

    entry: Entry
    documents: Mapping[str, bytes]
    disclosures: tuple[Disclosure, ...]

    def document(self, role: str) -> bytes:
        """Return the bytes of a document.

        Raises: NotFound if the entry has none in this role.
        """
        data = self.documents.get(role)
        if data is None:
            raise NotFound(
                f"entry {self.entry.index}, document {role}: expected one of "
                f"{', '.join(self.documents) or 'none'}, got no such role"
            )
        return data

    def texts_of(self, order: Order) -> dict[str, str]:
        """Return the texts of the order's commitments by field. Erased and withheld texts are left out."""
        known = {one.commitment: one.text for one in self.disclosures}
        return {name: known[bound] for name, bound in order.commitments().items() if bound in known}


Texts = list[tuple[Table[CommittedText], str, CommittedText]]


def bound_texts(
    state: State,
    entry: Entry,
    order: Order | None,
    message: str = "",
    about: tuple[str, ...] = (),
    withheld: Collection[str] = (),
) -> Texts:
    """Return the rows of the texts that an entry binds.

    These are the texts of its order except `withheld`, and `message`, the cause of a failure. `about` are subjects of
    the texts beside those of the entry and its order.

    Raises: Denied if one of them was erased.
    """
    commitments = [] if order is None else [value for value in order.commitments().values() if value not in withheld]
    commitments += [message] if message else []
    if not commitments:
        return []
    check_unerased(state, entry, commitments)
    if order is not None and not order.keeps_texts:
        commitments = [commitment for commitment in commitments if commitment not in state.texts]
    # Subjects of entries repeat. Orders are looked up by their digest, and a hold cannot be placed on one.
    about = (*entry.subjects, *about, *(() if order is None else order.about()))
    subjects = _share(tuple(subject for subject in dict.fromkeys(about) if not subject.startswith("order:")))
    text = CommittedText(entry.index, entry.time, intern(entry.actor), subjects)
    return [(state.texts, commitment, _merge(state.texts.get(commitment), text)) for commitment in commitments]


def check_unerased(state: State, entry: Entry, commitments: Iterable[str]) -> None:
    """Raise Denied if the text of one of the commitments was erased.

    Otherwise the text could be stored beside the log again, or a name could refer to an erased text.
    """
    for commitment in commitments:
        if (row := state.texts.get(commitment)) is not None and row.erased is not None:
            problem = f"expected one that was not erased, got that of entry {row.erased}"
            raise Denied(f"entry {entry.index}, commitment {commitment}: {problem}", code="erased")


def _merge(before: CommittedText | None, text: CommittedText) -> CommittedText:
    """Merge the row of a text that is bound again: it has the subjects of both, and the later time."""
    if before is None:
        return text
    about = (*before.subjects, *text.subjects, f"principal:{text.signer}")
    return before._replace(time=text.time, subjects=_share(tuple(dict.fromkeys(about))))


@lru_cache(maxsize=4096)
def _share(subjects: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first of equal tuples, so that they are in memory once."""
    return subjects
