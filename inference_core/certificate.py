"""Certificates and keys in PEM files: read together, or not at all.

Both ends take a renewed certificate by these rules, so that neither trusts what the other cannot show. The
identity of an edge node is one URI in its certificate's subject alternative names, `node_uri`.
"""

import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

NODE_URI = re.compile(r"spiffe://tandem/edge/([A-Za-z0-9][A-Za-z0-9._-]{0,127})")
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_SEQUENCE, _CONTEXT_0, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def node_uri(node: str) -> str:
    """The URI that the certificate of the edge node `node` holds; `ValueError` for what cannot be an id."""
    uri = f"spiffe://tandem/edge/{node}"
    if not NODE_URI.fullmatch(uri):
        raise ValueError(f"node id {node!r}: must be 1 to 128 of A-Z a-z 0-9 . _ - and begin with no sign")
    return uri


@dataclass(frozen=True)
class Files:
    """Where the certificate (with those between it and its authority), its key, and the certificates of the
    authorities that the other side's must come from are. `None` for what there is none of."""

    certificate: Path | None
    key: Path | None
    authority: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Those that there are."""
        return tuple(path for path in (self.certificate, self.key, self.authority) if path is not None)


@dataclass(frozen=True)
class Credentials:
    """What the files held at one moment, in PEM; empty for what there is none of.

    `own` is from when to when the own certificate holds, `others` the same of that authority whose own ends
    first.
    """

    certificate: bytes
    key: bytes
    authority: bytes
    own: "Validity | None"
    others: "Validity | None"


@dataclass(frozen=True, order=True)
class Validity:
    """From when to when a certificate holds, in seconds since 1970; in order of the end."""

    ends: float
    begins: float

    def is_near_its_end(self, now: float) -> bool:
        """Whether less than a fifth of its time is left: by then it should have been renewed."""
        return self.ends - now < (self.ends - self.begins) / 5


def read(files: Files) -> Credentials:
    """What is in the files, after checking that it can be used together.

    Raises `ValueError` with a sentence that names the file: missing, no PEM, a key of another certificate.
    Certificates that have ended are taken: whoever shows them is refused by the other side.
    """
    certificate, key, authority = map(_text, (files.certificate, files.key, files.authority))
    own = others = None
    if files.certificate is not None:
        own = _validities(files.certificate, certificate)[0]
        _fit(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files.certificate, files.key)
    if files.authority is not None:
        others = min(_validities(files.authority, authority))
        _load_authority(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files.authority, authority)
    # What was checked by its name must be what was read.
    if (certificate, key) != (_text(files.certificate), _text(files.key)):
        raise ValueError(f"{files.certificate}: changed while it was read")
    return Credentials(certificate, key, authority, own, others)


def server_context(files: Files) -> ssl.SSLContext:
    """How a server with these files speaks TLS: 1.2 or later. With an authority, a client may show a
    certificate, but none of another's. Raises what `read` raises."""
    if files.certificate is None:
        raise RuntimeError("a server has a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Who comes back by a ticket is not looked at again, whatever became of its authority meanwhile.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    _fit(context, files.certificate, files.key)
    if files.authority is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
        _load_authority(context, files.authority, _text(files.authority))
    return context


def validity(der: bytes) -> Validity:
    """From when to when the X.509 certificate `der` holds. `ValueError` for what is no certificate.

    Its first part holds version, serial number, algorithm, issuer, validity (RFC 5280, section 4.1).
    """
    part = _element(_element(der, 0, _SEQUENCE)[0], 0, _SEQUENCE)[0]
    at = 0
    if part[:1] == bytes([_CONTEXT_0]):
        at = _element(part, at)[1]
    for _ in range(3):  # serial number, algorithm, issuer
        at = _element(part, at)[1]
    times = _element(part, at, _SEQUENCE)[0]
    _, second = _element(times, 0)
    return Validity(_time(times, second), _time(times, 0))


def _time(data: bytes, at: int) -> float:
    if at >= len(data) or data[at] not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("the certificate's validity holds no time")
    text = _element(data, at)[0].decode("ascii")
    if data[at] == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(data: bytes, at: int, tag: int | None = None) -> tuple[bytes, int]:
    """The contents of the DER element at `at`, and where the next one begins."""
    if at + 2 > len(data) or (tag is not None and data[at] != tag):
        raise ValueError("not the DER form of a certificate")
    size, start = data[at + 1], at + 2
    if size & 0x80:
        count = size & 0x7F
        size, start = int.from_bytes(data[start : start + count], "big"), start + count
    if start + size > len(data):
        raise ValueError("the certificate is cut off")
    return data[start : start + size], start + size


def _text(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def _validities(path: Path, pem: bytes) -> list[Validity]:
    """Those of each certificate of a PEM file."""
    begins = pem.count(_BEGIN)
    blocks = [block.partition(_END) for block in pem.split(_BEGIN)[1:]]
    if not begins or not all(end for _, end, _ in blocks):
        raise ValueError(f"{path}: holds no whole certificate in PEM form")
    try:
        return [
            validity(ssl.PEM_cert_to_DER_cert((_BEGIN + body + _END).decode("ascii")))
            for body, _, _ in blocks
        ]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _fit(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Give a context its certificate; `ValueError` unless the key belongs to it."""
    try:
        # An empty password: a key with one must be an error, not a question to the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        what = getattr(error, "reason", None) or error.strerror or "no key in PEM form without a password"
        raise ValueError(f"{key or certificate}: is not the key of {certificate}: {what}") from error


def _load_authority(context: ssl.SSLContext, path: Path, pem: bytes) -> None:
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"{path}: holds no certificates of authorities: {error}") from error
