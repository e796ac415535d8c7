"""A site for the store's tests: its keys, a clock that is set by hand, and drafts of entries that the rules allow."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine

from appliance.domain.core.credentials import Possession, encode_credential
from appliance.domain.core.entry import EntryDraft
from appliance.domain.core.names import encode_value
from appliance.domain.core.order import Order, encode_order
from appliance.domain.core.policy import Parameters, PolicySet
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.people import Enrol
from appliance.errors import NotFound
from appliance.formats.core.commitment import Disclosure, disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.note import vkey_of
from appliance.formats.signatures.dsse import Envelope, encode_envelope, sign_envelope
from appliance.formats.signatures.keys import Ed25519Signer, generate_ed25519
from appliance.store.ledger.keys import HeldLogKeys
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.snapshots import Snapshots

ORIGIN = "appliance.example/store"
CODE, OTHER_CODE = digest_bytes(b"code"), digest_bytes(b"other code")
START = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Clock:
    """A clock that advances by a second with each reading; it can be set back."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class SmallLog:
    """Keys of the log and of two administrators, and what these would sign."""

    def __init__(self) -> None:
        self.log_signer = generate_ed25519()
        self.log_key = vkey_of(ORIGIN, self.log_signer)
        self.administrators = {name: generate_ed25519() for name in ("alice", "bob")}
        self.policy = encode_value(PolicySet(name="trial", parameters=Parameters(), cedar="", cedar_schema=""))

    def open_ledger(
        self,
        engine: Engine,
        clock: Clock | None = None,
        snapshots: Snapshots | None = None,
        longest_pause_days: int | None = None,
    ) -> Ledger:
        return Ledger(
            engine,
            origin=ORIGIN,
            log_key=self.log_key,
            keys=HeldLogKeys(self.signer),
            clock=clock or Clock(),
            snapshots=snapshots,
            longest_pause_days=longest_pause_days,
        )

    def signer(self, vkey: str) -> Ed25519Signer:
        if vkey != self.log_key:
            raise NotFound(f"log key {vkey}: expected it here, got none")
        return self.log_signer

    def snapshots(self, path: Path, *, origin: str = ORIGIN, code: str = CODE, least: int = 0) -> Snapshots:
        return Snapshots(path, origin=origin, code=code, keys=HeldLogKeys(self.signer), least=least)

    def first_draft(self) -> EntryDraft:
        people = [
            {"name": name, "key": _base64(key.spki), "keyid": key.keyid} for name, key in self.administrators.items()
        ]
        body = {
            "origin": ORIGIN,
            "log_key": self.log_key,
            "adapter_key": people[0]["key"],
            "post_quantum": None,
            "administrators": people,
            "single_administrator": False,
        }
        return EntryDraft(type="appliance.initialized", documents={"policy": self.policy}, body=body)

    def enrolment(self, name: str) -> Enrolment:
        return Enrolment(self, name)

    def signed(self, order: Order) -> Envelope:
        return sign_envelope(encode_order(order), self.administrators[order.signer])

    @property
    def policy_digest(self) -> str:
        return digest_bytes(self.policy)


class Enrolment:
    """One enrolment in two entries: alice orders it (adds a projection), bob countersigns it (removes that one)."""

    def __init__(self, site: SmallLog, name: str) -> None:
        key = generate_ed25519()
        self.printed_name: Disclosure = disclose(f"{name} Example", hashlib.sha256(name.encode()).digest())
        self._site = site
        possession = _possession(name, key)
        envelope = site.signed(
            Enrol(
                **_order(name, "alice"),
                principal=name,
                printed_name=self.printed_name.commitment,
                roles=("operator",),
                key=_base64(key.spki),
                keyid=key.keyid,
                possession=possession.pae_digest,
            )
        )
        self.digest = envelope.pae_digest
        self.name = name
        self.order, self.possession = encode_envelope(envelope), encode_envelope(possession)

    @property
    def pending(self) -> EntryDraft:
        return EntryDraft(
            type="order.pending",
            actor="alice",
            source="unix",
            subjects=(f"order:{self.digest}", f"principal:{self.name}"),
            outcome="pending",
            documents={"order": self.order, "possession": self.possession},
            body={"policy": self._site.policy_digest},
            disclosures=(self.printed_name,),
        )

    @property
    def enrolled(self) -> EntryDraft:
        countersign = self._site.signed(Countersign(**_order(f"countersign {self.name}", "bob"), order=self.digest))
        return EntryDraft(
            type="principal.enrolled",
            actor="bob",
            source="unix",
            subjects=(f"order:{countersign.pae_digest}", f"order:{self.digest}", f"principal:{self.name}"),
            documents={
                "order": encode_envelope(countersign),
                "countersigned": self.order,
                "possession": self.possession,
            },
            body={"policy": self._site.policy_digest},
        )


def _order(seed: str, signer: str) -> dict[str, str]:
    return {
        "origin": ORIGIN,
        "signer": signer,
        "nonce": hashlib.sha256(seed.encode()).hexdigest()[:32],
        "issued_at": encode_time(START),
        "expires_at": encode_time(START + timedelta(minutes=50)),
    }


def _possession(name: str, key: Ed25519Signer) -> Envelope:
    statement = Possession(
        origin=ORIGIN,
        signer=name,
        nonce="0" * 32,
        issued_at=encode_time(START),
        key=_base64(key.spki),
        keyid=key.keyid,
    )
    return sign_envelope(encode_credential(statement), key)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def heartbeat() -> EntryDraft:
    return EntryDraft(type="heartbeat")


def refusal(unit: str = "legal") -> EntryDraft:
    """Return an entry with its own unit, outcome and actor, which needs no entry before it."""
    body = {"unit": unit, "application": None, "served_model": None, "code": "denied", "count": 1}
    return EntryDraft(
        type="request.refused", actor=unit, source="tcp", subjects=(f"unit:{unit}",), outcome="denied", body=body
    )
