"""Enrolment, keys, passkeys, applications and tokens: proofs, orders to sign, and the issue of a unit's token."""

from __future__ import annotations

import base64
import csv
import io
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from appliance.client.support.connection import Connection
from appliance.client.support.files import read_file
from appliance.client.support.log import Anchor, find_entries, list_rows, read_event
from appliance.domain.core.credentials import (
    ISSUED,
    PasskeyPossession,
    Possession,
    UnitToken,
    encode_credential,
    encode_token,
    parse_credential,
    parse_token,
)
from appliance.domain.core.lookup import OrderInput
from appliance.domain.core.names import add_seconds, list_problems
from appliance.domain.core.records.people import Key, Principal
from appliance.domain.core.records.serving import Release
from appliance.domain.core.words import unknown_word
from appliance.domain.governance.invitations import InvitationAccepted, InvitationWithdrawn, PersonInvited
from appliance.domain.governance.keys import derive_key_fields
from appliance.domain.governance.passkeys import make_passkey_scope
from appliance.domain.governance.people import MOST_PEOPLE, Enrolment, join_proofs
from appliance.errors import ApplianceError, BadInput, NotFound, Tampered, refuse
from appliance.formats.core.commitment import disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import Envelope, encode_envelope, parse_envelope, sign_envelope, verify_envelope
from appliance.formats.signatures.keys import Signer

P = TypeVar("P", Possession, PasskeyPossession)

_MAX_STATEMENT_BYTES = 65_536
_MAX_TABLE_BYTES = 65_536
TABLE, TABLE_COLUMNS = "people.csv", ("name", "printed_name", "roles")
"""Name and columns of the table of a folder whose people are enrolled together; roles are separated by spaces."""


def prove_possession(origin: str, name: str, key: Signer) -> bytes:
    """Return the envelope that a new person gives to an administrator.

    It proves possession of this key, under this name, for this log.
    """
    statement = Possession.model_validate(
        {
            **_header(origin, name),
            "key": base64.b64encode(key.spki).decode("ascii"),
            "keyid": key.keyid,
        }
    )
    return encode_envelope(sign_envelope(encode_credential(statement), key))


def _read_proof(path: Path, what: str, kind: type[P], source: str) -> tuple[bytes, Envelope, P]:
    """Return the bytes of a proof, its envelope and its statement, which are not verified yet."""
    data = read_file(path, what, _MAX_STATEMENT_BYTES).removesuffix(b"\n")
    try:
        envelope = parse_envelope(data)
        return data, envelope, parse_credential(kind, envelope.payload)
    except BadInput as error:
        raise BadInput(
            f"{what}, {path}: expected the file that {source} makes, got another one: {error.message}"
        ) from None


def read_possession(path: Path, origin: str, name: str) -> tuple[bytes, Possession]:
    """Return the envelope's bytes and its statement, after verifying the new key's signature.

    Raises: BadInput if it is for another log or name; Tampered if the signature is invalid.
    """
    data, envelope, statement = _read_proof(path, "proof of possession", Possession, "appliance key prove")
    if statement.origin != origin:
        raise BadInput(
            f"proof of possession, log: expected {origin}, got {statement.origin}; "
            f"make a new one with: appliance key prove --as {name} --origin {origin}"
        )
    if statement.signer != name:
        raise BadInput(
            f"proof of possession, principal: expected {name}, got {statement.signer}; name {statement.signer}, or "
            f"have a new one made with: appliance key prove --as {name}"
        )
    verify_envelope(envelope, base64.b64decode(statement.key))
    if envelope.signature.keyid != statement.keyid:
        raise Tampered(f"proof of possession, key: expected {statement.keyid}, got {envelope.signature.keyid}")
    return data, statement


def read_invited_proof(connection: Connection, anchor: Anchor, name: str) -> tuple[bytes, str]:
    """Return the proof of the passkey that an invited person made last, from its proved entry, and the key id.

    Raises: NotFound if the person has accepted no invitation, or it was withdrawn or replaced.
    """
    index = _find_accepted(connection, name)
    if index is None:
        raise NotFound(f"invitation: expected one that {name} has accepted, got none")
    proven, body = read_event(connection, anchor, index, InvitationAccepted, principal=name)
    return proven.document("possession"), body.keyid


