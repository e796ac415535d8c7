"""From a draft to an entry that can be written."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from appliance.domain.entry import Draft, Entry
from appliance.domain.names import explain
from appliance.domain.state import State
from appliance.errors import BadInput, TooLarge
from appliance.formats.commitment import verify_disclosure
from appliance.formats.digest import digest_bytes
from appliance.formats.merkle import Frontier
from appliance.store.rows import Head, Node

MAX_DOCUMENT_BYTES = 4 << 20


@dataclass(frozen=True)
class Staged:
    """An entry that the rules have accepted, and what is written with it."""

    draft: Draft
    entry: Entry
    data: bytes
    before: Head
    frontier: Frontier
    root: bytes
    nodes: list[Node]


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
        "body": dict(draft.body),
    }
    try:
        return Entry.model_validate(fields)
    except ValidationError as error:
        raise BadInput(f"entry {state.size} ({draft.type}): {explain(error)}") from None
