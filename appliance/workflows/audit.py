"""What people may ask: the ledger's entries, an export, a verification, and rows of the state with their texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from appliance import __version__
from appliance.access.cases import parse_cases, test_cases
from appliance.access.cedar import SitePolicies
from appliance.domain.entry import parse_entry
from appliance.domain.policy import parse_policy
from appliance.domain.recipe import Facts
from appliance.domain.report import Report
from appliance.domain.state import UNPROJECTED
from appliance.domain.verify import verify_log
from appliance.errors import ApplianceError, Conflict, NotFound
from appliance.formats.canonical import encode_canonical, parse_canonical
from appliance.formats.checkpoint import claimed_size
from appliance.formats.commitment import Disclosure, disclosure_value
from appliance.formats.dsse import parse_envelope
from appliance.formats.export import write_export
from appliance.formats.fields import encode_base64
from appliance.formats.timestamp import encode_time
from appliance.formats.trust import Trust, parse_trust
from appliance.store.search import MAX_TYPES
from appliance.workflows import checkpoints, planning, steps
from appliance.workflows.context import Context
from appliance.workflows.progress import Stream

MAX_LIMIT = 1_000
MAX_SUBJECTS = 8


class LogFilters(BaseModel):
    """Every filter that is given must hold: one of the types, all of the subjects. Entries come in their order, with
    `newest` from the end backwards, a page at a time."""

    model_config = ConfigDict(extra="forbid")
    type: list[str] = Field(default=[], max_length=MAX_TYPES)
    subject: list[str] = Field(default=[], max_length=MAX_SUBJECTS)
    actor: str | None = None
    outcome: str | None = None
    unit: str | None = None
    since: str | None = None
    until: str | None = None
    after: int | None = None
    before: int | None = None
    newest: bool = False
    limit: int = Field(default=100, ge=1, le=MAX_LIMIT)


def about(context: Context) -> dict[str, Any]:
    site = context.ledger.state.site
    return {
        "origin": site.origin,
        "log_key": site.log_key,
        "genesis": f"sha256:{parse_entry(context.ledger.entry_bytes(0)).leaf.hex()}",
        "version": __version__,
        "device": context.device,
        "bfloat16": context.bfloat16,
        "single_administrator": site.single_administrator,
        "policy": site.policy,
        "parameters": site.parameters.model_dump(mode="json"),
    }


def find(context: Context, filters: LogFilters) -> dict[str, Any]:
    given = filters.model_dump(exclude={"type", "subject"})
    found = context.ledger.find(types=filters.type, subjects=filters.subject, **given)
    full = len(found) == filters.limit
    return {
        "entries": [{"index": index, "bytes": encode_base64(data)} for index, data in found],
        "next": found[-1][0] if full else None,
        "size": context.ledger.state.size,
    }


def show(context: Context, index: int) -> dict[str, Any]:
    """One entry whole: its bytes, documents, disclosed texts, and the proof that it is in the log."""
    checkpoint = context.ledger.checkpoint()
    size = claimed_size(checkpoint)
    proof = context.ledger.inclusion_proof(index, size) if index < size else []
    data = context.ledger.entry_bytes(index)
    documents = context.ledger.documents_of(index)
    return {
        "index": index,
        "bytes": encode_base64(data),
        "documents": {role: encode_base64(content) for role, content in documents.items()},
        "disclosures": disclosed(context, [data, *documents.values()]),
        "proof": [step.hex() for step in proof],
        "checkpoint": checkpoint.decode("utf-8"),
    }


def commitments_in(data: bytes) -> list[str]:
    """Every commitment that an entry or an order's envelope holds."""
    try:
        value = parse_canonical(data)
    except ApplianceError:
        return []
    return sorted(set(_commitments(value)))


