"""The founding of an appliance: its keys, the log's first entry, and the trust file that follows from it.

A power cut can come between any two of these. A repeated init continues if the remains belong to this home and match
the request. Otherwise it changes nothing and reports them.
"""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from appliance.access.cedar import CedarPolicies
from appliance.domain.actions.apply import parse_body, subjects_of
from appliance.domain.core.entry import Entry, EntryDraft
from appliance.domain.core.names import SERVICE, Time, explain
from appliance.domain.core.policy import PolicySet
from appliance.domain.core.records.people import Principal
from appliance.domain.governance.post_quantum import PostQuantumKeys
from appliance.domain.governance.service import Administrator, Initialized, Origin
from appliance.errors import BadInput, Conflict, Denied, NotFound, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64
from appliance.formats.log.trust import Trust
from appliance.store.files.keyring import Keyring
from appliance.store.ledger.keys import ServiceKeys
from appliance.workflows.serving.serve import DIGEST_KEY


@dataclass(frozen=True)
class FoundingRequest:
    """The requested appliance. `origin`: None for any. `policy`: the first policy set, encoded. `post_quantum`: with
    keys of ML-DSA-65.
    """

    origin: str | None
    administrators: tuple[Administrator, ...]
    single_administrator: bool
    policy: bytes
    post_quantum: bool = False


class _Log(BaseModel):
    """The name of a log that somebody requests."""

    origin: Origin


def make_secret(keyring: Keyring) -> None:
    """Make the key of request digests, unless an interrupted init has made it."""
    try:
        keyring.read_secret(DIGEST_KEY)
    except NotFound:
        keyring.keep_secret(DIGEST_KEY, secrets.token_bytes(32))


def draft_first(wanted: FoundingRequest, keys: ServiceKeys) -> EntryDraft:
    """Return the draft of the log's first entry, with the keys that it names."""
    origin, log_key = keys.origin, keys.list_log_keys()[0]
    body = Initialized(
        origin=origin,
        log_key=log_key,
        adapter_key=encode_base64(keys.adapter_signer().spki),
        post_quantum=_make_post_quantum_keys(keys, log_key) if wanted.post_quantum else None,
        administrators=wanted.administrators,
        single_administrator=wanted.single_administrator,
    )
    return EntryDraft(type=body.type, subjects=subjects_of(body), documents={"policy": wanted.policy}, body=body)


def _make_post_quantum_keys(keys: ServiceKeys, log_key: str) -> PostQuantumKeys:
    return PostQuantumKeys(
        log_key=keys.next_log_key([log_key], post_quantum=True),
        adapter_key=encode_base64(keys.post_quantum_adapter_key().spki),
    )


def check_request(wanted: FoundingRequest) -> None:
    """Check what the first entry's rules would refuse, before anything is made.

    Raises:
        BadInput: The origin, a name or a key is not allowed.
    """
    if wanted.origin is not None:
        try:
            _Log(origin=wanted.origin)
        except ValidationError as error:
            raise BadInput(explain(error)) from None
    holders: dict[str, str] = {}
    for person in wanted.administrators:
        if person.name == SERVICE:
            raise BadInput(f"administrator: expected another name than that of the service, got {SERVICE}")
        if person.name in holders.values():
            raise BadInput(f"administrators: expected different names, got {person.name} twice")
        if person.keyid in holders:
            raise BadInput(
                f"administrators: expected a key of each person's own, got the same one for {holders[person.keyid]} "
                f"and {person.name}"
            )
        holders[person.keyid] = person.name


def check_policy(policy: PolicySet, wanted: FoundingRequest, now: Time) -> None:
    """Check the first policy set.

    Raises:
        BadInput: The set could not decide every order.
        Denied: These administrators could not replace it.
    """
    people = [
        Principal(name=person.name, printed_name=None, roles=("administrator",), keyid=person.keyid, enrolled=0)
        for person in wanted.administrators
    ]
    with CedarPolicies.for_adoption(policy) as site:
        reasons = site.list_lockout_reasons(people, wanted.single_administrator, now)
    if reasons:
        raise Denied("policy set: expected one that these administrators can replace", refusals=reasons)


def make_origin() -> str:
    """Return this host's name and a random part, so that two appliances never accept each other's orders."""
    host = re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower()).strip("-.") or "appliance"
    return f"{host}/{secrets.token_hex(4)}"


def trust_of(first: Entry) -> Trust:
    """Return the trust that follows from the first entry."""
    body = _read_body(first)
    people = tuple((person.name, person.keyid) for person in body.administrators)
    second = None if body.post_quantum is None else body.post_quantum.log_key
    return Trust(body.origin, body.log_key, f"sha256:{first.leaf.hex()}", people, second)


def check_begun(first: Entry, wanted: FoundingRequest, keys: ServiceKeys) -> None:
    """Check that the first entry belongs to this home and to the requested appliance.

    Raises:
        Conflict: It does not.
    """
    body = _read_body(first)
    if not _is_own(body, keys):
        raise Conflict(
            f"database: expected none yet, or the log of this home's own keys, got the log {body.origin}, whose keys "
            f"({body.log_key}) are not here; give this home a database of its own, or put that log's keys back"
        )
    compared = (
        ("origin", body.origin, wanted.origin or body.origin),
        ("administrators", _format_names(body.administrators), _format_names(wanted.administrators)),
        ("single administrator", str(body.single_administrator), str(wanted.single_administrator)),
        ("post-quantum keys", str(body.post_quantum is not None), str(wanted.post_quantum)),
        ("policy set", first.documents["policy"], digest_bytes(wanted.policy)),
    )
    differences = [
        f"{what}: expected {recorded}, got {given}" for what, recorded, given in compared if recorded != given
    ]
    if differences:
        raise Conflict(
            f"appliance {body.origin}, already initialised: {'; '.join(differences)}. Nothing was changed: use the "
            "values of its first entry, or an empty database"
        )


def _read_body(first: Entry) -> Initialized:
    body = parse_body(first)
    if not isinstance(body, Initialized):
        raise Tampered(f"entry 0: expected appliance.initialized, got {first.type}")
    return body


def _is_own(body: Initialized, keys: ServiceKeys) -> bool:
    """Return True if the log's first key and the adapters' key are among these."""
    with suppress(NotFound):
        adapter_key, log_keys = encode_base64(keys.adapter_signer().spki), set(keys.list_log_keys())
        if body.post_quantum is not None:
            second = encode_base64(keys.adapter_signer(post_quantum=True).spki)
            if second != body.post_quantum.adapter_key or body.post_quantum.log_key not in log_keys:
                return False
        return adapter_key == body.adapter_key and body.log_key in log_keys
    return False


def _format_names(people: Iterable[Administrator]) -> str:
    return ", ".join(sorted(f"{person.name} ({person.keyid[:19]})" for person in people))
