"""appliance-verify: the auditor's program. It reads an export and a trust file, and nothing else.

It needs Python, `cryptography` and `pydantic`, and `cedarpy` to replay the site's own policies: no database, no
network, no GPU. The help says the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NoReturn

from appliance import __version__
from appliance.domain.audit.folders import Folder, verify_folders
from appliance.domain.audit.log_replay import SitePolicy
from appliance.domain.audit.report import SITE_POLICIES, Finding, Report, judge_site_policies, with_findings
from appliance.domain.audit.summary import MAX_LINES, group_findings, tell_findings, tell_verdict
from appliance.domain.audit.verify import verify_log
from appliance.domain.queries import entry_proof
from appliance.domain.queries.could_load import BeforeLog, CouldLoad, could_load_then
from appliance.domain.queries.periods import Span, could_load_during
from appliance.domain.queries.response import (
    MAX_BYTES,
    Answered,
    parse_record,
    verify_answer,
    verify_instruction,
    verify_record,
)
from appliance.domain.queries.telling import tell_answer
from appliance.errors import ApplianceError, BadInput, Tampered, Unavailable
from appliance.formats.core.merkle import Tree, hash_leaf
from appliance.formats.core.timestamp import encode_time
from appliance.formats.core.typed_time import parse_point
from appliance.formats.core.visible import is_visible
from appliance.formats.log.export import MEMBERS, Export
from appliance.formats.log.log_policy import LogPolicy, parse_log_policy, quorum_policy
from appliance.formats.log.trust import Trust, parse_trust

EXITS = {
    "verified": 0,
    "verified, without site policies": 0,
    "failed": Tampered.exit_code,
    "unverifiable": Unavailable.exit_code,
}
_MAX_TRUST_BYTES = 65_536
MAX_FOLDER_FILE_BYTES = 4 << 30
_BEGINNING = MEMBERS[0].encode() + b"\0"
"""Of a tar whose first member is an export's."""
_TRUST = (
    "the trust file that `appliance init` printed; for --record and --proof also a trust policy, which can name "
    "witnesses (c2sp.org/tlog-policy)"
)
_HELP = """\
examples:
  appliance-verify ledger.tar --trust trust.json
  appliance-verify ledger.tar --trust trust.json --could-load legal --at 2026-11-24
  appliance-verify ledger.tar --trust trust.json --could-load legal --since 30d
  appliance-verify --record answer.json --trust trust.json --answer answer.txt
  appliance-verify --proof entry-26-proof.json --trust trust.json

exit codes:
  0  verified
  2  the input cannot be used: not an export, a record, a trust file or a readable file
  6  failed: something in the log, the file or the record does not hold
  7  unverifiable: something was not checked, such as when no trust file is given

site policies:
  The policies that a site wrote itself, in Cedar, are replayed where the Python library cedarpy is installed
  (python3 -m pip install cedarpy). Where it is not, the verdict is "unverifiable", unless you accept that with
  --without-site-policies. The appliance's own rules are always replayed.
"""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    parser = _parser()
    given = parser.parse_args(arguments)
    if [given.export, given.record, given.proof].count(None) != 2:
        parser.error("expected one of EXPORT, --record FILE and --proof FILE, got none or several")
    if given.record is not None:
        sys.exit(_check_record(given))
    if given.proof is not None:
        sys.exit(_check_proof(given))
    try:
        trust = None if given.trust is None else load_trust(given.trust)
        now = datetime.now(UTC)
        wanted = _question(given, now)
        without = given.without_site_policies
        report = verify_export(given.export, trust, encode_time(now), given.folder, without_site_policies=without)
        # A log that does not hold answers no question.
        question = wanted if EXITS[report.verdict] == 0 else None
        answer = None if question is None else ask_export(given.export, question, report)
    except ApplianceError as error:
        code = _fail(error)
        sys.exit(code if code == Tampered.exit_code else BadInput.exit_code)
    if given.json:
        value = report.model_dump(mode="json")
        value["groups"] = [group.model_dump(mode="json") for group in group_findings(report.findings)]
        _print_out(
            json.dumps(value if answer is None else {**value, "could_load": answer.model_dump(mode="json")}, indent=2)
        )
    else:
        lines = _lines(report, whole=given.all)
        _print_out("\n".join(_plain(line) for line in [*lines, *([] if answer is None else tell_answer(answer))]))
    sys.exit(EXITS[report.verdict])