def _commitments(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith("hmac-sha256:"):
        yield value
    elif isinstance(value, dict):
        if set(value) == {"payload", "payloadType", "signatures"}:
            yield from commitments_in(parse_envelope(encode_canonical(value)).payload)
        for item in value.values():
            yield from _commitments(item)
    elif isinstance(value, list):
        for item in value:
            yield from _commitments(item)


def disclosed(context: Context, sources: list[bytes]) -> list[dict[str, str]]:
    """What is still disclosed of the commitments in these bytes."""
    wanted = sorted({commitment for data in sources for commitment in commitments_in(data)})
    return [disclosure_value(found) for found in context.ledger.disclosures(wanted).values()]


def principals(context: Context) -> list[dict[str, Any]]:
    people = context.ledger.state.principals.values()
    names = context.ledger.disclosures([p.printed_name for p in people if p.printed_name])
    return [
        {
            **person.model_dump(mode="json"),
            "printed_name": names[person.printed_name].text if person.printed_name in names else None,
        }
        for person in people
    ]


def pending_orders(context: Context) -> list[dict[str, Any]]:
    """Orders that wait for a second administrator, with everything that the second signs for."""
    found = []
    for pending in context.ledger.state.pending.values():
        documents = context.ledger.documents_of(pending.index)
        envelope = documents.pop("order")
        found.append(
            {
                **pending.model_dump(mode="json"),
                "envelope": parse_canonical(envelope),
                "disclosures": disclosed(context, [envelope]),
                "documents": {role: encode_base64(data) for role, data in documents.items()},
            }
        )
    return found


def policy(context: Context) -> dict[str, Any]:
    digest = context.ledger.state.site.policy
    document = context.ledger.document(digest)
    parsed = parse_policy(document)
    return {"digest": digest, "policy": parsed.model_dump(mode="json"), "document": encode_base64(document)}


def test_policy(document: bytes, cases: bytes) -> list[dict[str, Any]]:
    """The policy set's own cases, decided by it; nothing is adopted."""
    results = test_cases(parse_policy(document), parse_cases(cases))
    return [asdict(result) for result in results]


def import_status(context: Context, order: str, wait_s: float) -> dict[str, Any]:
    record = context.ledger.state.imports.get(order)
    if record is None:
        raise NotFound(f"import: expected one that was ordered, got {order}")
    stream = context.progress.read(order, 1 << 60, wait_s if record.status == "requested" else 0)
    current = context.ledger.state.imports.get(order) or record
    # Its entry comes before its result: until that is there it is under way to whoever asks.
    under_way = {"status": "requested"} if stream.frames and not stream.ended else {}
    return {
        **current.model_dump(mode="json"),
        **under_way,
        "result": stream.result,
        "error": _why(context, stream),
        "progress": list(stream.frames)[-1:],
    }


def replay_status(context: Context, order: str, wait_s: float) -> dict[str, Any]:
    record = context.ledger.state.replays.get(order)
    if record is None:
        raise NotFound(f"replay: expected one that was ordered, got {order}")
    stream = context.progress.read(order, 1 << 60, wait_s if record.status == "requested" else 0)
    current = context.ledger.state.replays.get(order) or record
    return {**current.model_dump(mode="json"), "error": _why(context, stream), "progress": list(stream.frames)[-1:]}


def _why(context: Context, stream: Stream) -> dict[str, str] | None:
    """Why it failed; what was erased meanwhile is still in memory, and nobody is told it."""
    error = stream.error
    text = None if error is None else context.ledger.state.texts.get(error.get("commitment", ""))
    if error is None or text is None or text.erased is None:
        return error
    return {**error, "message": f"erased by entry {text.erased}"}


def training_checkpoints(context: Context, run: str) -> list[dict[str, Any]]:
    """Those of a run, by step: where a window of it can begin and end."""
    state = context.ledger.state
    if run not in state.runs:
        raise NotFound(f"run: expected a known one, got {run!r}")
    return [made.model_dump(mode="json") for made in state.training_checkpoints.values() if made.run == run]


def run_progress(context: Context, run: str, after: int, wait_s: float) -> dict[str, Any]:
    """The run's frames from `after` on; waits for one where there is none yet and the run goes on."""
    row = context.ledger.state.runs.get(run)
    if row is None:
        raise NotFound(f"run: expected a known one, got {run!r}")
    going = row.status in ("queued", "running", "trained")
    if after > context.progress.read(run, 0, 0).next:
        after = 0  # counted by another life of the service
    stream = context.progress.read(run, after, wait_s if going else 0)
    row, error = context.ledger.state.runs.get(run) or row, _why(context, stream)
    return {
        "status": row.status,
        "frames": [frame for frame in list(stream.frames) if frame["seq"] >= after],
        "next": stream.next,
        "ended": stream.ended or row.status in ("sealed", "failed", "cancelled"),
        "detail": None if error is None else error["message"],
        "adapter": next((key for key, a in context.ledger.state.adapters.items() if a.run == run), None),
    }


def run_steps(context: Context, run: str) -> bytes:
    """The steps that the run has taken: steps.jsonl, or as much of it as there is."""
    return steps.read(context.ledger.state, context.artifacts, context.steps, run)


def recipe_facts(context: Context, base_name: str, dataset_name: str) -> dict[str, Any]:
    """What a client needs to resolve a recipe by itself."""
    state = context.ledger.state
    base, dataset = state.bases.get(base_name), state.datasets.get(dataset_name)
    if base is None:
        raise NotFound(f"base: expected an imported one, got {base_name!r}")
    if dataset is None:
        raise NotFound(f"dataset: expected an imported one, got {dataset_name!r}")
    facts = Facts(
        train_rows=dataset.facts["train_rows"],
        max_tokens=dataset.facts["max_tokens"],
        context_length=base.facts["context_length"],
        device="cuda" if context.device == "cuda" else "cpu",
        bfloat16=context.bfloat16,
    )
    return {
        "base_digest": base.digest,
        "dataset_digest": dataset.digest,
        "facts": facts.model_dump(mode="json"),
        "base_facts": base.facts,
        "dataset_facts": dataset.facts,
        "machine": planning.describe_machine(context).model_dump(mode="json"),
    }


def export(context: Context) -> Iterator[bytes]:
    """The whole log as one tar, as of now, a chunk at a time. Conflict where a text of it is erased meanwhile."""
    checkpoint = context.ledger.checkpoint()
    size = claimed_size(checkpoint)
    return write_export(
        origin=context.ledger.state.site.origin,
        size=size,
        checkpoint=checkpoint,
        entries=lambda: context.ledger.entries(0, size),
        document=context.ledger.document,
        disclosures=partial(_texts, context, size),
    )


def _texts(context: Context, size: int, wanted: list[str]) -> Mapping[str, Disclosure]:
    found, bound = context.ledger.disclosures(wanted), context.ledger.state.texts
    for text in (bound.get(commitment) for commitment in wanted if commitment not in found):
        if text is not None and text.erased is not None and text.erased >= size:
            said = f"expected its texts to stand meanwhile, got one erased by entry {text.erased}; ask again"
            raise Conflict(f"export of {size} entries: {said}")
    return found


def verify(context: Context, trust: dict[str, Any] | None) -> dict[str, Any]:
    """The service's own check of everything it holds. An auditor's check is made elsewhere, from an export."""
    # Of one moment: a text that an order brings in meanwhile would belong to no entry that is read here.
    checkpoint, texts = context.ledger.signed_texts()
    size = claimed_size(checkpoint)
    trusted: Trust | None = None if trust is None else parse_trust(encode_canonical(trust) + b"\n")
    report = verify_log(
        context.ledger.entries(0, size),
        partial(_document_or_none, context),
        texts,
        checkpoint,
        trusted,
        now=encode_time(context.clock()),
        replay=lambda policy: SitePolicies(policy).decide,
    )
    ledger = context.ledger
    local = [
        *ledger.check_guards(),
        *ledger.check_projections(),
        *_check_artifacts(context),
    ]
    return {**_report(report, local), "artifacts": len(_named(context)), "projections": len(list(_rows(context)))}


def _report(report: Report, local: list[str]) -> dict[str, Any]:
    value: dict[str, Any] = report.model_dump(mode="json")
    value["local_findings"] = local
    if local:
        value["verdict"] = "failed"
    return value


def _document_or_none(context: Context, digest: str) -> bytes | None:
    try:
        return context.ledger.document(digest)
    except ApplianceError:
        return None


def _rows(context: Context) -> Iterator[tuple[str, str]]:
    for kind, key, _ in context.ledger.state.projections():
        if kind not in UNPROJECTED:
            yield kind, key


def _named(context: Context) -> list[tuple[str, str]]:
    state = context.ledger.state
    return (
        [(f"base {b.name}", b.digest) for b in state.bases.values() if b.quarantined is None]
        + [(f"dataset {key}", d.digest) for key, d in state.datasets.items()]
        + [(f"adapter {key}", a.manifest) for key, a in state.adapters.items() if a.quarantined is None]
    )


def _check_artifacts(context: Context) -> list[str]:
    """Every folder that an entry names, and every training checkpoint that is kept, hashed again."""
    findings = []
    for what, digest in _named(context):
        try:
            context.artifacts.check(digest)
        except ApplianceError as error:
            findings.append(f"{what}: {error.message}")
    for digest in sorted(checkpoints.kept(context.ledger.state)):
        try:
            context.checkpoints.read(digest)
        except ApplianceError as error:
            # Else its run has ended meanwhile, and it was swept.
            if digest in checkpoints.kept(context.ledger.state):
                findings.append(error.message)
    return findings