def find_dropped_passkey(connection: Connection, anchor: Anchor, name: str) -> str | None:
    """Return the key id of the passkey that an invited person has made, and that another invitation drops, or None."""
    index = _find_accepted(connection, name)
    return None if index is None else read_event(connection, anchor, index, InvitationAccepted, principal=name)[1].keyid


def _find_accepted(connection: Connection, name: str) -> int | None:
    """Return the entry of the passkey of the name's invitation, or None if the invitation is not accepted."""
    for entry in find_entries(connection, subject=f"principal:{name}", newest=True):
        if entry.type == InvitationAccepted.type:
            return entry.index
        if entry.type in (PersonInvited.type, InvitationWithdrawn.type):
            break
    return None


@dataclass(frozen=True)
class Newcomer:
    """A line of a folder's table, and the proof beside it."""

    name: str
    printed_name: str
    roles: tuple[str, ...]
    proof: Path


def read_enrolments(folder: Path, origin: str) -> OrderInput:
    """Return the values of one order for all people in the folder's table.

    Raises: BadInput with every problem of the table and the proofs.
    """
    newcomers = read_newcomers(folder)
    people, disclosures, proofs, problems = [], [], [], []
    for newcomer in newcomers:
        try:
            data, statement = read_possession(newcomer.proof, origin, newcomer.name)
        except ApplianceError as error:
            problems.append(f"{newcomer.name}: {error.message}")
            continue
        printed = disclose(newcomer.printed_name, secrets.token_bytes(32))
        proved = {
            name: one.value for name, one in derive_key_fields(statement, parse_envelope(data).pae_digest).items()
        }
        try:
            values = {**proved, "printed_name": printed.commitment, "roles": newcomer.roles}
            people.append(Enrolment.model_validate(values))
        except ValidationError as error:
            problems += [f"{newcomer.name}: {problem}" for problem in list_problems(error)]
        disclosures.append(printed)
        proofs.append(data)
    refuse(f"folder {folder}", problems)
    documents = {"possessions": join_proofs(proofs)}
    return OrderInput({"people": tuple(people)}, documents=documents, disclosures=tuple(disclosures))


def read_newcomers(folder: Path) -> list[Newcomer]:
    """Return the lines of the folder's table, each with a proof NAME.proof beside it.

    Raises: BadInput with every problem.
    """
    text = read_file(folder / TABLE, "table of people", _MAX_TABLE_BYTES).decode("utf-8", "replace")
    header, *lines = list(csv.reader(io.StringIO(text))) or [[]]
    if header != list(TABLE_COLUMNS):
        raise BadInput(f"{folder / TABLE}, line 1: expected {','.join(TABLE_COLUMNS)}, got {','.join(header)!r}")
    rows = [(number, line) for number, line in enumerate(lines, 2) if line]
    problems = [
        f"{TABLE}, line {number}: expected {len(TABLE_COLUMNS)} values, got {len(line)}"
        for number, line in rows
        if len(line) != len(TABLE_COLUMNS)
    ]
    complete_rows = [(number, line) for number, line in rows if len(line) == len(TABLE_COLUMNS)]
    newcomers = [
        Newcomer(n.strip(), p.strip(), tuple(r.split()), folder / f"{n.strip()}.proof")
        for _, (n, p, r) in complete_rows
    ]
    problems += [
        f"{TABLE}, line {number}: expected a printed name, got none"
        for (number, _), newcomer in zip(complete_rows, newcomers, strict=True)
        if not newcomer.printed_name
    ]
    names = Counter(newcomer.name for newcomer in newcomers)
    problems += [f"{TABLE}: expected {name!r} once, got it twice" for name, count in names.items() if count > 1]
    problems += [
        f"{path.name}: expected a line in {TABLE} for it, got none"
        for path in sorted(folder.glob("*.proof"))
        if path.stem not in names
    ]
    if not rows or len(rows) > MOST_PEOPLE:
        problems.append(f"{TABLE}: expected 1 to {MOST_PEOPLE} people, got {len(rows)}")
    refuse(f"folder {folder}", problems)
    return newcomers


