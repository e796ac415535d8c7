"""The verification of a whole log, from bytes alone: what the auditor's program and the service itself run.

Only the trust file is trusted. Every entry is parsed again and hashed, chain and tree are rebuilt, the checkpoint's
signature is checked under the trusted key, and every entry is replayed through `rulebook.apply`: signatures, documents,
invariants. What is wrong with the log is a finding that names its entry; what could not be checked is said, and
without it no log is verified.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable
from typing import Any

from appliance.domain.audit.chain import Chain
from appliance.domain.audit.log_replay import Disclosed, Documents, LogReplay, SitePolicy
from appliance.domain.audit.report import SITE_POLICIES, Counts, Findings, Report, Verdict, trust_used
from appliance.domain.core.entry import Entry
from appliance.domain.core.names import Time
from appliance.domain.core.records.people import Key
from appliance.domain.core.state import State
from appliance.domain.rulebook.apply import parse_body
from appliance.domain.rulebook.typed import parse_typed
from appliance.domain.witnesses.cosignatures import CheckpointCosigned
from appliance.errors import ApplianceError
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.merkle import hash_leaf, verify_consistency
from appliance.formats.log.checkpoint import parse_checkpoint
from appliance.formats.log.note import parse_note
from appliance.formats.log.trust import Trust


def verify_log(
    entries: Iterable[bytes],
    documents: Documents,
    disclosures: Iterable[Disclosure],
    checkpoint: bytes | None,
    trust: Trust | None,
    *,
    now: Time,
    replay: SitePolicy | None = None,
) -> Report:
    """Everything that can be checked about a log from its bytes; memory grows with its orders, not its entries."""
    audit = Audit(documents, disclosures, checkpoint, trust, replay=replay)
    for data in entries:
        audit.take(data)
    return audit.report(now)


class Audit:
    """A verification under way: `take` every entry's bytes in order, then `report`. `state` is the fold so far."""

    def __init__(
        self,
        documents: Documents,
        disclosures: Iterable[Disclosure],
        checkpoint: bytes | None,
        trust: Trust | None,
        *,
        replay: SitePolicy | None = None,
    ) -> None:
        self._findings = Findings()
        self._trust = trust
        self._note = checkpoint
        self._documents = documents
        self._replays_site = replay is not None
        self._disclosed = Disclosed(self._findings, disclosures)
        self._replay = LogReplay(self._findings, documents, replay)
        self._chain = Chain(self._findings)
        if checkpoint is not None:
            self._chain.expect(checkpoint)

    @property
    def state(self) -> State:
        return self._replay.state

    def take(self, data: bytes) -> None:
        """The log's next entry, as bytes."""
        try:
            entry = parse_typed(data)
        except ApplianceError as error:
            place = self._chain.pass_over(hash_leaf(data))
            self._findings.add(place, "encoding", f"entry {place}: {error.message}")
            self._replay.miss(place)
            return
        before = self._chain.tree.root() if entry.type == CheckpointCosigned.type else b""
        linked = self._chain.take(entry)
        if not self._replay.take(entry, linked=linked):
            return
        if entry.index == 0:
            self.compare_with_trust()
        elif before:
            self._check_cosigned(entry, before)

    def _check_cosigned(self, entry: Entry, root: bytes) -> None:
        """The log of which a witness has seen the beginning is this one."""
        body = parse_body(entry)
        note = self._documents(entry.documents["note"])
        if not isinstance(body, CheckpointCosigned) or note is None:
            return  # it would not stand
        seen = parse_checkpoint(parse_note(note).text)
        proof = [b64decode(step) for step in body.proof]
        try:
            verify_consistency(seen.size, entry.index, proof, seen.root, root)
        except ApplianceError as error:
            self._findings.add(entry.index, "witness", f"entry {entry.index}: {error.message}")

    def compare_with_trust(self) -> None:
        """The log's first entry is the one that the trust file names, with its key and its administrators."""
        site, trust = self.state.site, self._trust
        if trust is None:
            return
        expected: list[tuple[str, Any, Any]] = [
            ("hash", trust.genesis, self._chain.head),
            ("origin", trust.origin, site.origin),
            ("log key", trust.log_key, site.log_keys[0].vkey),
            ("administrators", sorted(trust.administrators), sorted(map(_named_key, self.state.keys.values()))),
        ]
        for what, wanted, got in expected:
            if wanted != got:
                self._findings.add(0, "trust", f"entry 0, {what}: expected {wanted}, as the trust file says, got {got}")

    def report(self, now: Time) -> Report:
        """The verdict over what was taken; asked once, at the end."""
        # An administrator signed the rotation, and the trust file names the first administrators.
        # Without a trust file a signature is worth a finding when it fails, and proves nothing when it holds.
        site = self.state.sites.get("site")
        self._chain.close(self._log_keys())
        disclosed, checkpoint = self._disclosed.close(self.state), self._chain.checkpoint
        counted = self._replay.counted | {"disclosures": disclosed, "adapters": len(self.state.adapters)}
        counted["signatures"] += checkpoint is not None
        essential = self._essential()
        return Report(
            verdict=self._verdict(essential),
            counts=Counts.model_validate(counted),
            findings=tuple(self._findings.kept),
            omitted=self._findings.omitted,
            essential=essential,
            unchecked=self._unchecked(),
            remarks=self._remarks(now),
            trust=None if self._trust is None else trust_used(self._trust),
            origin=None if site is None else site.origin,
            single_administrator=None if site is None else site.single_administrator,
            site_policies="replayed" if self._site_gap() is None and site is not None else "not replayed",
            size=self._chain.tree.size,
            head=self._chain.head,
            root=f"sha256:{self._chain.tree.root().hex()}",
            checkpoint_size=None if checkpoint is None else checkpoint.size,
            checkpoint_root=None if checkpoint is None else f"sha256:{checkpoint.root.hex()}",
            checked_at=now,
        )

    def _log_keys(self) -> tuple[str, ...]:
        """Those in force at the end, today's last, where the log began with the trusted one; without a trust file the
        log's own word."""
        site, trust = self.state.sites.get("site"), self._trust
        if site is not None and (trust is None or site.log_keys[0].vkey == trust.log_key):
            return site.signing_keys(self.state.last_time)
        return () if trust is None else (trust.log_key,)

    def _verdict(self, essential: tuple[str, ...]) -> Verdict:
        if self._findings.kept:
            return "failed"
        return "unverifiable" if essential else "verified"

    def _essential(self) -> tuple[str, ...]:
        """What no verified log can do without. A checkpoint that does not open is a finding already."""
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
            unchecked.append(f"{SITE_POLICIES}{gap}; the appliance's own rules were")
        if self.state.size == 0 and self._chain.tree.size:
            unchecked.append("signatures, documents, rules: not checked, since the first entry does not hold")
        elif (first := self._replay.first_gap) is not None:
            unchecked.append(f"entry {first} was not replayed, and what comes after it was judged without it")
        return tuple(unchecked)

    def _site_gap(self) -> str | None:
        """Why the site policies were not replayed; None where they were."""
        if not self._replays_site:
            return ", since Cedar was not used"
        return None if self._replay.site_gap is None else f": {self._replay.site_gap}"

    def _remarks(self, now: Time) -> tuple[str, ...]:
        remarks = []
        site, last = self.state.sites.get("site"), self.state.last_time
        if site is not None and site.single_administrator:
            remarks.append("single administrator: one person alone could give roles and change the rules")
        for reset in () if site is None else site.resets:
            said = f"entry {reset.index} set it back from {reset.reached} to {reset.time}, by two administrators"
            remarks.append(f"clock: {said}; times between are those of a clock that ran ahead")
        if last > now:
            remarks.append(f"clock: the last entry is dated {last}, later than the clock here, {now}")
        return tuple(remarks)


def _named_key(key: Key) -> tuple[str, str]:
    return key.principal, key.keyid
