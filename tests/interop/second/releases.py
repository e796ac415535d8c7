"""Reviews, requests, releases and admission of docs/formats/ledger.md for a second verifier, from that page alone."""

from __future__ import annotations

from typing import Any

from tests.interop.second.formats import ms, need, parse, sha
from tests.interop.second.making import Making
from tests.interop.second.orders import APPROVALS
from tests.interop.second.rules import Row

DAY = 86_400_000


class Releases(Making):
    """Who may decide what about an adapter, and what it may answer."""

    def adapter_of(self, p: dict[str, Any]) -> Row:
        found = self.adapters.get(f"{p['adapter']}@{p['version']}")
        need(found and found.manifest == p["manifest"], "adapter: the manifest is its own")
        assert found is not None
        return found

    def run_of(self, adapter: Row) -> Row:
        return self.runs[adapter.run]

    def once_more(self, row: Row, *key: Any, most: int = 100) -> None:
        need(self.counts[(row.o.action, row.o.signer, *key)] < most, "orders: 100 about a version")

    # Last words, approvals, requests.

    def last_words(self, adapter: Row, unit: str) -> dict[tuple[str, str | None], Row]:
        words: dict[tuple[str, str | None], Row] = {}
        for review in adapter.reviews:
            if review.unit != unit:
                continue
            who = (review.signer, review.behalf)
            before = words.get(who)
            asks = review.decision == "request-changes" and (before is None or before.decision != "reject")
            replaces = self.counts_at(review.key, review.index) or review.decision == "reject" or asks
            if not replaces and before is not None and before.decision in APPROVALS:
                less = review.decision in APPROVALS and (
                    review.conditions != before.conditions or review.until < before.until
                )
                replaces = review.decision == "withdraw" or less
            if replaces:
                words[who] = review
        return words

    def first_counted(self, adapter: Row, unit: str, who: str) -> int:
        found = [
            r.index for r in adapter.reviews if r.unit == unit and r.signer == who and self.counts_at(r.key, r.index)
        ]
        return min(found, default=1 << 62)

    def decided(self, adapter: Row, request: Row, *decisions: str) -> bool:
        found = [r for r in adapter.reviews if r.request == request.order and self.counts_at(r.key, r.index)]
        return any(not decisions or r.decision in decisions for r in found)

    def current_request(self, adapter: Row, unit: str) -> Any:
        mine = [one for one in adapter.requests if one.unit == unit]
        if not mine or mine[-1].withdrawn or not self.counts_at(mine[-1].key, mine[-1].index):
            return None
        return mine[-1]

    def tier_of(self, request: Row) -> Any:
        """Return the tier by the valid policy; none where a word of it is gone."""
        tiers = self.p["tiers"]
        if request.emergency:
            return tiers[-1]
        exposures, purposes = self.p["exposures"], self.p["purposes"]
        if request.exposure not in exposures or request.purpose not in purposes:
            return None
        score = (exposures.index(request.exposure) + 1) * (purposes.index(request.purpose) + 1)
        return [one for one in tiers if one["from_score"] <= score][-1]

    def stale(self, adapter: Row, review: Row) -> bool:
        request = self.current_request(adapter, review.unit)
        if review.request != (request.order if request else None):
            return True
        if request:
            tier = self.tier_of(request)
            if (
                request.verdict != adapter.verdict
                or tier is None
                or self.now >= review.time + tier["reattest_s"] * 1000
            ):
                return True
        if review.decision not in APPROVALS:
            return False
        accepted = self.accepting(adapter, review.unit)
        unread = self.stops(adapter) and not any(one.index < review.index for one in accepted)
        return unread or not self.sets_stand(self.run_of(adapter))

    def review_stands(self, adapter: Row, review: Row) -> bool:
        makers, field = self.makers(self.run_of(adapter)), f"reviewer:{review.review_function}"
        if review.decision not in APPROVALS or not self.counts_at(review.key, review.index):
            return False
        holder = review.behalf or review.signer
        if not self.stands(review.signer) or not self.stands(holder, field) or {review.signer, holder} & makers:
            return False
        if review.behalf and not self.counts_at(review.delegation.key, review.delegation.index):
            return False
        return self.clock(review.index) < review.until and not self.stale(adapter, review)

    def approvals(self, adapter: Row, unit: str) -> list[Row]:
        found = [one for one in self.last_words(adapter, unit).values() if self.review_stands(adapter, one)]
        return sorted(found, key=lambda one: (self.first_counted(adapter, unit, one.signer), one.index))

    def counted(self, adapter: Row, unit: str) -> list[Row]:
        found: list[Row] = []
        people: set[str] = set()
        approvals = self.approvals(adapter, unit)
        for one in [a for a in approvals if not a.behalf] + [a for a in approvals if a.behalf]:
            persons = {one.signer, one.behalf or one.signer}
            if not persons & people:
                found.append(one)
                people |= persons
        return found

    def behind(self, person: str, adapter: Row, unit: str) -> bool:
        return not self.p["approver_may_activate"] and any(
            person in (one.signer, one.behalf) for one in self.approvals(adapter, unit)
        )

    def stops(self, adapter: Row) -> bool:
        required = self.p["required_gates"]
        missing = required and adapter.gates not in required
        return self.p["failed_verdict"] == "stops" and bool(missing or adapter.passed is False)

    def accepting(self, adapter: Row, unit: str) -> list[Row]:
        request = self.current_request(adapter, unit)
        tier = self.tier_of(request) if request else None
        fields = {*self.p["required_functions"], *(tier["required_functions"] if tier else ())}
        return [
            one
            for one in adapter.findings
            if one.accepts and not one.closed and one.due > self.now and self.counts_at(one.key, one.index)
            and self.stands(one.signer, f"reviewer:{one.review_function}")
            and (not fields or one.review_function in fields)
        ]  # fmt: skip

    def open(self, finding: Row) -> bool:
        return not any(self.counts_at(one.key, one.index) for one in finding.closed)

    def suspended(self, adapter: Row, unit: str, served_model: str | None = None) -> list[Row]:
        """Return the valid suspensions for the unit, and with a served model those that stop it."""
        return [
            one
            for one in adapter.suspensions
            if one.unit == unit and (served_model is None or one.served_model in (None, served_model))
            and not (one.lifted and all(self.counts_at(key, one.lifted.index) for key in one.lifted.keys))
        ]  # fmt: skip

    def conditions(self, adapter: Row, unit: str, emergency: bool = False) -> list[dict[str, Any]]:
        request = self.current_request(adapter, unit)
        found = [request.conditions] if request else []
        if emergency:
            last = {(r.signer, r.behalf): r for r in adapter.reviews if r.unit == unit and r.decision in APPROVALS}
            found += [one.conditions for one in last.values()]
        else:
            found += [one.conditions for one in self.approvals(adapter, unit)]
        return [one for one in found if one]

    def conditions_hold(self, adapter: Row, unit: str, served_model: str, emergency: bool = False) -> bool:
        return all(
            (c["not_before"] is None or self.now >= ms(c["not_before"]))
            and (c["not_after"] is None or self.now < ms(c["not_after"]))
            and (not c["served_models"] or served_model in c["served_models"])
            for c in self.conditions(adapter, unit, emergency)
        )

    def authorised(self, run: Row) -> bool:
        return any(self.counts_at(key, index) for key, index in run.authorised)

    def barred(self, adapter: Row, unit: str, served_model: str) -> None:
        """Refuses what keeps an adapter from being admissible, but for the number and fields of its approvals."""
        run = self.run_of(adapter)
        need(not self.suspended(adapter, unit, served_model), "admissible: no suspension")
        need(not adapter.revoked and not adapter.quarantined, "admissible: the adapter")
        need(self.stands_base(run.base) and not self.datasets[run.dataset].revoked, "admissible: base and dataset")
        need(self.unit(unit), "admissible: the unit")
        for word in self.last_words(adapter, unit).values():
            need(word.decision != "reject", "admissible: a rejection")
            need(word.decision != "request-changes" or self.stale(adapter, word), "admissible: changes requested")
        for one in adapter.findings:
            if self.open(one):
                need(not one.blocks and (one.kind != "exception" or one.due > self.now), "admissible: findings")
        need(not self.stops(adapter) or self.accepting(adapter, unit), "admissible: the verdict")
        request = self.current_request(adapter, unit)
        need(request or not self.p["requests_required"], "admissible: a request")
        asked = [one for one in adapter.requests if one.unit == unit and not one.emergency]
        for one in [*asked[-1:], *([request] if request and request.emergency else [])]:
            tier = self.tier_of(one)
            need(not tier or not tier["authorise_runs"] or self.authorised(run), "admissible: the run is authorised")

    def enough(self, adapter: Row, unit: str) -> bool:
        request = self.current_request(adapter, unit)
        tier = (self.tier_of(request) if request else None) or {}
        found = self.counted(adapter, unit)
        fields = {one.review_function for one in found}
        most = {name: max(self.p[name], tier.get(name, 0)) for name in ("reviewers", "distinct_functions")}
        required = {*self.p["required_functions"], *tier.get("required_functions", ())}
        return len(found) >= most["reviewers"] and len(fields) >= most["distinct_functions"] and required <= fields

    def admissible(self, adapter: Row, unit: str, served_model: str, emergency: bool = False) -> None:
        self.barred(adapter, unit, served_model)
        need(emergency or self.enough(adapter, unit), "admissible: quorum of approvals")

    def release(self, unit: str, served_model: str) -> Any:
        found = self.releases.get((unit, served_model), [])
        if not found or found[-1].until is None:
            return found[-1] if found else None
        over = any(at > found[-1].index for at, _ in self.resets)
        return None if over or self.now >= found[-1].until else found[-1]

    def release_counts(self, release: Row) -> bool:
        keys = [release.key, *([release.key2] if release.until else [])]
        return (
            self.stands(release.signer, f"release-owner:{release.unit}")
            and all(self.counts_at(key, release.index) for key in keys)
            and not self.behind(release.signer, release.adapter, release.unit)
        )

    def witnessed(self) -> None:
        lifetime = self.p["witness_lifetime_s"] * 1000
        found = [
            name for name, one in self.witnessed_at.items()
            if one.time >= self.clock(one.entry) - lifetime and one.vkey in self.p["witnesses"]
        ]  # fmt: skip
        need(len(found) >= self.p["witness_quorum"], "admission: witnessed as policy asks")

    # Rules of orders.

    def rule_review(self, row: Row) -> None:
        p, signer = row.p, row.o.signer
        adapter = self.adapter_of(p)
        run, approves = self.run_of(adapter), p["decision"] in APPROVALS
        makers = self.makers(run)
        need(signer not in makers, "review: separation of duties")
        need(self.unit(p["unit"]) and not adapter.revoked and run.purpose == "release", "review: unit and adapter")
        most = 100 + (p["decision"] == "reject" and self.last_decision(adapter, signer) != "reject")
        self.once_more(row, p["adapter"], p["version"], p["unit"], most=most)
        if approves:
            need(self.sets_stand(run), "review: its validation sets stand")
            until = ms(p["valid_until"]) if p["valid_until"] else 0
            need(row.now < until <= row.now + self.p["approval_lifetime_s"] * 1000, "review: valid_until")
            need(not self.stops(adapter) or self.accepting(adapter, p["unit"]), "review: the verdict stops it")
            current = [r for (unit, _), found in self.releases.items() for r in found[-1:] if unit == p["unit"]]
            mine = any(r.adapter is adapter and r.signer in (signer, p["on_behalf_of"]) for r in current)
            need(self.p["approver_may_activate"] or not mine, "review: the signer of the release")
        else:
            need(p["valid_until"] is None, "review: valid_until")
        request = self.current_request(adapter, p["unit"])
        need(p["request"] == (request.order if request else None), "review: the current request")
        need(request or not approves or not self.p["requests_required"], "review: a request")
        if request:
            tier = self.tier_of(request)
            before = any(
                r.signer == signer and r.request == request.order and r.decision in APPROVALS for r in adapter.reviews
            )
            need(
                tier is None or before or self.clock(request.index) < request.time + tier["review_s"] * 1000,
                "review: in its time",
            )
        need((p["decision"] == "approve-with-conditions") == says(p["conditions"]), "review: conditions")
        need(p["reason"] or (not request and p["decision"] in ("approve", "reject")), "review: a reason")
        self._withdraws(p, adapter, signer)
        self._delegated(row, makers)

    def last_decision(self, adapter: Row, signer: str) -> str | None:
        return next((r.decision for r in reversed(adapter.reviews) if r.signer == signer), None)

    def _withdraws(self, p: dict[str, Any], adapter: Row, signer: str) -> None:
        if p["decision"] == "withdraw":
            mine = [
                r for r in adapter.reviews if (r.signer, r.unit, r.behalf) == (signer, p["unit"], p["on_behalf_of"])
            ]
            need(mine and mine[-1].decision != "withdraw", "review: something to withdraw")

    def _delegated(self, row: Row, makers: set[str]) -> None:
        p, row.delegation = row.p, None
        if p["on_behalf_of"] is None:
            return
        holder, signer = p["on_behalf_of"], row.o.signer
        need(holder not in makers and self.stands(holder, f"reviewer:{p['review_function']}"), "review: in whose place")
        mine = [
            d for d in self.delegations if (d.by, d.to, d.review_function) == (holder, signer, p["review_function"])
        ]
        need(mine and mine[-1].until is not None and mine[-1].until > row.now, "review: a delegation")
        row.delegation = mine[-1]
        need(self.counts_at(row.delegation.key, row.delegation.index), "review: the delegation's key")
        need(
            not self.people[signer].roles & {"operator", "administrator", "auditor", "unit"},
            "review: a delegate's roles",
        )

    def rule_request_release(self, row: Row) -> None:
        p = row.p
        adapter = self.adapter_of(p)
        run = self.run_of(adapter)
        self.once_more(row, p["adapter"], p["version"], p["unit"])
        need(not adapter.revoked and run.purpose == "release" and self.unit(p["unit"]), "request: adapter and unit")
        need(p["exposure"] in self.p["exposures"] and p["purpose"] in self.p["purposes"], "request: its words")
        tier = self.tier_of(Row(emergency=False, exposure=p["exposure"], purpose=p["purpose"]))
        need(tier["name"] == p["tier"] and p["verdict"] == adapter.verdict, "request: tier and verdict")
        need(not tier["authorise_runs"] or self.authorised(run), "request: the run is authorised")
        need(p["conditions"] is None or says(p["conditions"]), "request: conditions")
        current = self.current_request(adapter, p["unit"])
        if current and current.emergency:
            refused = self.decided(adapter, current, "reject", "request-changes")
            later = [r for (unit, _), found in self.releases.items() for r in found if unit == p["unit"]]
            again = any(r.index > current.index and r.until is None and r.adapter is adapter for r in later)
            need(refused or again, "request: an emergency's stands")

    def rule_withdraw_request(self, row: Row) -> None:
        request = self.current_request(self.adapter_of(row.p), row.p["unit"])
        need(request and request.order == row.p["request"] and not request.emergency, "withdraw: the current request")

    def rule_add_finding(self, row: Row) -> None:
        p = row.p
        adapter = self.adapter_of(p)
        self.once_more(row, p["adapter"], p["version"])
        need(row.o.signer not in self.makers(self.run_of(adapter)), "finding: separation of duties")
        need(self.stands(p["owner"]) and ms(p["due"]) > row.now, "finding: owner and due")
        if p["accepts_verdict"]:
            required = self.p["required_gates"]
            need(p["kind"] == "exception" and not p["blocks"], "finding: accepts_verdict")
            need(ms(p["due"]) <= row.now + self.p["approval_lifetime_s"] * 1000, "finding: due")
            need(
                adapter.passed is not True or (required and adapter.gates not in required), "finding: nothing to accept"
            )

    def rule_close_finding(self, row: Row) -> None:
        adapter = self.adapter_of(row.p)
        found = [one for one in adapter.findings if one.index == row.p["entry"]]
        need(found and self.open(found[0]), "close-finding: open")
        need(row.o.signer not in self.makers(self.run_of(adapter)), "close-finding: separation of duties")

    def viewable(self, p: dict[str, Any]) -> None:
        adapter = self.adapter_of(p)
        run = self.run_of(adapter)
        need(run.purpose == "release" and not adapter.revoked and not adapter.quarantined, "preview: the adapter")
        need(self.stands_base(run.base) and not self.datasets[run.dataset].revoked, "preview: base and dataset")

    def rule_view_samples(self, row: Row) -> None:
        self.viewable(row.p)
        need(all(one.signer != row.o.signer for one in self.previews.values()), "preview: none is open")

    def rule_try_adapter(self, row: Row) -> None:
        self.rule_view_samples(row)
        prompts = row.p["prompts"]
        need(len(set(prompts)) == len(prompts), "try: each prompt once")
        put = self.prompts[(row.o.signer, row.now // DAY)] + len(prompts)
        need(put <= self.p["tries_a_day"], "try: a day's prompts")

    def rule_delegate(self, row: Row) -> None:
        p, by = row.p, row.o.signer
        if p["until"] is None:
            mine = [
                d
                for d in self.delegations
                if (d.by, d.to, d.review_function) == (by, p["principal"], p["review_function"])
            ]
            need(mine and mine[-1].until is not None and mine[-1].until > row.now, "delegate: one that stands")
            return
        need(row.now < ms(p["until"]) <= row.now + self.p["delegation_lifetime_s"] * 1000, "delegate: until")
        other = self.people.get(p["principal"])
        need(other and other.revoked is None and p["principal"] != by, "delegate: another person")
        assert other is not None
        need(not other.roles & {"operator", "administrator", "auditor", "unit"}, "delegate: roles")

    def _instruction(self, row: Row, adapter: Row) -> None:
        if row.p["adds_instruction"]:
            need(
                self.datasets[self.run_of(adapter).dataset].instruction not in self.erased, "activate: the instruction"
            )

    def rule_activate(self, row: Row) -> None:
        p = row.p
        adapter = self.adapter_of(p)
        run = self.run_of(adapter)
        self.once_more(row, p["adapter"], p["version"], p["unit"], p["served_model"])
        need(row.o.signer != run.signer, "activate: separation of duties")
        need(run.purpose == "release", "activate: purpose")
        self.admissible(adapter, p["unit"], p["served_model"])
        need(not self.behind(row.o.signer, adapter, p["unit"]), "activate: behind an approval")
        need(self.conditions_hold(adapter, p["unit"], p["served_model"]), "activate: conditions")
        self._instruction(row, adapter)

    def rule_rollback(self, row: Row) -> None:
        self.rule_activate(row)
        found = self.releases.get((row.p["unit"], row.p["served_model"]), [])
        names = [one.adapter.name for one in found]
        mine = f"{row.p['adapter']}@{row.p['version']}"
        need(
            mine in names and (self.release(row.p["unit"], row.p["served_model"]) is None or names[-1] != mine),
            "rollback: before",
        )

    def rule_break_glass(self, row: Row) -> None:
        p, signer = row.p, row.o.signer
        adapter = self.adapter_of(p)
        need(signer != self.run_of(adapter).signer and not self.single and p["reason"], "break-glass: who and why")
        found = self.releases.get((p["unit"], p["served_model"]), [])
        need(any(one.adapter is adapter and one.until is None for one in found), "break-glass: was released before")
        need(row.now < ms(p["until"]) <= row.now + self.p["break_glass_lifetime_s"] * 1000, "break-glass: until")
        self.barred(adapter, p["unit"], p["served_model"])
        need(not self.enough(adapter, p["unit"]), "break-glass: approvals lack something")
        need(self.conditions_hold(adapter, p["unit"], p["served_model"], emergency=True), "break-glass: conditions")
        opened = [one for one in adapter.requests if one.unit == p["unit"] and one.emergency]
        need(not opened or self.decided(adapter, opened[-1]), "break-glass: the last one's review")
        need(not self.behind(signer, adapter, p["unit"]), "break-glass: behind an approval")
        self._instruction(row, adapter)

    def rule_suspend_release(self, row: Row) -> None:
        p, unit = row.p, row.p["unit"]
        adapter = self.adapter_of(p)
        self.once_more(row, p["adapter"], p["version"])
        need(p["reason"] and not adapter.revoked and self.unit(unit), "suspend: why, adapter and unit")
        kinds = p["role"] in ("administrator", f"release-owner:{unit}") or p["role"].startswith("reviewer:")
        need(kinds and p["role"] in self.people[row.o.signer].roles, "suspend: a role of the signer's")
        same = [
            one
            for one in self.suspended(adapter, unit)
            if one.role == p["role"] and one.served_model in (None, p["served_model"])
        ]
        need(not same, "suspend: not yet")

    def rule_resume_release(self, row: Row) -> None:
        p = row.p
        adapter = self.adapter_of(p)
        found = [one for one in self.suspended(adapter, p["unit"]) if one.index == p["entry"]]
        need(p["reason"] and found, "resume: why, and a valid suspension")
        need(row.o.signer not in self.makers(self.run_of(adapter)), "resume: separation of duties")

    def rule_revoke_adapter(self, row: Row) -> None:
        need(not self.adapter_of(row.p).revoked, "revoke-adapter")

    def _revocable(self, found: Any, p: dict[str, Any]) -> None:
        need(found and found.digest == p["digest"] and not found.revoked, "revoke: digest, and not revoked")

    def rule_revoke_base(self, row: Row) -> None:
        self._revocable(self.bases.get(row.p["base"]), row.p)

    def rule_revoke_dataset(self, row: Row) -> None:
        self._revocable(self.datasets.get(f"{row.p['dataset']}@{row.p['version']}"), row.p)

    def rule_revoke_validation_set(self, row: Row) -> None:
        self._revocable(self.sets.get(f"{row.p['validation_set']}@{row.p['version']}"), row.p)

    def rule_enrol_application(self, row: Row) -> None:
        p = row.p
        self.new_key(p)
        need((p["principal"], p["application"]) not in self.applications, "application: a new name")
        need(len(set(p["served_models"])) == len(p["served_models"]), "application: served models")
        self.possession(row.docs["possession"], p)

    def rule_revoke_tokens(self, row: Row) -> None:
        p = row.p
        need(self.unit(p["unit"]), "revoke-tokens: the unit")
        need([p["token"], p["issued_before"], p["application"]].count(None) == 2, "revoke-tokens: one of three")
        need((p["unit"], p["token"]) not in self.revoked_tokens, "revoke-tokens: a token")
        if p["issued_before"]:
            time = ms(p["issued_before"])
            need(
                self.tokens_before.get(p["unit"], 0) < time <= row.now + self.p["clock_skew_s"] * 1000,
                "revoke-tokens: time",
            )
        if p["application"]:
            found = self.applications.get((p["unit"], p["application"]))
            need(found and not found.ended, "revoke-tokens: the application")

    def rule_export_adapter(self, row: Row) -> None:
        p = row.p
        adapter, until = self.adapter_of(p), ms(p["valid_until"])
        unit = p["unit"]
        need(row.o.signer != self.run_of(adapter).signer, "export: separation of duties")
        release = self.release(unit, p["served_model"])
        need(release and release.adapter is adapter and self.release_counts(release), "export: the release today")
        need(release.until is None, "export: no emergency")
        self.admissible(adapter, unit, p["served_model"])
        self.witnessed()
        need(row.now < until <= row.now + self.p["export_lifetime_s"] * 1000, "export: valid_until")
        request = self.current_request(adapter, unit)
        ends = [one.until for one in self.approvals(adapter, unit)]
        if request:
            again = self.tier_of(request)["reattest_s"] * 1000
            ends += [one.time + again for one in self.approvals(adapter, unit)]
        conditions = self.conditions(adapter, unit)
        ends += [ms(one["not_after"]) for one in conditions if one["not_after"]]
        ends += [one.due for one in adapter.findings if one.kind == "exception" and self.open(one)]
        if self.p["witness_quorum"]:
            times = sorted((w.time for w in self.witnessed_at.values() if w.vkey in self.p["witnesses"]), reverse=True)
            ends.append(times[self.p["witness_quorum"] - 1] + self.p["witness_lifetime_s"] * 1000)
        need(until <= min(ends), "export: not after what ends")
        need(all(one["answers_a_day"] is None for one in conditions), "export: no answers_a_day")


def says(conditions: Any) -> bool:
    return bool(conditions) and any(
        conditions[name] for name in ("not_before", "not_after", "served_models", "answers_a_day")
    )


def files_of(manifest: bytes) -> dict[str, str]:
    value = parse(manifest)
    need(set(value) - {"privacy"} == {"_type", "files", "name", "version"}, "manifest: members")
    need(value["_type"] == "urn:appliance:manifest:v1", "manifest: type")
    found = {one["path"]: one["digest"] for one in value["files"]}
    need(
        found and list(found) == sorted(found) and len(found) == len(value["files"]),
        "manifest: files sorted, each once",
    )
    return found


def manifest_digest(row: Row) -> str:
    return sha(row.docs["manifest"])
