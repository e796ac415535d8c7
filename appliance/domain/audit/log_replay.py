"""The replay of all entries through the rules, and through the site's Cedar policies if Cedar is available."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from appliance.domain.actions.apply import apply
from appliance.domain.actions.registry import EVENTS, ORDERS
from appliance.domain.audit.report import UNBOUND, Findings
from appliance.domain.core.entry import Entry, Ordered
from appliance.domain.core.names import Time
from appliance.domain.core.order import Order
from appliance.domain.core.policy import PolicySet, parse_policy
from appliance.domain.core.records.people import Principal
from appliance.domain.core.state import State
from appliance.domain.releases.adapters import SIGNATURE_ROLES
from appliance.errors import ApplianceError, BadInput, Refusal, Unavailable
from appliance.formats.core.commitment import Disclosure, verify_disclosure

Documents = Callable[[str], bytes | None]
"""A function that returns the bytes stored under a digest, or None. The replay hashes them."""

Decide = Callable[[Principal, Order, State, Time], tuple[Refusal, ...]]
"""A function that returns the refusal reasons of a policy set's own policies for an order."""
CedarPolicy = Callable[[PolicySet], Decide]
"""A function that builds the decider of a policy set's own policies, such as `CedarPolicies.confine(policy).decide`."""

_SIGNED = ("order", "countersigned", "possession", "possessions", "session", *SIGNATURE_ROLES, "provenance")
"""The roles of documents whose signature the rules verify."""


_COMMITMENT = "hmac-sha256:"


class Disclosed:
    """The texts stored beside the log. Each must open its commitment, and an entry or order must bind it."""

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
        """Return the number of bound texts and add the findings.

        A text is a finding if no entry binds it or an entry erased it, and if it is bound, not erased, and missing.
        """
        bound = 0
        for commitment in self._commitments():
            text = state.texts.get(commitment)
            if text is None:
                self._findings.add(None, "unbound-text", f"disclosure {commitment}: {UNBOUND}")
            elif text.erased is not None:
                mismatch = f"disclosure {commitment}: expected none, since this entry erased it, got its text"
                self._findings.add(text.erased, "erasure", f"entry {text.erased}: {mismatch}")
            else:
                bound += 1
        if bound != sum(text.erased is None for text in state.texts.values()):
            self._report_missing(state)
        return bound

    def _commitments(self) -> Iterator[str]:
        for start in range(0, len(self._opened), 32):
            yield f"{_COMMITMENT}{self._opened[start : start + 32].hex()}"

    def _report_missing(self, state: State) -> None:
        present = set(self._commitments())
        for commitment, text in state.texts.items():
            if text.erased is None and commitment not in present:
                mismatch = f"disclosure {commitment}: expected its text, which no entry erased, got none"
                self._findings.add(text.entry, "missing-text", f"entry {text.entry}: {mismatch}")


