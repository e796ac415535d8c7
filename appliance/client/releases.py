"""Releases for the client: instructions, rollbacks, sample views and trials, conditions, and exported adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.api.releases import Adapter, ExportPacket, PreviewResult, PreviewStatus, PromptsHeld, PromptsRequest
from appliance.client.evidence import ReviewEvidence
from appliance.client.support.connection import Connection
from appliance.client.support.files import write_folder
from appliance.domain.core.decisions import Conditions
from appliance.domain.core.lookup import UnprovenValue
from appliance.domain.core.names import add_seconds, list_problems
from appliance.domain.core.policy import Parameters
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.serving import Release
from appliance.domain.core.records.site import WitnessRecord
from appliance.domain.releases.adapters import SIGNATURE_FILES
from appliance.domain.releases.exports import ExportedFolder, check_exported
from appliance.domain.releases.previews import MOST_PROMPTS
from appliance.domain.releases.suspensions import list_suspending_roles
from appliance.domain.witnesses import cosigned_until
from appliance.errors import BadInput, NotFound, Tampered, Unavailable, refuse
from appliance.formats.artifacts.manifest import MANIFEST_PATH, parse_manifest
from appliance.formats.core.commitment import Disclosure
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.trust import Trust


def check_instruction(evidence: ReviewEvidence, adds_instruction: bool) -> None:
    """Raise BadInput if a release should add the dataset's instruction, and the dataset has none."""
    instruction = evidence.page.training_data.instruction
    if adds_instruction and not instruction:
        got = "one that was erased" if instruction is None else "none"
        raise BadInput(f"release of {evidence.name}, instruction: expected its dataset to have one, got {got}")


def earlier_adapter(connection: Connection, unit: str, served_model: str, wanted: str | None) -> tuple[str, bool]:
    """Return the adapter to roll back to, and whether the service added the instruction when it was last active.

    It is the named one, or the one that was active before the current one.

    Raises: NotFound if there is none.
    """
    release = find_release(connection, unit, served_model)
    current, earlier = release.current.adapter, {step.adapter: step for step in release.earlier}
    if not earlier:
        raise NotFound(f"release {unit}/{served_model}: expected an earlier adapter than {current}, got none")
    if wanted is not None and wanted not in earlier:
        raise NotFound(f"release {unit}/{served_model}: expected one of {', '.join(earlier)}, got {wanted}")
    chosen = earlier[wanted] if wanted is not None else release.earlier[0]
    return chosen.adapter, chosen.adds_instruction


def find_release(connection: Connection, unit: str, served_model: str) -> Release:
    """Return the release of a unit's served model.

    Raises: NotFound if there is none.
    """
    releases = connection.get("/v1/releases", list[Release])
    for release in releases:
        if (release.unit, release.served_model) == (unit, served_model):
            return release
    known = ", ".join(f"{release.unit}/{release.served_model}" for release in releases) or "none"
    raise NotFound(
        f"release: expected one of {known}, got {unit}/{served_model}; list them with: appliance release history"
    )


PROOFS, STATE_ROWS, ADAPTER = "proofs.json", "state-rows.json", "adapter"


def choose_export(connection: Connection, unit: str, served_model: str, until: str | None) -> dict[str, Any]:
    """Return the values of an order to export the adapter that is active for the unit's served model.

    The service says which adapter that is. Without a date the export is valid for as long as policy and approvals
    allow.
    """
    adapter = find_release(connection, unit, served_model).current.adapter
    end = until or UnprovenValue(_latest_end(connection, adapter, unit))
    return {"adapter": UnprovenValue(adapter), "unit": unit, "served_model": served_model, "valid_until": end}


def _latest_end(connection: Connection, adapter: str, unit: str) -> str:
    """Return the latest possible end of an export.

    It is a minute before the service's limit, which allows for the order's delivery.
    """
    rules, now = connection.about.parameters, encode_time(datetime.now(UTC))
    limit = add_seconds(now, rules.export_lifetime_s - 60)
    row = connection.get(f"/v1/adapters/{adapter}", Adapter)
    last = {review.reviewer: review for review in row.reviews if review.unit == unit}.values()
    requests = [item.request for item in row.release_requests if item.request.unit == unit]
    dates = [date for review in last for date in (review.valid_until, review.again_by)]
    conditions = [*(review.conditions for review in last), *(request.conditions for request in requests)]
    dates += [one.not_after for one in conditions if one is not None]
    dates += [item.due for item in row.findings if item.kind == "exception" and item.open]
    later = [date for date in dates if date is not None and now < date]
    return min([limit, *later, *_list_witness_limits(connection, rules)])


def _list_witness_limits(connection: Connection, rules: Parameters) -> list[str]:
    """Return the time until which enough cosignatures are valid, as a list of one.

    The list is empty if policy requires no witnesses.
    """
    quorum = rules.witness_quorum
    if not quorum:
        return []
    times = [row.time for row in connection.get("/v1/witnesses", list[WitnessRecord]) if row.vkey in rules.witnesses]
    return cosigned_until(times, quorum, rules.witness_lifetime_s)


