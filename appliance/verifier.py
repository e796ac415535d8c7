"""appliance-verify: the auditor's program. It reads an export and a trust file, and nothing else.

    appliance-verify ledger.tar --trust trust.json
    appliance-verify ledger.tar --trust trust.json --could-load legal --at 2026-11-24T15:00:00.000Z
    appliance-verify --record answer.json --trust trust.json --answer answer.txt

Exit codes: 0 verified, 6 failed, 7 unverifiable (no trust file, no entries), 2 what was given is no export, no record,
no trust file or no readable file. It needs Python, `cryptography` and `pydantic`: no database, no network, no GPU, no
Cedar.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from appliance import __version__
from appliance.domain.audit.report import Finding, Report, with_findings
from appliance.domain.audit.verify import verify_log
from appliance.domain.queries.could_load import CouldLoad, could_load_then
from appliance.domain.queries.response import MAX_BYTES, Answered, parse_record, verify_answer, verify_record
from appliance.errors import ApplianceError, BadInput, Tampered, Unavailable
from appliance.formats.core.merkle import Tree, hash_leaf
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.log.export import Export
from appliance.formats.log.log_policy import quorum_policy
from appliance.formats.log.trust import Trust, parse_trust

EXITS = {"verified": 0, "failed": Tampered.exit_code, "unverifiable": Unavailable.exit_code}
_MAX_TRUST_BYTES = 65_536


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    parser = _parser()
    given = parser.parse_args(arguments)
    if (given.export is None) == (given.record is None):
        parser.error("expected EXPORT or --record FILE, got both or neither")
    if given.record is not None:
        sys.exit(_check_record(given))
    try:
        trust = None if given.trust is None else load_trust(given.trust)
        now = encode_time(datetime.now(UTC))
        wanted = None if given.could_load is None else (given.could_load, _moment(given.at))
        report = verify_export(given.export, trust, now)
        # What a log that does not hold says of anybody is no answer.
        answer = ask_export(given.export, *wanted, now, report) if wanted and report.verdict == "verified" else None
    except ApplianceError as error:
        print(f"appliance-verify: {error.message}", file=sys.stderr)
        sys.exit(BadInput.exit_code)
    if given.json:
        value = report.model_dump(mode="json")
        print(
            json.dumps(value if answer is None else {**value, "could_load": answer.model_dump(mode="json")}, indent=2)
        )
    else:
        print("\n".join([*_lines(report), *([] if answer is None else _answer_lines(answer))]))
    sys.exit(EXITS[report.verdict])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="appliance-verify",
        description="Verify an exported ledger: chain, tree, checkpoint, signatures, documents, invariants, texts.",
        epilog="example: appliance-verify ledger.tar --trust trust.json    "
        "exit codes: 0 verified, 6 failed, 7 unverifiable, 2 bad input",
    )
    parser.add_argument("export", metavar="EXPORT", nargs="?", type=Path, help="what `appliance ledger export` wrote")
    parser.add_argument("--record", metavar="FILE", type=Path, help="in its place: an answer's response record")
    parser.add_argument("--answer", metavar="FILE", type=Path, help="the text that the record's request was answered")
    parser.add_argument(
        "--log-key", metavar="VKEY", help="the log's key of today, where it was rotated since the trust file was made"
    )
    parser.add_argument(
        "--trust", metavar="FILE", type=Path, help="the trust file that `appliance init` printed and you kept"
    )
    parser.add_argument(
        "--could-load", metavar="UNIT", help="say what this unit could have loaded, if the log is verified"
    )
    parser.add_argument(
        "--at", metavar="MOMENT", help="at this time (2026-11-24T15:00:00.000Z) or after this entry; now"
    )
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def load_trust(path: Path) -> Trust:
    """BadInput when the file is not there, or no trust file."""
    return parse_trust(_read(path, "trust file", _MAX_TRUST_BYTES))


def _check_record(given: argparse.Namespace) -> int:
    """Says what the record proves; its exit code."""
    try:
        if given.trust is None:
            raise Unavailable("response record: expected --trust FILE, under which it can be checked, got none")
        log_key = given.log_key or load_trust(given.trust).log_key
        record = parse_record(_read(given.record, "response record", MAX_BYTES))
        answered = verify_record(record, quorum_policy([log_key], [], 0))
        if given.answer is not None:
            verify_answer(answered, _read(given.answer, "answer", MAX_BYTES).decode("utf-8", "surrogateescape"))
    except ApplianceError as error:
        print(f"appliance-verify: {error.message}", file=sys.stderr)
        return error.exit_code
    facts = _record_facts(answered, checked=given.answer is not None or record.text is not None)
    if given.json:
        print(json.dumps({**answered.entry.model_dump(mode="json"), "log_size": answered.size, **facts}, indent=2))
    else:
        print("\n".join(f"{label:<14} {_plain(str(value))}" for label, value in facts.items()))
    return 0


def _record_facts(answered: Answered, *, checked: bool) -> dict[str, str]:
    """`checked`: a text was held against the entry. While one was not, the verdict is no plain "verified"."""
    entry, body = answered.entry, answered.body
    text, verdict = "not checked: give --answer FILE", "verified, without its text"
    if checked or body.answer is None:
        text, verdict = "is the one that was answered" if checked else "none was answered", "verified"
    rests = ", ".join(map(str, (body.admitted, body.release, *body.approvals)))
    return {
        "request": body.request,
        "answered to": f"{body.unit}, task {body.task}, at {entry.time}: {entry.outcome}, {body.finish_reason}",
        "by": f"{body.adapter} ({body.manifest})",
        "rests on": f"entries {rests}: its admission, its release, its approvals",
        "proved": f"entry {entry.index}, in a log of {answered.size} entries",
        "text": text,
        "verdict": verdict,
    }


def _read(path: Path, what: str, limit: int) -> bytes:
    """A file's bytes, all of them; BadInput where it cannot be read, or has more than `limit`."""
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise BadInput(f"{what}, {path}: expected a readable file, got {error.strerror}") from None
    if len(data) > limit:
        raise BadInput(f"{what}, {path}: expected at most {limit} bytes, got more")
    return data


