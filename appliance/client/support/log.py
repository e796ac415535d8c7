"""The client's verification of the log: entries are used after their inclusion is proved under the log's key."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from appliance.api.log import About, EntryWithProof, LogPage, ServiceReport, StateAt, VerifyRequest
from appliance.api.releases import Review
from appliance.client.support.connection import LONG_TIMEOUT_S, Connection, Parameter
from appliance.client.support.files import check_free, read_file, read_private, replace_private, sync_folder
from appliance.client.support.session import state_folder
from appliance.domain.audit.report import Report
from appliance.domain.audit.verify import Audit
from appliance.domain.core.case import RecordedEntry
from appliance.domain.core.entry import Entry, Event, parse_entry
from appliance.domain.core.names import Value
from appliance.domain.core.records.site import Restoration
from appliance.domain.core.state import State
from appliance.domain.governance.restoration import find_restoration
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, Tampered, Unavailable
from appliance.formats.core.commitment import verify_disclosure
from appliance.formats.core.digest import Hasher, digest_bytes
from appliance.formats.core.fields import parse_base64
from appliance.formats.core.merkle import verify_consistency, verify_inclusion
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from appliance.formats.log.export import ParsedExport
from appliance.formats.log.note import is_post_quantum, name_key, parse_note
from appliance.formats.log.proof import Proof, encode_proof
from appliance.formats.log.trust import Trust, encode_trust, parse_trust
from appliance.formats.signatures.dsse import parse_envelope
from appliance.formats.signatures.ml_dsa import NAME, SIGNATURE_BYTES

E = TypeVar("E", bound=Event)
V = TypeVar("V", bound=Value)

PAGE = 500
"""Largest number of entries that one request returns."""
_MAX_TRUST_BYTES = 65_536


@dataclass(frozen=True)
class Anchor:
    """The log against which everything is proved, and the source of its keys.

    Each of `log_keys` must have signed a checkpoint; the one that is not ML-DSA-65 is the last. `is_proved` is True if
    the keys follow from that source.
    """

    origin: str
    log_keys: tuple[str, ...]
    genesis: str
    source: str
    is_proved: bool = True

    @property
    def log_key(self) -> str:
        """Return the key by which witnesses identify the log."""
        return self.log_keys[-1]


@dataclass(frozen=True)
class ProvenEntry(RecordedEntry):
    """An entry whose inclusion in a log of `size` entries is proved.

    `proof` proves it without the service (c2sp.org/tlog-proof).
    """

    size: int
    proof: bytes


def load_trust(path: Path) -> Trust:
    """Read a trust file.

    Raises: BadInput if it is malformed.
    """
    data = read_file(path, "trust file", _MAX_TRUST_BYTES)
    try:
        return parse_trust(data)
    except BadInput as error:
        expected = "expected the line that appliance init printed, got another file"
        raise BadInput(f"trust file, {path}: {expected}: {error.message}") from None


def anchor_of(about: About, trust: Trust | None) -> Anchor:
    """Return the trust file's log, which must be the service's; without a trust file, the log that the service names.

    Raises: Tampered if the service has another log or another log key.
    """
    if trust is None:
        return Anchor(about.origin, about.log_keys, about.genesis, "the service's own word; no trust file was given")
    check_log(about, trust)
    _require_equal("log key", _name_keys(trust.log_keys), _name_keys(about.log_keys))
    return Anchor(trust.origin, trust.log_keys, trust.genesis, "the trust file")


def check_log(about: About, trust: Trust) -> None:
    """Raise Tampered unless the service names the trust file's log. The log's keys may be others."""
    _require_equal("origin", trust.origin, about.origin)
    _require_equal("first entry", trust.genesis, about.genesis)


def _name_keys(vkeys: Iterable[str]) -> str:
    return ", ".join(map(name_key, vkeys))


def _require_equal(what: str, expected: str, got: str) -> None:
    if expected != got:
        raise Tampered(
            f"trust file, {what}: expected {expected}, got a service that says {got}; is it another appliance's?",
            code="trust",
        )


def read_entry(connection: Connection, anchor: Anchor, index: int) -> ProvenEntry:
    """Return an entry with documents and texts after verifying inclusion, digests and commitments.

    Raises: Tampered if one of them is invalid.
    """
    answer = connection.get(f"/v1/ledger/{index}", EntryWithProof)
    entry, documents, note = parse_entry(answer.bytes), answer.documents, answer.checkpoint.encode("utf-8")
    if entry.index != index:
        raise Tampered(f"entry {index}: expected this index, got {entry.index}")
    checkpoint = open_checkpoint(note, *anchor.log_keys)
    verify_inclusion(entry.leaf, index, checkpoint.size, answer.proof, checkpoint.root)
    if index == 0 and f"sha256:{entry.leaf.hex()}" != anchor.genesis:
        raise Tampered(f"entry 0: expected the log's first entry {anchor.genesis}, got sha256:{entry.leaf.hex()}")
    for role, digest in entry.documents.items():
        if digest_bytes(documents.get(role, b"")) != digest:
            raise Tampered(f"entry {index}, document {role}: expected {digest}, got other bytes")
    for disclosure in answer.disclosures:
        verify_disclosure(disclosure)
    bound = {role: documents[role] for role in entry.documents}  # omit what the entry does not bind
    proof = encode_proof(Proof(index, answer.proof, note))
    return ProvenEntry(entry, bound, answer.disclosures, checkpoint.size, proof)


def read_event(
    connection: Connection, anchor: Anchor, index: int, model: type[E], **expected: str
) -> tuple[ProvenEntry, E]:
    """Return a proved entry and its body, which must be of this type and have these values.

    Raises: Tampered if it is another entry.
    """
    from appliance.domain.actions.apply import parse_body

    proven = read_entry(connection, anchor, index)
    body = parse_body(proven.entry)
    if not isinstance(body, model):
        of = "".join(f" of {name.replace('_', ' ')} {value}" for name, value in expected.items())
        raise Tampered(f"entry {index}: expected {model.type}{of}, got {body.type}")
    for name, value in expected.items():
        if (got := getattr(body, name)) != value:
            raise Tampered(f"entry {index}, {name.replace('_', ' ')}: expected {value}, got {got}")
    return proven, body


def list_rows(connection: Connection, kind: str, model: type[V]) -> list[V]:
    """Return the present rows of one kind of the state."""
    found = connection.get("/v1/ledger/state", StateAt, kind=(kind,))
    return [model.model_validate_json(json.dumps(row.value)) for row in found.rows]


def fetch_document(connection: Connection, digest: str, what: str) -> bytes:
    """Return a document of the log by its digest, after verifying it."""
    data = b"".join(connection.stream(f"/v1/documents/{digest}"))
    if digest_bytes(data) != digest:
        raise Tampered(f"{what} {digest}: expected these bytes, got {digest_bytes(data)}")
    return data


def list_adapter_keys(connection: Connection, anchor: Anchor) -> list[tuple[bytes, int]]:
    """Return the SPKIs of the keys that sign adapters, each with the entry after which it signs.

    The first entry names them, or the order that added post-quantum keys.

    Raises: Tampered if the log has a key of ML-DSA-65, and no entry that added it.
    """
    from appliance.domain.governance.post_quantum import PostQuantumKeysAdded
    from appliance.domain.governance.service import Initialized

    _, body = read_event(connection, anchor, 0, Initialized, origin=anchor.origin)
    keys = [(parse_base64(body.adapter_key, "entry 0, adapter key"), 0)]
    if body.post_quantum is not None:
        return [*keys, (parse_base64(body.post_quantum.adapter_key, "entry 0, post-quantum adapter key"), 0)]
    if not any(map(is_post_quantum, anchor.log_keys)):
        return keys
    found = next(find_entries(connection, type=PostQuantumKeysAdded.type, newest=True, page=1), None)
    if found is None:
        raise Tampered(f"log {anchor.origin}: expected the entry that added its post-quantum keys, got none")
    proven, _ = read_event(connection, anchor, found.index, PostQuantumKeysAdded)
    return [*keys, (_read_added_key(proven), found.index)]


def _read_added_key(proven: ProvenEntry) -> bytes:
    """Return the adapters' key of an order that added post-quantum keys; the log binds the order's envelope."""
    from appliance.domain.actions.registry import ORDERS
    from appliance.domain.governance.post_quantum import AddPostQuantumKeys

    role = "countersigned" if "countersigned" in proven.documents else "order"
    order = ORDERS.parse(parse_envelope(proven.document(role)).payload)
    if not isinstance(order, AddPostQuantumKeys):
        raise Tampered(f"entry {proven.entry.index}: expected the order of post-quantum keys, got {order.action}")
    return parse_base64(order.adapter_key, f"entry {proven.entry.index}, adapter key")


def find_entries(connection: Connection, **wanted: Any) -> Iterator[Entry]:
    """Yield all entries that match, in the log's order, or backwards from its end with `newest`, page by page."""
    return (entry for entry, _ in find_listed_entries(connection, **wanted))


