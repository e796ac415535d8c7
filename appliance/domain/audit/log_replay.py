"""Every entry again through the rules, with its documents, and through the site's own policies where there is Cedar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from appliance.domain.audit.report import UNBOUND, Findings
from appliance.domain.core.entry import Entry
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import Time
from appliance.domain.core.order import Order
from appliance.domain.core.policy import PolicySet, parse_policy
from appliance.domain.core.records.people import Principal
from appliance.domain.core.state import State
from appliance.domain.rulebook.apply import apply
from appliance.domain.rulebook.registry import EVENTS, ORDERS
from appliance.errors import ApplianceError, BadInput, Unavailable
from appliance.formats.core.commitment import Disclosure, verify_disclosure

Documents = Callable[[str], bytes | None]
"""The bytes kept under a digest, or None; they are hashed here."""

Decide = Callable[[Principal, Order, State, Time], tuple[str, ...]]
SitePolicy = Callable[[PolicySet], Decide]
"""Builds the decider of a policy set's own policies: `lambda policy: SitePolicies(policy).decide` in `access`."""

_SIGNED = ("order", "endorsed", "possession", "possessions", "session", "signature", "provenance")
"""The roles of documents whose signature the rules verify."""


_COMMITMENT = "hmac-sha256:"


class Disclosed:
    """The texts that travel beside the log: each opens its commitment, and some entry or order made it."""

    def __init__(self, findings: Findings, disclosures: Iterable[Disclosure]) -> None:
        self._findings = findings
        self._opened = bytearray()
        """The commitments' 32 bytes, concatenated."""
        for disclosure in disclosures:
            try:
                verify_disclosure(disclosure)
            except ApplianceError as error:
                findings.add(None, "disclosure", error.message)
            else:
                self._opened += bytes.fromhex(disclosure.commitment.removeprefix(_COMMITMENT))

    def close(self, state: State) -> int:
        """How many texts are bound; one that nothing binds, or that was erased, is a finding, and so is one that is
        bound, was never erased, and is not there."""
        bound = 0
        for commitment in self._commitments():
            text = state.texts.get(commitment)
            if text is None:
                self._findings.add(None, "disclosure", f"disclosure {commitment}: {UNBOUND}")
            elif text.erased is not None:
                said = f"disclosure {commitment}: expected none, since this entry erased it, got its text"
                self._findings.add(text.erased, "erasure", f"entry {text.erased}: {said}")
            else:
                bound += 1
        if bound != sum(text.erased is None for text in state.texts.values()):
            self._miss(state)
        return bound

    def _commitments(self) -> Iterator[str]:
        for start in range(0, len(self._opened), 32):
            yield f"{_COMMITMENT}{self._opened[start : start + 32].hex()}"

    def _miss(self, state: State) -> None:
        there = set(self._commitments())
        for commitment, text in state.texts.items():
            if text.erased is None and commitment not in there:
                said = f"disclosure {commitment}: expected its text, which no entry erased, got none"
                self._findings.add(text.entry, "disclosure", f"entry {text.entry}: {said}")


class LogReplay:
    """The fold of a log under suspicion: an entry that does not stand changes nothing, and the next is tried."""

    def __init__(self, findings: Findings, documents: Documents, site_policy: SitePolicy | None) -> None:
        self.state = State()
        self.counted = dict.fromkeys(("entries", "orders", "signatures", "documents", "decisions"), 0)
        self.first_gap: int | None = None
        """The first entry that was not replayed, or did not stand: what follows was folded without it."""
        self._findings = findings
        self._documents = documents
        self._site_policy = site_policy
        self._decide: tuple[str, Decide | None] = ("", None)
        self.site_gap: str | None = None
        """Why the policies of a set could not be asked here, where they could not."""

    def miss(self, index: int) -> None:
        """Bytes that are no entry, or one out of its place: not replayed."""
        if self.first_gap is None:
            self.first_gap = index

    def take(self, entry: Entry, *, linked: bool) -> bool:
        """Whether the entry is valid. After a break that the chain has found, it is replayed in its own place."""
        state = self.state
        if entry.index < state.size or (state.size == 0 and entry.index > 0):
            self.miss(entry.index)
            return False
        if entry.index > state.size:
            self.miss(state.size)
        if not linked or entry.index > state.size:
            state.size, state.last_leaf = entry.index, entry.prev
        documents = self._read(entry) if entry.documents else {}
        judged = self._judge(entry, documents) if documents else None
        try:
            apply(state, entry, documents)
        except ApplianceError as error:
            return self._refuse(entry, error)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # What no rule foresaw does not stand either, and the rest of the log is looked at all the same.
            return self._refuse(entry, BadInput(f"expected what a rule can judge, got {type(error).__name__}"))
        state.keep()  # no projections are written here
        self._count(entry, documents, judged)
        return True

    def _refuse(self, entry: Entry, error: ApplianceError) -> bool:
        start, said = f"entry {entry.index}", error.message
        message = said if said.startswith(start) else f"{start} ({entry.type}): {said}"
        self._findings.add(entry.index, error.code, message)
        self.miss(entry.index)
        self._step_over(entry)
        return False

    def _step_over(self, entry: Entry) -> None:
        """Nothing changes but the place in the chain."""
        if self.state.size:
            self.state.size = entry.index + 1
            self.state.last_leaf = entry.link
            self.state.last_time = max(self.state.last_time, entry.time)

    def _read(self, entry: Entry) -> dict[str, bytes]:
        """Those documents that are there; the rules say which is missing and whether the bytes are those bound."""
        found = {role: self._documents(digest) for role, digest in entry.documents.items()}
        return {role: data for role, data in found.items() if data is not None}

    def _count(self, entry: Entry, documents: Mapping[str, bytes], judged: tuple[str, ...] | None) -> None:
        self.counted["entries"] += 1
        if not documents:
            return  # and so no order and no signature
        self.counted["documents"] += len(entry.documents)
        self.counted["orders"] += "order" in documents
        self.counted["signatures"] += sum(role in documents for role in _SIGNED)
        self.counted["decisions"] += judged == ()
        for reason in judged or ():
            self._findings.add(entry.index, "site-policy", f"entry {entry.index} ({entry.type}): {reason}")

    def _judge(self, entry: Entry, documents: Mapping[str, bytes]) -> tuple[str, ...] | None:
        """What the site's own policies in force say against the entry's order, and against the one that it endorses;
        None where they are not asked."""
        model = EVENTS.get(entry.type)
        if "order" not in documents or model is None or not issubclass(model, Ordered):
            return None
        decide = self._decider(entry)
        if decide is None:
            return None
        reasons: tuple[str, ...] = ()
        for data in (documents[role] for role in ("order", "endorsed") if role in documents):
            try:
                order = ORDERS.read(self.state, data, entry.time).order
            except ApplianceError:
                return None  # the rules will say so
            principal = self.state.principals.get(order.signer)
            if principal is None:
                return None
            reasons += decide(principal, order, self.state, entry.time)
        return reasons

    def _decider(self, entry: Entry) -> Decide | None:
        """That of the policy set in force before this entry."""
        site = self.state.sites.get("site")
        if self._site_policy is None or site is None:
            return None
        if self._decide[0] != site.policy:
            self._decide = (site.policy, None)
            try:
                self._decide = (site.policy, self._site_policy(parse_policy(self._documents(site.policy) or b"")))
            except Unavailable as error:
                self.site_gap = error.message
            except ApplianceError as error:
                text = f"entry {entry.index}: policy {site.policy}: {error.message}"
                self._findings.add(entry.index, "site-policy", text)
        return self._decide[1]
