"""Orders and policy of docs/formats/order.md and ledger.md for a second verifier, written from these pages alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.interop.second.formats import Envelope, canonical, check_members, has_value, ms, need, order_actions, sha

NOT_COVERED = (
    "Cedar policies", "SPDX licences", "epsilon", "metrics.baseline", "the bytes of state_rows",
    "100,000 rows evaluated on",
    "which version a verdict compares with", "metrics.sets but for counts",
)  # fmt: skip
"""What is left to the first verifier."""
DEFAULTS: dict[str, Any] = {
    "reviewers": 2, "distinct_functions": 2, "required_functions": [], "required_gates": [], "failed_verdict": "shown",
    "approver_may_activate": False, "most_sweep_runs": 16, "order_lifetime_s": 172_800,
    "approval_lifetime_s": 31_536_000, "session_lifetime_s": 900, "token_lifetime_s": 3_600,
    "export_lifetime_s": 604_800, "witness_lifetime_s": 604_800, "clock_skew_s": 60, "key_overlap_s": 2_592_000,
    "name_retention_s": 15_552_000, "text_retention_s": 0, "training_checkpoint_retention_s": 2_592_000,
    "accepted_missing_layers": [], "witnesses": [], "witness_quorum": 0, "requests_required": False,
    "exposures": ["internal", "customers", "public"], "purposes": ["draft", "assist", "decide"],
    "tiers": [
        {"name": name, "from_score": score, "reviewers": most, "distinct_functions": 2, "required_functions": [],
         "review_s": review * 86_400, "reattest_s": again * 86_400, "authorise_runs": False}
        for name, score, most, review, again in
        (("low", 1, 2, 30, 365), ("medium", 3, 2, 30, 365), ("high", 6, 3, 14, 180))
    ],
    "tries_a_day": 100, "slurm_accounts": [], "passkeys_synced": False, "passkeys_on_localhost": False,
    "identity_provider": None, "units_read": "own",
    "delegation_lifetime_s": 2_592_000, "break_glass_lifetime_s": 28_800, "licences": [],
    "classifications": ["public", "internal", "confidential", "restricted"], "retention": [],
}  # fmt: skip
BESIDE = {
    **{one: {"possession"} for one in ("enrol", "replace-key", "rotate-key", "enrol-passkey", "enrol-application")},
    "enrol-with-passkey": {"possession"}, "recover-administrator": {"possession"},
    "enrol-several": {"possessions"}, "adopt-policy": {"policy"}, "restore-log": {"lost"},
    "export-adapter": {"state_rows"}, "archive-log": {"removed"},
}  # fmt: skip
APPROVALS = ("approve", "approve-with-conditions")
ALONE = ("administrator", "auditor", "unit", "recovery")


class Order:
    def __init__(self, envelope: Envelope, origin: str) -> None:
        kind, statement = envelope.statement()
        family, _, self.action = kind.partition(":")
        need(family == "order" and self.action in order_actions(), "order: its action")
        table, self.p = order_actions()[self.action], statement["predicate"]
        own = {name: self.p.get(name) for name in table["members"]}
        check_members("order.md", self.action, own, table["members"])
        header = ("origin", "signer", "nonce", "issued_at", "expires_at", "reason")
        need(set(self.p) == {*header, *table["members"]}, "order: its members")
        kinds = ("text", "identifier", "`[0-9a-f]{32}`", "time", "time", "commitment, or null")
        need(all(has_value(self.p[name], kind) for name, kind in zip(header, kinds, strict=True)), "order: its header")
        need(self.p["origin"] == origin, "order: of this log")
        self.recorded_at = 0
        self.envelope, self.identity, self.signer = envelope, envelope.identity, self.p["signer"]
        self.issued, self.expires = ms(self.p["issued_at"]), ms(self.p["expires_at"])
        found = [*self._subjects(table)]
        told = [{"digest": {"sha256": digest.removeprefix("sha256:")}, "name": name} for name, digest in found]
        need(statement["subject"] == told, "order: its subjects")
        self.about = [name for name, _ in found] + [self._name(one) for one in table["about"]]

    def _subjects(self, table: dict[str, Any]) -> Iterator[tuple[str, str]]:
        for pattern, member in table["subjects"]:
            if self.action == "enrol-several":
                yield from ((f"principal:{one['principal']}", one["keyid"]) for one in self.p["people"])
                continue
            yield self._name(pattern), self.p[member] if member else sha(canonical(self.p))
        for one in self.p.get("sets", ()):
            yield f"validation-set:{one['validation_set']}", one["digest"]

    def _name(self, pattern: str) -> str:
        kind, _, rest = pattern.partition(":")
        p = self.p
        if not rest:
            return p["subject"] if pattern == "SUBJECT" else pattern
        if self.action == "train":
            value = p["recipe"][kind]
        elif kind == "unit":
            value = p.get("unit", p.get("principal"))
        elif rest == "SIZE":
            value = p["up_to"]
        else:
            value = p[{"text": "commitment"}.get(kind, kind).replace("-", "_")]
        return f"{kind}:{value}@{p['version']}" if rest == "NAME@N" and self.action != "train" else f"{kind}:{value}"

    def texts(self) -> list[str]:
        found = [v for v in self.p.values() if isinstance(v, str) and v.startswith("hmac-sha256:")]
        return found + [one["printed_name"] for one in self.p.get("people", ())]
