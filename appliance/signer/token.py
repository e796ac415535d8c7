"""Keys in a token, through PKCS#11: a hardware module, or SoftHSM. They cannot be read from it.

A token is named by a PKCS#11 URI (RFC 7512): `pkcs11:token=appliance?module-path=/usr/lib/softhsm/libsofthsm2.so`.
The keys are its objects `log`, `log-2` and so on, and `adapter`. The signer loads the module and logs in once, when it
starts. It starts no other process afterwards, since modules need not work in a forked process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from appliance.errors import BadInput, Conflict, NotAuthenticated, NotFound, Tampered, Unavailable
from appliance.formats.core.fields import show
from appliance.formats.signatures.keys import (
    EcdsaSigner,
    Ed25519Signer,
    RemoteSigner,
    Signer,
    ed25519_raw,
    ed25519_spki,
    is_ecdsa,
    p256_spki,
    verify_signature,
)
from appliance.store.files.keyring import HeldSigner, KeyKind, KeyStore, name_of

_ED25519, _P256 = bytes.fromhex("06032b6570"), bytes.fromhex("06082a8648ce3d030107")
"""Curves as DER of their object identifiers."""
_POINTS = {"Ed25519": bytes.fromhex("0420"), "P-256": bytes.fromhex("044104")}
"""First bytes of a public point, which tokens encode as an OCTET STRING."""


@dataclass(frozen=True)
class TokenUri:
    """A PKCS#11 URI of a token: its label, and the module's file."""

    token: str
    module: str

    def key(self, name: str) -> str:
        """Return the URI of a key of the token."""
        return f"pkcs11:token={self.token};object={name};type=private"


def parse_token_uri(text: str) -> TokenUri:
    """Parse the URI of a token.

    Raises:
        BadInput: it is another URI, or names other attributes.
    """
    path, _, query = text.removeprefix("pkcs11:").partition("?")
    pairs = [part.partition("=") for part in (*path.split(";"), *query.split("&"))]
    found = {name: unquote(value) for name, _, value in pairs}
    expected = "expected pkcs11:token=LABEL?module-path=FILE; the PIN is the signer's passphrase"
    if not text.startswith("pkcs11:") or found.keys() != {"token", "module-path"} or not all(found.values()):
        raise BadInput(f"signer, token: {expected}; got {show(text)}")
    return TokenUri(found["token"], found["module-path"])


