"""Whatever bytes arrive, a parser gives a value that re-encodes to exactly these bytes, or one of our errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BadInput, Tampered
from appliance.formats import (
    canonical,
    checkpoint,
    commitment,
    digest,
    dsse,
    keys,
    manifest,
    note,
    statement,
    timestamp,
    trust,
    webauthn,
)
from appliance.formats.bundle import verify_model
from appliance.formats.canonical import encode_canonical
from appliance.formats.fields import parse_base64

OWN = json.loads((Path(__file__).resolve().parents[1] / "vectors/appliance.json").read_text(encoding="utf-8"))
P256 = parse_base64(OWN["keys"]["p256"]["spki"], "spki")
ED25519 = parse_base64(OWN["keys"]["ed25519"]["spki"], "spki")
EXAMPLES = settings(deadline=None, max_examples=150)


@dataclass(frozen=True)
class Format:
    parse: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    good: bytes


def _of_text(parse: Callable[[str], Any], encode: Callable[[Any], str], good: str) -> Format:
    """A format of str: bytes that are no UTF-8 never reach it."""

    def parse_bytes(data: bytes) -> Any:
        try:
            return parse(data.decode("utf-8"))
        except UnicodeDecodeError:
            raise BadInput("not text") from None

    return Format(parse_bytes, lambda value: encode(value).encode(), good.encode())


PASSKEY_ENVELOPE = dsse.parse_envelope(OWN["passkey_envelope"].encode())
PASSKEY_SIG = PASSKEY_ENVELOPE.signature.sig
FORMATS = {
    "canonical": Format(canonical.parse_canonical, canonical.encode_canonical, OWN["statement"].encode()),
    "envelope": Format(dsse.parse_envelope, dsse.encode_envelope, OWN["envelope"].encode()),
    "statement": Format(statement.parse_statement, statement.encode_statement, OWN["statement"].encode()),
    "manifest": Format(manifest.parse_manifest, manifest.encode_manifest, OWN["manifest"].encode()),
    "disclosure": Format(commitment.parse_disclosure, commitment.encode_disclosure, OWN["disclosure"].encode()),
    "trust": Format(trust.parse_trust, trust.encode_trust, OWN["trust"].encode()),
    "note": Format(note.parse_note, note.encode_note, OWN["checkpoint"].encode()),
    "assertion": Format(webauthn.parse_assertion, lambda parts: webauthn.encode_assertion(*parts), PASSKEY_SIG),
    "spki": Format(lambda data: (keys.parse_spki(data), data), lambda value: value[1], P256),
    "checkpoint": _of_text(
        checkpoint.parse_checkpoint, checkpoint.encode_checkpoint, note.parse_note(OWN["checkpoint"].encode()).text
    ),
    "vkey": _of_text(note.parse_vkey, lambda key: note.vkey_of(key.name, key.spki), OWN["vkey"]),
    "time": _of_text(timestamp.parse_time, timestamp.encode_time, "2026-11-24T15:15:35.123Z"),
    "digest": _of_text(digest.parse_digest, lambda text: text, OWN["pae_digest"]),
}

INTERESTING = (
    st.sampled_from(
        [b"", b"\0", b"\n", b"\n\n", b'"', b"\\", b"{", b"}", b"[", b",", b"+", b"=", b" ", b"-", b"9" * 30]
    )
    | st.sampled_from([b"\xff", b"\xc3\xa9", b"\xe2\x80\x94", b"\xed\xa0\x80", b"\\u0041", b"1e9", b"-0", b"../"])
    | st.sampled_from([b"null", b"true", b"sha256:"])
    | st.binary(max_size=8)
)


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """Good bytes with up to three pieces cut out, put in or exchanged."""
    data = good
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(start + draw(st.integers(0, 20)), len(data))))
        data = data[:start] + draw(INTERESTING) + data[stop:]
    return data


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def reshaped(draw: st.DrawFn, value: Any) -> Any:
    """A good JSON value with one member, somewhere, exchanged for another value."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(value)))
        return value | {name: draw(reshaped(value[name]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(reshaped(value[place])), *value[place + 1 :]]
    return draw(JSON)


def holds(fmt: Format, data: bytes) -> None:
    try:
        value = fmt.parse(data)
    except BadInput:
        return
    assert fmt.encode(value) == data


@pytest.mark.parametrize("name", FORMATS)
def test_the_good_example_is_good(name: str) -> None:
    fmt = FORMATS[name]
    assert fmt.encode(fmt.parse(fmt.good)) == fmt.good


@pytest.mark.parametrize("name", FORMATS)
def test_any_bytes(name: str) -> None:
    @EXAMPLES
    @given(st.binary(max_size=200))
    def run(data: bytes) -> None:
        holds(FORMATS[name], data)

    run()


@pytest.mark.parametrize("name", FORMATS)
def test_nearly_good_bytes(name: str) -> None:
    @EXAMPLES
    @given(mutated(FORMATS[name].good))
    def run(data: bytes) -> None:
        holds(FORMATS[name], data)

    run()


@pytest.mark.parametrize("name", ["envelope", "statement", "manifest", "disclosure", "trust", "assertion"])
def test_good_json_with_one_member_exchanged(name: str) -> None:
    fmt = FORMATS[name]
    end = b"\n" if fmt.good.endswith(b"\n") else b""

    @EXAMPLES
    @given(reshaped(json.loads(fmt.good)))
    def run(value: Any) -> None:
        holds(fmt, encode_canonical(value) + end)

    run()


@EXAMPLES
@given(mutated(OWN["key_file"].encode()))
def test_a_key_file_s_header(data: bytes) -> None:
    with suppress(BadInput):
        keys.parse_key_file_spki(data)


@EXAMPLES
@given(reshaped(json.loads(OWN["bundle"])))
def test_a_reshaped_model_signature_is_tampered(value: Any) -> None:
    data = encode_canonical(value)
    if data == OWN["bundle"].encode():
        return
    with pytest.raises(Tampered):
        verify_model(data, P256, OWN["bundle_files"])


@EXAMPLES
@given(mutated(OWN["bundle"].encode()))
def test_a_mutated_model_signature_is_tampered(data: bytes) -> None:
    if data == OWN["bundle"].encode():
        return
    with pytest.raises(Tampered):
        verify_model(data, P256, OWN["bundle_files"])


@EXAMPLES
@given(mutated(OWN["checkpoint"].encode()))
def test_a_mutated_signed_checkpoint_is_tampered(data: bytes) -> None:
    try:
        opened = checkpoint.open_checkpoint(data, OWN["vkey"])
    except Tampered:
        return
    # A second line by a key nobody knows changes nothing of what was signed.
    assert opened == checkpoint.open_checkpoint(OWN["checkpoint"].encode(), OWN["vkey"])


@EXAMPLES
@given(mutated(PASSKEY_SIG))
def test_a_mutated_assertion_is_tampered(data: bytes) -> None:
    if data == PASSKEY_SIG:
        return
    with pytest.raises(Tampered):
        webauthn.verify_assertion(P256, PASSKEY_ENVELOPE.pae, data, rp_id="appliance.example")


@EXAMPLES
@given(st.binary(max_size=120), st.binary(max_size=120), st.sampled_from([P256, ED25519]))
def test_made_up_signatures_are_tampered(data: bytes, sig: bytes, spki: bytes) -> None:
    with pytest.raises(Tampered):
        keys.verify_signature(spki, data, sig)


@EXAMPLES
@given(mutated(keys.encode_spki_pem(P256)))
def test_a_pem_file_gives_a_key_or_bad_input(data: bytes) -> None:
    with suppress(BadInput):
        assert keys.encode_spki_pem(keys.load_spki_pem(data)).strip() == data.replace(b"\r\n", b"\n").strip()
