"""appliance-verify: the auditor's program. Its only inputs are an export and a trust file.

It needs Python, `cryptography` and `pydantic`, and `cedarpy` to replay the site's own policies: no database, no
network, no GPU. `--help` describes its use.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from appliance.build import add_version_option
from appliance.domain.audit.archives import read_archive_entries
from appliance.domain.audit.folders import SealedFolder, verify_folders
from appliance.domain.audit.log_replay import CedarPolicy
from appliance.domain.audit.report import CEDAR_POLICIES, AuditFinding, Report, require_cedar_policies, with_findings
from appliance.domain.audit.summary import MAX_LINES, describe_findings, describe_verdict, group_findings
from appliance.domain.audit.verify import verify_log
from appliance.domain.queries.effective_access import BeforeLog, UnitAccess, effective_access_then
from appliance.domain.queries.periods import Span, describe_answer, effective_access_during
from appliance.domain.queries.proofs import (
    MAX_PROOF_BYTES,
    MAX_RECORD_BYTES,
    Role,
    VerifiedRecord,
    describe_proven,
    parse_entry_proof,
    parse_record,
    verify_entry_proof,
    verify_record,
    verify_text,
)
from appliance.errors import ApplianceError, BadInput, Tampered, Unavailable
from appliance.formats.core.digest import Hasher
from appliance.formats.core.merkle import Tree, hash_leaf
from appliance.formats.core.text import is_visible
from appliance.formats.core.timestamp import encode_time, parse_point
from appliance.formats.log.export import MEMBERS, ParsedExport, hash_line, read_removed
from appliance.formats.log.log_policy import LogPolicy, PolicyLog, parse_log_policy
from appliance.formats.log.note import name_key
from appliance.formats.log.trust import Trust, parse_trust

EXITS = {
    "verified": 0,
    "verified, without Cedar policies": 0,
    "failed": Tampered.exit_code,
    "unverifiable": Unavailable.exit_code,
}
"""Exit code of each verdict."""
_MAX_TRUST_BYTES = 65_536
MAX_FOLDER_FILE_BYTES = 4 << 30
"""Largest size of a file in a sealed folder, in bytes."""
_BEGINNING = MEMBERS[0].encode() + b"\0"
"""First bytes of a tar whose first member is that of an export."""
_TRUST = (
    "the trust file that `appliance init` printed; for --record and --proof also a trust policy, which can name "
    "witnesses (c2sp.org/tlog-policy)"
)
_HELP = """\
examples:
  appliance-verify ledger.tar --trust trust.json
  appliance-verify ledger.tar --trust trust.json --effective-access legal --at 2026-11-24
  appliance-verify ledger.tar --trust trust.json --effective-access legal --since 30d
  appliance-verify --record answer.json --trust trust.json --answer answer.txt
  appliance-verify --proof entry-26-proof.json --trust trust.json

exit codes:
  0  verified
  2  the input cannot be used: not an export, a record, a trust file, a folder or a readable file
  6  failed: something in the log, the file or the record does not hold
  7  unverifiable: something was not checked, such as when no trust file is given

Cedar policies:
  The policies that a site wrote itself, in Cedar, are replayed where the Python library cedarpy is installed
  (python3 -m pip install cedarpy). Where it is not, the verdict is "unverifiable", unless you accept that with
  --without-cedar-policies. The appliance's own rules are always replayed.
"""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
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
        requested = _build_question(given, now)
        without = given.without_cedar_policies
        beside = given.archive
        report = verify_export(
            given.export, trust, encode_time(now), given.folder, beside, without_cedar_policies=without
        )
        # Questions are answered only from a log that is valid.
        question = requested if EXITS[report.verdict] == 0 else None
        answer = None if question is None else ask_export(given.export, question, report, beside)
    except ApplianceError as error:
        code = _fail(error)
        sys.exit(code if code in EXITS.values() else BadInput.exit_code)
    if given.json:
        value = report.model_dump(mode="json")
        value["groups"] = [group.model_dump(mode="json") for group in group_findings(report.findings)]
        _print_out(
            json.dumps(
                value if answer is None else {**value, "effective_access": answer.model_dump(mode="json")}, indent=2
            )
        )
    else:
        lines = _lines(report, whole=given.all)
        _print_out("\n".join(_escape(line) for line in [*lines, *([] if answer is None else describe_answer(answer))]))
    sys.exit(EXITS[report.verdict])


Question = Callable[[Callable[[], Iterator[bytes]], Callable[[str], bytes | None]], UnitAccess | BeforeLog | Span]
"""A question about a log's entries and documents."""