def verify_export(path: Path, trust: Trust | None, now: str) -> Report:
    """The report on an export; BadInput when the file is no whole export."""
    try:
        with path.open("rb") as stream, Export(stream) as export:
            report = verify_log(
                export.entries(), export.document, export.disclosures(), export.checkpoint, trust, now=now
            )
            return with_findings(report, tuple(_check_export(export, report)))
    except OSError as error:
        raise BadInput(f"export, {path}: expected a readable file, got {error.strerror}") from None


def _moment(text: str | None) -> str | None:
    """An entry's number or a whole time."""
    if text is None or text.isdecimal():
        return text
    return encode_time(parse_time(text, "at"))


def ask_export(path: Path, unit: str, at: str | None, now: str, report: Report) -> CouldLoad:
    """What the unit could have loaded, from the export alone, folded again up to the moment.

    Tampered where its entries are not those of the report, as when somebody changed the file meanwhile.
    """
    tree = Tree()

    def seen(entries: Iterator[bytes]) -> Iterator[bytes]:
        for data in entries:
            tree.add(hash_leaf(data))
            yield data

    with path.open("rb") as stream, Export(stream) as export:
        entries = seen(export.entries())
        answer = could_load_then(entries, export.document, unit, at, now)[0]
        deque(entries, maxlen=0)  # the rest
    if (root := f"sha256:{tree.root().hex()}") != report.root:
        raise Tampered(
            f"export, {path}: expected the root {report.root}, which was verified, got {root}: it has changed"
        )
    return answer


