"""Statements about people and units: the proof of possession of a key, and a unit's token."""

from __future__ import annotations

import base64
import csv
import io
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.client.support.door import About, Door
from appliance.client.support.files import read_file
from appliance.client.support.orders import propose
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
from appliance.domain.core.names import add_seconds, list_problems
from appliance.domain.core.words import unknown_word
from appliance.domain.governance.keys import ReplaceKey, RevokeKey, RotateKey
from appliance.domain.governance.passkeys import PASSKEY_MEMBERS, EnrollPasskey, scope_of
from appliance.domain.governance.people import MOST_PEOPLE, Enroll, EnrollSeveral, Enrolment, join_proofs
from appliance.domain.rulebook.proposals import Proposal
from appliance.domain.serving.applications import EnrollApplication
from appliance.domain.serving.tokens import RevokeTokens
from appliance.errors import ApplianceError, BadInput, NotFound, Tampered, refuse
from appliance.formats.core.commitment import disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import encode_envelope, parse_envelope, sign_envelope, verify_envelope
from appliance.formats.signatures.keys import Signer

_MAX_STATEMENT_BYTES = 65_536
_MAX_TABLE_BYTES = 65_536
TABLE, TABLE_COLUMNS = "people.csv", ("name", "printed_name", "roles")
"""Of a folder whose people are enrolled together; several several roles are separated by spaces."""


def prove_possession(origin: str, name: str, key: Signer) -> bytes:
    """The envelope that a new person hands to an administrator: this key, under this name, for this log."""
    statement = Possession.model_validate(
        {
            **_header(origin, name),
            "key": base64.b64encode(key.spki).decode("ascii"),
            "keyid": key.keyid,
        }
    )
    return encode_envelope(sign_envelope(encode_credential(statement), key))


def read_possession(path: Path, origin: str, name: str) -> tuple[bytes, Possession]:
    """The envelope's bytes and its statement, once the new key's own signature holds, for this log and this name."""
    data = read_file(path, "proof of possession", _MAX_STATEMENT_BYTES).removesuffix(b"\n")
    envelope = parse_envelope(data)
    statement = parse_credential(Possession, envelope.payload)
    if statement.origin != origin:
        raise BadInput(
            f"proof of possession, log: expected {origin}, got {statement.origin}; "
            f"make a new one with: appliance key prove --as {name} --origin {origin}"
        )
    if statement.signer != name:
        raise BadInput(f"proof of possession, principal: expected {name}, got {statement.signer}")
    verify_envelope(envelope, base64.b64decode(statement.key))
    if envelope.signature.keyid != statement.keyid:
        raise Tampered(f"proof of possession, key: expected {statement.keyid}, got {envelope.signature.keyid}")
    return data, statement


def propose_enrolment(
    about: About, signer: str, name: str, printed_name: str, roles: tuple[str, ...], possession: Path
) -> Proposal:
    """Takes the key from the proof alone, so that no key is enrolled that its owner did not offer."""
    data, statement = read_possession(possession, about.origin, name)
    return propose(
        about,
        signer,
        Enroll,
        {"roles": roles, **_key_values(data, statement)},
        texts={"printed_name": printed_name},
        documents={"possession": data},
    )


@dataclass(frozen=True)
class Newcomer:
    """A line of a folder's table, and the proof that lies beside it."""

    name: str
    printed_name: str
    roles: tuple[str, ...]
    proof: Path


