"""One entry whole: what it says, its documents, the texts it committed to, and the proof that it is in the log."""

from __future__ import annotations

import base64
import json
from typing import Any

from pydantic import Field

from appliance.domain.core.entry import parse_entry
from appliance.domain.rulebook.registry import ORDERS, VERBS
from appliance.domain.rulebook.showing import label_of
from appliance.errors import ApplianceError, NotFound
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import MAX_DECIMAL
from appliance.formats.signatures.dsse import parse_envelope
from appliance.web.console.auditors.proof import PROOF_PAGE_DIGEST
from appliance.web.console.core.page import PEOPLE, Page, Query, Value, Viewer
from appliance.web.console.core.why import Reason, explain_reasons
from appliance.workflows.core.context import Context
from appliance.workflows.queries.log import show

MOST_SHOWN = 20_000
"""Characters of a document on the page; the file has all of it."""
ERASED = "erased or not disclosed"


class EntryQuery(Query):
    index: int = Field(ge=0, le=MAX_DECIMAL)


class Document(Value):
    """`order`: label and value of each member, where it is an order; `text`: its bytes as far as they are text."""

    role: str
    digest: str
    bytes: int
    order: tuple[tuple[str, str], ...]
    meaning: str | None
    text: str | None
    is_cut: bool


class EntryPage(Value):
    index: int
    time: str
    type: str
    actor: str
    source: str
    outcome: str
    subjects: tuple[str, ...]
    body: dict[str, Any]
    prev: str
    leaf: str
    reasons: tuple[Reason, ...]
    """Of a refusal: each with the rule it is of."""
    texts: tuple[tuple[str, str | None], ...]
    """Commitment and text; None where the text was erased."""
    documents: tuple[Document, ...]
    proof: tuple[str, ...]
    checkpoint: str
    size: int
    proof_page: str
    """Digest of the page that checks the proof."""


def entry(context: Context, viewer: Viewer, query: EntryQuery) -> EntryPage:
    size = context.ledger.state.size
    if query.index >= size:
        raise NotFound(f"entry {query.index}: expected one of the log's {size} entries, got none")
    found = show(context, query.index)
    data = base64.b64decode(found["bytes"])
    parsed = parse_entry(data)
    texts = {one["commitment"]: one["text"] for one in found["disclosures"]}
    documents = {role: base64.b64decode(content) for role, content in found["documents"].items()}
    return EntryPage(
        index=parsed.index,
        time=parsed.time,
        type=parsed.type,
        actor=parsed.actor,
        source=parsed.source,
        outcome=parsed.outcome,
        subjects=parsed.subjects,
        body=parsed.body,
        prev=parsed.prev,
        leaf=parsed.link,
        reasons=_reasons(parsed.outcome, parsed.body, texts),
        texts=tuple((name, texts.get(name)) for name in sorted(_commitments(parsed.body))),
        documents=tuple(_document(role, content, texts) for role, content in documents.items()),
        proof=tuple(found["proof"]),
        checkpoint=found["checkpoint"],
        size=size,
        proof_page=PROOF_PAGE_DIGEST,
    )


def _commitments(body: dict[str, Any]) -> set[str]:
    return {value for value in body.values() if isinstance(value, str) and value.startswith("hmac-sha256:")}


def _reasons(outcome: str, body: dict[str, Any], texts: dict[str, str]) -> tuple[Reason, ...]:
    """Of a denial its reasons, or its message where it has one alone."""
    if outcome not in ("denied", "failure"):
        return ()
    told = [body[name] for name in ("reasons", "message", "reason") if body.get(name)]
    lines = told[0] if told and isinstance(told[0], list) else told[:1]
    return explain_reasons(tuple(texts.get(str(line), str(line)) for line in lines), str(body.get("code", "")))


def _document(role: str, content: bytes, texts: dict[str, str]) -> Document:
    meaning, order = read_order(content, texts)
    try:
        text: str | None = _pretty(content.decode("utf-8"))
    except UnicodeDecodeError:
        text = None
    return Document(
        role=role,
        digest=digest_bytes(content),
        bytes=len(content),
        order=order,
        meaning=meaning,
        text=None if text is None else text[:MOST_SHOWN],
        is_cut=text is not None and len(text) > MOST_SHOWN,
    )


def _pretty(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text


def read_order(content: bytes, texts: dict[str, str]) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """What an order means and says; nothing for a document that is none."""
    try:
        order = ORDERS.parse(parse_envelope(content).payload)
    except ApplianceError:
        return None, ()
    lines = [("verb", order.verb)]
    for name, value in order.model_dump(mode="json").items():
        if value is None:
            continue
        shown = texts.get(value, value) if isinstance(value, str) else value
        if isinstance(shown, str) and shown.startswith("hmac-sha256:"):
            shown = f"{shown} ({ERASED})"
        lines.append((label_of(name), shown if isinstance(shown, str) else json.dumps(shown, indent=1)))
    return VERBS[order.verb].means(order), tuple(lines)


PAGE = Page("/log/{index}", "Entry", PEOPLE, EntryQuery, entry, "auditors/entry.html")
