"""The texts behind commitments: which an entry binds, and that none of them was erased."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from sys import intern

from appliance.domain.core.entry import Entry
from appliance.domain.core.order import Order
from appliance.domain.core.records.site import Text
from appliance.domain.core.state import State
from appliance.domain.core.table import Table
from appliance.errors import Denied

Texts = list[tuple[Table[Text], str, Text]]


def bound_texts(
    state: State,
    entry: Entry,
    order: Order | None,
    message: str = "",
    about: tuple[str, ...] = (),
    withheld: Collection[str] = (),
) -> Texts:
    """The texts that an entry binds: those of its order but for the withheld, and why something failed; `about`: what
    else that is about."""
    found = [] if order is None else [one for one in order.commitments().values() if one not in withheld]
    found += [message] if message else []
    if not found:
        return []
    check_unerased(state, entry, found)
    if order is not None and not order.keeps_texts:
        found = [commitment for commitment in found if commitment not in state.texts]
    # Subjects repeat from entry to entry; orders are found by their digest, and no hold is placed on one.
    about = (*entry.subjects, *about, *(() if order is None else order.about()))
    subjects = _share(tuple(subject for subject in dict.fromkeys(about) if not subject.startswith("order:")))
    text = Text(entry.index, entry.time, intern(entry.actor), subjects)
    return [(state.texts, commitment, _joined(state.texts.get(commitment), text)) for commitment in found]


def check_unerased(state: State, entry: Entry, commitments: Iterable[str]) -> None:
    """Denied where a text was erased that would travel beside the log again, or that a name would stand for."""
    for commitment in commitments:
        if (known := state.texts.get(commitment)) is not None and known.erased is not None:
            said = f"expected one that was not erased, got that of entry {known.erased}"
            raise Denied(f"entry {entry.index}, commitment {commitment}: {said}", code="erased")


def _joined(before: Text | None, text: Text) -> Text:
    """What was bound before, and is bound again: it is kept for whatever either is about, as long as the later one."""
    if before is None:
        return text
    about = (*before.subjects, *text.subjects, f"principal:{text.signer}")
    return before._replace(time=text.time, subjects=_share(tuple(dict.fromkeys(about))))


@lru_cache(maxsize=4096)
def _share(subjects: tuple[str, ...]) -> tuple[str, ...]:
    """The first of equal ones, so that they lie in memory once."""
    return subjects
