"""A program that verifies the log in its own process, with its own read-only connection to the database.

Descriptor 0 gives the moment to verify: one line of JSON, then a line for each disclosed text, then an empty line.
Descriptor 1 gets one JSON object: the report, or a failure. The program ends when descriptor 0 closes.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from appliance.access.cedar import CedarPolicies
from appliance.domain.audit.report import MAX_FINDINGS, Report, require_cedar_policies
from appliance.domain.audit.verify import verify_log
from appliance.errors import ApplianceError, Unavailable
from appliance.formats.core.commitment import Disclosure, encode_disclosure, parse_disclosure
from appliance.formats.log.checkpoint import claimed_size
from appliance.formats.log.trust import Trust, encode_trust, parse_trust
from appliance.sandbox.program import END, answer_once, end_with_service
from appliance.store.database.engine import using_engine
from appliance.store.ledger.checks import check_database, find_document, read_log
from appliance.store.ledger.log_state import KnownHead

MOST_CHARACTERS = 4_000
"""Most characters of one local finding, since findings quote rows."""


@dataclass(frozen=True)
class Moment:
    """The state to verify.

    `database`: the URL with its password. `seen`: the head that the service has read; the log must not be shorter.
    `variables`: the environment variables of the service that PostgreSQL's library reads.
    """

    database: str
    variables: dict[str, str]
    seen: KnownHead
    checkpoint: bytes
    trust: Trust | None
    now: str


def encode_moment(moment: Moment, texts: Iterable[Disclosure]) -> Iterator[bytes]:
    """Yield the lines for `run_program`."""
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
    """Return the moment of the first line."""
    value: dict[str, Any] = json.loads(line)
    return Moment(
        database=value["database"],
        variables=value["variables"],
        seen=KnownHead(value["size"], bytes.fromhex(value["root"])),
        checkpoint=b64decode(value["checkpoint"]),
        trust=None if value["trust"] is None else parse_trust(value["trust"].encode()),
        now=value["now"],
    )


def examine(moment: Moment, texts: Iterable[Disclosure]) -> tuple[Report, list[str]]:
    """Return the report over the log, and the findings on the rest of the database."""
    with using_engine(moment.database, read_only=True) as log:
        entries = partial(read_log, log, 0, claimed_size(moment.checkpoint))
        report = verify_log(
            entries(),
            partial(_read_document, partial(find_document, log)),
            texts,
            moment.checkpoint,
            moment.trust,
            now=moment.now,
            replay=lambda policy: CedarPolicies.confine(policy).decide,
            again=entries,
        )
        return require_cedar_policies(report, accepted=False), _shorten(check_database(log, moment.seen))


def _read_document(read: Callable[[str], bytes], digest: str) -> bytes | None:
    """Return the document, or None if its bytes are wrong, which the report says.

    Raises:
        Unavailable: The database does not respond, which is no finding.
    """
    try:
        return read(digest)
    except Unavailable:
        raise
    except ApplianceError:
        return None


def _shorten(findings: list[str]) -> list[str]:
    kept = [one if len(one) <= MOST_CHARACTERS else f"{one[:MOST_CHARACTERS]}…" for one in findings[:MAX_FINDINGS]]
    return kept if len(findings) <= MAX_FINDINGS else [*kept, f"{len(findings) - MAX_FINDINGS} more"]


def answer(source: BinaryIO) -> dict[str, Any]:
    """Verify the moment of the source, with half of the machine's memory at most."""
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (half, half))
    moment = parse_moment(_read_line(source))
    os.environ.update(moment.variables)
    try:
        report, local = examine(moment, _receive_texts(source))
        return {"report": report.model_dump(mode="json"), "local": local}
    except MemoryError:
        raise Unavailable("verification: expected enough memory, got too little", code="out-of-memory") from None


def _receive_texts(source: BinaryIO) -> Iterator[Disclosure]:
    """Yield the disclosed texts. After the last one, a thread waits for the service's end."""
    while (line := _read_line(source)) != END:
        yield parse_disclosure(line[:-1])
    end_with_service()


def _read_line(source: BinaryIO) -> bytes:
    line = source.readline()
    if not line.endswith(b"\n"):
        os._exit(1)  # the service has ended
    return line


if __name__ == "__main__":
    sys.exit(answer_once(answer))
