"""A site for the store's tests: its keys, a clock that is set by hand, and drafts of entries that the rules allow."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine

from appliance.domain.entry import Draft
from appliance.domain.names import encode_value
from appliance.domain.policy import Parameters, PolicySet
from appliance.formats.keys import generate_ed25519
from appliance.formats.note import vkey_of
from appliance.store.ledger import Ledger

ORIGIN = "appliance.example/store"


class Clock:
    """Goes on by a second each time it is asked; can be set back."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 24, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class Site:
    """Keys of the log and of two administrators."""

    def __init__(self) -> None:
        self.log_signer = generate_ed25519()
        self.log_key = vkey_of(ORIGIN, self.log_signer)
        self.administrators = {name: generate_ed25519() for name in ("alice", "bob")}
        self.policy = encode_value(PolicySet(name="trial", parameters=Parameters(), cedar="", cedar_schema=""))

    def open_ledger(self, engine: Engine, clock: Clock | None = None) -> Ledger:
        return Ledger(engine, origin=ORIGIN, log_signer=self.log_signer, log_key=self.log_key, clock=clock or Clock())

    def first_draft(self) -> Draft:
        people = [
            {"name": name, "key": base64.b64encode(key.spki).decode(), "keyid": key.keyid}
            for name, key in self.administrators.items()
        ]
        body = {
            "origin": ORIGIN,
            "log_key": self.log_key,
            "adapter_key": people[0]["key"],
            "administrators": people,
            "single_administrator": False,
        }
        return Draft(type="appliance.initialized", documents={"policy": self.policy}, body=body)


def heartbeat() -> Draft:
    return Draft(type="heartbeat")
