"""The entries of a synthetic log that people sign, with real keys. Each is applied by the rules, as in a service.

A cycle takes one adapter from its dataset to every unit: a session, 27 orders by four people (Ed25519 and ECDSA P-256),
a run, a sealed adapter, and an admission and a load for each unit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.domain.actions.apply import apply
from appliance.domain.core.entry import Entry, Event
from appliance.domain.core.names import add_seconds
from appliance.domain.data.imports import ImportRequested
from appliance.domain.governance.countersignature import OrderRefused
from appliance.domain.governance.sessions import SessionOpened
from appliance.domain.releases.activations import Activate, ReleaseActivated
from appliance.domain.runs.training import RunRequested
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.log.note import vkey_of
from appliance.formats.signatures.dsse import encode_envelope
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer
from scripts.kit.log_builder import ORIGIN, LogBuilder, manifest

UNITS = ("legal", "sales", "claims", "treasury", "audit", "risk", "cards", "wealth")
SERVED_MODELS = tuple(f"task-{number}" for number in range(16))
PEOPLE = {
    **{unit: ("unit",) for unit in UNITS},
    "olga": ("operator",),
    "ines": ("operator",),
    "rita": ("reviewer:privacy",),
    "raul": ("reviewer:model-risk",),
    "otto": tuple(f"release-owner:{unit}" for unit in UNITS),
    "audrey": ("auditor",),
}
ECDSA_SIGNERS = ("raul", "otto")
STEP_MS = 500
"""Milliseconds between two entries."""
_APPROVED_S = 300 * 86_400


class Made(NamedTuple):
    """An entry with its documents, disclosures and changes. `nodes`: the tree nodes that it completes, leaf first."""

    index: int
    data: bytes
    leaf: bytes
    time: str
    type: str
    actor: str
    outcome: str
    subjects: tuple[str, ...]
    nodes: list[bytes]
    documents: Mapping[str, bytes] = {}
    """Role to bytes."""
    disclosures: tuple[Disclosure, ...] = ()
    changes: tuple[tuple[str, str, Mapping[str, Any] | None], ...] = ()
    """Projections that the entry changes: (kind, id, value)."""


class SignedSite(LogBuilder):
    """A site whose keys follow from a seed. It keeps entries only until `take` returns them."""

    def __init__(self, seed: int) -> None:
        self._seeded = random.Random(f"keys {seed}")
        self.made: list[Made] = []
        super().__init__()

    def _initialize(self, names: list[str], *, post_quantum: bool) -> None:
        self.log: Ed25519Signer = self._ed25519()
        self.log_signers = {vkey_of(ORIGIN, self.log): self.log}
        self.adapter_key = self._p256()
        self.keys = {name: self._p256() if name in ECDSA_SIGNERS else self._ed25519() for name in (*names, *PEOPLE)}
        super()._initialize(names, post_quantum=post_quantum)
        self.entries.append(self.made[0].data)

    def _ed25519(self) -> Ed25519Signer:
        return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(self._seeded.randbytes(32)))

    def _p256(self) -> EcdsaSigner:
        return EcdsaSigner(derive_private_key(self._seeded.getrandbits(250) + 1, SECP256R1()))

    def add(self, event: Event, /, **rest: Any) -> Entry:
        entry, documents = self.entry(event, **rest)
        apply(self.state, entry, documents)
        changes = tuple(self.state.take_changes())
        self.state.keep()
        made = Made(
            *(entry.index, entry.encoded, entry.leaf, entry.time, entry.type, entry.actor, entry.outcome),
            *(entry.subjects, [], documents, tuple(self.disclosures), changes),
        )
        self.made.append(made)
        self.disclosures.clear()
        self.now = add_milliseconds(self.now, STEP_MS)
        return entry

    def take(self) -> list[Made]:
        """Return the entries since the last call. No order is signed twice, so none has to be stored."""
        made, self.made = self.made, []
        for digest, _ in tuple(self.state.orders.items()):
            self.state.orders.set(digest, None)
        return made

    def skip_to(self, size: int, last_leaf: bytes, time: str) -> None:
        """Set the state to a later end of the log. The entries between must have changed nothing else of it."""
        self.state.size, self.state.last_leaf, self.state.last_time = size, f"sha256:{last_leaf.hex()}", time
        self.now = add_milliseconds(time, STEP_MS)

    def enrol_people(self) -> Iterator[None]:
        """Enrol the people and units, and import the base. Yield after each order."""
        for name, roles in PEOPLE.items():
            self.enrol(name, *roles)
            yield
        self.import_base()
        yield

    def cycle(self, version: int) -> Iterator[None]:
        """Make a version of the adapter and release it to every unit. Yield after each order."""
        served_model = SERVED_MODELS[version % len(SERVED_MODELS)]
        self._open_session()
        self._import_dataset(version)
        yield
        self._train(version)
        yield
        for unit in UNITS:
            for reviewer, subject in (("rita", "privacy"), ("raul", "model-risk")):
                valid_until = add_seconds(self.now, _APPROVED_S)
                self.review(reviewer, subject, version, unit=unit, valid_until=valid_until)
                yield
        self._refuse(version)
        yield
        for unit in UNITS:
            self._release(version, unit, served_model)
            yield

    def _open_session(self) -> None:
        session = self.session("audrey", nonce=f"{self._seeded.getrandbits(128):032x}")
        self.add(SessionOpened(identity=None), documents={"session": encode_envelope(session)}, actor="audrey")

    def _import_dataset(self, version: int) -> None:
        requested = self.ordered(ImportRequested(policy=self.in_force), self.dataset_order())
        rows = manifest("clauses", version, {"rows": b"rows %d" % version})
        self.add(self.dataset_imported(requested, dataset=f"clauses@{version}"), documents={"manifest": rows})

    def _train(self, version: int) -> None:
        dataset = self.state.datasets.get(f"clauses@{version}")
        assert dataset is not None
        run = f"r-{version:06d}"
        order = self.train_order(recipe={"dataset": f"clauses@{version}"}, dataset_digest=dataset.digest)
        self.ordered(RunRequested(policy=self.in_force, run=run), order)
        weights = b"weights %d" % version
        self.add(self.started(run))
        self.add(self.checkpointed(run))
        self.add(self.finished(run, weights=digest_bytes(weights)))
        body, documents = self.sealing(run, version, files={"adapter_model.safetensors": weights})
        self.add(body, documents=documents)

    def _refuse(self, version: int) -> None:
        order = self.release_order(Activate, "ines", version)
        signed = self.sign(order)
        refused = OrderRefused(order=signed.pae_digest, action=order.action, code="denied", refusals=())
        self.add(refused, documents={"order": encode_envelope(signed)}, actor="ines")

    def _release(self, version: int, unit: str, served_model: str) -> None:
        place = {"unit": unit, "served_model": served_model}
        order = self.release_order(Activate, "otto", version, **place)
        self.ordered(ReleaseActivated(policy=self.in_force), order)
        adapter = self.state.adapters.get(f"clauses@{version}")
        assert adapter is not None
        approvals = tuple(review.index for review in adapter.reviews if review.unit == unit)
        before = self.state.slots.get(f"{unit}/{served_model}")
        if before is not None:
            gone = {"adapter": before.adapter, "admitted": before.admitted, "reason": "released-another"}
            self.add(self.unloaded(**place, **gone))
        admitted = self.add(self.admitted(version, approvals=approvals, **place))
        self.add(self.loaded(admitted.index, version, **place))


def add_milliseconds(time: str, milliseconds: int) -> str:
    return encode_time(parse_time(time) + timedelta(milliseconds=milliseconds))