def _check_export(export: Export, report: Report) -> Iterator[Finding]:
    """What the export says of itself is what it holds, and each line of it is where the entries use it."""
    said: list[tuple[str, object, object]] = [("size", export.size, report.size)]
    if report.origin is not None:
        said.append(("origin", export.origin, report.origin))
    for what, expected, got in said:
        if expected != got:
            message = f"export.json, {what}: expected {expected}, as it says, got {got}"
            yield Finding(index=None, rule="export", message=message)
    if export.disorder is not None:
        yield Finding(index=None, rule="export", message=export.disorder)


def _lines(report: Report) -> Iterator[str]:
    """Prose: what was checked and how many, what was not, what was found, and the verdict last."""
    counts = report.counts
    yield f"log            {report.origin or 'unknown'}"
    yield f"trust          {_trust(report)}"
    yield f"size           {report.size} entries, {_checkpoint(report)}"
    yield f"head           {report.head}"
    yield f"root           {report.root}"
    yield f"administrators {_administrators(report)}"
    yield f"site policies  {report.site_policies}"
    yield "checked"
    yield f"  entries      {counts.entries} of {report.size} replayed through the rules, and stand"
    yield f"  signatures   {counts.signatures} hold"
    yield f"  orders       {counts.orders} replayed, each signed by a person enrolled before it"
    yield f"  documents    {counts.documents} hash to what entries bind"
    yield f"  adapters     {counts.adapters} sealed under the appliance's key"
    yield f"  texts        {counts.disclosures} open their commitments"
    for text in (*report.essential, *report.unchecked):
        yield f"not checked    {text}"
    for text in report.remarks:
        yield f"remark         {text}"
    for finding in report.findings:
        yield f"finding        [{finding.rule}] {_plain(finding.message)}"
    if report.omitted:
        yield f"finding        {report.omitted} more"
    yield f"verdict        {report.verdict}"


def _answer_lines(answer: CouldLoad) -> Iterator[str]:
    """Which adapter each task of the unit could load, by whose word; each with the entry that says so."""
    yield f"could load     {answer.unit} at {answer.at}, under policy {answer.policy}"
    for task in answer.tasks:
        candidate, release = task.candidate, task.release
        verb = "could load" if task.could_load else "could not load"
        yield f"  {task.task}: {verb} {candidate.adapter} ({candidate.manifest}), sealed by entry {candidate.sealed}"
        yield f"    released by {release.by}, entry {release.entry} ({release.kind})"
        for review in candidate.reviews:
            said = f"{review.decision} by {review.reviewer} for {review.field}, entry {review.entry}"
            yield f"    {said}, until {review.valid_until}{f'; {review.against}' if review.against else ''}"
        yield from (f"    against it: {reason}" for reason in candidate.reasons)
        if task.slot is not None and task.slot.entry is not None:
            yield f"    loaded was {task.slot.adapter}, entry {task.slot.entry}"
    for one in answer.exported:
        yield f"  {one.task}: could load {one.adapter} ({one.manifest}) until {one.valid_until}"
        yield f"    from an exported folder, entry {one.entry}; no revocation reaches it"
    for other in answer.others:
        yield f"  could not load {other.adapter}: {'; '.join(other.reasons)}"
    if not answer.tasks:
        yield "  nothing: no release named an adapter for it"


def _plain(text: str) -> str:
    """A hostile log's words cannot move the cursor of the terminal they are shown on."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _trust(report: Report) -> str:
    if report.trust is None:
        return "none given"
    return f"{report.trust.log_key}, first entry {report.trust.genesis}"


def _checkpoint(report: Report) -> str:
    if report.checkpoint_size is None:
        return "under no checkpoint whose signature holds"
    return f"under a signed checkpoint of {report.checkpoint_size}"


def _administrators(report: Report) -> str:
    if report.single_administrator is None:
        return "unknown"
    return "ONE ALONE (a trial): no second person stands behind power" if report.single_administrator else "two or more"


if __name__ == "__main__":
    main()
