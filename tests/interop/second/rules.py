"""The state replay of docs/formats/ledger.md for a second verifier, written from that page alone."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace as Row
from typing import Any

from tests.interop.second.formats import (
    Envelope,
    Note,
    Tree,
    Vkey,
    canonical,
    check_members,
    entry_types,
    leaf,
    load_key,
    ms,
    need,
    parse,
    sha,
    unbase64,
)
from tests.interop.second.orders import ALONE, BESIDE, Order


class Replay:
    """The state, from entry to entry."""

    p: dict[str, Any]
    """The parameters of the valid policy, with their defaults."""
    policy: str
    origin: str
    witnesses: list[Vkey]
    witnessed_at: dict[str, Row]
    single_administrator: bool

    def __init__(self, documents: dict[str, bytes]) -> None:
        self.documents, self.size, self.last, self.prev, self.now = documents, 0, "", "sha256:" + "0" * 64, 0
        self.tree, self.accepted, self.names = Tree(), dict[str, int](), set[str]()
        self.people, self.keys, self.pending, self.imports = (
            dict[str, Row](),
            dict[str, Row](),
            dict[str, Row](),
            dict[str, Row](),
        )
        self.bases, self.datasets, self.sets = dict[str, Row](), dict[str, Row](), dict[str, Row]()
        self.runs, self.adapters, self.previews, self.replays = (
            dict[str, Row](),
            dict[str, Row](),
            dict[str, Row](),
            dict[str, Row](),
        )
        self.releases: dict[tuple[str, str], list[Row]] = {}
        self.slots: dict[tuple[str, str, str | None], Row] = {}
        self.requests, self.processes, self.epochs = dict[str, Row](), dict[str, int](), dict[str, int]()
        self.sessions, self.applications, self.tokens = dict[int, Row](), dict[tuple[str, str], Row](), dict[str, Row]()
        self.revoked_tokens, self.tokens_before = set[Any](), dict[str, int]()
        self.texts, self.erased, self.holds = dict[str, list[Row]](), set[str](), dict[str, int]()
        self.abouts: list[Row] = []
        self.seen: dict[str, Row] = {}
        self.delegations: list[Row] = []
        self.invitations: dict[str, dict[str, Any]] = {}
        self.identities: dict[str, Row] = {}
        self.counts, self.credentials, self.answers, self.prompts = (
            Counter[Any](),
            set[str](),
            Counter[Any](),
            Counter[Any](),
        )
        self.log_keys: list[Row] = []
        self.second_adapter_key: Row | None = None
        self.rules, self.reset_at, self.restored_at, self.before = 1, 0, 0, 0
        self.resets: list[tuple[int, int]] = []

    # One entry.

    def add(self, raw: bytes) -> None:
        """Check and apply an entry. After Broken, the entry is part of the chain only."""
        index = self.size
        try:
            self._add(raw)
        finally:
            digest = leaf(raw)
            self.tree.append(digest)
            self.prev, self.size = "sha256:" + digest.hex(), index + 1

    def _add(self, raw: bytes) -> None:
        e = parse(raw)
        names = ["actor", "body", "documents", "index", "outcome", "prev", "source", "subjects", "time", "type", "v"]
        need(len(raw) <= 65_535 and list(e) == names and e["v"] == 1, "entry: members and size")
        need(e["index"] == self.size, "place: index")
        need(e["prev"] == self.prev, "place: prev")
        now = ms(e["time"])
        need(e["time"] >= self.last or e["type"] == "clock.reset", "place: time")
        need((e["type"] == "appliance.initialized") == (self.size == 0), "place: the founding comes first, once")
        self.last, self.now, self.before = e["time"], now, self.now
        table = entry_types().get(e["type"])
        need(table, "shape: a known type")
        assert table is not None
        check_members("ledger.md", e["type"], e["body"], table["body"])
        need(e["outcome"] in table["outcomes"], "shape: outcome")
        roles = set(e["documents"])
        need(set(table["required"]) <= roles <= set(table["documents"]), "shape: documents")
        docs = {}
        for role, digest in e["documents"].items():
            need(digest in self.documents, "documents: kept beside the log")
            docs[role] = self.documents[digest]
            need(sha(docs[role]) == digest, "documents: the bytes of the digest")
        need(len(e["source"]) <= 128 and len(e["subjects"]) <= 32, "entry: source and subjects")
        row = Row(
            e=e, b=e["body"], docs=docs, index=e["index"], now=now, time=e["time"], actor=e["actor"], type=e["type"]
        )
        self._orders(row, table)
        actors = {"service": "service", "the unit": e["body"].get("unit")}
        need(e["actor"] == actors.get(table["actor"], e["actor"]), "shape: actor")
        need(e["subjects"] == self._entry_subjects(row)[:32], "subjects")
        getattr(self, "on_" + e["type"].replace(".", "_").replace("-", "_"))(row)
        self._after(row)

    def _orders(self, row: Row, table: dict[str, Any]) -> None:
        row.signed, row.o = [], None
        if not table["orders"]:
            return
        time = row.now
        order = self.authentic(row.docs["order"], time)
        row.key, row.o = order.envelope.keyid, order
        need(row.actor == order.signer, "order: the actor is its signer")
        row.signed = [] if table["orders"] == ["any"] else [order]
        if not row.signed:
            return
        self.fresh_order(row, order)
        need(order.identity not in self.accepted, "order: accepted once")
        need(row.b["policy"] == self.policy, "order: the valid policy")
        asked = order
        if order.action == "countersign":
            need("countersigned" in row.docs, "two: the first order")
            asked = self.authentic(row.docs["countersigned"], time)
            row.signed.append(asked)
            self.may(row, order)
            waiting = self.pending.get(order.p["order"])
            need(waiting and asked.identity == order.p["order"] and waiting.expires > time, "two: a pending order")
            need(asked.signer != order.signer, "two: another administrator")
            recovers = asked.action == "recover-administrator"
            need(recovers or "administrator" in self.people[order.signer].roles, "two: an administrator")
            half = self.p["order_lifetime_s"] // 2 * 1_000
            need(not recovers or waiting.recorded_at + half <= time, "two: a recovery that has waited")
            need(not self.erased & set(asked.texts()), "two: no erased text")
            if row.type == "clock.reset":
                self.fresh_order(row, asked)
            row.key2, row.key = row.key, asked.envelope.keyid
        else:
            need("countersigned" not in row.docs, "two: nothing to countersign")
            twice = asked.action in entry_types()["order.pending"]["orders"] and not self.single
            twice = twice and (asked.action != "resume-release" or self.resumed_by_two(asked))
            need(twice == (row.type == "order.pending"), "two: who signs alone")
        need(asked.action in table["orders"], "order: an action of the type")
        row.o, row.p = asked, asked.p
        beside = BESIDE.get(asked.action, set())
        beside |= {"gates"} if asked.p.get("gates") else set()
        need(set(row.docs) - {"order", "countersigned"} == beside, "documents beside the order")
        self.may(row, asked)
        getattr(self, "rule_" + asked.action.replace("-", "_"), lambda row: None)(row)

    def _entry_subjects(self, row: Row) -> list[str]:
        found = [one for order in row.signed for one in (f"order:{order.identity}", *order.about)]
        for name in (
            "order",
            "request",
            "unit",
            "served_model",
            "run",
            "base",
            "dataset",
            "validation_set",
            "adapter",
            "process",
        ):
            if row.b.get(name) is not None and not (
                name == "base" and row.type in ("dataset.imported", "validation-set.imported")
            ):
                found.append(f"{name.replace('_', '-')}:{row.b[name]}")
        if row.type == "checkpoint.cosigned":
            found.append(f"witness:{row.b['witness']}")
        found += [f"principal:{name}" for name in row.b.get("principals", ())]
        if row.type in ("session.closed", "invitation.accepted"):
            found.append(f"principal:{row.b['principal']}")
        if row.type == "artifacts.checked":
            found += [*row.b["changed"], *row.b["unread"]]
        return list(dict.fromkeys(found))

    def _after(self, row: Row) -> None:
        for order in row.signed:
            self.accepted[order.identity] = row.index
            self.pending.pop(order.p["order"], None) if order.action == "countersign" else None
        withheld = parse(row.docs["withheld"]) if "withheld" in row.docs else []
        bound = []
        if row.o is not None and "countersigned" not in row.docs:
            bound = [one for one in row.o.texts() if one not in withheld]
            if row.o.action == "erase":
                bound = [one for one in bound if one not in self.texts]
        bound += [row.b["message"]] if "message" in row.b else []
        abouts = set(row.e["subjects"]) | set(row.o.about if row.type == "order.refused" and row.o else ())
        if row.type == "import.failed":
            imported = self.seen[row.b["order"]].p
            abouts |= {
                f"{kind.replace('_', '-')}:{imported[kind]}"
                for kind in ("base", "dataset", "validation_set")
                if kind in imported
            }
        for one in bound:
            need(one not in self.erased, "texts: none that is erased")
            self.texts.setdefault(one, []).append(
                Row(index=row.index, time=row.now, abouts=abouts | {f"principal:{row.actor}"}, order=row.o)
            )

    def clock(self, index: int) -> int:
        """Return the time by which what an entry recorded expires: the latest of now and the times ahead since."""
        return max([self.now, *(ahead for at, ahead in self.resets if at > index)])

    # Signatures.

    @property
    def single(self) -> bool:
        return self.single_administrator

    def authentic(self, document: bytes, time: int, application: str | None = None) -> Any:
        envelope = Envelope(document)
        key = self.keys.get(envelope.keyid)
        need(key is not None, "order: an enrolled key")
        assert key is not None
        envelope.check(key.spki, key.passkey)
        need(key.application == application, "order: a principal's key")
        need(key.revoked is None, "order: the key is not revoked")
        need(key.until is None or key.until > time, "order: the key is not replaced")
        person = self.people.get(key.owner)
        need(person is not None and person.revoked is None, "order: the signer is not revoked")
        if key.passkey:
            self.allow_passkey(key.passkey)
        if envelope.statement()[0].startswith("statement"):
            return envelope
        order = Order(envelope, self.origin)
        need(order.signer == key.owner, "order: the signer's key")
        return order

    def allow_passkey(self, p: dict[str, Any]) -> None:
        need(not p["backup_eligible"] or self.p["passkeys_synced"], "passkey: synced")
        local = p["rp_id"] == "localhost" or p["rp_id"].endswith(".localhost")
        need(not local or self.p["passkeys_on_localhost"], "passkey: localhost")

    def fresh_order(self, row: Row, one: Any) -> None:
        lifetime = self.p["order_lifetime_s"]
        resets = row.type == "clock.reset"
        if resets or one.action == "reset-clock":
            need(one.expires <= one.issued + lifetime * 1000, "order: fresh, its lifetime")
            skew = self.p["clock_skew_s"] * 1000
            need(not resets or one.issued <= row.now + skew, "order: fresh, now")
            need(not resets or one.expires > row.now, "order: fresh, now")
            key = self.keys[one.envelope.keyid]
            need(key.until is None or key.until > self.before, "reset: the key stands at the time ahead")
        else:
            self.fresh(one, row.now, lifetime)

    def fresh(self, one: Any, time: int, lifetime: int) -> None:
        skew = self.p["clock_skew_s"] * 1000
        need(one.issued + skew >= max(self.keys[one.envelope.keyid].time, self.reset_at), "order: fresh, after its key")
        need(one.issued >= self.restored_at, "order: from after the restoration")
        need(one.issued <= time + skew and one.expires > time, "order: fresh, now")
        need(one.expires <= one.issued + lifetime * 1000, "order: fresh, its lifetime")

    def statement(
        self, document: bytes, kind: str, members: set[str], time: int, application: str | None = None
    ) -> Row:
        envelope = self.authentic(document, time, application)
        return self._read(envelope, kind, members)

    def _read(self, envelope: Envelope, kind: str, members: set[str]) -> Row:
        found, statement = envelope.statement()
        p = statement["predicate"]
        need(found == f"statement:{kind}", f"{kind}: its statement")
        need(set(p) == {"origin", "signer", "nonce", "issued_at"} | members, f"{kind}: its members")
        need(p["origin"] == self.origin, f"{kind}: of this log")
        subject = [{"digest": {"sha256": sha(canonical(p))[7:]}, "name": f"principal:{p['signer']}"}]
        need(statement["subject"] == subject, f"{kind}: its subject")
        expires = ms(p["expires_at"]) if "expires_at" in members else 0
        return Row(p=p, envelope=envelope, issued=ms(p["issued_at"]), expires=expires)

    def possession(self, document: bytes, p: dict[str, Any], kind: str = "possession") -> None:
        envelope = Envelope(document)
        extra = ["passkey", "credential_id", "rp_id", "origins", "backup_eligible"] if kind == "passkey" else []
        spki = unbase64(p["key"])
        need(sha(spki) == p["keyid"], "possession: keyid is the key's")
        envelope.check(spki, p if extra else None)
        found = self._read(envelope, kind, {"key", "keyid", *extra}).p
        need(envelope.identity == p["possession"], "possession: the one that the order names")
        need(found["signer"] == p["principal"], "possession: by the name")
        need(all(found[name] == p[name] for name in ("key", "keyid", *extra)), "possession: the order's key")

    def counts_at(self, keyid: str, index: int) -> bool:
        key = self.keys[keyid]
        return key.index < index and (key.revoked is None or index < key.revoked)

    # Who may.

    def stands(self, name: str, role: str | None = None) -> bool:
        person = self.people.get(name)
        return person is not None and person.revoked is None and (role is None or role in person.roles)

    def fields(self, name: str) -> set[str]:
        return {role[9:] for role in self.people[name].roles if role.startswith("reviewer:")}

    def unit(self, name: str) -> bool:
        return self.stands(name, "unit")

    def may(self, row: Row, order: Order) -> None:
        s, p, action = order.signer, order.p, order.action
        roles = self.people[s].roles
        admin, reviewer, operator = "administrator" in roles, bool(self.fields(s)), "operator" in roles
        run = self.runs.get(p.get("run", ""))
        owner = any(role == f"release-owner:{p.get('unit')}" for role in roles)
        field = f"reviewer:{p.get('review_function')}" in roles
        adapter = self.adapters.get(f"{p.get('adapter')}@{p.get('version')}")
        evaluated = {one.unit for one in adapter.reviews} if adapter else set()
        who = {
            **dict.fromkeys(("import-base", "import-dataset", "train"), operator),
            "import-validation-set": "validator" in roles,
            **dict.fromkeys(("authorise-run", "refuse-run", "revoke-base", "revoke-dataset"), admin or reviewer),
            "revoke-validation-set": admin or reviewer or "validator" in roles,
            "cancel": admin or (run is not None and run.signer == s),
            "cancel-import": admin or self.imported_by(p.get("order", "")) == s,
            "resume": admin or (run is not None and run.signer == s and operator),
            "review": field or p.get("on_behalf_of") is not None,
            "request-release": operator
            and (not adapter or self.runs[adapter.run].signer == s or not self.stands(self.runs[adapter.run].signer)),
            "withdraw-request": admin
            or bool(adapter and any(r.order == p.get("request") and r.signer == s for r in adapter.requests)),
            **dict.fromkeys(("add-finding", "delegate"), field),
            "close-finding": bool(
                adapter
                and any(f.index == p.get("entry") and f.review_function in self.fields(s) for f in adapter.findings)
            ),
            "view-samples": reviewer or "auditor" in roles,
            "try-adapter": reviewer,
            **dict.fromkeys(("break-glass", "activate", "rollback", "export-adapter"), owner),
            "suspend-release": admin or reviewer or owner,
            "resume-release": admin or bool(
                adapter and any(one.index == p.get("entry") and one.role in roles for one in adapter.suspensions)
            ),
            "revoke-adapter": admin or reviewer or any(f"release-owner:{u}" in roles for u in evaluated),
            "rotate-key": p.get("principal") == s and "recovery" not in roles,
            "revoke-key": admin or (p.get("principal") == s and "recovery" not in roles),
            "place-hold": admin or "auditor" in roles,
            "replay": "auditor" in roles,
            "countersign": admin or "recovery" in roles,
            "withdraw-order": p.get("order") in self.pending and self.pending[p["order"]].signer == s,
            "recover-administrator": "recovery" in roles,
            "enrol-application": p.get("principal") == s and "unit" in roles,
            "revoke-tokens": admin or owner or (p.get("unit") == s and "unit" in roles),
        }  # fmt: skip
        need(who.get(action, admin), f"who may: {action}")

    def resumed_by_two(self, order: Order) -> bool:
        """Return True for an administrator without the role of the suspension."""
        roles = self.people[order.signer].roles
        adapter = self.adapters.get(f"{order.p['adapter']}@{order.p['version']}")
        found = [one.role for one in (adapter.suspensions if adapter else ()) if one.index == order.p["entry"]]
        return "administrator" in roles and bool(found) and found[0] not in roles

    def imported_by(self, order: str) -> str | None:
        return self.imports[order].signer if order in self.imports else None

    def new_key(self, p: dict[str, Any]) -> None:
        need(p["keyid"] not in self.keys, "key: never used in this log")
        load_key(unbase64(p["key"]))
        need(sha(unbase64(p["key"])) == p["keyid"], "key: keyid")

    def allowed_roles(self, roles: list[str]) -> None:
        need(len(set(roles)) == len(roles), "roles: each once")
        need(len(roles) == 1 or not set(roles) & set(ALONE), "roles: held alone")
        need(not {"operator", "validator"} <= set(roles), "roles: operator and validator")
        for role in roles:
            if role.startswith("release-owner:"):
                need(self.unit(role[14:]), "roles: a release owner's unit is enrolled")

    def new_name(self, name: str, roles: list[str]) -> None:
        need(name not in self.names and name != "service", "enrol: a new name")
        self.allowed_roles(roles)

    def check_enrolment(self, p: dict[str, Any], document: bytes) -> None:
        self.new_name(p["principal"], p["roles"])
        self.new_key(p)
        self.possession(document, p)

    def rule_enrol(self, row: Row) -> None:
        self.check_enrolment(row.p, row.docs["possession"])

    def rule_recover_administrator(self, row: Row) -> None:
        need(not self.single, "recovery: two administrators")
        self.check_enrolment({**row.p, "roles": ["administrator"]}, row.docs["possession"])

    def rule_enrol_several(self, row: Row) -> None:
        people, proofs = row.p["people"], parse(row.docs["possessions"])
        need(len(people) == len(proofs), "enrol: a possession for each")
        need(
            len({p["principal"] for p in people}) == len({p["keyid"] for p in people}) == len(people),
            "enrol: each once",
        )
        for p, proof in zip(people, proofs, strict=True):
            self.check_enrolment(p, canonical(proof))

    def rule_grant(self, row: Row) -> None:
        name, role = row.p["principal"], row.p["role"]
        need(self.stands(name) and role not in self.people[name].roles, "grant: a new role")
        self.allowed_roles([*self.people[name].roles, role])

    def rule_remove_role(self, row: Row) -> None:
        name, role = row.p["principal"], row.p["role"]
        need(self.stands(name) and role in self.people[name].roles, "remove-role: a role of the principal")
        need(len(self.people[name].roles) > 1, "remove-role: not the last one")

    def rule_revoke_principal(self, row: Row) -> None:
        need(self.stands(row.p["principal"]), "revoke-principal: stands")

    def rule_adopt_policy(self, row: Row) -> None:
        need(sha(row.docs["policy"]) == row.p["policy"], "policy: the document is the order's")
        self.read_policy(row.docs["policy"])

    def rule_replace_key(self, row: Row) -> None:
        need(self.stands(row.p["principal"]), "key: the principal stands")
        self.new_key(row.p)
        self.possession(row.docs["possession"], row.p)

    def rule_rotate_key(self, row: Row) -> None:
        self.rule_replace_key(row)
        need(ms(row.p["old_until"]) <= row.now + self.p["key_overlap_s"] * 1000, "rotate-key: old_until")
        recent = [
            k for k in self.keys.values() if k.owner == row.p["principal"] and k.by and k.time > row.now - 86_400_000
        ]
        need(len(recent) < 8, "rotate-key: eight a day")

    def rule_enrol_passkey(self, row: Row) -> None:
        need(self.stands(row.p["principal"]), "passkey: the principal stands")
        self.new_passkey(row.p)
        self.possession(row.docs["possession"], row.p, "passkey")

    def rule_bind_identity(self, row: Row) -> None:
        p = row.p
        need(self.stands(p["principal"]) and not self.unit(p["principal"]), "identity: a person who stands")
        if provider := self.p["identity_provider"]:
            pinned, given = (issuer.lower().rstrip("/") for issuer in (provider["issuer"], p["issuer"]))
            need(p["issuer"] == provider["issuer"] or given != pinned, "identity: the issuer that policy pins")
        for name, one in self.identities.items():
            same = (one.issuer, one.subject) == (p["issuer"], p["subject"])
            need(not same or name == p["principal"] or not self.stands(name), "identity: a subject is one person's")

    def rule_unbind_identity(self, row: Row) -> None:
        need(self.stands(row.p["principal"]) and row.p["principal"] in self.identities, "identity: one that is bound")

    def rule_invite(self, row: Row) -> None:
        p = row.p
        self.new_name(p["principal"], p["roles"])
        need("unit" not in p["roles"], "invite: no unit")
        need(row.now < ms(p["until"]) <= row.now + 3_600_000, "invite: until")
        need(all(one["secret"] != p["secret"] for one in self.invitations.values()), "invite: a new secret")

    def rule_withdraw_invitation(self, row: Row) -> None:
        one = self.invitations.get(row.p["principal"])
        need(one is not None and one["state"] != "withdrawn", "withdraw-invitation: an invitation")
        assert one is not None
        need(one["state"] == "accepted" or row.now < ms(one["until"]), "withdraw-invitation: it has not expired")
        need(row.p["principal"] not in self.people, "withdraw-invitation: nobody enrolled")

    def rule_enrol_with_passkey(self, row: Row) -> None:
        self.new_name(row.p["principal"], row.p["roles"])
        need("unit" not in row.p["roles"], "enrol-with-passkey: no unit")
        invited = self.invitations.get(row.p["principal"])
        need(invited is None or invited.get("keyid") == row.p["keyid"], "enrol-with-passkey: the invitation's passkey")
        self.new_passkey(row.p)
        self.possession(row.docs["possession"], row.p, "passkey")

    def new_passkey(self, p: dict[str, Any]) -> None:
        self.new_key(p)
        need(
            len(unbase64(p["key"])) == 91 and p["credential_id"] not in self.credentials, "passkey: key and credential"
        )
        names = [k.passkey["passkey"] for k in self.keys.values() if k.owner == p["principal"] and k.passkey]
        need(p["passkey"] not in names and p["origins"] == sorted(set(p["origins"])), "passkey: name and origins")
        for one in p["origins"]:
            host = one.removeprefix("https://").removeprefix("http://").split(":")[0]
            need(host == p["rp_id"] or host.endswith("." + p["rp_id"]), "passkey: a host of the rp_id")
            need(one.startswith("https://") or host == p["rp_id"] == "localhost", "passkey: https")
        self.allow_passkey(p)

    def rule_revoke_key(self, row: Row) -> None:
        key, since = self.keys.get(row.p["keyid"]), row.p["since"]
        need(key is not None and key.owner == row.p["principal"] and not key.application, "revoke-key: the principal's")
        assert key is not None
        need(since is None or key.index < since <= row.index, "revoke-key: since")
        falls = self.falling(row.p["keyid"], row.index if since is None else since)
        alive = key.revoked is None or (since is not None and since < key.revoked)
        need(alive or any(self.keys[one].revoked is None for one in falls), "revoke-key: something ends")

    def falling(self, keyid: str, since: int, signer: str | None = None) -> list[str]:
        """Keys that were rotated to under it in `since` or later, and so on."""
        old = self.keys[keyid].revoked
        since = since if old is None else min(old, since)
        found = [one for one, key in self.keys.items() if key.by == keyid and key.index >= since and one != signer]
        return found + [more for one in found for more in self.falling(one, 0, signer)]

    def rule_rotate_log_key(self, row: Row) -> None:
        vkey = Vkey(row.p["log_key"])
        need(vkey.name == self.origin and vkey.type in (1, 0xFF), "log-key: named as the origin")
        need(vkey.type == 1 or self.second_adapter_key, "log-key: of ML-DSA-65 once there is one")
        need(all(k.vkey.key != vkey.key for k in self.log_keys), "log-key: never signed this log")
        need(all(w.key != vkey.key for w in self.witnesses), "log-key: no witness's")
        need(ms(row.p["old_until"]) <= row.now + self.p["key_overlap_s"] * 1000, "log-key: old_until")

    def rule_add_post_quantum_keys(self, row: Row) -> None:
        need(not self.second_adapter_key, "post-quantum keys: once")
        need(all(k.vkey.key != Vkey(row.p["log_key"]).key for k in self.log_keys), "post-quantum keys: never signed")

    def rule_reset_clock(self, row: Row) -> None:
        if row.type == "clock.reset":
            need(ms(row.p["last"]) == self.before, "reset-clock: the time of the entry before")
            need(row.now + self.p["clock_skew_s"] * 1000 < self.before, "reset-clock: back")
        else:
            need(ms(row.p["last"]) == self.before, "reset-clock: the time of the entry before")

    def rule_restore_log(self, row: Row) -> None:
        p, (origin, size, root) = row.p, Note(row.docs["lost"]).checkpoint()
        need(p["kept_size"] <= row.index, "restore: no more than there is")
        need(p["kept_size"] < p["lost_size"], "restore: something is lost")
        need(self.people[row.o.signer].index < p["kept_size"], "restore: a signer of the kept entries")
        need(sha(row.docs["lost"]) == p["lost"], "restore: the note")
        for key in self.needed_keys(p["kept_size"]):
            need(Note(row.docs["lost"]).times(key), "restore: signed by the keys of then")
        need((origin, size, "sha256:" + root.hex()) == (self.origin, p["lost_size"], p["lost_root"]), "restore: lost")

    def rule_raise_rules(self, row: Row) -> None:
        need(row.p["rules"] > self.rules, "raise-rules: later")

    def rule_erase(self, row: Row) -> None:
        one = row.p["commitment"]
        need(one in self.texts and one not in self.erased, "erase: a bound text")
        bound = self.texts[one]
        for held in self.holds:
            for binding in bound:
                need(not any(covers(held, about) for about in binding.abouts), "erase: no hold")
        people = [p for p in self.people.values() if p.printed == one]
        if people:
            ends = [None if p.revoked is None else p.revoked_at + self.p["name_retention_s"] * 1000 for p in people]
            need(all(end is not None and end <= row.now for end in ends), "erase: retention of a name")
        else:
            end = max(binding.time for binding in bound) + self.p["text_retention_s"] * 1000
            need(end <= row.now, "erase: retention of a text")

    def rule_place_hold(self, row: Row) -> None:
        subject = row.p["subject"]
        kind, _, name = subject.partition(":")
        known = {
            "principal": self.names, "unit": {n for n, p in self.people.items() if "unit" in p.roles},
            "base": {*self.bases},
            "dataset": {*self.datasets, *(n.split("@")[0] for n in self.datasets)}, "run": {*self.runs},
            "validation-set": {*self.sets, *(n.split("@")[0] for n in self.sets)},
            "served_model": {served_model for _, served_model in self.releases},
            "adapter": {*self.adapters, *(n.split("@")[0] for n in self.adapters)},
        }  # fmt: skip
        ordered = {one for row in self.seen.values() for one in row.about}
        need(subject not in self.holds and (name in known.get(kind, ()) or subject in ordered), "place-hold")

    def rule_lift_hold(self, row: Row) -> None:
        need(row.p["subject"] in self.holds, "lift-hold")


def covers(held: str, about: str) -> bool:
    return held == about or held.split("@")[0] == about or ("@" not in held and about.split("@")[0] == held)
