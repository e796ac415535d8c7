"""Whatever bytes arrive, the domain's parsers give a value that re-encodes to exactly these bytes, or BadInput."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.domain.actions.apply import parse_body
from appliance.domain.actions.registry import ACTIONS, ORDERS
from appliance.domain.core.credentials import (
    Credential,
    PasskeyPossession,
    Possession,
    SessionStatement,
    TokenRequest,
    UnitToken,
    encode_credential,
    encode_token,
    parse_credential,
    parse_token,
)
from appliance.domain.core.entry import encode_entry, parse_entry
from appliance.domain.core.names import encode_value
from appliance.domain.core.order import encode_order
from appliance.domain.core.policy import Parameters, PolicySet, parse_policy
from appliance.domain.governance.keys import RotateKey
from appliance.domain.governance.log_control import RotateLogKey
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.runs.steps import encode_steps, parse_steps
from appliance.domain.serving.tokens import RevokeTokens
from appliance.errors import BadInput, NotAuthenticated
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.fields import encode_base64
from appliance.formats.signatures.dsse import parse_envelope, sign_envelope
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import RECIPE, stage
from tests.domain.runs.test_steps import record
from tests.kit.mutations import mutated, reshaped

SITE = stage("kept")
EXAMPLES = settings(deadline=None, max_examples=60)
DECIDED = stage("decided")
ENTRIES = {parse_entry(data).type: data for data in (*SITE.entries, *DECIDED.entries)}


def _orders() -> dict[str, bytes]:
    """One payload for each action that the journey of the builder uses, and of one with people in it."""
    found = {}
    for data in (*SITE.documents.values(), *DECIDED.documents.values()):
        with suppress(BadInput):
            payload = parse_envelope(data).payload
            found[ORDERS.parse(payload).action] = payload
    several, _ = SITE.enrolments({"eve": ("auditor",), "mia": ("operator",)})
    return found | {several.action: encode_order(several)}


ORDER_PAYLOADS = _orders()
POLICY = encode_value(PolicySet(name="site", parameters=Parameters(), cedar="permit(principal,action,resource);",
                                cedar_schema="{}"))  # fmt: skip
KEY = generate_ed25519()
_STANDING: dict[str, Any] = {
    "origin": "bank.example/log", "signer": "ada", "nonce": "0" * 32, "issued_at": "2026-01-15T09:30:00.000Z"
}  # fmt: skip
_EXPIRY = {"expires_at": "2026-01-15T10:30:00.000Z"}
CREDENTIALS: tuple[Credential, ...] = (
    SessionStatement(**_STANDING | _EXPIRY),
    UnitToken(**_STANDING | _EXPIRY),
    TokenRequest(**_STANDING | _EXPIRY, application="indexer"),
    Possession(**_STANDING, key=encode_base64(KEY.spki), keyid=KEY.keyid),
    PasskeyPossession(
        **_STANDING,
        key=encode_base64(KEY.spki),
        keyid=KEY.keyid,
        passkey="blue",
        credential_id="AAAA",
        rp_id="appliance.example",
        origins=("https://appliance.example",),
        backup_eligible=False,
    ),
)
TOKEN = encode_token(sign_envelope(encode_credential(CREDENTIALS[1]), KEY))

Parse, Encode = Callable[[bytes], Any], Callable[[Any], bytes]


def encode_given(policy: PolicySet) -> bytes:
    """Without the parameters that its document lacks."""
    return encode_canonical(policy.model_dump(mode="json", exclude_unset=True))


PARSERS: dict[str, tuple[Parse, Encode, bytes]] = {
    "steps": (parse_steps, encode_steps, encode_steps(record([2.0]))),
    "policy set": (parse_policy, encode_given, POLICY),
    **{f"entry {kind}": (parse_entry, encode_entry, data) for kind, data in ENTRIES.items()},
    **{
        f"credential {credential.kind}": (
            partial(parse_credential, type(credential)),
            encode_credential,
            encode_credential(credential),
        )
        for credential in CREDENTIALS
    },
    **{f"order {action}": (ORDERS.parse, encode_order, data) for action, data in ORDER_PAYLOADS.items()},
}


def holds(parse: Parse, encode: Encode, data: bytes) -> None:
    try:
        value = parse(data)
    except BadInput:
        return
    assert encode(value) == data


def test_the_journey_has_most_actions_and_types() -> None:
    assert len(ORDER_PAYLOADS) > len(ACTIONS) / 2
    assert len(ENTRIES) > 12


@pytest.mark.family(keep=12)
@pytest.mark.parametrize("name", PARSERS)
def test_nearly_good_bytes(name: str) -> None:
    parse, encode, good = PARSERS[name]
    assert encode(parse(good)) == good

    @EXAMPLES
    @given(mutated(good) | st.binary(max_size=100))
    def run(data: bytes) -> None:
        holds(parse, encode, data)

    run()


@pytest.mark.family(keep=12)
@pytest.mark.parametrize("name", PARSERS)
def test_good_json_with_one_member_exchanged(name: str) -> None:
    parse, encode, good = PARSERS[name]

    @EXAMPLES
    @given(reshaped(json.loads(good)))
    def run(value: Any) -> None:
        holds(parse, encode, encode_canonical(value))

    run()


NO_TIMES = (
    "2026-02-30T00:00:00.000Z",
    "2026-01-01T99:99:99.000Z",
    "2026-01-01T24:00:00.000Z",
    "2026-12-31T23:59:60.000Z",
    "2026-00-10T00:00:00.000Z",
    "0000-01-01T00:00:00.000Z",
)
_TIME = re.compile(rb'"[0-9]{4}-[0-9]{2}-[0-9]{2}T[^"]*Z"')
TIMED = {
    f"order {order.action}": (ORDERS.parse, encode_order(order))
    for order in (
        SITE.order(RevokeTokens, "anna", unit="legal", token=None, issued_before=SITE.now, application=None),
        SITE.new_key(RotateKey, "rita", "rita", old_until=SITE.now)[0],
        SITE.order(RotateLogKey, "anna", log_key="a", old_until=SITE.now),
        SITE.export_order(),
        SITE.review_order("rita", "privacy"),
    )
} | {
    name: (parse if parse is not parse_entry else lambda data: parse_body(parse_entry(data)), good)
    for name, (parse, _, good) in PARSERS.items()
    if _TIME.search(good)
}


@pytest.mark.parametrize("name", TIMED)
def test_no_time_is_taken_that_does_not_exist(name: str) -> None:
    """In any member of what is signed or stored."""
    parse, good = TIMED[name]
    parse(good)
    for place in _TIME.finditer(good):
        for time in NO_TIMES:
            with pytest.raises(BadInput):
                parse(good[: place.start()] + f'"{time}"'.encode() + good[place.end() :])


def test_a_token_has_one_spelling() -> None:
    """Unused bits of the last character, padding, and the other base64 alphabet are other texts."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    long = next(t for t in (encode_token(sign_envelope(b"{}" + b" " * n, KEY)) for n in range(3)) if len(t) % 4)
    parse_token(long)
    for text in (*(long[:-1] + last for last in alphabet if last != long[-1]), long + "=" * (-len(long) % 4)):
        with pytest.raises(NotAuthenticated):
            parse_token(text)


@pytest.mark.thorough
@EXAMPLES
@given(mutated(TOKEN.encode()).map(lambda data: data.decode("utf-8", "replace")) | st.text(max_size=40))
def test_a_token_is_an_envelope_or_authenticates_nobody(text: str) -> None:
    try:
        envelope = parse_token(text)
    except NotAuthenticated:
        return
    assert encode_token(envelope) == text


@EXAMPLES
@given(st.sampled_from(sorted(ENTRIES)), st.data())
def test_a_body_of_any_shape_is_an_event_or_bad_input(kind: str, data: st.DataObject) -> None:
    entry = parse_entry(ENTRIES[kind])
    body = data.draw(reshaped(json.loads(ENTRIES[kind])["body"]))
    if isinstance(body, dict):
        with suppress(BadInput):
            parse_body(entry.model_copy(update={"body": body}))


@EXAMPLES
@given(reshaped({**RECIPE, "target_modules": list(RECIPE["target_modules"])}))
def test_a_recipe_of_any_shape_is_one_or_bad_input(value: Any) -> None:
    """The file's reader sees to it that it is a mapping."""
    if isinstance(value, dict):
        with suppress(BadInput):
            parse_recipe(value)
