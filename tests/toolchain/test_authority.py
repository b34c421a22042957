"""Certificates of a trial: what they say, and that nobody but their owner reads the keys."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from inference_core.certificate import Files, read
from inference_core.errors import InvalidInput
from toolchain.authority import Authority, Pair, write_private

AT = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def alternatives(pair: Pair) -> x509.SubjectAlternativeName:
    return pair.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def usage(pair: Pair) -> list[x509.ObjectIdentifier]:
    return list(pair.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_cloud_is_reached_by_names_and_addresses() -> None:
    pair = Authority.make(AT).server(["cloud.example", "10.0.0.5", "::1"], AT, DAY)
    found = alternatives(pair)
    assert found.get_values_for_type(x509.DNSName) == ["cloud.example"]
    assert [str(a) for a in found.get_values_for_type(x509.IPAddress)] == ["10.0.0.5", "::1"]
    assert usage(pair) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_an_edge_is_known_by_its_uri() -> None:
    pair = Authority.make(AT).edge("edge-1", AT, DAY)
    uris = alternatives(pair).get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == ["spiffe://tandem/edge/edge-1"]
    assert usage(pair) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert pair.certificate.not_valid_after_utc == AT + DAY
    assert AT - timedelta(hours=1) < pair.certificate.not_valid_before_utc < AT
    with pytest.raises(InvalidInput, match="--edge: node id 'a/b'"):
        Authority.make(AT).edge("a/b", AT, DAY)


def test_what_is_written_is_read_and_is_the_owners(tmp_path: Path) -> None:
    assert Authority.read(tmp_path) is None
    Authority.make(AT).write(tmp_path)
    again = Authority.read(tmp_path)
    assert again is not None
    again.edge("edge-1", AT, DAY).write(tmp_path, "edge-1")
    read(Files(tmp_path / "edge-1.pem", tmp_path / "edge-1.key", tmp_path / "ca.pem"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ca.key",
        "ca.pem",
        "edge-1.key",
        "edge-1.pem",
    ]


def test_openssl_agrees_with_the_chain(tmp_path: Path) -> None:
    authority = Authority.make(datetime.now(UTC))
    authority.write(tmp_path)
    authority.server(["localhost"], datetime.now(UTC), DAY).write(tmp_path, "cloud")
    client = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "cloud.pem", tmp_path / "cloud.key")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname="localhost")
    theirs = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ours.version() == "TLSv1.3"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ca.key", None, "has ca.pem alone"),
        ("ca.pem", None, "has ca.key alone"),
        ("ca.pem", b"nothing", "has an authority that cannot be read"),
        ("ca.key", b"nothing", "has an authority that cannot be read"),
    ],
)
def test_half_an_authority_is_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    Authority.make(AT).write(tmp_path)
    path = tmp_path / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=words):
        Authority.read(tmp_path)


def test_a_key_of_another_authority_is_named(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Authority.make(AT).write(tmp_path)
    Authority.make(AT).write(other)
    write_private(tmp_path / "ca.key", (other / "ca.key").read_bytes())
    with pytest.raises(InvalidInput, match=r"ca\.key is not the key of ca\.pem"):
        Authority.read(tmp_path)
