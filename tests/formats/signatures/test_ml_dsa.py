"""ML-DSA-65 is FIPS 204's, pure and with an empty context: published cases give their results, and Debian's OpenSSL
agrees in both directions."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from appliance.errors import BadInput, Tampered, Unavailable
from appliance.formats.signatures import ml_dsa
from appliance.formats.signatures.keys import (
    Ed25519Signer,
    ed25519_raw,
    encode_spki_pem,
    is_ecdsa,
    keyid_of,
    load_spki_pem,
    verify_signature,
)
from appliance.formats.signatures.ml_dsa import (
    PUBLIC_BYTES,
    SIGNATURE_BYTES,
    MlDsaSigner,
    generate_ml_dsa,
    is_ml_dsa,
    ml_dsa_raw,
    ml_dsa_signer,
    ml_dsa_spki,
    verify_ml_dsa,
)

Vectors = Callable[[str], Any]
OPENSSL = shutil.which("openssl")


def _has_openssl() -> bool:
    command = [str(OPENSSL), "list", "-signature-algorithms"]
    return OPENSSL is not None and b"ML-DSA-65" in subprocess.run(command, capture_output=True, timeout=60).stdout


def test_a_published_seed_gives_its_public_key(vectors: Vectors) -> None:
    known = vectors("ml_dsa")
    signer = ml_dsa_signer(bytes.fromhex(known["seed"]))
    assert ml_dsa_raw(signer.spki) == base64.b64decode(known["public"])
    assert len(ml_dsa_raw(signer.spki)) == PUBLIC_BYTES


def test_published_signatures_have_their_results(vectors: Vectors) -> None:
    cases = vectors("ml_dsa")["cases"]
    assert [case["valid"] for case in cases].count(True) == 3
    for case in cases:
        spki = ml_dsa_spki(base64.b64decode(case["public"]))
        message, sig = base64.b64decode(case["message"]), base64.b64decode(case["signature"])
        if case["valid"] and not case["context"]:
            verify_signature(spki, message, sig)
            continue
        with pytest.raises(Tampered, match="signature, key"):
            verify_signature(spki, message, sig)


def test_a_valid_signature_with_a_context_is_refused(vectors: Vectors) -> None:
    """The profile has an empty context. A signature that was made for another use does not fit here."""
    case = next(case for case in vectors("ml_dsa")["cases"] if case["context"])
    raw, message, sig = (base64.b64decode(case[name]) for name in ("public", "message", "signature"))
    MLDSA65PublicKey.from_public_bytes(raw).verify(sig, message, base64.b64decode(case["context"]))
    with pytest.raises(Tampered):
        verify_ml_dsa(ml_dsa_spki(raw), message, sig)


def test_the_spki_is_that_of_rfc_9881(ml_dsa_key: MlDsaSigner) -> None:
    public = ml_dsa_key.private.public_key()
    assert ml_dsa_key.spki == public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert isinstance(load_der_public_key(ml_dsa_key.spki), MLDSA65PublicKey)
    assert encode_spki_pem(ml_dsa_key.spki) == public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert repr(ml_dsa_key) == "MlDsaSigner()"


def test_a_signature_holds_for_its_key_and_its_bytes_only(ml_dsa_key: MlDsaSigner, ed25519: Ed25519Signer) -> None:
    sig = ml_dsa_key.sign(b"data")
    assert len(sig) == SIGNATURE_BYTES
    verify_signature(ml_dsa_key.spki, b"data", sig)
    verify_signature(ml_dsa_key.spki, b"data", ml_dsa_key.sign(b"data"))
    others = [sig[:-1], sig + b"\0", b"", ed25519.sign(b"data"), bytes([sig[0] ^ 1]) + sig[1:]]
    for data, other in [(b"Data", sig), *((b"data", other) for other in others)]:
        with pytest.raises(Tampered):
            verify_signature(ml_dsa_key.spki, data, other)
    with pytest.raises(Tampered):
        verify_signature(generate_ml_dsa().spki, b"data", sig)
    with pytest.raises(Tampered):
        verify_signature(ed25519.spki, b"data", sig)


def test_other_lengths_and_kinds_are_no_key(ml_dsa_key: MlDsaSigner, ed25519: Ed25519Signer) -> None:
    shorter = MLDSA44PrivateKey.generate().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for other in (ml_dsa_key.spki[:-1], ml_dsa_key.spki + b"\0", ed25519.spki, shorter, b""):
        assert not is_ml_dsa(other)
        with pytest.raises(BadInput):
            verify_ml_dsa(other, b"data", b"")
    for raw in (bytes(PUBLIC_BYTES - 1), bytes(PUBLIC_BYTES + 1)):
        with pytest.raises(BadInput, match="1952"):
            ml_dsa_spki(raw)


def test_it_is_no_key_of_a_person_and_no_witness_key(ml_dsa_key: MlDsaSigner) -> None:
    assert not is_ecdsa(ml_dsa_key.spki)
    for use in (keyid_of, ed25519_raw, lambda spki: load_spki_pem(encode_spki_pem(spki))):
        with pytest.raises(BadInput, match="public key"):
            use(ml_dsa_key.spki)


@pytest.fixture
def old_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide ML-DSA's module, as in an older cryptography."""
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.asymmetric.mldsa", None)
    monkeypatch.setattr(ml_dsa.cryptography, "__version__", "43.0.0")
    ml_dsa._has_ml_dsa.cache_clear()
    yield
    ml_dsa._has_ml_dsa.cache_clear()


def test_an_old_library_says_that_it_cannot_check(vectors: Vectors, old_library: None) -> None:
    case = vectors("ml_dsa")["cases"][0]
    raw, message, sig = (base64.b64decode(case[name]) for name in ("public", "message", "signature"))
    for use in (lambda: verify_signature(ml_dsa_spki(raw), message, sig), generate_ml_dsa, lambda: ml_dsa_signer(b"")):
        with pytest.raises(Unavailable, match=r"cryptography 43\.0\.0 does not have it; install cryptography 50 or"):
            use()


@pytest.mark.skipif(not _has_openssl(), reason="OpenSSL: expected 3.5 or later with ML-DSA, got none")
def test_openssl_verifies_our_signature_and_we_verify_its(ml_dsa_key: MlDsaSigner, tmp_path: Path) -> None:
    def openssl(*words: str) -> subprocess.CompletedProcess[bytes]:
        command = [str(OPENSSL), *words]
        return subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=60, check=False)

    (tmp_path / "data").write_bytes(b"the text of a note\n")
    (tmp_path / "public.pem").write_bytes(encode_spki_pem(ml_dsa_key.spki))
    private = ml_dsa_key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "private.pem").write_bytes(private)
    (tmp_path / "ours").write_bytes(ml_dsa_key.sign(b"the text of a note\n"))
    check = ("pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-in", "data", "-sigfile")
    result = openssl(*check, "ours")
    assert (result.returncode, result.stdout) == (0, b"Signature Verified Successfully\n"), result.stderr
    result = openssl("pkeyutl", "-sign", "-inkey", "private.pem", "-in", "data", "-out", "theirs")
    assert result.returncode == 0, result.stderr
    verify_signature(ml_dsa_key.spki, b"the text of a note\n", (tmp_path / "theirs").read_bytes())
    (tmp_path / "data").write_bytes(b"another text\n")
    assert openssl(*check, "ours").returncode != 0
