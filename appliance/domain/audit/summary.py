"""A report for a person who reads it: findings of one kind together, and those that follow from a first break apart.

What is folded away here stays in the report, finding by finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from appliance.domain.audit.report import UNBOUND, Finding
from appliance.domain.core.names import Value

MAX_LINES = 20
_MAX_CHARACTERS = 400
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")

_UNBOUND, _MISSING, _EXPORT = "unbound-text", "missing-text", "export"
_SENTENCES = {
    "encoding": ("an entry cannot be read", "entries cannot be read"),
    "sequence": ("entries are missing, or are not in order", "times entries are missing, or are not in order"),
    "chain": (
        "an entry was changed, removed or added: its hash is not the one that the next entry names",
        "entries were changed, removed or added: their hashes are not those that the next entries name",
    ),
    "root": ("these are not the entries that the log signed", "signed roots do not hold"),
    "size": ("the number of entries is not the one that the log signed", "sizes are not those that the log signed"),
    "checkpoint": ("the log's signature does not hold", "of the log's signatures do not hold"),
    "trust": (
        "this is not the log that the trust file names",
        "differences from the trust file: this is not the log that it names",
    ),
    "witness": ("a witness saw another log", "times a witness saw another log"),
    "site-policy": ("the site's policies do not allow an entry", "entries are not allowed by the site's policies"),
    "disclosure": ("a text was changed: it does not fit its commitment", "texts were changed: they do not fit"),
    _UNBOUND: ("a text has no entry that binds it", "texts have no entry that binds them"),
    _MISSING: ("a text is missing that no entry erased", "texts are missing that no entry erased"),
    "erasure": ("a text is here that an entry erased", "texts are here that an entry erased"),
    _EXPORT: ("the parts of the export do not fit together", "parts of the export do not fit together"),
    "time": ("an entry is dated before an earlier one", "entries are dated before earlier ones"),
}
_REFUSED = ("the rules refuse an entry", "entries are refused by the rules")
_BREAKS = frozenset({"encoding", "sequence", "chain"})
_OWN = frozenset({"size", "checkpoint", "trust", "disclosure", _MISSING, "erasure"})
"""Kinds that follow from no other entry's break."""


class Group(Value):
    """Findings of one kind, in words, with the first of them. `follows`: they may follow from the first break alone."""

    kind: str
    count: int
    sentence: str
    first: str
    index: int | None
    follows: bool


def group_findings(findings: Sequence[Finding]) -> tuple[Group, ...]:
    """Those that follow from the first break last."""
    first = first_break(findings)
    found: dict[tuple[bool, str], list[Finding]] = {}
    for finding in findings:
        kind = _kind(finding)
        found.setdefault((_follows(finding, kind, first), kind), []).append(finding)
    return tuple(_group(kind, follows, found[follows, kind]) for follows, kind in sorted(found, key=lambda key: key[0]))


def first_break(findings: Sequence[Finding]) -> int | None:
    """The first entry that was changed, is not in its place, or that the rules refuse: what comes after it is judged
    without it."""
    places = [f.index for f in findings if f.index is not None and _kind(f) in (*_BREAKS, "refused", "time")]
    return min(places, default=None)


def tell_verdict(verdict: str, findings: Sequence[Finding]) -> str:
    first = first_break(findings)
    if verdict == "failed" and first is not None:
        return f"failed: entry {first} is the first that does not hold"
    if verdict == "unverifiable":
        return "unverifiable: no fault was found, but not everything could be checked"
    return verdict


def tell_findings(findings: Sequence[Finding], omitted: int, most: int | None) -> Iterator[tuple[str, str]]:
    """(label, sentence): a line for each group, at most `most`; or, without that, a line for each finding."""
    if most is None:
        yield from (("finding", f"[{finding.rule}] {finding.message}") for finding in findings)
    else:
        yield from _tell_groups(group_findings(findings), first_break(findings), most - bool(omitted))
    if omitted:
        yield "finding", f"{omitted} more, which were counted only"


def _tell_groups(groups: Sequence[Group], first: int | None, most: int) -> Iterator[tuple[str, str]]:
    own = [group for group in groups if not group.follows]
    following = [group for group in groups if group.follows]
    room = most - bool(following)
    kept = own if len(own) <= room else own[: max(room - 1, 1)]
    yield from (("finding", _sentence(group)) for group in kept)
    if len(kept) < len(own):
        yield "finding", f"{len(own) - len(kept)} more kinds of findings: --all prints them"
    if following:
        yield "follows", _tell_following(following, first)


def _tell_following(groups: Sequence[Group], first: int | None) -> str:
    count = sum(group.count for group in groups)
    parts = "; ".join(f"{group.count} {group.sentence}" if group.count > 1 else group.sentence for group in groups)
    return f"{count} more may follow from entry {first} alone ({parts}): --all prints them"


def _sentence(group: Group) -> str:
    text = group.first if len(group.first) <= _MAX_CHARACTERS else f"{group.first[:_MAX_CHARACTERS]}…"
    short = _DIGEST.sub(r"\1…", text)
    return f"{group.sentence}: {short}" if group.count == 1 else f"{group.count} {group.sentence}: first {short}"


def _group(kind: str, follows: bool, found: Sequence[Finding]) -> Group:
    one, many = _SENTENCES.get(kind, _REFUSED)
    first = found[0]
    return Group(
        kind=kind,
        count=len(found),
        sentence=one if len(found) == 1 else many,
        first=first.message,
        index=first.index,
        follows=follows,
    )


def _kind(finding: Finding) -> str:
    """The rule, but for texts, which can fail in three ways, and for refusals, which the rules' codes tell apart."""
    if finding.rule == "disclosure" and finding.index is not None:
        return _MISSING
    if finding.rule == "disclosure" and finding.message.endswith(UNBOUND):
        return _UNBOUND
    return finding.rule if finding.rule in _SENTENCES else "refused"


def _follows(finding: Finding, kind: str, first: int | None) -> bool:
    if first is None or finding.index == first or kind in _OWN or kind in _BREAKS:
        return False
    if finding.index is None:
        return kind in (_UNBOUND, "root") or (kind == _EXPORT and not finding.message.startswith("export.json"))
    return finding.index > first
