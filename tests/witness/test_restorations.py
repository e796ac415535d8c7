"""A witness steps back exactly once for each restoration, and keeps what the log gave up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from appliance import witness as program
from appliance.domain.core.entry import Entry
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.restoration import LogRestored
from appliance.domain.governance.service import Heartbeat
from appliance.errors import BadInput, NotFound, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint, verify_cosignature
from appliance.formats.log.note import parse_note
from appliance.formats.log.proof import WitnessRequest, encode_request
from appliance.formats.log.restoration import (
    RestorationFile,
    encode_restoration,
    parse_restoration,
    verify_restoration,
)
from appliance.formats.log.trust import encode_trust
from appliance.formats.signatures.dsse import encode_envelope
from appliance.formats.signatures.keys import generate_ed25519
from appliance.witness import Witness, accept_restoration, cosign_file, list_administrators
from scripts.kit.log_builder import ORIGIN, LogBuilder
from tests.kit.restored import event, lose, restoration_file, restore, restore_order, restored

KEY = generate_ed25519()


@dataclass
class Watched:
    """A witness that has seen `seen` entries of the lost log, and the restored log."""

    site: LogBuilder
    other: LogBuilder
    entry: Entry
    folder: Path
    clock: list[float]

    @property
    def witness(self) -> Witness:
        return Witness("witness.example/w1", KEY, self.site.first.log_key)

    @property
    def state(self) -> Path:
        return self.folder / "log.state"

    @property
    def trusted(self) -> tuple[str, ...]:
        return tuple(self.site.keys[name].keyid for name in ("anna", "ben"))

    def see(self, log: LogBuilder, size: int, at: str) -> None:
        self.state.unlink(missing_ok=True)
        self.clock[0] = parse_time(at).timestamp()
        request = self.folder / "request"
        request.write_bytes(encode_request(WitnessRequest(0, (), log.checkpoint(size))))
        cosign_file(request, self.state, None, self.witness, first=True)

    def accept(self, made: RestorationFile | None = None, **options: Any) -> bytes:
        self.clock[0] = parse_time(self.site.now).timestamp()
        path = self.folder / "restoration"
        path.write_bytes(encode_restoration(made or self.file()))
        trusted = options.pop("trusted", self.trusted)
        return accept_restoration(path, self.state, None, self.witness, trusted, **options)

    def file(self) -> RestorationFile:
        return restoration_file(self.site, self.entry)


@cache
def _restored() -> tuple[LogBuilder, LogBuilder, Entry]:
    site, other, entry = restored(entries=9)
    site.add(Heartbeat())
    return site, other, entry


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    clock = [0.0]
    monkeypatch.setattr(program.time, "time", lambda: clock[0])
    site, other, entry = _restored()
    made = Watched(site.fork(), other.fork(), entry, tmp_path, clock)
    made.see(other, other.state.size - 2, at=other.now)
    return made


def test_a_witness_steps_back_and_keeps_what_it_saw(watched: Watched) -> None:
    before = watched.state.read_bytes()
    cosigned = watched.accept()
    seen = open_checkpoint(cosigned, watched.site.first.log_key)
    assert seen == open_checkpoint(watched.site.checkpoint(), watched.site.first.log_key)
    assert watched.state.read_bytes() == cosigned and verify_cosignature(parse_note(cosigned), watched.witness.vkey)
    (kept,) = watched.folder.glob("log.state.*.lost")
    assert kept.read_bytes() == before
    (why,) = watched.folder.glob("log.state.*.restoration")
    assert parse_restoration(why.read_bytes()) == watched.file()
    # From here on it is as strict as before.
    with pytest.raises(Tampered, match="before the order"):
        watched.accept()
    request = watched.folder / "request"
    request.write_bytes(encode_request(WitnessRequest(seen.size, (), watched.other.checkpoint())))
    with pytest.raises(Tampered, match="consistency"):
        cosign_file(request, watched.state, None, watched.witness)


def test_only_checkpoints_from_before_the_order_between_kept_and_lost_are_given_up(watched: Watched) -> None:
    kept, lost, early = watched.entry.index - 1, watched.other.state.size, watched.other.now
    for size in (kept + 1, lost):
        watched.see(watched.other, size, early)
        watched.accept()
    watched.see(watched.other, kept, early)
    with pytest.raises(Tampered, match="which the log keeps"):
        watched.accept()
    watched.other.add(Heartbeat())
    watched.see(watched.other, lost + 1, early)
    with pytest.raises(Tampered, match="at most"):
        watched.accept()
    # The restored log itself lost its end again: that is another loss.
    watched.see(watched.site, watched.site.state.size, watched.site.now)
    with pytest.raises(Tampered, match="before the order"):
        watched.accept()
    forged = sign_checkpoint(Checkpoint(ORIGIN, lost, b"\1" * 32), watched.site.log)
    request = watched.folder / "request"
    watched.state.unlink()
    watched.clock[0] = parse_time(early).timestamp()
    request.write_bytes(encode_request(WitnessRequest(0, (), forged)))
    cosign_file(request, watched.state, None, watched.witness, first=True)
    with pytest.raises(Tampered, match="expected the root"):
        watched.accept()


def test_an_order_of_a_later_time_gives_up_nothing_yet(watched: Watched) -> None:
    """It would still cover what the witness sees of the restored log until then, so a second loss."""
    before = watched.state.read_bytes()
    path = watched.folder / "restoration"
    path.write_bytes(encode_restoration(watched.file()))
    watched.clock[0] = parse_time(watched.other.now).timestamp()
    with pytest.raises(Unavailable, match="after the order"):
        accept_restoration(path, watched.state, None, watched.witness, watched.trusted)
    assert watched.state.read_bytes() == before and not list(watched.folder.glob("*.lost"))
    watched.accept()


def test_a_cosignature_in_the_second_of_the_order_is_one_of_the_restored_log(watched: Watched) -> None:
    """Cosignatures have whole seconds, and orders have milliseconds."""
    second = lose(watched.site, 20)
    watched.see(second, second.state.size, second.now)
    ordered_at = watched.site.now.replace(".000Z", ".573Z")
    watched.entry = restore(watched.site, second.checkpoint(), issued_at=ordered_at)
    path = watched.folder / "restoration"
    path.write_bytes(encode_restoration(watched.file()))
    watched.clock[0] = parse_time(ordered_at).timestamp() + 0.3
    accept_restoration(path, watched.state, None, watched.witness, watched.trusted)
    with pytest.raises(Tampered, match="before the order"):
        accept_restoration(path, watched.state, None, watched.witness, watched.trusted)


def test_an_older_restoration_is_no_reason_for_another_step_back(watched: Watched) -> None:
    first = watched.file()
    watched.accept()
    second = lose(watched.site, 20)
    watched.see(second, second.state.size, second.now)
    with pytest.raises(Tampered):
        watched.accept(first)
    watched.entry = restore(watched.site, second.checkpoint())
    with pytest.raises(Tampered):
        watched.accept(first)
    watched.accept()


# Forged and incomplete files. The holder of the log's key can record an entry that no rule accepts.


def forge(watched: Watched, first: Signed, second: Signed | None, **changes: Any) -> RestorationFile:
    """Return the file of an entry with these orders, each with the key that signs it."""
    site = watched.site.fork()
    lost = watched.other.checkpoint()
    order = restore_order(watched.site, lost, first[0], kept_size=watched.entry.index - 1, **changes)
    envelope = site.sign(order, site.keys[first[1]])
    documents = {"order": encode_envelope(envelope), "lost": lost}
    if second is not None:
        names = {"order": envelope.pae_digest, **({} if len(second) < 3 else {"order": second[2]})}
        countersigned = site.sign(site.order(Countersign, second[0], **names), site.keys[second[1]])
        documents = {"order": encode_envelope(countersigned), "countersigned": documents["order"], "lost": lost}
    entry, _ = site.entry(LogRestored(policy=site.in_force, proof=()), documents=documents, actor="anna")
    site.entries.append(entry.encoded)
    site.documents.update({digest_bytes(data): data for data in documents.values()})
    site.state.size += 1
    return restoration_file(site, entry)


Signed = tuple[str, ...]
"""The signer's name, the name of the key that signs, and for a countersignature the order that it names."""
ANNA, BEN = ("anna", "anna"), ("ben", "ben")
FORGED: dict[str, tuple[Callable[[Watched], RestorationFile], str]] = {
    "one signature": (lambda w: forge(w, ANNA, None), "signatures of 2 administrators, got 1"),
    "one administrator twice": (lambda w: forge(w, ANNA, ANNA), "got one twice"),
    "one administrator with two keys": (lambda w: forge(w, ANNA, ("anna", "ben")), "got one twice"),
    "one key under two names": (lambda w: forge(w, ANNA, ("ben", "anna")), "got one twice"),
    "a countersignature of another order": (
        lambda w: forge(w, ANNA, ("ben", "ben", digest_bytes(b"another"))),
        "countersigned order",
    ),
    "another kept root": (lambda w: forge(w, ANNA, BEN, kept_root=digest_bytes(b"x")), "consistency"),
    "another lost size": (lambda w: forge(w, ANNA, BEN, lost_size=9_999), "as was signed"),
    "another lost note": (lambda w: forge(w, ANNA, BEN, lost=digest_bytes(b"x")), "restoration, lost"),
    "another log's order": (lambda w: forge(w, ANNA, BEN, origin="other.example/log"), "restoration, log"),
    "a document too few": (lambda w: replace(w.file(), countersigned=None), "documents"),
    "another note": (lambda w: replace(w.file(), lost=w.site.checkpoint()), "documents"),
    "an altered entry": (lambda w: replace(w.file(), entry=w.file().entry.replace(b"unix", b"uniz")), "inclusion"),
    "another entry": (lambda w: replace(w.file(), entry=w.site.entries[-1]), "inclusion"),
    "no keys": (lambda w: replace(w.file(), keys=()), "expected the public key"),
    "no proof of the kept entries": (lambda w: replace(w.file(), consistency=()), "consistency"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_restoration_changes_nothing(watched: Watched, name: str) -> None:
    make, words = FORGED[name]
    before = watched.state.read_bytes()
    with pytest.raises(Tampered, match=words):
        watched.accept(make(watched))
    assert watched.state.read_bytes() == before
    assert list(watched.folder.glob("*.lost")) == []


def test_the_forger_s_way_to_a_file_is_sound(watched: Watched) -> None:
    """Otherwise a forged file could be refused for another reason than its own."""
    watched.accept(forge(watched, ANNA, BEN))


def test_administrators_are_those_whom_the_witness_names(watched: Watched) -> None:
    with pytest.raises(Tampered, match="trusted administrator"):
        watched.accept(trusted=watched.trusted[:1])
    with pytest.raises(Tampered, match="trusted administrator"):
        watched.accept(trusted=())
    trust = watched.folder / "trust.json"
    trust.write_bytes(encode_trust(watched.site.trust))
    assert list_administrators(str(trust), []) == watched.trusted
    assert list_administrators("vkey", watched.trusted) == watched.trusted
    with pytest.raises(BadInput, match="got neither"):
        list_administrators("vkey", [])
    with pytest.raises(BadInput, match="sha256"):
        list_administrators("vkey", ["anna"])


def test_a_single_administrator_s_restoration_needs_the_owner_s_word(tmp_path: Path) -> None:
    site = LogBuilder(single=True)
    other = lose(site)
    order = restore_order(site, other.checkpoint())
    entry = site.ordered(event(site, order), order, documents={"lost": other.checkpoint()})
    made, trusted = restoration_file(site, entry, ("anna",)), (site.keys["anna"].keyid,)
    with pytest.raises(Tampered, match="signatures of 2 administrators, got 1"):
        verify_restoration(made, [site.first.log_key], trusted)
    assert verify_restoration(made, [site.first.log_key], trusted, signatures=1).signers == ("anna",)


def test_no_state_no_step_and_no_clock_behind(watched: Watched) -> None:
    before = watched.state.read_bytes()
    watched.state.unlink()
    with pytest.raises(NotFound, match="what this witness saw last"):
        watched.accept()
    watched.state.write_bytes(before)
    path = watched.folder / "restoration"
    path.write_bytes(encode_restoration(watched.file()))
    with pytest.raises(BadInput, match="a file of its own"):
        accept_restoration(path, watched.state, watched.state, watched.witness, watched.trusted)
    watched.clock[0] = 1.0
    with pytest.raises(Unavailable, match="clock"):
        accept_restoration(path, watched.state, None, watched.witness, watched.trusted)
    assert watched.state.read_bytes() == before


@pytest.mark.parametrize(
    "data", [b"", b"{}\n", b"[]\n", b'{"version":1}\n', b"x" * 100], ids=["empty", "object", "array", "few", "text"]
)
def test_another_file_is_no_restoration(data: bytes) -> None:
    with pytest.raises(BadInput):
        parse_restoration(data)
