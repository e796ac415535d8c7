"""The chain and the tree of a whole log: that nothing was changed, dropped, moved, put in or cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from appliance.domain.audit.report import Findings
from appliance.domain.core.entry import Entry
from appliance.domain.core.names import NO_DIGEST
from appliance.errors import ApplianceError
from appliance.formats.core.fields import show
from appliance.formats.core.merkle import EMPTY_ROOT, Tree
from appliance.formats.log.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from appliance.formats.log.note import Note, NoteSignature, parse_note, verify_note


class Chain:
    """Takes entries in order; `close` compares what was taken with the signed checkpoint."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.tree = Tree()
        self.index = -1
        """Of the entry taken last, as it says of itself."""
        self.head = NO_DIGEST
        self.checkpoint: Checkpoint | None = None
        """Once its signature has been checked."""
        self._note: bytes | None = None
        self._claimed: Checkpoint | None = None
        self._signed_root: bytes | None = None
        self._broken: tuple[int, str] | None = None
        """The last break: which entry it names, and why."""

    def expect(self, note: bytes) -> None:
        """The checkpoint to compare with, whose signature is judged at the end: its key may have changed on the way."""
        self._note = note
        try:
            self._claimed = parse_checkpoint(parse_note(note).text)
        except ApplianceError:
            return  # no checkpoint: opening it reports that
        self._keep_root()

    def _grow(self, leaf: bytes) -> None:
        self.tree.add(leaf)
        self._keep_root()

    def _keep_root(self) -> None:
        if self._claimed is not None and self.tree.size == self._claimed.size:
            self._signed_root = self.tree.root()

    def take(self, entry: Entry) -> bool:
        """Whether the entry is the one after the last: its index is the next, and it names the last one's hash."""
        self._grow(entry.leaf)
        expected, index, head = self.index + 1, self.index, self.head
        self.index, self.head = entry.index, entry.link
        if entry.index != expected:
            self._break(expected, "sequence", f"entry {expected}: expected it after entry {index}, got {entry.index}")
            return False
        if entry.prev == head:
            return True
        if index < 0:
            self._break(0, "chain", f"entry 0, prev: expected {head}, got {entry.prev}")
        else:
            message = f"entry {index}: expected the hash {entry.prev}, which entry {entry.index} names, got {head}"
            self._break(index, "chain", message)
        return False

    def pass_over(self, leaf: bytes) -> int:
        """Bytes that are no entry take the next place in tree and chain; the place."""
        self._grow(leaf)
        self.index, self.head = self.index + 1, f"sha256:{leaf.hex()}"
        return self.index

    def _break(self, index: int, rule: str, message: str) -> None:
        self._broken = (index, rule)
        self._findings.add(index, rule, message)

    def close(self, log_keys: Sequence[str]) -> None:
        """As many entries as the log signed for, under the root that it signed with the key in force at the end.

        `log_keys`: all that were in force then, that one last. Each signed once, and no other under the log's name.
        """
        if self._note is None or not log_keys:
            return
        try:
            self.checkpoint = open_checkpoint(self._note, log_keys[-1])
        except ApplianceError as error:
            self._findings.add(None, "checkpoint", error.message)
            return
        self._check_lines(parse_note(self._note), self.checkpoint.origin, log_keys)
        checkpoint, size = self.checkpoint, self.tree.size
        said = f"expected {checkpoint.size} entries, as the checkpoint says, got {size}"
        if size < checkpoint.size:
            self._findings.add(None, "size", f"size: {said}: the log is cut short")
            return
        if size > checkpoint.size:
            self._findings.add(checkpoint.size, "size", f"entry {checkpoint.size} and what follows: {said}")
        root = self._signed_root if checkpoint.size else EMPTY_ROOT
        if root != checkpoint.root:
            self._add_root(checkpoint, root)

    def _check_lines(self, note: Note, origin: str, log_keys: Sequence[str]) -> None:
        """Another reader may look at another line than the one that was opened. Other names are not judged."""
        own = [line for line in note.signatures if line.name == origin]
        held = [_holds(note, line, vkey) for line, vkey in zip(own, log_keys, strict=False)]
        if len(own) != len(log_keys) or not all(held):
            said = f"expected a line of each of {', '.join(log_keys)}, in this order, got {len(own)}, or others"
            self._findings.add(None, "checkpoint", f"note, signatures of {show(origin)}: {said}")

    def _add_root(self, checkpoint: Checkpoint, root: bytes | None) -> None:
        """Where every link holds, a true last entry would make all before it true: so the last one is not.

        Where the last link alone is broken, either of the two entries that it joins may be the one that was changed.
        """
        got = "none" if root is None else root.hex()
        said = f"expected the signed root {checkpoint.root.hex()} at size {checkpoint.size}, got {got}"
        last = checkpoint.size - 1
        if self._broken is None:
            self._findings.add(last, "root", f"entry {last}: {said}")
        elif self._broken == (last - 1, "chain"):
            self._findings.add(last, "root", f"entry {last} or the one before: {said}")
        else:
            self._findings.add(None, "root", f"root: {said}")


def _holds(note: Note, line: NoteSignature, vkey: str) -> bool:
    try:
        verify_note(replace(note, signatures=(line,)), vkey)
    except ApplianceError:
        return False
    return True
