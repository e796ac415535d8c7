"""Decisions and serving of docs/formats/ledger.md for a second verifier: what these types of entries do."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from tests.interop.second.effects import Effects
from tests.interop.second.formats import Envelope, ms, need
from tests.interop.second.releases import DAY
from tests.interop.second.rules import Row


class Log(Effects):
    """The state replay whole."""

    # Decisions.

    def tally(self, row: Row, *key: Any) -> None:
        p = row.p
        action = "activate" if row.o.action == "break-glass" else row.o.action
        self.counts[(action, row.o.signer, p["adapter"], p["version"], *key)] += 1

    def on_adapter_revoked(self, row: Row) -> None:
        self.adapter_of(row.p).revoked = True

    def on_release_requested(self, row: Row) -> None:
        p, adapter = row.p, self.adapter_of(row.p)
        self.tally(row, p["unit"])
        adapter.requests.append(Row(
            order=row.o.identity, index=row.index, time=row.now, signer=row.o.signer, key=row.key, unit=p["unit"],
            verdict=p["verdict"], exposure=p["exposure"], purpose=p["purpose"], conditions=p["conditions"],
            emergency=False, withdrawn=False,
        ))  # fmt: skip

    def on_request_withdrawn(self, row: Row) -> None:
        for one in self.adapter_of(row.p).requests:
            one.withdrawn |= one.order == row.p["request"]

    def on_finding_added(self, row: Row) -> None:
        p = row.p
        self.tally(row)
        self.adapter_of(p).findings.append(Row(
            index=row.index, signer=row.o.signer, key=row.key, review_function=p["review_function"], kind=p["kind"],
            blocks=p["blocks"], accepts=p["accepts_verdict"], due=ms(p["due"]), closed=[],
        ))  # fmt: skip

    def on_finding_closed(self, row: Row) -> None:
        for one in self.adapter_of(row.p).findings:
            if one.index == row.p["entry"]:
                one.closed.append(Row(key=row.key, index=row.index))

    def on_release_suspended(self, row: Row) -> None:
        p = row.p
        self.tally(row)
        self.adapter_of(p).suspensions.append(Row(
            index=row.index, unit=p["unit"], served_model=p["served_model"], role=p["role"], lifted=None,
        ))  # fmt: skip

    def on_release_resumed(self, row: Row) -> None:
        keys = [row.key, *([row.key2] if "countersigned" in row.docs else [])]
        for one in self.adapter_of(row.p).suspensions:
            if one.index == row.p["entry"]:
                one.lifted = Row(keys=keys, index=row.index)

    def on_review_delegated(self, row: Row) -> None:
        until = ms(row.p["until"]) if row.p["until"] else None
        self.delegations.append(Row(
            by=row.o.signer, to=row.p["principal"], review_function=row.p["review_function"], until=until,
            key=row.key, index=row.index,
        ))  # fmt: skip

    def on_samples_requested(self, row: Row) -> None:
        self.previews[row.o.identity] = row.o

    def on_try_requested(self, row: Row) -> None:
        self.previews[row.o.identity] = row.o
        self.prompts[(row.o.signer, row.now // DAY)] += len(row.p["prompts"])

    def preview(self, row: Row, action: str) -> Row:
        order, b = self.previews.pop(row.b["order"], None), row.b
        need(order and order.action == action, "preview: open")
        assert order is not None
        need(
            b["by"] == order.signer and b["adapter"] == f"{order.p['adapter']}@{order.p['version']}",
            "preview: the order's",
        )
        success = row.e["outcome"] == "success"
        need(success == (b["code"] is None), "preview: code")
        if success:
            self.viewable(order.p)
        return order

    def on_samples_shown(self, row: Row) -> None:
        order, b = self.preview(row, "view-samples"), row.b
        if row.e["outcome"] == "success":
            need(1 <= b["rows"] <= order.p["count"], "samples: rows")
        else:
            need(b["rows"] == 0 and b["released"] is None, "samples: none")

    def on_try_finished(self, row: Row) -> None:
        order = self.preview(row, "try-adapter")
        many = len(order.p["prompts"]) if row.e["outcome"] == "success" else 0
        need(len(row.b["answers"]) == many, "try: an answer for each prompt")

    def on_review_recorded(self, row: Row) -> None:
        p = row.p
        self.tally(row, p["unit"])
        self.adapter_of(p).reviews.append(Row(
            index=row.index, time=row.now, signer=row.o.signer, behalf=p["on_behalf_of"], key=row.key, unit=p["unit"],
            review_function=p["review_function"], decision=p["decision"],
            until=ms(p["valid_until"]) if p["valid_until"] else 0,
            request=p["request"], conditions=p["conditions"], delegation=row.delegation,
        ))  # fmt: skip

    def on_release_activated(self, row: Row) -> None:
        p = row.p
        self.tally(row, p["unit"], p["served_model"])
        self.releases.setdefault((p["unit"], p["served_model"]), []).append(Row(
            index=row.index, unit=p["unit"], signer=row.o.signer, key=row.key, key2=getattr(row, "key2", None),
            adapter=self.adapter_of(p), until=ms(p["until"]) if "until" in p else None, adds=p["adds_instruction"],
        ))  # fmt: skip

    on_release_rolled_back = on_release_activated

    def on_release_emergency(self, row: Row) -> None:
        p, adapter = row.p, self.adapter_of(row.p)
        before = [one for one in adapter.requests if one.unit == p["unit"]]
        self.on_release_activated(row)
        adapter.requests.append(Row(
            order=row.o.identity, index=row.index, time=row.now, signer=row.o.signer, key=row.key, unit=p["unit"],
            verdict=adapter.verdict, exposure=None, purpose=None, emergency=True, withdrawn=False,
            conditions=before[-1].conditions if before else None,
        ))  # fmt: skip

    def on_adapter_exported(self, row: Row) -> None:
        pass

    # Serving.

    def on_admission_refused(self, row: Row) -> None:
        b = row.b
        person = self.people.get(b["unit"])
        need(person is None or "unit" in person.roles, "refused: no other principal")
        need(b.get("adapter") is None or b["adapter"] in self.adapters, "refused: an adapter that was sealed")
        if row.type == "request.refused":
            need(
                b["served_model"] is None or (b["unit"], b["served_model"]) in self.releases,
                "refused: a served model that was released",
            )
            need(b["application"] is None or (b["unit"], b["application"]) in self.applications, "refused: application")

    on_request_refused = on_admission_refused

    def on_adapter_admitted(self, row: Row) -> None:
        b = row.b
        release = self.release(b["unit"], b["served_model"])
        need(release and b["adapter"] == release.adapter.name, "admitted: the release of unit and served model")
        assert release is not None
        adapter = release.adapter
        need(b["manifest"] == adapter.manifest, "admitted: manifest")
        self.admissible(adapter, b["unit"], b["served_model"], emergency=release.until is not None)
        need(self.release_counts(release), "admitted: the release counts")
        emergency = release.until is not None
        need(self.conditions_hold(adapter, b["unit"], b["served_model"], emergency), "admitted: conditions")
        need(b["approvals"] == [one.index for one in self.approvals(adapter, b["unit"])], "admitted: approvals")
        need(b["policy"] == self.policy and b["head"] <= row.index, "admitted: policy and head")
        self.witnessed()
        need(b["process"] is None or b["process"] in self.processes, "admitted: the process runs")
        at = (b["unit"], b["served_model"], b["process"])
        need(at not in self.slots or self.slots[at].loaded is None, "admitted: a slot with nothing loaded")
        self.slots[at] = Row(
            admitted=row.index, adapter=adapter, approvals=b["approvals"], release=release, loaded=None, engine=None,
            unit=b["unit"], served_model=b["served_model"],
        )  # fmt: skip

    def slot(self, b: dict[str, Any]) -> Row:
        found = [one for one in self.slots.values() if one.admitted == b["admitted"]]
        need(found, "slot: filled by that entry")
        slot = found[0]
        need(
            (slot.unit, slot.served_model, slot.adapter.name) == (b["unit"], b["served_model"], b["adapter"]),
            "slot: of that adapter",
        )
        return slot

    def rests(self, slot: Row) -> None:
        """Check that the slot's release is still current and valid, and each of its approvals."""
        release = self.release(slot.unit, slot.served_model)
        need(release is slot.release and self.release_counts(release), "slot: its release counts")
        emergency = release.until is not None
        self.admissible(slot.adapter, slot.unit, slot.served_model, emergency)
        need(self.conditions_hold(slot.adapter, slot.unit, slot.served_model, emergency), "slot: conditions")
        for index in slot.approvals:
            (review,) = [one for one in slot.adapter.reviews if one.index == index]
            words = self.last_words(slot.adapter, slot.unit)
            word = words[(review.signer, review.behalf)]
            need(
                word.decision in ("approve", "approve-with-conditions") and self.review_stands(slot.adapter, review),
                "slot: approvals",
            )

    def on_adapter_loaded(self, row: Row) -> None:
        b = row.b
        slot = self.slot(b)
        need(slot.loaded is None, "loaded: not yet")
        self.rests(slot)
        if b["engine"] is None:
            need(b["logit_fingerprint"] == "identical", "loaded: identical")
        else:
            told = slot.adapter.metrics["engines"][b["engine"]]
            difference, most = Decimal(told["logit_difference"]), Decimal(told["logit_tolerance"])
            need(b["logit_fingerprint"] == "close" and 0 <= difference <= most <= 1, "loaded: close")
        slot.loaded, slot.engine = row.now, b["engine"]

    def on_adapter_unloaded(self, row: Row) -> None:
        slot = self.slot(row.b)
        token = row.b["last_token"]
        need(token is None or (slot.loaded is not None and slot.loaded <= ms(token) <= row.now), "unloaded: last_token")
        self.slots = {name: one for name, one in self.slots.items() if one is not slot}
        self.cut(slot)

    def on_request_admitted(self, row: Row) -> None:
        b, day = row.b, row.now // DAY
        slot = self.slot(b)
        need(slot.loaded is not None and b["manifest"] == slot.adapter.manifest, "request: a loaded slot")
        need(b["release"] == slot.release.index and b["approvals"] == slot.approvals, "request: what it rests on")
        self.rests(slot)
        emergency = slot.release.until is not None
        limits = [c["answers_a_day"] for c in self.conditions(slot.adapter, b["unit"], emergency) if c["answers_a_day"]]
        at = (slot.adapter.name, b["unit"], day)
        need(not limits or self.answers[at] < min(limits), "request: answers_a_day")
        need(b["request"] not in self.requests, "request: a new name")
        self.token(row, b)
        run = self.run_of(slot.adapter)
        instruction = self.datasets[run.dataset].instruction
        need(b["instruction"] in (None, instruction), "request: instruction")
        need(b["instruction"] is None or (slot.release.adds and instruction not in self.erased), "request: instruction")
        self.answers[at] += bool(limits)
        self.requests[b["request"]] = Row(b=b, slot=slot, cut=False)

    def token(self, row: Row, b: dict[str, Any]) -> None:
        issued, known = ms(b["token_issued_at"]), self.tokens.get(b["token"])
        self.unrevoked(b)
        if b["application"] is None:
            need(known is None, "request: a unit's own token")
            need(issued + self.p["clock_skew_s"] * 1000 >= self.reset_at, "request: a token from before the reset")
            need(issued >= self.restored_at, "request: a token from after the restoration")
            need(issued <= row.now + self.p["clock_skew_s"] * 1000, "request: token_issued_at")
            most = max(self.p["token_lifetime_s"], self.p["session_lifetime_s"], 600)
            need(issued >= row.now - 1000 * most - 600_000, "request: token_issued_at")
            return
        need(
            known and known.issued == issued and known.application == b["application"],
            "request: an application's token",
        )
        assert known is not None
        need(
            known.unit == b["unit"]
            and b["served_model"] in self.applications[(known.unit, known.application)].served_models,
            "request: served models",
        )

    def unrevoked(self, b: dict[str, Any]) -> None:
        need((b["unit"], b["token"]) not in self.revoked_tokens, "request: the token is revoked")
        need(ms(b["token_issued_at"]) >= self.tokens_before.get(b["unit"], 0), "request: tokens are revoked")
        if b["application"] is not None:
            need(self.application_stands((b["unit"], b["application"])), "request: the application stands")

    def application_stands(self, name: tuple[str, str]) -> bool:
        found = self.applications.get(name)
        return found is not None and not found.ended and self.unit(name[0]) and self.counts_at(found.key, found.index)

    def on_request_finished(self, row: Row) -> None:
        b = row.b
        found = self.requests.pop(b["request"], None)
        need(found, "request.finished: an open request")
        assert found is not None
        need(row.actor == b["unit"], "request: the unit")
        shared = ("unit", "served_model", "adapter", "manifest", "admitted", "release", "approvals", "instruction")
        need(all(b[name] == found.b[name] for name in shared), "request.finished: as it began")
        need(b["engine"] == found.slot.engine, "request.finished: engine")
        if row.e["outcome"] == "success":
            need(not found.cut, "request.finished: cut off")
            self.rests(found.slot)
            self.unrevoked(found.b)

    def on_application_enrolled(self, row: Row) -> None:
        p = row.p
        name = (p["principal"], p["application"])
        self.key(row, p["principal"], p, application=name)
        self.applications[name] = Row(key=row.key, index=row.index, served_models=p["served_models"], ended=False)

    def on_token_issued(self, row: Row) -> None:
        b, envelope = row.b, Envelope(row.docs["token-request"])
        key = self.keys.get(envelope.keyid)
        need(key and key.application and self.application_stands(key.application), "token.issued: its application")
        assert key is not None
        found = self.signed(row.docs["token-request"], "token-request", {"expires_at", "application"}, key.application)
        need(
            key.application == (b["unit"], b["application"]) == (found.p["signer"], found.p["application"]),
            "token.issued: names",
        )
        need(row.actor == b["unit"], "token.issued: the unit")
        self.fresh(found, row.now, self.p["token_lifetime_s"])
        self.tokens = {name: one for name, one in self.tokens.items() if row.now < one.expires + 600_000}
        mine = [
            one
            for one in self.tokens.values()
            if (one.unit, one.application) == key.application and one.expires > row.now
        ]
        need(len(mine) < 16, "token.issued: fewer than 16")
        statements = {one.statement for one in self.tokens.values()}
        need(b["token"] not in self.tokens and envelope.identity not in statements, "token.issued: new")
        self.tokens[b["token"]] = Row(
            unit=b["unit"],
            application=b["application"],
            issued=found.issued,
            expires=found.expires,
            statement=envelope.identity,
        )

    def on_tokens_revoked(self, row: Row) -> None:
        p = row.p
        if p["application"]:
            self.applications[(p["unit"], p["application"])].ended = True
        if p["token"]:
            self.revoked_tokens.add((p["unit"], p["token"]))
        if p["issued_before"]:
            self.tokens_before[p["unit"]] = ms(p["issued_before"])