class LogReplay:
    """The replay of a log that may be forged: an invalid entry changes nothing, and the next one is tried."""

    def __init__(self, findings: Findings, documents: Documents, cedar_policy: CedarPolicy | None) -> None:
        self.state = State()
        self.counted = dict.fromkeys(("entries", "orders", "signatures", "documents", "decisions"), 0)
        self.first_gap: int | None = None
        """Index of the first entry that was not replayed or was invalid; later entries were replayed without it."""
        self._findings = findings
        self._documents = documents
        self._cedar_policy = cedar_policy
        self._decide: tuple[str, Decide | None] = ("", None)
        self.site_gap: str | None = None
        """The reason why a set's policies could not be evaluated here, or None."""

    def miss(self, index: int) -> None:
        """Record that bytes were not replayed, since they are not an entry or are out of order."""
        if self.first_gap is None:
            self.first_gap = index

    def take(self, entry: Entry, *, linked: bool) -> bool:
        """Replay an entry; return True if it is valid.

        `linked` is False after a break that the chain has found; the entry is then replayed at its own index.
        """
        state = self.state
        if entry.index < state.size or (state.size == 0 and entry.index > 0):
            self.miss(entry.index)
            return False
        if entry.index > state.size:
            self.miss(state.size)
        if not linked or entry.index > state.size:
            state.size, state.last_leaf = entry.index, entry.prev
        documents = self._read(entry) if entry.documents else {}
        policy_reasons = self._evaluate_policies(entry, documents) if documents else None
        try:
            apply(state, entry, documents)
        except ApplianceError as error:
            return self._refuse(entry, error)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # An entry that a rule fails on is invalid, too, and the rest of the log is still replayed.
            return self._refuse(entry, BadInput(f"expected what a rule can check, got {type(error).__name__}"))
        state.keep()  # no projections are written here
        self._count(entry, documents, policy_reasons)
        return True

    def skip_removed(self, index: int, leaf: bytes) -> None:
        """Skip an entry that an archive removed."""
        if self.state.size:
            self.state.size = index
            self.state.skip_removed(leaf)

    def _refuse(self, entry: Entry, error: ApplianceError) -> bool:
        start, text = f"entry {entry.index}", error.message
        message = text if text.startswith(start) else f"{start} ({entry.type}): {text}"
        self._findings.add(entry.index, error.code, message)
        self.miss(entry.index)
        self._skip_refused(entry)
        return False

    def _skip_refused(self, entry: Entry) -> None:
        """Move to the place after the entry and leave the rest of the state unchanged."""
        if self.state.size:
            self.state.size = entry.index + 1
            self.state.last_leaf = entry.link
            self.state.last_time = max(self.state.last_time, entry.time)

    def _read(self, entry: Entry) -> dict[str, bytes]:
        """Return the documents that are present. The rules report missing ones and verify the bytes."""
        documents = {role: self._documents(digest) for role, digest in entry.documents.items()}
        return {role: data for role, data in documents.items() if data is not None}

    def _count(self, entry: Entry, documents: Mapping[str, bytes], policy_reasons: tuple[Refusal, ...] | None) -> None:
        self.counted["entries"] += 1
        if not documents:
            return  # without documents there are no orders or signatures
        self.counted["documents"] += len(entry.documents)
        self.counted["orders"] += "order" in documents
        self.counted["signatures"] += sum(role in documents for role in _SIGNED)
        self.counted["decisions"] += policy_reasons == ()
        for reason in policy_reasons or ():
            self._findings.add(entry.index, "cedar-policy", f"entry {entry.index} ({entry.type}): {reason}")

    def _evaluate_policies(self, entry: Entry, documents: Mapping[str, bytes]) -> tuple[Refusal, ...] | None:
        """Return the refusal reasons of the valid Cedar policies for the entry's order.

        They include those for the order that it countersigns. The result is None if the policies are not evaluated.
        """
        model = EVENTS.get(entry.type)
        if "order" not in documents or model is None or not issubclass(model, Ordered):
            return None
        decide = self._decider(entry)
        if decide is None:
            return None
        reasons: tuple[Refusal, ...] = ()
        for data in (documents[role] for role in ("order", "countersigned") if role in documents):
            try:
                order = ORDERS.read(self.state, data, entry.time).order
            except ApplianceError:
                return None  # the rules report it
            principal = self.state.principals.get(order.signer)
            if principal is None:
                return None
            reasons += decide(principal, order, self.state, entry.time)
        return reasons

    def _decider(self, entry: Entry) -> Decide | None:
        """Return the decider of the policy set that was valid before this entry, or None."""
        site = self.state.sites.get("site")
        if self._cedar_policy is None or site is None:
            return None
        if self._decide[0] != site.policy:
            self._decide = (site.policy, None)
            try:
                self._decide = (site.policy, self._cedar_policy(parse_policy(self._documents(site.policy) or b"")))
            except Unavailable as error:
                self.site_gap = error.message
            except ApplianceError as error:
                text = f"entry {entry.index}: policy {site.policy}: {error.message}"
                self._findings.add(entry.index, "cedar-policy", text)
        return self._decide[1]
