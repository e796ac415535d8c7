"""Trust policies (c2sp.org/tlog-policy): the trusted logs, and the quorum of witnesses that must have cosigned.

People write these files, so the parser accepts comments, white space and any order that the specification allows. Names
are opaque bytes, held as text with surrogate escapes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from appliance.errors import BadInput, Tampered
from appliance.formats.core.fields import as_tampered, parse_decimal, show
from appliance.formats.log.checkpoint import (
    Checkpoint,
    WitnessKey,
    open_checkpoint,
    parse_witness_vkey,
    verify_cosignature,
)
from appliance.formats.log.note import VerifierKey, parse_note, parse_vkey

NONE = "none"
"""The quorum that needs no witness."""
_ALLOWED = re.compile(rb"[\t\n\x20-\x7e\x80-\xff]*")
_SPACE = re.compile("[ \t]+")
_WORD = re.compile(r"[^\x00-\x20\x7f]+")


@dataclass(frozen=True, slots=True)
class PolicyLog:
    """A trusted log of a policy."""

    vkey: str
    url: str | None = None


@dataclass(frozen=True, slots=True)
class PolicyWitness:
    """A witness of a policy; `name` has a meaning inside the policy only."""

    name: str
    vkey: str
    url: str | None = None


@dataclass(frozen=True, slots=True)
class WitnessGroup:
    """A group of witnesses or earlier groups, which has cosigned when `threshold` of its members have."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """The logs, witnesses and groups of a policy; `quorum` names a witness, a group, or `none`.

    `second_keys` must sign as well as a log of the policy. They are of a trust file, since a policy file has no line
    for them.
    """

    logs: tuple[PolicyLog, ...] = ()
    witnesses: tuple[PolicyWitness, ...] = ()
    groups: tuple[WitnessGroup, ...] = ()
    quorum: str = NONE
    second_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_once("log keys", [parse_vkey(log.vkey).spki for log in self.logs])
        _check_once("witness keys", [parse_witness_vkey(witness.vkey).spki for witness in self.witnesses])
        _check_once("names", [NONE, *_names(self.witnesses, self.groups)])
        _check_once("group members", [member for group in self.groups for member in group.members])
        known = {witness.name for witness in self.witnesses}
        for group in self.groups:
            if not 1 <= group.threshold <= len(group.members):
                expected = f"expected 1 to {len(group.members)} members"
                raise BadInput(f"policy, group {show(group.name)}, threshold: {expected}, got {group.threshold}")
            _check_known(group.members, known)
            known.add(group.name)
        _check_known([self.quorum], known | {NONE})
        parts: tuple[PolicyLog | PolicyWitness, ...] = (*self.logs, *self.witnesses)
        urls = [part.url for part in parts if part.url is not None]
        for word in (*known, *urls, *(part.vkey for part in parts)):
            if _WORD.fullmatch(word) is None:
                raise BadInput(f"policy, word: expected one without white space, got {show(word)}")


@dataclass(frozen=True, slots=True)
class CosignedCheckpoint:
    """A verified checkpoint and the time of each cosignature: policy name to seconds since 1970."""

    checkpoint: Checkpoint
    times_s: Mapping[str, int]


def parse_log_policy(data: bytes) -> LogPolicy:
    """Parse a policy. A name must be defined on a line before the one that refers to it."""
    if _ALLOWED.fullmatch(data) is None or not data.endswith(b"\n"):
        raise BadInput("policy: expected lines without control characters, got a control character or no line end")
    reader = _Reader([], [], [], [])
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        words = [word for word in _SPACE.split(line) if word]
        if words and not words[0].startswith("#"):
            reader.take(words)
    if len(reader.quorums) != 1:
        raise BadInput(f"policy, quorum: expected exactly one line, got {len(reader.quorums)}")
    return LogPolicy(tuple(reader.logs), tuple(reader.witnesses), tuple(reader.groups), reader.quorums[0])


@dataclass(frozen=True, slots=True)
class _Reader:
    """The definitions of the lines that were read so far."""

    logs: list[PolicyLog]
    witnesses: list[PolicyWitness]
    groups: list[WitnessGroup]
    quorums: list[str]

    def take(self, words: list[str]) -> None:
        defined = _names(self.witnesses, self.groups)
        match words:
            case ["log", vkey, *url] if len(url) <= 1:
                self.logs.append(PolicyLog(vkey, *url))
            case ["witness", name, vkey, *url] if len(url) <= 1:
                self.witnesses.append(PolicyWitness(name, vkey, *url))
            case ["group", name, threshold, *members] if members:
                _check_known(members, defined)
                self.groups.append(WitnessGroup(name, _parse_threshold(threshold, len(members)), tuple(members)))
            case ["quorum", name]:
                _check_known([name], [*defined, NONE])
                self.quorums.append(name)
            case _:
                raise BadInput(f"policy, line: expected log, witness, group or quorum, got {show(' '.join(words))}")


def satisfies(policy: LogPolicy, cosigned: Collection[str]) -> bool:
    """Return True if the witnesses of these policy names, whose cosignatures were verified, make the quorum."""
    held = {NONE} | {witness.name for witness in policy.witnesses if witness.name in cosigned}
    for group in policy.groups:
        if sum(member in held for member in group.members) >= group.threshold:
            held.add(group.name)
    return policy.quorum in held


def open_witnessed(data: bytes, policy: LogPolicy) -> CosignedCheckpoint:
    """Verify that a log of the policy signed the checkpoint and that the quorum cosigned it.

    An invalid line by a key of the policy makes the whole note invalid.
    """
    with as_tampered():
        note = parse_note(data)
    lines = {(line.name, line.key_id) for line in note.signatures}
    signed = [log.vkey for log in policy.logs if _line_of(parse_vkey(log.vkey)) in lines]
    if not signed:
        raise Tampered("log checkpoint: expected a signature by one of the policy's logs, got none")
    checkpoint, *_ = [open_checkpoint(data, *policy.second_keys, vkey) for vkey in signed]
    cosigned = [witness for witness in policy.witnesses if _line_of(parse_witness_vkey(witness.vkey)) in lines]
    times_s = {witness.name: verify_cosignature(note, witness.vkey) for witness in cosigned}
    if not satisfies(policy, times_s):
        raise Tampered(f"log checkpoint, witnesses: expected the quorum {show(policy.quorum)}, got {show([*times_s])}")
    return CosignedCheckpoint(checkpoint, times_s)


def _names(witnesses: Iterable[PolicyWitness], groups: Iterable[WitnessGroup]) -> list[str]:
    return [witness.name for witness in witnesses] + [group.name for group in groups]


def _line_of(key: VerifierKey | WitnessKey) -> tuple[str, bytes]:
    return key.name, key.key_id


def _parse_threshold(word: str, count: int) -> int:
    if word in ("all", "any"):
        return count if word == "all" else 1
    return parse_decimal(word, "policy, group, threshold")


def _check_known(names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise BadInput(f"policy, name: expected one that is defined before this line, got {show(name)}")


def _check_once(what: str, values: Sequence[str] | Sequence[bytes]) -> None:
    if len(set(values)) != len(values):
        raise BadInput(f"policy, {what}: expected each once, got one twice")
