"""Nobody serves strangers by accident, and half a setting is said at the start."""

from pathlib import Path
from typing import Any

import pytest

from cloud_service.exposure import check, is_local, tls_files
from cloud_service.settings import Settings
from tests.certificates import Site, cloud_settings


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
        ("::", False), ("10.0.0.7", False), ("", False), ("cloud.example", False),
    ],
)  # fmt: skip
def test_what_only_this_machine_reaches(host: str, local: bool) -> None:
    assert is_local(host) is local


def settings(**given: Any) -> Settings:
    return Settings(**given)


def test_beyond_this_machine_there_are_two_ways(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        ValueError, match=r"CLOUD_HOST: 0\.0\.0\.0 is open to strangers; set CLOUD_TLS_CERT, "
    ):
        check(settings(host="0.0.0.0"))
    check(settings(host="0.0.0.0", **cloud_settings(Site(tmp_path).cloud())))
    assert not caplog.records
    check(settings(host="0.0.0.0", insecure=True))
    assert "insecure: whoever reaches 0.0.0.0 may use every model" in caplog.text


def test_a_certificate_of_its_own_keeps_no_stranger_out(tmp_path: Path) -> None:
    files = Site(tmp_path).cloud()
    with pytest.raises(ValueError, match="is open to strangers"):
        check(settings(host="0.0.0.0", tls_cert=files.certificate, tls_key=files.key))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tls_cert": "a.pem"}, "CLOUD_TLS_CERT and CLOUD_TLS_KEY: one without the other"),
        ({"tls_key": "a.key"}, "CLOUD_TLS_CERT and CLOUD_TLS_KEY: one without the other"),
        ({"tls_client_ca": "ca.pem"}, "CLOUD_TLS_CLIENT_CA: without CLOUD_TLS_CERT"),
        ({"nodes": "edge-1"}, "CLOUD_NODES: names nodes by their certificates"),
        ({"revoked_nodes": "list"}, "CLOUD_REVOKED_NODES: names nodes by their certificates"),
        ({"tls_cert": "a.pem", "tls_key": "a.key"}, r"CLOUD_TLS_CERT: a\.pem: No such file"),
    ],
)
def test_half_of_something_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(settings(**given))


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    given = cloud_settings(Site(tmp_path).cloud())
    with pytest.raises(ValueError, match=r"CLOUD_REVOKED_NODES: .*nowhere"):
        check(settings(revoked_nodes=tmp_path / "nowhere", **given))


def test_empty_is_none() -> None:
    assert tls_files(settings(tls_cert="", tls_key="", tls_client_ca="")) is None
