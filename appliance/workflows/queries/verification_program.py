"""The program that verifies the log, in a process of its own: it reads the database by itself, and can only read.

Descriptor 0 gives it the moment to verify: one line of JSON, then a line for each text that is disclosed, then an empty
line. Descriptor 1 gets one JSON object: the report, or a failure. The program ends when descriptor 0 closes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from appliance.access.cedar import SitePolicies
from appliance.domain.audit.report import MAX_FINDINGS, Report, judge_site_policies
from appliance.domain.audit.verify import verify_log
from appliance.errors import ApplianceError, Tampered, Unavailable
from appliance.formats.core.commitment import Disclosure, encode_disclosure, parse_disclosure
from appliance.formats.log.checkpoint import claimed_size
from appliance.formats.log.trust import Trust, encode_trust, parse_trust
from appliance.runners.program import END
from appliance.runners.walls.privileges import forbid_dumps
from appliance.store.ledger.fold import Seen
from appliance.store.ledger.reading import LogReader

POLITENESS = 10
"""Answers go first where the processor is wanted."""
MOST_CHARACTERS = 4_000
"""Of one local finding: it quotes rows."""


@dataclass(frozen=True)
class Moment:
    """What is verified. `database`: the URL, with its password. `seen`: the head that the service knows, which the log
    may not be shorter than. `variables`: of the service's environment, those that PostgreSQL's library reads."""

    database: str
    variables: dict[str, str]
    seen: Seen
    checkpoint: bytes
    trust: Trust | None
    now: str


def encode_moment(moment: Moment, texts: Iterable[Disclosure]) -> Iterator[bytes]:
    """Lines for `run_program`."""
    value = {
        "database": moment.database,
        "variables": moment.variables,
        "size": moment.seen.size,
        "root": moment.seen.root.hex(),
        "checkpoint": b64encode(moment.checkpoint).decode(),
        "trust": None if moment.trust is None else encode_trust(moment.trust).decode(),
        "now": moment.now,
    }
    yield json.dumps(value).encode() + b"\n"
    for text in texts:
        yield encode_disclosure(text) + b"\n"


def parse_moment(line: bytes) -> Moment:
    value: dict[str, Any] = json.loads(line)
    return Moment(
        database=value["database"],
        variables=value["variables"],
        seen=Seen(value["size"], bytes.fromhex(value["root"])),
        checkpoint=b64decode(value["checkpoint"]),
        trust=None if value["trust"] is None else parse_trust(value["trust"].encode()),
        now=value["now"],
    )


def examine(log: LogReader, moment: Moment, texts: Iterable[Disclosure]) -> tuple[Report, list[str]]:
    """The report over the log, and what was found in the database beside it."""
    report = verify_log(
        log.entries(claimed_size(moment.checkpoint)),
        partial(_find_document, log),
        texts,
        moment.checkpoint,
        moment.trust,
        now=moment.now,
        replay=lambda policy: SitePolicies(policy).decide,
    )
    report = judge_site_policies(report, accepted=False)
    return report, _shorten([*log.check_guards(), *_check_projections(log, moment.seen)])


def _find_document(log: LogReader, digest: str) -> bytes | None:
    """None where it does not hold, which the report says; a database that does not answer is no finding."""
    try:
        return log.document(digest)
    except Unavailable:
        raise
    except ApplianceError:
        return None


def _check_projections(log: LogReader, seen: Seen) -> list[str]:
    try:
        return log.check_projections(seen)
    except Tampered as error:
        return [f"projections: expected a log that they follow from, got: {error.message}"]


def _shorten(findings: list[str]) -> list[str]:
    kept = [one if len(one) <= MOST_CHARACTERS else f"{one[:MOST_CHARACTERS]}…" for one in findings[:MAX_FINDINGS]]
    return kept if len(findings) <= MAX_FINDINGS else [*kept, f"{len(findings) - MAX_FINDINGS} more"]


def main() -> int:
    _bound()
    given, answer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    moment = parse_moment(_read_line(given))
    os.environ.update(moment.variables)
    try:
        with closing(LogReader(moment.database)) as log:
            report, local = examine(log, moment, _receive_texts(given))
        said: dict[str, Any] = {"report": report.model_dump(mode="json"), "local": local}
    except ApplianceError as error:
        said = {"failure": {"code": error.code, "message": error.message}}
    except MemoryError:
        said = {"failure": {"code": "out-of-memory", "message": "verification: expected enough memory, got too little"}}
    answer.write(json.dumps(said).encode())
    answer.close()
    return 0


def _bound() -> None:
    """Half of the machine's memory, and no more of its processor than others leave."""
    forbid_dumps()  # it knows the database's password
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (half, half))
    os.nice(POLITENESS)


def _receive_texts(given: BinaryIO) -> Iterator[Disclosure]:
    """Behind the last, a thread waits for the service's end."""
    while (line := _read_line(given)) != END:
        yield parse_disclosure(line[:-1])
    threading.Thread(target=_end_with_service, name="end-with-service", daemon=True).start()


def _read_line(given: BinaryIO) -> bytes:
    line = given.readline()
    if not line.endswith(b"\n"):
        os._exit(1)  # the service has died
    return line


def _end_with_service() -> None:
    while os.read(0, 1):
        continue
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