def find_events(connection: Connection, model: type[E], **wanted: Any) -> Iterator[E]:
    """Yield the bodies of all entries of a type that match, as the service reports them."""
    from appliance.domain.actions.apply import parse_body

    for entry in find_entries(connection, type=model.type, **wanted):
        if isinstance(body := parse_body(entry), model):
            yield body


def find_listed_entries(
    connection: Connection,
    *,
    after: int | None = None,
    before: int | None = None,
    newest: bool = False,
    page: int = PAGE,
    strict: bool = False,
    on_narrowed: Callable[[], None] | None = None,
    **filters: Parameter | None,
) -> Iterator[tuple[Entry, Review | None]]:
    """Yield the same entries, each with the service's description of it if it is a review, and None otherwise.

    `strict` raises BadInput for unknown words of a filter before the first entry. `on_narrowed` is called first if the
    policy set hides entries from the caller's unit.
    """
    while True:
        bounds: dict[str, int | None] = {"after": after, "before": before, "limit": min(page, PAGE)}
        page_found = connection.get("/v1/ledger", LogPage, newest="true" if newest else None, **bounds, **filters)
        if strict and page_found.unknown:
            raise BadInput(f"log, {'; '.join(page_found.unknown)}")
        if strict and page_found.archived:
            raise NotFound(f"log: {'; '.join(page_found.archived)}", code="archived")
        if page_found.narrowed and on_narrowed is not None:
            on_narrowed()
            on_narrowed = None
        for row in page_found.entries:
            yield parse_entry(row.bytes), row.review
        if page_found.next is None:
            return
        after, before = (after, page_found.next) if newest else (page_found.next, before)


