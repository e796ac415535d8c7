"""What a page of signing holds, and what comes back: a statement's bytes, and a passkey's assertion over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from appliance.domain.core.decisions import Conditions, Opened
from appliance.domain.core.order import Order
from appliance.domain.core.records.data import BoundSet, LocalSet
from appliance.domain.core.records.people import Key
from appliance.domain.core.signatures import key_ended
from appliance.domain.core.state import State
from appliance.domain.governance.passkeys import passkeys_of
from appliance.domain.governance.people import Enrolment
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.errors import BadInput, NotAuthenticated
from appliance.formats.core.fields import encode_base64, parse_base64url
from appliance.formats.signatures.dsse import PAYLOAD_TYPE, Envelope, Signature
from appliance.formats.signatures.webauthn import Assertion, encode_assertion
from appliance.web.console.core.page import Value

ASSERTION_FIELDS = ("credential_id", "authenticator_data", "client_data", "signature")


class Signing(Value):
    """`file`: all that is shown and signed. `allowed`: credential ids that may sign; `told`: JSON for the script."""

    file: str
    told: str
    allowed: tuple[str, ...]


def rp_id_of(url: str) -> str:
    """The relying party of the console under this address: its host's name."""
    return urlsplit(url).hostname or ""


def standing_passkeys(state: State, signer: str, url: str, now: str) -> list[Key]:
    """Those of the signer that can sign at this console now."""
    return [
        key
        for key in passkeys_of(state, signer)
        if key.passkey is not None and url in key.passkey.origins and key_ended(state, key, now) is None
    ]


def make_signing(
    file: bytes, kind: str, signer: str, url: str, allowed: tuple[str, ...], model: type[Any] | None = None
) -> Signing:
    """`kind`: how the statement's type must begin, which the script compares before it asks the passkey."""
    told = {"kind": kind, "signer": signer, "rpId": rp_id_of(url), "allowed": allowed, "members": members_of(model)}
    return Signing(file=file.decode("utf-8"), told=json.dumps(told), allowed=allowed)


def members_of(model: type[Any] | None) -> dict[str, list[str]]:
    """In which order the command line shows the members; the script shows every other one after them."""
    nested: dict[str, type[BaseModel]] = {
        "recipe": ResolvedRecipe,
        "conditions": Conditions,
        "opened": Opened,
        "people": Enrolment,
        "sets": BoundSet,
        "local_sets": LocalSet,
    }
    found = {name: list(one.model_fields) for name, one in nested.items()}
    return found | {"": [] if model is None else list(model.model_fields)}


def statement_file(payload: bytes) -> bytes:
    """The file of a statement that is no order: it commits to no text and binds no document."""
    value = {"disclosures": [], "documents": {}, "resolved": [], "statement": encode_base64(payload)}
    return json.dumps(value).encode()


def members_json(model: type[Order]) -> str:
    return json.dumps(members_of(model))


def read_envelope(payload: bytes, form: Mapping[str, str], state: State, signer: str) -> Envelope:
    """The envelope of an assertion by one of the signer's passkeys; whether it holds is checked where it counts."""
    missing = [name for name in ASSERTION_FIELDS if not form.get(name)]
    if missing:
        raise BadInput(
            f"signature: expected a passkey's assertion, got a form without {missing[0]}; a click alone signs nothing",
            code="not-signed",
        )
    for key in passkeys_of(state, signer):
        if key.passkey is not None and key.passkey.credential_id == form["credential_id"]:
            parts = [parse_base64url(form[name], f"assertion, {name}") for name in ASSERTION_FIELDS[1:]]
            sig = encode_assertion(Assertion(*parts))
            return Envelope(PAYLOAD_TYPE, payload, (Signature(key.keyid, sig),))
    raise NotAuthenticated(f"signature by {signer}: expected a passkey enrolled for this principal, got another")