def _build_question(given: argparse.Namespace, now: datetime) -> Question | None:
    """Return the question of --effective-access: about a point in time, or with --since about a period."""
    unit, at, since, until = (getattr(given, name) for name in ("effective_access", "at", "since", "until"))
    if (unit, at, since, until) == (None, None, None, None):
        return None
    if unit is None or (since is not None and at is not None) or (since is None and until is not None):
        raise BadInput("--effective-access UNIT: expected --at, or --since with or without --until, got others")
    time = encode_time(now)
    begin = parse_point(since, "since", now, end_of_day=False)
    if begin is not None:
        points = (begin, parse_point(until, "until", now, end_of_day=True))
        return lambda entries, documents: effective_access_during(entries, documents, unit, points, time)
    moment = parse_point(at, "at", now, end_of_day=True)
    return lambda entries, documents: effective_access_then(entries, documents, unit, moment, time)[0]


def _print_out(text: str) -> None:
    """Print to stdout. A reader that closes early, such as `head`, does not change the verdict or the exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes stdout again at exit: the rest goes to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: ApplianceError) -> int:
    """Print in one line why there is no report; return the exit code."""
    start = "failed: " if isinstance(error, Tampered) else ""
    print(f"appliance-verify: {start}{_escape(error.message)}", file=sys.stderr)
    return error.exit_code


def load_cedar_policy() -> CedarPolicy | None:
    """Return the function that builds the decider of a policy set, or None if Cedar cannot be imported."""
    try:
        from appliance.access.cedar import CedarPolicies
    except ImportError:
        return None
    return lambda policy: CedarPolicies.confine(policy).decide


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
        "--without-cedar-policies", action="store_true", help="accept that the site's own policies are not replayed"
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
    parser.add_argument(
        "--archive",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="an archive with entries that were removed from the log: replay them, too; repeat it for several",
    )
    parser.add_argument("--all", action="store_true", help="print every finding; otherwise a summary")
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    parser.add_argument(
        "--effective-access", metavar="UNIT", help="also print what this unit could load, if the log is verified"
    )
    parser.add_argument(
        "--at",
        metavar="TIME",
        help="for --effective-access: after this entry (41) or at this time (2026-11-24, 2026-11-24T10:30Z, or 7d for "
        "seven days ago); now if not given",
    )
    parser.add_argument(
        "--since", metavar="TIME", help="for --effective-access: every answer from this point on, in place of --at"
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
    add_version_option(parser)
    return parser


def load_trust(path: Path) -> Trust:
    """Read a trust file.

    Raises: BadInput if the file is missing or malformed.
    """
    data = _read(path, "trust file", _MAX_TRUST_BYTES)
    try:
        return parse_trust(data)
    except BadInput as error:
        expected = "expected the line that appliance init printed, got another file or a changed one"
        raise BadInput(f"trust file, {path}: {expected}: {error.message}") from None


def load_policy(path: Path, log_key: str | None = None) -> tuple[LogPolicy, str | None]:
    """Return the trust policy, and the first entry of the log if the file names it.

    The file is a trust file, whose log key `log_key` replaces if it is given, or a trust policy.
    """
    data = _read(path, "trust file", _MAX_TRUST_BYTES)
    if not data.startswith(b"{") and log_key is None:
        return parse_log_policy(data), None
    trust = load_trust(path)
    log = PolicyLog(log_key or trust.log_key)
    return LogPolicy((log,), second_keys=trust.log_keys[:-1]), trust.genesis


def _check_proof(given: argparse.Namespace) -> int:
    """Verify the proof of an entry and print what it proves; return the exit code."""
    try:
        if given.trust is None:
            raise Unavailable("proof: expected --trust FILE, under which it can be checked, got none")
        policy, genesis = load_policy(given.trust, given.log_key)
        proof = parse_entry_proof(_read(given.proof, "proof", MAX_PROOF_BYTES))
        proven = verify_entry_proof(proof, policy, genesis)
    except ApplianceError as error:
        return _fail(error)
    facts = describe_proven(proven)
    if given.json:
        _print_out(json.dumps({**proven.entry.model_dump(mode="json"), **dict(facts)}, indent=2))
    else:
        _print_out("\n".join(f"{label:<14} {_escape(text)}" for label, text in facts))
    return 0


def _check_record(given: argparse.Namespace) -> int:
    """Verify a response record and print what it proves; return the exit code."""
    try:
        if given.trust is None:
            raise Unavailable("response record: expected --trust FILE, under which it can be checked, got none")
        policy, _ = load_policy(given.trust, given.log_key)
        record = parse_record(_read(given.record, "response record", MAX_RECORD_BYTES))
        answered = verify_record(record, policy)
        if given.answer is not None:
            _check_text(answered, given.answer, "answer")
        if given.instruction is not None:
            _check_text(answered, given.instruction, "instruction")
    except ApplianceError as error:
        return _fail(error)
    facts = _record_facts(answered, checked=given.answer is not None or record.text is not None)
    if answered.body.instruction is not None:
        unchecked = "the release's own, put in; not checked: give --instruction FILE"
        facts["instruction"] = unchecked if given.instruction is None else "is the one that was put in"
    if given.json:
        _print_out(json.dumps({**answered.entry.model_dump(mode="json"), "log_size": answered.size, **facts}, indent=2))
    else:
        _print_out("\n".join(f"{label:<14} {_escape(str(value))}" for label, value in facts.items()))
    return 0


def _check_text(answered: VerifiedRecord, path: Path, role: Role) -> None:
    """Raise Tampered unless the file contains exactly the committed text."""
    text = _read(path, role, MAX_RECORD_BYTES).decode("utf-8", "surrogateescape")
    try:
        verify_text(answered, role, text)
    except Tampered as error:
        if not _is_text(answered, role, text.removesuffix("\n").removesuffix("\r")):
            raise
        problem = (
            f"the file has one newline more than the {role}: write it without, such as with printf %s instead of echo"
        )
        raise Tampered(f"{role}, {path}: {problem}") from error


def _is_text(answered: VerifiedRecord, role: Role, text: str) -> bool:
    try:
        verify_text(answered, role, text)
    except Tampered:
        return False
    return True


def _record_facts(answered: VerifiedRecord, *, checked: bool) -> dict[str, str]:
    """Return the lines on a response record. `checked` is True if its text was compared with the entry.

    Without that, the verdict is not a plain "verified".
    """
    entry, body = answered.entry, answered.body
    text, verdict = "not checked: give --answer FILE", "verified, without its text"
    if checked or body.answer is None:
        text, verdict = "is the one that was answered" if checked else "none was answered", "verified"
    entry_indexes = ", ".join(map(str, (body.admitted, body.release, *body.approvals)))
    return {
        "verdict": verdict,
        "request": body.request,
        "answered to": f"{body.unit}, served model {body.served_model}, at {entry.time}: {entry.outcome}, "
        f"{body.finish_reason}",
        "by": f"{body.adapter} ({body.manifest})",
        "rests on": f"entries {entry_indexes}: its admission, its release, its approvals",
        "proved": f"entry {entry.index}, in a log of {answered.size} entries",
        "text": text,
    }


def _read(path: Path, what: str, limit: int) -> bytes:
    """Return all bytes of a file."""
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise BadInput(f"{what}, {path}: expected a readable file, got {error.strerror}") from None
    if len(data) > limit:
        raise BadInput(f"{what}, {path}: expected at most {limit} bytes, got more")
    return data


def verify_export(
    path: Path,
    trust: Trust | None,
    now: str,
    folders: Sequence[Path] = (),
    archives: Sequence[Path] = (),
    *,
    without_cedar_policies: bool = False,
) -> Report:
    """Return the report on an export, and on archives and sealed folders beside it.

    Raises: BadInput if a file is no export or a folder is missing; Tampered if an export is malformed after its start.
    """
    replay = None if without_cedar_policies else load_cedar_policy()
    with ExitStack() as stack:
        if (missing := next((folder for folder in folders if not folder.is_dir()), None)) is not None:
            raise BadInput(f"folder, {missing}: expected a sealed folder, got none")
        log = ArchivedExport([_open_export(path, stack), *(_open_export(one, stack, "archive") for one in archives)])
        try:
            report = _verify_log(log, trust, now, replay, folders)
        except BadInput as error:
            raise Tampered(f"{path}: {error.message}") from None
        except OSError as error:
            raise BadInput(f"export, {path}: expected a readable file, got {error.strerror}") from None
    report = with_findings(report, tuple(_check_archive_files(archives, log)))
    return require_cedar_policies(report, accepted=without_cedar_policies)


def _open_export(path: Path, stack: ExitStack, what: str = "export") -> ParsedExport:
    """Open an export, or an archive, which has the same form, until the stack is closed."""
    try:
        stream = stack.enter_context(path.open("rb"))
        beginning = stream.read(len(_BEGINNING))
        try:
            return ParsedExport(stream)
        except BadInput as error:
            if beginning == _BEGINNING:
                raise Tampered(f"{path}: {error.message}") from None
            if beginning.startswith(b"\x1f\x8b"):  # RFC 1952, section 2.3.1
                raise BadInput(
                    f"{what}, {path}: expected a tar, got a file packed with gzip; unpack it first"
                ) from None
            raise error.within(str(path)) from None
    except OSError as error:
        raise BadInput(f"{what}, {path}: expected a readable file, got {error.strerror}") from None


class ArchivedExport:
    """An export, with the entries and documents that archives beside it have in place of removed ones."""

    def __init__(self, exports: Sequence[ParsedExport]) -> None:
        """Combine an export, the first, with its archives."""
        self.export, *self._archives = exports
        self.altered: str | None = None
        """The first entry of an archive that is not the removed one, or None."""
        self.named: set[str] = set()
        """Digests of the archives that the log's entries name."""

    @property
    def has_archives(self) -> bool:
        return bool(self._archives)

    def entries(self) -> Iterator[bytes]:
        """Yield the bytes of every entry; a removed one that no archive has is its line."""
        readers = [archive.entries() for archive in self._archives]
        for index, data in enumerate(self.export.entries()):
            others = [other for reader in readers if (other := next(reader, None)) is not None]
            yield data if (leaf := read_removed(data)) is None else self._find(index, data, leaf, others)

    def _find(self, index: int, data: bytes, leaf: bytes, others: Iterable[bytes]) -> bytes:
        for other in others:
            if read_removed(other) is None:
                if hash_leaf(other) == leaf:
                    return other
                expected, got = leaf.hex(), hash_leaf(other).hex()
                self.altered = self.altered or f"entry {index}: expected the leaf hash {expected}, got {got}"
        return data

    def document(self, digest: str) -> bytes | None:
        """Return the bytes of a document, from the export or from an archive."""
        found = (export.document(digest) for export in (self.export, *self._archives))
        return next((data for data in found if data is not None), None)

    def list_archived(self) -> Iterator[str]:
        """Yield the digests of the archives that the log's entries name."""
        for claimed in read_archive_entries(self.export.entries(), self.document):
            yield claimed.order.archive