def export(connection: Connection, path: Path) -> tuple[str, int]:
    """Write the whole log to a new file; return its digest and size. The file gets its name when it is complete.

    Raises: Conflict if the file exists.
    """
    return write_chunks(path, "export", connection.stream("/v1/ledger/export"))


def write_chunks(path: Path, what: str, chunks: Iterable[bytes]) -> tuple[str, int]:
    """Write chunks durably to a new file; return its digest and size. The file gets its name when it is complete.

    Raises: Conflict if the file exists.
    """
    check_free(path, what)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    hasher = Hasher()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another account can have the file of that name open if the folder is shared.
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                hasher.update(chunk)
            file.flush()
            os.fsync(file.fileno())
        _give_name(part, path)
        sync_folder(path.parent)
    except FileExistsError:
        raise Conflict(f"{what}, {path}: expected a name that is free, got an existing file") from None
    except OSError as error:
        raise Unavailable(f"{what}, {path}: expected it to be writable, got {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return hasher.digest(), hasher.size


def _give_name(part: Path, path: Path) -> None:
    """Give a complete file its name, which another command may have taken meanwhile.

    Raises: FileExistsError if the name is taken.
    """
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.ENOTSUP):
            raise
        path.touch(0o600, exist_ok=False)  # a file system without links, such as that of a USB stick
        part.rename(path)


