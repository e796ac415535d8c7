"""A second verifier of an export, written from docs/formats alone: `second_verifier.py EXPORT --trust FILE`.

It shares no line with the appliance: the standard library, `cryptography` and the tables of the pages.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.interop.second.archives import ArchivedLog, leaf_of, removed_leaf
from tests.interop.second.formats import (
    Broken,
    Envelope,
    Note,
    Vkey,
    canonical,
    commitment,
    leaf,
    need,
    parse,
    sha,
    unbase64,
)
from tests.interop.second.orders import NOT_COVERED
from tests.interop.second.verdicts import evaluate_sealed

MEMBERS = ["export.json", "checkpoint", "entries.jsonl", "documents.jsonl", "disclosures.jsonl"]


def read_tar(data: bytes) -> dict[str, bytes]:
    """Return the files of an export, whose headers must be byte for byte as the page says."""
    found: dict[str, bytes] = {}
    at = 0
    for name in MEMBERS:
        header = data[at : at + 512]
        need(len(header) == 512, "export: cut off")
        size = int(header[124:135], 8) if header[124] != 0x80 else int.from_bytes(header[125:136], "big")
        expected = bytearray(512)
        expected[: len(name)] = name.encode()
        expected[100:124] = b"0000444\0" + b"0000000\0" * 2
        expected[124:136] = b"%011o\0" % size if size < 8 << 30 else b"\x80" + size.to_bytes(11, "big")
        expected[136:148], expected[148:156], expected[156] = b"00000000000\0", b" " * 8, ord("0")
        expected[257:265] = b"ustar\x0000" if size < 8 << 30 else b"ustar  \0"
        expected[148:156] = b"%06o\0 " % sum(expected)
        need(header == expected, f"export: the header of {name}")
        found[name] = data[at + 512 : at + 512 + size]
        need(len(found[name]) == size, "export: cut off")
        padded = -(-size // 512) * 512
        need(not data[at + 512 + size : at + 512 + padded].strip(b"\0"), "export: padding")
        at += 512 + padded
    need(data[at:] == b"\0" * 1024, "export: two zero blocks and nothing more")
    return found


def lines(data: bytes) -> list[bytes]:
    need(not data or data.endswith(b"\n"), "export: each line ends")
    return data.split(b"\n")[:-1]


def verify_export(
    data: bytes,
    trust: bytes,
    items: dict[str, bytes] | None = None,
    archives: Sequence[bytes] = (),
    unchecked: list[str] | None = None,
) -> list[str]:
    """Return the findings in the order of the log, without Cedar policies; none if it is verified.

    `unchecked` gets what was not checked of this log's archives.
    """
    try:
        members = read_tar(data)
        given = {sha(archive): read_tar(archive) for archive in archives}
    except (Broken, ValueError) as broken:
        return [f"export: {broken}"]
    return verify_members(members, trust, items, given, unchecked)


def verify_members(
    members: dict[str, bytes],
    trust: bytes,
    items: dict[str, bytes] | None = None,
    archives: Mapping[str, dict[str, bytes]] = MappingProxyType({}),
    unchecked: list[str] | None = None,
) -> list[str]:
    """Return the findings. `archives` are the files of each given archive, by its digest."""
    findings: list[str] = []

    def check(where: str, rule: Any, *given: Any) -> Any:
        try:
            return rule(*given)
        except Broken as broken:
            findings.append(f"{where}: {broken}")
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            findings.append(f"{where}: malformed ({type(error).__name__}: {error})")
        return None

    def read_documents(data: bytes) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for line in lines(data):
            one = check("documents", parse, line) or {"bytes": "", "digest": ""}
            found[one["digest"]] = unbase64(one["bytes"])
            check(
                "documents",
                need,
                set(one) == {"bytes", "digest"} and sha(found[one["digest"]]) == one["digest"],
                "digest",
            )
        return found

    entries = lines(members["entries.jsonl"])
    documents = read_documents(members["documents.jsonl"])
    at_hand, every = dict[bytes, bytes](), dict(documents)
    for archive in archives.values():
        theirs = [(leaf_of(line), line) for line in lines(archive["entries.jsonl"])]
        same = [digest for digest, _ in theirs] == [leaf_of(line) for line in entries[: len(theirs)]]
        check("archives", need, same, "the log's entries")
        at_hand |= {digest: line for digest, line in theirs if removed_leaf(line) is None}
        every |= read_documents(archive["documents.jsonl"])

    def replay(known: Mapping[bytes, bytes]) -> ArchivedLog:
        log = ArchivedLog(every)
        log.evaluate = lambda log, row, run, files: evaluate_sealed(log, row, run, files, items or {})
        for number, line in enumerate(entries):
            removed = removed_leaf(line)
            whole = line if removed is None else known.get(removed)
            log.unlisted |= set() if removed is None else {number}
            check(f"entry {number}", *((log.skip, removed) if whole is None else (log.add, whole)))
        return log

    log = replay(at_hand)
    if unchecked is not None:
        unchecked += log.unchecked
    if at_hand and not findings:
        check("archives", need, replay({}).state() == log.state(), "the state is the same without the removed entries")
    check("archives", need, not log.unlisted, "a valid archive lists each removed entry")
    check("archives", need, set(archives) <= log.named, "an entry names each given archive")
    check("trust", check_trust, trust, entries)
    check("checkpoint", check_checkpoint, log, members, len(entries))
    left = [line for line in entries if removed_leaf(line) is None]
    check("documents", check_documents, left, members, documents)
    check("disclosures", check_disclosures, log, left, members, documents, not findings)
    return findings


def check_trust(trust: bytes, entries: list[bytes]) -> None:
    value = parse(trust.removesuffix(b"\n"))
    members = {"administrators", "genesis", "logKey", "origin", "version"}
    need(trust.endswith(b"\n") and set(value) - {"postQuantumLogKey"} == members, "members")
    body = parse(entries[0])["body"]
    need(value["version"] == 1 and value["genesis"] == "sha256:" + leaf(entries[0]).hex(), "genesis")
    need((value["origin"], value["logKey"]) == (body["origin"], body["log_key"]), "origin and key")
    need(value.get("postQuantumLogKey") == (body["post_quantum"] or {}).get("log_key"), "post-quantum key")
    people = [{"keyid": one["keyid"], "name": one["name"]} for one in body["administrators"]]
    need(value["administrators"] == people and Vkey(value["logKey"]).name == value["origin"], "administrators")


def check_checkpoint(log: ArchivedLog, members: dict[str, bytes], size: int) -> None:
    stated = canonical({"origin": log.origin, "size": size, "version": 1})
    need(members["export.json"] == stated, "export.json")
    note = Note(members["checkpoint"])
    need(note.checkpoint() == (log.origin, size, log.tree.root()), "origin, size and root")
    keys = [one.vkey for one in log.log_keys if one.until is None or one.until > log.now]
    keys.sort(key=lambda one: one.type != 0xFF)
    signed = [(name, keyid) for name, keyid, _ in note.lines if name == log.origin]
    need(signed == [(key.name, key.keyid) for key in keys], "a line of each key of the log that is valid")
    note.times(*keys)


def check_documents(entries: list[bytes], members: dict[str, bytes], documents: dict[str, bytes]) -> None:
    bound = dict.fromkeys(digest for entry in entries for digest in parse(entry)["documents"].values())
    told = [parse(line)["digest"] for line in lines(members["documents.jsonl"])]
    need(
        told == [digest for digest in bound if digest in documents] and len(told) == len(documents),
        "order of first use",
    )


def check_disclosures(
    log: ArchivedLog, entries: list[bytes], members: dict[str, bytes], documents: dict[str, bytes], whole: bool
) -> None:
    """`whole`: no entry broke a rule; the texts of one that did are not counted as bound."""
    found = [parse(line) for line in lines(members["disclosures.jsonl"])]
    for one in found:
        need(set(one) == {"commitment", "salt", "text"} and len(unbase64(one["salt"])) == 32, "members")
        need(commitment(unbase64(one["salt"]), one["text"]) == one["commitment"], "opens its commitment")
    used = uses(entries, documents)
    told = [one["commitment"] for one in found]
    need(told == [one for one in used if one in set(told)] and len(set(told)) == len(told), "order of first use")
    need(not whole or set(told) <= set(log.texts), "bound by an entry")
    need(not set(told) & log.erased, "an erased text is gone")
    need(set(log.texts) - log.erased <= set(told), "a text that is not erased has a disclosure")


def uses(entries: list[bytes], documents: dict[str, bytes]) -> dict[str, None]:
    """Return the commitments in the order of first use."""
    used: dict[str, None] = {}
    seen: set[str] = set()
    for entry in entries:
        parts = [entry]
        for digest in parse(entry)["documents"].values():
            if digest in documents and digest not in seen:
                seen.add(digest)
                parts.append(documents[digest])
                parts += payloads(documents[digest])
        for part in parts:
            used.update(dict.fromkeys(one.decode() for one in re.findall(rb"hmac-sha256:[0-9a-f]{64}", part)))
    return used


def payloads(document: bytes) -> list[bytes]:
    try:
        return [Envelope(document).payload]
    except (Broken, KeyError, ValueError, TypeError, AttributeError):
        return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("--trust", type=Path, required=True)
    parser.add_argument("--folder", type=Path, action="append", default=[])
    parser.add_argument("--archive", type=Path, action="append", default=[])
    told = parser.parse_args()
    files = [path.read_bytes() for folder in told.folder for path in folder.glob("items*.jsonl")]
    archives = [path.read_bytes() for path in told.archive]
    unchecked: list[str] = []
    findings = verify_export(
        told.export.read_bytes(), told.trust.read_bytes(), {sha(one): one for one in files}, archives, unchecked
    )
    for one in unchecked:
        print(f"not checked: {one}")
    left_out = [*NOT_COVERED, "what is not checked"] if unchecked else NOT_COVERED
    print("\n".join(findings) or f"verified, without: {', '.join(left_out)}")
    return 6 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
