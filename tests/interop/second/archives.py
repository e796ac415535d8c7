"""Archives of records for a second verifier: docs/formats/ledger.md, "Archives"."""

from __future__ import annotations

import re
from typing import Any

from tests.interop.second.formats import leaf, ms, need, sha
from tests.interop.second.releases import DAY
from tests.interop.second.rules import Row, covers
from tests.interop.second.serving import Log

OPENINGS = {
    "request.admitted": "requests", "samples.requested": "previews", "try.requested": "previews",
    "replay.requested": "replays",
}  # fmt: skip
ENDS = {
    "request.finished": "requests", "samples.shown": "previews", "try.finished": "previews",
    "replay.finished": "replays", "replay.failed": "replays",
}  # fmt: skip
WHOLE = dict.fromkeys(("order.refused", "auth.refused", "admission.refused", "request.refused"), "refusals")
CLASSES = OPENINGS | ENDS | WHOLE
NO_STATE = frozenset({"documents", "evaluate", "missing", "records", "times", "unchecked"})
"""The attributes of a replay that are of its reading of the export, and of no entry."""


def removed_leaf(line: bytes) -> bytes | None:
    """Return the leaf hash of a removed entry's line, or None for the bytes of an entry."""
    found = re.fullmatch(rb'\{"removed":"sha256:([0-9a-f]{64})"\}', line)
    return bytes.fromhex(found[1].decode()) if found else None


def leaf_of(line: bytes) -> bytes:
    return removed_leaf(line) or leaf(line)


class ArchivedLog(Log):
    """The state replay of a log from which archives removed entries."""

    def __init__(self, documents: dict[str, bytes]) -> None:
        super().__init__(documents)
        self.unlisted, self.missing = set[int](), set[int]()
        """Removed entries that no archive has listed yet, and those without their bytes."""
        self.times: list[str] = []
        """For each entry the time of the last one whose bytes there were."""
        self.records: dict[int, Row] = {}
        """The entries of the classes and of others, as far as an archive is compared with them."""
        self.archived_at, self.named = -1, set[str]()
        self.unchecked: list[str] = []
        """For each archive, what this verifier leaves out of the comparisons of the page."""

    def state(self) -> dict[str, Any]:
        """Return the state after the last entry, in values that can be compared with those of another replay."""
        return {name: comparable(value) for name, value in vars(self).items() if name not in NO_STATE}

    def skip(self, digest: bytes) -> None:
        """Go past a removed entry whose bytes are missing."""
        self.missing.add(self.size)
        self.tree.append(digest)
        self.prev, self.size = "sha256:" + digest.hex(), self.size + 1
        self.times.append(self.last)

    def add(self, raw: bytes) -> None:
        try:
            super().add(raw)
        finally:
            self.times.append(self.last)

    def _after(self, row: Row) -> None:
        super()._after(row)
        about = row.o.about if row.type == "order.refused" else []
        self.records[row.index] = Row(
            type=row.type, subject=next(iter(row.e["subjects"]), None),
            about={*row.e["subjects"], *about, f"principal:{row.actor}"},
        )  # fmt: skip

    def rule_archive_log(self, row: Row) -> None:
        p = row.p
        need(p["records"] == sorted(set(p["records"])), "archive: records are sorted, each once")
        quorum = max(self.p["witness_quorum"], 1)
        listed = [
            one for one in self.witnessed_at.values() if one.vkey in self.p["witnesses"] and one.size >= p["size"]
        ]
        need(len(listed) >= quorum, "archive: cosigned")
        reached = min(row.now, sorted((one.time for one in listed), reverse=True)[quorum - 1])
        days = {one["records"]: one["days"] for one in self.p["retention"]}
        for one in p["records"]:
            need(one in days and ms(p["last"]) + days[one] * DAY <= reached, "archive: the retention has ended")
        need(p["up_to"] <= p["size"] <= row.index, "archive: up_to and size")
        need(self.archived_at < p["size"], "archive: it has the entry of the last one")
        need(all(index < p["size"] for index in self.holds.values()), "archive: no later hold")
        document = row.docs["removed"]
        need(sha(document) == p["removed"], "archive: the list is the order's")
        need(document and document[-1] != 0, "archive: no zero byte at the end of the list")
        bits = bits_of(document)
        need(len(bits) == p["count"] and min(bits) > 0 and max(bits) < p["up_to"], "archive: the listed entries")

    def on_log_archived(self, row: Row) -> None:
        p, listed = row.p, bits_of(row.docs["removed"])
        last = self.times[p["up_to"] - 1]
        is_left = p["up_to"] - 1 in self.records
        need(p["last"] == last if is_left else p["last"] >= last, "archive: last")
        self.compare(p, listed)
        for commitment, bound in list(self.texts.items()):
            if bound[0].index in listed:
                need(commitment not in self.erased, "archive: no erased text")
                del self.texts[commitment]
        self.accepted = {one: index for one, index in self.accepted.items() if index not in listed}
        for counter in (self.answers, self.prompts):
            for key in [key for key in counter if key[-1] < row.now // DAY]:
                del counter[key]
        self.unlisted -= listed
        where = f"entry {row.index}"
        self.unchecked.append(
            f"{where}: the digest of the state after {p['up_to']} entries, which has the first verifier's rows"
        )
        if unread := listed & self.missing:
            self.unchecked.append(
                f"{where}: the classes and legal holds of {len(unread)} removed entries, and that the state is the "
                f"same without them, since the archive {p['archive']} was not given"
            )
        self.archived_at = row.index
        self.named.add(p["archive"])

    def compare(self, p: dict[str, Any], listed: set[int]) -> None:
        """Compare an archive with those listed entries whose bytes there are."""
        single: set[str | None] = set()
        for index in sorted(listed & set(self.records)):
            one = self.records[index]
            need(CLASSES.get(one.type) in p["records"], "archive: classes")
            need(not any(covers(held, about) for held in self.holds for about in one.about), "archive: no hold")
            if one.type not in WHOLE:
                single ^= {one.subject}
        need(listed & self.missing or not single, "archive: whole records")


def comparable(value: Any) -> Any:
    """Return the value without identities and without the order of sets and insertions."""
    if isinstance(value, dict):
        return sorted((repr(key), comparable(one)) for key, one in value.items())
    if isinstance(value, list | tuple):
        return [comparable(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return comparable(vars(value)) if hasattr(value, "__dict__") else repr(value)


def bits_of(document: bytes) -> set[int]:
    bits = int.from_bytes(document, "little")
    return {index for index in range(bits.bit_length()) if bits >> index & 1}