def verify(connection: Connection, trust: Trust | None) -> ServiceReport:
    """Return the service's own report on its log, its projections and its artifacts."""
    value = None
    if trust is not None:
        value = {
            "version": 1,
            "origin": trust.origin,
            "logKey": trust.log_key,
            **({} if trust.post_quantum_log_key is None else {"postQuantumLogKey": trust.post_quantum_log_key}),
            "genesis": trust.genesis,
            "administrators": [{"name": name, "keyid": keyid} for name, keyid in trust.administrators],
        }
    return connection.post("/v1/ledger/verify", ServiceReport, VerifyRequest(trust=value), timeout_s=LONG_TIMEOUT_S)


PAUSES_S = (0.2, 0.5, 1.0, 2.0)
"""Seconds between the requests for a checkpoint as new as the saved one, since one of several hosts may lag."""

_MAX_KEYS_BYTES = 8_192
_MAX_NOTE_BYTES = 65_536


def find_anchor(connection: Connection, about: About, trust: Trust) -> Anchor:
    """Return the anchor of a service whose log keys are not the trust file's.

    While the trust file's keys also sign and no key of ML-DSA-65 was added, they are used. Afterwards the whole log is
    verified once, and the keys are saved, so that later commands need no session for it.

    Raises: Tampered if the log is invalid, or ends with other keys than the service names.
    """
    anchor = _anchor_in(trust)
    saved, keys = _trust_state_file(trust, "vkeys"), _encode_keys(about.log_keys)
    if _load(saved) != keys:
        has_same_second = about.post_quantum_log_key == trust.post_quantum_log_key
        if has_same_second and _still_signs(connection, trust.log_keys):
            return anchor
        _verify(connection, about, trust)
        replace_private(saved, keys.encode("utf-8"), "log keys")
    source = "the trust file, and the log verified from it to today's key"
    return replace(anchor, log_keys=about.log_keys, source=source)


def find_anchor_without_session(about: About, trust: Trust) -> Anchor:
    """Return the same anchor if no session can be opened. Keys that no command has verified are not `is_proved`."""
    if _load(_trust_state_file(trust, "vkeys")) == _encode_keys(about.log_keys):
        source, is_proved = "the trust file, and the log verified from it to today's key", True
    else:
        source, is_proved = "the trust file; today's log key is the service's own word", False
    return replace(_anchor_in(trust), log_keys=about.log_keys, source=source, is_proved=is_proved)


def _anchor_in(trust: Trust) -> Anchor:
    return Anchor(trust.origin, trust.log_keys, trust.genesis, "the trust file")


def _encode_keys(log_keys: Iterable[str]) -> str:
    return "\n".join(log_keys)


@dataclass(frozen=True)
class ProvenCheckpoint:
    """The newest checkpoint that this account has proved: its file, note, value, and the time when it was saved.

    The note's signatures were verified when it was saved. The log's keys may have changed since. `has_second` is True
    if ML-DSA-65 signed it, too.
    """

    path: Path
    note: bytes
    checkpoint: Checkpoint
    time_s: float
    has_second: bool


Reading = Callable[[], AbstractContextManager[object]]
"""A function that returns a context in which the connection has the person's session."""


def check_newest(
    connection: Connection, anchor: Anchor, trust: Trust | None, about: About, reading: Reading | None = None
) -> list[str]:
    """Compare the log that the service describes with the newest checkpoint that this account has proved.

    The newer one is saved. If the log is shorter or another one, and two administrators restored it, the whole log is
    verified in `reading`. Return what the person is told about that.

    Raises: Tampered with the code `log-truncated` if the log has fewer entries than that checkpoint, and `split-view`
    if it has others, unless a restoration gives up exactly that checkpoint; Tampered if that checkpoint has a signature
    by ML-DSA-65 and the log has no such key now.
    """
    seen, lines = find_newest(connection, anchor, trust), list[str]()
    try:
        about = about if seen is None else _read_growth(connection, anchor, seen, about)
    except Tampered as loss:
        if seen is None or not connection.describe().is_restored:
            raise
        about, lines = _accept_restoration(connection, anchor, trust, seen, loss, reading)
    now = open_checkpoint(about.checkpoint.encode("utf-8"), *anchor.log_keys)
    if anchor.is_proved and (seen is None or now != seen.checkpoint):
        path = seen.path if seen is not None else _newest_checkpoint_file(connection, anchor, trust)
        replace_private(path, about.checkpoint.encode("utf-8"), "newest checkpoint")
    return lines


