"""Summaries of a report for people.

Findings of one kind are grouped, and those that may follow from the first break are separate. The report itself keeps
every finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from appliance.domain.audit.report import AuditFinding
from appliance.domain.core.names import Value

MAX_LINES = 20
"""Largest number of lines of a summary."""
_MAX_CHARACTERS = 400
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")

_SENTENCES = {
    "encoding": ("an entry cannot be read", "entries cannot be read"),
    "sequence": ("entries are missing, or are not in order", "times entries are missing, or are not in order"),
    "chain": (
        "an entry was changed, removed or added: its hash is not the one that the next entry names",
        "entries were changed, removed or added: their hashes are not those that the next entries name",
    ),
    "removed": (
        "the bytes of an entry are missing, and no archive of two administrators names it",
        "entries have no bytes, and no archive of two administrators names them",
    ),
    "archive": ("an archive is not what two administrators signed", "differences from what administrators signed"),
    "root": ("these are not the entries that the log signed", "signed roots do not hold"),
    "size": ("the number of entries is not the one that the log signed", "sizes are not those that the log signed"),
    "checkpoint": ("the log's signature does not hold", "of the log's signatures do not hold"),
    "trust": (
        "this is not the log that the trust file names",
        "differences from the trust file: this is not the log that it names",
    ),
    "witness": ("a witness saw another log", "times a witness saw another log"),
    "cedar-policy": ("the site's policies do not allow an entry", "entries are not allowed by the site's policies"),
    "disclosure": ("a text was changed: it does not fit its commitment", "texts were changed: they do not fit"),
    "unbound-text": ("a text has no entry that binds it", "texts have no entry that binds them"),
    "missing-text": ("a text is missing that no entry erased", "texts are missing that no entry erased"),
    "erasure": ("a text is here that an entry erased", "texts are here that an entry erased"),
    "export": ("the parts of the export do not fit together", "parts of the export do not fit together"),
    "document-invalid": (
        "a document is missing, or it was changed: it does not fit the digest in its entry",
        "documents are missing, or were changed: they do not fit the digests in their entries",
    ),
    "evaluation": ("a sealed folder does not fit the log", "sealed folders do not fit the log"),
    "export-order": ("a line of the export is out of order", "lines of the export are out of order"),
    "entry-out-of-order": ("an entry is dated before an earlier one", "entries are dated before earlier ones"),
}
_REFUSED = ("the rules refuse an entry", "entries are refused by the rules")
_BREAKS = frozenset({"encoding", "sequence", "chain", "removed"})
_OWN = frozenset({"size", "checkpoint", "trust", "disclosure", "missing-text", "erasure", "export", "archive"})
"""Kinds that never follow from the break of another entry."""


class FindingGroup(Value):
    """Findings of one kind, in words, with the first of them.

    `follows` is True if they may follow from the first break alone.
    """

    kind: str
    count: int
    sentence: str
    first: str
    index: int | None
    follows: bool


def group_findings(findings: Sequence[AuditFinding]) -> tuple[FindingGroup, ...]:
    """Return the findings by kind, those that may follow from the first break last."""
    first = first_break(findings)
    found: dict[tuple[bool, str], list[AuditFinding]] = {}
    for finding in findings:
        kind = _kind_of(finding)
        found.setdefault((_is_consequence(finding, kind, first), kind), []).append(finding)
    return tuple(_group(kind, follows, found[follows, kind]) for follows, kind in sorted(found, key=lambda key: key[0]))


def first_break(findings: Sequence[AuditFinding]) -> int | None:
    """Return the first entry that was changed, is out of order or is refused by the rules, or None.

    An entry whose document was changed is one, too. Later entries are evaluated without it.
    """
    kinds = (*_BREAKS, "refused", "entry-out-of-order", "document-invalid")
    return min((f.index for f in findings if f.index is not None and _kind_of(f) in kinds), default=None)


def describe_verdict(verdict: str, findings: Sequence[AuditFinding]) -> str:
    """Return the verdict as a sentence."""
    first = first_break(findings)
    if verdict == "failed" and first is not None:
        return f"failed: entry {first} is the first that does not hold"
    if verdict == "unverifiable":
        return "unverifiable: no fault was found, but not everything could be checked"
    return verdict


def describe_findings(findings: Sequence[AuditFinding], omitted: int, most: int | None) -> Iterator[tuple[str, str]]:
    """Yield (label, sentence): one line for each group, at most `most`, or one for each finding if `most` is None."""
    if most is None:
        yield from (("finding", f"[{finding.rule}] {finding.message}") for finding in findings)
    else:
        yield from _describe_groups(group_findings(findings), first_break(findings), most - bool(omitted))
    if omitted:
        yield "finding", f"{omitted} more, which were counted only"


def _describe_groups(groups: Sequence[FindingGroup], first: int | None, most: int) -> Iterator[tuple[str, str]]:
    own = [group for group in groups if not group.follows]
    following = [group for group in groups if group.follows]
    room = most - bool(following)
    shown = own if len(own) <= room else own[: max(room - 1, 1)]
    yield from (("finding", _sentence(group)) for group in shown)
    if len(shown) < len(own):
        yield "finding", f"{len(own) - len(shown)} more kinds of findings: --all prints them"
    if following:
        yield "follows", _describe_following(following, first)


def _describe_following(groups: Sequence[FindingGroup], first: int | None) -> str:
    count = sum(group.count for group in groups)
    parts = "; ".join(f"{group.count} {group.sentence}" if group.count > 1 else group.sentence for group in groups)
    return f"{count} more may follow from entry {first} alone ({parts}): --all prints them"


def _sentence(group: FindingGroup) -> str:
    text = group.first if len(group.first) <= _MAX_CHARACTERS else f"{group.first[:_MAX_CHARACTERS]}…"
    short = _DIGEST.sub(r"\1…", text)
    return f"{group.sentence}: {short}" if group.count == 1 else f"{group.count} {group.sentence}: first {short}"


def _group(kind: str, follows: bool, found: Sequence[AuditFinding]) -> FindingGroup:
    one, many = _SENTENCES.get(kind, _REFUSED)
    first = found[0]
    return FindingGroup(
        kind=kind,
        count=len(found),
        sentence=one if len(found) == 1 else many,
        first=first.message,
        index=first.index,
        follows=follows,
    )


def _kind_of(finding: AuditFinding) -> str:
    """Return the kind of a finding, which is its rule. Refusals are one kind, whatever their code."""
    return finding.rule if finding.rule in _SENTENCES else "refused"


def _is_consequence(finding: AuditFinding, kind: str, first: int | None) -> bool:
    if first is None or finding.index == first or kind in _OWN or kind in _BREAKS:
        return False
    if finding.index is None:
        return kind in ("unbound-text", "root", "export-order")
    return finding.index > first
