"""Proofs of entries as files, over a log in memory, two witnesses of it, and what an attacker makes of one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from appliance.domain.core.entry import parse_entry
from appliance.domain.queries.proofs import EntryProof, encode_entry_proof
from appliance.domain.runs.training import RunFailed
from appliance.formats.core.commitment import disclosure_value
from appliance.formats.core.merkle import hash_leaf, inclusion_proof, root_of
from appliance.formats.log.checkpoint import claimed_size, cosign, witness_vkey_of
from appliance.formats.log.note import Note, encode_note, parse_note
from appliance.formats.log.proof import Proof, encode_proof
from appliance.formats.log.trust import encode_trust
from appliance.formats.signatures.dsse import parse_envelope
from appliance.formats.signatures.keys import Ed25519Signer, generate_ed25519
from scripts.kit.log_builder import LogBuilder, stage
from tests.kit.log_policies import encode_log_policy, quorum_policy

HOSTILE = (
    "<img src=x onerror=document.title='ran'> \N{RIGHT-TO-LEFT OVERRIDE}degnahc\N{LINE SEPARATOR}\N{HANGUL FILLER}"
)
W1, W2 = "witness.example/w1", "witness.example/w2"
TIME_S = 1_770_000_000


def proof_text(site: LogBuilder, index: int, note: bytes) -> str:
    size = claimed_size(note)
    leaves = [hash_leaf(data) for data in site.entries[:size]]

    def node(level: int, place: int) -> bytes:
        return root_of(leaves[place << level : (place + 1) << level])

    return encode_proof(Proof(index, tuple(inclusion_proof(index, size, node)), note)).decode()


def cosigned_note(site: LogBuilder, size: int, **witnesses: Ed25519Signer) -> bytes:
    note = parse_note(site.checkpoint(size))
    lines = [cosign(note, name, signer, TIME_S) for name, signer in witnesses.items()]
    return encode_note(Note(note.text, (*note.signatures, *lines)))


def entry_proof_of(site: LogBuilder, index: int, *notes: bytes) -> EntryProof:
    """With all of its documents, and the texts that it binds itself or by an order."""
    data = site.entries[index]
    documents = {role: site.documents[digest] for role, digest in parse_entry(data).documents.items()}
    bound = [data, *documents.values()]
    bound += [parse_envelope(content).payload for content in documents.values() if content.startswith(b'{"payload"')]
    return EntryProof(
        entry=data.decode(),
        proofs=tuple(proof_text(site, index, note) for note in notes or (site.checkpoint(),)),
        documents={role: base64.b64encode(content).decode() for role, content in documents.items()},
        disclosures=tuple(
            disclosure_value(one)
            for one in site.disclosures
            if any(one.commitment.encode() in content for content in bound)
        ),
    )


@dataclass
class Witnessed:
    """A log whose two witnesses saw it at different sizes; `reviewed` is a signed entry with an order and a text."""

    site: LogBuilder = field(default_factory=lambda: stage("serving"))
    w1: Ed25519Signer = field(default_factory=generate_ed25519)
    w2: Ed25519Signer = field(default_factory=generate_ed25519)

    def __post_init__(self) -> None:
        entries = map(parse_entry, self.site.entries)
        self.reviewed = next(entry.index for entry in entries if entry.type == "review.recorded")
        size = len(self.site.entries)
        self.notes = (
            self.site.checkpoint(),
            cosigned_note(self.site, size - 2, **{W1: self.w1}),
            cosigned_note(self.site, size - 1, **{W2: self.w2}),
        )

    def proof(self, index: int | None = None) -> dict[str, Any]:
        at = self.reviewed if index is None else index
        made = entry_proof_of(self.site, at, *(note for note in self.notes if at < claimed_size(note)))
        value = json.loads(encode_entry_proof(made))
        assert isinstance(value, dict)
        return value

    def trust(self) -> bytes:
        return encode_trust(self.site.trust)

    def policy(self, quorum: int, **witnesses: Ed25519Signer) -> bytes:
        """`quorum` of the witnesses; of both of the log's where none are given."""
        vkeys = [witness_vkey_of(name, key) for name, key in (witnesses or {W1: self.w1, W2: self.w2}).items()]
        return encode_log_policy(quorum_policy([self.site.trust.log_key], vkeys, quorum))


def hostile() -> tuple[LogBuilder, int]:
    """Return a log and the entry of a failed run, whose text has markup and characters that reorder a careless page."""
    site = stage("imported")
    run = site.request_run()
    site.add(site.started(run))
    entry = site.add(RunFailed(run=run, code="worker-ended", message=site.text(HOSTILE)))
    return site, entry.index


def encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"