class Token(KeyStore):
    """The keys in a token."""

    def __init__(self, uri: str, pin: bytes) -> None:
        """Load the module and log in.

        Raises:
            Unavailable: the module or the token is missing, or the library `python-pkcs11`.
            NotAuthenticated: the PIN is wrong.
        """
        self._uri = parse_token_uri(uri)
        self._pkcs11, self._session = _open_session(self._uri, pin.decode("utf-8", "surrogateescape"))

    def open_signer(self, uri: str) -> Signer:
        """Return the signer of the object that has the key's name."""
        name = name_of(uri)
        with _token_errors(self._pkcs11, self._uri.key(name)):
            private = self._find(name, self._pkcs11.ObjectClass.PRIVATE_KEY)
            public = self._find(name, self._pkcs11.ObjectClass.PUBLIC_KEY)
            return self._make_signer(name, private, self._spki_of(name, public))

    def create_key(self, uri: str, kind: KeyKind) -> Signer:
        """Create a key that cannot be read from the token."""
        name = name_of(uri)
        if kind == "ML-DSA-65":
            raise Unavailable("signer, token: expected a key of Ed25519 or P-256, which tokens make, got ML-DSA-65")
        with suppress(NotFound):
            self.open_signer(uri)
            raise Conflict(f"key {self._uri.key(name)}: expected none yet, got one")
        pkcs11 = self._pkcs11
        is_edwards = kind == "Ed25519"
        curve = {pkcs11.Attribute.EC_PARAMS: _ED25519 if is_edwards else _P256}
        with _token_errors(pkcs11, self._uri.key(name)):
            parameters = self._session.create_domain_parameters(
                pkcs11.KeyType.EC_EDWARDS if is_edwards else pkcs11.KeyType.EC, curve, local=True
            )
            public, private = parameters.generate_keypair(
                store=True,
                label=name,
                mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN if is_edwards else None,
                private_template={pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False},
            )
            return self._make_signer(name, private, self._spki_of(name, public))

    def add_key(self, uri: str, signer: HeldSigner) -> None:
        """Import a key, which cannot be read from the token afterwards; adding the same key again has no effect.

        Raises:
            BadInput: the key is neither Ed25519 nor P-256.
            Conflict: another key has this name.
            Unavailable: the token refuses the import.
        """
        name, kinds = name_of(uri), self._pkcs11.ObjectClass
        private_values, public_values = self._describe(name, signer)
        other = Conflict(f"key {self._uri.key(name)}: expected none yet, got another key")
        with _token_errors(self._pkcs11, self._uri.key(name)):
            public = self._find_any(name, kinds.PUBLIC_KEY)
            if public is not None and self._spki_of(name, public) != signer.spki:
                raise other
            private = self._find_any(name, kinds.PRIVATE_KEY)
            if private is None:
                private = self._import(name, private_values)
            try:
                self._make_signer(name, private, signer.spki)
            except Tampered:
                raise other from None
            if public is None:  # after an interrupted call, only the private object is there
                self._import(name, public_values)
        os.sync()  # SoftHSM leaves its files to the page cache; the key's other copy is removed after this

    def _describe(self, name: str, signer: HeldSigner) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Return the attributes of the private and the public object of a key."""
        pkcs11, attribute = self._pkcs11, self._pkcs11.Attribute
        if isinstance(signer, Ed25519Signer):
            value, parameters, kind = signer.private.private_bytes_raw(), _ED25519, pkcs11.KeyType.EC_EDWARDS
            point = _POINTS["Ed25519"] + ed25519_raw(signer.spki)
        elif isinstance(signer, EcdsaSigner) and isinstance(signer.private.curve, SECP256R1):
            numbers = signer.private.private_numbers()
            value, parameters, kind = numbers.private_value.to_bytes(32, "big"), _P256, pkcs11.KeyType.EC
            at = numbers.public_numbers
            point = _POINTS["P-256"] + at.x.to_bytes(32, "big") + at.y.to_bytes(32, "big")
        else:
            raise BadInput(f"key {self._uri.key(name)}: expected Ed25519 or P-256, got {type(signer).__name__}")
        common = {
            attribute.KEY_TYPE: kind,
            attribute.EC_PARAMS: parameters,
            attribute.LABEL: name,
            attribute.TOKEN: True,
        }
        private = {
            attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY,
            attribute.VALUE: value,
            attribute.PRIVATE: True,
            attribute.SENSITIVE: True,
            attribute.EXTRACTABLE: False,
            attribute.SIGN: True,
        }
        public = {attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY, attribute.EC_POINT: point, attribute.VERIFY: True}
        return common | private, common | public

    def _import(self, name: str, values: dict[Any, Any]) -> Any:
        try:
            return self._session.create_object(values)
        except self._pkcs11.PKCS11Error as error:
            got = f"{type(error).__name__} {error}".strip()
            raise Unavailable(
                f"key {self._uri.key(name)}: expected a token that imports it, got a refusal: {got}; allow the import "
                "with the module's own tool and repeat the command, or keep the keys in files, which are unchanged"
            ) from error

    def _find_any(self, name: str, kind: Any) -> Any | None:
        with suppress(NotFound):
            return self._find(name, kind)
        return None

    def _find(self, name: str, kind: Any) -> Any:
        attribute = self._pkcs11.Attribute
        found = list(self._session.get_objects({attribute.CLASS: kind, attribute.LABEL: name}))
        if not found:
            raise NotFound(f"key {self._uri.key(name)}: expected one, got none")
        if len(found) > 1:
            raise Tampered(f"key {self._uri.key(name)}: expected one, got {len(found)} of this name")
        return found[0]

    def _spki_of(self, name: str, public: Any) -> bytes:
        point = bytes(public[self._pkcs11.Attribute.EC_POINT])
        if point.startswith(_POINTS["Ed25519"]) and len(point) == 34:
            return ed25519_spki(point[2:])
        if point.startswith(_POINTS["P-256"]) and len(point) == 67:
            return p256_spki(point[3:35], point[35:])
        raise BadInput(f"key {self._uri.key(name)}: expected Ed25519 or P-256, got the point {point.hex()[:80]}")

    def _make_signer(self, name: str, private: Any, spki: bytes) -> Signer:
        pkcs11 = self._pkcs11
        mechanism = pkcs11.Mechanism.ECDSA if is_ecdsa(spki) else pkcs11.Mechanism.EDDSA

        def sign_in_token(data: bytes) -> bytes:
            with _token_errors(pkcs11, self._uri.key(name)):
                if mechanism == pkcs11.Mechanism.EDDSA:
                    return bytes(private.sign(data, mechanism=mechanism))
                raw = bytes(private.sign(hashlib.sha256(data).digest(), mechanism=mechanism))
                return encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))

        signer = RemoteSigner(spki, sign_in_token)
        verify_signature(spki, b"appliance", signer.sign(b"appliance"))  # private and public object are one pair
        return signer


def _open_session(uri: TokenUri, pin: str) -> tuple[Any, Any]:
    try:
        import pkcs11
    except ImportError:
        expected = "the library python-pkcs11 (pip install 'appliance[pkcs11]')"
        raise Unavailable(f"signer, token: expected {expected}, got none") from None
    try:
        return pkcs11, pkcs11.lib(uri.module).get_token(token_label=uri.token).open(rw=True, user_pin=pin)
    except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange, pkcs11.PinLocked) as error:
        raise NotAuthenticated(f"signer, token {uri.token}: expected its PIN, got: {type(error).__name__}") from None
    except pkcs11.NoSuchToken:
        raise Unavailable(f"signer, token: expected one with the label {uri.token}, got none") from None
    except (pkcs11.PKCS11Error, RuntimeError, OSError) as error:
        got = str(error) or type(error).__name__
        raise Unavailable(f"signer, module {uri.module}: expected one of PKCS#11, got: {got}") from None


@contextmanager
def _token_errors(pkcs11: Any, what: str) -> Iterator[None]:
    """Translate errors of PKCS#11 to Unavailable."""
    try:
        yield
    except pkcs11.PKCS11Error as error:
        got = f"{type(error).__name__} {error}".strip()
        raise Unavailable(f"key {what}: expected the token to answer, got: {got}") from error
