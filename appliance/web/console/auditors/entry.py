"""The page of one entry: its content, documents, disclosed texts, and the proof that it is in the log."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.actions.registry import ACTIONS, ORDERS
from appliance.domain.actions.showing import label_of, show_value
from appliance.domain.core.entry import Entry, RecordedRefusal, parse_entry, read_refusal
from appliance.domain.core.records.site import Archive
from appliance.domain.queries.proofs import encode_entry_proof
from appliance.errors import ApplianceError, NotFound, Refusal
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import MAX_DECIMAL
from appliance.formats.signatures.dsse import parse_envelope
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.page import EVERYBODY, PEOPLE, Page, PageValue, Query, Viewer
from appliance.web.console.core.render import STATIC
from appliance.web.console.core.why import Cause, find_cause
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries import log
from appliance.workflows.queries.log import show

PROOF_PAGE = (STATIC / "proof.html").read_bytes()
PROOF_PAGE_DIGEST = digest_bytes(PROOF_PAGE)


def proof_routes(desk: Desk) -> list[Route]:
    """Return the routes of the proof and of the page that checks it."""

    def page(request: Request) -> Response:
        desk.viewer(request).require("page that checks proofs", EVERYBODY)
        # The page is saved and not opened here, so that it runs where the service cannot change it.
        return Response(PROOF_PAGE, media_type="application/octet-stream", headers=desk.named("proof.html"))

    def proof(request: Request) -> Response:
        desk.viewer(request).require("proof of an entry", PEOPLE)
        index = desk.entry(request)
        data = encode_entry_proof(log.entry_proof(desk.context, index))
        return Response(data, media_type="application/json", headers=desk.named(f"entry-{index}-proof.json"))

    return [Route("/proof.html", page), Route("/log/{index}/proof", proof)]


MOST_SHOWN = 20_000
"""Maximum characters of a document on the page. The file has all of it."""
ERASED = "erased or not disclosed"
"""Text in place of one that is not known."""


class EntryQuery(Query):
    """The index of an entry."""

    index: int = Field(ge=0, le=MAX_DECIMAL)


class Document(PageValue):
    """A document of an entry.

    `order` has the label and value of each field, if it is an order. `text` is its content, if it is text.
    """

    role: str
    digest: str
    bytes: int
    order: tuple[tuple[str, str], ...]
    meaning: str | None
    text: str | None
    is_cut: bool


class EntryPage(PageValue):
    """The page of an entry."""

    index: int
    entry: Entry
    leaf: str
    refusals: tuple[Refusal, ...]
    cause: Cause | None
    """Reasons of a refusal, each with its rule."""
    texts: tuple[tuple[str, str | None], ...]
    """Commitment and text; None if the text was erased."""
    documents: tuple[Document, ...]
    proof: tuple[str, ...]
    checkpoint: str
    size: int
    proof_page: str
    """Digest of the page that checks the proof."""


class RemovedEntry(PageValue):
    """The page of an entry whose content an archive removed."""

    index: int
    leaf: str
    archive: Archive
    proof: tuple[str, ...]
    checkpoint: str
    size: int


def entry(context: LedgerContext, viewer: Viewer, query: EntryQuery) -> EntryPage | RemovedEntry:
    """Return the page of an entry. That of a removed one has its hash, its proof and its archive.

    Raises: NotFound if the log has no such entry.
    """
    size = context.ledger.state.size
    if query.index >= size:
        raise NotFound(f"entry {query.index}: expected one of the log's {size} entries, got none")
    removal = log.find_removal(context, query.index)
    if removal is not None:
        return RemovedEntry(
            index=query.index,
            leaf=f"sha256:{removal.leaf.hex()}",
            archive=removal.archive,
            proof=tuple(step.hex() for step in removal.proof),
            checkpoint=removal.checkpoint,
            size=size,
        )
    found = show(context, query.index)
    parsed = parse_entry(found.bytes)
    texts = {one.commitment: one.text for one in found.disclosures}
    return EntryPage(
        index=parsed.index,
        entry=parsed,
        leaf=parsed.link,
        refusals=tuple(read_refusal(RecordedRefusal(**one)) for one in parsed.body.get("refusals", ())),
        cause=_find_cause(parsed.outcome, parsed.body, texts),
        texts=tuple((name, texts.get(name)) for name in sorted(_commitments(parsed.body))),
        documents=tuple(_document(role, content, texts) for role, content in found.documents.items()),
        proof=tuple(step.hex() for step in found.proof),
        checkpoint=found.checkpoint,
        size=size,
        proof_page=PROOF_PAGE_DIGEST,
    )


def _commitments(body: dict[str, Any]) -> set[str]:
    return {value for value in body.values() if isinstance(value, str) and value.startswith("hmac-sha256:")}


def _find_cause(outcome: str, body: dict[str, Any], texts: dict[str, str]) -> Cause | None:
    """Return the message or the code of a failure, or of a denial without refusals."""
    if outcome not in ("denied", "failure") or body.get("refusals"):
        return None
    line = next((str(body[name]) for name in ("message", "reason", "code") if body.get(name)), None)
    return None if line is None else find_cause(texts.get(line, line), str(body.get("code", "")))


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
    """Return the meaning and the fields of an order, or nothing for another document."""
    try:
        order = ORDERS.parse(parse_envelope(content).payload)
    except ApplianceError:
        return None, ()
    lines = [("action", order.action)]
    for name, value in order.model_dump(mode="json").items():
        if value is None:
            continue
        shown = texts.get(value, value) if isinstance(value, str) else value
        if isinstance(shown, str) and shown.startswith("hmac-sha256:"):
            shown = f"{shown} ({ERASED})"
        lines.append((label_of(name), json.dumps(shown, indent=1) if _is_table(shown) else show_value(shown)))
    return ACTIONS[order.action].explain(order), tuple(lines)


def _is_table(value: Any) -> bool:
    """Return True if a value has parts of its own, which are shown as JSON."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict) for one in value))


PAGE = Page("/log/{index}", "Entry", entry)
