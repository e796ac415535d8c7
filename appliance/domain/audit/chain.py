"""The hash chain and Merkle tree of a whole log, which show that entries were not changed, removed, moved or added."""

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
from appliance.formats.log.note import Note, NoteSignature, name_key, parse_note, verify_note


class Chain:
    """The chain and tree of the entries so far. `close` compares them with the signed checkpoint."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.tree = Tree()
        self.index = -1
        """Index of the last entry, as the entry itself has it."""
        self.head = NO_DIGEST
        self.checkpoint: Checkpoint | None = None
        """The checkpoint, once its signature has been verified."""
        self._note: bytes | None = None
        self._claimed: Checkpoint | None = None
        self._signed_root: bytes | None = None
        self._broken: tuple[int, str] | None = None
        """The last break of the chain: the entry that it names, and the rule."""

    def expect(self, note: bytes) -> None:
        """Set the checkpoint to compare with.

        `close` verifies its signature, since the log may rotate its key in between.
        """
        self._note = note
        try:
            self._claimed = parse_checkpoint(parse_note(note).text)
        except ApplianceError:
            return  # malformed: `close` reports that
        self._keep_root()

    def _grow(self, leaf: bytes) -> None:
        self.tree.add(leaf)
        self._keep_root()

    def _keep_root(self) -> None:
        if self._claimed is not None and self.tree.size == self._claimed.size:
            self._signed_root = self.tree.root()

    def take(self, entry: Entry) -> bool:
        """Add an entry; return True if its index is the next one and its `prev` is the hash of the last entry."""
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
        """Add bytes that are not an entry to the tree and the chain; return their index."""
        self._grow(leaf)
        self.index, self.head = self.index + 1, f"sha256:{leaf.hex()}"
        return self.index

    def _break(self, index: int, rule: str, message: str) -> None:
        self._broken = (index, rule)
        self._findings.add(index, rule, message)

    def close(self, log_keys: Sequence[str]) -> None:
        """Compare the number of entries and the root with the checkpoint, which the last log key must have signed.

        `log_keys` are all keys that were valid at the end, the current one last. Each must have signed once, and no
        other key in the log's name.
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
        mismatch = f"expected {checkpoint.size} entries, as the checkpoint says, got {size}"
        if size < checkpoint.size:
            self._findings.add(None, "size", f"size: {mismatch}: the log is cut short")
            return
        if size > checkpoint.size:
            self._findings.add(checkpoint.size, "size", f"entry {checkpoint.size} and what follows: {mismatch}")
        root = self._signed_root if checkpoint.size else EMPTY_ROOT
        if root != checkpoint.root:
            self._add_root(checkpoint, root)

    def _check_lines(self, note: Note, origin: str, log_keys: Sequence[str]) -> None:
        """Check all signature lines in the log's name, since another reader may verify another line.

        Lines in other names are ignored.
        """
        own = [line for line in note.signatures if line.name == origin]
        are_valid = [_verifies(note, line, vkey) for line, vkey in zip(own, log_keys, strict=False)]
        if len(own) != len(log_keys) or not all(are_valid):
            names = ", ".join(map(name_key, log_keys))
            mismatch = f"expected a line of each of {names}, in this order, got {len(own)}, or others"
            self._findings.add(None, "checkpoint", f"note, signatures of {show(origin)}: {mismatch}")

    def _add_root(self, checkpoint: Checkpoint, root: bytes | None) -> None:
        """Add the finding of a different root, with the entry that it concerns.

        If every link holds, the last entry is the changed one, since a correct last entry confirms all entries before
        it. If only the last link is broken, either of the two entries that it joins may be the changed one.
        """
        got = "none" if root is None else root.hex()
        mismatch = f"expected the signed root {checkpoint.root.hex()} at size {checkpoint.size}, got {got}"
        last = checkpoint.size - 1
        if self._broken is None:
            self._findings.add(last, "root", f"entry {last}: {mismatch}")
        elif self._broken == (last - 1, "chain"):
            self._findings.add(last, "root", f"entry {last} or the one before: {mismatch}")
        else:
            self._findings.add(None, "root", f"root: {mismatch}")


def _verifies(note: Note, line: NoteSignature, vkey: str) -> bool:
    try:
        verify_note(replace(note, signatures=(line,)), vkey)
    except ApplianceError:
        return False
    return True