def _read_growth(connection: Connection, anchor: Anchor, seen: ProvenCheckpoint, about: About) -> About:
    """Return the service's description with a checkpoint that continues the one that this account has seen."""
    before = seen.checkpoint
    if seen.has_second and not any(map(is_post_quantum, anchor.log_keys)):
        raise Tampered(
            f"log {anchor.origin}: its checkpoints had a signature by {NAME} when this account last saw it, and the "
            f"service now names no such key, which a log never gives up; keep {seen.path}, and call an auditor"
        )
    now = open_checkpoint(about.checkpoint.encode("utf-8"), *anchor.log_keys)
    if now == before:
        return about
    for pause_s in PAUSES_S:
        if now.size >= before.size:
            break
        time.sleep(pause_s)
        now = open_checkpoint(connection.describe().checkpoint.encode("utf-8"), *anchor.log_keys)
    if now.size < before.size:
        raise Tampered(
            f"log {anchor.origin}: it has {now.size:,} entries here, and this account has seen {before.size:,}; "
            "entries were cut off, or an earlier copy was restored; ask an auditor. If it was restored on purpose, two "
            "administrators have to order that: appliance restoration order",
            code="log-truncated",
        )
    about = connection.describe(before.size)
    now = open_checkpoint(about.checkpoint.encode("utf-8"), *anchor.log_keys)
    _check_growth(before, now, about, seen.path)
    return about


def _accept_restoration(
    connection: Connection,
    anchor: Anchor,
    trust: Trust | None,
    seen: ProvenCheckpoint,
    loss: Tampered,
    reading: Reading | None,
) -> tuple[About, list[str]]:
    """Verify the whole log. Return the service's description with a checkpoint that continues it, and what its
    restoration of the seen checkpoint says.

    Raises: Tampered if the log is not valid, or no restoration gives up this checkpoint; the loss itself if there is no
    session to read the log in.
    """
    if reading is None:
        raise Tampered(
            f"{loss.message}. The service says that it was restored. A command with a session verifies that: appliance "
            "ledger log",
            code=loss.code,
        )
    with reading():
        report, state = audit_log(connection, trust)
    if report.verdict != "verified" and (trust is not None or report.findings):
        raise Tampered(f"{loss.message}. Its log is {report.verdict}", code=loss.code)
    if state.site.checkpoint_keys() != anchor.log_keys:
        raise Tampered(f"{loss.message}. Its log has another key", code=loss.code)
    try:
        found = find_restoration(state.site, seen.note, seen.time_s)
    except Tampered as refused:
        raise Tampered(
            f"{loss.message}. Its restorations do not cover this: {refused.message}", code=loss.code
        ) from None
    if time.time() < parse_time(found.ordered_at).timestamp():
        # It would give up what this account sees until then, too.
        raise Tampered(
            f"{loss.message}. Its restoration is dated {found.ordered_at}, after this machine's clock", code=loss.code
        )
    about = connection.describe(report.size)
    now = open_checkpoint(about.checkpoint.encode("utf-8"), *anchor.log_keys)
    root = bytes.fromhex(report.root.removeprefix("sha256:"))
    verify_consistency(report.size, now.size, about.consistency, root, now.root)
    return about, _describe_restoration(found, seen.checkpoint)


def _describe_restoration(found: Restoration, seen: Checkpoint) -> list[str]:
    lost = seen.size - found.kept_size
    is_last = seen.size == found.lost_size
    proof = (
        "They signed this very checkpoint." if is_last else f"They signed a later checkpoint, of {found.lost_size:,}."
    )
    return [
        f"This log was restored. {' and '.join(found.signers)} ordered at {found.ordered_at} that it continues from "
        f"its first {found.kept_size:,} entries: entry {found.index}.",
        f"This account has seen {seen.size:,} entries, so {lost:,} of those are given up. {proof}",
        "What they recorded is gone. Sign again what you signed then, revocations first.",
    ]


