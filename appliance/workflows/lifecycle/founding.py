"""An appliance begins: its keys, the log's first entry, and the trust file that follows from it.

A power cut may come between any two of them. What it left is taken up where it is this home's own and what is asked
for; else nothing is changed, and what stands is named.
"""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from appliance.access.cedar import SitePolicies
from appliance.domain.core.entry import Draft, Entry
from appliance.domain.core.names import Time
from appliance.domain.core.policy import PolicySet
from appliance.domain.core.records.people import Principal
from appliance.domain.governance.service import Administrator, Initialized
from appliance.domain.rulebook.apply import parse_body
from appliance.domain.rulebook.subjects import subjects_of
from appliance.errors import Conflict, Denied, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64
from appliance.formats.log.note import vkey_of
from appliance.formats.log.trust import Trust
from appliance.formats.signatures.keys import Signer
from appliance.store.files.keyring import ADAPTER_KEY, LOG_KEY, Keyring
from appliance.workflows.serving.serve import DIGEST_KEY


@dataclass(frozen=True)
class FoundingRequest:
    """What an appliance is to be. Without an origin: any. `policy`: the first policy set, encoded."""

    origin: str | None
    administrators: tuple[Administrator, ...]
    single_administrator: bool
    policy: bytes


def make_keys(keyring: Keyring) -> tuple[Signer, Signer]:
    """The log's and the adapters' keys, and the key of the requests' digests; those an interrupted init left serve."""
    signers: list[Signer] = []
    for uri, create in ((LOG_KEY, keyring.create_log_key), (ADAPTER_KEY, keyring.create_adapter_key)):
        try:
            signers.append(keyring.open_signer(uri))
        except NotFound:
            signers.append(create())
    try:
        keyring.read_secret(DIGEST_KEY)
    except NotFound:
        keyring.keep_secret(DIGEST_KEY, secrets.token_bytes(32))
    return signers[0], signers[1]


def draft_first(wanted: FoundingRequest, origin: str, log_signer: Signer, adapter_signer: Signer) -> Draft:
    body = Initialized(
        origin=origin,
        log_key=vkey_of(origin, log_signer),
        adapter_key=encode_base64(adapter_signer.spki),
        administrators=wanted.administrators,
        single_administrator=wanted.single_administrator,
    )
    return Draft(type=body.type, subjects=subjects_of(body), documents={"policy": wanted.policy}, body=body)


def check_policy(policy: PolicySet, wanted: FoundingRequest, now: Time) -> None:
    """BadInput where the set could not decide every order, Denied where these administrators could not replace it."""
    people = [
        Principal(name=person.name, printed_name=None, roles=("administrator",), keyid=person.keyid, enrolled=0)
        for person in wanted.administrators
    ]
    if reasons := SitePolicies.for_adoption(policy).locked_out(people, wanted.single_administrator, now):
        raise Denied("policy set: expected one that these administrators can replace", reasons=reasons)


def make_origin() -> str:
    """This host and a random part: two appliances never take each other's orders."""
    host = re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower()).strip("-.") or "appliance"
    return f"{host}/{secrets.token_hex(4)}"


def trust_of(first: Entry) -> Trust:
    body = _body(first)
    people = tuple((person.name, person.keyid) for person in body.administrators)
    return Trust(body.origin, body.log_key, f"sha256:{first.leaf.hex()}", people)


def check_begun(first: Entry, wanted: FoundingRequest, keyring: Keyring) -> None:
    """Conflict where the first entry is another home's, or not of the appliance that is asked for."""
    body = _body(first)
    if not _is_own(body, keyring):
        raise Conflict(
            f"database: expected none yet, or the log of this home's own keys, got the log {body.origin}, whose keys "
            f"({body.log_key}) are not here; give this home a database of its own, or put that log's keys back"
        )
    compared = (
        ("origin", body.origin, wanted.origin or body.origin),
        ("administrators", _names(body.administrators), _names(wanted.administrators)),
        ("single administrator", str(body.single_administrator), str(wanted.single_administrator)),
        ("policy set", first.documents["policy"], digest_bytes(wanted.policy)),
    )
    others = [f"{what}: expected {stands}, got {given}" for what, stands, given in compared if stands != given]
    if others:
        raise Conflict(
            f"appliance {body.origin}, already initialised: {'; '.join(others)}. Nothing was changed: use the "
            "values of its first entry, or an empty database"
        )


def _body(first: Entry) -> Initialized:
    body = parse_body(first)
    if not isinstance(body, Initialized):
        raise Tampered(f"entry 0: expected appliance.initialized, got {first.type}")
    return body


def _is_own(body: Initialized, keyring: Keyring) -> bool:
    """Whether the log's first key and the adapters' are held here."""
    with suppress(NotFound):
        adapter_key = encode_base64(keyring.open_signer(ADAPTER_KEY).spki)
        return adapter_key == body.adapter_key and body.log_key in keyring.log_signers(body.origin)
    return False


def _names(people: Iterable[Administrator]) -> str:
    return ", ".join(sorted(f"{person.name} ({person.keyid[:19]})" for person in people))
