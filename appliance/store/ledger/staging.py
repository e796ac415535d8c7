"""From drafts to entries that can be written in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from appliance.domain.core.entry import Draft, Entry, encode_entry
from appliance.domain.core.event import Event
from appliance.domain.core.names import explain
from appliance.domain.core.state import State
from appliance.domain.core.table import Mark
from appliance.domain.governance.endorsement import OrderPending
from appliance.domain.rulebook import apply as rules
from appliance.domain.rulebook.registry import ORDERS
from appliance.domain.rulebook.typed import make_typed
from appliance.errors import ApplianceError, BadInput, TooLarge
from appliance.formats.core.commitment import verify_disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import parse_envelope
from appliance.store.ledger.queue import Appended, Waiting
from appliance.store.ledger.rows import Change, Head

MAX_DOCUMENT_BYTES = 4 << 20

Made = TypeVar("Made")


class Staged(NamedTuple):
    """An entry that the rules have accepted, and what is written with it."""

    draft: Draft
    entry: Entry
    data: bytes
    changes: list[Change]


@dataclass
class Batch:
    """Entries that one commit makes durable, those of each append one after another."""

    before: Head
    mark: Mark
    accepted: list[Waiting] = field(default_factory=list)
    staged: list[Staged] = field(default_factory=list)

    @property
    def head(self) -> Head:
        last = self.staged[-1].entry
        return Head(last.index + 1, last.leaf)

    def succeed(self, checkpoint: bytes) -> None:
        """Every append has its entries, once they are durable."""
        staged = iter(self.staged)
        for waiting in self.accepted:
            own = islice(staged, len(waiting.drafts))
            waiting.succeed([Appended(one.entry, one.data, checkpoint) for one in own])


def stage(batch: Batch, waiting: Waiting, state: State, now: str) -> None:
    """Adds the drafts as the next entries, once the guard and, for each, the rules have accepted them; else the state
    is as it was."""
    mark = state.mark()
    try:
        if waiting.guard is not None:
            waiting.guard(state, time_of(waiting.drafts[0], state, now))
        staged = _each(waiting.drafts, lambda draft: _stage_one(draft, state, now))
    except BaseException:
        state.take_back(mark)
        raise
    batch.accepted.append(waiting)
    batch.staged += staged


def _stage_one(draft: Draft, state: State, now: str) -> Staged:
    entry = propose(draft, state, now)
    data = encode_entry(entry)
    rules.apply(state, entry, draft.documents)
    return Staged(draft, entry, data, state.take_changes())


def _each(drafts: Sequence[Draft], act: Callable[[Draft], Made]) -> list[Made]:
    """What the act makes of each draft; its error names the draft where there are several."""
    made = []
    for number, draft in enumerate(drafts, 1):
        try:
            made.append(act(draft))
        except ApplianceError as error:
            if len(drafts) == 1:
                raise
            raise error.within(f"draft {number} of {len(drafts)}") from error
    return made


def check_drafts(drafts: Sequence[Draft]) -> None:
    """What the rules do not see: sizes, and that texts match their commitments."""
    _each(drafts, _check_draft)


def _check_draft(draft: Draft) -> None:
    for role, content in draft.documents.items():
        if len(content) > MAX_DOCUMENT_BYTES:
            raise TooLarge(f"document {role}: expected at most {MAX_DOCUMENT_BYTES} bytes, got {len(content)}")
    for disclosure in draft.disclosures:
        verify_disclosure(disclosure)
        if "\0" in disclosure.text:
            raise BadInput("disclosure, text: expected no NUL, got one")


def time_of(draft: Draft, state: State, now: str) -> str:
    """The time of the draft's entry: the later of the clock and the last entry, but where it sets the log's time
    back."""
    return now if rules.sets_time(draft.type) else max(now, state.last_time)


def resets_clock(drafts: Sequence[Draft]) -> bool:
    """Whether this is the entry that sets the log's time back, or its order, which waits for a second administrator:
    alone of all they are appended while the clock is behind."""
    draft = drafts[0]
    if len(drafts) != 1 or draft.type != OrderPending.type:
        return len(drafts) == 1 and rules.sets_time(draft.type)
    try:
        return ORDERS.parse(parse_envelope(draft.documents["order"]).payload).sets_time
    except (ApplianceError, LookupError):
        return False  # which the rules refuse


def propose(draft: Draft, state: State, now: str) -> Entry:
    """The entry that follows the state; BadInput names the field that none could have."""
    fields = {
        "v": 1,
        "index": state.size,
        "time": time_of(draft, state, now),
        "type": draft.type,
        "actor": draft.actor,
        "source": draft.source,
        "subjects": draft.subjects,
        "outcome": draft.outcome,
        "prev": state.last_leaf,
        "documents": {role: digest_bytes(content) for role, content in draft.documents.items()},
        "body": draft.body,
    }
    try:
        return make_typed(fields) if isinstance(draft.body, Event) else Entry.model_validate(fields)
    except ValidationError as error:
        raise BadInput(f"entry {state.size} ({draft.type}): {explain(error)}") from None
