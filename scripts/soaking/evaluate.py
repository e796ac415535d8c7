"""After the last request: every answer has its entries, nothing is left open, and the log is verified from bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from appliance.domain.core.entry import Entry, parse_entry
from appliance.formats.core.timestamp import parse_time
from appliance.formats.log.export import ParsedExport
from scripts.kit.appliance import Refused
from scripts.soaking.deployment import BUILTIN, SERVED_MODEL, Deployment
from scripts.soaking.questions import QUESTIONS
from scripts.soaking.record import Record

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 32
TRIES = 5


def evaluate(deployed: Deployment, record: Record, current: dict[str, str], folder: Path) -> int:
    """Add findings to the record, and return the number of verified entries."""
    check_alive(deployed, record, current)
    deployed.stop()
    deployed.site.start()
    tar, trust = folder / "ledger.tar", folder / "trust.json"
    tar.write_bytes(deployed.site.ask("GET", "/v1/ledger/export", "axel"))
    trust.write_bytes(deployed.site.settings.trust.read_bytes())
    command = [sys.executable, "-m", "appliance.verifier", str(tar), "--trust", str(trust), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        record.violate(f"verification: expected verified, got exit code {done.returncode}: {done.stdout[-2000:]}")
    with open(tar, "rb") as stream, ParsedExport(stream) as export:
        entries = [parse_entry(data) for data in export.entries()]
    check_entries(entries, record)
    check_words(entries, record)
    return int(json.loads(done.stdout)["size"]) if done.stdout else 0


def check_alive(deployed: Deployment, record: Record, current: dict[str, str]) -> None:
    """Every unit is answered by today's release, and as many at once as the engine takes: no place was lost."""

    def ask(number: int) -> None:
        unit = deployed.units[number % len(deployed.units)]
        gateway = deployed.gateways[number // len(deployed.units) % len(deployed.gateways)]
        said = ""
        for _ in range(TRIES):
            try:
                answer = gateway.site.chat(unit, SERVED_MODEL, **QUESTIONS[0].body)
            except Refused as error:
                # The worker goes on failing in the middle of batches.
                said = str(error)
                continue
            text = answer["choices"][0]["message"]["content"]
            if current[unit] not in deployed.given_by(gateway.engine, 0, text):
                record.violate(f"{unit}: expected the mark of {current[unit]} in the end, got another")
            return
        record.violate(f"{unit}: expected an answer in the end, got {said}")

    gateways = len(deployed.gateways)
    for number in range(len(deployed.units) * gateways):
        ask(number)
    with ThreadPoolExecutor(AT_ONCE * gateways) as pool:
        list(pool.map(ask, range(AT_ONCE * gateways)))


def time_last_token(unloaded: Entry, revoked: Entry, record: Record) -> None:
    """Record the seconds from the revocation to the adapter's last token, by the ledger; 0 without a later token."""
    last = unloaded.body["last_token"]
    if last is not None:
        late = (parse_time(last) - parse_time(revoked.time)).total_seconds()
        record.time("revocation to last token, by the ledger", max(0.0, late))


def check_entries(entries: list[Entry], record: Record) -> None:
    admitted, finished = read_requests(entries, record)
    for request in sorted(set(admitted) - set(finished)):
        record.violate(f"request {request}: expected its end in the ledger, got none")
    for given in record.given:
        wanted, end = admitted.get(given.request), finished.get(given.request)
        if wanted is None or end is None:
            record.violate(f"request {given.request}: was answered, expected both of its entries, got not both")
        elif wanted != given.adapter:
            record.violate(f"request {given.request}: expected {given.adapter} in the ledger, got {wanted}")
        elif (end.body.get("engine") or BUILTIN) != given.engine:
            record.violate(f"request {given.request}: expected {given.engine} in the ledger, got another engine")
        elif given.whole and end.outcome != "success":
            record.violate(f"request {given.request}: was answered whole, expected success, got {end.outcome}")


def read_requests(entries: list[Entry], record: Record) -> tuple[dict[str, str], dict[str, Entry]]:
    """Return the adapter and outcome of each request. Check that none was admitted for a revoked adapter."""
    admitted: dict[str, str] = {}
    finished: dict[str, Entry] = {}
    revoked: dict[str, Entry] = {}
    for entry in entries:
        adapter = entry.body.get("adapter")
        if entry.type == "request.admitted":
            admitted[entry.body["request"]] = entry.body["adapter"]
            if adapter in revoked:
                record.violate(f"entry {entry.index}: expected nothing of {adapter} after its revocation")
        elif entry.type == "request.finished":
            finished[entry.body["request"]] = entry
        elif entry.type == "adapter.revoked":
            revoked[entry.subjects[1].removeprefix("adapter:")] = entry
        elif entry.type == "adapter.unloaded" and adapter in revoked:
            time_last_token(entry, revoked[adapter], record)
        record.figures[f"entries: {entry.type}"] += 1
    return admitted, finished


def check_words(entries: list[Entry], record: Record) -> None:
    """Each process that had loaded what was revoked has said that it unloaded it, or has ended."""
    loaded: dict[tuple[str, str, str], str] = {}
    revoked: set[str] = set()
    for entry in entries:
        body = entry.body
        if entry.type in ("service.started", "service.stopped", "process.lost"):
            gone = f"service:{body['process']}" if body.get("process") else "service"
            loaded = {slot: adapter for slot, adapter in loaded.items() if slot[0] != gone}
        elif entry.type == "adapter.loaded":
            loaded[entry.source, body["unit"], body["served_model"]] = body["adapter"]
        elif entry.type == "adapter.unloaded":
            if loaded.pop((entry.source, body["unit"], body["served_model"]), None) in revoked:
                record.count(f"words of what was revoked, {entry.source}")
        elif entry.type == "adapter.revoked":
            revoked.add(entry.subjects[1].removeprefix("adapter:"))
    for (source, _, _), adapter in loaded.items():
        if adapter in revoked:
            record.violate(f"{adapter}: expected {source} to say that it unloaded it, got nothing")
