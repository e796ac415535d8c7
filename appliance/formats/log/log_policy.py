"""Trust policies (c2sp.org/tlog-policy): which logs are trusted, and how many of which witnesses must have cosigned.

People write these files, so a reader takes comments, white space and any order that the specification allows; one
spelling is written. Names are opaque bytes, kept as text with surrogate escapes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from appliance.errors import BadInput, Tampered
from appliance.formats.core.fields import parse_decimal, show
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint
from appliance.formats.log.cosignature import WitnessKey, parse_witness_vkey, verify_cosignature
from appliance.formats.log.note import VerifierKey, parse_note, parse_vkey

NONE = "none"
"""The quorum that no witness is needed for."""
_ALLOWED = re.compile(rb"[\t\n\x20-\x7e\x80-\xff]*")
_SPACE = re.compile("[ \t]+")
_WORD = re.compile(r"[^\x00-\x20\x7f]+")


@dataclass(frozen=True, slots=True)
class PolicyLog:
    vkey: str
    url: str | None = None


@dataclass(frozen=True, slots=True)
class PolicyWitness:
    """`name` has a meaning inside the policy only."""

    name: str
    vkey: str
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """It has cosigned when `threshold` of its members have: witnesses, or groups before it."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """`quorum` names a witness, a group, or `none`."""

    logs: tuple[PolicyLog, ...] = ()
    witnesses: tuple[PolicyWitness, ...] = ()
    groups: tuple[Group, ...] = ()
    quorum: str = NONE

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
class Witnessed:
    """A checkpoint that holds, and when each witness cosigned it: policy name to seconds since 1970."""

    checkpoint: Checkpoint
    times_s: Mapping[str, int]


def quorum_policy(log_vkeys: Sequence[str], witness_vkeys: Sequence[str], quorum: int) -> LogPolicy:
    """The policy that `quorum` of these witnesses suffice, each under its key's own name; 0 asks for none."""
    logs = tuple(PolicyLog(vkey) for vkey in log_vkeys)
    witnesses = tuple(PolicyWitness(parse_witness_vkey(vkey).name, vkey) for vkey in witness_vkeys)
    if not 0 <= quorum <= len(witnesses):
        raise BadInput(f"policy, quorum: expected 0 to the number of witnesses {len(witnesses)}, got {quorum}")
    if quorum == 0:
        return LogPolicy(logs, witnesses)
    group = Group("witnesses", quorum, tuple(witness.name for witness in witnesses))
    return LogPolicy(logs, witnesses, (group,), group.name)


def encode_log_policy(policy: LogPolicy) -> bytes:
    """Logs, witnesses, groups and the quorum, a line each; thresholds as numbers."""
    lines = [["log", log.vkey, log.url or ""] for log in policy.logs]
    lines += [["witness", witness.name, witness.vkey, witness.url or ""] for witness in policy.witnesses]
    lines += [["group", group.name, str(group.threshold), *group.members] for group in policy.groups]
    lines += [["quorum", policy.quorum]]
    text = "".join(" ".join(filter(None, words)) + "\n" for words in lines)
    return text.encode("utf-8", "surrogateescape")


def parse_log_policy(data: bytes) -> LogPolicy:
    """A name must be on a line before the one that refers to it. What `encode_log_policy` wrote is read back
    unchanged."""
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
    """What the lines so far define."""

    logs: list[PolicyLog]
    witnesses: list[PolicyWitness]
    groups: list[Group]
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
                self.groups.append(Group(name, _parse_threshold(threshold, len(members)), tuple(members)))
            case ["quorum", name]:
                _check_known([name], [*defined, NONE])
                self.quorums.append(name)
            case _:
                raise BadInput(f"policy, line: expected log, witness, group or quorum, got {show(' '.join(words))}")


def satisfies(policy: LogPolicy, cosigned: Collection[str]) -> bool:
    """Whether the cosignatures of the witnesses of these policy names, which were verified, make its quorum."""
    held = {NONE} | {witness.name for witness in policy.witnesses if witness.name in cosigned}
    for group in policy.groups:
        if sum(member in held for member in group.members) >= group.threshold:
            held.add(group.name)
    return policy.quorum in held


def open_witnessed(data: bytes, policy: LogPolicy) -> Witnessed:
    """The checkpoint, signed by a log of the policy and cosigned by its quorum.

    An invalid line by a known key makes the whole note invalid. Tampered names what is missing.
    """
    try:
        note = parse_note(data)
    except BadInput as error:
        raise Tampered(error.message) from None
    lines = {(line.name, line.key_id) for line in note.signatures}
    signed = [log.vkey for log in policy.logs if _line_of(parse_vkey(log.vkey)) in lines]
    if not signed:
        raise Tampered("log checkpoint: expected a signature by one of the policy's logs, got none")
    checkpoint, *_ = [open_checkpoint(data, vkey) for vkey in signed]
    cosigned = [witness for witness in policy.witnesses if _line_of(parse_witness_vkey(witness.vkey)) in lines]
    times_s = {witness.name: verify_cosignature(note, witness.vkey) for witness in cosigned}
    if not satisfies(policy, times_s):
        raise Tampered(f"log checkpoint, witnesses: expected the quorum {show(policy.quorum)}, got {show([*times_s])}")
    return Witnessed(checkpoint, times_s)


def _names(witnesses: Iterable[PolicyWitness], groups: Iterable[Group]) -> list[str]:
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