def read_passkey_proof(path: Path, origin: str, name: str) -> tuple[bytes, PasskeyPossession]:
    """Return the envelope's bytes and its statement, after verifying the passkey's assertion.

    Raises: BadInput if it is for another log or name; Tampered if the assertion is invalid.
    """
    data, envelope, statement = _read_proof(path, "proof of a passkey", PasskeyPossession, "the console")
    for what, expected, got in (("log", origin, statement.origin), ("principal", name, statement.signer)):
        if got != expected:
            raise BadInput(f"proof of a passkey, {what}: expected {expected}, got {got}; make another in the console")
    verify_envelope(envelope, base64.b64decode(statement.key), make_passkey_scope(statement))
    return data, statement


def token_digest(text: str) -> str:
    """Return the digest that identifies a token in the ledger; a digest is returned unchanged."""
    if text.startswith(ISSUED):
        return digest_bytes(text.encode())
    return text if text.startswith("sha256:") else parse_token(text).pae_digest


def keys_of(connection: Connection, name: str) -> list[Key]:
    """Return every key that the person ever had, in the order of enrolment.

    Raises: NotFound if the name was never enrolled.
    """
    found = [key for key in list_rows(connection, "key", Key) if key.principal == name]
    if not found:
        raise NotFound(f"keys of {name}: expected an enrolled name, got one that was never enrolled")
    return sorted(found, key=lambda key: key.enrolled)


def find_keyid(keys: list[Key], prefix: str | None) -> str:
    """Return the id of the one key that begins with the prefix, or of the passkey of this name.

    `sha256:` may be omitted. Without a prefix, return the id of the only key.

    Raises: BadInput unless exactly one key matches.
    """
    named = [key.keyid for key in keys if key.passkey is not None and key.passkey.name == prefix]
    if named:
        return named[0]
    digits = "" if prefix is None else prefix.removeprefix("sha256:")
    found = [key.keyid for key in keys if key.keyid.removeprefix("sha256:").startswith(digits)]
    if len(found) != 1 or (prefix is not None and len(digits) < 6):
        known = ", ".join(f"{key.keyid[:19]} of entry {key.enrolled}" for key in keys)
        raise BadInput(
            f"key id {prefix or 'not given'}: expected the start (6 digits or more) of one of this person's keys, "
            f"got {len(found)} that fit; their keys: {known}"
        )
    return found[0]


def issue_token(origin: str, unit: str, key: Signer, ttl_s: int) -> tuple[str, str]:
    """Return a unit's API key, which is one word, and its expiry."""
    header = _header(origin, unit)
    expires = add_seconds(header["issued_at"], ttl_s)
    statement = UnitToken.model_validate({**header, "expires_at": expires})
    return encode_token(sign_envelope(encode_credential(statement), key)), expires


def _header(origin: str, name: str) -> dict[str, str]:
    return {
        "origin": origin,
        "signer": name,
        "nonce": secrets.token_hex(16),
        "issued_at": encode_time(datetime.now(UTC)),
    }


def unreleased_served_models(connection: Connection, unit: str, served_models: Sequence[str]) -> list[str]:
    """Return a message for each served model that is not released to the unit now, with the nearest released one."""
    released = [release.served_model for release in list_rows(connection, "release", Release) if release.unit == unit]
    return [
        unknown_word("served model", served_model, released, f"one released to {unit}")
        + f"; requests for it are refused until it is released to {unit}"
        for served_model in served_models
        if served_model not in released
    ]


def check_unit(connection: Connection, name: str | None) -> None:
    """Raise BadInput, with the nearest name, if no unit of this name was ever enrolled."""
    units = (
        []
        if name is None
        else [row.name for row in connection.get("/v1/principals", list[Principal]) if "unit" in row.roles]
    )
    if name is not None and name not in units:
        raise BadInput(unknown_word("unit", name, units, "an enrolled unit"))
