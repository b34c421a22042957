"""Certificates from files: what is whole and fits is taken, all else is refused by the file's name."""

import contextlib
import re
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from inference_core.certificate import NODE_URI, Files, Validity, node_uri, read, server_context, validity
from tests.certificates import Site
from toolchain.authority import Authority

BEGIN = datetime(2026, 5, 1, 12, 30, 15, tzinfo=UTC)
ONE = (
    Authority.make(BEGIN)
    .edge("edge-1", BEGIN, timedelta(1))
    .certificate.public_bytes(serialization.Encoding.DER)
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def test_the_node_of_a_uri_is_the_one_that_it_was_made_for() -> None:
    match = NODE_URI.fullmatch(node_uri("edge-1.site_A"))
    assert match is not None
    assert match.group(1) == "edge-1.site_A"


@pytest.mark.parametrize("node", ["", "-a", "a/b", "a b", "ä", "a\n", "n" * 129, "../ca"])
def test_what_cannot_be_a_node_id(node: str) -> None:
    with pytest.raises(ValueError, match="node id"):
        node_uri(node)


def test_what_is_read_is_what_the_files_hold(site: Site) -> None:
    files = site.edge("edge-1", at=BEGIN, lifetime=timedelta(hours=3))
    found = read(files)
    assert files.certificate is not None
    assert found.certificate == files.certificate.read_bytes()
    assert found.authority == site.ca.read_bytes()
    assert found.own is not None
    assert found.own.ends == (BEGIN + timedelta(hours=3)).timestamp()
    assert found.others is not None
    assert found.others.ends > found.own.ends


def test_there_may_be_an_authority_alone(site: Site) -> None:
    found = read(Files(None, None, site.ca))
    assert (found.certificate, found.key, found.own) == (b"", b"", None)


@pytest.mark.parametrize("year", [2049, 2050, 2150])
def test_both_forms_of_time_are_read_as_others_read_them(site: Site, year: int) -> None:
    pair = site.authority.edge("edge-1", BEGIN, datetime(year, 7, 1, tzinfo=UTC) - BEGIN)
    pem = pair.certificate.public_bytes(serialization.Encoding.PEM).decode()
    found = validity(ssl.PEM_cert_to_DER_cert(pem))
    assert found.ends == pair.certificate.not_valid_after_utc.timestamp()
    assert found.begins == pair.certificate.not_valid_before_utc.timestamp()


@given(st.binary(max_size=200))
def test_what_is_no_certificate_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        validity(data)


@given(st.integers(0, 300), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(at: int, byte: int) -> None:
    data = bytearray(ONE)
    data[at] = byte
    with contextlib.suppress(ValueError):
        validity(bytes(data))


def test_a_missing_file_is_named(site: Site) -> None:
    files = replace(site.edge("edge-1"), key=site.folder / "nowhere.key")
    with pytest.raises(ValueError, match=r"nowhere\.key: No such file or directory"):
        read(files)


def test_a_key_of_another_certificate_is_named(site: Site) -> None:
    first, second = site.edge("edge-1"), site.edge("edge-2")
    with pytest.raises(ValueError, match=rf"{re.escape(str(second.key))}: is not the key of .*edge-1\.pem"):
        read(replace(first, key=second.key))


def test_a_key_with_a_password_is_no_question_to_the_terminal(site: Site, tmp_path: Path) -> None:
    files, locked = site.edge("edge-1"), tmp_path / "locked.key"
    assert files.key is not None
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ValueError, match=r"locked\.key"):
        read(replace(files, key=locked))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_certificate_that_is_cut_off_is_refused(site: Site, tmp_path: Path, share: float) -> None:
    files, cut = site.edge("edge-1"), tmp_path / "cut.pem"
    assert files.certificate is not None
    whole = files.certificate.read_bytes()
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"cut\.pem: holds no whole certificate"):
        read(replace(files, certificate=cut))


def test_authorities_that_end_in_the_middle_are_refused(site: Site, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    pem = site.ca.read_bytes()
    bundle.write_bytes(pem + pem[:200])
    with pytest.raises(ValueError, match=r"bundle\.pem: holds no whole certificate"):
        read(Files(None, None, bundle))


def test_the_first_authority_to_end_counts(site: Site, tmp_path: Path) -> None:
    soon = site.edge("edge-1", at=BEGIN, lifetime=timedelta(hours=1)).certificate
    assert soon is not None
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(site.ca.read_bytes() + soon.read_bytes())
    others = read(Files(None, None, bundle)).others
    assert others is not None
    assert others.ends == (BEGIN + timedelta(hours=1)).timestamp()


def test_a_server_speaks_nothing_older_than_tls_1_2(site: Site) -> None:
    context = server_context(site.cloud())
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_OPTIONAL
    assert server_context(replace(site.cloud(), authority=None)).verify_mode is ssl.CERT_NONE


def test_near_its_end_is_the_last_fifth() -> None:
    held = Validity(begins=1000.0, ends=2000.0)
    assert not held.is_near_its_end(1799.0)
    assert held.is_near_its_end(1801.0)


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, before: ssl.SSLSession | None
) -> ssl.SSLObject:
    """A client's end of a connection over memory, which may come back with the session of one before."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname="localhost", session=before)
    theirs = server.wrap_bio(up, down, server_side=True)
    waiting = [ours, theirs]
    while waiting:
        for end in tuple(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)
    theirs.write(b"!")
    assert ours.read() == b"!"  # TLS 1.3 hands its tickets out behind the handshake
    return ours


def test_nobody_comes_back_without_being_looked_at(site: Site) -> None:
    files = site.cloud()
    client = ssl.create_default_context(cafile=site.ca)
    node = site.edge("edge-1")
    client.load_cert_chain(*(str(path) for path in (node.certificate, node.key)))

    def resumes(server: ssl.SSLContext) -> bool:
        first = shake_hands(server, client, None)
        return bool(shake_hands(server, client, first.session).session_reused)

    assert not resumes(server_context(files))
    generous = server_context(files)
    generous.num_tickets = 2
    generous.options &= ~ssl.OP_NO_TICKET
    assert resumes(generous)