def _check_archive_files(paths: Sequence[Path], log: ArchivedExport) -> Iterator[AuditFinding]:
    """Yield findings if no entry of the log names an archive, or if its entries are not the removed ones."""
    if log.altered is not None:
        yield AuditFinding(index=None, rule="archive", message=f"archive, {log.altered}")
    for path in paths:
        hasher = Hasher()
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                hasher.update(chunk)
        if hasher.digest() not in log.named:
            message = f"archive {path}: expected a file that an entry of the log names, got one of {hasher.digest()}"
            yield AuditFinding(index=None, rule="archive", message=message)


def _verify_log(
    log: ArchivedExport, trust: Trust | None, now: str, replay: CedarPolicy | None, folders: Sequence[Path]
) -> Report:
    export, has_archives = log.export, log.has_archives
    report = verify_log(
        log.entries(),
        log.document,
        export.disclosures(),
        export.checkpoint,
        trust,
        now=now,
        replay=replay,
        again=export.entries,
        with_archives=has_archives,
    )
    disorder = export.disorder
    log.named = set(log.list_archived()) if has_archives else set()
    report = with_findings(report, tuple(_check_export(export, report, disorder)))
    if not folders:
        return report
    return verify_folders(report, export.entries(), export.document, map(_open_folder, folders))