Question = Callable[[Callable[[], Iterator[bytes]], Callable[[str], bytes | None]], CouldLoad | BeforeLog | Span]
"""What is asked of a log's entries and documents."""


def _question(given: argparse.Namespace, now: datetime) -> Question | None:
    """What --could-load asks: of a moment, or of a span with --since."""
    unit, at, since, until = (getattr(given, name) for name in ("could_load", "at", "since", "until"))
    if (unit, at, since, until) == (None, None, None, None):
        return None
    if unit is None or (since is not None and at is not None) or (since is None and until is not None):
        raise BadInput("--could-load UNIT: expected --at, or --since with or without --until, got others")
    time = encode_time(now)
    begin = parse_point(since, "since", now)
    if begin is not None:
        points = (begin, parse_point(until, "until", now))
        return lambda entries, documents: could_load_during(entries, documents, unit, points, time)
    moment = parse_point(at, "at", now)
    return lambda entries, documents: could_load_then(entries, documents, unit, moment, time)[0]


def _print_out(text: str) -> None:
    """On stdout. A reader that leaves before the end, such as `head`, changes no verdict and no exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes stdout again at its end: what is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: ApplianceError) -> int:
    """Says in one line why there is no report; the exit code."""
    start = "failed: " if isinstance(error, Tampered) else ""
    print(f"appliance-verify: {start}{_plain(error.message)}", file=sys.stderr)
    return error.exit_code


def load_site_policy() -> SitePolicy | None:
    """What decides the policies of a set; None where Cedar cannot be imported."""
    try:
        from appliance.access.cedar import SitePolicies
    except ImportError:
        return None
    return lambda policy: SitePolicies.of_export(policy).decide


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="appliance-verify",
        description="Verify an exported ledger: its chain, its signatures, and every entry by the appliance's rules.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("export", metavar="EXPORT", nargs="?", type=Path, help="what `appliance ledger export` wrote")
    parser.add_argument("--trust", metavar="FILE", type=Path, help=_TRUST)
    parser.add_argument(
        "--without-site-policies", action="store_true", help="accept that the site's own policies are not replayed"
    )
    parser.add_argument(
        "--folder",
        metavar="FOLDER",
        type=Path,
        action="append",
        default=[],
        help="a sealed adapter's folder: compute its verdict again from its items; or, for their rows, that of its "
        "dataset or of a validation set",
    )
    parser.add_argument("--all", action="store_true", help="print every finding; otherwise a summary")
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    parser.add_argument(
        "--could-load", metavar="UNIT", help="also print what this unit could load, if the log is verified"
    )
    parser.add_argument(
        "--at",
        metavar="TIME",
        help="for --could-load: after this entry (41) or at this time (2026-11-24, 2026-11-24T10:30Z, or 7d for seven "
        "days ago); now if not given",
    )
    parser.add_argument(
        "--since", metavar="TIME", help="for --could-load: every answer from this point on, in place of --at"
    )
    parser.add_argument("--until", metavar="TIME", help="for --since: up to this point; now if not given")
    parser.add_argument("--record", metavar="FILE", type=Path, help="instead of EXPORT: an answer's response record")
    parser.add_argument("--proof", metavar="FILE", type=Path, help="instead of EXPORT: the proof of one entry")
    parser.add_argument("--answer", metavar="FILE", type=Path, help="for --record: the text of the answer")
    parser.add_argument(
        "--instruction", metavar="FILE", type=Path, help="for --record: the system message that the service put in"
    )
    parser.add_argument(
        "--log-key", metavar="VKEY", help="for --record: the log's current key, if it was rotated after `init`"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def load_trust(path: Path) -> Trust:
    """BadInput when the file is not there, or no trust file."""
    return parse_trust(_read(path, "trust file", _MAX_TRUST_BYTES))


def load_policy(path: Path, log_key: str | None = None) -> tuple[LogPolicy, str | None]:
    """What is trusted, and the first entry of the log where that is named: of a trust file, whose log's key is
    `log_key` where one is given, or of a trust policy."""
    data = _read(path, "trust file", _MAX_TRUST_BYTES)
    if not data.startswith(b"{") and log_key is None:
        return parse_log_policy(data), None
    trust = parse_trust(data)
    return quorum_policy([log_key or trust.log_key], [], 0), trust.genesis


def _check_proof(given: argparse.Namespace) -> int:
    """Says what the proof of an entry proves; its exit code."""
    try:
        if given.trust is None:
            raise Unavailable("proof: expected --trust FILE, under which it can be checked, got none")
        policy, genesis = load_policy(given.trust, given.log_key)
        proof = entry_proof.parse_entry_proof(_read(given.proof, "proof", entry_proof.MAX_BYTES))
        proven = entry_proof.verify_entry_proof(proof, policy, genesis)
    except ApplianceError as error:
        return _fail(error)
    facts = entry_proof.tell_proven(proven)
    if given.json:
        _print_out(json.dumps({**proven.entry.model_dump(mode="json"), **dict(facts)}, indent=2))
    else:
        _print_out("\n".join(f"{label:<14} {_plain(text)}" for label, text in facts))
    return 0


def _check_record(given: argparse.Namespace) -> int:
    """Says what the record proves; its exit code."""
    try:
        if given.trust is None:
            raise Unavailable("response record: expected --trust FILE, under which it can be checked, got none")
        policy, _ = load_policy(given.trust, given.log_key)
        record = parse_record(_read(given.record, "response record", MAX_BYTES))
        answered = verify_record(record, policy)
        if given.answer is not None:
            _check_text(answered, given.answer, "answer", verify_answer)
        if given.instruction is not None:
            _check_text(answered, given.instruction, "instruction", verify_instruction)
    except ApplianceError as error:
        return _fail(error)
    facts = _record_facts(answered, checked=given.answer is not None or record.text is not None)
    if answered.body.instruction is not None:
        unchecked = "the release's own, put in; not checked: give --instruction FILE"
        facts["instruction"] = unchecked if given.instruction is None else "is the one that was put in"
    if given.json:
        _print_out(json.dumps({**answered.entry.model_dump(mode="json"), "log_size": answered.size, **facts}, indent=2))
    else:
        _print_out("\n".join(f"{label:<14} {_plain(str(value))}" for label, value in facts.items()))
    return 0


Verify = Callable[[Answered, str], None]


def _check_text(answered: Answered, path: Path, what: str, verify: Verify) -> None:
    """Tampered unless the file holds the text that was committed to and nothing else."""
    text = _read(path, what, MAX_BYTES).decode("utf-8", "surrogateescape")
    try:
        verify(answered, text)
    except Tampered as error:
        if not _is_text(answered, text.removesuffix("\n").removesuffix("\r"), verify):
            raise
        said = (
            f"the file has one newline more than the {what}: write it without, such as with printf %s instead of echo"
        )
        raise Tampered(f"{what}, {path}: {said}") from error


def _is_text(answered: Answered, text: str, verify: Verify) -> bool:
    try:
        verify(answered, text)
    except Tampered:
        return False
    return True


def _record_facts(answered: Answered, *, checked: bool) -> dict[str, str]:
    """`checked`: a text was held against the entry. While one was not, the verdict is no plain "verified"."""
    entry, body = answered.entry, answered.body
    text, verdict = "not checked: give --answer FILE", "verified, without its text"
    if checked or body.answer is None:
        text, verdict = "is the one that was answered" if checked else "none was answered", "verified"
    rests = ", ".join(map(str, (body.admitted, body.release, *body.approvals)))
    return {
        "verdict": verdict,
        "request": body.request,
        "answered to": f"{body.unit}, task {body.task}, at {entry.time}: {entry.outcome}, {body.finish_reason}",
        "by": f"{body.adapter} ({body.manifest})",
        "rests on": f"entries {rests}: its admission, its release, its approvals",
        "proved": f"entry {entry.index}, in a log of {answered.size} entries",
        "text": text,
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


def verify_export(
    path: Path, trust: Trust | None, now: str, folders: Sequence[Path] = (), *, without_site_policies: bool = False
) -> Report:
    """The report on an export, and on sealed folders beside it. BadInput when the file is none, Tampered when it begins
    as one and is not whole."""
    replay = None if without_site_policies else load_site_policy()
    try:
        with path.open("rb") as stream:
            begins = stream.read(len(_BEGINNING)) == _BEGINNING
            try:
                report = _verify_stream(stream, trust, now, replay, folders)
                return judge_site_policies(report, accepted=without_site_policies)
            except BadInput as error:
                if begins:
                    raise Tampered(f"{path}: {error.message}") from None
                raise error.within(str(path)) from None
    except OSError as error:
        raise BadInput(f"export, {path}: expected a readable file, got {error.strerror}") from None


def _verify_stream(
    stream: BinaryIO, trust: Trust | None, now: str, replay: SitePolicy | None, folders: Sequence[Path]
) -> Report:
    with Export(stream) as export:
        texts = export.disclosures()
        report = verify_log(export.entries(), export.document, texts, export.checkpoint, trust, now=now, replay=replay)
        report = with_findings(report, tuple(_check_export(export, report)))
        if not folders:
            return report
        return verify_folders(report, export.entries(), export.document, map(_open_folder, folders))


def _open_folder(path: Path) -> Folder:
    """A sealed folder; what lies beside its manifest is read when it is asked for."""
    return Folder(str(path), lambda name: _read(path / name, f"folder {path}", MAX_FOLDER_FILE_BYTES))


def ask_export(path: Path, question: Question, report: Report) -> CouldLoad | BeforeLog | Span:
    """What the unit could have loaded, from the export alone, folded again.

    Tampered where its entries are not those of the report, as when somebody changed the file meanwhile.
    """
    roots: set[str] = set()
    with path.open("rb") as stream, Export(stream) as export:

        def entries() -> Iterator[bytes]:
            tree = Tree()
            for data in export.entries():
                tree.add(hash_leaf(data))
                yield data
            roots.add(f"sha256:{tree.root().hex()}")

        answer = question(entries, export.document)
    if roots != {report.root}:
        got = ", ".join(sorted(roots))
        raise Tampered(
            f"export, {path}: expected the root {report.root}, which was verified, got {got}: it has changed"
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


def _lines(report: Report, *, whole: bool) -> Iterator[str]:
    """The verdict, what was found, what was not checked, and what was checked. At most MAX_LINES, unless `whole`."""
    yield from (f"{label:<14} {text}" for label, text in _facts(report, whole=whole))


def _facts(report: Report, *, whole: bool) -> Iterator[tuple[str, str]]:
    yield "verdict", tell_verdict(report.verdict, report.findings)
    rest = [*_not_checked(report), *(("remark", text) for text in report.remarks), *_checked(report)]
    yield from tell_findings(report.findings, report.omitted, None if whole else MAX_LINES - 1 - len(rest))
    yield from rest


def _not_checked(report: Report) -> Iterator[tuple[str, str]]:
    for text in (*report.essential, *report.unchecked):
        yield "not checked", text
    if report.verdict == "unverifiable" and any(text.startswith(SITE_POLICIES) for text in report.essential):
        yield "next", "install the Python library cedarpy here, or accept this with --without-site-policies"


def _checked(report: Report) -> Iterator[tuple[str, str]]:
    counts = report.counts
    yield "checked", f"entries: {counts.entries} of {report.size} replayed by the appliance's rules, which allow them"
    yield "", f"signatures: {counts.signatures}; orders: {counts.orders}, each signed by a person enrolled before it"
    texts = f"texts that fit their commitments: {counts.disclosures}"
    yield "", f"documents that fit their digests: {counts.documents}; {texts}; sealed adapters: {counts.adapters}"
    yield "site policies", _site_policies(report)
    yield "administrators", _administrators(report)
    yield "log", report.origin or "unknown"
    yield "trust", _trust(report)
    yield "size", f"{report.size} entries, {_checkpoint(report)}"
    yield "head", report.head
    yield "root", report.root


def _site_policies(report: Report) -> str:
    if report.site_policies == "not replayed":
        return "not replayed"
    return f"replayed; orders that they allow: {report.counts.decisions}"


def _plain(text: str) -> str:
    """A hostile log's words cannot move the cursor of the terminal they are shown on."""
    return "".join(c if is_visible(c) else ascii(c)[1:-1] for c in text)


def _trust(report: Report) -> str:
    if report.trust is None:
        return "none given"
    return f"{report.trust.log_key}, first entry {report.trust.genesis}"


def _checkpoint(report: Report) -> str:
    if report.checkpoint_size is None:
        return "without a checkpoint whose signature holds"
    return f"under a signed checkpoint of {report.checkpoint_size}"


def _administrators(report: Report) -> str:
    match report.single_administrator:
        case None:
            return "unknown"
        case True:
            return "ONE ADMINISTRATOR (a trial): roles and rules change without a second signature"
    return "two or more"


if __name__ == "__main__":
    main()
