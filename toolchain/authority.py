"""A private authority for a trial: its own certificate, and those that it gives to cloud and edges.

For more than a trial, have short-lived certificates made and renewed by what your site has for it; all that
Tandem asks of them is in docs/security.md.
"""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from inference_core.certificate import node_uri
from inference_core.errors import InvalidInput

_AUTHORITY_DAYS = 3650
_CLOCKS = timedelta(minutes=5)  # by which the clock of the other end may be behind


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def write(self, folder: Path, name: str) -> None:
        """Put them into `<name>.pem` and `<name>.key`, for the owner's eyes only; the key first.

        Each takes the place of the one before at once, so that nobody reads half of it.
        """
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_private(folder / f"{name}.key", key)
        write_private(folder / f"{name}.pem", self.certificate.public_bytes(serialization.Encoding.PEM))


class Authority:
    """Gives certificates, on P-256 keys, which every TLS library has."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    @classmethod
    def make(cls, now: datetime) -> "Authority":
        """A new one, good for ten years from `now`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tandem trial authority")])
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        certificate = (
            _begin(name, name, key, now, timedelta(days=_AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(Pair(certificate, key))

    @classmethod
    def read(cls, folder: Path) -> "Authority | None":
        """The one in a folder's `ca.pem` and `ca.key`; None without them. `InvalidInput` for half of one."""
        paths = folder / "ca.pem", folder / "ca.key"
        there = [path for path in paths if path.exists()]
        if not there:
            return None
        if len(there) < len(paths):
            raise InvalidInput(
                f"--out: {folder} has {there[0].name} alone, ca.pem and ca.key belong together"
            )
        try:
            certificate = x509.load_pem_x509_certificate(paths[0].read_bytes())
            key = serialization.load_pem_private_key(paths[1].read_bytes(), None)
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"--out: {folder} has an authority that cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise InvalidInput(f"--out: {folder}: ca.key is not the key of ca.pem")
        return cls(Pair(certificate, key))

    def write(self, folder: Path) -> None:
        """Put it into `ca.pem` and `ca.key`."""
        self._pair.write(folder, "ca")

    def server(self, names: Sequence[str], now: datetime, lifetime: timedelta) -> Pair:
        """A certificate for a service that is reached by these host names and addresses."""
        alternatives = [_host(name) for name in names]
        return self._give(names[0], alternatives, ExtendedKeyUsageOID.SERVER_AUTH, now, lifetime)

    def edge(self, node: str, now: datetime, lifetime: timedelta) -> Pair:
        """A certificate for the edge node with this id."""
        try:
            uri = node_uri(node)
        except ValueError as error:
            raise InvalidInput(f"--edge: {error}") from error
        alternatives = [x509.UniformResourceIdentifier(uri)]
        return self._give(node, alternatives, ExtendedKeyUsageOID.CLIENT_AUTH, now, lifetime)

    def _give(
        self,
        name: str,
        alternatives: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        now: datetime,
        lifetime: timedelta,
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        signer = self._pair.certificate
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._pair.key.public_key())
        certificate = (
            _begin(subject, signer.subject, key, now, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(identifier, critical=False)
            .sign(self._pair.key, hashes.SHA256())
        )
        return Pair(certificate, key)


def write_private(path: Path, content: bytes) -> None:
    """Put `content` into a file that only its owner may read, all of it at once."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor has no path
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    beside.replace(path)


def now() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