def _open_folder(path: Path) -> SealedFolder:
    """Return a sealed folder whose files are read when they are needed."""
    return SealedFolder(str(path), lambda name: _read(path / name, "file", MAX_FOLDER_FILE_BYTES))


def ask_export(
    path: Path, question: Question, report: Report, archives: Sequence[Path] = ()
) -> UnitAccess | BeforeLog | Span:
    """Answer a question about a unit from the export and its archives alone, by replaying it.

    Raises: Tampered if its entries are not those of the report, for example because the file was changed meanwhile.
    """
    roots: set[str] = set()
    with ExitStack() as stack:
        log = ArchivedExport([_open_export(one, stack) for one in (path, *archives)])

        def entries() -> Iterator[bytes]:
            tree = Tree()
            for data in log.entries():
                tree.add(hash_line(data))
                yield data
            roots.add(f"sha256:{tree.root().hex()}")

        answer = question(entries, log.document)
    if roots != {report.root}:
        got = ", ".join(sorted(roots))
        raise Tampered(
            f"export, {path}: expected the root {report.root}, which was verified, got {got}: it has changed"
        )
    return answer


def _check_export(export: ParsedExport, report: Report, disorder: str | None) -> Iterator[AuditFinding]:
    """Yield findings if the export's own description differs from its content, or its lines are out of order.

    Its documents and texts must be where the entries use them.
    """
    comparisons: list[tuple[str, object, object]] = [("size", export.size, report.size)]
    if report.origin is not None:
        comparisons.append(("origin", export.origin, report.origin))
    for what, expected, got in comparisons:
        if expected != got:
            message = f"export.json, {what}: expected {expected}, as it says, got {got}"
            yield AuditFinding(index=None, rule="export", message=message)
    if disorder is not None:
        yield AuditFinding(index=None, rule="export-order", message=disorder)


