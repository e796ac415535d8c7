"""From drafts to entries that can be written in one transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import ValidationError

from appliance.domain import rules
from appliance.domain.entry import Draft, Entry, encode_entry
from appliance.domain.event import Event
from appliance.domain.names import explain
from appliance.domain.state import State
from appliance.domain.table import Mark
from appliance.domain.typed import make_typed
from appliance.errors import BadInput, TooLarge
from appliance.formats.commitment import verify_disclosure
from appliance.formats.digest import digest_bytes
from appliance.formats.merkle import Frontier
from appliance.store.queue import Waiting
from appliance.store.rows import Change, Head

MAX_DOCUMENT_BYTES = 4 << 20


class Staged(NamedTuple):
    """An entry that the rules have accepted, and what is written with it."""

    waiting: Waiting
    entry: Entry
    data: bytes
    nodes: bytes
    changes: list[Change]

    @property
    def draft(self) -> Draft:
        return self.waiting.draft


@dataclass
class Batch:
    """Entries that one commit makes durable. `frontier` is the tree's right edge after the last of them."""

    before: Head
    mark: Mark
    frontier: Frontier
    staged: list[Staged] = field(default_factory=list)

    @property
    def head(self) -> Head:
        return Head(self.frontier.size, self.staged[-1].entry.leaf)


def stage(batch: Batch, waiting: Waiting, state: State, now: str) -> None:
    """Adds the draft as the next entry, once guard and rules have accepted it; else the state is as it was."""
    mark = state.mark()
    try:
        if waiting.guard is not None:
            waiting.guard(state, max(now, state.last_time))
        entry = propose(waiting.draft, state, now)
        data = encode_entry(entry)
        rules.apply(state, entry, waiting.draft.documents)
    except BaseException:
        state.take_back(mark)
        raise
    batch.frontier, nodes = batch.frontier.append_nodes(entry.leaf)
    batch.staged.append(Staged(waiting, entry, data, b"".join(nodes), state.take_changes()))


def check_draft(draft: Draft) -> None:
    """What the rules do not see: sizes, and that texts behind commitments are those committed to."""
    for role, content in draft.documents.items():
        if len(content) > MAX_DOCUMENT_BYTES:
            raise TooLarge(f"document {role}: expected at most {MAX_DOCUMENT_BYTES} bytes, got {len(content)}")
    for disclosure in draft.disclosures:
        verify_disclosure(disclosure)
        if "\0" in disclosure.text:
            raise BadInput("disclosure, text: expected no NUL, got one")


def propose(draft: Draft, state: State, now: str) -> Entry:
    """The entry that follows the state; BadInput names the field that none could have."""
    fields = {
        "v": 1,
        "index": state.size,
        "time": max(now, state.last_time),
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
