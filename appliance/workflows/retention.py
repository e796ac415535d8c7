"""Archives of records: the service's check of an order, and what the append of its entry removes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from appliance.domain.audit.archives import LogBytes, find_archive_problems, find_cosigned_note, write_archive
from appliance.domain.core.state import State
from appliance.domain.retention import ArchiveLog, has_bit
from appliance.errors import Conflict, NotFound
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.digest import Hasher
from appliance.store.ledger.ledger import Ledger
from appliance.workflows.core.context import Context
from appliance.workflows.core.record import Effect


def _check_archive(context: Context, order: ArchiveLog, removed: bytes) -> None:
    """Check an order against the entries, which the rules do not have.

    Its archive must be an export of this log, its list must have whole records of its classes that no legal hold keeps,
    and the state and the time must be those of the log. The outcome depends on entries that never change, and is
    cached: the log is read several times.

    Raises:
        Conflict: something differs.
    """
    key = order.model_dump_json(exclude={"signer", "nonce", "issued_at", "expires_at", "reason"})
    context.policy_trials.check(("archive", key, removed), partial(_compare, context.ledger, order, removed))


def _compare(ledger: Ledger, order: ArchiveLog, removed: bytes) -> None:
    log = LogBytes(partial(ledger.entries, 0, order.size), partial(_find_document, ledger), order.size)
    problems = find_archive_problems(log, order, removed)
    if not problems and (digest := _digest_archive(ledger, log)) != order.archive:
        problems = [f"archive: expected {digest}, got {order.archive}"]
    if problems:
        raise Conflict(f"order archive-log: {'; '.join(problems)}", code="archive-differs")


def _digest_archive(ledger: Ledger, log: LogBytes) -> str:
    whole = log._replace(entries=ledger.entries, size=ledger.state.size)
    note = find_cosigned_note(whole, log.size)
    hasher = Hasher()
    for chunk in write_archive(ledger.state.site.origin, log, note, partial(_find_texts, ledger)):
        hasher.update(chunk)
    return hasher.digest()


def _find_texts(ledger: Ledger, wanted: Iterable[str]) -> Mapping[str, Disclosure]:
    return ledger.disclosures(wanted)


def _find_document(ledger: Ledger, digest: str) -> bytes | None:
    try:
        return ledger.document(digest)
    except NotFound:
        return None


def list_removed_texts(state: State, removed: bytes) -> tuple[str, ...]:
    """Return the commitments of the texts that are removed with these entries, which alone bind them."""
    return tuple(commitment for commitment, text in state.texts.items() if has_bit(removed, text.entry))


EFFECTS = (Effect(ArchiveLog, attached=_check_archive),)
