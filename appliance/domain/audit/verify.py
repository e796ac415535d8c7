"""The verification of a whole log from bytes alone, by the auditor's program and the service itself.

Only the trust file is trusted. Every entry is parsed and hashed, chain and tree are rebuilt, the checkpoint's signature
is verified under the trusted key, and every entry is replayed through `actions.apply`: signatures, documents,
invariants. Each defect of the log is a finding that names its entry. The report lists omitted checks; a log with an
essential check omitted is not "verified".
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterable
from typing import Any

from appliance.domain.actions.apply import parse_body, parse_typed
from appliance.domain.audit.archives import Removals, read_archive_entries
from appliance.domain.audit.chain import Chain
from appliance.domain.audit.log_replay import CedarPolicy, Disclosed, Documents, LogReplay
from appliance.domain.audit.report import CEDAR_POLICIES, AuditCounts, Findings, Report, Verdict, trust_used
from appliance.domain.core.entry import Entry
from appliance.domain.core.names import Time
from appliance.domain.core.records.people import Key
from appliance.domain.core.state import State
from appliance.domain.governance.post_quantum import PostQuantumKeysAdded
from appliance.domain.governance.restoration import LogRestored, make_step_back
from appliance.domain.governance.service import Initialized
from appliance.domain.retention import LogArchived
from appliance.domain.witnesses import CheckpointCosigned
from appliance.errors import ApplianceError, Tampered
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.merkle import hash_leaf, verify_consistency
from appliance.formats.log.checkpoint import parse_checkpoint
from appliance.formats.log.export import read_removed
from appliance.formats.log.note import is_post_quantum, parse_note
from appliance.formats.log.trust import Trust
from appliance.formats.signatures.ml_dsa import check_ml_dsa

_ADDS_POST_QUANTUM = (Initialized.type, PostQuantumKeysAdded.type)

ReadEntries = Callable[[], Iterable[bytes]]
"""A function that reads the entries of the log from the first one."""


def verify_log(
    entries: Iterable[bytes],
    documents: Documents,
    disclosures: Iterable[Disclosure],
    checkpoint: bytes | None,
    trust: Trust | None,
    *,
    now: Time,
    replay: CedarPolicy | None = None,
    again: ReadEntries = tuple,
    with_archives: bool = False,
) -> Report:
    """Return the report of all checks on a log's bytes. Memory grows with the number of orders, not of entries.

    `again` reads the entries once more, for the archives that they name. `with_archives`: the entries have bytes that
    an archive removed from the log.
    """
    audit = Audit(documents, disclosures, checkpoint, trust, replay=replay, again=again)
    if with_archives:
        audit.watch_archives()
    for data in entries:
        audit.take(data)
    return audit.report(now)


class Audit:
    """A verification in progress: call `take` with every entry's bytes in order, then `report`."""

    def __init__(
        self,
        documents: Documents,
        disclosures: Iterable[Disclosure],
        checkpoint: bytes | None,
        trust: Trust | None,
        *,
        replay: CedarPolicy | None = None,
        again: ReadEntries = tuple,
    ) -> None:
        self._findings = Findings()
        self._trust = trust
        self._note = checkpoint
        self._documents = documents
        self._replays_site = replay is not None
        self._disclosed = Disclosed(self._findings, disclosures)
        self._replay = LogReplay(self._findings, documents, replay)
        self._chain = Chain(self._findings)
        self._removals = Removals(lambda: read_archive_entries(again(), documents))
        if checkpoint is not None:
            self._chain.expect(checkpoint)

    @property
    def state(self) -> State:
        """Return the state after the entries so far."""
        return self._replay.state

    def take(self, data: bytes) -> None:
        """Check the bytes of the log's next entry, or the line of a removed one.

        Raises:
            Unavailable: from this entry on the log needs signatures by ML-DSA-65, which this Python cannot compute.
        """
        if (leaf := read_removed(data)) is not None:
            self._pass_removed(leaf)
            return
        try:
            entry = parse_typed(data)
        except ApplianceError as error:
            place = self._chain.pass_over(hash_leaf(data))
            self._findings.add(place, "encoding", f"entry {place}: {error.message}")
            self._replay.miss(place)
            return
        before = self._chain.tree.root() if entry.type in (CheckpointCosigned.type, LogRestored.type) else b""
        linked = self._chain.take(entry)
        if not self._replay.take(entry, linked=linked):
            return
        if entry.type in _ADDS_POST_QUANTUM and self.state.site.post_quantum_log_key is not None:
            check_ml_dsa()
        if entry.index == 0:
            self.compare_with_trust()
        elif before:
            self._check_beginning(entry, before)
        if self._removals.is_active:
            self._removals.meet(entry, self._documents)
            self._check_archives(entry)

    def watch_archives(self) -> None:
        """Check also the archived entries whose bytes are present; call it before the first entry."""
        self._removals.watch()

    def _pass_removed(self, leaf: bytes) -> None:
        place = self._chain.pass_over(leaf)
        try:
            self._removals.skip(place)
        except Tampered as error:
            self._findings.add(place, "removed", error.message)
            self._replay.miss(place)
        self._replay.skip_removed(place, leaf)
        self._removals.pass_entry(self.state)

    def _check_archives(self, entry: Entry) -> None:
        if entry.type == LogArchived.type:
            for problem in self._removals.settle(entry.index, self.state):
                self._findings.add(entry.index, "archive", problem)
        self._removals.pass_entry(self.state)

    def _check_beginning(self, entry: Entry, root: bytes) -> None:
        """Add a finding if the log that a witness cosigned, or that a restoration keeps, is not this one's beginning.

        The rules would have refused an entry without the note or the restoration.
        """
        body = parse_body(entry)
        if isinstance(body, CheckpointCosigned):
            note = self._documents(entry.documents["note"]) or b""
            seen, rule = parse_checkpoint(parse_note(note).text), "witness"
        elif isinstance(body, LogRestored):
            seen, rule = make_step_back(self.state.site, self.state.site.restorations[-1]).kept, "restoration"
        else:
            return
        proof = [b64decode(step) for step in body.proof]
        try:
            verify_consistency(seen.size, entry.index, proof, seen.root, root)
        except ApplianceError as error:
            self._findings.add(entry.index, rule, f"entry {entry.index}: {error.message}")

    def compare_with_trust(self) -> None:
        """Add findings if the log's first entry, key or administrators differ from those of the trust file."""
        site, trust = self.state.site, self._trust
        if trust is None:
            return
        expected: list[tuple[str, Any, Any]] = [
            ("hash", trust.genesis, self._chain.head),
            ("origin", trust.origin, site.origin),
            ("log key", trust.log_key, site.log_keys[0].vkey),
            ("post-quantum log key", trust.post_quantum_log_key, self._first_post_quantum_key()),
            ("administrators", sorted(trust.administrators), sorted(map(_named_key, self.state.keys.values()))),
        ]
        for what, wanted, got in expected:
            if wanted != got:
                self._findings.add(0, "trust", f"entry 0, {what}: expected {wanted}, as the trust file says, got {got}")

    def report(self, now: Time) -> Report:
        """Return the report; call it once, at the end."""
        # An administrator signed a rotation of the log's key, and the trust file names the first administrators.
        # Without a trust file, an invalid signature is a finding, but a valid one proves nothing.
        site = self.state.sites.get("site")
        for index, problem in self._removals.list_unsettled():
            self._findings.add(index, "removed", problem)
        self._chain.close(self._log_keys())
        disclosed, checkpoint = self._disclosed.close(self.state), self._chain.checkpoint
        counted = self._replay.counted | {"disclosures": disclosed, "adapters": len(self.state.adapters)}
        counted["signatures"] += checkpoint is not None
        essential = self._essential()
        return Report(
            verdict=self._verdict(essential),
            counts=AuditCounts.model_validate(counted),
            findings=tuple(self._findings.kept),
            omitted=self._findings.omitted,
            essential=essential,
            unchecked=self._unchecked(),
            remarks=self._remarks(now),
            trust=None if self._trust is None else trust_used(self._trust),
            origin=None if site is None else site.origin,
            single_administrator=None if site is None else site.single_administrator,
            cedar_policies="replayed" if self._site_gap() is None and site is not None else "not replayed",
            size=self._chain.tree.size,
            head=self._chain.head,
            root=f"sha256:{self._chain.tree.root().hex()}",
            checkpoint_size=None if checkpoint is None else checkpoint.size,
            checkpoint_root=None if checkpoint is None else f"sha256:{checkpoint.root.hex()}",
            checked_at=now,
        )

    def _log_keys(self) -> tuple[str, ...]:
        """Return the log keys that are valid at the end, the current one last.

        The log's own keys count if it began with the trusted key, or if there is no trust file.
        """
        site, trust = self.state.sites.get("site"), self._trust
        if site is not None and (trust is None or site.log_keys[0].vkey == trust.log_key):
            return site.signing_keys(self.state.last_time)
        return () if trust is None else trust.log_keys

    def _first_post_quantum_key(self) -> str | None:
        """Return the first vkey of ML-DSA-65 if entry 0 names it, else None."""
        first = [key.vkey for key in self.state.site.log_keys if key.since == 0]
        return next(filter(is_post_quantum, first), None)

    def _verdict(self, essential: tuple[str, ...]) -> Verdict:
        if self._findings.kept:
            return "failed"
        return "unverifiable" if essential else "verified"

    def _essential(self) -> tuple[str, ...]:
        """Return the missing inputs without which a log cannot be "verified".

        A malformed checkpoint is a finding already.
        """
        missing = []
        if self._chain.tree.size == 0:
            missing.append("entries: there are none")
        if self._trust is None:
            missing.append("the log's key, first entry and administrators: no trust file given (--trust FILE)")
        if self._note is None:
            missing.append("size and root: no checkpoint given")
        return tuple(missing)

    def _unchecked(self) -> tuple[str, ...]:
        unchecked = []
        if (gap := self._site_gap()) is not None:
            unchecked.append(f"{CEDAR_POLICIES}{gap}; the appliance's own rules were")
        if self.state.size == 0 and self._chain.tree.size:
            unchecked.append("signatures, documents, rules: not checked, since the first entry does not hold")
        elif (first := self._replay.first_gap) is not None:
            unchecked.append(f"entry {first} was not replayed, and what comes after it was checked without it")
        for index, count in sorted(self._removals.missing.items()):
            row = self.state.archives.get(str(index))
            if row is not None:
                what = f"{count} of the {row.count} entries that entry {index} removed ({', '.join(row.records)})"
                unchecked.append(f"{what}: not read; give their archive, {row.archive}: --archive FILE")
        return tuple(unchecked)

    def _site_gap(self) -> str | None:
        """Return the reason why the Cedar policies were not replayed, or None if they were."""
        if not self._replays_site:
            return ", since Cedar was not used"
        return None if self._replay.site_gap is None else f": {self._replay.site_gap}"

    def _remarks(self, now: Time) -> tuple[str, ...]:
        remarks = []
        site, last = self.state.sites.get("site"), self.state.last_time
        if site is not None and site.single_administrator:
            remarks.append("single administrator: one person alone could give roles and change the rules")
        for reset in () if site is None else site.resets:
            change = f"entry {reset.index} set it back from {reset.reached} to {reset.time}, by two administrators"
            remarks.append(f"clock: {change}; times between are those of a clock that ran ahead")
        for step in () if site is None else site.restorations:
            remarks.append(
                f"restoration: entry {step.index} of {step.time} kept {step.kept_size} entries and gave up a log of "
                f"{step.lost_size}, by {' and '.join(step.signers)}; up to {step.lost_size - step.kept_size} entries "
                "that others may have seen are not in this log"
            )
        for row in self.state.archives.values():
            who = f"by order of {' and '.join(row.signers)}, on {row.time[:10]}"
            remarks.append(f"archive: entry {row.index} removed {row.count} entries before entry {row.up_to}, {who}")
        if last > now:
            remarks.append(f"clock: the last entry is dated {last}, later than the clock here, {now}")
        return tuple(remarks)


def _named_key(key: Key) -> tuple[str, str]:
    return key.principal, key.keyid