def fetch_export(
    connection: Connection, digest: str, progress: Callable[[int], None]
) -> tuple[ExportPacket, ExportedFolder]:
    """Return the export of this order and its files, hashed against the manifest that was ordered.

    Raises: Tampered if the manifest is another one.
    """
    packet = connection.get(f"/v1/exports/{digest}", ExportPacket)
    name, files = packet.adapter, {}
    data = b"".join(connection.stream(f"/v1/adapters/{name}/files/{MANIFEST_PATH}"))
    if digest_bytes(data) != packet.manifest:
        raise Tampered(f"adapter {name}, manifest: expected {packet.manifest}, got {digest_bytes(data)}")
    files[MANIFEST_PATH] = data
    for file in parse_manifest(data).files:
        chunks = []
        for chunk in connection.stream(f"/v1/adapters/{name}/files/{file.path}"):
            chunks.append(chunk)
            progress(len(chunk))
        files[file.path] = b"".join(chunks)
    return packet, ExportedFolder(packet.proofs, packet.state_rows, packet.signatures, files)


def write_export(folder: Path, received: ExportedFolder, trust: Trust | None, *, unit: str, served_model: str) -> None:
    """Write a new folder, after verifying the content for the unit's served model if there is a trust file.

    The folder gets its name when it is complete.

    Raises: Conflict if the folder exists; Denied or Tampered if the content is not valid; Unavailable if it cannot be
    written.
    """
    if trust is not None:
        check_exported(received, trust, encode_time(datetime.now(UTC)), unit=unit, served_model=served_model)
    signatures = dict(zip(SIGNATURE_FILES, received.signatures, strict=False))
    beside = {PROOFS: received.proofs, STATE_ROWS: received.state_rows, **signatures}
    adapter = {f"{ADAPTER}/{name}": data for name, data in received.files.items()}
    write_folder(folder, beside | adapter, "export")


def make_conditions(values: Mapping[str, Any]) -> Conditions | None:
    """Return the conditions, or None if none is set.

    Raises: BadInput, which names a malformed value.
    """
    try:
        conditions = Conditions.model_validate(dict(values))
    except ValidationError as error:
        refuse("conditions", [f"conditions, {problem}" for problem in list_problems(error)])
        raise AssertionError("unreachable: invalid conditions have a problem") from None
    return None if conditions.say_nothing() else conditions


WAIT_S = 20
"""Seconds for which one request for a result waits at the service."""


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise BadInput for no prompts, or for more than one order can have."""
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise BadInput(
            f"prompts: expected 1 to {MOST_PROMPTS} in one order, got {len(prompts)}; send the others in another one"
        )


def send_prompts(connection: Connection, prompts: Sequence[Disclosure]) -> None:
    """Send the prompts, which the service keeps in memory until the order that binds them."""
    connection.post("/v1/prompts", PromptsHeld, PromptsRequest(prompts=tuple(prompts)))


def wait_for_preview(connection: Connection, order: str, waits: Callable[[], None] = lambda: None) -> PreviewResult:
    """Return the result of a sample view or trial, which the service gives once.

    Raises: Unavailable, with the reason, if there is none.
    """
    while not (state := connection.get(f"/v1/previews/{order}", PreviewStatus, wait_s=WAIT_S)).ended:
        waits()
    if state.error is not None:
        raise Unavailable(state.error.message, code=state.error.code)
    if state.result is None:
        raise Tampered(f"preview {order}: expected its answers, got none")
    return state.result


def choose_role(connection: Connection, signer: str, unit: str, wanted: str | None) -> str:
    """Return the role under which a person suspends a release of the unit: the wanted one, or the only possible one.

    Raises: BadInput if the person has none, or several.
    """
    if wanted is not None:
        return wanted
    held = [
        role for row in connection.get("/v1/principals", list[Principal]) if row.name == signer for role in row.roles
    ]
    roles = list_suspending_roles(held, unit)
    if len(roles) != 1:
        got = ", ".join(roles) or "none"
        raise BadInput(f"role: expected exactly one of yours that can suspend for {unit}, got {got}; name it: --role")
    return roles[0]


def choose_suspension(connection: Connection, adapter: str, unit: str) -> int:
    """Return the entry of the only valid suspension of an adapter for a unit.

    Raises: NotFound if there is none; BadInput if there are several.
    """
    row = connection.get(f"/v1/adapters/{adapter}", Adapter)
    entries = [one.index for one in row.suspensions if one.valid and one.unit == unit]
    if not entries:
        raise NotFound(f"suspension: expected a valid one of {adapter} for {unit}, got none")
    if len(entries) > 1:
        known = ", ".join(map(str, entries))
        raise BadInput(f"suspension: expected one, got those of entries {known}; name it: --entry")
    return entries[0]