def propose_enrolments(about: About, signer: str, folder: Path) -> Proposal:
    """One order for everybody in the folder's table. BadInput names every fault of table and proofs at once."""
    newcomers = read_newcomers(folder)
    people, disclosures, proofs, problems = [], [], [], []
    for one in newcomers:
        try:
            data, statement = read_possession(one.proof, about.origin, one.name)
        except ApplianceError as error:
            problems.append(f"{one.name}: {error.message}")
            continue
        printed = disclose(one.printed_name, secrets.token_bytes(32))
        values = {**_key_values(data, statement), "printed_name": printed.commitment, "roles": one.roles}
        try:
            people.append(Enrolment.model_validate(values))
        except ValidationError as error:
            problems += [f"{one.name}: {problem}" for problem in list_problems(error)]
        disclosures.append(printed)
        proofs.append(data)
    refuse(f"folder {folder}", problems)
    proposal = propose(
        about, signer, EnrollSeveral, {"people": tuple(people)}, documents={"possessions": join_proofs(proofs)}
    )
    return Proposal(proposal.order, tuple(disclosures), proposal.documents)


def read_newcomers(folder: Path) -> list[Newcomer]:
    """The folder's table, each line with a proof NAME.proof beside it. BadInput names every fault at once."""
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
    whole = [(number, line) for number, line in rows if len(line) == len(TABLE_COLUMNS)]
    found = [Newcomer(n.strip(), p.strip(), tuple(r.split()), folder / f"{n.strip()}.proof") for _, (n, p, r) in whole]
    problems += [
        f"{TABLE}, line {number}: expected a printed name, got none"
        for (number, _), one in zip(whole, found, strict=True)
        if not one.printed_name
    ]
    names = [one.name for one in found]
    problems += [
        f"{TABLE}: expected {name!r} once, got it twice" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    problems += [
        f"{path.name}: expected a line in {TABLE} for it, got none"
        for path in sorted(folder.glob("*.proof"))
        if path.stem not in names
    ]
    if not rows or len(rows) > MOST_PEOPLE:
        problems.append(f"{TABLE}: expected 1 to {MOST_PEOPLE} people, got {len(rows)}")
    refuse(f"folder {folder}", problems)
    return found


def propose_replacement(about: About, signer: str, name: str, possession: Path, reason: str | None) -> Proposal:
    """Another key for a person who lost theirs; taken from their proof alone, as at enrolment."""
    data, statement = read_possession(possession, about.origin, name)
    texts = {} if reason is None else {"reason": reason}
    return propose(about, signer, ReplaceKey, _key_values(data, statement), texts=texts, documents={"possession": data})


def read_passkey_proof(path: Path, origin: str, name: str) -> tuple[bytes, PasskeyPossession]:
    """The envelope's bytes and its statement, once the passkey's own assertion holds, for this log and this name."""
    data = read_file(path, "proof of a passkey", _MAX_STATEMENT_BYTES).removesuffix(b"\n")
    envelope = parse_envelope(data)
    statement = parse_credential(PasskeyPossession, envelope.payload)
    for what, expected, got in (("log", origin, statement.origin), ("principal", name, statement.signer)):
        if got != expected:
            raise BadInput(f"proof of a passkey, {what}: expected {expected}, got {got}; make another in the console")
    verify_envelope(envelope, base64.b64decode(statement.key), scope_of(statement))
    return data, statement


def propose_passkey(about: About, signer: str, name: str, possession: Path) -> Proposal:
    """One more key of a person; everything is taken from the passkey's own proof."""
    data, statement = read_passkey_proof(possession, about.origin, name)
    said = {member: getattr(statement, member) for member in PASSKEY_MEMBERS}
    values = {**_key_values(data, statement), **said}
    return propose(about, signer, EnrollPasskey, values, documents={"possession": data})


def propose_rotation(about: About, name: str, new: Signer, old_until: str) -> Proposal:
    """A person's own: the new key proves itself here, the order is signed with the old one."""
    data = prove_possession(about.origin, name, new)
    statement = parse_credential(Possession, parse_envelope(data).payload)
    values = {**_key_values(data, statement), "old_until": old_until}
    return propose(about, name, RotateKey, values, documents={"possession": data})


def propose_key_revocation(
    about: About, signer: str, name: str, keyid: str, since: int | None, reason: str | None
) -> Proposal:
    texts = {} if reason is None else {"reason": reason}
    return propose(about, signer, RevokeKey, {"principal": name, "keyid": keyid, "since": since}, texts=texts)


def propose_token_revocation(
    about: About,
    signer: str,
    unit: str,
    reason: str | None,
    *,
    token: str | None = None,
    issued_before: str | None = None,
    application: str | None = None,
) -> Proposal:
    texts = {} if reason is None else {"reason": reason}
    values = {"unit": unit, "token": token, "issued_before": issued_before, "application": application}
    return propose(about, signer, RevokeTokens, values, texts=texts)


def token_digest(text: str) -> str:
    """What identifies a token in the ledger: of a token of the unit or of an application, or this very digest."""
    if text.startswith(ISSUED):
        return digest_bytes(text.encode())
    return text if text.startswith("sha256:") else parse_token(text).pae_digest


def propose_application(
    about: About, unit: str, name: str, tasks: tuple[str, ...], possession: Path
) -> tuple[Proposal, str]:
    """The unit's own order for an application, whose key is taken from its proof alone; and the key's id."""
    data, statement = read_possession(possession, about.origin, unit)
    values = {**_key_values(data, statement), "application": name, "tasks": tasks}
    proposal = propose(about, unit, EnrollApplication, values, documents={"possession": data})
    return proposal, statement.keyid


def _key_values(data: bytes, statement: Possession) -> dict[str, str]:
    """What an order says of a key that comes in: it is the proof's own."""
    return {
        "principal": statement.signer,
        "key": statement.key,
        "keyid": statement.keyid,
        "possession": parse_envelope(data).pae_digest,
    }


def keys_of(door: Door, name: str) -> list[dict[str, Any]]:
    """Every key that the person ever had, in the order in which they were enrolled."""
    things = door.get("/v1/ledger/state", kind=("key",))["things"]
    found = [dict(thing["value"]) for thing in things if thing["value"]["principal"] == name]
    if not found:
        raise NotFound(f"keys of {name}: expected an enrolled name, got one that was never enrolled")
    return sorted(found, key=lambda key: int(key["enrolled"]))


def find_keyid(keys: list[dict[str, Any]], prefix: str | None) -> str:
    """The one key whose id starts so (the algorithm's name may be left out), or the passkey of this name; without a
    prefix the only one."""
    named = [str(key["keyid"]) for key in keys if prefix is not None and key.get("passkey", {}).get("name") == prefix]
    if named:
        return named[0]
    wanted = "" if prefix is None else prefix.removeprefix("sha256:")
    found = [str(key["keyid"]) for key in keys if str(key["keyid"]).removeprefix("sha256:").startswith(wanted)]
    if len(found) != 1 or (prefix is not None and len(wanted) < 6):
        known = ", ".join(f"{key['keyid'][:19]} of entry {key['enrolled']}" for key in keys)
        raise BadInput(
            f"key id {prefix or 'not given'}: expected the start (6 digits or more) of one of this person's keys, "
            f"got {len(found)} that fit; their keys: {known}"
        )
    return found[0]


def issue_token(origin: str, unit: str, key: Signer, ttl_s: int) -> tuple[str, str]:
    """A unit's API key, one word, and when it ends."""
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


def unreleased_tasks(door: Door, unit: str, tasks: Sequence[str]) -> list[str]:
    """For each task that is not released to the unit now, what is; the nearest is named."""
    things = door.get("/v1/ledger/state", kind=("release",))["things"]
    released = [thing["value"]["task"] for thing in things if thing["value"]["unit"] == unit]
    return [
        unknown_word("task", task, released, f"one released to {unit}")
        + f"; requests for it are refused until it is released to {unit}"
        for task in tasks
        if task not in released
    ]


def check_unit(door: Door, name: str | None) -> None:
    """BadInput where no unit of this name was ever enrolled; the nearest is named."""
    units = [] if name is None else [row["name"] for row in door.get("/v1/principals") if "unit" in row["roles"]]
    if name is not None and name not in units:
        raise BadInput(unknown_word("unit", name, units, "an enrolled unit"))