def _lines(report: Report, *, whole: bool) -> Iterator[str]:
    """Yield the lines of the report: verdict, findings, omitted checks, and checks.

    There are at most MAX_LINES, unless `whole`.
    """
    yield from (f"{label:<14} {text}" for label, text in _facts(report, whole=whole))


def _facts(report: Report, *, whole: bool) -> Iterator[tuple[str, str]]:
    yield "verdict", describe_verdict(report.verdict, report.findings)
    rest = [*_not_checked(report), *(("remark", text) for text in report.remarks), *_checked(report)]
    yield from describe_findings(report.findings, report.omitted, None if whole else MAX_LINES - 1 - len(rest))
    yield from rest


def _not_checked(report: Report) -> Iterator[tuple[str, str]]:
    for text in (*report.essential, *report.unchecked):
        yield "not checked", text
    if report.verdict == "unverifiable" and any(text.startswith(CEDAR_POLICIES) for text in report.essential):
        yield "next", "install the Python library cedarpy here, or accept this with --without-cedar-policies"


def _checked(report: Report) -> Iterator[tuple[str, str]]:
    counts = report.counts
    yield "checked", f"entries: {counts.entries} of {report.size} replayed by the appliance's rules, which allow them"
    yield "", f"signatures: {counts.signatures}; orders: {counts.orders}, each signed by a person enrolled before it"
    texts = f"texts that fit their commitments: {counts.disclosures}"
    yield "", f"documents that fit their digests: {counts.documents}; {texts}; sealed adapters: {counts.adapters}"
    yield "Cedar policies", _cedar_policies(report)
    yield "administrators", _administrators(report)
    yield "log", report.origin or "unknown"
    yield "trust", _trust(report)
    yield "size", f"{report.size} entries, {_checkpoint(report)}"
    yield "head", report.head
    yield "root", report.root


def _cedar_policies(report: Report) -> str:
    if report.cedar_policies == "not replayed":
        return "not replayed"
    return f"replayed; orders that they allow: {report.counts.decisions}"


def _escape(text: str) -> str:
    """Return the text with control characters escaped, so that a hostile log cannot move the cursor of the terminal."""
    return "".join(c if is_visible(c) else ascii(c)[1:-1] for c in text)


def _trust(report: Report) -> str:
    if report.trust is None:
        return "none given"
    second = "" if report.trust.post_quantum_log_key is None else f", {name_key(report.trust.post_quantum_log_key)}"
    return f"{report.trust.log_key}{second}, first entry {report.trust.genesis}"


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