def _text(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        assert old in value["entry"], old
        value["entry"] = value["entry"].replace(old, new, 1)

    return change


def _proof(number: int, change: Callable[[list[str]], None]) -> Callable[[dict[str, Any]], None]:
    """Of one proof its lines."""

    def changed(value: dict[str, Any]) -> None:
        lines = value["proofs"][number].split("\n")
        change(lines)
        value["proofs"][number] = "\n".join(lines)

    return changed


def _flip(text: str, at: int = 8) -> str:
    """One bit of what the base64 says: of the byte that the letter at this place begins."""
    data = bytearray(base64.b64decode(text))
    data[at % len(data)] ^= 1
    return base64.b64encode(data).decode()


def _flip_last_word(at: int, place: int = 8) -> Callable[[list[str]], None]:
    def change(lines: list[str]) -> None:
        *before, word = lines[at].split(" ")
        lines[at] = " ".join([*before, _flip(word, place)])

    return change


def _swap(lines: list[str]) -> None:
    lines[2], lines[3] = lines[3], lines[2]


def _replace(at: int, text: str) -> Callable[[list[str]], None]:
    def change(lines: list[str]) -> None:
        lines[at] = text

    return change


def _document(value: dict[str, Any]) -> None:
    value["documents"]["order"] = _flip(value["documents"]["order"])


def _disclosure(name: str, change: Callable[[str], str]) -> Callable[[dict[str, Any]], None]:
    def changed(value: dict[str, Any]) -> None:
        value["disclosures"][0][name] = change(value["disclosures"][0][name])

    return changed


def _put(name: str, what: Any) -> Callable[[dict[str, Any]], None]:
    def changed(value: dict[str, Any]) -> None:
        value[name] = what

    return changed


def _lose(name: str) -> Callable[[dict[str, Any]], None]:
    def changed(value: dict[str, Any]) -> None:
        del value[name]

    return changed


def _repeat_line(lines: list[str]) -> None:
    lines.insert(-1, lines[-2])


# The lines of a proof from its end: "", the last signature, ... "", root, size, origin, "", the last hash.
TAMPERED: dict[str, Callable[[dict[str, Any]], None]] = {
    "entry, a word": _text('"rita"', '"rosa"'),
    "entry, outcome": _text('"success"', '"failure"'),
    "entry, spelling": _text('"v":1', '"v": 1'),
    "entry, version": _text('"v":1', '"v":2'),
    "entry, a member twice": _text('{"actor"', '{"actor":"rosa","actor"'),
    "entry, no JSON": _text("{", ""),
    "entry, a fraction": _text('"v":1', '"v":1.0'),
    "index": _proof(0, _replace(1, "index 3")),
    "index, beyond the log": _proof(0, _replace(1, "index 999")),
    "index, with a zero": _proof(0, lambda lines: lines.__setitem__(1, lines[1].replace("index ", "index 0"))),
    "header": _proof(0, _replace(0, "c2sp.org/tlog-proof@v2")),
    "hash, a bit": _proof(0, _flip_last_word(2)),
    "hashes, their order": _proof(0, _swap),
    "hashes, one too few": _proof(0, lambda lines: lines.pop(2) and None),
    "hashes, one too many": _proof(0, lambda lines: lines.insert(2, lines[2])),
    "hash, another spelling": _proof(0, lambda lines: lines.__setitem__(2, lines[2].rstrip("="))),
    "checkpoint, root": _proof(0, _flip_last_word(-4)),
    "checkpoint, size": _proof(0, _replace(-5, "30")),
    "checkpoint, origin": _proof(0, _replace(-6, "bank.example/other")),
    "checkpoint, an extension line": _proof(0, lambda lines: lines.insert(-3, "more")),
    "signature, a bit": _proof(0, _flip_last_word(-2, 40)),
    "signature, its key id": _proof(0, _flip_last_word(-2, 1)),
    "signature, its name": _proof(0, lambda lines: lines.__setitem__(-2, lines[-2].replace("bank", "tank"))),
    "signature, twice": _proof(0, _repeat_line),
    "signature, none": _proof(0, lambda lines: lines.pop(-2) and None),
    "cosigned checkpoint, log's signature": _proof(1, _flip_last_word(-3, 40)),
    "cosigned checkpoint, hash": _proof(1, _flip_last_word(3)),
    "document, a bit": _document,
    "documents, none": _put("documents", {}),
    "document, one more": lambda value: value["documents"].update(other="AAAA"),
    "document, of a name that every object has": lambda value: value["documents"].update(constructor="AAAA"),
    "text": _disclosure("text", lambda text: text + "!"),
    "text, salt": _disclosure("salt", _flip),
    "text, commitment": _disclosure("commitment", lambda text: text[:-1] + ("0" if text[-1] != "0" else "1")),
}
"""What makes a proof false, by the layer that it is found in."""
COSIGNATURE: dict[str, Callable[[dict[str, Any]], None]] = {
    "cosignature, a bit": _proof(1, _flip_last_word(-2, 40)),
    "cosignature, its time": _proof(1, _flip_last_word(-2, 8)),
}
"""The same, where the witness is known."""
UNUSABLE: dict[str, Callable[[dict[str, Any]], None]] = {
    "no entry": _lose("entry"),
    "no proofs": _lose("proofs"),
    "an unknown member": _put("verdict", "verified"),
    "a member of a record": _put("text", "An answer that nobody gave"),
    "no proofs and that of a record": lambda value: value.update(proof=value["proofs"][0], proofs=None),
    "an empty list of proofs": _put("proofs", []),
    "proofs, a text": _put("proofs", "c2sp.org/tlog-proof@v1"),
    "entry, a number": _put("entry", 26),
}
"""What is no proof at all."""
