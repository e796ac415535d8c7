"""An exported adapter is fetched and written to a folder: its own bytes, hashed here, and all that proves it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.client.releases.reviews import find_release
from appliance.client.support.door import Door
from appliance.client.support.files import check_place
from appliance.client.support.orders import propose
from appliance.domain.core.names import add_seconds, split_version
from appliance.domain.releases.exports import ExportAdapter, ExportedAdapter, check_exported
from appliance.domain.rulebook.proposals import Proposal
from appliance.domain.witnesses.cosignatures import cosigned_until
from appliance.errors import Conflict, Tampered, Unavailable
from appliance.formats.artifacts.manifest import MANIFEST_PATH, parse_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import parse_base64
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.trust import Trust

PROOFS, STANDING, SIGNATURE, ADAPTER = "proofs.json", "standing.json", "signature.json", "adapter"


def propose_export(door: Door, signer: str, unit: str, task: str, until: str | None) -> Proposal:
    """Of what answers the unit's task today; without a date as long as policy and approvals let it."""
    current = find_release(door, unit, task)["history"][-1]
    name, version = split_version(current["adapter"])
    latest = _latest(door, str(current["adapter"]), unit)
    values = {
        "adapter": name,
        "version": version,
        "manifest": current["manifest"],
        "unit": unit,
        "task": task,
        "valid_until": until or latest,
    }
    return propose(door.about, signer, ExportAdapter, values)


def _latest(door: Door, adapter: str, unit: str) -> str:
    """A minute less than the service lets it, so that the order may travel."""
    rules, now = door.about.parameters, encode_time(datetime.now(UTC))
    limit = add_seconds(now, int(rules["export_lifetime_s"]) - 60)
    row = door.get(f"/v1/adapters/{adapter}")
    last = {review["reviewer"]: review for review in row["reviews"] if review["unit"] == unit}
    asked = [one["request"] for one in row["asked"] if one["request"]["unit"] == unit]
    dates = [review[name] for review in last.values() for name in ("valid_until", "again_by")]
    dates += [(one["conditions"] or {}).get("not_after") for one in (*last.values(), *asked)]
    dates += [one["due"] for one in row["findings"] if one["kind"] == "exception" and one["open"]]
    return str(min([limit, *(date for date in dates if now < (date or now)), *_witnessed(door, rules)]))


def _witnessed(door: Door, rules: Mapping[str, Any]) -> list[str]:
    """Until when enough cosignatures count, where policy asks for witnesses."""
    quorum = int(rules["witness_quorum"])
    if not quorum:
        return []
    times = [str(row["time"]) for row in door.get("/v1/witnesses") if row["vkey"] in rules["witnesses"]]
    return cosigned_until(times, quorum, int(rules["witness_lifetime_s"]))


def fetch_export(door: Door, digest: str, progress: Callable[[int], None]) -> tuple[dict[str, Any], ExportedAdapter]:
    """The export of this order, its files hashed against the manifest that was ordered."""
    told = door.get(f"/v1/exports/{digest}")
    name, files = str(told["adapter"]), {}
    data = b"".join(door.stream(f"/v1/adapters/{name}/files/{MANIFEST_PATH}"))
    if digest_bytes(data) != told["manifest"]:
        raise Tampered(f"adapter {name}, manifest: expected {told['manifest']}, got {digest_bytes(data)}")
    files[MANIFEST_PATH] = data
    for file in parse_manifest(data).files:
        chunks = []
        for chunk in door.stream(f"/v1/adapters/{name}/files/{file.path}"):
            chunks.append(chunk)
            progress(len(chunk))
        files[file.path] = b"".join(chunks)
    parts = [parse_base64(str(told[part]), f"export, {part}") for part in ("proofs", "standing", "signature")]
    return told, ExportedAdapter(parts[0], parts[1], parts[2], files)


def check_free(folder: Path) -> None:
    """Asked before anything is signed, too."""
    check_place(folder, "export")
    if folder.exists():
        raise Conflict(f"export, {folder}: expected a new folder, got an existing one")


def write_export(folder: Path, received: ExportedAdapter, trust: Trust | None, *, unit: str, task: str) -> None:
    """A new folder, written once what is in it holds for the unit's task, where a trust file says what that is."""
    if trust is not None:
        check_exported(received, trust, encode_time(datetime.now(UTC)), unit=unit, task=task)
    check_free(folder)
    try:
        folder.mkdir()
        (folder / ADAPTER).mkdir()
        beside = {PROOFS: received.proofs, STANDING: received.standing, SIGNATURE: received.signature}
        for path, data in {**beside, **{f"{ADAPTER}/{name}": data for name, data in received.files.items()}}.items():
            with open(folder / path, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise Unavailable(f"export, {folder}: expected to write there, got {error.strerror}") from None
