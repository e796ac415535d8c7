"""Effects of each type of entry, for a second verifier: docs/formats/ledger.md, "What each type does"."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.interop.second.formats import (
    Envelope,
    Note,
    Vkey,
    canonical,
    check_consistency,
    is_ml_dsa,
    load_key,
    ms,
    need,
    parse,
    sha,
    unbase64,
)
from tests.interop.second.orders import APPROVALS, DEFAULTS
from tests.interop.second.releases import DAY, Releases, files_of
from tests.interop.second.rules import Row


def check_bundle(data: bytes, files: dict[str, str], spki: bytes) -> None:
    """Check an OpenSSF bundle over exactly these files, as the page on manifests says."""
    value = parse(data)
    need(set(value) == {"dsseEnvelope", "mediaType", "verificationMaterial"}, "bundle: members")
    need(value["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json", "bundle: mediaType")
    pem = load_key(spki).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    hint = {"publicKey": {"hint": hashlib.sha256(pem).hexdigest()}, "tlogEntries": []}
    need(value["verificationMaterial"] == hint, "bundle: the key's hint")
    envelope = Envelope(canonical(value["dsseEnvelope"]))
    envelope.check(spki)
    _, statement = envelope.statement(r"https://model_signing/signature/v1\.0()")
    ordered = sorted(files.items(), key=lambda one: one[0].split("/"))
    resources = [{"algorithm": "sha256", "digest": digest[7:], "name": path} for path, digest in ordered]
    serialization = {"allow_symlinks": False, "hash_type": "sha256", "method": "files"}
    need(statement["predicate"] == {"resources": resources, "serialization": serialization}, "bundle: its files")
    over = hashlib.sha256(b"".join(bytes.fromhex(digest[7:]) for _, digest in ordered)).hexdigest()
    need([one["digest"] for one in statement["subject"]] == [{"sha256": over}], "bundle: its subject")


class Effects(Releases):
    """The state replay, with what each type of entry does."""

    evaluate: Any = staticmethod(lambda log, row, run, files: None)
    """What checks the verdict of an `adapter.sealed`."""

    # The founding and the service.

    def read_policy(self, data: bytes) -> None:
        value = parse(data)
        need(set(value) == {"version", "name", "parameters", "cedar", "cedar_schema"}, "policy: members")
        need(value["version"] == 1 and set(value["parameters"]) <= set(DEFAULTS), "policy: parameters")
        keys = [Vkey(one) for one in value["parameters"].get("witnesses", ())]
        need(all(one.type == 4 for one in keys), "policy: witnesses are of type 4")
        need(
            len({one.key for one in keys}) == len({one.name for one in keys}) == len(keys), "policy: each witness once"
        )
        need(not {one.key for one in keys} & {one.vkey.key for one in self.log_keys}, "policy: no key of the log")

    def adopt(self, data: bytes) -> None:
        self.read_policy(data)
        self.policy, self.p = sha(data), DEFAULTS | parse(data)["parameters"]
        self.witnesses = [Vkey(one) for one in self.p["witnesses"]]

    def on_appliance_initialized(self, row: Row) -> None:
        b = row.b
        self.origin, self.single_administrator = b["origin"], b["single_administrator"]
        vkey = Vkey(b["log_key"])
        need(vkey.name == self.origin and vkey.type == 1, "founding: the log's key is named as the origin")
        need((len(b["administrators"]) == 1) == self.single_administrator, "founding: one administrator")
        self.log_keys.append(Row(vkey=vkey, since=0, until=None))
        self.adapter_key = unbase64(b["adapter_key"])
        need(not is_ml_dsa(self.adapter_key), "founding: the adapters' key is one that people can have")
        if b["post_quantum"] is not None:
            need(set(b["post_quantum"]) == {"log_key", "adapter_key"}, "founding: post-quantum keys")
            self.post_quantum_keys(0, b["post_quantum"])
        for one in b["administrators"]:
            need(sha(unbase64(one["key"])) == one["keyid"], "founding: keyid")
            need(
                one["keyid"] not in self.keys and one["name"] not in {*self.names, "service"},
                "founding: names and keys",
            )
            self.person(row, one["name"], ["administrator"], None)
            self.key(row, one["name"], one)
        self.witnessed_at: dict[str, Row] = {}
        self.adopt(row.docs["policy"])

    def person(self, row: Row, name: str, roles: list[str], printed: str | None) -> None:
        self.names.add(name)
        self.people[name] = Row(roles=set(roles), revoked=None, revoked_at=None, printed=printed, index=row.index)

    def key(self, row: Row, owner: str, p: dict[str, Any], **more: Any) -> None:
        load_key(unbase64(p["key"]))
        defaults = {"until": None, "revoked": None, "passkey": None, "by": None, "application": None}
        self.keys[p["keyid"]] = Row(
            owner=owner, spki=unbase64(p["key"]), index=row.index, time=row.now, **defaults | more
        )

    def empty(self, process: str | None, everything: bool = False) -> None:
        for name, slot in list(self.slots.items()):
            if everything or name[2] in (process, None):
                del self.slots[name]
                self.cut(slot)

    def cut(self, slot: Row) -> None:
        for request in self.requests.values():
            request.cut |= request.slot is slot

    def on_service_started(self, row: Row) -> None:
        process, epoch = row.b["process"], row.b["epoch"]
        need((process is None) == (epoch is None), "service.started: epoch")
        if process is None:
            self.empty(None, everything=True)
            self.processes.clear()
        else:
            need(epoch > self.epochs.get(process, 0), "service.started: a later epoch")
            self.empty(process)
            self.processes[process] = self.epochs[process] = epoch

    def on_service_stopped(self, row: Row) -> None:
        process = row.b["process"]
        need(process is None or process in self.processes, "service: a process that runs")
        for name, slot in list(self.slots.items()):
            if name[2] == process:
                del self.slots[name]
                self.cut(slot)
        self.processes.pop(process, None)

    def on_process_lost(self, row: Row) -> None:
        need(self.processes.get(row.b["process"]) == row.b["epoch"], "process.lost: epoch")
        need(ms(row.b["last_contact"]) <= row.now, "process.lost: last_contact")
        self.on_service_stopped(row)

    def on_heartbeat(self, row: Row) -> None:
        pass

    def on_session_opened(self, row: Row) -> None:
        found = self.signed(row.docs["session"], "session", {"expires_at"})
        self.fresh(found, row.now, self.p["session_lifetime_s"])
        need(row.actor == found.p["signer"], "session: its signer")
        self.sessions[row.index] = Row(principal=row.actor, expires=self.end_of_session(row, found.expires))

    def end_of_session(self, row: Row, expires: int) -> int:
        provider, told = self.p["identity_provider"], row.b["identity"]
        local = row.e["source"].partition(":")[0] == "unix"
        exempt = self.stands(row.actor, "administrator") or self.stands(row.actor, "recovery")
        free = self.unit(row.actor) or (local and exempt)
        need((provider is None or free) == (told is None), "session: an identity exactly where one is needed")
        if told is None:
            return expires
        bound = self.identities.get(row.actor)
        need(bound and bound.index == told["binding"], "session: the valid binding")
        need(bound.issuer == told["issuer"] == provider["issuer"], "session: the provider's issuer")
        need(told["key"] in [key["kid"] for key in provider["keys"]], "session: a pinned key")
        issued, lifetime = ms(told["issued_at"]), provider.get("lifetime_s", 900) * 1000
        need(issued <= row.now + self.p["clock_skew_s"] * 1000, "session: a token that was issued")
        ends = min(ms(told["expires_at"]), issued + lifetime)
        need(ends > row.now, "session: a fresh token")
        return min(ends, expires)

    def signed(self, document: bytes, kind: str, members: set[str], application: Any = None) -> Row:
        found = self.statement(document, kind, members, self.now, application)
        need(self.keys[found.envelope.keyid].owner == found.p["signer"], f"{kind}: the signer's key")
        return found

    def on_session_closed(self, row: Row) -> None:
        found = self.sessions.pop(row.b["opened"], None)
        need(found and found.principal == row.b["principal"], "session.closed: an open session")
        assert found is not None
        need(found.expires > row.now - 600_000, "session.closed: not long ended")
        need(row.actor == found.principal or self.stands(row.actor, "administrator"), "session.closed: who ends it")

    def on_invitation_accepted(self, row: Row) -> None:
        name, invitation = row.b["principal"], self.invitations.get(row.b["principal"])
        need(invitation is not None and invitation["state"] == "open", "invitation: open")
        assert invitation is not None
        need(row.now < ms(invitation["until"]), "invitation: in time")
        _, statement = Envelope(row.docs["possession"]).statement()
        p = {**statement["predicate"], "principal": name, "possession": Envelope(row.docs["possession"]).identity}
        need(p["keyid"] == row.b["keyid"], "invitation: the key")
        self.new_name(name, invitation["roles"])
        self.new_passkey(p)
        self.possession(row.docs["possession"], p, "passkey")
        invitation |= {"state": "accepted", "keyid": p["keyid"]}

    def on_auth_refused(self, row: Row) -> None:
        b = row.b
        need(b["principals"] == sorted(set(b["principals"])) and set(b["principals"]) <= self.names, "auth: principals")
        need(b["keys"] == sorted(set(b["keys"])) and set(b["keys"]) <= set(self.keys), "auth: keys")

    def on_order_pending(self, row: Row) -> None:
        mine = [one for one in self.pending.values() if one.signer == row.o.signer]
        if row.o.action != "reset-clock":
            mine = [one for one in mine if one.expires > row.now]
            self.pending = {name: one for name, one in self.pending.items() if one.expires > row.now}
        need(len(mine) < 100, "pending: fewer than 100")
        row.o.recorded_at = row.now
        self.pending[row.o.identity] = row.o

    def on_order_withdrawn(self, row: Row) -> None:
        del self.pending[row.p["order"]]

    def on_order_refused(self, row: Row) -> None:
        need(row.b["order"] == row.o.identity and row.b["action"] == row.o.action, "refused: the order's")
        if "withheld" in row.docs:
            withheld = parse(row.docs["withheld"])
            need(
                withheld and withheld == sorted(set(withheld)) and set(withheld) <= set(row.o.texts()),
                "refused: withheld",
            )

    def on_checkpoint_cosigned(self, row: Row) -> None:
        b, note = row.b, Note(row.docs["note"])
        found = [one for one in self.witnesses if one.name == b["witness"]]
        need(found, "cosigned: a witness of the policy")
        times = note.times(found[0])
        note.times(*(one.vkey for one in self.log_keys))
        origin, size, root = note.checkpoint()
        need(times and all(note.times(one) for one in self.needed_keys(size)), "cosigned: lines of both")
        need(origin == self.origin and size == b["size"] <= row.index, "cosigned: origin and size")
        time = max(times) * 1000
        need(ms(b["time"]) == time <= row.now + self.p["clock_skew_s"] * 1000, "cosigned: time")
        before = self.witnessed_at.get(b["witness"])
        need(before is None or (size > before.index and time >= before.time), "cosigned: later than the last")
        check_consistency(size, row.index, [unbase64(one) for one in b["proof"]], root, self.tree.root())
        self.witnessed_at[b["witness"]] = Row(
            index=row.index, entry=row.index, size=size, time=time, vkey=found[0].text
        )

    def on_log_key_rotated(self, row: Row) -> None:
        until, new = ms(row.p["old_until"]), Vkey(row.p["log_key"])
        for one in self.log_keys:
            if (one.vkey.type == 0xFF) == (new.type == 0xFF):
                one.until = until if one.until is None else min(until, one.until)
        self.log_keys.append(Row(vkey=new, since=row.index, until=None))

    def on_post_quantum_keys_added(self, row: Row) -> None:
        self.post_quantum_keys(row.index, row.p)

    def post_quantum_keys(self, index: int, said: Any) -> None:
        vkey, key = Vkey(said["log_key"]), unbase64(said["adapter_key"])
        need(vkey.name == self.origin and vkey.type == 0xFF and is_ml_dsa(key), "post-quantum keys: of ML-DSA-65")
        self.log_keys.append(Row(vkey=vkey, since=index, until=None))
        self.second_adapter_key = Row(key=key, since=index)

    def needed_keys(self, size: int) -> list[Vkey]:
        """Return the newest key of each kind with which a checkpoint of this size is signed."""
        known = [one.vkey for one in self.log_keys if one.since < size]
        return list({one.type == 0xFF: one for one in known}.values())

    def on_log_restored(self, row: Row) -> None:
        p = row.p
        for keyid in (row.key, getattr(row, "key2", None)):
            need(keyid is None or self.keys[keyid].index < p["kept_size"], "restored: keys of the kept entries")
        root = bytes.fromhex(p["kept_root"].removeprefix("sha256:"))
        check_consistency(p["kept_size"], row.index, [unbase64(one) for one in row.b["proof"]], root, self.tree.root())
        self.pending, self.tokens, self.restored_at = {}, {}, row.now
        for adapter in self.adapters.values():
            units = {one.unit for one in adapter.reviews if one.decision in APPROVALS}
            units |= {unit for (unit, _), found in self.releases.items() for r in found if r.adapter is adapter}
            for unit in sorted(units) if not adapter.revoked else ():
                adapter.suspensions.append(
                    Row(index=row.index, unit=unit, served_model=None, role=f"release-owner:{unit}", lifted=None)
                )

    def on_rules_raised(self, row: Row) -> None:
        need(False, "rules.raised: a version of the rules that this verifier does not know")

    def on_clock_reset(self, row: Row) -> None:
        ahead, now, overlap = self.before, row.now, self.p["key_overlap_s"] * 1000
        for one in [*self.keys.values(), *self.log_keys]:
            if one.until is not None and one.until > now:
                one.until = now if one.until <= ahead else min(one.until, now + overlap)
        times = [
            (one, "time")
            for group in [self.keys.values(), self.witnessed_at.values(), *self.texts.values()]
            for one in group
        ]
        times += [(one, "revoked_at") for one in self.people.values() if one.revoked_at]
        times += [(one, "loaded") for one in self.slots.values() if one.loaded]
        for one, name in times:
            setattr(one, name, min(getattr(one, name), now))
        self.tokens_before = {unit: min(time, now) for unit, time in self.tokens_before.items()}
        for counter in (self.answers, self.prompts):
            for key in [key for key in counter if key[-1] > now // DAY]:
                counter[(*key[:-1], now // DAY)] += counter.pop(key)
        self.pending, self.tokens, self.reset_at = {}, {}, now
        self.restored_at = min(self.restored_at, now)
        self.resets.append((row.index, ahead))

    # People, keys, texts.

    def on_principal_enrolled(self, row: Row) -> None:
        self.enrol(row, row.p)

    def on_administrator_recovered(self, row: Row) -> None:
        self.enrol(row, {**row.p, "roles": ["administrator"]})

    def enrol(self, row: Row, p: dict[str, Any]) -> None:
        self.person(row, p["principal"], p["roles"], p["printed_name"])
        self.key(row, p["principal"], p)

    def on_principals_enrolled(self, row: Row) -> None:
        for one in row.p["people"]:
            self.enrol(row, one)

    def on_principal_granted(self, row: Row) -> None:
        self.people[row.p["principal"]].roles.add(row.p["role"])

    def on_principal_role_removed(self, row: Row) -> None:
        self.people[row.p["principal"]].roles.remove(row.p["role"])

    def on_principal_revoked(self, row: Row) -> None:
        person = self.people[row.p["principal"]]
        person.revoked, person.revoked_at = row.index, row.now
        for key in self.keys.values():
            if key.owner == row.p["principal"] and key.revoked is None:
                key.revoked = row.index

    def on_policy_adopted(self, row: Row) -> None:
        self.adopt(row.docs["policy"])

    def on_identity_bound(self, row: Row) -> None:
        p = row.p
        self.identities[p["principal"]] = Row(issuer=p["issuer"], subject=p["subject"], index=row.index)

    def on_identity_unbound(self, row: Row) -> None:
        del self.identities[row.p["principal"]]

    def on_key_enrolled(self, row: Row) -> None:
        rotates = row.o.action == "rotate-key"
        until = ms(row.p["old_until"]) if rotates else 0
        for key in self.keys.values():
            if key.owner == row.p["principal"] and not key.application and key.revoked is None:
                if rotates and not key.passkey:
                    key.until = until if key.until is None else min(until, key.until)
                elif not rotates:
                    key.revoked = row.index
        self.key(row, row.p["principal"], row.p, by=row.key if rotates else None)

    def on_passkey_enrolled(self, row: Row) -> None:
        self.credentials.add(row.p["credential_id"])
        self.key(row, row.p["principal"], row.p, passkey=row.p)

    def on_principal_invited(self, row: Row) -> None:
        self.invitations[row.p["principal"]] = {**row.p, "state": "open"}
        self.drop_enrolments(row.p["principal"])

    def on_invitation_withdrawn(self, row: Row) -> None:
        self.invitations[row.p["principal"]] |= {"state": "withdrawn", "keyid": None}
        self.drop_enrolments(row.p["principal"])

    def drop_enrolments(self, name: str) -> None:
        self.pending = {
            identity: one
            for identity, one in self.pending.items()
            if (one.action, one.p.get("principal")) != ("enrol-with-passkey", name)
        }

    def on_principal_enrolled_with_passkey(self, row: Row) -> None:
        self.person(row, row.p["principal"], row.p["roles"], row.p["printed_name"])
        self.on_passkey_enrolled(row)
        self.invitations.pop(row.p["principal"], None)

    def on_key_revoked(self, row: Row) -> None:
        keyid, since = row.p["keyid"], row.index if row.p["since"] is None else row.p["since"]
        falls = self.falling(keyid, since, row.key)
        spared, at = set[str](), row.key
        while self.keys[at].by:  # the key that signs, and those that it rotated to, stay
            at = self.keys[at].by
        spared |= {row.key, *self.falling(row.key, 0)} if row.key != keyid else set()
        for one in falls:
            if one not in spared:
                self.keys[one].revoked = self.keys[one].index
        old = self.keys[keyid].revoked
        self.keys[keyid].revoked = since if old is None else min(old, since)

    def on_text_erased(self, row: Row) -> None:
        self.erased.add(row.p["commitment"])

    def on_hold_placed(self, row: Row) -> None:
        self.holds[row.p["subject"]] = row.index

    def on_hold_lifted(self, row: Row) -> None:
        del self.holds[row.p["subject"]]

    # Imports.

    def on_import_requested(self, row: Row) -> None:
        self.imports[row.o.identity] = self.seen[row.o.identity] = row.o

    def on_import_cancelled(self, row: Row) -> None:
        del self.imports[row.p["order"]]

    def on_import_failed(self, row: Row) -> None:
        need(self.imports.pop(row.b["order"], None), "import.failed: open")

    def probes(self, row: Row) -> None:
        found = row.b["sandbox_probes"]
        need(found and all(one == "refused" for one in found.values()), "sandbox_probes")

    def imported(self, row: Row, kind: str, table: dict[str, Row]) -> Row:
        order = self.imports.pop(row.b["order"], None)
        need(order and order.action == f"import-{kind.replace('_', '-')}", "imported: an open import")
        assert order is not None
        self.probes(row)
        name, _, version = row.b[kind].partition("@")
        listed = parse(row.docs["manifest"])
        files_of(row.docs["manifest"])
        need(order.p[kind] == name == listed["name"] and listed["version"] == int(version or 1), "imported: its name")
        if version:
            need(int(version) == 1 + sum(one.name == name for one in table.values()), "imported: the next version")
            need(
                order.p["base"] == row.b["base"] and self.bases[row.b["base"]].digest == order.p["base_digest"],
                "imported: base",
            )
        found = Row(
            name=name, version=int(version or 1), digest=sha(row.docs["manifest"]), revoked=False, quarantined=False,
            signer=order.signer, base=row.b["base"], p=order.p, facts=row.b["facts"],
            instruction=order.p.get("instruction"),
        )  # fmt: skip
        table[row.b[kind]] = found
        return found

    def on_base_imported(self, row: Row) -> None:
        self.imported(row, "base", self.bases)

    def on_dataset_imported(self, row: Row) -> None:
        self.imported(row, "dataset", self.datasets)

    def on_validation_set_imported(self, row: Row) -> None:
        found = self.imported(row, "validation_set", self.sets)
        need(found.facts.get("dataset_kind") == found.p["dataset_kind"], "imported: the dataset kind")

    def on_base_quarantined(self, row: Row) -> None:
        base = self.bases[row.b["base"]]
        need(not base.quarantined, "quarantined: not yet")
        base.quarantined = True

    def on_base_revoked(self, row: Row) -> None:
        self.bases[row.p["base"]].revoked = True

    def on_dataset_revoked(self, row: Row) -> None:
        self.datasets[f"{row.p['dataset']}@{row.p['version']}"].revoked = True

    def on_validation_set_revoked(self, row: Row) -> None:
        self.sets[f"{row.p['validation_set']}@{row.p['version']}"].revoked = True

    # Runs.

    def on_run_requested(self, row: Row) -> None:
        need(row.b["run"] == f"r-{len(self.runs) + 1:06d}", "run.requested: the next run")
        p, tier = row.p, self.tier_named(row.p["tier"])
        waits = tier is not None and tier["authorise_runs"]
        self.runs[row.b["run"]] = Row(
            id=row.b["run"], order=row.o.identity, signer=row.o.signer, recipe=p["recipe"], base=p["recipe"]["base"],
            dataset=p["recipe"]["dataset"], sets=p["sets"], local_sets=p["local_sets"], gates=p["gates"], p=p, steps={},
            status="waiting" if waits else "queued", authorised=[], purpose=p["recipe"]["purpose"], finished=None,
            secret=None,
            resumes=0, job=None, machine={}, sealed=None,
        )  # fmt: skip

    def on_run_authorised(self, row: Row) -> None:
        run = self.runs[row.p["run"]]
        run.status = "queued"
        run.authorised.append((row.key, row.index))

    def on_run_refused(self, row: Row) -> None:
        self.runs[row.p["run"]].status = "refused"

    def on_run_cancelled(self, row: Row) -> None:
        self.runs[row.p["run"]].status = "cancelled"

    def started(self, row: Row, run: Row) -> None:
        self.inputs_stand(run)
        self.probes(row)
        missing = sorted(name for name, found in row.b["layers"].items() if not found)
        need(sorted(row.b["accepted_missing"]) == missing, "run: accepted_missing")
        need(set(missing) <= set(self.p["accepted_missing_layers"]), "run: layers that policy accepts")
        job = row.b["job"]
        need((job is None) == (run.p["on"] != "slurm"), "run: job")
        if job:
            need(job != run.job and len(set(job["nodes"])) == run.p["nodes"], "run: another job, and its nodes")
        run.job, run.status = job, "running"

    def on_run_started(self, row: Row) -> None:
        run = self.runs[row.b["run"]]
        need(run.status in ("queued", "running") and not run.steps, "run.started: queued, or lost before a checkpoint")
        need((row.b["secret"] is None) == (run.recipe["privacy"] is None), "run.started: secret")
        need(run.secret in (None, row.b["secret"]), "run.started: one secret")
        run.resumes += run.status == "running"
        need(run.resumes <= 3, "run.started: 3 without an order")
        self.started(row, run)
        run.secret = row.b["secret"]

    def on_run_checkpointed(self, row: Row) -> None:
        run, b = self.runs[row.b["run"]], row.b
        self.inputs_stand(run)
        need(run.status == "running" and b["step"] > max(run.steps, default=0), "run.checkpointed: a later step")
        run.steps[b["step"]] = b["checkpoint"]
        run.machine[b["step"]] = b["machine"]
        run.resumes = 0 if run.p["on"] == "slurm" else run.resumes

    def on_run_resumed(self, row: Row) -> None:
        run, b = self.runs[row.b["run"]], row.b
        need(run.status in ("queued", "running", "trained"), "run.resumed: waits, runs or is trained")
        need(
            run.steps and b["step"] == max(run.steps) and b["checkpoint"] == run.steps[b["step"]],
            "run.resumed: checkpoint",
        )
        run.resumes += run.status != "queued"
        need(run.resumes <= 3, "run.resumed: 3 without an order")
        self.started(row, run)

    def on_run_finished(self, row: Row) -> None:
        run, b = self.runs[row.b["run"]], row.b
        self.inputs_stand(run)
        need(run.status == "running" and b["steps"] == max(run.steps, default=0), "run.finished: its last checkpoint")
        need((b["final_loss"] is None) == (run.recipe["privacy"] is not None), "run.finished: final_loss")
        recipe, rows = run.recipe, self.datasets[run.dataset].facts.get("train_rows")
        if isinstance(rows, int):
            batch = recipe["batch_size"] * recipe["gradient_accumulation_steps"]
            planned = recipe["epochs"] * -(-rows // batch)
            need(
                b["planned_steps"] == planned or (recipe["eval_steps"] and b["planned_steps"] <= planned),
                "run.finished: planned",
            )
        every, losses, patience = recipe["eval_steps"], b["validation"], recipe["early_stopping"]
        due = [step for step in range(1, b["steps"] + 1) if every and (step % every == 0 or step == b["planned_steps"])]
        need([step for step, _ in losses] == due, "run.finished: validation")
        values = [Decimal(loss) for _, loss in losses]
        stopped = [
            patience > 0 and n > patience and min(values[n - patience : n]) >= min(values[: n - patience])
            for n in range(len(values) + 1)
        ]
        need(not any(stopped[:-1]), "run.finished: stopped earlier")
        need(
            b["steps"] == b["planned_steps"] or (b["steps"] < b["planned_steps"] and stopped[-1]), "run.finished: steps"
        )
        best = losses[values.index(min(values))][0] if patience and values else b["steps"]
        need(b["weights_step"] == best, "run.finished: weights_step")
        run.status, run.finished = "trained", b

    def on_run_failed(self, row: Row) -> None:
        run = self.runs[row.b["run"]]
        need(run.status in ("waiting", "queued", "running", "trained"), "run.failed: before it is sealed")
        run.status = "failed"

    def on_resume_requested(self, row: Row) -> None:
        run = self.runs[row.p["run"]]
        run.status, run.resumes = "queued", 0

    def on_replay_requested(self, row: Row) -> None:
        self.replays[row.o.identity] = row.o

    def on_replay_failed(self, row: Row) -> Any:
        order = self.replays.pop(row.b["order"], None)
        need(order and order.p["run"] == row.b["run"], "replay: open")
        return order

    def on_replay_finished(self, row: Row) -> None:
        order, b = self.on_replay_failed(row), row.b
        run = self.runs[b["run"]]
        self.probes(row)
        need((b["from_step"], b["to_step"]) == (order.p["from_step"], order.p["to_step"]), "replay: steps")
        need(b["expected"] == run.steps[b["to_step"]], "replay: expected")
        near = b["machine"] != run.machine[b["to_step"]] and b["largest_difference"] is not None
        near = near and Decimal(b["largest_difference"]) <= Decimal("0.02")
        verdict = "identical" if b["got"] == b["expected"] else "within-tolerance" if near else "different"
        need(b["verdict"] == verdict, "replay: verdict")

    def on_adapter_sealed(self, row: Row) -> None:
        run, b = self.runs[row.b["run"]], row.b
        self.inputs_stand(run)
        self.probes(row)
        need(run.status == "trained", "sealed: a trained run")
        name, _, version = b["adapter"].partition("@")
        need(name == run.recipe["name"], "sealed: the run's name")
        need(int(version) == 1 + sum(one.startswith(name + "@") for one in self.adapters), "sealed: the next version")
        listed, digest = parse(row.docs["manifest"]), sha(row.docs["manifest"])
        files = files_of(row.docs["manifest"])
        need(listed["name"] == name and listed["version"] == int(version), "sealed: the manifest's name")
        privacy = run.recipe["privacy"]
        said = {key: privacy[key] for key in ("delta", "epsilon")} if privacy else None
        need(listed.get("privacy") == said, "sealed: privacy")
        weights = "model.safetensors" if run.recipe["method"] == "full" else "adapter_model.safetensors"
        need(files.get(weights) == run.finished["weights"], "sealed: weights")
        need(files.get("steps.jsonl") == run.finished["record"], "sealed: steps")
        check_bundle(row.docs["signature"], files | {"manifest.json": digest}, self.adapter_key)
        second = self.second_adapter_key
        needs_second = second is not None and second.since < row.index
        need(("post_quantum_signature" in row.docs) == needs_second, "sealed: the second signature")
        if needs_second:
            check_bundle(row.docs["post_quantum_signature"], files | {"manifest.json": digest}, second.key)
        self.provenance(row, run, name, digest)
        need(set(row.docs) & {"gates", "verdict"} == ({"gates", "verdict"} if run.gates else set()), "sealed: gates")
        for role in ("gates", "verdict"):
            need(files.get(f"{role}.json") == row.e["documents"].get(role), f"sealed: {role}.json")
        need(row.e["documents"].get("gates") == run.gates, "sealed: the order's gates")
        self.evaluate(self, row, run, files)
        verdict = row.e["documents"].get("verdict")
        self.adapters[b["adapter"]] = Row(
            name=b["adapter"], run=run.id, manifest=digest, verdict=verdict, gates=run.gates, reviews=[],
            requests=[], findings=[], suspensions=[],
            passed=parse(row.docs["verdict"])["passed"] if verdict else None, revoked=False, quarantined=False,
            index=row.index, files=files, metrics=b["metrics"],
        )  # fmt: skip
        run.status, run.sealed = "sealed", b["adapter"]

    def provenance(self, row: Row, run: Row, name: str, digest: str) -> None:
        envelope = Envelope(row.docs["provenance"])
        envelope.check(self.adapter_key)
        _, statement = envelope.statement(r"https://slsa\.dev/provenance/v1()")
        need(statement["subject"] == [{"digest": {"sha256": digest[7:]}, "name": name}], "provenance: subject")
        inputs = {
            f"base:{run.base}": run.p["base_digest"],
            f"dataset:{run.dataset}": run.p["dataset_digest"],
            "order": run.order,
        }
        inputs |= {f"validation-set:{one['validation_set']}": one["digest"] for one in run.sets}
        inputs |= {f"local-set:{one['set']}": one["digest"] for one in run.local_sets}
        told = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
        need(
            {one["name"]: one["digest"] for one in told} == {n: {"sha256": d[7:]} for n, d in inputs.items()},
            "provenance: inputs",
        )

    def on_adapter_quarantined(self, row: Row) -> None:
        adapter = self.adapters[row.b["adapter"]]
        need(not adapter.quarantined, "quarantined: not yet")
        adapter.quarantined = True

    def on_artifacts_checked(self, row: Row) -> None:
        changed, unread = row.b["changed"], row.b["unread"]
        need((row.e["outcome"] == "failure") == bool(changed or unread), "artifacts.checked: outcome")
        tables = {"base": self.bases, "dataset": self.datasets, "validation-set": self.sets, "adapter": self.adapters}
        for one in [*changed, *unread]:
            kind, _, name = one.partition(":")
            need(name in tables.get(kind, {}), "artifacts.checked: known")
            need(
                one in unread or kind not in ("base", "adapter") or tables[kind][name].quarantined,
                "artifacts.checked: changed",
            )
