"""A site's own CA, made when needed, with real keys and chains as a bank's PKI issues them."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Files:
    chain: Path
    key: Path


class Authority:
    """Its certificate lies in `folder/ca.pem`."""

    def __init__(self, folder: Path, name: str = "Bank Root") -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._key = generate_private_key(SECP256R1())
        self._certificate = self._sign(name, self._key, None, None)
        self.file = folder / "ca.pem"
        self.file.write_bytes(self._certificate.public_bytes(Encoding.PEM))

    def issue(self, name: str, *, client: bool = False, days: int = 30) -> Files:
        """For 127.0.0.1 and localhost, or for a client."""
        key = generate_private_key(SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        certificate = self._sign(name, key, self._certificate, usage, days)
        files = Files(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        files.chain.write_bytes(certificate.public_bytes(Encoding.PEM))
        files.key.touch(0o600)
        files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return files

    def _sign(
        self,
        name: str,
        key: EllipticCurvePrivateKey,
        issuer: x509.Certificate | None,
        usage: x509.ObjectIdentifier | None,
        days: int = 30,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if issuer is None else issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=60))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=usage is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=usage is not None,
                    key_cert_sign=usage is None,
                    crl_sign=usage is None,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        if usage is not None:
            names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
            built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
            built = built.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return built.sign(self._key, SHA256())

    def trusting(self, client: Files | None = None) -> ssl.SSLContext:
        """Return the TLS context of a unit's host, which trusts only this CA, with its own certificate if any."""
        context = ssl.create_default_context(cafile=str(self.file))
        if client is not None:
            context.load_cert_chain(client.chain, client.key)
        return context