def _check_growth(before: Checkpoint, now: Checkpoint, about: About, saved: Path) -> None:
    try:
        verify_consistency(before.size, now.size, about.consistency, before.root, now.root)
    except ApplianceError:
        raise Tampered(
            f"log {now.origin}: its first {before.size:,} entries are not those that this account has seen: a fork, "
            f"two logs under one key; keep {saved}, which is the evidence, and call an auditor",
            code="split-view",
        ) from None


def _newest_checkpoint_file(connection: Connection, anchor: Anchor, trust: Trust | None) -> Path:
    """Return the file of this log's newest checkpoint.

    Without a trust file it is also that of this one service, so that a service that claims to be another log cannot
    change the checkpoint saved for that log.
    """
    if trust is not None:
        return _trust_state_file(trust, "checkpoint")
    named = hashlib.sha256(f"{connection.where}\n{anchor.origin}\n{anchor.genesis}".encode()).hexdigest()
    return state_folder() / "logs" / f"{named[:32]}.checkpoint"


def find_newest(connection: Connection, anchor: Anchor, trust: Trust | None) -> ProvenCheckpoint | None:
    """Return the newest checkpoint of this log that this account has proved, or None."""
    path = _newest_checkpoint_file(connection, anchor, trust)
    try:
        data = read_private(path, "newest checkpoint", _MAX_NOTE_BYTES)
        note = parse_note(data)
        found, time_s = parse_checkpoint(note.text), path.stat().st_mtime
    except NotFound:
        return None
    except BadInput as error:
        raise BadInput(f"newest checkpoint, {path}: {error.message}; if it is damaged, remove it") from None
    lines = [line for line in note.signatures if line.name == found.origin]
    has_second = any(len(line.sig) == SIGNATURE_BYTES for line in lines)
    return ProvenCheckpoint(path, data, found, time_s, has_second)


def _trust_state_file(trust: Trust, kind: str) -> Path:
    return state_folder() / "logs" / f"{hashlib.sha256(encode_trust(trust)).hexdigest()[:32]}.{kind}"


def _still_signs(connection: Connection, log_keys: Iterable[str]) -> bool:
    try:
        open_checkpoint(connection.get("/v1/ledger/0", EntryWithProof).checkpoint.encode("utf-8"), *log_keys)
    except Tampered:
        return False
    return True


def _load(path: Path) -> str | None:
    try:
        return read_private(path, "log keys", _MAX_KEYS_BYTES).decode("utf-8", "replace")
    except ApplianceError:
        return None


def audit_log(connection: Connection, trust: Trust | None) -> tuple[Report, State]:
    """Verify the whole log, and return the report and the state at its end.

    Raises: Tampered if the export is out of order.
    """
    with tempfile.TemporaryFile() as stream:
        for chunk in connection.stream("/v1/ledger/export"):
            stream.write(chunk)
        stream.seek(0)
        with ParsedExport(stream) as export:
            audit = Audit(export.document, export.disclosures(), export.checkpoint, trust, again=export.entries)
            for data in export.entries():
                audit.take(data)
            if export.disorder is not None:
                raise Tampered(f"log: expected an export in order, got another one ({export.disorder})", code="trust")
            return audit.report(encode_time(datetime.now(UTC))), audit.state


def _verify(connection: Connection, about: About, trust: Trust) -> None:
    """Verify the whole log under the trust file.

    Raises: Tampered unless its last keys are those that the service names.
    """
    report, state = audit_log(connection, trust)
    keys = state.site.checkpoint_keys() if report.verdict == "verified" else ()
    got = _name_keys(keys) or f"a log that is {report.verdict}"
    if keys != about.log_keys:
        raise Tampered(
            f"trust file, log key: expected {_name_keys(trust.log_keys)}, or a verified log that changes to "
            f"{_name_keys(about.log_keys)}, got {got}",
            code="trust",
        )
